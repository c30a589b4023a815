"""Parameters cut into blocks, arrays each axis of which is one atom, and the symmetries that permute them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np

from landscape.symmetry.axes import Axis, factors, root, segments

Params = Any
Blocks = list[np.ndarray]


class Symmetry(NamedTuple):
    """Units that may change places without any change of the outputs.

    Attributes:
        size: Number of units n.
        members: (block, axis) pairs that are permuted alike.
        within: One axis a member, or none. With it every slice along that axis takes a permutation of its own.
        outer: Place of the symmetry that permutes the slices themselves; -1 where they keep their order.
    """

    size: int
    members: tuple[tuple[int, int], ...]
    within: tuple[int, ...] = ()
    outer: int = -1

    def slices(self, blocks: Sequence[np.ndarray], lead: int = 0) -> int:
        """How many permutations a member takes: the length of the `within` axis, or 1."""
        return blocks[self.members[0][0]].shape[self.within[0] + lead] if self.within else 1

    def own(self, member: int, lead: int = 0) -> tuple[int, ...]:
        """The axes of a member along which units are told apart: (`within`,) axis, behind `lead` further axes."""
        axis = self.members[member][1] + lead
        return (self.within[member] + lead, axis) if self.within else (axis,)


@dataclass(frozen=True, eq=False)
class Layout:
    """Which parts of which leaves the blocks are.

    Attributes:
        structure: The tree of the parameters.
        names: A name a leaf.
        axes: The axes of every leaf as terms.
    """

    structure: Any
    names: tuple[str, ...]
    axes: tuple[tuple[Axis, ...], ...]

    def explode(self, params: Params, lead: int = 0) -> Blocks:
        """The blocks of a tree of parameters [..., *shape] that has `lead` further axes in front."""
        leaves = zip(jax.tree.leaves(params), self.axes, strict=True)
        return [block for leaf, axes in leaves for block in _exploded(np.asarray(leaf), list(axes), lead)]

    def assemble(self, blocks: Sequence[np.ndarray], lead: int = 0) -> Params:
        """The tree of parameters that these blocks make up."""
        several = iter(blocks)
        return jax.tree.unflatten(self.structure, [_assembled(list(axes), lead, several) for axes in self.axes])

    @property
    def owners(self) -> list[tuple[int, list[Axis]]]:
        """The leaf and the atoms of every block."""
        return [(k, atoms) for k, axes in enumerate(self.axes) for atoms in _terms(list(axes))]


def _step(axes: list[Axis]) -> tuple[int, Axis] | None:
    """The first axis that is not an atom, and its place."""
    return next(((k, root(a)) for k, a in enumerate(axes) if root(a).kind != "atom"), None)


def _terms(axes: list[Axis]) -> list[list[Axis]]:
    """The atoms of every block of one leaf."""
    step = _step(axes)
    if step is None:
        return [list(map(root, axes))]
    k, axis = step
    parts = [factors(axis)] if axis.kind == "product" else [[s] for s in segments(axis)]
    return [terms for part in parts for terms in _terms([*axes[:k], *part, *axes[k + 1 :]])]


def _exploded(x: np.ndarray, axes: list[Axis], lead: int) -> Iterator[np.ndarray]:
    step = _step(axes)
    if step is None:
        yield x
        return
    k, axis = step
    before, after = x.shape[: lead + k], x.shape[lead + k + 1 :]
    if axis.kind == "product":
        parts = factors(axis)
        x = x.reshape(*before, *(part.size for part in parts), *after)
        yield from _exploded(x, [*axes[:k], *parts, *axes[k + 1 :]], lead)
        return
    ends = np.cumsum([s.size for s in segments(axis)])[:-1]
    for segment, piece in zip(segments(axis), np.split(x, ends, lead + k), strict=True):
        yield from _exploded(piece, [*axes[:k], segment, *axes[k + 1 :]], lead)


def _assembled(axes: list[Axis], lead: int, blocks: Iterator[np.ndarray]) -> np.ndarray:
    step = _step(axes)
    if step is None:
        return next(blocks)
    k, axis = step
    if axis.kind == "product":
        parts = factors(axis)
        x = _assembled([*axes[:k], *parts, *axes[k + 1 :]], lead, blocks)
        return x.reshape(*x.shape[: lead + k], axis.size, *x.shape[lead + k + len(parts) :])
    pieces = [_assembled([*axes[:k], s, *axes[k + 1 :]], lead, blocks) for s in segments(axis)]
    return np.concatenate(pieces, lead + k)


def take(x: np.ndarray, order: np.ndarray, axis: int, within: int | None = None) -> np.ndarray:
    """Entries of x [K, ...] along an axis in the order [K, S, n], which may differ for every slice along `within`."""
    own, index = ((axis,), order[:, 0]) if within is None else ((within, axis), order)
    index = index.reshape(*index.shape, *(1,) * (x.ndim - index.ndim))
    return np.take_along_axis(x, np.moveaxis(index, range(1, len(own) + 1), own), axis)


def permute(blocks: Sequence[np.ndarray], symmetry: Symmetry, order: np.ndarray) -> Blocks:
    """Blocks [K, ...] with the units of one symmetry in the order [K, S, n]: place u takes unit order[u]."""
    moved = list(blocks)
    for m, (b, _) in enumerate(symmetry.members):
        *within, axis = symmetry.own(m, 1)
        moved[b] = take(moved[b], order, axis, *within)
    return moved


def rows(x: np.ndarray, axes: Sequence[int]) -> np.ndarray:
    """These axes in front and all others as one, [*axes, rest]."""
    y = np.moveaxis(x, axes, range(len(axes)))
    return y.reshape(*y.shape[: len(axes)], -1)


def random_order(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Independent random permutations along the last axis."""
    return np.argsort(rng.random(shape), -1)


def generators(rng: np.random.Generator, *shape: int) -> tuple[np.ndarray, np.ndarray]:
    """Random cycles of all units, and random exchanges of two, along the last axis; together they generate the rest.

    No order is the identity, which would verify anything.
    """
    places = random_order(rng, *shape)
    cycle, swap = places.copy(), np.broadcast_to(np.arange(shape[-1]), shape).copy()
    np.put_along_axis(cycle, places, np.roll(places, 1, -1), -1)
    np.put_along_axis(swap, places[..., :2], places[..., :2][..., ::-1], -1)
    return cycle, swap
