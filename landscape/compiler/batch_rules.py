"""One equation of a jaxpr, run for all branches and all examples: branch axis first, example axis last.

A jaxpr traced on one branch and one example has no batch axes. Here its equations run on arrays that may carry either
axis in addition. A product keeps the weight first and the examples last: the layout in which small products are fast.
A scan runs its body in the same layout. Every other equation goes through `jax.vmap` over the axes present.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core as jcore

from landscape.compiler.interpreter import Equation, as_function, interpret, read


class Axes(NamedTuple):
    """Batch axes of an array; the traced program has neither."""

    branch: bool = False
    example: bool = False


def union(axes: Sequence[Axes]) -> Axes:
    """The axes that at least one of them has."""
    return Axes(any(a.branch for a in axes), any(a.example for a in axes))


def run(equation: Equation, values: Sequence[jax.Array], axes: Sequence[Axes]) -> list[jax.Array]:
    """The outputs of one equation; each has the `union` of the inputs' axes.

    Args:
        equation: Traced on one branch and one example.
        values: Its inputs, [I?, ..., n?].
        axes: Which of the two axes each input has.
    """
    if equation.primitive.name == "dot_general" and not (axes[0].example and axes[1].example):
        plan = product(equation, axes)
        first, second = (values[1], values[0]) if plan.swap else values
        return [plan.multiply(plan.lay_out(first), second)]
    if equation.primitive.name == "scan":
        return _scan(equation, values, axes)
    f, both = as_function(equation), union(axes)
    values, axes = _aligned(equation, values, axes)
    if both.example:
        f = jax.vmap(f, tuple(-1 if a.example else None for a in axes), -1)
    if both.branch:
        f = jax.vmap(f, tuple(0 if a.branch else None for a in axes), 0)
    return list(f(*values))


def _aligned(
    equation: Equation, values: Sequence[jax.Array], axes: Sequence[Axes]
) -> tuple[Sequence[jax.Array], Sequence[Axes]]:
    """The operands of an elementwise equation with the same batch axes; those of other equations stay as they are.

    `vmap` then transposes none of them: with a bias, 8-8-8 takes a third of the time.
    """
    shapes, outs = list(map(_shape, equation.invars)), list(map(_shape, equation.outvars[:1]))
    if len(shapes) < 2 or any(shape and [shape] != outs for shape in shapes):
        return values, axes
    both, full = union(axes), _filling(values, axes)
    arrays = [bool(shape) or (have != Axes() and not any(shapes)) for shape, have in zip(shapes, axes, strict=True)]
    triples = list(zip(values, axes, arrays, strict=True))
    return [full(v, a) if array else v for v, a, array in triples], [both if array else a for _, a, array in triples]


def _shape(atom: Any) -> tuple[int, ...]:
    return atom.aval.shape


def _filling(values: Sequence[jax.Array], axes: Sequence[Axes]) -> Callable[[jax.Array, Axes], jax.Array]:
    """A function that broadcasts an array to every batch axis that one of `values` has."""
    both = union(axes)
    size_i = next((v.shape[0] for v, a in zip(values, axes, strict=True) if a.branch), 0)
    size_n = next((v.shape[-1] for v, a in zip(values, axes, strict=True) if a.example), 0)

    def full(x: jax.Array, have: Axes) -> jax.Array:
        x = x[None] if both.branch and not have.branch else x
        x = x[..., None] if both.example and not have.example else x
        shape = (size_i, *x.shape[1:]) if both.branch else x.shape
        return jnp.broadcast_to(x, (*shape[:-1], size_n) if both.example else shape)

    return full


class Product(NamedTuple):
    """How a `dot_general` is run: weight first, examples last.

    Attributes:
        swap: Whether the traced right-hand side is the first factor.
        layout: Permutation that brings the first factor's contracted axes last.
        numbers: Dimension numbers for the laid-out first factor and the second one.
        restore: Permutation of the result to [I?, batch, left, right, n?].
        folds: Whether the sum over branches is part of the contraction.
        options: Precision and element type of the traced product.
    """

    swap: bool
    layout: tuple[int, ...]
    numbers: Any
    restore: tuple[int, ...]
    folds: bool
    options: dict[str, Any]

    def lay_out(self, first: jax.Array) -> jax.Array:
        """The first factor with its contracted axes last."""
        return jnp.transpose(first, self.layout)

    def multiply(self, first: jax.Array, second: jax.Array) -> jax.Array:
        """The product of the laid-out first factor with the second."""
        return jnp.transpose(lax.dot_general(first, second, self.numbers, **self.options), self.restore)


def product(equation: Equation, axes: Sequence[Axes], fold: bool = False) -> Product:
    """How to run a `dot_general` of which at most one factor has the example axis.

    Every axis gets a name: "I" branches, "n" examples, "b0" … the traced batch axes, "c0" … the contracted pairs,
    "left0" … and "right0" … what remains of either side.

    Args:
        equation: The traced product.
        axes: Of its two factors.
        fold: Sum over branches inside the contraction; both factors must have the branch axis.
    """
    pairs = zip(*equation.params["dimension_numbers"], strict=True)  # (contracted, batch) of either side
    sides = zip(("left", "right"), equation.invars, pairs, axes, strict=True)
    left, right = (_names(side, v, of, batch, a) for side, v, (of, batch), a in sides)
    swap = axes[0].example and not axes[1].example
    first, second = (right, left) if swap else (left, right)

    shared = [name for name in first if name in second]
    contracted = [name for name in shared if name[0] == "c" or (fold and name == "I")]
    batch = [name for name in shared if name not in contracted]
    kept_first, kept_second = ([name for name in side if name not in shared] for side in (first, second))
    laid_out = [*batch, *kept_first, *contracted]
    multiplied = [*batch, *kept_first, *kept_second]  # in this order `lax.dot_general` returns the axes
    in_order = [name for name in dict.fromkeys(["I", *batch, *left, *right]) if name in multiplied]
    restored = sorted(in_order, key="n".__eq__)  # the examples last

    numbers = tuple(
        (tuple(map(laid_out.index, names)), tuple(map(second.index, names))) for names in (contracted, batch)
    )
    options = {k: equation.params[k] for k in ("precision", "preferred_element_type")}
    layout, restore = tuple(map(first.index, laid_out)), tuple(map(multiplied.index, restored))
    return Product(swap, layout, numbers, restore, fold, options)


def _names(side: str, atom: Any, contracted: Sequence[int], batch: Sequence[int], axes: Axes) -> list[str]:
    """The names of one factor's axes, in order."""
    known = {d: f"c{k}" for k, d in enumerate(contracted)} | {d: f"b{k}" for k, d in enumerate(batch)}
    inner = [known.get(d, f"{side}{d}") for d in range(len(_shape(atom)))]
    return ["I"] * axes.branch + inner + ["n"] * axes.example


def _scan(equation: Equation, values: Sequence[jax.Array], axes: Sequence[Axes]) -> list[jax.Array]:
    """A scan whose body is itself run for all branches and examples; the time axis goes in front of both."""
    params, both = equation.params, union(axes)
    fixed, carried = params["num_consts"], params["num_consts"] + params["num_carry"]
    body: jcore.ClosedJaxpr = params["jaxpr"]
    full = _filling(values, axes)

    def step(carry: list[jax.Array], x: list[jax.Array]) -> tuple[list[jax.Array], list[jax.Array]]:
        inputs = [*values[:fixed], *carry, *x]
        outs = _run_all(body, inputs, [*axes[:fixed], *[both] * len(carry), *axes[carried:]])
        found = [full(*out) for out in outs]
        return found[: len(carry)], found[len(carry) :]

    start = [full(v, a) for v, a in zip(values[fixed:carried], axes[fixed:carried], strict=True)]
    steps = [jnp.moveaxis(v, 1, 0) if a.branch else v for v, a in zip(values[carried:], axes[carried:], strict=True)]
    last, stacked = lax.scan(step, start, steps, length=params["length"], reverse=params["reverse"])
    return [*last, *(jnp.moveaxis(y, 0, 1) if both.branch else y for y in stacked)]


def _run_all(
    closed: jcore.ClosedJaxpr, values: Sequence[jax.Array], axes: Sequence[Axes]
) -> list[tuple[jax.Array, Axes]]:
    """The outputs of a jaxpr for all branches and examples, with their batch axes."""
    jaxpr = closed.jaxpr
    env: dict[Any, Any] = {v: (jnp.asarray(c), Axes()) for v, c in zip(jaxpr.constvars, closed.consts, strict=True)}
    env |= dict(zip(jaxpr.invars, zip(values, axes, strict=True), strict=True))

    def constant(literal: jcore.Literal) -> tuple[jax.Array, Axes]:
        return jnp.asarray(literal.val), Axes()

    def rule(equation: Equation, pairs: list[Any]) -> list[tuple[jax.Array, Axes]]:
        inputs, have = zip(*pairs, strict=True) if pairs else ((), ())
        return [(out, union(have)) for out in run(equation, inputs, have)]

    interpret(jaxpr.eqns, env, rule, constant)
    return [read(env, atom, constant) for atom in jaxpr.outvars]
