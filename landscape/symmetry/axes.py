"""Axes of traced arrays as terms that are unified like types: an atom, a row-major product, or a concatenation."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal


@dataclass(eq=False, slots=True)
class Axis:
    """One axis of an array, or a part of one.

    Attributes:
        size: Its length.
        kind: An atom has no structure. A product is reshaped row-major from its parts. A concatenation lays its parts
            one after the other.
        parts: The factors of a product, or the segments of a concatenation.
        pinned: Whether the entries of an atom must keep their order.
        alias: The axis that this one was found to be equal to.
    """

    size: int
    kind: Literal["atom", "product", "concatenation"] = "atom"
    parts: tuple["Axis", ...] = ()
    pinned: bool = False
    alias: "Axis | None" = None


def atoms_of(shape: Sequence[int], pinned: bool = False) -> list[Axis]:
    """A new atom for every axis of an array."""
    return [Axis(int(n), pinned=pinned) for n in shape]


def root(axis: Axis) -> Axis:
    """The axis that stands for this one and for everything it was unified with."""
    while axis.alias is not None:
        axis = axis.alias
    return axis


def pin(axis: Axis) -> None:
    """Fix the order of the entries along an axis."""
    axis = root(axis)
    axis.pinned = True
    for part in axis.parts:
        pin(part)


def is_pinned(axis: Axis) -> bool:
    """Whether no entries along an axis may change places."""
    axis = root(axis)
    if axis.kind == "atom":
        return axis.pinned or axis.size == 1
    return all(map(is_pinned, axis.parts))


def atoms(axis: Axis) -> list[Axis]:
    """The atoms that an axis is made of, in order."""
    axis = root(axis)
    return [axis] if axis.kind == "atom" else [a for part in axis.parts for a in atoms(part)]


def factors(axis: Axis) -> list[Axis]:
    """The factors of an axis, of which the last varies fastest; factors of size 1 are left out."""
    axis = root(axis)
    if axis.kind == "product":
        return [f for part in axis.parts for f in factors(part)]
    return [axis] if axis.size != 1 else []


def segments(axis: Axis) -> list[Axis]:
    """The segments of an axis, from the first entry to the last."""
    axis = root(axis)
    return [s for part in axis.parts for s in segments(part)] if axis.kind == "concatenation" else [axis]


def product(axes: Sequence[Axis]) -> Axis:
    """The axis that several adjacent axes become in a reshape.

    >>> product([Axis(2), Axis(3)]).size
    6
    """
    parts = tuple(f for axis in axes for f in factors(axis))
    if len(parts) == 1:
        return parts[0]
    return Axis(prod(part.size for part in parts), "product" if parts else "atom", parts)


def concatenation(axes: Sequence[Axis]) -> Axis:
    """The axis of several arrays laid one after the other."""
    parts = tuple(s for axis in axes if root(axis).size for s in segments(axis))
    if len(parts) == 1:
        return parts[0]
    return Axis(sum(part.size for part in parts), "concatenation" if parts else "atom", parts)


def unify(one: Axis, other: Axis) -> None:
    """Both axes are permuted alike from now on; where their structures do not fit, both are pinned.

    >>> heads, inner = Axis(2), Axis(3)
    >>> flat = Axis(6)
    >>> unify(flat, product([heads, inner]))
    >>> [a is b for a, b in zip(atoms(flat), (heads, inner))]
    [True, True]
    """
    one, other = root(one), root(other)
    if one is other:
        return
    if one.size != other.size:
        _pin_both(one, other)
    elif one.kind == "atom":
        _replace(one, other)
    elif other.kind == "atom":
        _replace(other, one)
    elif one.kind == other.kind:
        _meet(one, other)
    else:
        _mix(*((one, other) if one.kind == "product" else (other, one)))


def _replace(atom: Axis, term: Axis) -> None:
    """An atom turns out to be this term."""
    if atom.pinned:
        pin(term)
    atom.alias = term


def _pin_both(one: Axis, other: Axis) -> None:
    pin(one)
    pin(other)


def _meet(one: Axis, other: Axis) -> None:
    """Two products, or two concatenations: parts are unified in order, larger atoms are divided where they must be."""
    listed = factors if one.kind == "product" else segments
    left, right = listed(one)[::-1], listed(other)[::-1]  # stacks: the first part is on top
    while left and right:
        a, b = root(left.pop()), root(right.pop())
        if a.size == b.size:
            unify(a, b)
            continue
        small, large, stack = (a, b, right) if a.size < b.size else (b, a, left)
        (left if stack is right else right).append(small)
        parts = _divided(large, small.size, one.kind)
        if not parts:
            _pin_both(one, other)
            return
        stack.extend(parts[::-1])


def _divided(large: Axis, first: int, kind: str) -> list[Axis]:
    """The parts of an axis of which the first has the given size, or may be divided further; none if there are none."""
    if large.kind == kind:
        return factors(large) if kind == "product" else segments(large)
    if large.kind != "atom" or (kind == "product" and large.size % first):
        return []
    rest = large.size // first if kind == "product" else large.size - first
    parts = atoms_of((first, rest))
    _replace(large, product(parts) if kind == "product" else concatenation(parts))
    return parts


def _mix(one: Axis, other: Axis) -> None:
    """A product and a concatenation, each of whose segments holds whole multiples of the product's inner part."""
    first, *rest = factors(one)
    inner, parts = product(rest), segments(other)
    if any(part.size % inner.size for part in parts):
        _pin_both(one, other)
        return
    pin(first)
    other.alias = one
    for part in parts:
        count = part.size // inner.size
        unify(part, inner if count == 1 else product([Axis(count, pinned=True), inner]))
