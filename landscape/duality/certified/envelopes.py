"""Convex envelopes on W ⊂ R^p, p ≤ 3: from above by the hull of a lattice's values, from below by certified planes.

The hull's facets give slopes a_j; for each one c_j ≤ min over W of f(w) − ⟨a_j, w⟩ is found by interval branch and
bound, and conv f ≥ max_j ⟨a_j, w⟩ + c_j.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.spatial import ConvexHull

from landscape.arrays.chunked import chunked_map
from landscape.duality.branches import Domain
from landscape.duality.certified.frontiers import lower_hull
from landscape.duality.certified.intervals import Enclosure, halves, reach
from landscape.duality.certified.refinement import Round, halving, refine

LATTICE = {1: 1025, 2: 1089, 3: 2197}
"""Points of the lattice for each p."""

FACETS = 600
"""Largest number of certified facets; the lower bound leaves out the rest of the hull."""

PAIRS = 64
"""Largest number of pairs (cell, plane) examined, in units of `max_cells`."""

Bounds = Callable[[np.ndarray, np.ndarray], Enclosure]


class Planes(NamedTuple):
    """max_j ⟨slopes_j, w⟩ + offsets_j: slopes [J, p], offsets [J]."""

    slopes: np.ndarray
    offsets: np.ndarray

    def __call__(self, w: np.ndarray) -> np.ndarray:
        """The value at points [C, p]."""
        return self._by_chunks(w)[0]

    def active(self, w: np.ndarray) -> np.ndarray:
        """The plane that is highest at each point, [C]."""
        return self._by_chunks(w)[1]

    def _by_chunks(self, w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        def highest(w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            heights = w @ self.slopes.T + self.offsets
            return heights.max(1), heights.argmax(1)

        return chunked_map(highest, 4096, w)


class ConvexEnvelope(NamedTuple):
    """conv f on W: `lower` ≤ conv f everywhere, conv f ≤ `upper` where `spans` holds.

    Attributes:
        lower: Certified planes.
        upper: The hull of the lattice's values.
        sides: Sides of the lattice's own hull, as planes that are not positive inside.
    """

    lower: Planes
    upper: Planes
    sides: Planes

    def spans(self, w: np.ndarray) -> np.ndarray:
        """Whether points [C, p] lie in the hull of the lattice."""
        return self.sides(w) <= 0


def hull_planes(points: np.ndarray, values: np.ndarray) -> Planes:
    """The lower convex hull of (point, value), as planes: above conv f at every point of the points' hull.

    Args:
        points: [M, p].
        values: Upper bounds of f there, [M].
    """
    varying = np.ptp(points, axis=0) > 0
    if not varying.any():
        return Planes(np.zeros((1, points.shape[1])), values.min(keepdims=True))
    low, extent = points.min(0)[varying], np.ptp(points, axis=0)[varying]
    base, span = values.min(), np.ptp(values) or 1.0
    planes = _unit_planes((points[:, varying] - low) / extent, (values - base) / span)
    slopes = np.zeros((len(planes), points.shape[1]))
    slopes[:, varying] = span * planes[:, :-1] / extent
    offsets = base + span * planes[:, -1] - slopes[:, varying] @ low
    sizes = np.abs(values).max() + np.abs(slopes) @ np.abs(points).max(0)
    return Planes(slopes, offsets + 1e-11 * span * (planes.shape[1] > 2) + 1e-15 * sizes)


def _unit_planes(points: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Rows (slope, offset) of the lower hull of points that fill the unit cube and values in [0, 1], to 1e-11."""
    size = points.shape[1]
    if size == 1:
        order = np.lexsort((values, points[:, 0]))
        x, first = np.unique(points[order, 0], return_index=True)
        y = values[order][first]
        kept = lower_hull(x, y)
        slopes = np.diff(y[kept]) / np.diff(x[kept])
        return np.column_stack([slopes, y[kept[:-1]] - slopes * x[kept[:-1]]])
    cloud = np.vstack([np.column_stack([points, values]), [*points.mean(0), 12.0]])
    equations = ConvexHull(cloud).equations
    below = equations[equations[:, size] < -1e-9]
    planes = -below[:, [*range(size), size + 1]] / below[:, size : size + 1]
    return np.unique(np.round(planes, 12), axis=0)


def convex_envelope(
    bounds: Bounds,
    domain: Domain,
    points: np.ndarray,
    values: np.ndarray,
    tol: float,
    preference: np.ndarray,
    max_cells: int = 400_000,
) -> ConvexEnvelope:
    """conv f on W from both sides.

    Args:
        bounds: Enclosures of f on cells (lo, hi), each [C, p].
        domain: W.
        points: A lattice on W that spans it, [M, p].
        values: Upper bounds of f there, [M].
        tol: Wanted precision of the planes from below.
        preference: Facets at points of larger preference are certified first, [M].
        max_cells: Cells examined before the precision is given up, and `PAIRS` times as many pairs.
    """
    upper = hull_planes(points, values)
    order = np.argsort(-preference)
    _, first = np.unique(upper.active(points[order]), return_index=True)
    chosen = upper.active(points[order][np.sort(first)[:FACETS]])
    slopes = upper.slopes[chosen]
    reached = np.array([np.min(values - points @ slope) for slope in slopes])
    sides = _sides(points)
    return ConvexEnvelope(Planes(slopes, tilted_minima(bounds, domain, slopes, reached, tol, max_cells)), upper, sides)


def _sides(points: np.ndarray) -> Planes:
    """The hull of points [M, p]; a coordinate in which they all agree has no sides."""
    low, extent = points.min(0), np.ptp(points, axis=0)
    varying = extent > 0
    unit = (points[:, varying] - low[varying]) / extent[varying]
    if unit.shape[1] > 1:
        equations = ConvexHull(unit).equations
    else:
        equations = np.array([[1.0, -1.0], [-1.0, 0.0]]) if varying.any() else np.zeros((1, 1))
    slopes = np.zeros((len(equations), len(low)))
    slopes[:, varying] = equations[:, :-1] / extent[varying]
    return Planes(slopes, equations[:, -1] - slopes @ low)


def tilted_minima(
    bounds: Bounds, domain: Domain, slopes: np.ndarray, reached: np.ndarray, tol: float, max_cells: int
) -> np.ndarray:
    """Certified lower bounds of min over W of f(w) − ⟨slope, w⟩, [J], for all slopes [J, p]; `reached` from above."""
    best, lowest = reached.copy(), np.full(len(slopes), np.inf)
    cell, plane, pairs = np.zeros(len(slopes), int), np.arange(len(slopes)), 0

    def examine(lo: np.ndarray, hi: np.ndarray) -> Round:
        nonlocal cell, plane, pairs
        found, (centre, half) = bounds(lo, hi), halves(lo, hi)
        tilt, at = slopes[plane], np.sum(slopes[plane] * centre[cell], 1)
        low = _lower(found, cell, tilt, centre, half)
        inside = domain.contains(centre)[cell]
        np.minimum.at(best, plane[inside], (found.centre_hi[cell] - at)[inside])
        open_pairs = ~(low >= best[plane] - tol) & domain.meets(lo, hi)[cell]
        still, place = np.unique(cell[open_pairs], return_inverse=True)
        left, pairs = (plane[open_pairs], low[open_pairs]), pairs + len(cell)
        stop = pairs + 2 * len(place) > PAIRS * max_cells
        cell, plane = np.concatenate([place, place + len(still)]), np.tile(left[0], 2)
        return halving(lo, hi, still, found, domain, left, stop)

    left = refine(domain.lo, domain.hi, max_cells, examine)
    if left is not None:
        np.minimum.at(lowest, *left)
    return np.minimum(best - tol, lowest)


def _lower(found: Enclosure, cell: np.ndarray, tilt: np.ndarray, centre: np.ndarray, half: np.ndarray) -> np.ndarray:
    """Lower bounds of f(w) − ⟨tilt, w⟩ on cells, for pairs (cell, tilt); −inf if nothing is known."""
    parts = tilt * centre[cell]
    at, rounding = parts.sum(1), 1e-14 * (1 + np.abs(parts).sum(1))
    steep = np.maximum(np.abs(found.slope_lo[cell] - tilt), np.abs(found.slope_hi[cell] - tilt))
    low = -np.full(len(cell), np.inf)
    for value, slope in ((found.centre_lo, steep), (found.lo, np.abs(tilt))):
        low = np.fmax(low, value[cell] - at - reach(slope, half[cell]) - rounding - 1e-15 * np.abs(value[cell]))
    return low
