"""Sums, means, extremes, norms, cumulative sums and softmax."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from landscape.networks.torch_rules.shapes import axes_of

Rule = Callable[..., Any]


def _reduction(f: Rule) -> Rule:
    """A reduction over named axes, or over all."""

    def rule(x: jax.Array, dims: Any = None, keepdim: bool = False, *, dtype: Any = None) -> jax.Array:
        return f(x if dtype is None else x.astype(dtype), axis=axes_of(dims, x.ndim), keepdims=keepdim)

    return rule


def _whole(f: Rule) -> Rule:
    """The same reduction over all axes."""
    return lambda x, *, dtype=None: f(x if dtype is None else x.astype(dtype))


def _extreme(f: Rule, position: Rule) -> Rule:
    """Largest or smallest values along one axis, and where they are."""

    def rule(x: jax.Array, dim: int, keepdim: bool = False) -> tuple[jax.Array, jax.Array]:
        return f(x, axis=dim, keepdims=keepdim), position(x, axis=dim, keepdims=keepdim)

    return rule


def _position(f: Rule) -> Rule:
    def rule(x: jax.Array, dim: int | None = None, keepdim: bool = False) -> jax.Array:
        return f(x, axis=dim, keepdims=keepdim)

    return rule


def _var(x: jax.Array, dims: Any = None, *, correction: Any = None, keepdim: bool = False) -> jax.Array:
    return jnp.var(x, axes_of(dims, x.ndim), ddof=1 if correction is None else correction, keepdims=keepdim)


def _var_mean(x: jax.Array, dims: Any = None, *, correction: Any = None, keepdim: bool = False) -> Any:
    mean = jnp.mean(x, axes_of(dims, x.ndim), keepdims=keepdim)
    return _var(x, dims, correction=correction, keepdim=keepdim), mean


def vector_norm(
    x: jax.Array, order: Any = 2, dims: Any = None, keepdim: bool = False, *, dtype: Any = None
) -> jax.Array:
    """(Σ |x|^p)^(1/p) over some axes."""
    x, axes = x if dtype is None else x.astype(dtype), axes_of(dims, x.ndim)
    if order in (float("inf"), float("-inf")):
        return (jnp.max if order > 0 else jnp.min)(jnp.abs(x), axis=axes, keepdims=keepdim)
    if order == 0:
        return (x != 0).sum(axes, keepdims=keepdim).astype(x.dtype)
    if order == 1:
        return jnp.abs(x).sum(axes, keepdims=keepdim)
    if order == 2:
        total = (x * x).sum(axes, keepdims=keepdim)
        return jnp.where(total > 0, jnp.sqrt(jnp.where(total > 0, total, 1)), 0)  # with derivative 0 at 0
    return (jnp.abs(x) ** order).sum(axes, keepdims=keepdim) ** (1 / order)


def _softmax(f: Rule) -> Rule:
    def rule(x: jax.Array, dim: int, dtype: Any = None) -> jax.Array:
        # The decomposed form says whether half precision becomes single precision; the result's type tells it anyway.
        return f(x if dtype is None or isinstance(dtype, bool) else x.astype(dtype), axis=dim)

    return rule


def safe_softmax(x: jax.Array, dim: int = -1, dtype: Any = None) -> jax.Array:
    """Softmax in which a row of −∞ alone becomes a row of zeros."""
    x = x if dtype is None else x.astype(dtype)
    some = (x > -jnp.inf).any(dim, keepdims=True)
    return jnp.where(some, jax.nn.softmax(jnp.where(some, x, 0), dim), 0)


def _cumulative_extreme(f: Rule) -> Rule:
    """Largest or smallest value so far, and where it is."""

    def rule(x: jax.Array, dim: int) -> tuple[jax.Array, jax.Array]:
        best, axis = f(x, axis=dim % x.ndim), dim % x.ndim
        own = lax.broadcasted_iota(jnp.int32, x.shape, axis)
        return best, lax.cummax(jnp.where(x == best, own, 0), axis)

    return rule


def _cumulative(f: Rule) -> Rule:
    return lambda x, dim, *, dtype=None: f(x if dtype is None else x.astype(dtype), axis=dim)


RULES: dict[str, Rule] = {
    **dict.fromkeys(("_log_softmax.default", "log_softmax.int"), _softmax(jax.nn.log_softmax)),
    **dict.fromkeys(("_softmax.default", "softmax.int"), _softmax(jax.nn.softmax)),
    **{f"{name}.{form}": _reduction(f) for name, f in (("all", jnp.all), ("any", jnp.any)) for form in ("dim", "dims")},
    **{f"{name}.default": _whole(f) for name, f in (("all", jnp.all), ("any", jnp.any), ("max", jnp.max))},
    **{f"{name}.default": _whole(f) for name, f in (("mean", jnp.mean), ("min", jnp.min), ("sum", jnp.sum))},
    "_safe_softmax.default": safe_softmax,
    "amax.default": _reduction(jnp.max),
    "amin.default": _reduction(jnp.min),
    "argmax.default": _position(jnp.argmax),
    "argmin.default": _position(jnp.argmin),
    "cummax.default": _cumulative_extreme(lax.cummax),
    "cummin.default": _cumulative_extreme(lax.cummin),
    "cumprod.default": _cumulative(jnp.cumprod),
    "cumsum.default": _cumulative(jnp.cumsum),
    "linalg_vector_norm.default": vector_norm,
    "logcumsumexp.default": lambda x, dim: lax.cumlogsumexp(x, dim % x.ndim),
    "logsumexp.default": _reduction(jax.nn.logsumexp),
    "max.dim": _extreme(jnp.max, jnp.argmax),
    "mean.dim": _reduction(jnp.mean),
    "min.dim": _extreme(jnp.min, jnp.argmin),
    "prod.default": _whole(jnp.prod),
    "prod.dim_int": _reduction(jnp.prod),
    "sum.dim_IntList": _reduction(jnp.sum),
    "var.correction": _var,
    "var_mean.correction": _var_mean,
}
