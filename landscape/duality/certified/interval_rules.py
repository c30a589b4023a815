"""Interval rules of single operations: [lo, hi] in, [lo, hi] out, rounded outwards."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class NoRule(ValueError):
    """The function uses an operation that has no interval rule."""


class Bounds(NamedTuple):
    """Elementwise bounds; a constant has the same array twice. Of booleans: certainly true, possibly true.

    An end that is infinite or nan says nothing of that side. No rule turns a nan into a number; a comparison with it is
    possible.
    """

    lo: Any
    hi: Any


Rule = Callable[..., Bounds]
"""rule(parameters, *operands)"""

ULPS = 8
"""Units in the last place by which results are rounded outwards; operations that are less accurate say so."""


def is_point(box: Bounds) -> bool:
    """Whether the value is a constant."""
    return box.lo is box.hi


def outward(lo: jax.Array, hi: jax.Array, scale: Any = 0.0, ulps: Any = ULPS) -> Bounds:
    """Rounding: the bounds moved apart by `ulps` of their own size or of `scale`.

    Raises:
        NoRule: Integers, whose arithmetic wraps around.
    """
    if not jnp.issubdtype(lo.dtype, jnp.inexact):
        raise NoRule("There is no interval rule for arithmetic on integers that depend on the parameters.")
    eps = ulps * jnp.finfo(lo.dtype).eps
    tiny = jnp.finfo(lo.dtype).tiny
    return Bounds(lo - eps * jnp.maximum(jnp.abs(lo), scale) - tiny, hi + eps * jnp.maximum(jnp.abs(hi), scale) + tiny)


def _increasing(f: Callable[[Any], Any], least: float = -math.inf, most: float = math.inf) -> Rule:
    """f does not decrease and has values in [least, most]."""

    def rule(params: dict[str, Any], x: Bounds) -> Bounds:
        lo, hi = outward(f(x.lo), f(x.hi))
        return Bounds(jnp.maximum(lo, least), jnp.minimum(hi, most))

    return rule


def _monotone(f: Callable[..., Any]) -> Rule:
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
    lo, hi = outward(functools.reduce(jnp.minimum, corners), functools.reduce(jnp.maximum, corners))
    same = ((a.lo >= 0) & (b.lo >= 0)) | ((a.hi <= 0) & (b.hi <= 0))
    opposite = ((a.lo >= 0) & (b.hi <= 0)) | ((a.hi <= 0) & (b.lo >= 0))
    return Bounds(jnp.where(same, jnp.maximum(lo, 0.0), lo), jnp.where(opposite, jnp.minimum(hi, 0.0), hi))


def _ends(x: Bounds) -> tuple[jax.Array, ...]:
    return (x.lo,) if is_point(x) else (x.lo, x.hi)


def _product(x: jax.Array, y: jax.Array) -> jax.Array:
    """x·y with 0·inf = 0: an end of 0 means 0, and ends that say nothing still stand for numbers."""
    return jnp.where((x == 0) | (y == 0), 0, x * y)


def _div(params: dict[str, Any], a: Bounds, b: Bounds) -> Bounds:
    zero = (b.lo <= 0) & (b.hi >= 0)
    safe = outward(*(jnp.where(zero, 1.0, 1 / jnp.where(zero, 1.0, v)) for v in (b.hi, b.lo)))
    lo, hi = _mul(params, a, safe)
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
    lo, hi = outward(base.lo**n, base.hi**n, ulps=ULPS * max(n, 1))
    return Bounds(jnp.maximum(lo, 0.0), hi) if n % 2 == 0 else Bounds(lo, hi)


def _pow(params: dict[str, Any], x: Bounds, power: Bounds) -> Bounds:
    """Of a base that is not negative; below 0 only whole powers are defined, and of those nothing is said."""
    broken = (power.lo == power.hi) & (power.lo != jnp.round(power.lo))
    base = Bounds(jnp.maximum(x.lo, 0.0), jnp.maximum(x.hi, 0.0))
    corners = [b**p for b in _ends(base) for p in _ends(power)]
    lo, hi = outward(functools.reduce(jnp.minimum, corners), functools.reduce(jnp.maximum, corners), ulps=8 * ULPS)
    known = (x.lo >= 0) | broken
    return Bounds(jnp.where(known, jnp.maximum(lo, 0.0), -jnp.inf), jnp.where(known, hi, jnp.inf))


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


def _from(least: float, f: Callable[[Any], Any], x: Bounds, ulps: Any = ULPS) -> Bounds:
    """An increasing function defined above `least`, where it tends to −∞; below there are no values to bound."""
    lo, hi = outward(*(f(jnp.where(v <= least, 1.0, v)) for v in x), ulps=ulps)
    return Bounds(jnp.where(x.lo <= least, -jnp.inf, lo), jnp.where(x.hi <= least, -jnp.inf, hi))


def _log(params: dict[str, Any], x: Bounds) -> Bounds:
    return _from(0.0, jnp.log, x)


def _log1p(params: dict[str, Any], x: Bounds) -> Bounds:
    """XLA's polynomial is off by 122 units in the last place near −0.41."""
    return _from(-1.0, jnp.log1p, x, jnp.where(x.lo < -0.25, 32 * ULPS, ULPS))


def _exp2(params: dict[str, Any], x: Bounds) -> Bounds:
    """exp(x log 2) in XLA: the relative error grows with |x|."""
    far = jnp.minimum(jnp.maximum(jnp.abs(x.lo), jnp.abs(x.hi)), 1100.0)
    lo, hi = outward(jnp.exp2(x.lo), jnp.exp2(x.hi), ulps=ULPS + far)
    return Bounds(jnp.maximum(lo, 0.0), hi)


def _erfc(params: dict[str, Any], x: Bounds) -> Bounds:
    """exp(−x²) in its tail: the relative error grows with x²."""
    far = jnp.clip(x.hi, 0.0, 30.0) ** 2
    lo, hi = outward(jax.lax.erfc(x.hi), jax.lax.erfc(x.lo), ulps=2 * ULPS + far)
    return Bounds(jnp.maximum(lo, 0.0), jnp.minimum(hi, 2.0))


def _sqrt(params: dict[str, Any], x: Bounds) -> Bounds:
    """On the part of the interval where it is defined."""
    lo, hi = outward(*(jnp.sqrt(jnp.maximum(v, 0.0)) for v in x))
    return Bounds(jnp.maximum(lo, 0.0), hi)


def _rsqrt(params: dict[str, Any], x: Bounds) -> Bounds:
    root = _sqrt(params, x)
    one = jnp.ones_like(x.lo)
    return _div(params, Bounds(one, one), root)


def _ge(params: dict[str, Any], a: Bounds, b: Bounds) -> Bounds:
    """What is not certainly false is possible, a comparison with nan too."""
    possible = ~(a.hi < b.lo)
    return Bounds((a.lo >= b.hi) & possible, possible)


def _gt(params: dict[str, Any], a: Bounds, b: Bounds) -> Bounds:
    possible = ~(a.hi <= b.lo)
    return Bounds((a.lo > b.hi) & possible, possible)


def _eq(params: dict[str, Any], a: Bounds, b: Bounds) -> Bounds:
    certain = (a.lo == a.hi) & (b.lo == b.hi) & (a.lo == b.lo)
    return Bounds(certain, ~((a.lo > b.hi) | (b.lo > a.hi)))


def _not(params: dict[str, Any], x: Bounds) -> Bounds:
    return Bounds(~x.hi, ~x.lo)


def _logical(f: Callable[[Any, Any], Any]) -> Rule:
    """Of booleans; bits of integers are not monotone."""

    def rule(params: dict[str, Any], a: Bounds, b: Bounds) -> Bounds:
        if a.lo.dtype != jnp.bool_:
            raise NoRule("There is no interval rule for the bits of integers.")
        return Bounds(f(a.lo, b.lo), f(a.hi, b.hi))

    return rule


def _select(params: dict[str, Any], which: Bounds, *cases: Bounds) -> Bounds:
    """The hull of the cases that are possible; `which` counts them from 0, false before true."""
    lo, hi = cases[0]
    for k, case in enumerate(cases[1:], 1):
        certain, possible = which if which.lo.dtype == jnp.bool_ else (which.lo >= k, which.hi >= k)
        lo = jnp.where(certain, case.lo, jnp.where(possible, jnp.minimum(lo, case.lo), lo))
        hi = jnp.where(certain, case.hi, jnp.where(possible, jnp.maximum(hi, case.hi), hi))
    return Bounds(lo, hi)


def _convert(params: dict[str, Any], x: Bounds) -> Bounds:
    """Casts: to booleans x ≠ 0, to integers towards 0, to shorter floats with their rounding."""
    new = jnp.dtype(params["new_dtype"])
    if new == jnp.bool_:
        zero = jnp.zeros_like(x.lo)
        return _not(params, _eq(params, x, Bounds(zero, zero)))
    if jnp.issubdtype(new, jnp.inexact):
        lo, hi = (v.astype(new) for v in x)
        wider = jnp.issubdtype(x.lo.dtype, jnp.inexact) and jnp.promote_types(x.lo.dtype, new) == new
        return Bounds(lo, hi) if wider or x.lo.dtype == jnp.bool_ else outward(lo, hi)
    if not (jnp.issubdtype(new, jnp.signedinteger) and jnp.issubdtype(x.lo.dtype, jnp.inexact)):
        raise NoRule(f"There is no interval rule for casts from {x.lo.dtype} to {new}.")
    most = 2.0 ** (jnp.iinfo(new).bits - 2)
    fits = (x.lo > -most) & (x.hi < most)
    ends = zip(x, (-jnp.iinfo(new).max, jnp.iinfo(new).max), strict=True)
    return Bounds(*(jnp.where(fits, jnp.where(fits, v, 0.0).astype(new), limit) for v, limit in ends))


RULES: dict[str, Rule] = {
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
    "exp": _increasing(jnp.exp, 0.0),
    "exp2": _exp2,
    "log": _log,
    "log1p": _log1p,
    "expm1": _increasing(jnp.expm1, -1.0),
    "tanh": _increasing(jnp.tanh, -1.0, 1.0),
    "logistic": _increasing(jax.nn.sigmoid, 0.0, 1.0),
    "atan": _increasing(jnp.arctan),
    "erf": _increasing(jax.lax.erf, -1.0, 1.0),
    "erfc": _erfc,
    "sqrt": _sqrt,
    "rsqrt": _rsqrt,
    "sin": _sin,
    "cos": _cos,
    "ge": _ge,
    "gt": _gt,
    "le": lambda params, a, b: _ge(params, b, a),
    "lt": lambda params, a, b: _gt(params, b, a),
    "eq": _eq,
    "ne": lambda params, a, b: _not(params, _eq(params, a, b)),
    "and": _logical(jnp.bitwise_and),
    "or": _logical(jnp.bitwise_or),
    "not": _not,
    "select_n": _select,
    "convert_element_type": _convert,
}
"""Operations by name: rule(parameters, *operands)."""

PARTIAL = frozenset("div pow integer_pow exp exp2 expm1 log log1p sqrt rsqrt".split())
"""Operations whose result may be nan or infinite although their operands are not."""


def undefined(name: str, found: Bounds, operands: list[Bounds]) -> jax.Array:
    """Where an operation of `PARTIAL` may have been nan or infinite, which its bounds do not tell."""
    lost = ~(jnp.isfinite(found.lo) & jnp.isfinite(found.hi))
    return lost | (operands[0].lo < 0) if name in ("sqrt", "pow") else lost
