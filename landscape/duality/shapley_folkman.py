"""§4a and Figure 3: the average of I copies of an l_p ball, 0 < p < 1, and how far it is from convex.

    A = {x : Σ |x_i|^p ≤ 1} in dimension 2 or 3    S_I = (1/I) Σ_{j≤I} A    conv A the l_1 ball
    ρ(I) Hausdorff distance between S_I and conv A    g(x) = (1 − x^p)^{1/p} the boundary of A in the plane

In the plane the boundary of S_I is I scaled copies of g between neighbouring points (k, I − k)/I, so ρ(I) = ρ(1)/I. In
dimension 3 S_I is made of translates of pieces (`hausdorff`), and ρ(I) is bracketed for every I by two computations.
"""

from dataclasses import dataclass
from functools import lru_cache
from math import gamma, isfinite, sqrt
from typing import NamedTuple

import numpy as np

from landscape.duality import hausdorff

TOLERANCE = {2: 5e-3, 3: 2e-2}
"""Relative width of the interval for ρ(I), by dimension."""

ARC_POINTS = 400
"""Points of an arc tried for the height of a sum of arcs in dimension 3."""


class Nonconvexity(NamedTuple):
    """How far S_I is from its convex hull.

    Attributes:
        lo: Lower end of the certified interval for ρ(I).
        hi: Upper end.
        exact: ρ(I) where a closed form is proved (p = ½ in the plane: √2/(4I)), else None.
        circumradius_bound: Shapley–Folkman [Starr69]: ρ(I) ≤ √min(I, D)·R/I, R = 1 the circumradius of A.
        inner_radius_bound: Shapley–Folkman–Starr: the same with the inner radius r = √((D−1)/D) in place of R.
        area_deficit: Area of conv A minus area of S_I, exact in the plane, else None.
    """

    lo: float
    hi: float
    exact: float | None
    circumradius_bound: float
    inner_radius_bound: float
    area_deficit: float | None


@dataclass(frozen=True)
class AveragedBall:
    """S_I, the averaged Minkowski sum of I copies of the l_p ball.

    Attributes:
        p: Exponent, 0 < p < 1.
        dimension: 2 or 3.
        copies: I.

    >>> ball = averaged_ball(0.5, 2, 10)
    >>> float(ball.boundary(0.5)), round(ball.area, 6)
    (0.5, 1.866667)
    """

    p: float
    dimension: int
    copies: int

    def boundary(self, *x: np.ndarray | float) -> np.ndarray:
        """The last coordinate's greatest value in S_I where the others are x ≥ 0 (the rest of S_I is its mirror image).

        Exact in the plane: Y_I(x) = (I − 1 − k + g(θ))/I with k = ⌊Ix⌋, θ = Ix − k. In dimension 3 a lower bound within
        about 1e-3/I, from `ARC_POINTS` points of each arc.

        Args:
            x: The first D − 1 coordinates, arrays of one shape; nan is returned where no point of S_I lies above x.

        Raises:
            ValueError: Not D − 1 coordinates.
        """
        if len(x) != self.dimension - 1:
            raise ValueError(f"Wanted {self.dimension - 1} coordinates for dimension {self.dimension}; got {len(x)}.")
        scaled = [_snapped(np.asarray(coordinate, dtype=np.float64) * self.copies) for coordinate in x]
        height = self._planar(*scaled) if self.dimension == 2 else self._spatial(*np.broadcast_arrays(*scaled))
        outside = np.min(scaled, axis=0) < 0
        return np.where(outside | (height < -1e-9), np.nan, np.maximum(height, 0.0)) / self.copies

    @property
    def area(self) -> float:
        """Area of S_I in the plane, 2 − 2/I + 4a/I with a = ∫g = Γ(1+1/p)²/Γ(1+2/p); for p = ½ 2 − 4/(3I).

        Raises:
            ValueError: The dimension is not 2.
        """
        if self.dimension != 2:
            raise ValueError(f"The area is defined in dimension 2; this ball has dimension {self.dimension}.")
        under = gamma(1 + 1 / self.p) ** 2 / gamma(1 + 2 / self.p) if self.p > 0.02 else 0.0
        return 2 - 2 / self.copies + 4 * under / self.copies

    def _planar(self, x: np.ndarray) -> np.ndarray:
        k = np.clip(np.floor(x), 0, self.copies - 1)
        return self.copies - 1 - k + _arc(x - k, self.p)

    def _spatial(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """The best of a full surface, two arcs or three arcs at the lattice points below (x, y)."""
        best = np.full(x.shape, -np.inf)
        i, j = np.floor(x), np.floor(y)
        for a, b in ((0, 0), (1, 0), (0, 1), (1, 1)):
            left = self.copies - 1 - (i + a) - (j + b)
            best = np.maximum(best, np.where(left >= 0, left + _sheet(x - i - a, y - j - b, self.p), -np.inf))
        for arcs in _arc_groups(self.copies):
            for a, b in ((0, 0), (1, 0), (0, 1), (1, 1)):
                left = self.copies - len(arcs) - (i - a) - (j - b)
                fits = (left >= 0) & (i >= a) & (j >= b)
                top = _arc_sum(x - i + a, y - j + b, arcs, self.p)
                best = np.maximum(best, np.where(fits, left + top, -np.inf))
        return best


def averaged_ball(p: float, dimension: int, copies: int) -> AveragedBall:
    """The averaged Minkowski sum of `copies` l_p balls.

    Raises:
        ValueError: p is not strictly between 0 and 1, the dimension not 2 or 3, or copies not a whole number ≥ 1.
    """
    if not (isfinite(p) and 0 < p < 1):
        raise ValueError(f"p must lie strictly between 0 and 1 (the l_1 ball is already convex); got {p}.")
    if dimension not in (2, 3):
        raise ValueError(f"dimension must be 2 or 3; got {dimension}.")
    if copies != int(copies) or copies < 1:
        raise ValueError(f"copies must be a whole number, at least 1; got {copies}.")
    return AveragedBall(float(p), int(dimension), int(copies))


def nonconvexity(*, p: float, dimension: int, copies: int, tolerance: float | None = None) -> Nonconvexity:
    """A certified interval for ρ(I), with the Shapley–Folkman–Starr bounds beside it.

    Args:
        p: Exponent, 0 < p < 1. In dimension 3 the time grows like 1/ρ(1)²: seconds at 0.9, minutes beyond.
        dimension: 2 or 3.
        copies: I; the time does not depend on it.
        tolerance: Relative width of the interval; by default 0.005 in the plane and 0.02 in dimension 3.

    Raises:
        ValueError: As `averaged_ball`, or a tolerance outside (0, 1).

    >>> found = nonconvexity(p=0.5, dimension=2, copies=4)
    >>> found.lo <= 2**0.5 / 16 <= found.hi
    True
    """
    ball = averaged_ball(p, dimension, copies)
    tolerance = TOLERANCE[dimension] if tolerance is None else tolerance
    if not 0 < tolerance < 1:
        raise ValueError(f"tolerance must lie strictly between 0 and 1; got {tolerance}.")
    lo, hi = _scaled_distance(ball.p, ball.dimension, min(ball.copies, ball.dimension), tolerance)
    spread = sqrt(min(copies, dimension)) / copies
    planar = dimension == 2
    return Nonconvexity(
        lo=lo / copies,
        hi=hi / copies,
        exact=sqrt(2) / (4 * copies) if planar and p == 0.5 else None,
        circumradius_bound=spread,
        inner_radius_bound=spread * sqrt((dimension - 1) / dimension),
        area_deficit=2 - ball.area if planar else None,
    )


@lru_cache(maxsize=256)
def _scaled_distance(p: float, dimension: int, copies: int, tolerance: float) -> tuple[float, float]:
    """[lo, hi] around R(I) = I·ρ(I); for I ≥ dimension, R(∞) ≤ R(I) ≤ R(dimension − 1) (see `hausdorff`)."""
    few = min(copies, dimension - 1)
    lo, hi = hausdorff.farthest(hausdorff.pieces(dimension, few), dimension, few, p, tolerance)
    if copies > few:
        lo, _ = hausdorff.farthest(hausdorff.periodic_pieces(dimension), dimension, 2, p, tolerance)
    return lo, hi


def _snapped(x: np.ndarray) -> np.ndarray:
    """x, with whole numbers freed of rounding: g is infinitely steep there."""
    whole = np.round(x)
    return np.where(np.abs(x - whole) < 1e-12 * np.maximum(1.0, np.abs(whole)), whole, x)


def _arc(x: np.ndarray, p: float) -> np.ndarray:
    """g(x) = (1 − x^p)^{1/p}, and 0 beyond 1."""
    return np.maximum(1.0 - np.clip(x, 0.0, 1.0) ** p, 0.0) ** (1.0 / p)


def _sheet(x: np.ndarray, y: np.ndarray, p: float) -> np.ndarray:
    """(1 − x^p − y^p)^{1/p} at the positive parts of x and y, −∞ outside."""
    room = 1.0 - np.maximum(x, 0.0) ** p - np.maximum(y, 0.0) ** p
    return np.where(room >= 0.0, np.maximum(room, 0.0) ** (1.0 / p), -np.inf)


def _arc_groups(copies: int) -> list[tuple[str, ...]]:
    """Which coordinate planes may each hold one summand on its arc."""
    pairs = [("xy", "xz"), ("xy", "yz"), ("xz", "yz")]
    return [*pairs, ("xy", "xz", "yz")] if copies >= 3 else pairs if copies == 2 else []


def _arc_sum(x: np.ndarray, y: np.ndarray, arcs: tuple[str, ...], p: float) -> np.ndarray:
    """The greatest z with (x, y, z) below a sum of one point from each arc."""
    if "xy" not in arcs:
        return np.where((x <= 1.0) & (y <= 1.0), _arc(x, p) + _arc(y, p), -np.inf)
    u = np.linspace(0.0, 1.0, ARC_POINTS)
    best = np.full(x.shape, -np.inf)
    for first, second in zip(u ** (1.0 / p), (1.0 - u) ** (1.0 / p), strict=True):
        z = np.zeros(x.shape)
        for rest, arc in ((x - first, "xz"), (y - second, "yz")):
            limit = 1.0 if arc in arcs else 0.0
            z = np.where(rest <= limit, z + (_arc(rest, p) if arc in arcs else 0.0), -np.inf)
        best = np.maximum(best, z)
    return best
