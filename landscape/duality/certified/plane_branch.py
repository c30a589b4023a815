"""Theorem 1's Δ for one ReLU unit with data in the plane, from the arrangement: O(log N) a cell instead of O(N).

On a box of (a, u), the gradient of S(u) = E[y relu⟨u, x⟩] takes the sums of the sectors that the box meets; their least
and largest entries come from a table of ranges of length 1, 2, 4, …
"""

import math
from typing import Any, NamedTuple

import numpy as np

from landscape.arrays import trees
from landscape.duality.branches import Ball, Box, Product
from landscape.duality.certified.arrangement import Sectors, sectors
from landscape.duality.certified.branch_and_bound import Cells, Kernels
from landscape.duality.certified.divergence import divergence_of
from landscape.duality.certified.frontiers import Frontier, Interval
from landscape.duality.certified.intervals import Enclosure


def plane_delta(
    data: Any, tau: float, frontier: Frontier, *, output: float = 1.0, input: float = 1.0, tol: float = 1e-3
) -> Interval:
    """Δ_i of a [⟨u, x⟩]_+ on |a| ≤ output, ‖u‖₂ ≤ input with h = |a| + ‖u‖₂, data in the plane.

    Args:
        data: x [N, 2], y ±1.
        tau: τ.
        frontier: From `plane_frontier` with the same data, τ and bounds, size "sum", norm "l2".
        output: Bound on |a|.
        input: Bound on ‖u‖₂.
        tol: Wanted precision, in loss.

    Raises:
        ValueError: Data that are not in the plane.
    """
    unit = _Unit(sectors(data), tau)
    domain = Product((Box(np.array([-output]), np.array([output])), Ball(np.zeros(2), input)))
    kernels = Kernels(domain, True, None, unit.loss, _size, unit.cells, _not_needed)
    with trees.float64():
        return divergence_of(kernels, frontier, tol).paper


def _not_needed(start: np.ndarray, points: np.ndarray, targets: np.ndarray) -> np.ndarray:
    raise NotImplementedError("Rescaling is not part of the search for Δ.")


def _size(w: np.ndarray) -> np.ndarray:
    """h = |a| + ‖u‖ at points [C, 3]."""
    return np.abs(w[:, 0]) + np.hypot(w[:, 1], w[:, 2])


class _Ranges(NamedTuple):
    """Least and largest entries of `sums` over ranges of sectors: tables [levels, S, 2]."""

    low: np.ndarray
    high: np.ndarray

    def between(self, first: np.ndarray, last: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Over sectors first … last, each [C] with first ≤ last -> [C, 2] twice."""
        level = np.floor(np.log2(last - first + 1)).astype(int)
        other = last - (1 << level) + 1
        return (
            np.minimum(self.low[level, first], self.low[level, other]),
            np.maximum(self.high[level, first], self.high[level, other]),
        )


def _ranges(sums: np.ndarray) -> _Ranges:
    twice = np.concatenate([sums, sums])
    low, high = [twice], [twice]
    for level in range(len(twice).bit_length() - 1):
        ahead = np.minimum(np.arange(len(twice)) + (1 << level), len(twice) - 1)
        low.append(np.minimum(low[-1], low[-1][ahead]))
        high.append(np.maximum(high[-1], high[-1][ahead]))
    return _Ranges(np.stack(low), np.stack(high))


class _Unit:
    """g(a, u) = 1 − a S(u)/τ at points and on cells [C, 3], numpy."""

    def __init__(self, found: Sectors, tau: float) -> None:
        self.found, self.tau, self.table = found, tau, _ranges(found.sums)
        self.slack = 4 * found.rounding + 1e-15

    def strength(self, u: np.ndarray) -> np.ndarray:
        """S(u), [C]."""
        return np.sum(self.found.sums[self.found.at(np.arctan2(u[:, 1], u[:, 0]))] * u, 1)

    def loss(self, w: np.ndarray) -> np.ndarray:
        """An upper bound of g, tight to rounding."""
        return 1 - w[:, 0] * self.strength(w[:, 1:]) / self.tau + self.slack / self.tau * (1 + np.abs(w).max(1)) ** 2

    def cells(self, lo: np.ndarray, hi: np.ndarray) -> Cells:
        """Enclosures of g and h."""
        centre, half = (lo + hi) / 2, (hi - lo) / 2
        low, high = self._gradient(lo[:, 1:], hi[:, 1:])
        middle = self.strength(centre[:, 1:])
        steep = np.sum(np.maximum(np.abs(low), np.abs(high)) * half[:, 1:], 1)
        strength = middle - steep, middle + steep
        value = 1 - centre[:, 0] * middle / self.tau
        reach = self.slack * (1 + np.abs(centre).max(1) + half.max(1)) ** 2 / self.tau
        slopes = [-_product(lo[:, 0], hi[:, 0], low[:, j], high[:, j]) / self.tau for j in (0, 1)]
        slope_lo = np.stack([-strength[1] / self.tau, *(s.min(0) for s in slopes)], 1) - self.slack / self.tau
        slope_hi = np.stack([-strength[0] / self.tau, *(s.max(0) for s in slopes)], 1) + self.slack / self.tau
        products = 1 - _product(lo[:, 0], hi[:, 0], *strength) / self.tau
        g = Enclosure(
            products.min(0) - reach, products.max(0) + reach, value - reach, value + reach, slope_lo, slope_hi
        )
        return Cells(lo, hi, g, _enclosed_size(lo, hi))

    def _gradient(self, lo: np.ndarray, hi: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Bounds of ∂S/∂u on boxes [C, 2]."""
        centre, count = (lo + hi) / 2, len(self.found.ends)
        angle = np.arctan2(centre[:, 1], centre[:, 0])
        corners = [np.arctan2(y, x) for x in (lo[:, 0], hi[:, 0]) for y in (lo[:, 1], hi[:, 1])]
        away = np.mod(np.stack(corners) - angle + math.pi, 2 * math.pi) - math.pi
        around = np.all((lo <= 0) & (hi >= 0), 1)
        first = self.found.at(angle + away.min(0) - 1e-12)
        last = self.found.at(angle + away.max(0) + 1e-12)
        last = np.where(last < first, last + count, last)
        first, last = np.where(around, 0, first), np.where(around, count - 1, last)
        low, high = self.table.between(first, last)
        return low - self.found.rounding, high + self.found.rounding


def _product(a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray) -> np.ndarray:
    """The four corners of [a, b]·[c, d]."""
    return np.stack([a * c, a * d, b * c, b * d])


def _enclosed_size(lo: np.ndarray, hi: np.ndarray) -> Enclosure:
    """Bounds of h = |a| + ‖u‖ and a subgradient at the centre."""
    centre = (lo + hi) / 2
    nearest, farthest = np.clip(0.0, lo, hi), np.maximum(np.abs(lo), np.abs(hi))
    length = np.hypot(centre[:, 1], centre[:, 2])
    along = centre[:, 1:] / np.maximum(length, 1e-300)[:, None]
    slope = np.concatenate([np.sign(centre[:, :1]), along], 1)
    value, tiny = _size(centre), 1e-14
    return Enclosure(_size(nearest) - tiny, _size(farthest) + tiny, value - tiny, value + tiny, slope, slope)
