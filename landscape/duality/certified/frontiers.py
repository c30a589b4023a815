"""A branch's frontier v(r) = min{ g(w) : w ∈ W, h(w) ≤ r } as a certified band, and its convex envelope v**.

Symbols of Theorem 1:
    g(w) = E[1 − y f(w; x)/τ]   a branch's expected loss        h(w)  its regulariser, budget r
    v, v**                      frontier and its envelope       λ     multiplier of (1/I) Σ h_i ≤ K
    P, D                        problems (2) and (3)            Δ     Theorem 1's divergence of a branch
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

EPSILON = float(np.finfo(np.float64).eps)


class Interval(NamedTuple):
    """A number known to lie in [lo, hi]; `float()` of it is the midpoint."""

    lo: float
    hi: float

    @property
    def width(self) -> float:
        """hi − lo."""
        return self.hi - self.lo

    def contains(self, value: float) -> bool:
        """Whether lo ≤ value ≤ hi."""
        return bool(self.lo <= value <= self.hi)

    def __float__(self) -> float:
        return 0.5 * (self.lo + self.hi)

    def __repr__(self) -> str:
        return f"[{self.lo:.10g}, {self.hi:.10g}]"


@dataclass(frozen=True, eq=False)
class Frontier:
    """The frontier v of one branch on uniform budgets: linear between them up to −below … +above.

    The last budget must reach the largest h on W: beyond it v is taken to be constant.

    Attributes:
        budgets: Increasing, uniform, [N+1]; the first is the smallest h on W.
        values: v at the budgets, [N+1], not increasing.
        error: One number (±error everywhere), or a pair (below, above) of numbers or arrays [N+1] of which the linear
            interpolants bound v − values from below and above, between the budgets too.
        at_budgets: How far v may lie above `values` at the budgets themselves, a number or [N+1]; `above` when None.
        minimisers: A feasible w for each budget, [N+1, p], where known.
        delta: Theorem 1's Δ_i of this branch, where known.
        name: For tables and legends.

    Raises:
        ValueError: Budgets that are not uniform, values that are not finite or that increase, a negative error.

    >>> r = np.linspace(0, 1, 2001)
    >>> Frontier(r, 1 - r**2 / 2, (0, 4e-8))
    Frontier(2001 budgets 0 … 1, values 1 … 0.5, error 4e-08)
    """

    budgets: np.ndarray
    values: np.ndarray
    error: "float | tuple[float | np.ndarray, float | np.ndarray]" = 0.0
    at_budgets: float | np.ndarray | None = None
    minimisers: np.ndarray | None = None
    delta: Interval | None = None
    name: str = ""

    def __post_init__(self) -> None:
        budgets, values = (np.asarray(a, np.float64) for a in (self.budgets, self.values))
        object.__setattr__(self, "budgets", budgets)
        object.__setattr__(self, "values", values)
        if budgets.ndim != 1 or budgets.shape != values.shape or len(budgets) < 2:
            raise ValueError(f"budgets and values must both be [N+1], N ≥ 1; got {budgets.shape} and {values.shape}.")
        steps = np.diff(budgets)
        if not (np.isfinite(budgets).all() and steps.min() > 0 and np.ptp(steps) <= 1e-6 * steps.mean()):
            raise ValueError("budgets must be finite, increasing and uniform; use numpy.linspace.")
        if not np.isfinite(values).all():
            bad = int(np.flatnonzero(~np.isfinite(values))[0])
            raise ValueError(f"values must be finite; values[{bad}] is {values[bad]} (budget {budgets[bad]:g}).")
        self._check_band()

    def _check_band(self) -> None:
        below, above = self.band
        if not (np.all(below >= 0) and np.all(above >= 0) and np.all(self.upper_at_budgets >= self.values)):
            raise ValueError(f"error must not be negative or nan; got {self.error}.")
        rise = np.max(np.diff(self.values) - below[1:] - above[:-1])
        if rise > 1e-12 * max(1.0, float(np.abs(self.values).max())):
            raise ValueError(
                f"A frontier cannot increase with the budget; values rise by {rise:.3g} more than the error allows.\n"
                "  Is `values` the minimum of g over h ≤ budget?"
            )

    @property
    def step(self) -> float:
        """δ, the distance between budgets."""
        return float((self.budgets[-1] - self.budgets[0]) / (len(self.budgets) - 1))

    @property
    def band(self) -> tuple[np.ndarray, np.ndarray]:
        """(below, above), both [N+1]."""
        pair = self.error if isinstance(self.error, tuple) else (self.error, self.error)
        below, above = (np.broadcast_to(np.asarray(e, np.float64), self.budgets.shape) for e in pair)
        return below, above

    @property
    def lower(self) -> np.ndarray:
        """Values of a piecewise linear function below v everywhere, [N+1]."""
        return self.values - self.band[0]

    @property
    def upper(self) -> np.ndarray:
        """Values of a piecewise linear function above v everywhere, [N+1]."""
        return self.values + self.band[1]

    @property
    def upper_at_budgets(self) -> np.ndarray:
        """Upper values of v at the budgets themselves, [N+1]."""
        extra = self.band[1] if self.at_budgets is None else self.at_budgets
        return self.values + extra

    @property
    def nonconvexity(self) -> Interval:
        """G₁ = max_r (v − v**)(r), which bounds I·gap for every I and K, and is at most Δ."""
        hull_low = envelope(self.budgets, self.lower)
        hull_high = envelope(self.budgets, self.upper_at_budgets)
        return Interval(max(0.0, float(np.max(self.lower - hull_high))), max(0.0, float(np.max(self.upper - hull_low))))

    def __call__(self, r: np.ndarray | float) -> np.ndarray:
        """The piecewise linear model at budgets r, constant beyond the last."""
        return np.asarray(np.interp(r, self.budgets, self.values))

    def __repr__(self) -> str:
        span, ends = self.budgets[[0, -1]], self.values[[0, -1]]
        error = float(max(part.max() for part in self.band))
        label = f"{self.name}: " if self.name else ""
        return (
            f"Frontier({label}{len(self.budgets)} budgets {span[0]:.6g} … {span[1]:.6g}, "
            f"values {ends[0]:.6g} … {ends[1]:.6g}, error {error:.3g})"
        )


def lower_hull(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Indices of the vertices of the lower convex hull of points with increasing x (monotone chain).

    >>> lower_hull(np.arange(4.0), np.array([0.0, 1.0, 0.5, 0.0])).tolist()
    [0, 3]
    """
    kept: list[int] = []
    for i, (a, b) in enumerate(zip(x.tolist(), y.tolist(), strict=True)):
        while len(kept) > 1:
            p, q = kept[-2], kept[-1]
            if (y[q] - y[p]) * (a - x[p]) < (b - y[p]) * (x[q] - x[p]):
                break
            kept.pop()
        kept.append(i)
    return np.asarray(kept)


def envelope(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The convex envelope of a piecewise linear function at its own points x, [N+1]."""
    kept = lower_hull(x, y)
    return np.interp(x, x[kept], y[kept])
