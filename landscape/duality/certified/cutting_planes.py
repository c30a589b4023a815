"""Kelley's cutting planes for min { h(w) : w ∈ W }, h convex, W of boxes and balls; bounds verified outside the solver.

Planes ⟨a_j, w⟩ + b_j ≤ h(w) come from gradients, tangents ⟨c_k, w⟩ + d_k ≤ 0 from the balls of W. For any multipliers
λ_j, μ_k ≥ 0 with Σ λ_j = 1, on a box around W,

    min over W of h  ≥  Σ_j λ_j b_j + Σ_k μ_k d_k + min over the box of ⟨Σ_j λ_j a_j + Σ_k μ_k c_k, w⟩.

A linear program on a small box around the best point, in units of that box, proposes λ and μ; the bound is computed
from them on all of W and rounded down, so that the solver's tolerances cannot make it wrong.
"""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.optimize import linprog

from landscape.duality.branches import Ball, Box, Domain, lattice
from landscape.duality.certified.frontiers import EPSILON
from landscape.duality.certified.intervals import Enclosure

CLOSE = 1e-12
"""The search ends if the bounds of the minimum differ by at most this, relative to h."""

ROUNDS = 60
"""Largest number of linear programs."""

IDLE = 6
"""The search ends after this many linear programs in a row without progress."""

ROWS = 300
"""Largest number of rows of each kind in a linear program."""


class Convex(NamedTuple):
    """A function on W, usually convex, over batches of points or cells [C, p].

    Attributes:
        value: h at points, [C].
        gradient: Of h at points, [C, p].
        around: Enclosures of h on cells.
        domain: W.
    """

    value: Callable[[np.ndarray], np.ndarray]
    gradient: Callable[[np.ndarray], np.ndarray]
    around: Callable[[np.ndarray, np.ndarray], Enclosure]
    domain: Domain


class Minimum(NamedTuple):
    """Bounds of min { h(w) : w ∈ W } from planes.

    Attributes:
        planes: Below h.
        tangents: Not positive on W.
        point: The best point of W found, [p].
        value: h there.
        bound: Certified, not above the minimum.
    """

    planes: "Rows"
    tangents: "Rows"
    point: np.ndarray
    value: float
    bound: float


class Rows(NamedTuple):
    """Linear functions ⟨slopes_j, w⟩ + offsets_j: slopes [J, p], offsets [J]."""

    slopes: np.ndarray
    offsets: np.ndarray

    def at(self, w: np.ndarray) -> np.ndarray:
        """Values at points [C, p], [C, J]."""
        return w @ self.slopes.T + self.offsets

    def joined(self, other: "Rows") -> "Rows":
        """The rows of both."""
        return Rows(*(np.concatenate(pair) for pair in zip(self, other, strict=True)))

    def distinct(self) -> "Rows":
        """The rows without those that agree with an earlier one to fourteen digits."""
        table = np.column_stack([self.slopes, self.offsets])
        digits = np.round(table / np.maximum(np.abs(table).max(1, keepdims=True), 1e-300), 14)
        kept = np.sort(np.unique(digits, axis=0, return_index=True)[1])
        return Rows(self.slopes[kept], self.offsets[kept])


def _planes(h: Convex, points: np.ndarray) -> Rows:
    """A plane below a convex h for each point [C, p], from the lower end of h there and a gradient.

    The gradient is the enclosed one where the enclosure is tight, otherwise that of automatic differentiation; what it
    may be off, and its rounding, is paid for on all of W. The points are drawn at random, so that none is at a kink.
    """
    found, slopes = h.around(points, points + 0.0), h.gradient(points)
    known = np.isfinite(found.slope_lo) & np.isfinite(found.slope_hi)
    low, high = (np.where(known, end, 0.0) for end in (found.slope_lo, found.slope_hi))
    radius = np.where(known, (high - low) * (0.5 + 4 * EPSILON), np.inf)
    tight = (radius <= 1e-6 * (1 + np.abs(slopes))).all(1, keepdims=True)
    slopes = np.where(tight, low / 2 + high / 2, slopes)
    steep = np.abs(slopes) + np.abs(slopes).max(1, initial=0.0, keepdims=True)
    radius = np.where(tight, radius, 32 * EPSILON * steep)
    reach = np.maximum(h.domain.hi - points, points - h.domain.lo)
    size = np.abs(found.centre_lo) + np.sum(np.abs(slopes * points), 1)
    offsets = found.centre_lo - np.sum(slopes * points, 1) - np.sum(radius * reach, 1)
    offsets = offsets - 4 * (points.shape[1] + 2) * EPSILON * size
    good = np.isfinite(offsets) & np.isfinite(slopes).all(1)
    return Rows(slopes[good], offsets[good])


def _tangents(domain: Domain, points: np.ndarray) -> Rows:
    """Linear functions that are not positive on W: the tangents of its balls towards points [C, p]."""
    parts, rows, first = getattr(domain, "parts", (domain,)), Rows(np.zeros((0, points.shape[1])), np.zeros(0)), 0
    for part in parts:
        last = first + len(part.lo)
        if isinstance(part, Ball):
            away = points[:, first:last] - part.centre
            length = np.sqrt(np.sum(away**2, 1))
            away, length = away[length > 0], length[length > 0]
            slopes = np.zeros((len(away), points.shape[1]))
            slopes[:, first:last] = away / length[:, None]
            along = slopes[:, first:last] @ part.centre
            size = part.radius + np.sum(np.abs(slopes[:, first:last] * part.centre), 1)
            rows = rows.joined(Rows(slopes, -along - part.radius - 16 * EPSILON * size))
        first = last
    return rows


def _certified(rows: Rows, weights: np.ndarray, lo: np.ndarray, hi: np.ndarray) -> float:
    """Below min over the box of Σ_j weights_j (⟨slopes_j, w⟩ + offsets_j)."""
    slope, centre, half = weights @ rows.slopes, (lo + hi) / 2, (hi - lo) / 2
    heights = rows.offsets + rows.slopes @ centre
    size = np.sum(weights * (np.abs(rows.offsets) + np.abs(rows.slopes) @ (np.abs(centre) + half)))
    return float(weights @ heights - np.abs(slope) @ half - 4 * (len(weights) + len(lo) + 4) * EPSILON * size)


def _multipliers(cost: np.ndarray, rows: np.ndarray, limits: np.ndarray, ends: np.ndarray) -> np.ndarray | None:
    """(solution, multipliers) of min ⟨cost, z⟩, rows z ≤ limits, ends[0] ≤ z ≤ ends[1]; None where none was found."""
    found = linprog(cost, rows, limits, bounds=np.transpose(ends), method="highs")
    if found.status != 0:
        return None
    return np.concatenate([found.x, np.maximum(-found.ineqlin.marginals, 0.0)])


def minimum(h: Convex, points: np.ndarray, values: np.ndarray) -> Minimum | None:
    """Planes around the best point in a trust region that follows the program's steps; None if h is not convex.

    Args:
        h: The function.
        points: Points of W to start from, [M, p].
        values: h there, [M].
    """
    rng, half = np.random.default_rng(0), (h.domain.hi - h.domain.lo) / 2
    empty, scale = Rows(np.zeros((0, len(half))), np.zeros(0)), float(np.abs(values).max())
    known = Minimum(empty, empty, points[np.argmin(values)], float(values.min()), -np.inf)
    candidate, reach, idle = known.point, 1.0, 0
    for _ in range(ROUNDS):
        cloud = _cloud(h.domain, np.stack([known.point, candidate]), reach, rng)
        points = np.concatenate([points, candidate[None], cloud])
        values = np.concatenate([values, h.value(points[len(values) :])])
        planes = known.planes.joined(_planes(h, cloud)).distinct()
        if len(planes.offsets) and np.any(planes.at(points).max(1) > values + CLOSE * (1 + scale)):
            return None
        best = int(values.argmin())
        tangents = known.tangents.joined(_tangents(h.domain, np.concatenate([candidate[None], cloud])))
        before = known
        known, step = _improved(
            Minimum(planes, tangents, points[best], float(values[best]), before.bound), h.domain, reach * half
        )
        better = known.value < before.value
        idle = 0 if better or known.bound > before.bound else idle + 1
        if known.value - known.bound <= CLOSE / 10 * scale or idle == IDLE:
            break
        candidate = h.domain.project(known.point + step * reach * half)
        length = 2 * float(np.abs(step).max(initial=0.0))
        reach = min(1.0, max(1e-15, 0.9 * reach * float(np.clip(length, 0.25, 2.0 if better else 1.0))))
    return known


def _cloud(domain: Domain, around: np.ndarray, reach: float, rng: np.random.Generator) -> np.ndarray:
    """Random points of W near two points [2, p], at distances of `reach` and a thousandth of it, off W's sides."""
    middle, half = (domain.lo + domain.hi) / 2, (domain.hi - domain.lo) / 2
    count = 8 * (len(half) + 1)
    near = reach * np.where(np.arange(count) < count / 2, 1.0, 1e-3)[:, None]
    cloud = domain.project(around[np.arange(count) % 2] + near * half * rng.uniform(-1, 1, (count, len(half))))
    return cloud + 0.1 * near * rng.uniform(0, 1, (count, 1)) * (middle - cloud)


def _improved(known: Minimum, domain: Domain, half: np.ndarray) -> tuple[Minimum, np.ndarray]:
    """Solve the linear program on point ± half: a bound from its multipliers, and its solution z in units of half.

    min t subject to h_j(point + half z) − value ≤ unit t for the planes h_j, and to tangents that are not positive.
    """
    planes, tangents, size = known.planes, known.tangents, len(half)
    heights, limits = planes.at(known.point[None])[0] - known.value, tangents.at(known.point[None])[0]
    steep, across = np.sum(np.abs(planes.slopes) * half, 1), np.sum(np.abs(tangents.slopes) * half, 1)
    near = _highest(heights, heights + steep >= np.max(heights - steep, initial=-np.inf))
    close = _highest(limits, limits + across >= 0)
    if len(near) == 0:
        return known, np.zeros(size)

    unit, units = max(float(steep[near].max()), 1e-300), np.maximum(across[close], 1e-300)
    of_planes = np.column_stack([planes.slopes[near] * half / unit, -np.ones(len(near))])
    of_tangents = np.column_stack([tangents.slopes[close] * half / units[:, None], np.zeros(len(close))])
    right = np.concatenate([-heights[near] / unit, -limits[close] / units])
    ends = _ends(domain, known.point, np.maximum(half, 1e-300))
    solved = _multipliers(np.append(np.zeros(size), 1.0), np.vstack([of_planes, of_tangents]), right, ends)
    if solved is None:
        return known, np.zeros(size)

    lam, mu = np.split(solved[size + 1 :], [len(near)])
    total = lam.sum()
    if not total > 0:
        return known, solved[:size]
    weights = np.concatenate([lam, mu * unit / units]) / total
    chosen = Rows(*(np.concatenate([a[near], b[close]]) for a, b in zip(planes, tangents, strict=True)))
    bound = _certified(chosen, weights, domain.lo, domain.hi)
    return known._replace(bound=min(max(known.bound, bound), known.value)), solved[:size]


def _highest(values: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """Indices of the largest allowed values, at most `ROWS`, in falling order."""
    found = np.flatnonzero(allowed)
    return found[np.argsort(-values[found])[:ROWS]]


def _ends(domain: Domain, point: np.ndarray, half: np.ndarray) -> np.ndarray:
    """The ends of z and t, [2, p + 1]: point + half z lies in the box of W, and z = 0 is always allowed."""
    low, high = np.maximum((domain.lo - point) / half, -1), np.minimum((domain.hi - point) / half, 1)
    return np.column_stack([np.stack([np.minimum(low, 0), np.maximum(high, 0)]), [-np.inf, np.inf]])


def box_of_minimisers(known: Minimum, domain: Domain) -> tuple[np.ndarray, np.ndarray]:
    """A box that holds all points of W where no plane is above the best value."""
    lo, hi = domain.lo.copy(), domain.hi.copy()
    planes = Rows(known.planes.slopes, known.planes.offsets - known.value - 8 * EPSILON * abs(known.value))
    for _ in range(40):
        rows = planes.joined(known.tangents).joined(_tangents(domain, lattice(Box(lo, hi), 27)))
        before = hi - lo
        lo, hi = _shrunk(rows, known.point, lo, hi)
        if np.all(hi - lo > before / 2):
            break
    return lo, hi


def _shrunk(rows: Rows, point: np.ndarray, lo: np.ndarray, hi: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A smaller box around the points of [lo, hi] where no row is positive, one linear program for each side."""
    centre, half = (lo + hi) / 2, np.maximum((hi - lo) / 2, 1e-300)
    heights, steep = rows.at(centre[None])[0], np.sum(np.abs(rows.slopes) * half, 1)
    reached = rows.at(point[None])[0] / np.maximum(steep, 1e-300)
    near = np.flatnonzero((heights + steep > 0) & (steep > 0))
    near = near[np.argsort(-np.maximum(heights / np.maximum(steep, 1e-300), reached)[near])[:ROWS]]
    scaled, right = rows.slopes[near] * half / steep[near, None], -heights[near] / steep[near]
    lo, hi = lo.copy(), hi.copy()
    ends = np.stack([-np.ones(len(half)), np.ones(len(half))])
    for side, sign in itertools.product(range(len(half)), (-1.0, 1.0)):
        cost = -sign * np.eye(len(half))[side]
        solved = _multipliers(cost, scaled, right, ends) if len(near) else None
        if solved is None:
            continue
        weights = solved[len(half) :] / steep[near]
        line = Rows((cost / half)[None], np.array([-(cost / half) @ centre]))  # in units of the box's half-width
        chosen = line.joined(Rows(rows.slopes[near], rows.offsets[near]))
        least = _certified(chosen, np.append(1.0, weights), centre - half, centre + half)
        end = min(1.0, -least) * half[side] * (1 + 4 * EPSILON)
        if sign > 0:
            hi[side] = max(min(hi[side], centre[side] + end), lo[side])
        else:
            lo[side] = min(max(lo[side], centre[side] - end), hi[side])
    return lo, hi
