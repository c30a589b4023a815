"""A kind of branches with everything that may be permuted or rescaled in it, and how that is said to a person."""

import textwrap
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import numpy as np

from landscape.arrays import on_disk
from landscape.arrays.trees import Signature
from landscape.networks import MultiBranch, Network, one_example
from landscape.symmetry import pooling, rescaling, symmetries
from landscape.symmetry.probes import Branch
from landscape.symmetry.rescaling import Rescaling
from landscape.symmetry.symmetries import Symmetries

Params = Any
WIDTH, COLUMN = 100, 24
"""Characters of a line, and of its first column."""
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
class _Case:
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
    few, found = jax.tree.map(lambda leaf: np.asarray(on_disk.rows(leaf, slice(FEW))), x), []
    for (branch, w), count in zip(network.groups(params), network.counts, strict=True):
        one = jax.tree.map(lambda leaf: np.asarray(leaf)[0], w)
        example = Signature.of(jax.tree.map(lambda leaf: leaf[0], few))
        found.append(Kind(count, *_found(_Case(branch, Signature.of(one), example, one, few))))
    return found


@lru_cache(64)
def _found(case: _Case) -> tuple[Symmetries, tuple[Rescaling, ...], bool]:
    branch = Branch(one_example(case.network, case.params, case.example.tree()), case.params, case.x)
    found = symmetries.find(branch)
    return found, rescaling.find(branch, found), pooling.pools(branch, found)


def lines(kind: Kind) -> list[str]:
    """What a person reads of one kind of branches: every group of units, the leaves it is in, and its rescalings."""
    found = kind.symmetries
    table = [("branches", f"{kind.count:,}{_pooled(kind)}")] if kind.count > 1 else []
    for place, s in enumerate(found.found):
        several = [r for r in kind.rescalings if r.place == place]
        if s.size > 1 or several:
            table.append((_size(kind, place), ", ".join(found.leaves(s))))
            table += [("    rescaled", _against(found, r)) for r in several]
    moved = {name for s in found.found for name in found.leaves(s)}
    fixed = ", ".join(name for name in found.layout.names if name not in moved)
    table += [("in their order", fixed)] if fixed else []
    table += [(f"    by {name}", f"{count} times, which has no rule") for name, count in found.unknown.items()]
    table += [("outputs change", f"{s.size:,} units in {', '.join(found.leaves(s))}: not used") for s in found.dropped]
    return [_line(left, right) for left, right in table]


def _line(left: str, right: str) -> str:
    """Two columns, the second wrapped."""
    return textwrap.fill(right, WIDTH, initial_indent=left.ljust(COLUMN), subsequent_indent=" " * COLUMN)


def _size(kind: Kind, place: int) -> str:
    s = kind.symmetries.found[place]
    words = f"{s.size:,} unit{'s' if s.size > 1 else ''}"
    if s.outer >= 0:
        return f"{words} in each of {kind.symmetries.found[s.outer].size:,}"
    return f"{words} in every slice" if s.within else words


def _pooled(kind: Kind) -> str:
    return f", a sum over {kind.count * kind.symmetries.found[0].size:,} units that change places" if kind.pools else ""


def _against(found: Symmetries, rescaling: Rescaling) -> str:
    """The leaves that grow with a unit's factor, against those that shrink."""
    owners, parts = found.layout.owners, []
    for sign in (1, -1):
        pairs = zip(rescaling.symmetry.members, rescaling.exponents, strict=True)
        several = {found.layout.names[owners[b][0]]: sign * e for (b, _), e in pairs if sign * e > 0}
        parts.append(", ".join(name if e == 1 else f"{name}^{e:g}" for name, e in several.items()))
    return " against ".join(part for part in parts if part)
