"""Interval branch and bound over a branch's parameters, for all budgets at once.

A cell of W meets a shell r_k ≤ h ≤ r_(k+1) if its bounds of h do. The pair (cell, shell) is closed once a lower bound
of g + λ_k h on the cell, with λ_k fixed, is within `tol` of the best value found in the shell.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from landscape.arrays.chunked import chunked_map
from landscape.duality.branches import NORMS, Ball, Branch, Domain, Regulariser, as_function, bisected
from landscape.duality.certified.intervals import Enclosure, enclose, halves, reach
from landscape.duality.certified.refinement import Corners, Round, chosen, halved_across, refine, relative, slivers
from landscape.duality.risks import enclosed_loss, margin_loss, quadrature_error, sample
from landscape.networks import Network

INWARD = 1e-14
"""Feasible points keep this relative distance from their budget, to cover the rounding of h."""

SMALLEST = 2.0**-30
"""The search stops if a cell is smaller than this share of W."""


class Cells(NamedTuple):
    """Enclosures of g and h on cells, numpy, [C] or [C, p]."""

    lo: np.ndarray
    hi: np.ndarray
    g: Enclosure
    h: Enclosure


@dataclass(frozen=True, eq=False)
class Kernels:
    """Compiled functions of a branch over batches of points or cells [C, p]."""

    domain: Domain
    convex: bool
    largest: float | None
    loss: Callable[[np.ndarray], np.ndarray]
    size: Callable[[np.ndarray], np.ndarray]
    bounds: Callable[[np.ndarray, np.ndarray], Cells]
    rescale: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def make_kernels(
    branch: Branch | Network, h: Regulariser, domain: Domain, data: Any, tau: float, lipschitz: float | None = None
) -> Kernels:
    """Trace and compile the functions of a branch; call inside `trees.float64()`.

    Raises:
        ValueError: More than three parameters.
    """
    size = len(domain.lo)
    if size > 3:
        raise ValueError(
            f"Certified frontiers are for branches with at most 3 parameters; this one has {size}.\n"
            "  Use estimates.estimate_frontier, whose values are labelled as estimates."
        )
    found = sample(data)
    f = as_function(branch, size, jnp.asarray(found.x[0]))
    loss, error = margin_loss(f, found, tau), quadrature_error(f, found, tau)
    bound_g = enclosed_loss(f, found, tau, lipschitz)
    chunk = int(np.clip(2**20 // (8 * len(found.y)), 16, 4096))

    bound_h = enclosed_regulariser(h)

    points = jax.jit(jax.vmap(lambda w: loss(w) + error(w, w + 0.0)))
    cells = jax.jit(jax.vmap(lambda lo, hi: (bound_g(lo, hi), bound_h(lo, hi))))
    return Kernels(
        domain,
        h.convex,
        _largest_on_ball(h.value, domain) if isinstance(domain, Ball) else None,
        _checked(partial(chunked_map, points, chunk, pad=True)),
        partial(chunked_map, jax.jit(jax.vmap(h.value)), 4096, pad=True),
        lambda lo, hi: Cells(lo, hi, *chunked_map(cells, chunk, lo, hi, pad=True)),
        partial(chunked_map, jax.jit(jax.vmap(partial(rescale, h.value))), 4096, pad=True),
    )


def enclosed_regulariser(h: Regulariser) -> Callable[[jax.Array, jax.Array], Enclosure]:
    """A function of a box (lo, hi) that encloses h; the slopes of a convex h are one subgradient at the centre."""

    def around(lo: jax.Array, hi: jax.Array) -> Enclosure:
        found = enclose(h.value, lo, hi)
        if not h.convex:
            return found
        slope = jax.grad(h.value)((lo + hi) / 2)
        known = jnp.isfinite(slope).all()  # at a kink it may be nan: any slope on the box then
        ends = (jnp.where(known, slope, end) for end in (found.slope_lo, found.slope_hi))
        return Enclosure(*found[:4], *ends)

    return around


def _largest_on_ball(h: Callable[[jax.Array], jax.Array], ball: Ball) -> float | None:
    """The largest h on a ball for the two norms that follow its shape."""
    if h not in (NORMS["l2"], NORMS["squared_l2"]):
        return None
    reach = float(np.sqrt(np.sum(ball.centre**2)) + ball.radius)
    return reach if h is NORMS["l2"] else reach**2


def rescale(h: Callable[[jax.Array], jax.Array], start: jax.Array, w: jax.Array, target: jax.Array) -> jax.Array:
    """start + t (w − start) with the largest t ∈ [0, 4] found by bisection for which h ≤ target."""
    return start + bisected(lambda t: h(start + t * (w - start)) <= target, 4.0, 60) * (w - start)


def _checked(f: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    def loss(w: np.ndarray) -> np.ndarray:
        values = f(w)
        bad = np.flatnonzero(~np.isfinite(values))
        if len(bad):
            raise ValueError(
                f"The branch's expected loss is {values[bad[0]]} at w = {w[bad[0]]}, which lies in W.\n"
                "  A branch must be finite and continuous on all of W."
            )
        return values

    return loss


class Best(NamedTuple):
    """The smallest loss found for each budget, [N+1], and its point, [N+1, p]."""

    values: np.ndarray
    points: np.ndarray

    def improved(self, budget: np.ndarray, values: np.ndarray, points: np.ndarray) -> "Best":
        """The record improved by candidates: budget index [C], value [C] (inf if infeasible), point [C, p]."""
        order = np.lexsort((values, budget))
        first = order[np.unique(budget[order], return_index=True)[1]]
        first = first[values[first] < self.values[budget[first]]]
        new = Best(self.values.copy(), self.points.copy())
        new.values[budget[first]], new.points[budget[first]] = values[first], points[first]
        return new


def rescaled(kernels: Kernels, start: np.ndarray, points: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Points moved along the ray from `start` (where h is least) to the largest h ≤ target, [C, p]; nan outside W."""
    moved = kernels.rescale(np.broadcast_to(start, points.shape), points, targets * (1 - INWARD))
    allowed = kernels.domain.contains(moved) & (kernels.size(moved) <= targets)
    return np.where(allowed[:, None], moved, np.nan)


def candidates(
    kernels: Kernels, grid: np.ndarray, start: np.ndarray, points: np.ndarray, budget: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(budget index, loss, point) of the points moved to their budgets; those that leave W are dropped."""
    moved = rescaled(kernels, start, points, grid[budget])
    kept = np.flatnonzero(~np.isnan(moved[:, 0]))
    if len(kept) == 0:
        return budget[:0], np.zeros(0), points[:0]
    return budget[kept], kernels.loss(moved[kept]), moved[kept]


def _check_continuous(cells: Cells, outer: Cells) -> None:
    """Refuse functions that jump: values at the centres of halves must lie within the bounds of the whole cell."""
    for inner, whole, name in ((cells.g, outer.g, "branch"), (cells.h, outer.h, "regulariser")):
        low, high = (np.tile(end, 2) for end in (whole.lo, whole.hi))
        bad = np.flatnonzero((inner.centre_hi < low) | (inner.centre_lo > high))
        if len(bad):
            raise ValueError(
                f"The {name} is not continuous near w = {(cells.lo[bad[0]] + cells.hi[bad[0]]) / 2}.\n"
                "  Theorem 1 and the bounds need continuous functions; check its comparisons and its `where`."
            )


def _scaled(lam: np.ndarray, values: np.ndarray) -> np.ndarray:
    """λ times ends that may be infinite; 0 if λ = 0."""
    return lam * np.where(lam == 0, 0.0, values)


@dataclass(eq=False)
class Search:
    """State of one branch and bound.

    Attributes:
        kernels: The branch.
        grid: Budgets, [N+1].
        slopes: λ_k of each shell, [N].
        start: Where h is least, [p].
        best: Feasible points for each budget.
        targets: The smallest g + λ_k h found in each shell, [N].
    """

    kernels: Kernels
    grid: np.ndarray
    slopes: np.ndarray
    start: np.ndarray
    best: Best
    targets: np.ndarray

    def run(self, tol: float, max_cells: int) -> np.ndarray:
        """C_k, certified: at most g + λ_k h on every shell, [N].

        A pair (cell, shell) is closed only if its bound is known to be high enough: nan keeps it open.
        """
        lowest, outer = np.full(len(self.slopes), np.inf), None

        def examine(lo: np.ndarray, hi: np.ndarray) -> Round:
            nonlocal outer
            cells = self.kernels.bounds(lo, hi)
            if outer is not None:
                _check_continuous(cells, outer)
            cell, shell, low = self._pairs(cells)
            still = np.unique(cell[~(low >= self.targets[shell] - tol)])
            self._improve((lo[still] + hi[still]) / 2, cells.g.centre_hi[still])
            open_pairs = ~(low >= self.targets[shell] - tol)
            outer = whole = chosen(cells, np.unique(cell[open_pairs]))
            longest = relative(whole.hi - whole.lo, self.kernels.domain).max(1)
            stop = longest.min(initial=np.inf) < SMALLEST
            return Round(2 * len(longest), lambda: self._cut(whole), (shell[open_pairs], low[open_pairs]), stop)

        left = refine(self.kernels.domain.lo, self.kernels.domain.hi, max_cells, examine)
        if left is not None:
            np.minimum.at(lowest, *left)
        return np.minimum(self.targets - tol, lowest)

    def _pairs(self, cells: Cells) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(cell, shell, lower bound of g + λ h) for every shell that a cell may touch."""
        first = np.maximum(np.searchsorted(self.grid, cells.h.lo) - 1, 0)
        last = np.minimum(np.searchsorted(self.grid, cells.h.hi, side="right") - 1, len(self.slopes) - 1)
        first = np.where(self.kernels.domain.meets(cells.lo, cells.hi), first, last + 1)
        counts = np.maximum(last - first + 1, 0)
        cell = np.repeat(np.arange(len(counts)), counts)
        shell = np.arange(len(cell)) - np.repeat(np.cumsum(counts) - counts, counts) + first[cell]
        return cell, shell, self._lower(cells, cell, self.slopes[shell])

    def _lower(self, cells: Cells, cell: np.ndarray, lam: np.ndarray) -> np.ndarray:
        """Lower bounds of g + λ h on cells, for pairs (cell, λ); −inf if nothing is known."""
        half = halves(cells.lo, cells.hi)[1][cell]
        sizes = [_scaled(lam, h[cell]) for h in (cells.h.lo, cells.h.centre_lo)]
        tilt = [g[cell] + _scaled(lam[:, None], h[cell]) for g, h in zip(cells.g[4:], cells.h[4:], strict=True)]
        moved = reach(np.maximum(np.abs(tilt[0]), np.abs(tilt[1])) * (1 + 1e-14), half)
        losses = cells.g.lo[cell], cells.g.centre_lo[cell] - moved
        found = [
            loss + size - 1e-15 * (1 + lam + np.abs(loss) + np.abs(size))
            for loss, size in zip(losses, sizes, strict=True)
        ]
        low = np.fmax(*found)
        return np.where(np.isnan(low), -np.inf, low)

    def _improve(self, centres: np.ndarray, values: np.ndarray) -> None:
        """Use the cells' centres, and their images on the two nearest budgets, as feasible points.

        A centre itself serves the next budget: on a narrow peak its images may have lost the peak.
        """
        inside = self.kernels.domain.contains(centres)
        centres, values = centres[inside], values[inside]
        if len(centres) == 0:
            return
        size, top = self.kernels.size(centres), len(self.grid) - 1
        below = np.clip(np.searchsorted(self.grid, size, side="right") - 1, 0, top)
        shell = np.minimum(below, top - 1)
        np.minimum.at(self.targets, shell, values + self.slopes[shell] * size)
        above = np.searchsorted(self.grid, size * (1 + INWARD))
        self.take(above[above <= top], values[above <= top], centres[above <= top])
        budget = np.concatenate([below, np.minimum(below + 1, top)])
        self.take(*candidates(self.kernels, self.grid, self.start, np.tile(centres, (2, 1)), budget))

    def take(self, budget: np.ndarray, values: np.ndarray, points: np.ndarray) -> None:
        """Use feasible points on budgets."""
        if len(budget) == 0:
            return
        self.best = self.best.improved(budget, values, points)
        top = len(self.slopes) - 1
        for shell in (np.minimum(budget, top), np.maximum(budget - 1, 0)):
            np.minimum.at(self.targets, shell, values + self.slopes[shell] * self.grid[budget])

    def _cut(self, cells: Cells) -> Corners:
        """Halve each cell across the side that matters most to its bounds, never letting it become a sliver."""
        half = (cells.hi - cells.lo) / 2
        shape = relative(half, self.kernels.domain)
        lam = max(self.slopes.max(initial=0.0), 1e-300)  # not 0: slopes of h may be infinite
        steep = sum(np.maximum(np.abs(e.slope_lo), np.abs(e.slope_hi)) * s for e, s in ((cells.g, 1.0), (cells.h, lam)))
        known = np.isfinite(steep)
        score = np.where(known, half * np.where(known, steep, 0.0), shape) + 1e-9 * shape
        return halved_across(cells.lo, cells.hi, np.where(slivers(shape, 16), -1.0, score))
