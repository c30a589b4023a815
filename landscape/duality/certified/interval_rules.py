"""Interval rules of single operations: [lo, hi] in, [lo, hi] out, rounded outwards."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Bounds(NamedTuple):
    """Elementwise bounds; a constant has the same array twice. Of booleans: certainly true, possibly true."""

    lo: Any
    hi: Any


ULPS = 8
"""Units in the last place by which results are rounded outwards: XLA's elementary functions are within a few."""


def is_point(box: Bounds) -> bool:
    """Whether the value is a constant."""
    return box.lo is box.hi


def outward(lo: jax.Array, hi: jax.Array, scale: Any = 0.0, ulps: int = ULPS) -> Bounds:
    """Rounding: the bounds moved apart by `ulps` of their own size or of `scale`."""
    eps = ulps * jnp.finfo(lo.dtype).eps
    tiny = jnp.finfo(lo.dtype).tiny
    return Bounds(lo - eps * jnp.maximum(jnp.abs(lo), scale) - tiny, hi + eps * jnp.maximum(jnp.abs(hi), scale) + tiny)


def _increasing(f: Callable[[Any], Any]) -> Callable[..., Bounds]:
    return lambda params, x: outward(f(x.lo), f(x.hi))


def _decreasing(f: Callable[[Any], Any]) -> Callable[..., Bounds]:
    return lambda params, x: outward(f(x.hi), f(x.lo))


def _monotone(f: Callable[..., Any]) -> Callable[..., Bounds]:
    """Not decreasing in any operand, and exact."""
    return lambda params, *xs: Bounds(f(*(x.lo for x in xs)), f(*(x.hi for x in xs)))


def _add(params: dict[str, Any], a: Bounds, b: Bounds) -> Bounds:
    return outward(a.lo + b.lo, a.hi + b.hi)


def _sub(params: dict[str, Any], a: Bounds, b: Bounds) -> Bounds:
    return outward(a.lo - b.hi, a.hi - b.lo)


def _neg(params: dict[str, Any], a: Bounds) -> Bounds:
    return Bounds(-a.hi, -a.lo)


def _mul(params: dict[str, Any], a: Bounds, b: Bounds) -> Bounds:
    corners = [_product(x, y) for x in _ends(a) for y in _ends(b)]
    lo, hi = outward(_extreme(jnp.minimum, corners), _extreme(jnp.maximum, corners))
    same = ((a.lo >= 0) & (b.lo >= 0)) | ((a.hi <= 0) & (b.hi <= 0))
    opposite = ((a.lo >= 0) & (b.hi <= 0)) | ((a.hi <= 0) & (b.lo >= 0))
    return Bounds(jnp.where(same, jnp.maximum(lo, 0.0), lo), jnp.where(opposite, jnp.minimum(hi, 0.0), hi))


def _ends(x: Bounds) -> tuple[jax.Array, ...]:
    return (x.lo,) if is_point(x) else (x.lo, x.hi)


def _product(x: jax.Array, y: jax.Array) -> jax.Array:
    """x·y with 0·inf = 0: an end of 0 means 0."""
    return jnp.where((x == 0) | (y == 0), 0.0, x * y)


def _extreme(f: Callable[[Any, Any], Any], values: list[jax.Array]) -> jax.Array:
    result = values[0]
    for value in values[1:]:
        result = f(result, value)
    return result


def _div(params: dict[str, Any], a: Bounds, b: Bounds) -> Bounds:
    zero = (b.lo <= 0) & (b.hi >= 0)
    safe = Bounds(*(jnp.where(zero, 1.0, 1 / jnp.where(zero, 1.0, v)) for v in (b.hi, b.lo)))
    lo, hi = _mul(params, a, outward(*safe))
    return Bounds(jnp.where(zero, -jnp.inf, lo), jnp.where(zero, jnp.inf, hi))


def _abs(params: dict[str, Any], x: Bounds) -> Bounds:
    return Bounds(jnp.maximum(jnp.maximum(x.lo, -x.hi), 0.0), jnp.maximum(jnp.abs(x.lo), jnp.abs(x.hi)))


def _square(params: dict[str, Any], x: Bounds) -> Bounds:
    size = _abs(params, x)
    lo, hi = outward(size.lo**2, size.hi**2)
    return Bounds(jnp.maximum(lo, 0.0), hi)


def _integer_pow(params: dict[str, Any], x: Bounds) -> Bounds:
    n = params["y"]
    if n < 0:
        one = jnp.ones_like(x.lo)
        return _div(params, Bounds(one, one), _integer_pow({"y": -n}, x))
    base = _abs(params, x) if n % 2 == 0 else x
    return outward(base.lo**n, base.hi**n, ulps=ULPS * max(n, 1))


def _pow(params: dict[str, Any], x: Bounds, power: Bounds) -> Bounds:
    """Of a base that is not negative and a constant power; otherwise nothing is known."""
    known = (x.lo >= 0) & (power.lo == power.hi)
    base = Bounds(jnp.maximum(x.lo, 0.0), jnp.maximum(x.hi, 0.0))
    ends = base.lo**power.lo, base.hi**power.lo
    lo, hi = outward(jnp.minimum(*ends), jnp.maximum(*ends), ulps=8 * ULPS)
    return Bounds(jnp.where(known, lo, -jnp.inf), jnp.where(known, hi, jnp.inf))


def _cos(params: dict[str, Any], x: Bounds, shift: float = 0.0) -> Bounds:
    """cos(x − shift): +1 if the interval holds a multiple of 2π, −1 if π plus one, otherwise the ends."""
    slack = 1e-12 * (1 + jnp.maximum(jnp.abs(x.lo), jnp.abs(x.hi)))
    first, last = x.lo - shift - slack, x.hi - shift + slack
    turns = 2 * math.pi
    top = jnp.floor(last / turns) >= jnp.ceil(first / turns)
    bottom = jnp.floor((last - math.pi) / turns) >= jnp.ceil((first - math.pi) / turns)
    a, b = jnp.cos(x.lo - shift), jnp.cos(x.hi - shift)
    lo = jnp.where(bottom, -1.0, jnp.minimum(a, b) - slack)
    hi = jnp.where(top, 1.0, jnp.maximum(a, b) + slack)
    return Bounds(jnp.maximum(lo, -1.0), jnp.minimum(hi, 1.0))


def _sin(params: dict[str, Any], x: Bounds) -> Bounds:
    return _cos(params, x, math.pi / 2)


def _sqrt(params: dict[str, Any], x: Bounds) -> Bounds:
    lo, hi = outward(jnp.sqrt(jnp.maximum(x.lo, 0.0)), jnp.sqrt(jnp.maximum(x.hi, 0.0)))
    return Bounds(jnp.maximum(lo, 0.0), hi)


def _rsqrt(params: dict[str, Any], x: Bounds) -> Bounds:
    root = _sqrt(params, x)
    one = jnp.ones_like(x.lo)
    return _div(params, Bounds(one, one), root)


def _reduce_sum(params: dict[str, Any], x: Bounds) -> Bounds:
    axes = tuple(params["axes"])
    terms = math.prod(x.lo.shape[axis] for axis in axes)
    size = jnp.maximum(jnp.abs(x.lo), jnp.abs(x.hi)).sum(axes)
    return outward(x.lo.sum(axes), x.hi.sum(axes), size, ulps=terms + 1)


def _reduce(f: Callable[..., Any]) -> Callable[..., Bounds]:
    return lambda params, x: Bounds(f(x.lo, tuple(params["axes"])), f(x.hi, tuple(params["axes"])))


def _cumsum(params: dict[str, Any], x: Bounds) -> Bounds:
    axis, reverse = params["axis"], params["reverse"]
    lo, hi, size = (jax.lax.cumsum(v, axis, reverse) for v in (x.lo, x.hi, jnp.maximum(jnp.abs(x.lo), jnp.abs(x.hi))))
    return outward(lo, hi, size, ulps=x.lo.shape[axis] + 1)


def _ge(params: dict[str, Any], a: Bounds, b: Bounds) -> Bounds:
    return Bounds(a.lo >= b.hi, a.hi >= b.lo)


def _gt(params: dict[str, Any], a: Bounds, b: Bounds) -> Bounds:
    return Bounds(a.lo > b.hi, a.hi > b.lo)


def _eq(params: dict[str, Any], a: Bounds, b: Bounds) -> Bounds:
    certain = (a.lo == a.hi) & (b.lo == b.hi) & (a.lo == b.lo)
    return Bounds(certain, (a.lo <= b.hi) & (b.lo <= a.hi))


def _not(params: dict[str, Any], x: Bounds) -> Bounds:
    return Bounds(~x.hi, ~x.lo)


def _select(params: dict[str, Any], which: Bounds, no: Bounds, yes: Bounds) -> Bounds:
    certain, possible = which

    def pick(a: jax.Array, b: jax.Array, either: jax.Array) -> jax.Array:
        return jnp.where(certain, b, jnp.where(possible, either, a))

    return Bounds(pick(no.lo, yes.lo, jnp.minimum(no.lo, yes.lo)), pick(no.hi, yes.hi, jnp.maximum(no.hi, yes.hi)))


RULES: dict[str, Callable[..., Bounds]] = {
    "add": _add,
    "add_any": _add,
    "sub": _sub,
    "neg": _neg,
    "mul": _mul,
    "div": _div,
    "abs": _abs,
    "square": _square,
    "integer_pow": _integer_pow,
    "pow": _pow,
    "max": _monotone(jnp.maximum),
    "min": _monotone(jnp.minimum),
    "clamp": _monotone(jax.lax.clamp),
    "sign": _monotone(jnp.sign),
    "floor": _monotone(jnp.floor),
    "exp": _increasing(jnp.exp),
    "exp2": _increasing(jnp.exp2),
    "log": _increasing(jnp.log),
    "log1p": _increasing(jnp.log1p),
    "expm1": _increasing(jnp.expm1),
    "tanh": _increasing(jnp.tanh),
    "logistic": _increasing(jax.nn.sigmoid),
    "atan": _increasing(jnp.arctan),
    "erf": _increasing(jax.lax.erf),
    "erfc": _decreasing(jax.lax.erfc),
    "sqrt": _sqrt,
    "rsqrt": _rsqrt,
    "sin": _sin,
    "cos": _cos,
    "reduce_sum": _reduce_sum,
    "reduce_max": _reduce(jnp.max),
    "reduce_min": _reduce(jnp.min),
    "cumsum": _cumsum,
    "ge": _ge,
    "gt": _gt,
    "le": lambda params, a, b: _ge(params, b, a),
    "lt": lambda params, a, b: _gt(params, b, a),
    "eq": _eq,
    "ne": lambda params, a, b: _not(params, _eq(params, a, b)),
    "and": lambda params, a, b: Bounds(a.lo & b.lo, a.hi & b.hi),
    "or": lambda params, a, b: Bounds(a.lo | b.lo, a.hi | b.hi),
    "not": _not,
    "select_n": _select,
}
"""Operations by name: rule(parameters, *operands)."""

STRUCTURAL = frozenset(
    {"broadcast_in_dim", "reshape", "squeeze", "transpose", "slice", "concatenate", "pad", "rev", "copy", "split"}
    | {"expand_dims", "convert_element_type", "reduce_precision", "gather", "dynamic_slice"}
)
"""Operations that only move values: applied to both ends."""

BILINEAR = frozenset({"dot_general", "conv_general_dilated"})


def structural(primitive: Any, params: dict[str, Any], inputs: list[Bounds]) -> list[Bounds] | None:
    """Both ends moved alike; None where an index depends on the parameters."""
    if any(not is_point(x) and jnp.issubdtype(x.lo.dtype, jnp.integer) for x in inputs):
        return None
    lo, hi = (primitive.bind(*(x[end] for x in inputs), **params) for end in (0, 1))
    return [Bounds(a, b) for a, b in zip(lo, hi, strict=True)] if primitive.multiple_results else [Bounds(lo, hi)]


def bilinear(primitive: Any, params: dict[str, Any], a: Bounds, b: Bounds) -> Bounds:
    """Products and convolutions in midpoint–radius form: (m ± r)(n ± s) within mn ± (|m| s + r (|n| + s))."""

    def product(x: jax.Array, y: jax.Array) -> jax.Array:
        return primitive.bind(x, y, **params)

    (m, r), (n, s) = (_middle(x) for x in (a, b))
    size = product(jnp.abs(m), jnp.abs(n))
    radius = jnp.zeros_like(size)
    if s is not None:
        radius = radius + product(jnp.abs(m), s)
    if r is not None:
        radius = radius + product(r, jnp.abs(n) if s is None else jnp.abs(n) + s)
    terms = b.lo.size
    if primitive.name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        terms = math.prod(a.lo.shape[axis] for axis in contracted)
    radius = radius * (1 + 8 * terms * jnp.finfo(size.dtype).eps)
    middle = product(m, n)
    return outward(middle - radius, middle + radius, size, ulps=4 * (terms + 2))


def _middle(x: Bounds) -> tuple[jax.Array, jax.Array | None]:
    """Midpoint and radius, None for a constant."""
    if is_point(x):
        return x.lo, None
    middle = (x.lo + x.hi) / 2
    radius = jnp.maximum(x.hi - middle, middle - x.lo)
    return middle, radius + 4 * jnp.finfo(middle.dtype).eps * (radius + jnp.abs(middle))
