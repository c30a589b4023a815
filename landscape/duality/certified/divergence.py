"""Theorem 1's Δ_i = sup over W of v(h(w)) − conv g(w), by convex envelopes, as an interval.

[Bertsekas82] puts the convex envelope of h in the place of h. The two agree where h is convex, as the theorem presumes;
where it is not, the paper's Δ may be smaller than the gap.
"""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from landscape.arrays import trees
from landscape.duality.branches import Branch, Domain, checked_domain, lattice, regulariser
from landscape.duality.certified.branch_and_bound import Kernels, make_kernels
from landscape.duality.certified.envelopes import LATTICE, ConvexEnvelope, Planes, convex_envelope, hull_planes
from landscape.duality.certified.frontiers import Frontier, Interval
from landscape.duality.certified.intervals import halves, reach
from landscape.duality.certified.refinement import Round, halving, refine
from landscape.networks import Network


class NotConvexWarning(UserWarning):
    """A regulariser is not convex, which Theorem 1 presumes."""


class Divergence(NamedTuple):
    """Δ_i of one branch.

    Attributes:
        paper: By the paper's definition, v(h(w)) − conv g(w).
        bertsekas: With the convex envelope of h, v((conv h)(w)) − conv g(w).
        at: Where the lower bound of `paper` is reached, [p].
        convex: Whether h is convex, as far as the lattice shows.
    """

    paper: Interval
    bertsekas: Interval
    at: np.ndarray
    convex: bool


def divergence(
    branch: Branch | Network,
    h: str | Callable[[jax.Array], jax.Array],
    domain: Domain | tuple[Any, Any],
    data: Any,
    tau: float,
    frontier: Frontier,
    *,
    tol: float = 1e-3,
    lipschitz: float | None = None,
    max_cells: int = 400_000,
) -> Divergence:
    """Δ_i of a branch with p ≤ 3 parameters whose frontier is known.

    Args:
        branch: f(w, x), as for `frontier`.
        h: The regulariser.
        domain: W.
        data: The data.
        tau: τ.
        frontier: The branch's frontier, traced or in closed form.
        tol: Wanted precision, in loss.
        lipschitz: As for `frontier`.
        max_cells: Cells examined in each search before the precision is given up; it bounds the time.

    Raises:
        ValueError: As for `frontier`.

    Warns:
        NotConvexWarning: h is not convex.
    """
    with trees.float64():
        kernels = make_kernels(branch, regulariser(h), checked_domain(domain), data, tau, lipschitz)
        return divergence_of(kernels, frontier, tol, max_cells)


def divergence_of(kernels: Kernels, frontier: Frontier, tol: float, max_cells: int = 400_000) -> Divergence:
    """`divergence` of a branch whose functions are compiled already; call inside `trees.float64()`."""
    points = lattice(kernels.domain, LATTICE[len(kernels.domain.lo)])
    losses, sizes = kernels.loss(points), kernels.size(points)
    rough = frontier(sizes) - hull_planes(points, losses)(points)
    below = convex_envelope(
        lambda lo, hi: kernels.bounds(lo, hi).g, kernels.domain, points, losses, tol / 8, rough, max_cells
    )
    paper, at = _supremum(kernels, frontier, below, None, points, tol, max_cells)
    if kernels.convex:
        return Divergence(paper, paper, at, True)
    size_hull = convex_envelope(
        lambda lo, hi: kernels.bounds(lo, hi).h, kernels.domain, points, sizes, tol / 8, rough, max_cells
    )
    convex = bool(np.max(sizes - size_hull.upper(points)) <= 1e-9 * (1 + np.abs(sizes).max()))
    if not convex:
        warnings.warn(
            "The regulariser is not convex on W: Theorem 1 does not apply and the paper's Δ may be too small; "
            "see `bertsekas`.",
            NotConvexWarning,
            stacklevel=3,
        )
    bertsekas, _ = _supremum(kernels, frontier, below, size_hull, points, tol, max_cells)
    return Divergence(paper, bertsekas, at, convex)


def _supremum(
    kernels: Kernels,
    frontier: Frontier,
    loss: ConvexEnvelope,
    size: ConvexEnvelope | None,
    points: np.ndarray,
    tol: float,
    max_cells: int,
) -> tuple[Interval, np.ndarray]:
    """sup of v(h) − conv g, or of v(conv h) − conv g where the envelope of h is given; and where it is reached."""

    def reached(w: np.ndarray) -> np.ndarray:
        budget = kernels.size(w) if size is None else size.upper(w)
        return _lower_values(frontier, budget) - loss.upper(w)

    values, domain = reached(points), kernels.domain
    best, at = float(values.max()), points[values.argmax()]
    rounding = 1e-14 * (1 + float(np.abs(loss.upper(points)).max()))

    def examine(lo: np.ndarray, hi: np.ndarray) -> Round:
        nonlocal best, at
        h, (centre, half) = kernels.bounds(lo, hi).h, halves(lo, hi)
        inside = centre[domain.contains(centre) & loss.spans(centre)]
        if len(inside) and (values := reached(inside)).max() > best:
            best, at = float(values.max()), inside[values.argmax()]
        high = _upper_values(frontier, loss.lower, size, h, centre, half)
        still = np.flatnonzero(~(high <= best + tol / 2) & domain.meets(lo, hi))
        return halving(lo, hi, still, h, domain, high[still])

    left = refine(domain.lo, domain.hi, max_cells, examine)
    highest = max(best + tol / 2, -np.inf if left is None else float(left.max(initial=-np.inf)))
    return Interval(max(0.0, best - rounding), max(0.0, highest + rounding)), at


def _lower_values(frontier: Frontier, budget: np.ndarray) -> np.ndarray:
    """Lower bounds of v at budgets known up to rounding, [C]; −inf if nothing is known."""
    found = np.interp(budget + 1e-14 * (1 + np.abs(budget)), frontier.budgets, frontier.lower)
    return np.where(np.isnan(found), -np.inf, found)


def _upper_values(
    frontier: Frontier, loss: Planes, size: ConvexEnvelope | None, h: Any, centre: np.ndarray, half: np.ndarray
) -> np.ndarray:
    """Upper bounds of v(h) − conv g on cells, [C]: linear bounds around the centre, or plain ones if better.

    h is at least b + ⟨s, w − centre⟩ for some slope s in a range, v falls, and its slope σ on the budgets that occur is
    known, so v(h(w)) − plane(w) exceeds its value at the centre by at most half · |σ s − a|.
    """
    plane = loss.active(centre)
    slope = loss.slopes[plane]
    value = np.sum(slope * centre, 1) + loss.offsets[plane]
    if size is None:
        base, least = h.centre_lo, h.lo
        lows, highs = (np.clip(slope, -1e100, 1e100) for slope in (h.slope_lo, h.slope_hi))
    else:
        which = size.lower.active(centre)
        lows = highs = size.lower.slopes[which]
        base = np.sum(lows * centre, 1) + size.lower.offsets[which]
        least = base - reach(np.abs(lows), half)
    far = reach(np.maximum(np.abs(lows), np.abs(highs)), half)
    sigma = _slope_range(frontier, base - far, base + far)
    corners = [np.abs(s[:, None] * e - slope) for s in sigma for e in (lows, highs)]
    upper = np.interp(base, frontier.budgets, frontier.upper)
    tilted = upper - value + reach(np.maximum.reduce(corners), half)
    plain = np.interp(least, frontier.budgets, frontier.upper) - value + reach(np.abs(slope), half)
    found = np.fmin(tilted, plain) + 1e-14 * (1 + np.abs(slope * centre).sum(1))
    return np.where(np.isnan(found), np.inf, found)


def _slope_range(frontier: Frontier, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The least and the largest slope of the upper model on the budgets [low, high]; 0 beyond its ends."""
    slopes = np.concatenate([[0.0], np.diff(frontier.upper) / frontier.step, [0.0, 0.0]])
    count = len(frontier.budgets)
    unknown = ~(np.isfinite(low) & np.isfinite(high))
    first = np.searchsorted(frontier.budgets, np.where(unknown, frontier.budgets[0], low))
    last = np.searchsorted(frontier.budgets, np.where(unknown, frontier.budgets[-1], high), side="right")
    ends = np.stack([np.minimum(first, count), np.minimum(last, count) + 1], 1).ravel()
    return np.minimum.reduceat(slopes, ends)[::2], np.maximum.reduceat(slopes, ends)[::2]
