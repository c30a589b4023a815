"""A sampled surface and its lower convex envelope, both also between the grid points."""

from typing import Any, NamedTuple

import numpy as np
from scipy.spatial import ConvexHull

STRIPS = 256
SLACK = 1e-9  # of the extent: a point this far outside still counts as inside
SINGLE, DOUBLE = 2e-6, 1e-12
TILT = 1e-7  # of the range: bends flat parts a little, so that the triangulation reaches every point in them
STEEPEST = 1e7  # of a lower facet, in units of the whole extent and range; vertical facets at the border lie above


class Samples(NamedTuple):
    """Values f [A, B] on the grid a [A] x b [B], nan where unknown; differences up to `resolution` are rounding."""

    a: np.ndarray
    b: np.ndarray
    f: np.ndarray
    resolution: float

    @property
    def weights(self) -> np.ndarray:
        """Trapezoid weights [A, B], 0 where there is no sample."""
        side = [np.convolve(np.diff(x), [0.5, 0.5]) for x in (self.a, self.b)]
        return np.where(np.isfinite(self.f), side[0][:, None] * side[1][None], 0.0)

    @property
    def nodes(self) -> np.ndarray:
        """(a, b) of every grid point, [A·B, 2]."""
        return np.stack(np.meshgrid(self.a, self.b, indexing="ij"), -1).reshape(-1, 2)


class Envelope(NamedTuple):
    """The lower convex envelope max_k (p_k a + q_k b + r_k) of samples.

    Attributes:
        planes: [K, 3] (p, q, r) of each lower facet.
        reach: [K, 2] Smallest and largest a of its corners.
        gap: [A, B] Samples minus envelope, at least 0; nan where the samples are not finite.
        edges: [E, 2] Flat indices of the ends of its edges, flat parts triangulated through every point in them.
    """

    planes: np.ndarray
    reach: np.ndarray
    gap: np.ndarray
    edges: np.ndarray

    def at(self, points: np.ndarray) -> np.ndarray:
        """The envelope at points [P, 2] of the samples' hull; each strip of a meets only the facets across it."""
        value = np.empty(len(points))
        for strip in np.array_split(np.argsort(points[:, 0]), STRIPS):
            x, y = points[strip].T[:, :, None]
            across = (self.reach[:, 0] <= x.max(initial=-np.inf)) & (self.reach[:, 1] >= x.min(initial=np.inf))
            p, q, r = self.planes[across].T[:, None]
            value[strip] = (x * p + (y * q + r)).max(1, initial=-np.inf)
        return value


def clean(x: Any, floor: float) -> Any:
    """x where it exceeds the floor, else 0 (also for nan)."""
    return np.where(x > floor, x, 0.0)[()]


def rounding(values: np.ndarray) -> float:
    """Differences that rounding alone can make between values of a risk, by the precision that they are stored in."""
    finite = values[np.isfinite(values)]
    with np.errstate(over="ignore"):
        single = np.array_equal(finite.astype(np.float32), finite)
    return (SINGLE if single else DOUBLE) * np.abs(finite).max(initial=0.0)


def spans(samples: Samples) -> bool:
    """Whether the samples' points are not all on one line."""
    points = samples.nodes[np.isfinite(samples.f).ravel()]
    return len(points) >= 3 and int(np.linalg.matrix_rank(points[1:] - points[:1])) == 2


def within(samples: Samples, corners: np.ndarray) -> Samples | None:
    """The samples inside a triangle, borders included; None where its corners are on one line."""
    sides = np.stack([corners[1] - corners[0], corners[2] - corners[0]], 1)
    if np.linalg.matrix_rank(sides) < 2:
        return None
    shares = np.linalg.solve(sides, (samples.nodes - corners[:1]).T)
    inside = (np.minimum(shares.min(0), 1 - shares.sum(0)) >= -SLACK).reshape(samples.f.shape)
    return samples._replace(f=np.where(inside, samples.f, np.nan))


def envelope(a: np.ndarray, b: np.ndarray, f: np.ndarray) -> Envelope:
    """The lower convex envelope of samples f [A, B] on the grid a [A] x b [B]: the lower facets of their hull."""
    finite = np.flatnonzero(np.isfinite(f))
    i, j = np.unravel_index(finite, f.shape)
    raw = np.stack([a[i], b[j], f.ravel()[finite]], 1)
    low, size = raw.min(0), np.ptp(raw, axis=0)
    size[size == 0] = 1.0
    unit = (raw - low) / size
    corners, planes = _lower_facets(unit)
    hull = Envelope(planes, np.stack([unit[corners, 0].min(1) - SLACK, unit[corners, 0].max(1) + SLACK], 1), f, corners)
    gap = np.full(f.shape, np.nan)
    gap.ravel()[finite] = size[2] * np.maximum(unit[:, 2] - hull.at(unit[:, :2]), 0.0)
    touched = np.unique(corners)
    gap.ravel()[finite[touched]] = 0.0
    slopes = planes[:, :2] * (size[2] / size[:2])[None]
    offsets = low[2] + size[2] * planes[:, 2] - slopes @ low[:2]
    fine = corners
    if len(touched) < len(unit):
        fine, _ = _lower_facets(unit + TILT * np.stack([0 * i, 0 * i, (unit[:, :2] ** 2).sum(1)], 1))
    edges = np.sort(np.concatenate([fine[:, [0, 1]], fine[:, [0, 2]], fine[:, [1, 2]]]), 1)
    return Envelope(
        np.column_stack([slopes, offsets]), low[0] + size[0] * hull.reach, gap, finite[np.unique(edges, axis=0)]
    )


def _lower_facets(unit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Corners [K, 3] and planes [K, 3] of the lower facets; one point far above keeps the hull solid for flat ones."""
    hull = ConvexHull(np.vstack([unit, [*unit[:, :2].mean(0), 10.0]]))
    below = hull.equations[:, 2] < -1 / STEEPEST
    p, q, z, r = hull.equations[below].T
    rounding = 2 * np.finfo(float).eps * (np.abs(p) + np.abs(q)) / z  # of points next to a steep facet, downwards
    return hull.simplices[below], np.stack([-p / z, -q / z, -r / z + rounding], 1)


def interpolate(samples: Samples, values: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Bilinear interpolation of values [A, B] from the finite corners of each cell; nan outside or without any."""
    index, share, outside = [], [], np.zeros(len(points), bool)
    for side, x in zip((samples.a, samples.b), points.T, strict=True):
        slack = SLACK * (side[-1] - side[0])
        outside |= (x < side[0] - slack) | (x > side[-1] + slack)
        k = np.clip(np.searchsorted(side, x, "right") - 1, 0, len(side) - 2)
        index.append(k)
        share.append(np.clip((x - side[k]) / (side[k + 1] - side[k]), 0, 1))
    total, mass = np.zeros(len(points)), np.zeros(len(points))
    for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
        corner = values[index[0] + i, index[1] + j]
        weight = np.abs(1 - i - share[0]) * np.abs(1 - j - share[1]) * np.isfinite(corner)
        total, mass = total + weight * np.nan_to_num(corner), mass + weight
    empty = outside | (mass <= 0)
    return np.where(empty, np.nan, total / np.where(empty, 1.0, mass))


def between(samples: Samples, hull: Envelope, points: np.ndarray) -> np.ndarray:
    """The surface at any points: exact envelope plus interpolated gap, hence convex wherever the samples are."""
    return hull.at(points) + interpolate(samples, hull.gap, points)
