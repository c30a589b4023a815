"""One ReLU unit with data in the plane, exactly: f(a, u; x) = a [⟨u, x⟩]_+ with x ∈ R².

Between two neighbouring directions orthogonal to data points the set of active examples is constant, and
S(u) = E[y [⟨u, x⟩]_+] is linear, ⟨c, u⟩ with c the weighted sum of the active y x. All O(N) sectors are visited in one
sweep; in each the largest S on ‖u‖ = 1 is at c/‖c‖ or at an end (for l1 also at an axis). S is homogeneous, so with
M = max(max S, −min S) and |a| ≤ A, ‖u‖ ≤ B

    v(r) = 1 − (M/τ) max{ α β : α ≤ A, β ≤ B, N(α, β) ≤ r },   h = N(|a|, ‖u‖).
"""

import math
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from landscape.duality.certified.closed_forms import closed_form
from landscape.duality.certified.frontiers import EPSILON, Frontier, Interval
from landscape.duality.risks import sample

SIZES = ("l1", "l2", "sum", "squared_l2")


class Sweep(NamedTuple):
    """The extreme values of S(u) = E[y relu⟨u, x⟩] on ‖u‖ = 1 and where they are reached.

    Attributes:
        largest: max S.
        smallest: min S.
        at_largest: u, [2].
        at_smallest: u, [2].
        sectors: Number of sectors of the arrangement.
    """

    largest: Interval
    smallest: Interval
    at_largest: np.ndarray
    at_smallest: np.ndarray
    sectors: int


def sweep(data: Any, norm: str = "l2") -> Sweep:
    """Enumerate the arrangement of a sample in the plane.

    Args:
        data: A `Dataset` or (x, y), x [N, 2], y ±1.
        norm: Of u: "l2" or "l1".

    Raises:
        ValueError: Data that are not in the plane, a quadrature, or another norm.
    """
    if norm not in ("l1", "l2"):
        raise ValueError(f"The norm of u must be l1 or l2; got {norm!r}.")
    return _extremes(sectors(data), norm)


class Sectors(NamedTuple):
    """The arrangement: on directions with angle in (ends[k − 1], ends[k]], S(u) = ⟨sums[k], u⟩.

    Attributes:
        ends: Increasing angles in [0, 2π), [S].
        sums: [S, 2].
        rounding: How far `sums` may be off.
    """

    ends: np.ndarray
    sums: np.ndarray
    rounding: float

    def at(self, angle: np.ndarray) -> np.ndarray:
        """The sector of each angle."""
        place = np.searchsorted(self.ends, np.mod(angle, 2 * math.pi))
        return np.where(place == len(self.ends), 0, place)


def sectors(data: Any) -> Sectors:
    """Enumerate the arrangement of a sample in the plane, O(N log N).

    Raises:
        ValueError: Data that are not in the plane, or a quadrature.
    """
    found = sample(data)
    if found.x.ndim != 2 or found.x.shape[1] != 2 or found.boxes is not None:
        raise ValueError(f"The arrangement is for a sample in the plane, x [N, 2]; got {found.x.shape}.")
    keep = np.any(found.x != 0, axis=1)
    x, signed = found.x[keep], (found.weight * found.y)[keep, None] * found.x[keep]
    if len(x) == 0:
        return Sectors(np.zeros(1), np.zeros((1, 2)), 0.0)
    angle = np.arctan2(x[:, 1], x[:, 0])
    enter, leave = np.mod(angle - math.pi / 2, 2 * math.pi), np.mod(angle + math.pi / 2, 2 * math.pi)
    events = np.concatenate([enter, leave])
    change = np.concatenate([signed, -signed])
    order = np.argsort(events, kind="stable")
    ends = events[order]
    start = signed[_active(x, ends[-1], ends[0] + 2 * math.pi)].sum(0)
    sums = start + np.concatenate([np.zeros((1, 2)), np.cumsum(change[order], 0)])[:-1]
    return Sectors(ends, sums, float(np.abs(signed).sum() * EPSILON * 8 * (len(x) + 4)))


def _active(x: np.ndarray, low: float, high: float) -> np.ndarray:
    """Examples on the positive side of the sector's middle."""
    middle = (low + high) / 2
    return x @ np.array([math.cos(middle), math.sin(middle)]) > 0


def _extremes(found: Sectors, norm: str) -> Sweep:
    """Largest and smallest ⟨c, u⟩ over each sector's directions with ‖u‖ = 1."""
    sums, high, rounding = found.sums, found.ends, found.rounding
    low = np.concatenate([high[-1:] - 2 * math.pi, high[:-1]])
    inner = np.arctan2(sums[:, 1], sums[:, 0])
    special = [inner, inner + math.pi] if norm == "l2" else [np.full(len(low), k * math.pi / 2) for k in range(4)]
    angles = np.stack([low, high, *(low + np.mod(s - low, 2 * math.pi) for s in special)])
    angles = np.where(angles <= high + 1e-15, angles, low)
    u = np.stack([np.cos(angles), np.sin(angles)], -1)
    if norm == "l1":
        u = u / np.abs(u).sum(-1, keepdims=True)
    values = np.sum(u * sums, -1)
    best, worst = (np.unravel_index(f(values), values.shape) for f in (np.argmax, np.argmin))
    largest, smallest = (Interval(float(values[i]) - rounding, float(values[i]) + rounding) for i in (best, worst))
    return Sweep(largest, smallest, u[best], u[worst], int(np.sum(high > low)))


def plane_tau(data: Any, *, norm: str = "l2", output: float = 1.0, input: float = 1.0) -> float:
    """The smallest τ that Assumption 1 admits for a [⟨u, x⟩]_+: output · input · max_n of x_n's dual norm.

    Raises:
        ValueError: As `sweep`.
    """
    x = sample(data).x
    if norm not in ("l1", "l2"):
        raise ValueError(f"The norm of u must be l1 or l2; got {norm!r}.")
    lengths = np.abs(x).max(-1) if norm == "l1" else np.sqrt(np.sum(x**2, -1))
    return float(output * input * lengths.max())


def plane_frontier(
    data: Any,
    tau: float,
    *,
    size: str = "sum",
    norm: str = "l2",
    output: float = 1.0,
    input: float = 1.0,
    budgets: int = 2000,
    name: str = "",
) -> Frontier:
    """The exact frontier of a [⟨u, x⟩]_+ with |a| ≤ output and ‖u‖ ≤ input, data in the plane.

    Args:
        data: x [N, 2], y ±1.
        tau: τ; not checked against Assumption 1 (see `plane_tau`).
        size: h: "sum" is |a| + ‖u‖, "l1" the same with ‖u‖₁, "l2" is √(a² + ‖u‖₂²), "squared_l2" its square.
        norm: The norm of u where `size` leaves it open.
        output: Bound on |a|.
        input: Bound on ‖u‖.
        budgets: Steps of the grid.
        name: For tables and legends.

    Raises:
        ValueError: As `sweep`; unknown size, bounds that are not positive.
    """
    if size not in SIZES or min(output, input, tau) <= 0 or not math.isfinite(output + input):
        raise ValueError(
            f"size must be one of {SIZES}, and the bounds and τ positive; got {size!r}, {output}, {input}."
        )
    norm = {"l1": "l1", "l2": "l2", "squared_l2": "l2"}.get(size, norm)
    found = sweep(data, norm)
    gain = Interval(max(found.largest.lo, -found.smallest.hi, 0.0), max(found.largest.hi, -found.smallest.lo, 0.0))
    last = output + input if size in ("sum", "l1") else output**2 + input**2

    def lowest(r: jax.Array) -> jax.Array:
        return 1 - gain.hi / tau * largest_product(r, size, output, input)

    exact = closed_form(lowest, math.sqrt(last) if size == "l2" else last, steps=budgets, name=name)
    below, above = exact.band
    rest = (gain.hi - gain.lo) / tau * output * input
    return replace(exact, error=(below, above + rest), at_budgets=exact.upper_at_budgets - exact.values + rest)


def largest_product(r: jax.Array, size: str, output: float, input: float) -> jax.Array:
    """max α β subject to α ≤ output, β ≤ input and h(α, β) ≤ r, for one budget r that is not more than both can use.

    The weights share the budget equally until the smaller bound is met; then the other takes the rest. So with the
    smaller bound m it is r²/4 − ([r/2 − m]_+)² for the sum, and the root of the same in squares for the others.
    """
    low = min(output, input)
    if size in ("sum", "l1"):
        return r**2 / 4 - jax.nn.relu(r / 2 - low) ** 2
    square = r**2 if size == "l2" else r
    beyond = jax.nn.relu(1 - 2 * low**2 / jnp.maximum(square, low**2))
    return square / 2 * jnp.sqrt(1 - beyond**2)
