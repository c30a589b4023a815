"""A kind of branches with everything that may be permuted or rescaled in it, and how that is said to a person."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import numpy as np

from landscape.arrays.trees import Signature
from landscape.networks import MultiBranch, Network, one_example
from landscape.symmetry import pooling, rescaling, symmetries
from landscape.symmetry.rescaling import Rescaling
from landscape.symmetry.symmetries import Symmetries

Params = Any
FEW = 4
"""Examples on which symmetries are verified."""


class Kind(NamedTuple):
    """Branches of one kind.

    Attributes:
        count: Number of branches I.
        symmetries: Permutations of the units of one branch.
        rescalings: Rescalings of them.
        pools: Whether units change places across branches too.
    """

    count: int
    symmetries: Symmetries
    rescalings: tuple[Rescaling, ...]
    pools: bool

    def __str__(self) -> str:
        return "\n".join(lines(self))


@dataclass(frozen=True)
class _Branch:
    """A branch with one set of its parameters and a few examples; equal where the function and shapes are."""

    network: Network
    of: Signature
    example: Signature
    params: Params = field(compare=False)
    x: Any = field(compare=False)


def kinds_of(network: MultiBranch, params: Params, x: Any) -> list[Kind]:
    """What may change places in every kind of branches of a network.

    Args:
        network: The network.
        params: [I, ...] of one solution; what is random in the verification has their signs.
        x: Examples [N, ...].
    """
    few, found = jax.tree.map(lambda leaf: np.asarray(leaf[:FEW]), x), []
    for (branch, w), count in zip(network.groups(params), network.counts, strict=True):
        one = jax.tree.map(lambda leaf: np.asarray(leaf[0]), w)
        example = Signature.of(jax.tree.map(lambda leaf: leaf[0], few))
        found.append(Kind(count, *_found(_Branch(branch, Signature.of(one), example, one, few))))
    return found


@lru_cache(64)
def _found(branch: _Branch) -> tuple[Symmetries, tuple[Rescaling, ...], bool]:
    one = one_example(branch.network, branch.params, branch.example.tree())
    found = symmetries.find(one, branch.params, branch.x)
    rescalings = rescaling.find(one, branch.params, branch.x, found)
    return found, rescalings, pooling.pools(one, branch.params, branch.x, found)


def lines(kind: Kind) -> list[str]:
    """A table of the symmetries of one kind of branches: how many units, what they are, and how they are rescaled."""
    found, names = kind.symmetries, kind.symmetries.layout.names
    rows = [("units", "permuted in", "rescaled in")]
    for place, s in enumerate(found.found):
        several = [r for r in kind.rescalings if r.place == place]
        rows.append((_size(kind, place), ", ".join(found.leaves(s)), "; ".join(map(_against(kind), several)) or "–"))
    widths = [max(len(row[k]) for row in rows) for k in range(2)]
    table = ["  ".join((*(cell.ljust(n) for cell, n in zip(row, widths, strict=False)), row[2])) for row in rows]
    moved = {name for s in found.found for name in found.leaves(s)}
    fixed = [name for name in names if name not in moved]
    unknown = [f"{name} ({count})" for name, count in found.unknown.items()]
    notes = [
        *([f"{kind.count:,} branches, exchanged as wholes{_pooled(kind)}"] if kind.count > 1 else []),
        *([f"in their order: {', '.join(fixed)}"] if fixed else []),
        *([f"kept in order by primitives without a rule: {', '.join(unknown)}"] if unknown else []),
        *([f"not used, since outputs change: {_named(found, found.dropped)}"] if found.dropped else []),
    ]
    return (table if found.found else ["no units may change places"]) + notes


def _size(kind: Kind, place: int) -> str:
    s = kind.symmetries.found[place]
    if s.outer >= 0:
        return f"{s.size:,} in each of the {kind.symmetries.found[s.outer].size:,} above"
    return f"{s.size:,} in every slice" if s.within else f"{s.size:,}"


def _pooled(kind: Kind) -> str:
    return f"; their {kind.count * kind.symmetries.found[0].size:,} units also one by one" if kind.pools else ""


def _named(found: Symmetries, several: Sequence[Any]) -> str:
    return "; ".join(f"{s.size:,} in {', '.join(found.leaves(s))}" for s in several)


def _against(kind: Kind) -> Any:
    """The words for a rescaling: leaves with their exponents."""
    owners = kind.symmetries.layout.owners

    def words(rescaling: Rescaling) -> str:
        pairs = zip(rescaling.symmetry.members, rescaling.exponents, strict=True)
        found = {kind.symmetries.layout.names[owners[b][0]]: e for (b, _), e in pairs if e}
        return ", ".join(f"{name}^{e:g}" for name, e in found.items())

    return words
