"""A sampled surface and its lower convex envelope, both also between the grid points."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from scipy.spatial import ConvexHull

STRIPS = 256
SLACK = 1e-9  # of the extent: a point this far outside still counts as inside
SINGLE, DOUBLE = 2e-6, 1e-12  # of the largest value: 17 and 4,500 units in the last place
STEEPEST = 1e7  # of a lower facet, in units of the whole extent and range; vertical facets at the border lie above


class Samples(NamedTuple):
    """Values f [A, B] on the grid a [A] x b [B], nan where unknown; differences up to `resolution` are rounding."""

    a: np.ndarray
    b: np.ndarray
    f: np.ndarray
    resolution: float

    @property
    def known(self) -> np.ndarray:
        """(a, b) of every sample, [P, 2]."""
        return self.nodes[np.isfinite(self.f).ravel()]

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
        low: [3] Lowest corner of the samples' box in (a, b, f).
        size: [3] Sides of the box.
        planes: [K, 3] (p, q, r) of each lower facet, in units of the box.
        reach: [K, 2] Smallest and largest a of its corners, in the same units.
        gap: Samples minus envelope, at least 0, shaped like the samples; nan where these are not finite.
        error: Of gap and envelope: how far rounding moves the planes off their own corners and above other samples, and
            what rounded coordinates make of their slopes.
    """

    low: np.ndarray
    size: np.ndarray
    planes: np.ndarray
    reach: np.ndarray
    gap: np.ndarray
    error: float

    def at(self, points: np.ndarray) -> np.ndarray:
        """The envelope at points [P, 2] of the samples' hull."""
        unit = (points - self.low[:2]) / self.size[:2]
        return self.low[2] + self.size[2] * _highest(self.planes, self.reach, unit)


def _highest(planes: np.ndarray, reach: np.ndarray, points: np.ndarray) -> np.ndarray:
    """The highest plane at points [P, 2]; each strip of a meets only the facets across it."""
    value = np.empty(len(points))
    for strip in np.array_split(np.argsort(points[:, 0]), min(STRIPS, 1 + len(points) // 64)):
        x, y = points[strip].T[:, :, None]
        across = (reach[:, 0] <= x.max(initial=-np.inf)) & (reach[:, 1] >= x.min(initial=np.inf))
        p, q, r = planes[across].T[:, None]
        value[strip] = (x * p + (y * q + r)).max(1, initial=-np.inf)
    return value


def clean(x: Any, floor: float) -> Any:
    """x where it exceeds the floor, else 0 (also for nan)."""
    return np.where(x > floor, x, 0.0)[()]


def rounding(values: np.ndarray) -> float:
    """Differences that rounding alone can make between values of a risk, by the precision that they are stored in."""
    finite = values[np.isfinite(values)]
    largest = float(np.abs(finite.astype(float)).max(initial=0.0))
    kind = values.dtype if jnp.issubdtype(values.dtype, jnp.floating) else np.dtype(float)
    share = 2 * float(jnp.finfo(kind).eps)
    if kind.itemsize >= 4:
        with np.errstate(over="ignore"):
            single = np.array_equal(finite.astype(np.float32), finite)
        kind, share = (np.dtype("f4"), SINGLE) if single else (np.dtype("f8"), DOUBLE)
    return max(share * largest, 2 * float(jnp.finfo(kind).smallest_subnormal))


def spans(points: np.ndarray) -> bool:
    """Whether points [P, 2] are clearly not all on one line, so that their envelope has finite slopes.

    >>> spans(np.array([[0.0, 1.0], [0.1, 1.1], [0.3, 1.3]])), spans(np.array([[0.0, 1.0], [1e-6, 1.0], [0.0, 2.0]]))
    (False, True)
    """
    sides = np.ptp(points, axis=0) if len(points) else np.zeros(2)
    if len(points) < 3 or not sides.all():
        return False
    unit = (points - points.mean(0)) / sides
    largest, smallest = np.linalg.svd(unit, compute_uv=False)
    return bool(smallest > 10 / STEEPEST * largest)


def within(samples: Samples, corners: np.ndarray) -> Samples | None:
    """The samples inside a triangle, borders included; None where its corners are on one line."""
    sides = np.stack([corners[1] - corners[0], corners[2] - corners[0]], 1)
    if not spans(corners):
        return None
    shares = np.linalg.solve(sides, (samples.nodes - corners[:1]).T)
    inside = (np.minimum(shares.min(0), 1 - shares.sum(0)) >= -SLACK).reshape(samples.f.shape)
    return samples._replace(f=np.where(inside, samples.f, np.nan))


def envelope(a: np.ndarray, b: np.ndarray, f: np.ndarray) -> Envelope:
    """The lower convex envelope of samples f [A, B] on the grid a [A] x b [B]."""
    known = np.isfinite(f)
    i, j = np.nonzero(known)
    hull = envelope_of(np.stack([a[i], b[j], f[known]], 1))
    gap = np.full(f.shape, np.nan)
    gap[known] = hull.gap
    return hull._replace(gap=gap)


def envelope_of(points: np.ndarray) -> Envelope:
    """The lower convex envelope of points (a, b, f), [N, 3]: the lower facets of their hull."""
    low, size = points.min(0), np.ptp(points, axis=0)
    size[size == 0] = 1.0
    unit = (points - low) / size
    corners, planes = _lower_facets(unit)
    reach = np.stack([unit[corners, 0].min(1) - SLACK, unit[corners, 0].max(1) + SLACK], 1)
    above = unit[:, 2] - _highest(planes, reach, unit[:, :2])
    touched = np.unique(corners)
    error = np.abs(above[touched]).max() + np.maximum(-above, 0.0).max()
    error += 4 * np.finfo(float).eps * np.abs(planes[:, :2]).sum(1).max()  # of coordinates, on the steepest facet
    above[touched] = 0.0
    return Envelope(low, size, planes, reach, size[2] * np.maximum(above, 0.0), float(size[2] * error))


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
        known = np.isfinite(corner)
        weight = np.abs(1 - i - share[0]) * np.abs(1 - j - share[1]) * known
        total, mass = total + weight * np.where(known, corner, 0.0), mass + weight
    empty = outside | (mass <= 0)
    return np.where(empty, np.nan, total / np.where(empty, 1.0, mass))


def between(samples: Samples, hull: Envelope, points: np.ndarray) -> np.ndarray:
    """The surface at any points: exact envelope plus interpolated gap, hence convex wherever the samples are."""
    return hull.at(points) + interpolate(samples, hull.gap, points)
