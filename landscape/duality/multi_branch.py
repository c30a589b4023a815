"""Theorem 1 measured: primal, dual, Δ_worst and duality gap of multi-branch networks, as certified intervals.

Under Assumption 1 the τ-hinge loss is linear in f, so problem (2) separates over the branches: with the frontiers
v_i(r) = min{ E[1 − y f_i(w; x)/τ] : w ∈ W_i, h_i(w) ≤ r },

    inf P = min{ (1/I) Σ v_i(r_i) : Σ r_i ≤ I K },   sup D = the same with every v_i replaced by its envelope v_i**,

and 0 ≤ inf P − sup D ≤ Δ_worst/I, half of Theorem 1's bound 2 Δ_worst/I [Udell16].
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from landscape.duality.branches import Ball, Box, Product, Regulariser, chain, unit
from landscape.duality.certified.branch_frontier import frontier
from landscape.duality.certified.divergence import Divergence, divergence
from landscape.duality.certified.frontiers import EPSILON, Frontier, Interval, lower_hull, real_number
from landscape.duality.certified.min_plus import allocate
from landscape.duality.risks import Quadrature, circle, sphere

__all__ = [
    "Ball",
    "Box",
    "Divergence",
    "DualityGap",
    "Frontier",
    "Interval",
    "Product",
    "Quadrature",
    "Regulariser",
    "Share",
    "chain",
    "circle",
    "divergence",
    "duality_gap",
    "frontier",
    "sphere",
    "unit",
]


class Share(NamedTuple):
    """Branches that carry the same budget in a solution of problem (2).

    Attributes:
        kind: Which of the frontiers.
        budget: r, the branch's h(w).
        branches: How many branches carry it.
        on_envelope: Whether v(r) = v**(r) there (all branches but one, at most).
    """

    kind: int
    budget: float
    branches: int
    on_envelope: bool


class DualityGap(NamedTuple):
    """Theorem 1 for one network.

    Attributes:
        primal: inf P, problem (2).
        dual: sup D, problem (3).
        gap: inf P − sup D.
        delta_worst: Δ_worst; [G₁, inf] where only the frontiers are known (G₁ = max (v − v**) ≤ Δ always).
        ratio: I·gap/Δ_worst, at most 1 by the sharp bound; nan where Δ_worst is 0.
        paper_ratio: The gap over the paper's bound 2 Δ_worst/I; half of `ratio`.
        multiplier: λ*, the dual solution, in loss per unit of mean budget.
        shares: Which branches carry which budgets in a primal solution.
        num_branches: I.
        K: The bound on the mean budget.
    """

    primal: Interval
    dual: Interval
    gap: Interval
    delta_worst: Interval
    ratio: Interval
    paper_ratio: Interval
    multiplier: float
    shares: tuple[Share, ...]
    num_branches: int
    K: float

    def __repr__(self) -> str:
        return (
            f"DualityGap(I={self.num_branches}, K={self.K:.6g}, primal {self.primal}, dual {self.dual}, "
            f"gap {self.gap}, ratio {self.ratio})"
        )


class _Kind(NamedTuple):
    """A frontier on the common grid: first budget; models below v, above v at the budgets, above v between them."""

    first: float
    below: np.ndarray
    at: np.ndarray
    above: np.ndarray

    @property
    def parallel(self) -> bool:
        """Whether the three models differ by constants, so that one division of the budget is best for all."""
        return bool(np.ptp(self.at - self.below) < 1e-15 and np.array_equal(self.at, self.above))


def duality_gap(
    frontiers: Frontier | Sequence[Frontier],
    num_branches: int | Sequence[int],
    K: float,
    delta: Interval | float | None = None,
) -> DualityGap:
    """The duality gap of problems (2) and (3), Theorem 1, for branches with the given frontiers.

    The primal is exact for the piecewise linear model (repeated min-plus doubling, one branch between the grid
    budgets), the dual is read off the convex hulls; the frontiers' errors are carried into the intervals.

    Args:
        frontiers: One frontier shared by all branches, or one for each branch, or one for each kind.
        num_branches: I; with one frontier for each kind, the number of branches of each.
        K: Bound on (1/I) Σ h_i, in units of h. At the mean smallest h the dual may not be attained; its value is read
            off the hull all the same, and λ* is the steepest slope of the model.
        delta: Δ_worst where it is known; otherwise that of the frontiers.

    Raises:
        ValueError: No branch, numbers that do not match, or K below the mean of the smallest budgets (infeasible).

    >>> r = np.linspace(0, 1, 2001)
    >>> found = duality_gap(Frontier(r, 1 - r**2 / 2, (0, 4e-8)), 3, (5**0.5 - 1) / 2, delta=1 / 8)
    >>> found.gap.contains(0.020768632916351211), found.gap.width < 1e-6
    (True, True)
    """
    K = real_number("K", K)
    kinds, counts = _kinds(frontiers, num_branches)
    num = sum(counts)
    step, grids = _common_grid(kinds)
    exact = _budget(grids, counts, step, K)
    steps = float(round(exact)) if abs(exact - round(exact)) < 1e-9 else exact
    below, at, above = ([getattr(grid, model) for grid in grids] for model in ("below", "at", "above"))

    low, (high_dual, slope) = _optimum(below, below, counts, steps), _dual(at, counts, steps)
    high = low if all(g.parallel for g in grids) else _optimum(at, above, counts, steps)
    largest = max(float(np.abs(v).max()) for v in at) + slope * steps / num
    rounding = float(8 * EPSILON * largest * (2 + np.log2(num)) + 2 * abs(exact - steps) * slope / num)

    dual = Interval(low.dual - rounding, high_dual + rounding)
    primal = Interval(max(low.dual + low.excess - rounding, dual.lo), high_dual + high.excess + rounding)
    gap = _gap(primal, dual, max(kind.nonconvexity.hi for kind in kinds) / num + rounding)
    worst = _delta(kinds, delta)
    ratio = _ratio(gap, worst, num)
    return DualityGap(
        primal=primal,
        dual=dual,
        gap=gap,
        delta_worst=worst,
        ratio=ratio,
        paper_ratio=Interval(ratio.lo / 2, ratio.hi / 2),
        multiplier=slope / step,
        shares=_shares(high.shares, grids, step, steps - int(steps)),
        num_branches=num,
        K=float(K),
    )


def _kinds(
    frontiers: Frontier | Sequence[Frontier], num_branches: int | Sequence[int]
) -> tuple[list[Frontier], list[int]]:
    """Different frontiers and how many branches have each."""
    given: list[Frontier] = list(frontiers) if isinstance(frontiers, Sequence) else [frontiers]
    wrong = [type(f).__name__ for f in given if not isinstance(f, Frontier)]
    if wrong or not given:
        raise ValueError(
            f"duality_gap needs certified frontiers (Frontier); got {wrong[0] if wrong else 'none'}.\n"
            "  For estimates use estimates.estimate_gap, which keeps them apart."
        )
    if isinstance(num_branches, int | np.integer):
        if len(given) == 1:
            counts = [int(num_branches)]
        elif len(given) == num_branches:
            counts = [1] * len(given)
        else:
            raise ValueError(f"{len(given)} frontiers were given for {num_branches} branches; give one, or one each.")
    else:
        if not all(isinstance(n, int | np.integer) for n in np.ravel(np.asarray(num_branches, object))):
            raise ValueError(f"num_branches must be a whole number, or a list of them; got {num_branches!r}.")
        counts = [int(n) for n in num_branches]
    if len(counts) != len(given) or min(counts) < 1:
        raise ValueError(f"num_branches must be at least 1 for each of {len(given)} frontiers; got {num_branches}.")
    merged: dict[int, tuple[Frontier, int]] = {}
    for kind, count in zip(given, counts, strict=True):
        merged[id(kind)] = (kind, count + merged.get(id(kind), (kind, 0))[1])
    return [f for f, _ in merged.values()], [n for _, n in merged.values()]


def _common_grid(kinds: list[Frontier]) -> tuple[float, list[_Kind]]:
    """The smallest step, and the bounds of every frontier at budgets first + k·step."""
    step = min(kind.step for kind in kinds)
    return step, [_regrid(kind, step) for kind in kinds]


def _regrid(kind: Frontier, step: float) -> _Kind:
    """Bounds on another grid, widened by the error of linear interpolation between its points."""
    first, last = kind.budgets[[0, -1]]
    if abs(kind.step / step - 1) < 1e-9:
        return _Kind(float(first), kind.lower, kind.upper_at_budgets, kind.upper)
    count = int(np.ceil((last - first) / step * (1 - 1e-12)))
    grid = first + step * np.arange(count + 1)
    below, above = (np.interp(grid, kind.budgets, v) for v in (kind.lower, kind.upper))
    high = np.max(np.interp(kind.budgets, grid, below) - kind.lower)
    low = np.max(kind.upper - np.interp(kind.budgets, grid, above))
    return _Kind(float(first), below - max(high, 0.0), above, above + max(low, 0.0))


def _budget(grids: list[_Kind], counts: list[int], step: float, K: float) -> float:
    """Number of grid steps to divide above the smallest budgets, at most the branches' capacity."""
    num, least = sum(counts), float(np.dot(counts, [g.first for g in grids]))
    if not np.isfinite(K) and not K > 0:
        raise ValueError(f"K must be a number, the bound on the mean of the branches' h; got {K}.")
    excess = num * K - least
    if excess < -1e-12 * max(1.0, abs(least), num * abs(K)):
        raise ValueError(
            f"K = {K:.10g} is infeasible: the mean of the branches' h is certainly at least {least / num:.10g} on W.\n"
            "  Choose K at least that large."
        )
    capacity = float(np.dot(counts, [len(g.at) - 1 for g in grids]))
    return min(max(excess / step, 0.0), capacity)


def _dual(values: list[np.ndarray], counts: list[int], steps: float) -> tuple[float, float]:
    """sup D of a piecewise linear model, and λ* per grid step: hull segments of all branches, steepest first."""
    slopes, lengths = [], []
    for v, count in zip(values, counts, strict=True):
        kept = lower_hull(np.arange(len(v), dtype=float), v)
        slopes.append(np.diff(v[kept]) / np.diff(kept))
        lengths.append(np.diff(kept) * count)
    slope, length = np.minimum(np.concatenate(slopes), 0.0), np.concatenate(lengths)
    order = np.argsort(slope, kind="stable")
    slope, end = slope[order], np.cumsum(length[order])
    used = np.clip(steps - (end - length[order]), 0, length[order])
    marginal = min(int(np.searchsorted(end, steps - 1e-9)), len(slope) - 1)
    start = np.dot(counts, [v[0] for v in values])
    at_margin = 0.0 if steps > end[-1] - 1e-9 else abs(float(slope[marginal]))
    return float((start + np.dot(used, slope)) / sum(counts)), at_margin


class _Optimum(NamedTuple):
    """sup D and inf P − sup D of a piecewise linear model; the primal solution as {(kind, step, shifted): branches}."""

    dual: float
    excess: float
    shares: dict[tuple[int, int, bool], int]


def _optimum(at: list[np.ndarray], between: list[np.ndarray], counts: list[int], steps: float) -> _Optimum:
    """Optima of the model with values `at` at the grid budgets and `between` for a branch between two of them.

    inf P − sup D is the least Σ_i (v_i(r_i) − l_i(r_i)) / I. The lines l_i of slope −λ* support v_i from below, so that
    every term is at least 0 and no digits cancel.
    """
    total, fraction = int(steps), steps - int(steps)
    dual, slope = _dual(at, counts, steps)
    plain, shifted = [], []
    for v, w in zip(at, between, strict=True):
        tilt = slope * np.arange(len(v))
        lowest = (v + tilt).min()
        plain.append(np.maximum(v + tilt - lowest, 0.0))
        c = w + tilt - lowest
        shifted.append((1 - fraction) * c[:-1] + fraction * c[1:])
    found = allocate(plain, shifted, counts, total, fraction)
    return _Optimum(dual, found.cost / sum(counts), found.shares)


def _gap(primal: Interval, dual: Interval, most: float) -> Interval:
    """inf P − sup D, between 0 and `most` in any case; [0, ∞] where a bound is not finite."""
    if not np.isfinite([*primal, *dual, most]).all():
        return Interval.not_negative(0.0, np.inf)
    return Interval.not_negative(primal.lo - dual.hi, min(primal.hi - dual.lo, most))


def _shares(
    shares: dict[tuple[int, int, bool], int], grids: list[_Kind], step: float, fraction: float
) -> tuple[Share, ...]:
    """The allocation in units of h."""
    hulls = [set(lower_hull(np.arange(len(g.at), dtype=float), g.at).tolist()) for g in grids]
    return tuple(
        Share(
            kind,
            float(grids[kind].first + step * (index + (fraction if shifted else 0.0))),
            count,
            not shifted and index in hulls[kind],
        )
        for (kind, index, shifted), count in sorted(shares.items())
    )


def _delta(kinds: list[Frontier], delta: Interval | float | None) -> Interval:
    """Δ_worst: as given, or the largest of the frontiers', or [G₁, inf]."""
    if delta is not None:
        found = delta if isinstance(delta, Interval) else Interval(*[real_number("delta", delta)] * 2)
        if not found.lo >= 0 or not found.hi >= found.lo:
            raise ValueError(f"Δ_worst cannot be negative; got {delta}.")
        return found
    known = [k.delta if k.delta is not None else Interval(k.nonconvexity.lo, np.inf) for k in kinds]
    return Interval(max(k.lo for k in known), max(k.hi for k in known))


def _ratio(gap: Interval, delta: Interval, num: int) -> Interval:
    """I·gap/Δ, nan where Δ is 0."""
    if delta.hi == 0:
        return Interval(np.nan, np.nan)
    high = num * gap.hi / delta.lo if delta.lo > 0 else (np.inf if gap.hi > 0 else 0.0)
    return Interval(num * gap.lo / delta.hi, float(high))
