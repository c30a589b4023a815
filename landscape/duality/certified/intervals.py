"""Interval arithmetic over a traced function: bounds of f and of its derivative on a box of parameters.

`bounds(f, lo, hi)` interprets the jaxpr of f with intervals. Every operation is rounded outwards by a few units in the
last place; subnormal numbers count as 0, as in XLA. An operation without a rule is refused, never estimated.

Bounds hold the values that are numbers. Where an operation may be undefined (log and sqrt below 0, division by 0) the
interpreter keeps a doubt beside the bounds: a comparison with nan is false whatever the bounds say, so a comparison of
doubtful values is possible both ways.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from landscape.compiler.interpreter import Env, interpret, read
from landscape.duality.certified.interval_arrays import BILINEAR, MOVING, REDUCTIONS, STRUCTURAL, bilinear, structural
from landscape.duality.certified.interval_rules import PARTIAL, RULES, Bounds, NoRule, is_point, undefined

CALLS = frozenset(
    {"jit", "pjit", "closed_call", "core_call", "checkpoint", "remat", "remat2"}
    | {"custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"}
)
"""Operations that only call an inner jaxpr."""


class Enclosure(NamedTuple):
    """Bounds of a scalar function on a box; no end is nan.

    Attributes:
        lo: Below f on the box.
        hi: Above f on the box.
        centre_lo: Below f at the box's centre.
        centre_hi: Above f at the box's centre.
        slope_lo: Below ∂f/∂w on the box (all limits of it, at kinks), [p].
        slope_hi: Above it, [p].
    """

    lo: Any
    hi: Any
    centre_lo: Any
    centre_hi: Any
    slope_lo: Any
    slope_hi: Any


def bounds(f: Callable[..., Any], *boxes: Bounds) -> Any:
    """Bounds of f's outputs while each argument ranges over its box.

    Args:
        f: Function of arrays, traceable by JAX.
        *boxes: Lower and upper ends, arrays of the argument's shape; `Bounds(x, x)` with one array for a constant.

    Raises:
        NoRule: f uses an operation without an interval rule.

    An end that cannot be computed is infinite, never nan.

    >>> found = bounds(lambda w: (w * w).sum(), Bounds(jnp.array([-1.0, 2.0]), jnp.array([1.0, 3.0])))
    >>> float(found.lo) <= 4.0 and float(found.hi) >= 10.0
    True
    """
    closed, shape = jax.make_jaxpr(f, return_shape=True)(*(box.lo for box in boxes))
    found = _interpret(closed.jaxpr, closed.consts, [_Value(box) for box in boxes])
    return jax.tree.unflatten(jax.tree.structure(shape), [_known(value.bounds) for value in found])


def enclose(f: Callable[[jax.Array], jax.Array], lo: jax.Array, hi: jax.Array) -> Enclosure:
    """Bounds of a scalar function on the box lo ≤ w ≤ hi ([p]), of its value at the centre and of its derivative.

    The bounds of f are the better of the natural ones and of f(centre) + slope·(w − centre). The second kind presumes
    that f is continuous, as Theorem 1 does.
    """
    centre, half = halves(lo, hi)
    both = jax.jacfwd(lambda w: (f(w), f(w)), has_aux=True)
    ends = jnp.stack([lo, centre]), jnp.stack([hi, centre])
    slope, value = jax.vmap(lambda a, b: bounds(both, Bounds(a, b)))(*ends)
    slope_lo, slope_hi = slope.lo[0], slope.hi[0]
    steep = jnp.sum(
        half * jnp.maximum(jnp.abs(slope_lo), jnp.abs(slope_hi))
    )  # nan where 0·inf: the natural bounds then
    size = jnp.maximum(jnp.abs(value.lo[1]), jnp.abs(value.hi[1]))
    steep = steep + 4 * jnp.finfo(lo.dtype).eps * (len(lo) * steep + size)
    low = jnp.fmax(value.lo[0], value.lo[1] - steep)
    high = jnp.fmin(value.hi[0], value.hi[1] + steep)
    return Enclosure(low, high, value.lo[1], value.hi[1], slope_lo, slope_hi)


def _known(box: Bounds) -> Bounds:
    """Bounds whose nan ends are replaced by −∞ and ∞."""
    if not jnp.issubdtype(box.lo.dtype, jnp.inexact):
        return box
    return Bounds(jnp.where(jnp.isnan(box.lo), -jnp.inf, box.lo), jnp.where(jnp.isnan(box.hi), jnp.inf, box.hi))


def halves(lo: Any, hi: Any) -> tuple[Any, Any]:
    """Centres of cells, NumPy or JAX, and how far points of the cell lie from them in each coordinate.

    A cell a few units in the last place wide may have a corner for its centre.
    """
    xp = np if isinstance(lo, np.ndarray) else jnp
    centre = (lo + hi) / 2
    return centre, xp.maximum(hi - centre, centre - lo) * (1 + 4 * float(xp.finfo(lo.dtype).eps))


def reach(steep: np.ndarray, half: np.ndarray) -> np.ndarray:
    """Σ_j steep_j half_j along the last axis, rounded up: how far a function of slopes ≤ steep moves within a cell.

    A coordinate that does not vary adds nothing, however steep it is.
    """
    moved = np.where(half == 0, 0.0, steep) * half
    return moved.sum(-1) * (1 + 4 * half.shape[-1] * np.finfo(np.float64).eps)


class _Value(NamedTuple):
    """Bounds, and where the value may be nan or infinite: booleans that broadcast against it, or None for nowhere."""

    bounds: Bounds
    doubt: Any = None


def _interpret(jaxpr: Any, constants: list[Any], arguments: list[_Value]) -> list[_Value]:
    """Evaluate a jaxpr with bounds in place of arrays."""
    inputs = [*jaxpr.constvars, *jaxpr.invars]
    env: Env = dict(zip(inputs, [*map(_exactly, constants), *arguments], strict=True))
    origin = {v: eqn for eqn in jaxpr.eqns for v in eqn.outvars}
    interpret(jaxpr.eqns, env, lambda eqn, inputs: _apply(eqn, inputs, env, origin), _literal)
    return [read(env, atom, _literal) for atom in jaxpr.outvars]


def _exactly(constant: Any) -> _Value:
    """A constant, whose bounds are one array."""
    value = jnp.asarray(constant)
    return _Value(Bounds(value, value))


def _literal(literal: core.Literal) -> _Value:
    return _exactly(literal.val)


def _apply(eqn: Any, inputs: list[_Value], env: Env, origin: dict[Any, Any]) -> list[_Value]:
    """One operation on bounds and doubts; `origin` holds the equation that makes a variable."""
    if eqn.primitive.name in CALLS:
        inner = next(eqn.params[key] for key in ("jaxpr", "call_jaxpr", "fun_jaxpr") if key in eqn.params)
        jaxpr, constants = (inner.jaxpr, inner.consts) if hasattr(inner, "jaxpr") else (inner, [])
        return _interpret(jaxpr, constants, inputs)
    boxes = [value.bounds for value in inputs]
    if all(map(is_point, boxes)):
        values = eqn.primitive.bind(*(box.lo for box in boxes), **eqn.params)
        return list(map(_exactly, values if eqn.primitive.multiple_results else [values]))
    decided = _same_variable(eqn, boxes, env, origin)
    found = _ruled(eqn, boxes) if decided is None else [decided]
    doubts = _doubts(eqn, inputs, found)
    return [_doubted(box, doubt) for box, doubt in zip(found, doubts, strict=True)]


def _ruled(eqn: Any, boxes: list[Bounds]) -> list[Bounds]:
    """The operation's rule applied."""
    name = eqn.primitive.name
    rule = RULES.get(name) or REDUCTIONS.get(name)
    if rule is not None:
        return [rule(eqn.params, *boxes)]
    if name in BILINEAR:
        return [bilinear(eqn.primitive, eqn.params, *boxes)]
    moved = structural(eqn.primitive, eqn.params, boxes) if name in STRUCTURAL else None
    if moved is not None:
        return moved
    raise NoRule(
        f"There is no interval rule for the operation '{name}', so bounds of this function cannot be certified.\n"
        "  Write the branch without it, or give a Lipschitz constant (lipschitz=…)."
    )


def _same_variable(eqn: Any, boxes: list[Bounds], env: Env, origin: dict[Any, Any]) -> Bounds | None:
    """Operands known to be the same, x·x and x ≠ x, or related, x = max(x, y) in the derivative of max."""
    name = eqn.primitive.name
    if name not in ("mul", "eq", "ne"):
        return None
    a, b = eqn.invars
    if a is b:
        return RULES["square"]({}, boxes[0]) if name == "mul" else _equals_itself(boxes[0], name == "eq")
    for this, that, box in ((a, b, boxes[0]), (b, a, boxes[1])) if name == "eq" else ():
        made = None if isinstance(that, core.Literal) else origin.get(that)
        if made is not None and made.primitive.name in ("max", "min"):
            other = [v for v in made.invars if not _identical(v, this)]
            if len(other) == 1:
                order = "ge" if made.primitive.name == "max" else "le"
                found = RULES[order]({}, box, read(env, other[0], _literal).bounds)
                return Bounds(*(jnp.broadcast_to(v, eqn.outvars[0].aval.shape) for v in found))
    return None


def _equals_itself(x: Bounds, equal: bool) -> Bounds:
    """x = x (or x ≠ x) holds for numbers; where nothing is known of x it may be nan."""
    number = jnp.isfinite(x.lo) & jnp.isfinite(x.hi)
    return Bounds(number, jnp.ones_like(number)) if equal else Bounds(jnp.zeros_like(number), ~number)


def _identical(a: Any, b: Any) -> bool:
    if isinstance(a, core.Literal) and isinstance(b, core.Literal):
        return bool(np.array_equal(a.val, b.val))
    return a is b


def _doubts(eqn: Any, inputs: list[_Value], found: list[Bounds]) -> list[Any]:
    """Where each result may be nan or infinite: because an operand may be, or because the operation may fail."""
    name, doubts = eqn.primitive.name, [value.doubt for value in inputs]
    spread = [None] * len(found) if all(doubt is None for doubt in doubts) else _spread(eqn, inputs)
    if name in PARTIAL:
        failed = undefined(name, found[0], [value.bounds for value in inputs])
        return [failed if spread[0] is None else failed | spread[0]]
    return spread


def _spread(eqn: Any, inputs: list[_Value]) -> list[Any]:
    """Doubts of the operands carried to the results."""
    name, shapes = eqn.primitive.name, [value.bounds.lo.shape for value in inputs]
    doubts = [jnp.zeros((), bool) if value.doubt is None else value.doubt for value in inputs]
    if name == "select_n":
        first, last = (jnp.asarray(end, jnp.int32) for end in inputs[0].bounds)
        chosen = [doubt & (first <= k) & (k <= last) for k, doubt in enumerate(doubts[1:])]
        return [functools.reduce(jnp.logical_or, chosen)]
    if name in MOVING:
        full = [jnp.broadcast_to(doubt, shape) for doubt, shape in zip(doubts, shapes, strict=True)]
        moved = eqn.primitive.bind(*full, **eqn.params)
        return list(moved) if eqn.primitive.multiple_results else [moved]
    if name in RULES:
        return [functools.reduce(jnp.logical_or, doubts)]
    some = jnp.stack([jnp.any(doubt) for doubt in doubts]).any()
    return [some] * len(eqn.outvars)


def _doubted(box: Bounds, doubt: Any) -> _Value:
    """A value with its doubt. A boolean made from doubtful values may be either, and is a boolean for certain."""
    if doubt is None or box.lo.dtype != jnp.bool_:
        return _Value(box, doubt)
    return _Value(Bounds(box.lo & ~doubt, box.hi | doubt))
