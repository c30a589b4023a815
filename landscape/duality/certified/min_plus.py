"""Sharing one budget among many branches: min Σ_i c_i(r_i) subject to Σ_i r_i = n + θ grid steps, exactly.

For piecewise linear costs all branches but one may be taken at grid budgets (of two that are not, budget can be moved
from one to the other until one is). So every sum is kept twice, `plain` with all branches on the grid and `shifted`
with one of them at grid + θ, and equal branches are added by repeated doubling.

Only a window of sums is kept for a partial population. That loses nothing: sort the branches of each kind in an optimal
solution and deal them alternately to two halves; the halves' sums then differ by at most the largest range R. So if the
sum of 2m lies within w of its share of the total, that of m lies within w/2 + R/2, and leaving out one branch of each
of q kinds adds at most R each: w = (q + 1) R reproduces itself. With one kind w = R does: the branch left out can be
chosen on the side to which the sum leans.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


class Sums(NamedTuple):
    """Least cost of a population for budgets start, start + 1, …: all on the grid, and with one of them at grid + θ."""

    start: int
    plain: np.ndarray
    shifted: np.ndarray


@dataclass(eq=False)
class _Population:
    """A population and the two it was put together from (none for a single branch)."""

    sums: Sums
    parts: "tuple[_Population, _Population] | None" = None
    kind: int = -1


class Allocation(NamedTuple):
    """A cheapest division of the budget.

    Attributes:
        cost: Σ_i c_i.
        shares: {(kind, grid index, whether the branch is at grid + θ): number of branches}.
    """

    cost: float
    shares: dict[tuple[int, int, bool], int]


def min_plus(a: np.ndarray, b: np.ndarray, first: int, last: int) -> np.ndarray:
    """min_t a[t] + b[s − t] for s = first … last.

    >>> min_plus(np.array([0.0, 3.0]), np.array([0.0, 1.0]), 0, 2).tolist()
    [0.0, 1.0, 4.0]
    """
    if len(a) < len(b):
        a, b = b, a
    out = np.full(last - first + 1, np.inf)
    for j in np.flatnonzero(np.isfinite(b)).tolist():
        lo, hi = max(first, j), min(last, j + len(a) - 1)
        if lo <= hi:
            part = out[lo - first : hi - first + 1]
            np.minimum(part, a[lo - j : hi - j + 1] + b[j], out=part)
    return out


def allocate(
    plain: Sequence[np.ndarray], shifted: Sequence[np.ndarray], counts: Sequence[int], total: int, fraction: float
) -> Allocation:
    """Divide total + fraction grid steps among counts[k] branches of each kind k at least cost.

    Args:
        plain: Cost of a branch of kind k at grid budgets 0 … n_k, [n_k + 1].
        shifted: The same at 0 + fraction … n_k − 1 + fraction, [n_k].
        counts: Branches of each kind.
        total: n, whole grid steps to divide; n + fraction ≤ Σ counts[k] n_k.
        fraction: θ in [0, 1).
    """
    if any(np.isnan(costs).any() for costs in (*plain, *shifted)):
        raise ValueError("Costs must be numbers; some are nan.")
    if not any(counts):
        raise ValueError("There are no branches to share the budget among.")
    sizes = np.array([len(c) - 1 for c in plain])
    per_step = (total + fraction) / float(np.dot(counts, sizes))
    window = (len(sizes) + 1 if len(sizes) > 1 else 1) * int(sizes.max()) + 2
    singles = [_Population(Sums(0, p, s), kind=k) for k, (p, s) in enumerate(zip(plain, shifted, strict=True))]
    (first, _), *doublings = _doublings(counts)
    whole, joined = singles[first or 0], []
    for kind, members in doublings:
        other = whole if kind is None else singles[kind]
        capacity = int(np.dot(members, sizes))
        centre = round(per_step * capacity)
        first, last = max(0, centre - window), min(capacity, centre + window)
        whole = _Population(_combine(whole.sums, other.sums, first, last, fraction > 0), (whole, other))
        joined.append(whole)
    values = whole.sums.shifted if fraction > 0 else whole.sums.plain
    return Allocation(float(values[total - whole.sums.start]), _trace(whole, joined, total, fraction > 0))


def _doublings(counts: Sequence[int]) -> Iterator[tuple[int | None, list[int]]]:
    """How a population grows to `counts`, by their binary digits: the kind of the branch added (None: doubled), and it.

    >>> list(_doublings([3]))
    [(0, [1]), (None, [2]), (0, [3])]
    """
    members = [0] * len(counts)
    for bit in range(max(counts).bit_length() - 1, -1, -1):
        if any(members):
            members = [2 * n for n in members]
            yield None, members
        for kind, count in enumerate(counts):
            if count >> bit & 1:
                members = [n + (k == kind) for k, n in enumerate(members)]
                yield kind, members


def _combine(x: Sums, y: Sums, first: int, last: int, fractional: bool) -> Sums:
    offset = x.start + y.start
    plain = min_plus(x.plain, y.plain, first - offset, last - offset)
    shifted = plain
    if fractional:
        shifted = min_plus(x.shifted, y.plain, first - offset, last - offset)
        if x is not y:
            np.minimum(shifted, min_plus(x.plain, y.shifted, first - offset, last - offset), out=shifted)
    return Sums(first, plain, shifted)


def _trace(root: _Population, joined: list[_Population], total: int, shifted: bool) -> dict[tuple[int, int, bool], int]:
    """Follow the minima back from the whole population to single branches."""
    wanted: dict[int, dict[tuple[int, bool], int]] = defaultdict(lambda: defaultdict(int))
    wanted[id(root)][(total, shifted)] = 1
    shares: dict[tuple[int, int, bool], int] = defaultdict(int)

    def ask(node: _Population, index: int, flag: bool, times: int) -> None:
        if node.parts is None:
            shares[(node.kind, index, flag)] += times
        else:
            wanted[id(node)][(index, flag)] += times

    if root.parts is None:
        ask(root, total, shifted, 1)
    for node in reversed(joined):
        for (index, flag), times in wanted[id(node)].items():
            x, y = node.parts if node.parts else (node, node)
            choices = [(True, False), (False, True)] if flag else [(False, False)]
            split = min((_split(x.sums, y.sums, index, fx, fy), fx, fy) for fx, fy in choices)
            (_, left), fx, fy = split
            ask(x, left, fx, times)
            ask(y, index - left, fy, times)
    return dict(shares)


def _split(x: Sums, y: Sums, index: int, x_shifted: bool, y_shifted: bool) -> tuple[float, int]:
    """The least a[t] + b[index − t] and its t."""
    a = x.shifted if x_shifted else x.plain
    b = y.shifted if y_shifted else y.plain
    first, last = max(x.start, index - y.start - len(b) + 1), min(x.start + len(a) - 1, index - y.start)
    if first > last:
        return np.inf, first
    costs = a[first - x.start : last - x.start + 1] + b[index - last - y.start : index - first - y.start + 1][::-1]
    best = int(np.argmin(costs))
    return float(costs[best]), first + best
