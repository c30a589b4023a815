"""Which axes of a weight count its output units, as a traced function uses it: the filters of [Li18] in every layout.

The free axes of a matrix product do, and the feature axis of a convolution; of a table of embeddings the axes that are
not looked up. A parameter is followed through transpositions, reshapes, slices, casts and functions of its entries to
its uses: a product with anything that is no parameter, a lookup, or arithmetic with activations.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from jax.extend import core as jcore

from landscape.compiler.interpreter import Equation, interpret, read

Axes = frozenset[int]
NONE: Axes = frozenset()


@dataclass(frozen=True)
class Units:
    """What a trace says of one parameter.

    Attributes:
        axes: The axes that count output units; None where the trace does not determine them.
        vector: Whether it is a bias, a scale or the like: an array of one axis that no product contracts.
    """

    axes: Axes | None = None
    vector: bool = False


class _Image(NamedTuple):
    """A parameter inside a value: its own axes along every axis of the value, and those that loops run over."""

    leaf: int
    axes: tuple[Axes, ...]
    outer: Axes = NONE


class _Fact(NamedTuple):
    """The parameters that a value consists of, and whether it is an activation."""

    images: tuple[_Image, ...] = ()
    active: bool = False


ACTIVE = _Fact((), True)


@dataclass
class _Uses:
    """How one parameter is used: its output axes in products (None if unclear) and lookups; entries, axes of loops."""

    products: set[Axes | None] = field(default_factory=set)
    lookups: set[Axes | None] = field(default_factory=set)
    entries: bool = False
    looped: Axes = NONE


def output_axes(closed: jcore.ClosedJaxpr, parameters: int) -> list[Units]:
    """The output axes of a function's parameters.

    Args:
        closed: The function, by `jax.make_jaxpr`; its first inputs are the parameters, the others examples.
        parameters: Number of the parameters' arrays.

    >>> import jax, jax.numpy as jnp
    >>> closed = jax.make_jaxpr(lambda w, x: w @ x)(jnp.ones((5, 3)), jnp.ones(3))
    >>> output_axes(closed, 1)
    [Units(axes=frozenset({0}), vector=False)]
    """
    uses = [_Uses() for _ in range(parameters)]
    shapes = [_shape(v) for v in closed.jaxpr.invars[:parameters]]
    given = [_Fact((_Image(n, _own(shape)),)) for n, shape in enumerate(shapes)]
    _walk(closed.jaxpr, [*given, *[ACTIVE] * (len(closed.jaxpr.invars) - parameters)], uses)
    return [_found(use, shape) for use, shape in zip(uses, shapes, strict=True)]


def _found(use: _Uses, shape: Sequence[int]) -> Units:
    single = sum(n > 1 for d, n in enumerate(shape) if d not in use.looped) <= 1
    for known in (use.products, use.lookups):
        if known:
            axes = next(iter(known)) if len(known) == 1 else None
            return Units(axes, single and axes == NONE.union(*_own(shape)))
    return Units(None, len(shape) <= 1 or (use.entries and single))


def _own(shape: Sequence[int]) -> tuple[Axes, ...]:
    return tuple(frozenset({d}) for d in range(len(shape)))


def _shape(atom: Any) -> tuple[int, ...]:
    return atom.aval.shape


def _walk(jaxpr: Any, given: Sequence[_Fact], uses: list[_Uses]) -> list[_Fact]:
    """The facts of a jaxpr's outputs."""

    def literal(_: jcore.Literal) -> _Fact:
        return _Fact()

    env: dict[Any, _Fact] = {v: _Fact() for v in jaxpr.constvars} | dict(zip(jaxpr.invars, given, strict=True))
    interpret(jaxpr.eqns, env, lambda e, facts: _outputs(e, facts, uses), literal)
    return [read(env, v, literal) for v in jaxpr.outvars]


def _outputs(e: Equation, facts: list[_Fact], uses: list[_Uses]) -> Sequence[_Fact]:
    """The facts of an equation's outputs; uses of parameters are noted on the way."""
    name = e.primitive.name
    if name in ("scan", "while", "cond"):
        {"scan": _scan, "while": _while, "cond": _cond}[name](e.params, facts, uses)
        return [ACTIVE] * len(e.outvars)
    inner = _called(e)
    if inner is not None:
        return _walk(inner, facts, uses)
    if name == "dot_general":
        return [_dot(e, facts, uses)]
    if name == "conv_general_dilated":
        return [_convolution(e, facts, uses)]
    if name in ("gather", "dynamic_slice"):
        return [_lookup(e, facts, uses)]
    return [_moved(e, facts, uses, _shape(outvar)) for outvar in e.outvars]


def _called(e: Equation) -> Any:
    """The function that an equation calls with all its operands, such as one under `jit`; else None."""
    found = (e.params.get(name) for name in ("jaxpr", "call_jaxpr", "fun_jaxpr"))
    inner = next((getattr(x, "jaxpr", x) for x in found if x is not None), None)
    return inner if inner is not None and len(inner.invars) == len(e.invars) else None


def _scan(params: Any, facts: list[_Fact], uses: list[_Uses]) -> None:
    fixed, carried = params["num_consts"], params["num_consts"] + params["num_carry"]
    turns = [
        fact._replace(images=tuple(_Image(n, axes[1:], outer | axes[0]) for n, axes, outer in fact.images))
        for fact in facts[carried:]
    ]
    _entries(facts[fixed:carried], uses)
    _walk(params["jaxpr"].jaxpr, [*facts[:fixed], *[ACTIVE] * (carried - fixed), *turns], uses)


def _while(params: Any, facts: list[_Fact], uses: list[_Uses]) -> None:
    test, body = params["cond_nconsts"], params["body_nconsts"]
    carry = facts[test + body :]
    _entries(carry, uses)
    _walk(params["body_jaxpr"].jaxpr, [*facts[test : test + body], *[ACTIVE] * len(carry)], uses)


def _cond(params: Any, facts: list[_Fact], uses: list[_Uses]) -> None:
    for branch in params["branches"]:
        _walk(branch.jaxpr, facts[1:], uses)


def _entries(facts: Sequence[_Fact], uses: list[_Uses]) -> None:
    for fact in facts:
        for image in fact.images:
            uses[image.leaf].entries = True
            uses[image.leaf].looped |= image.outer


def _dot(e: Equation, facts: list[_Fact], uses: list[_Uses]) -> _Fact:
    if facts[0].images and facts[1].images:  # of two parameters: neither is a layer of its own
        return _Fact()
    for fact, contracted in zip(facts, e.params["dimension_numbers"][0], strict=True):
        for image in fact.images:
            free = [d for d in range(len(image.axes)) if d not in contracted]
            uses[image.leaf].products.add(_apart(image, free))
    return ACTIVE


def _convolution(e: Equation, facts: list[_Fact], uses: list[_Uses]) -> _Fact:
    _entries(facts[:1], uses)
    for image in facts[1].images:
        uses[image.leaf].products.add(_apart(image, [e.params["dimension_numbers"].rhs_spec[0]]))
    return ACTIVE


def _apart(image: _Image, free: Sequence[int]) -> Axes | None:
    """The parameter's axes along the free axes of a value; None where the other axes have a part of these."""
    found = [NONE.union(*(a for d, a in enumerate(image.axes) if (d in free) == kind)) for kind in (True, False)]
    return None if found[0] & found[1] else found[0] | image.outer


def _lookup(e: Equation, facts: list[_Fact], uses: list[_Uses]) -> _Fact:
    """A slice of a parameter where the place is fixed; else the rows of a table, whose other axes count the units."""
    table, shape, sizes = facts[0], _shape(e.invars[0]), e.params["slice_sizes"]
    kept, where, several = range(len(shape)), range(len(shape)), False
    if e.primitive.name == "gather":
        numbers, index = e.params["dimension_numbers"], _shape(e.invars[1])
        gone = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
        kept, where = [d for d in kept if d not in gone], numbers.offset_dims
        several = math.prod(index[:-1]) > 1
    if several or any(fact.active for fact in facts[1:]):
        for image in table.images:
            uses[image.leaf].lookups.add(_apart(image, [d for d in kept if sizes[d] == shape[d]]))
        return ACTIVE
    place = dict(zip(where, kept, strict=True))
    rank = len(_shape(e.outvars[0]))

    def sliced(axes: tuple[Axes, ...]) -> tuple[Axes, ...]:
        return tuple(axes[place[d]] if d in place else NONE for d in range(rank))

    images = [_Image(n, sliced(axes), outer | _lost(axes, sliced(axes))) for n, axes, outer in table.images]
    return _Fact(tuple(images), table.active)


def _moved(e: Equation, facts: list[_Fact], uses: list[_Uses], shape: tuple[int, ...]) -> _Fact:
    """The parameters in an output that has their entries, elsewhere or each by itself; activations end them."""
    if any(fact.active for fact in facts):
        _entries(facts, uses)
        return ACTIVE
    pairs = [(image, _shape(v)) for v, fact in zip(e.invars, facts, strict=True) for image in fact.images]
    found = [(image, _axes(e, image.axes, old, shape)) for image, old in pairs]
    return _Fact(tuple(_Image(i.leaf, axes, i.outer | _lost(i.axes, axes)) for i, axes in found if axes is not None))


def _lost(old: tuple[Axes, ...], new: tuple[Axes, ...]) -> Axes:
    """Axes of which a slice of length one was taken: every place on them has output units of its own."""
    return NONE.union(*old) - NONE.union(*new)


def _axes(e: Equation, axes: tuple[Axes, ...], old: Sequence[int], new: Sequence[int]) -> tuple[Axes, ...] | None:
    """The parameter's axes along those of an output; None where the equation mixes entries."""
    name, params = e.primitive.name, e.params
    if name == "transpose":
        return tuple(axes[d] for d in params["permutation"])
    if name == "broadcast_in_dim":
        place = {d: a for d, a, n in zip(params["broadcast_dimensions"], axes, old, strict=True) if n == new[d]}
        return tuple(place.get(d, NONE) for d in range(len(new)))
    if name == "squeeze":
        return tuple(a for d, a in enumerate(axes) if d not in params["dimensions"])
    if name == "reshape":
        return None if 0 in old else _regrouped(axes, old, new)
    mixing = name.startswith(("cum", "reduce", "sort", "argsort", "fft", "scatter"))
    if mixing or len(old) != len(new):
        return None
    return tuple(NONE if n == 1 != m else a for a, n, m in zip(axes, old, new, strict=True))


def _regrouped(axes: tuple[Axes, ...], old: Sequence[int], new: Sequence[int]) -> tuple[Axes, ...]:
    """Axes after a reshape: runs of old and new axes of equal size go together."""
    found, left = [NONE] * len(new), [d for d, n in enumerate(old) if n != 1]
    right = [d for d, n in enumerate(new) if n != 1]
    while left and right:
        one, other = [left.pop(0)], [right.pop(0)]
        while (a := math.prod(old[d] for d in one)) != (b := math.prod(new[d] for d in other)):
            (one if a < b else other).append((left if a < b else right).pop(0))
        for d in other:
            found[d] = NONE.union(*(axes[k] for k in one))
    return tuple(found)
