"""Three and more solutions matched to each other, so that no pair is left behind."""

from collections.abc import Callable, Sequence

import numpy as np

from landscape.symmetry.blocks import Blocks
from landscape.symmetry.metric import Measure

Match = Callable[[Blocks, Blocks], Callable[[Blocks], Blocks]]

ROUNDS, GAIN = 3, 1e-3
"""Rounds in which every solution is matched again; they end before if one gains less than this share of the inner
products."""


def together(several: Sequence[Blocks], measure: Measure, match: Match) -> list[Blocks]:
    """Each matched to the sum of those before it, then in turn to the sum of all others.

    The permutations of any two are then one and the same around every cycle. The first solution keeps its order.

    Args:
        several: Blocks [I, ...] of every solution.
        measure: The metric of the inner products.
        match: (reference, blocks) -> the function that puts blocks in the order that brings these to the reference.
    """
    found = list(several[:1])
    for blocks in several[1:]:
        found.append(match(measure(_sum(found)), blocks)(blocks))
    for _ in range(ROUNDS if len(found) > 2 else 0):
        gain = 0.0
        for k, blocks in enumerate(found):
            others = measure(_sum([*found[:k], *found[k + 1 :]]))
            moved = match(others, blocks)(blocks)
            more = _inner(others, moved) - _inner(others, blocks)
            found[k], gain = (moved, gain + more) if more > 0 else (blocks, gain)
        if gain <= GAIN * _inner(measure(_sum(found)), _sum(found)):
            break
    if found[0] is several[0]:
        return found
    back = match(measure(several[0]), found[0])
    return [several[0], *map(back, found[1:])]


def _sum(several: Sequence[Blocks]) -> Blocks:
    return [np.sum(parts, axis=0) for parts in zip(*several, strict=True)]


def _inner(one: Blocks, other: Blocks) -> float:
    return sum(float(np.vdot(a, b)) for a, b in zip(one, other, strict=True))
