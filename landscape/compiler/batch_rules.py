"""One equation of a jaxpr, run for all branches and all examples: branch axis first, example axis last.

A jaxpr traced on one branch and one example has no batch axes. Each rule here runs one of its equations on arrays that
may carry either axis in addition. Shapes only shift by one in front, so reshapes and reductions move no data, and
products keep the weight first and the examples last: the layout in which small products are fast. An equation
without a rule goes through `jax.vmap` over the axes present: correct for every primitive, perhaps slower.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core as jcore

Equation = jcore.JaxprEqn

ELEMENTWISE = frozenset(
    "abs acos acosh add add_any and asin asinh atan atan2 atanh cbrt ceil clamp conj convert_element_type copy "
    "cos cosh digamma div eq erf erf_inv erfc exp exp2 expm1 floor ge gt integer_pow is_finite le lgamma log "
    "log1p logistic lt max min mul ne neg nextafter not or pow real reduce_precision rem round rsqrt select_n "
    "sign sin sinh sqrt square stop_gradient sub tan tanh xor".split()
)
REDUCTIONS = frozenset("reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or argmax argmin".split())
CUMULATIVE = frozenset("cumsum cumprod cummax cummin cumlogsumexp".split())


class Axes(NamedTuple):
    """Which axes an array has besides those of the traced program."""

    branch: bool = False
    example: bool = False


def union(axes: Sequence[Axes]) -> Axes:
    """Every axis that one of them has."""
    return Axes(any(a.branch for a in axes), any(a.example for a in axes))


def run(equation: Equation, values: Sequence[jax.Array], axes: Sequence[Axes]) -> list[jax.Array]:
    """The outputs of one equation; each has the `union` of the inputs' axes.

    Args:
        equation: Traced on one branch and one example.
        values: Its inputs, [I?, ..., n?].
        axes: Which of the two axes each input has.
    """
    name, both = equation.primitive.name, union(axes)
    if name in ELEMENTWISE:
        return [equation.primitive.bind(*_spread(values, axes, name != "select_n"), **equation.params)]
    if name == "dot_general" and not (axes[0].example and axes[1].example):
        plan = product(equation, axes)
        first, second = (values[1], values[0]) if plan.swap else values
        return [plan.multiply(plan.lay_out(first), second)]
    if name in _STRUCTURAL and both != Axes():
        return [_STRUCTURAL[name](equation, values, axes)]
    if name == "scan" and both != Axes():
        return _scan(equation, values, axes)
    return _vmapped(equation, values, axes)


def spread(value: jax.Array, axes: Axes, wanted: Axes, rank: int | None = None) -> jax.Array:
    """Insert axes of length one: the branch and example axes wanted, and between them up to the traced `rank`."""
    inner = value.shape[axes.branch : value.ndim - axes.example]
    front = value.shape[:1] if axes.branch else (1,) * wanted.branch
    back = value.shape[-1:] if axes.example else (1,) * wanted.example
    return value.reshape(*front, *(inner or (1,) * (rank or 0)), *back)


def _spread(values: Sequence[jax.Array], axes: Sequence[Axes], scalars: bool) -> list[jax.Array]:
    both = union(axes)
    rank = max(v.ndim - sum(a) for v, a in zip(values, axes, strict=True))
    aligned = [v if v.ndim == 0 and scalars else spread(v, a, both, rank) for v, a in zip(values, axes, strict=True)]
    shape = jnp.broadcast_shapes(*[v.shape for v in aligned])
    return [v if v.ndim == 0 and scalars else jnp.broadcast_to(v, shape) for v in aligned]


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
    """Plan a `dot_general` of which at most one factor has the example axis.

    Args:
        equation: The traced product.
        axes: Of its two factors.
        fold: Sum over branches inside the contraction; both factors must have the branch axis.
    """
    (left, right), (left_batch, right_batch) = equation.params["dimension_numbers"]
    swap = axes[0].example and not axes[1].example
    sides = [
        (left, left_batch, axes[0], _rank(equation.invars[0])),
        (right, right_batch, axes[1], _rank(equation.invars[1])),
    ]
    (c1, b1, x1, n1), (c2, b2, x2, n2) = reversed(sides) if swap else sides
    shift1, shift2 = int(x1.branch), int(x2.branch)
    free1 = [d for d in range(n1) if d not in (*c1, *b1)]
    free2 = [d for d in range(n2) if d not in (*c2, *b2)]
    shared = x1.branch and x2.branch
    own1, own2 = [0] * (x1.branch and not shared), [0] * (x2.branch and not shared)
    batch1, folded = [0] * (shared and not fold), [0] * (shared and fold)
    layout = (
        *batch1,
        *(d + shift1 for d in b1),
        *own1,
        *(d + shift1 for d in free1),
        *folded,
        *(d + shift1 for d in c1),
    )
    lead = len(batch1) + len(b1)
    contracted = range(lead + len(own1) + len(free1), len(layout))
    numbers = (
        (tuple(contracted), (*folded, *(d + shift2 for d in c2))),
        (tuple(range(lead)), (*batch1, *(d + shift2 for d in b2))),
    )
    # The result's axes, in order; then the order wanted.
    found = ["I"] * len(batch1) + [f"b{d}" for d in range(len(b1))] + ["I"] * len(own1)
    found += [f"f{d}" for d in range(len(free1))]
    found += ["I"] * len(own2) + [f"s{d}" for d in range(len(free2))] + ["n"] * (x1.example or x2.example)
    outer, inner = [f"f{d}" for d in range(len(free1))], [f"s{d}" for d in range(len(free2))]
    outer, inner = (inner, outer) if swap else (outer, inner)
    wanted = ["I"] * ("I" in found) + [f"b{d}" for d in range(len(b1))] + outer + inner + ["n"] * ("n" in found)
    options = {k: equation.params[k] for k in ("precision", "preferred_element_type")}
    return Product(swap, layout, numbers, tuple(found.index(d) for d in wanted), fold, options)


def _rank(atom: Any) -> int:
    return len(atom.aval.shape)


def _shifted(equation: Equation, axes: Axes, value: jax.Array, name: str) -> jax.Array:
    params = equation.params
    dims = params[name] if isinstance(params[name], Sequence) else None
    moved = tuple(d + axes.branch for d in dims) if dims is not None else params[name] + axes.branch
    return equation.primitive.bind(value, **{**params, name: moved})


def _unary(name: str) -> Callable:
    return lambda equation, values, axes: _shifted(equation, axes[0], values[0], name)


def _whole(value: jax.Array, axes: Axes) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The lengths of the branch axis and of the example axis, each as a tuple that is empty when it is absent."""
    return value.shape[:1] if axes.branch else (), value.shape[-1:] if axes.example else ()


def _reshape(equation: Equation, values: Sequence[jax.Array], axes: Sequence[Axes]) -> jax.Array:
    if equation.params.get("dimensions") is not None:
        return _vmapped(equation, values, axes)[0]
    front, back = _whole(values[0], axes[0])
    return values[0].reshape(*front, *equation.params["new_sizes"], *back)


def _transpose(equation: Equation, values: Sequence[jax.Array], axes: Sequence[Axes]) -> jax.Array:
    branch, example = axes[0]
    inner = [d + branch for d in equation.params["permutation"]]
    return jnp.transpose(values[0], [0] * branch + inner + [values[0].ndim - 1] * example)


def _broadcast(equation: Equation, values: Sequence[jax.Array], axes: Sequence[Axes]) -> jax.Array:
    front, back = _whole(values[0], axes[0])
    shape = (*front, *equation.params["shape"], *back)
    inner = [d + len(front) for d in equation.params["broadcast_dimensions"]]
    return lax.broadcast_in_dim(values[0], shape, [0] * len(front) + inner + [len(shape) - 1] * len(back))


def _slice(equation: Equation, values: Sequence[jax.Array], axes: Sequence[Axes]) -> jax.Array:
    front, back = _whole(values[0], axes[0])
    params = equation.params
    strides = params["strides"] or (1,) * len(params["start_indices"])
    starts = (*[0] * len(front), *params["start_indices"], *[0] * len(back))
    ends = (*front, *params["limit_indices"], *back)
    return lax.slice(values[0], starts, ends, (*[1] * len(front), *strides, *[1] * len(back)))


def _concatenate(equation: Equation, values: Sequence[jax.Array], axes: Sequence[Axes]) -> jax.Array:
    both = union(axes)
    parts = [spread(v, a, both) for v, a in zip(values, axes, strict=True)]
    dimension = equation.params["dimension"] + both.branch
    front = max(p.shape[0] for p in parts) if both.branch else 0
    back = max(p.shape[-1] for p in parts) if both.example else 0

    def full(p: jax.Array) -> jax.Array:
        shape = (front, *p.shape[1:]) if both.branch else p.shape
        return jnp.broadcast_to(p, (*shape[:-1], back) if both.example else shape)

    return jnp.concatenate([full(p) for p in parts], dimension)


def _pad(equation: Equation, values: Sequence[jax.Array], axes: Sequence[Axes]) -> jax.Array:
    if axes[1] != Axes():
        return _vmapped(equation, values, axes)[0]
    none = ((0, 0, 0),)
    config = none * axes[0].branch + tuple(equation.params["padding_config"]) + none * axes[0].example
    return lax.pad(values[0], values[1], config)


_STRUCTURAL: dict[str, Callable] = {
    "reshape": _reshape,
    "transpose": _transpose,
    "broadcast_in_dim": _broadcast,
    "slice": _slice,
    "concatenate": _concatenate,
    "pad": _pad,
    "squeeze": _unary("dimensions"),
    "rev": _unary("dimensions"),
    **dict.fromkeys(REDUCTIONS, _unary("axes")),
    **dict.fromkeys(CUMULATIVE, _unary("axis")),
}


def _vmapped(equation: Equation, values: Sequence[jax.Array], axes: Sequence[Axes]) -> list[jax.Array]:
    """Any equation at all, through `jax.vmap` over the axes present."""
    f, both = as_function(equation), union(axes)
    if both.example:
        f = jax.vmap(f, tuple(-1 if a.example else None for a in axes), -1)
    if both.branch:
        f = jax.vmap(f, tuple(0 if a.branch else None for a in axes), 0)
    return list(f(*values))


def as_function(equation: Equation) -> Callable[..., list[jax.Array]]:
    """One equation as a function of its inputs, with its own derivative rule where it has one."""
    variables = [v for v in equation.invars if not isinstance(v, jcore.Literal)]
    distinct = list(dict.fromkeys(variables))
    empty = jax.make_jaxpr(lambda: ())().jaxpr
    alone = empty.replace(invars=distinct, outvars=list(equation.outvars), eqns=[equation])
    run_alone = jcore.jaxpr_as_fun(jcore.ClosedJaxpr(alone, ()))

    def f(*values: jax.Array) -> list[jax.Array]:
        pairs = zip(equation.invars, values, strict=True)
        given = {v: x for v, x in pairs if not isinstance(v, jcore.Literal)}
        return run_alone(*[given[v] for v in distinct])

    return f


def evaluate(
    jaxpr: jcore.Jaxpr, consts: Sequence[Any], values: Sequence[jax.Array], axes: Sequence[Axes]
) -> tuple[list[jax.Array], list[Axes]]:
    """Run a whole jaxpr for all branches and examples.

    Args:
        jaxpr: Traced on one branch and one example.
        consts: Its constants.
        values: Its inputs, [I?, ..., n?].
        axes: Which of the two axes each input has.
    """
    env = {v: (jnp.asarray(c), Axes()) for v, c in zip(jaxpr.constvars, consts, strict=True)}
    env |= {v: (x, a) for v, x, a in zip(jaxpr.invars, values, axes, strict=True)}

    def read(atom: Any) -> tuple[Any, Axes]:
        return (jnp.asarray(atom.val), Axes()) if isinstance(atom, jcore.Literal) else env[atom]

    for equation in jaxpr.eqns:
        pairs = [read(atom) for atom in equation.invars]
        found = [a for _, a in pairs]
        outs = run(equation, [v for v, _ in pairs], found)
        env.update((v, (x, union(found))) for v, x in zip(equation.outvars, outs, strict=True))
    results = [read(atom) for atom in jaxpr.outvars]
    return [v for v, _ in results], [a for _, a in results]


def _scan(equation: Equation, values: Sequence[jax.Array], axes: Sequence[Axes]) -> list[jax.Array]:
    """A scan whose body is itself run for all branches and examples; the time axis goes in front of both."""
    params, both = equation.params, union(axes)
    fixed, carried = params["num_consts"], params["num_consts"] + params["num_carry"]
    body = params["jaxpr"]
    size_i = next((v.shape[0] for v, a in zip(values, axes, strict=True) if a.branch), 0)
    size_n = next((v.shape[-1] for v, a in zip(values, axes, strict=True) if a.example), 0)

    def full(x: jax.Array, have: Axes) -> jax.Array:
        x = x[None] if both.branch and not have.branch else x
        x = x[..., None] if both.example and not have.example else x
        shape = (size_i, *x.shape[1:]) if both.branch else x.shape
        return jnp.broadcast_to(x, (*shape[:-1], size_n) if both.example else shape)

    def step(carry: list[jax.Array], x: list[jax.Array]) -> tuple[list[jax.Array], list[jax.Array]]:
        inputs = [*values[:fixed], *carry, *x]
        have = [*axes[:fixed], *[both] * len(carry), *axes[carried:]]
        outs, found = evaluate(body.jaxpr, body.consts, inputs, have)
        outs = [full(o, a) for o, a in zip(outs, found, strict=True)]
        return outs[: len(carry)], outs[len(carry) :]

    start = [full(v, a) for v, a in zip(values[fixed:carried], axes[fixed:carried], strict=True)]
    steps = [jnp.moveaxis(v, 1, 0) if a.branch else v for v, a in zip(values[carried:], axes[carried:], strict=True)]
    last, stacked = lax.scan(step, start, steps, length=params["length"], reverse=params["reverse"])
    return [*last, *(jnp.moveaxis(y, 0, 1) if both.branch else y for y in stacked)]
