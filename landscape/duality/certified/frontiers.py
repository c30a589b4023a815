"""A branch's frontier v(r) = min{ g(w) : w ∈ W, h(w) ≤ r } as a certified band, and its convex envelope v**.

Symbols of Theorem 1:
    g(w) = E[1 − y f(w; x)/τ]   a branch's expected loss        h(w)  its regulariser, budget r
    v, v**                      frontier and its envelope       λ     multiplier of (1/I) Σ h_i ≤ K
    P, D                        problems (2) and (3)            Δ     Theorem 1's divergence of a branch
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

EPSILON = float(np.finfo(np.float64).eps)


def real_array(name: str, value: object) -> np.ndarray:
    """Numbers in float64.

    Raises:
        ValueError: Complex numbers, of which float64 would keep the real part, or anything that is not a number.
    """
    try:
        array = np.asarray(value)
        found = array if np.iscomplexobj(array) else np.asarray(array, np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must hold real numbers; got {type(value).__name__}: {error}.") from error
    if np.iscomplexobj(found):
        raise ValueError(f"{name} must be real; got complex numbers ({found.dtype}).\n  Pass the real part.")
    return found


def real_number(name: str, value: object) -> float:
    """One real number, nan and infinities included; an array of one element is refused.

    Raises:
        ValueError: Complex numbers, arrays, or anything that is not a number.
    """
    array = real_array(name, value)
    if array.ndim != 0:
        raise ValueError(f"{name} must be one number; got an array of shape {array.shape}.")
    return float(array)


class Interval(NamedTuple):
    """A number known to lie in [lo, hi]; `float()` of it is the midpoint."""

    lo: float
    hi: float

    @property
    def width(self) -> float:
        """hi − lo."""
        return self.hi - self.lo

    @classmethod
    def not_negative(cls, lo: float, hi: float) -> "Interval":
        """[lo, hi] of a quantity that cannot be negative; an end that is nan says nothing, so it becomes 0 or inf."""
        return cls(max(lo, 0.0) if lo < math.inf else 0.0, math.inf if math.isnan(hi) else max(hi, 0.0))

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
        budgets: Increasing, uniform, [N+1]; the first is at most the smallest h on W. At budgets below the smallest h
            v is taken to be its value there.
        values: v at the budgets, [N+1], not increasing.
        error: One number (±error everywhere), or a pair (below, above) of numbers or arrays [N+1] of which the linear
            interpolants bound v − values from below and above, between the budgets too; finite.
        at_budgets: How far v may lie above `values` at the budgets themselves, a number or [N+1]; `above` when None.
        minimisers: A feasible w for each budget, [N+1, p], where known.
        delta: Theorem 1's Δ_i of this branch, where known.
        name: For tables and legends.

    Raises:
        ValueError: Budgets that are not uniform, values or bands that are not finite or real, values that increase, a
            negative error, minimisers that are not one for each budget, a Δ_i that is no interval.

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
        budgets, values = real_array("budgets", self.budgets), real_array("values", self.values)
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
        self._check_rest()

    def _check_band(self) -> None:
        below, above = self.band
        at = self.upper_at_budgets
        for name, part in (("error", below), ("error", above), ("at_budgets", at - self.values)):
            bad = np.flatnonzero(~(np.isfinite(part) & (part >= 0)))
            if len(bad):
                raise ValueError(
                    f"{name} must not be negative, infinite or nan; at budget {self.budgets[bad[0]]:g} it is "
                    f"{part[bad[0]]:g}.\n  Where v is not bounded, there is no certified frontier."
                )
        if not (np.isfinite(self.lower).all() and np.isfinite(self.upper).all()):
            raise ValueError("values and error together exceed the largest float64; use other units.")
        rise = np.max(np.diff(self.values) - below[1:] - above[:-1])
        if not rise <= 1e-12 * max(1.0, float(np.abs(self.values).max())):
            raise ValueError(
                f"A frontier cannot increase with the budget; values rise by {rise:.3g} more than the error allows.\n"
                "  Is `values` the minimum of g over h ≤ budget?"
            )

    def _check_rest(self) -> None:
        points = None if self.minimisers is None else np.shape(self.minimisers)
        if points is not None and (len(points) != 2 or points[0] != len(self.budgets)):
            raise ValueError(f"minimisers must be [{len(self.budgets)}, p], one for each budget; got shape {points}.")
        if self.delta is not None and not 0 <= self.delta.lo <= self.delta.hi:
            raise ValueError(f"delta must be an interval of numbers that are not negative; got {self.delta}.")

    @property
    def step(self) -> float:
        """δ, the distance between budgets."""
        return float((self.budgets[-1] - self.budgets[0]) / (len(self.budgets) - 1))

    @property
    def band(self) -> tuple[np.ndarray, np.ndarray]:
        """(below, above), both [N+1]."""
        below, above = self.error if isinstance(self.error, tuple) else (self.error, self.error)
        return self._along("error", below), self._along("error", above)

    def _along(self, name: str, value: float | np.ndarray) -> np.ndarray:
        """One number, or one for each budget, as [N+1]."""
        found = real_array(name, value)
        if found.shape not in ((), self.budgets.shape):
            raise ValueError(f"{name} must be a number or have shape {self.budgets.shape}; got {found.shape}.")
        return np.broadcast_to(found, self.budgets.shape)

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
        extra = self.band[1] if self.at_budgets is None else self._along("at_budgets", self.at_budgets)
        return self.values + extra

    @property
    def nonconvexity(self) -> Interval:
        """G₁ = max_r (v − v**)(r), which bounds I·gap for every I and K, and is at most Δ."""
        hull_low = envelope(self.budgets, self.lower)
        hull_high = envelope(self.budgets, self.upper_at_budgets)
        return Interval.not_negative(float(np.max(self.lower - hull_high)), float(np.max(self.upper - hull_low)))

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
