"""Interval arithmetic over a traced function: bounds of f and of its derivative on a box of parameters.

`bounds(f, lo, hi)` interprets the jaxpr of f with intervals. Every operation is rounded outwards by a few units in the
last place. An operation without a rule is refused, never estimated.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from landscape.duality.certified.interval_rules import (
    BILINEAR,
    RULES,
    STRUCTURAL,
    Bounds,
    bilinear,
    is_point,
    structural,
)


class NoRule(ValueError):
    """The function uses an operation that has no interval rule."""


class Enclosure(NamedTuple):
    """What is known of a scalar function on a box.

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

    >>> found = bounds(lambda w: (w * w).sum(), Bounds(jnp.array([-1.0, 2.0]), jnp.array([1.0, 3.0])))
    >>> float(found.lo) <= 4.0 and float(found.hi) >= 10.0
    True
    """
    closed, shape = jax.make_jaxpr(f, return_shape=True)(*(box.lo for box in boxes))
    outputs = _interpret(closed.jaxpr, closed.consts, list(boxes))
    return jax.tree.unflatten(jax.tree.structure(shape), outputs)


def enclose(f: Callable[[jax.Array], jax.Array], lo: jax.Array, hi: jax.Array) -> Enclosure:
    """Bounds of a scalar function on the box lo ≤ w ≤ hi ([p]), of its value at the centre and of its derivative.

    The bounds of f are the better of the natural ones and of f(centre) + slope·(w − centre). The second kind presumes
    that f is continuous, as Theorem 1 does.
    """
    centre, half = (lo + hi) / 2, (hi - lo) / 2 * (1 + 4 * jnp.finfo(lo.dtype).eps)
    both = jax.jacfwd(lambda w: (f(w), f(w)), has_aux=True)
    ends = jnp.stack([lo, centre]), jnp.stack([hi, centre])
    slope, value = jax.vmap(lambda a, b: bounds(both, Bounds(a, b)))(*ends)
    slope_lo, slope_hi = _known(slope.lo[0], -jnp.inf), _known(slope.hi[0], jnp.inf)
    steep = jnp.sum(half * jnp.maximum(jnp.abs(slope_lo), jnp.abs(slope_hi)))
    low = jnp.fmax(value.lo[0], value.lo[1] - steep)
    high = jnp.fmin(value.hi[0], value.hi[1] + steep)
    return Enclosure(_known(low, -jnp.inf), _known(high, jnp.inf), value.lo[1], value.hi[1], slope_lo, slope_hi)


def _known(end: jax.Array, fill: float) -> jax.Array:
    """An end that could not be computed says nothing."""
    return jnp.where(jnp.isnan(end), fill, end)


def _interpret(jaxpr: Any, constants: list[Any], arguments: list[Bounds]) -> list[Bounds]:
    """Evaluate a jaxpr with bounds in place of arrays."""
    known: dict[Any, Bounds] = {}
    origin: dict[Any, Any] = {}

    def read(atom: Any) -> Bounds:
        if isinstance(atom, core.Literal):
            value = jnp.asarray(atom.val)
            return Bounds(value, value)
        return known[atom]

    known.update(zip(jaxpr.constvars, [Bounds(c, c) for c in map(jnp.asarray, constants)], strict=True))
    known.update(zip(jaxpr.invars, arguments, strict=True))
    for eqn in jaxpr.eqns:
        results = _apply(eqn, read, origin)
        known.update(zip(eqn.outvars, results, strict=True))
        origin.update(dict.fromkeys(eqn.outvars, eqn))
    return [read(atom) for atom in jaxpr.outvars]


def _apply(eqn: Any, read: Callable[[Any], Bounds], origin: dict[Any, Any]) -> list[Bounds]:
    """One operation on bounds."""
    name, inputs = eqn.primitive.name, [read(atom) for atom in eqn.invars]
    inner = next((eqn.params[key] for key in ("jaxpr", "call_jaxpr", "fun_jaxpr") if key in eqn.params), None)
    if inner is not None and name not in ("scan", "while", "cond"):
        jaxpr, constants = (inner.jaxpr, inner.consts) if hasattr(inner, "jaxpr") else (inner, [])
        return _interpret(jaxpr, constants, inputs)
    if all(map(is_point, inputs)):
        values = eqn.primitive.bind(*(box.lo for box in inputs), **eqn.params)
        return [Bounds(v, v) for v in (values if eqn.primitive.multiple_results else [values])]
    decided = _same_variable(eqn, read, origin)
    if decided is not None:
        return [decided]
    if name in RULES:
        return [RULES[name](eqn.params, *inputs)]
    if name in BILINEAR:
        return [bilinear(eqn.primitive, eqn.params, *inputs)]
    moved = structural(eqn.primitive, eqn.params, inputs) if name in STRUCTURAL else None
    if moved is not None:
        return moved
    raise NoRule(
        f"There is no interval rule for the operation '{name}', so bounds of this function cannot be certified.\n"
        "  Write the branch without it, or give a Lipschitz constant (lipschitz=…)."
    )


def _same_variable(eqn: Any, read: Callable[[Any], Bounds], origin: dict[Any, Any]) -> Bounds | None:
    """Operands known to be the same, x·x and x ≠ x, or related, x = max(x, y) in the derivative of max."""
    name = eqn.primitive.name
    if name not in ("mul", "eq", "ne"):
        return None
    a, b = eqn.invars
    if a is b:
        same = jnp.full(eqn.outvars[0].aval.shape, name == "eq")
        return RULES["square"]({}, read(a)) if name == "mul" else Bounds(same, same)
    for this, that in ((a, b), (b, a)) if name == "eq" else ():
        made = None if isinstance(that, core.Literal) else origin.get(that)
        if made is not None and made.primitive.name in ("max", "min"):
            other = [v for v in made.invars if not _identical(v, this)]
            if len(other) == 1:
                order = "ge" if made.primitive.name == "max" else "le"
                found = RULES[order]({}, read(this), read(other[0]))
                return Bounds(*(jnp.broadcast_to(v, eqn.outvars[0].aval.shape) for v in found))
    return None


def _identical(a: Any, b: Any) -> bool:
    if isinstance(a, core.Literal) and isinstance(b, core.Literal):
        return bool(np.array_equal(a.val, b.val))
    return a is b
