"""The smallest regulariser on W, m = min { h(w) : w ∈ W }: the first budget of a frontier, certified from below.

Three ways, the first that applies: the named norms on a box, and l2 on a ball, have closed forms. For a convex h every
gradient is a plane below h, so multipliers λ_j ≥ 0 with Σ λ_j = 1 give

    m ≥ Σ_j λ_j b_j + min over W of ⟨Σ_j λ_j a_j, w⟩          (planes ⟨a_j, w⟩ + b_j, linear programming duality)

whoever found them: a linear program over the planes near the best point proposes λ (Kelley's method in a trust region),
and the bound is computed from λ outside the solver. For any other h, cells of W are put aside whose enclosure lies
above the best point (interval branch and bound). Ends are rounded outwards.
"""

import itertools
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import linprog

from landscape.duality.branch_and_bound import batched
from landscape.duality.branches import NORMS, Ball, Box, Domain, Regulariser, lattice
from landscape.duality.frontiers import EPSILON
from landscape.duality.intervals import Enclosure, enclose

CELLS = 20_000
"""Cells examined before the search by cells is given up."""

CLOSE = 1e-12
"""Relative difference of the two bounds of m that counts as closed."""

ROUNDS = 60
"""Linear programs solved at most."""

Around = Callable[[np.ndarray, np.ndarray], Enclosure]
Sizes = Callable[[np.ndarray], np.ndarray]


class LeastSize(NamedTuple):
    """m = min { h(w) : w ∈ W } from both sides.

    Attributes:
        point: A point of W, [p].
        value: h there, not below m.
        bound: Not above m.
        lo: Lower corners of cells that hold a minimiser of h, [C, p].
        hi: Upper corners, [C, p].
    """

    point: np.ndarray
    value: float
    bound: float
    lo: np.ndarray
    hi: np.ndarray


def least_size(h: Regulariser, domain: Domain) -> LeastSize:
    """The smallest h on W; call inside `trees.float64()`.

    A function that is not said to be convex is taken to be (Theorem 1 presumes it) only where cells leave the bounds
    more than `CLOSE` apart, and only if no point found lies below a plane.

    Raises:
        ValueError: h is not one real number, not finite at a point of W, not bounded from below, said to be convex and
            is not, or uses an operation without an interval rule.
    """
    exact = _closed_form(h, domain)
    if exact is not None:
        return exact
    _check_output(h, len(domain.lo))
    around: Around = partial(batched, jax.jit(jax.vmap(partial(enclose, h.value))), 512)
    gradient = partial(batched, jax.jit(jax.vmap(jax.grad(h.value))), 64)
    sizes = _finite(partial(batched, jax.jit(jax.vmap(h.value)), 4096))
    points = np.concatenate([domain.project(np.zeros((1, len(domain.lo)))), lattice(domain, 4096)])
    values = sizes(points)
    start, scale = points[np.argmin(values)], float(np.abs(values).max())
    if h.convex:
        found = _by_planes(around, sizes, gradient, domain, points, values)
        if found is None:
            raise ValueError("The regulariser is said to be convex, but lies below one of its own tangents on W.")
    else:
        found = _by_cells(around, sizes, domain, (domain.lo, domain.hi), start, CELLS)
        if found.value - found.bound > CLOSE * scale:
            given = np.concatenate([found.point[None], points])
            planes = _by_planes(around, sizes, gradient, domain, given, np.append(found.value, values))
            found = found if planes is None or planes.bound <= found.bound else planes
    if not np.isfinite(found.bound):
        raise ValueError("h is not bounded from below on W, as far as interval arithmetic can tell; change W or h.")
    return found


def _check_output(h: Regulariser, size: int) -> None:
    out = jax.eval_shape(h.value, jnp.zeros(size))
    if getattr(out, "shape", None) != () or jnp.issubdtype(out.dtype, jnp.complexfloating):
        raise ValueError(f"A regulariser maps w [{size}] to one real number; this one returns {out}.")


def _finite(sizes: Sizes) -> Sizes:
    def checked(w: np.ndarray) -> np.ndarray:
        values = sizes(w)
        bad = np.flatnonzero(~np.isfinite(values))
        if len(bad):
            raise ValueError(f"h is {values[bad[0]]} at w = {w[bad[0]]}, which lies in W; it must be finite on W.")
        return values

    return checked


def _closed_form(h: Regulariser, domain: Domain) -> LeastSize | None:
    """Norms named in `NORMS` on a box, and l2 with its square on a ball."""
    name = next((key for key, norm in NORMS.items() if norm is h.value), None)
    origin = np.zeros(len(domain.lo))
    if name is None or not (isinstance(domain, Box) or (isinstance(domain, Ball) and name in ("l2", "squared_l2"))):
        return None
    point = domain.project(origin)
    value = float(h.value(jnp.asarray(point)))
    bound = value * (1 - 16 * len(origin) * EPSILON)
    if isinstance(domain, Ball):
        away = float(np.sqrt(np.sum(domain.centre**2)))
        least = max(0.0, away - domain.radius - 16 * EPSILON * (away + domain.radius))
        if least == 0.0 and bool(np.sum(domain.centre**2) <= domain.radius**2):
            point, value = origin, 0.0
        bound = min(value, (least if name == "l2" else least**2) * (1 - 16 * EPSILON))
    return LeastSize(point, value, bound, point[None], point[None])


def _by_cells(
    around: Around, sizes: Sizes, domain: Domain, box: tuple[np.ndarray, np.ndarray], start: np.ndarray, limit: int
) -> LeastSize:
    """Halve all sides of the cells of `box` that may hold a minimiser, until `limit` cells have been examined."""
    lo, hi = box[0][None], box[1][None]
    point, value, bound, examined = start, float(sizes(start[None])[0]), -np.inf, 0
    while True:
        centres = domain.project((lo + hi) / 2)
        values = sizes(centres)
        if values.min() < value:
            point, value = centres[values.argmin()], float(values.min())
        low = around(lo, hi).lo
        kept = np.flatnonzero((low <= value) & domain.meets(lo, hi))
        examined += len(lo)
        if len(kept) == 0:  # rounding of h at the point itself
            return LeastSize(point, value, value - CLOSE * (1 + abs(value)), lo, hi)
        lo, hi = lo[kept], hi[kept]
        bound = max(bound, float(low[kept].min()))
        width = (hi - lo).max(0)
        closed = value - bound <= 4 * EPSILON * abs(value) or np.all(width <= 8 * EPSILON * (1 + np.abs(point)))
        sides = np.flatnonzero(width > 0)
        if closed or examined + len(lo) * 2 ** len(sides) > limit:
            return LeastSize(point, value, min(bound, value), lo, hi)
        lo, hi = _children(lo, hi, sides)


def _children(lo: np.ndarray, hi: np.ndarray, sides: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cells halved across all the given sides."""
    middle, parts = (lo + hi) / 2, []
    for choice in itertools.product((False, True), repeat=len(sides)):
        upper = np.zeros(lo.shape[1], bool)
        upper[sides[list(choice)]] = True
        lower = np.zeros(lo.shape[1], bool)
        lower[sides[~np.array(choice, bool)]] = True
        parts.append((np.where(upper, middle, lo), np.where(lower, middle, hi)))
    return np.concatenate([a for a, _ in parts]), np.concatenate([b for _, b in parts])


class _Rows(NamedTuple):
    """Linear functions ⟨slopes_j, w⟩ + offsets_j: slopes [J, p], offsets [J]."""

    slopes: np.ndarray
    offsets: np.ndarray

    def at(self, w: np.ndarray) -> np.ndarray:
        """Values at points [C, p], [C, J]."""
        return w @ self.slopes.T + self.offsets

    def joined(self, other: "_Rows") -> "_Rows":
        """Both together."""
        return _Rows(*(np.concatenate(pair) for pair in zip(self, other, strict=True)))

    def distinct(self) -> "_Rows":
        """One of each group that agrees to fourteen digits."""
        table = np.column_stack([self.slopes, self.offsets])
        digits = np.round(table / np.maximum(np.abs(table).max(1, keepdims=True), 1e-300), 14)
        kept = np.sort(np.unique(digits, axis=0, return_index=True)[1])
        return _Rows(self.slopes[kept], self.offsets[kept])


def _planes(around: Around, gradient: Sizes, domain: Domain, points: np.ndarray) -> _Rows:
    """A plane below a convex h for each point [C, p], from the lower end of h there and a gradient.

    The gradient is the enclosed one where the enclosure is tight, otherwise that of automatic differentiation; what it
    may be off, and its rounding, is paid for on all of W. The points are drawn at random, so that none is at a kink.
    """
    found, slopes = around(points, points + 0.0), gradient(points)
    radius = (found.slope_hi - found.slope_lo) * (0.5 + 4 * EPSILON)
    tight = (radius <= 1e-6 * (1 + np.abs(slopes))).all(1, keepdims=True)
    slopes = np.where(tight, found.slope_lo / 2 + found.slope_hi / 2, slopes)
    steep = np.abs(slopes) + np.abs(slopes).max(1, initial=0.0, keepdims=True)
    radius = np.where(tight, radius, 32 * EPSILON * steep)
    reach = np.maximum(domain.hi - points, points - domain.lo)
    size = np.abs(found.centre_lo) + np.sum(np.abs(slopes * points), 1)
    offsets = found.centre_lo - np.sum(slopes * points, 1) - np.sum(radius * reach, 1)
    offsets = offsets - 4 * (points.shape[1] + 2) * EPSILON * size
    good = np.isfinite(offsets) & np.isfinite(slopes).all(1)
    return _Rows(slopes[good], offsets[good])


def _tangents(domain: Domain, points: np.ndarray) -> _Rows:
    """Linear functions that are not positive on W: the tangents of its balls towards points [C, p]."""
    parts, rows, first = getattr(domain, "parts", (domain,)), _Rows(np.zeros((0, points.shape[1])), np.zeros(0)), 0
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
            rows = rows.joined(_Rows(slopes, -along - part.radius - 16 * EPSILON * size))
        first = last
    return rows


def _certified(rows: _Rows, weights: np.ndarray, lo: np.ndarray, hi: np.ndarray) -> float:
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


class _Model(NamedTuple):
    """Planes below h, tangents of W, and the best point so far."""

    planes: _Rows
    tangents: _Rows
    point: np.ndarray
    value: float
    bound: float


def _by_planes(
    around: Around, sizes: Sizes, gradient: Sizes, domain: Domain, points: np.ndarray, values: np.ndarray
) -> LeastSize | None:
    """Kelley's method in a trust region around the best point; None if some point lies below a plane."""
    rng, half = np.random.default_rng(0), (domain.hi - domain.lo) / 2
    middle, count, reach = (domain.lo + domain.hi) / 2, 8 * (len(half) + 1), 1.0
    empty = _Rows(np.zeros((0, len(half))), np.zeros(0))
    known = _Model(empty, empty, points[np.argmin(values)], float(values.min()), -np.inf)
    seen, candidate, scale = points, known.point, float(np.abs(values).max())
    seen_values = values
    idle = 0
    for _ in range(ROUNDS):
        cloud = np.stack([known.point, candidate])[np.arange(count) % 2]
        near = reach * np.where(np.arange(count) < count / 2, 1.0, 1e-3)[:, None]
        cloud = domain.project(cloud + near * half * rng.uniform(-1, 1, cloud.shape))
        cloud = cloud + 0.1 * near * rng.uniform(0, 1, (count, 1)) * (middle - cloud)  # off the kinks on W's sides
        tried = np.concatenate([candidate[None], cloud])
        tried_values = sizes(tried)
        seen, seen_values = np.concatenate([seen, tried]), np.concatenate([seen_values, tried_values])
        planes = known.planes.joined(_planes(around, gradient, domain, cloud)).distinct()
        if len(planes.offsets) and np.any(planes.at(seen).max(1) > seen_values + CLOSE * (1 + scale)):
            return None
        best = int(tried_values.argmin())
        better = bool(tried_values[best] < known.value)
        if better:
            known = known._replace(point=tried[best], value=float(tried_values[best]))
        known = known._replace(planes=planes, tangents=known.tangents.joined(_tangents(domain, tried)))
        before = known
        known, step = _improved(known, domain, reach * half)
        idle = 0 if better or known.bound > before.bound else idle + 1
        if known.value - known.bound <= CLOSE / 10 * scale or idle > 5:
            break
        candidate = domain.project(known.point + step * reach * half)
        length = 2 * float(np.abs(step).max(initial=0.0))
        reach = min(1.0, max(1e-15, 0.9 * reach * np.clip(length, 0.25, 2.0 if better else 1.0)))
    return _covered(known, around, sizes, domain)


def _improved(known: _Model, domain: Domain, half: np.ndarray) -> tuple[_Model, np.ndarray]:
    """Solve the linear program on point ± half; the bound from its multipliers, and its solution in units of half."""
    size = len(half)
    planes, tangents = known.planes, known.tangents
    heights, limits = planes.at(known.point[None])[0] - known.value, tangents.at(known.point[None])[0]
    steep, across = np.sum(np.abs(planes.slopes) * half, 1), np.sum(np.abs(tangents.slopes) * half, 1)
    near = np.flatnonzero(heights + steep >= np.max(heights - steep, initial=-np.inf))
    near = near[np.argsort(-heights[near])[:300]]
    close = np.flatnonzero(limits + across >= 0)
    close = close[np.argsort(-limits[close])[:300]]
    unit = max(float(steep[near].max(initial=0.0)), 1e-300)
    rows = np.vstack(
        [
            np.column_stack([planes.slopes[near] * half / unit, -np.ones(len(near))]),
            np.column_stack([tangents.slopes[close] * half, np.zeros(len(close))])
            / np.maximum(across[close], 1e-300)[:, None],
        ]
    )
    right = np.concatenate([-heights[near] / unit, -limits[close] / np.maximum(across[close], 1e-300)])
    wide = np.maximum(half, 1e-300)
    ends = np.stack([np.maximum((domain.lo - known.point) / wide, -1), np.minimum((domain.hi - known.point) / wide, 1)])
    ends = np.column_stack([np.stack([np.minimum(ends[0], 0), np.maximum(ends[1], 0)]), [-np.inf, np.inf]])
    solved = _multipliers(np.append(np.zeros(size), 1.0), rows, right, ends) if len(near) else None
    if solved is None:
        return known, np.zeros(size)
    of_planes, of_sides = np.split(solved[size + 1 :], [len(near)])
    total = of_planes.sum()
    if not total > 0:
        return known, solved[:size]
    weights = np.concatenate([of_planes, of_sides * unit / np.maximum(across[close], 1e-300)]) / total
    chosen = _Rows(*(np.concatenate([a[near], b[close]]) for a, b in zip(planes, tangents, strict=True)))
    bound = _certified(chosen, weights, domain.lo, domain.hi)
    return known._replace(bound=min(max(known.bound, bound), known.value)), solved[:size]


def _covered(known: _Model, around: Around, sizes: Sizes, domain: Domain) -> LeastSize:
    """Cells around all points of W where no plane is above the best value."""
    lo, hi = domain.lo.copy(), domain.hi.copy()
    for _ in range(40):
        tangents = known.tangents.joined(_tangents(domain, lattice(Box(lo, hi), 27)))
        planes = _Rows(known.planes.slopes, known.planes.offsets - known.value)
        rows = planes.joined(tangents)
        before = hi - lo
        lo, hi = _shrunk(rows, known.point, lo, hi)
        if np.all(hi - lo > before / 2):
            break
    found = _by_cells(around, sizes, domain, (lo, hi), known.point, 2000)
    return found._replace(bound=min(max(known.bound, found.bound), found.value))


def _shrunk(rows: _Rows, point: np.ndarray, lo: np.ndarray, hi: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A smaller box around the points of [lo, hi] where no row is positive, one linear program for each side."""
    centre, half = (lo + hi) / 2, np.maximum((hi - lo) / 2, 1e-300)
    heights, steep = rows.at(centre[None])[0], np.sum(np.abs(rows.slopes) * half, 1)
    reached = rows.at(point[None])[0] / np.maximum(steep, 1e-300)
    near = np.flatnonzero((heights + steep > 0) & (steep > 0))
    near = near[np.argsort(-np.maximum(heights / np.maximum(steep, 1e-300), reached)[near])[:300]]
    scaled, right = rows.slopes[near] * half / steep[near, None], -heights[near] / steep[near]
    lo, hi = lo.copy(), hi.copy()
    ends = np.stack([-np.ones(len(half)), np.ones(len(half))])
    for side, sign in itertools.product(range(len(half)), (-1.0, 1.0)):
        cost = -sign * np.eye(len(half))[side]
        solved = _multipliers(cost, scaled, right, ends) if len(near) else None
        if solved is None:
            continue
        weights = solved[len(half) :] / steep[near]
        line = _Rows((cost / half)[None], np.array([-(cost / half) @ centre]))  # in units of the box's half-width
        chosen = line.joined(_Rows(rows.slopes[near], rows.offsets[near]))
        least = _certified(chosen, np.append(1.0, weights), centre - half, centre + half)
        end = min(1.0, -least) * half[side] * (1 + 4 * EPSILON)
        if sign > 0:
            hi[side] = max(min(hi[side], centre[side] + end), lo[side])
        else:
            lo[side] = min(max(lo[side], centre[side] - end), hi[side])
    return lo, hi
