"""Interval rules of operations on whole arrays: sums, products, convolutions, and what only moves values."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from landscape.duality.certified.interval_rules import Bounds, NoRule, Rule, is_point, outward


def _reduce_sum(params: dict[str, Any], x: Bounds) -> Bounds:
    axes = tuple(params["axes"])
    terms = math.prod(x.lo.shape[axis] for axis in axes)
    size = jnp.maximum(jnp.abs(x.lo), jnp.abs(x.hi)).sum(axes)
    return outward(x.lo.sum(axes), x.hi.sum(axes), size, ulps=terms + 1)


def _reduce(f: Callable[..., Any]) -> Rule:
    return lambda params, x: Bounds(f(x.lo, tuple(params["axes"])), f(x.hi, tuple(params["axes"])))


def _cumsum(params: dict[str, Any], x: Bounds) -> Bounds:
    axis, reverse = params["axis"], params["reverse"]
    lo, hi, size = (jax.lax.cumsum(v, axis, reverse) for v in (x.lo, x.hi, jnp.maximum(jnp.abs(x.lo), jnp.abs(x.hi))))
    return outward(lo, hi, size, ulps=x.lo.shape[axis] + 1)


REDUCTIONS: dict[str, Rule] = {
    "reduce_sum": _reduce_sum,
    "reduce_max": _reduce(jnp.max),
    "reduce_min": _reduce(jnp.min),
    "cumsum": _cumsum,
}
"""Operations along axes, by name: rule(parameters, operand)."""

MOVING = frozenset(
    "broadcast_in_dim reshape squeeze transpose slice concatenate pad rev copy split stack unstack".split()
)
"""Operations that put every value in a place known beforehand."""

STRUCTURAL = MOVING | {"gather", "dynamic_slice"}
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

    if not jnp.issubdtype(a.lo.dtype, jnp.inexact):
        raise NoRule("There is no interval rule for products of integers.")
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
