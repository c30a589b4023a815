"""The frontier of a small branch, certified: interval branch and bound over W for all budgets at once.

Between the budgets r_k and r_(k+1), v is bounded from below by a line of slope −λ_k, the secant of the best values
found: with C_k ≤ g(w) + λ_k h(w) for every w ∈ W with r_k ≤ h(w) ≤ r_(k+1),

    v(r) ≥ min( v(r_k), C_k − λ_k r ),

so that a cell of size s costs an error of order s², not s. From above, v at the budgets is the loss of feasible points,
and between them that of the segment joining two of them, which is feasible because h is convex.

The first budget is a certified lower bound of min h over W, so that every K below it is infeasible. For budgets between
it and the smallest h, which differ by rounding where h is convex, v is taken to be v(min h).
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from landscape.arrays import trees
from landscape.duality.branches import Branch, Domain, checked_domain, lattice, regulariser
from landscape.duality.certified.branch_and_bound import Best, Kernels, Search, candidates, make_kernels, rescaled
from landscape.duality.certified.divergence import divergence_of
from landscape.duality.certified.frontiers import EPSILON, Frontier
from landscape.duality.certified.least_size import LeastSize, least_size
from landscape.networks import Network


def frontier(
    branch: Branch | Network,
    h: str | Callable[[jax.Array], jax.Array],
    domain: Domain | tuple[Any, Any],
    data: Any,
    tau: float,
    *,
    budgets: int = 200,
    tol: float = 2e-5,
    lipschitz: float | None = None,
    max_cells: int = 2_000_000,
    delta: bool = True,
    name: str = "",
) -> Frontier:
    """The certified frontier v(r) = min{ E[1 − y f(w; x)/τ] : w ∈ W, h(w) ≤ r } of a branch with p ≤ 3 parameters.

    Args:
        branch: f(w, x) of flat parameters w [p] and one example, anything JAX traces; or a `Network`.
        h: squared_l2, l2, l1, linf, or a convex function of w.
        domain: W, a `Box`, a `Ball` or a pair (lo, hi).
        data: A `Dataset`, a `Quadrature`, or (x, y); labels ±1.
        tau: τ.
        budgets: Steps N of the budget's grid from min h to max h on W.
        tol: Wanted difference of the bounds, in loss.
        lipschitz: A Lipschitz constant of g, trusted, where an operation of the branch has no interval rule.
        max_cells: Cells examined before giving up on `tol`; the bounds stay certified, only wider.
        delta: Whether to find Theorem 1's Δ_i too, to about 50·tol.
        name: For tables and legends.

    Raises:
        ValueError: W not compact or p > 3, data not finite, values of the branch that are not finite, or an operation
            without an interval rule (`NoRule`).

    Warns:
        NotConvexWarning: Δ_i was wanted, and h is not convex.
    """
    if budgets != int(budgets) or budgets < 1 or not 0 < tol < np.inf or max_cells < 1:
        raise ValueError(
            "budgets, tol and max_cells must be positive, budgets whole and tol finite; "
            f"got {budgets}, {tol}, {max_cells}."
        )
    with trees.float64():
        size, checked = regulariser(h), checked_domain(domain)
        kernels = make_kernels(branch, size, checked, data, tau, lipschitz)
        least = least_size(size, checked)
        start, grid = least.point, _budget_grid(kernels, least, budgets)
        best = feasible_points(kernels, grid, start)
        at_best = kernels.bounds(best.points, best.points + 0.0).g
        wanted = tol + 2 * float(np.max(at_best.centre_hi - at_best.centre_lo))
        slopes = np.maximum(-np.diff(best.values) / np.diff(grid), 0.0)
        search = _search(kernels, grid, slopes, start, best)
        lines = [search.run(wanted, max_cells)]
        if np.any(search.targets < best.values[:-1] + slopes * grid[:-1] - tol / 2):
            after = _search(kernels, grid, np.append(slopes[1:], 0.0), start, search.best)
            lines.append(after.run(wanted, max_cells))
            search.best = after.best
        found = _certified(search, lines, least, name)
        return replace(found, delta=divergence_of(kernels, found, 50 * tol).paper) if delta else found


def _search(kernels: Kernels, grid: np.ndarray, slopes: np.ndarray, start: np.ndarray, best: Best) -> Search:
    """A search with the given slopes; its targets come from the known points."""
    ends = best.values[:-1] + slopes * grid[:-1], best.values[1:] + slopes * grid[1:]
    return Search(kernels, grid, slopes, start, best, np.minimum(*ends))


def _certified(search: Search, lines: list[np.ndarray], least: LeastSize, name: str) -> Frontier:
    """The band from C_k and the feasible points.

    Args:
        search: The search with the secants' slopes, and the best points.
        lines: C_k for those slopes; where v bends upwards within a shell also C_k for the next shell's slope, which is
            the tighter one for v(r_(k+1)) itself.
        least: The smallest h.
        name: Of the frontier.
    """
    points, values = _not_increasing(search)
    lower = _lower_values(search, lines)
    rises, at_budgets = _between(search, points, values), np.zeros(len(values))
    if least.value > least.bound:
        at_budgets, rises = _from_smallest(search, least, values, rises, float(lower.min()))
    above = np.maximum(np.maximum(np.append(rises, 0.0), np.append(0.0, rises)), at_budgets)
    below = np.maximum(values - lower, 0.0)
    return Frontier(search.grid, values, (below, above), at_budgets=at_budgets, minimisers=points, name=name)


def _not_increasing(search: Search) -> tuple[np.ndarray, np.ndarray]:
    """The best points, [N+1, p], and upper bounds of g there, [N+1]; a point serves all larger budgets too."""
    points = search.best.points
    values = search.kernels.bounds(points, points + 0.0).g.centre_hi
    best = np.maximum.accumulate(np.where(values <= np.minimum.accumulate(values), np.arange(len(values)), 0))
    return points[best], values[best]


def _lower_values(search: Search, lines: list[np.ndarray]) -> np.ndarray:
    """Values at the budgets of a piecewise linear function below v, [N+1], from the lines C_k − λ_k r.

    On shell k, v(r) ≥ min( v(r_k), C_k − λ_k r ). A chord lies below this if its left end is at most v(r_k) and the
    line at r_k, and its right end at most v(r_k) and the line at r_(k+1).
    """
    grid, slopes = search.grid, search.slopes
    left, right = lines[0] - slopes * grid[:-1], lines[0] - slopes * grid[1:]
    at_end = right if len(lines) == 1 else np.maximum(right, lines[1] - np.append(slopes[1:], 0.0) * grid[1:])
    at_budgets = np.minimum.accumulate(np.append(left[0], at_end))
    lower = np.minimum(at_budgets, np.append(np.inf, np.minimum(at_budgets[:-1], right)))
    lower[:-1] = np.minimum(lower[:-1], left)
    return lower


def _from_smallest(
    search: Search, least: LeastSize, values: np.ndarray, rises: np.ndarray, lowest: float
) -> tuple[np.ndarray, np.ndarray]:
    """Upper bounds where the least h found is U and m = min h is only known to lie in [L, U]: at budgets, between.

    A minimiser of h is feasible for every budget r ≥ m, so v(r) ≤ p, the largest g on cells that hold one. Lifted to
    p + 2 (p − min v)(U − L)/δ at all budgets below U + δ/2, the model's hull stays above that of (U, p) and the budgets
    beyond. Between the first two budgets v was bounded along a path that starts at U instead of L.

    Args:
        search: The search.
        least: U, L and the cells.
        values: g at the points found, [N+1].
        rises: How far v may lie above the chord of two neighbouring budgets, [N].
        lowest: A lower bound of v.
    """
    grid, step = search.grid, search.grid[1] - search.grid[0]
    doubt = least.value - least.bound + 8 * EPSILON * abs(least.value)
    peak = max(_largest_loss(search.kernels, least), values[0])
    lifted = peak + 2 * (peak - lowest) * doubt / step
    count = int(np.searchsorted(grid, least.bound + doubt + step / 2))
    at, rises = np.zeros(len(grid)), rises.copy()
    at[:count] = lifted - values[:count]
    if count == 1:
        rises[0] += (values[0] - values[1]) * doubt / step
    else:
        rises[:count] = peak - values[1 : count + 1][: len(rises[:count])]
    return at, rises


def _largest_loss(kernels: Kernels, least: LeastSize) -> float:
    """An upper bound of g on cells that hold a minimiser of h."""
    for lo, hi in ((least.lo, least.hi), (kernels.domain.lo[None], kernels.domain.hi[None])):
        largest = float(np.max(kernels.bounds(lo, hi).g.hi))
        if np.isfinite(largest):
            return largest
    raise ValueError(
        "The branch's expected loss is not bounded where h is smallest, as far as interval arithmetic can tell.\n"
        "  Change W, or name the regulariser (squared_l2, l2, l1, linf), whose minimiser is known exactly."
    )


PIECES = 8
"""Number of pieces of the path between two neighbouring minimisers."""


def _between(search: Search, points: np.ndarray, values: np.ndarray) -> np.ndarray:
    """How far v can lie above the chord between neighbouring budgets, [N].

    The two points are joined by pieces, each bent out to the budget it may use. With slopes of g along a piece in
    [s, t], g is at most (t − s)/4 above the piece's chord, and where h is convex all points of the piece are feasible.
    The smaller budget's value bounds v in any case.
    """
    kernels, drop = search.kernels, values[:-1] - values[1:]
    if not kernels.convex:
        return drop
    nodes, at_nodes = _joined(search, points, values)
    lo, hi = (f(nodes[:-1], nodes[1:]).reshape(-1, points.shape[1]) for f in (np.minimum, np.maximum))
    cells = kernels.bounds(lo, hi)
    along = np.diff(nodes, axis=0).reshape(lo.shape)
    ends = [slope * along for slope in (cells.g.slope_lo, cells.g.slope_hi)]
    spread = np.sum(np.maximum(*ends) - np.minimum(*ends), 1)
    bend = (spread / 4 + 2 * (cells.g.centre_hi - cells.g.centre_lo)).reshape(PIECES, -1)
    over = at_nodes - (values[:-1] - np.linspace(0, 1, PIECES + 1)[:, None] * drop)
    return np.fmin(drop, np.max(np.maximum(over[:-1], over[1:]) + bend, 0) + 1e-15)


def _joined(search: Search, points: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Feasible points from each minimiser to the next, [PIECES+1, N, p], and their losses, [PIECES+1, N]."""
    share = np.linspace(0, 1, PIECES + 1)[:, None]
    nodes = points[:-1] + share[..., None] * (points[1:] - points[:-1])
    inner = nodes[1:-1].reshape(-1, points.shape[1])
    targets = (search.grid[:-1] + share * np.diff(search.grid))[1:-1].reshape(-1)
    bent = rescaled(search.kernels, search.start, inner, targets)
    inner = np.where(np.isnan(bent), inner, bent)
    nodes[1:-1] = inner.reshape(nodes[1:-1].shape)
    losses = search.kernels.loss(inner).reshape(PIECES - 1, -1)
    return nodes, np.concatenate([values[None, :-1], losses, values[None, 1:]])


def _budget_grid(kernels: Kernels, least: LeastSize, steps: int) -> np.ndarray:
    """Uniform budgets from a lower bound of the smallest h on W to an upper bound of the largest."""
    low = least.bound
    high = kernels.largest
    if high is None:
        high = float(kernels.bounds(kernels.domain.lo[None], kernels.domain.hi[None]).h.hi[0])
    inside = float(kernels.size(lattice(kernels.domain, 4096)).max())
    if not np.isfinite(high):
        raise ValueError("h is not bounded on W, as far as interval arithmetic can tell; change W or h.")
    high = max(high, inside, least.value)
    if high - low < 1e-9 * max(1.0, abs(low)):
        high = low + 1e-9 * max(1.0, abs(low))
    return np.linspace(low, high, steps + 1)


def feasible_points(kernels: Kernels, grid: np.ndarray, start: np.ndarray, points: int = 4096) -> Best:
    """Good points for every budget: a lattice moved onto the budgets, then a shrinking search around the best."""
    domain, top = kernels.domain, len(grid) - 1
    size = len(domain.lo)
    first = Best(np.full(top + 1, np.inf), np.tile(start, (top + 1, 1)))
    best = first.improved(np.arange(top + 1), np.full(top + 1, kernels.loss(start[None])[0]), first.points)
    around = lattice(domain, points)
    below = np.clip(np.searchsorted(grid, kernels.size(around), side="right") - 1, 0, top)
    for budget in (below, np.minimum(below + 1, top)):
        best = best.improved(*candidates(kernels, grid, start, around, budget))
    offsets = np.stack(np.meshgrid(*[[-1.0, 0.0, 1.0]] * size, indexing="ij"), -1).reshape(-1, size)
    reach = (domain.hi - domain.lo) / 8
    for _ in range(16):
        shifted = [best.points, np.roll(best.points, 1, 0), np.roll(best.points, -1, 0)]
        near = np.concatenate(shifted + [best.points + offset * reach for offset in offsets if offset.any()])
        budget = np.tile(np.arange(top + 1), len(near) // (top + 1))
        best = best.improved(*candidates(kernels, grid, start, domain.project(near), budget))
        reach = reach / 2
    return best
