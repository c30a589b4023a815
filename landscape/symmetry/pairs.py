"""K pairs of networks at once: the inner product of each, and what a permutation of its units would make of it.

The first axis of every array counts the pairs. Blocks that one symmetry alone permutes enter by the inner products of
their units, so that a step costs n² numbers however many inputs a unit has.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from landscape.symmetry.blocks import Blocks, Symmetry, rows, take

Found = Sequence[Symmetry]
Array = np.ndarray


class Roles(NamedTuple):
    """How the inner product of two networks depends on the permutations.

    Attributes:
        constant: Blocks that no symmetry permutes.
        linear: For every symmetry the blocks that it alone permutes, along one axis.
        moving: The other blocks.
        children: For every symmetry, those that permute units within its slices.
    """

    constant: list[int]
    linear: list[list[int]]
    moving: list[int]
    children: list[list[int]]


def roles_of(found: Found, count: int) -> Roles:
    """The roles of `count` blocks under these symmetries."""
    children = [[k for k, s in enumerate(found) if s.outer == g] for g in range(len(found))]
    touching = [[g for g, s in enumerate(found) for b, _ in s.members if b == k] for k in range(count)]
    alone = {k: g[0] for k, g in enumerate(touching) if len(g) == 1 and not children[g[0]]}
    linear = [[k for k, h in alone.items() if h == g] for g in range(len(found))]
    moving = [k for k, g in enumerate(touching) if g and k not in alone]
    return Roles([k for k, g in enumerate(touching) if not g], linear, moving, children)


class Pairs(NamedTuple):
    """K pairs of networks, of which the second ones are permuted.

    Attributes:
        found: The symmetries.
        roles: The roles of the blocks.
        sizes: ‖P_b‖² of every block b of all second networks.
        constant: Inner products that do not change, [K].
        linear: Inner products of units, [K, S, n, n] for every symmetry that has linear blocks.
        reference: The moving blocks of the first networks.
        params: The moving blocks of the second networks, as permuted so far.
        orders: The permutations so far, [K, S, n] for every symmetry.
    """

    found: Found
    roles: Roles
    sizes: list[float]
    constant: Array
    linear: dict[int, Array]
    reference: dict[int, Array]
    params: dict[int, Array]
    orders: dict[int, Array]

    def some(self, which: Array) -> "Pairs":
        """Some of the pairs."""
        parts = (self.linear, self.reference, self.params, self.orders)
        some = [{k: x[which] for k, x in part.items()} for part in parts]
        return Pairs(self.found, self.roles, self.sizes, self.constant[which], *some)

    def put(self, which: Array, other: "Pairs") -> None:
        """Overwrite some of the pairs."""
        for name in ("linear", "params", "orders"):
            for k, x in getattr(self, name).items():
                x[which] = getattr(other, name)[k]

    def value(self) -> Array:
        """The inner products ⟨R, P⟩, [K]."""
        units = sum((np.einsum("ksuu->k", x) for x in self.linear.values()), self.constant)
        flat = [(self.reference[b].reshape(len(x), -1), x.reshape(len(x), -1)) for b, x in self.params.items()]
        return sum((np.einsum("kq,kq->k", r, p) for r, p in flat), units)

    def scores(self, g: int, usable: Sequence[int]) -> Array | None:
        """What unit u of the first networks and unit v of the second have in common, [K, S, n, n].

        Args:
            g: A symmetry.
            usable: The blocks that count.
        """
        several = [self.linear[g]] if g in self.linear else []
        for m, (b, _) in enumerate(self.found[g].members):
            if b in usable and b in self.params:
                r, p = (units(self.found[g], m, x[b]) for x in (self.reference, self.params))
                several.append(r @ np.swapaxes(p, -1, -2))
        return sum(several[1:], several[0]) if several else None

    def permuted(self, moves: Mapping[int, Array]) -> "Pairs":
        """The pairs after further permutations, those of slices before those within slices.

        Args:
            moves: Orders [K, S, n] by symmetry.
        """
        linear, params, orders = dict(self.linear), dict(self.params), dict(self.orders)
        for g, order in sorted(moves.items()):
            s = self.found[g]
            for m, (b, _) in enumerate(s.members):
                if b in params:
                    *within, axis = s.own(m, 1)
                    params[b] = take(params[b], order, axis, *within)
            linear |= {g: take(linear[g], order, 3, 1)} if g in linear else {}
            orders[g] = np.take_along_axis(orders[g], order, -1)
            orders |= {k: take(orders[k], order, 1) for k in self.roles.children[g]}
        return self._replace(linear=linear, params=params, orders=orders)


def units(symmetry: Symmetry, member: int, x: Array) -> Array:
    """The parameters of every unit in one member, [K, S, n, rest]."""
    found = rows(x, (0, *symmetry.own(member, 1)))
    return found if symmetry.within else found[:, None]


def paired(found: Found, reference: Blocks, params: Blocks) -> Pairs:
    """The pairs of two lists of blocks [K, ...], one by one."""
    return _pairs(found, reference, params, cross=False)


def crossed(found: Found, reference: Blocks, params: Blocks) -> Pairs:
    """All I·J pairs of blocks [I, ...] and blocks [J, ...], row by row."""
    return _pairs(found, reference, params, cross=True)


def _pairs(found: Found, reference: Blocks, params: Blocks, cross: bool) -> Pairs:
    roles, count = roles_of(found, len(reference)), len(reference[0]) * (len(params[0]) if cross else 1)
    whole = Symmetry(1, ((0, 0),))
    constant = np.zeros(count)
    for b in roles.constant:
        r, p = (units(whole, 0, x[b][:, None]) for x in (reference, params))
        constant += _gram(r, p, cross)[:, 0, 0, 0]
    linear = {}
    for g, s in enumerate(found):
        alone = [m for m, (b, _) in enumerate(s.members) if b in roles.linear[g]]
        several = [[units(s, m, x[s.members[m][0]]) for x in (reference, params)] for m in alone]
        grams = [_gram(r, p, cross) for r, p in several]
        linear |= {g: sum(grams[1:], grams[0])} if grams else {}
    left = {b: np.repeat(reference[b], count // len(reference[b]), 0) for b in roles.moving}
    right = {b: np.concatenate([params[b]] * (count // len(params[b]))) for b in roles.moving}
    orders = {g: np.tile(np.arange(s.size), (count, s.slices(params, 1), 1)) for g, s in enumerate(found)}
    return Pairs(found, roles, [float(np.vdot(p, p)) for p in params], constant, linear, left, right, orders)


def _gram(r: Array, p: Array, cross: bool) -> Array:
    """Inner products of units [I, S, n, q] and [J, S, n, q]: pairwise [I, S, n, n], or for all pairs [I·J, S, n, n]."""
    if not cross:
        return r @ np.swapaxes(p, -1, -2)
    (i, slices, n, _), j = r.shape, len(p)
    flat = [r[:, k].reshape(i * n, -1) @ p[:, k].reshape(j * n, -1).T for k in range(slices)]
    apart = [x.reshape(i, n, j, n).swapaxes(1, 2) for x in flat]
    return np.stack(apart, 2).reshape(i * j, slices, n, n)
