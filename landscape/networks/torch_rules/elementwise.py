"""Elementwise operations and activations; ranks are aligned as PyTorch does, before JAX sees them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy import special

Rule = Callable[..., Any]


def aligned(*values: Any) -> list[Any]:
    """Arrays with leading axes of length one, so that all have the same rank; numbers stay numbers."""
    rank = max(jnp.ndim(v) for v in values)
    return [v if jnp.ndim(v) in (0, rank) else v.reshape((1,) * (rank - v.ndim) + v.shape) for v in values]


def _broadcasting(f: Rule) -> Rule:
    return lambda *values: f(*aligned(*values))


def _scaled(f: Rule) -> Rule:
    """add, sub and rsub take a factor of the second operand."""
    return lambda x, y, alpha=1: f(*aligned(x, y if isinstance(alpha, int) and alpha == 1 else alpha * y))


def _divide(x: Any, y: Any, *, rounding_mode: str | None = None) -> jax.Array:
    x, y = aligned(x, y)
    if rounding_mode == "floor":
        return jnp.floor_divide(x, y)
    return jnp.trunc(jnp.true_divide(x, y)) if rounding_mode == "trunc" else jnp.true_divide(x, y)


def _clamp(x: jax.Array, least: Any = None, most: Any = None) -> jax.Array:
    # NaN stays NaN, and both bounds may be arrays, as in PyTorch.
    x = x if least is None else jnp.maximum(*aligned(x, least))
    return x if most is None else jnp.minimum(*aligned(x, most))


def _masked_fill(x: jax.Array, mask: jax.Array, value: Any) -> jax.Array:
    return jnp.where(*aligned(mask, value, x))


def _elu(x: jax.Array, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> jax.Array:
    below = jnp.where(x > 0, 0.0, x)  # so that the branch not taken has a finite derivative
    return jnp.where(x > 0, scale * x, scale * alpha * jnp.expm1(input_scale * below))


def _softplus(x: jax.Array, beta: float = 1.0, threshold: float = 20.0) -> jax.Array:
    return jnp.where(beta * x > threshold, x, jax.nn.softplus(beta * x) / beta)


def _gelu(x: jax.Array, approximate: str = "none") -> jax.Array:
    return jax.nn.gelu(x, approximate=approximate == "tanh")


def _prelu(x: jax.Array, weight: jax.Array) -> jax.Array:
    slope = weight.reshape((-1,) + (1,) * (x.ndim - 2)) if weight.size > 1 else weight.reshape(())
    return jnp.where(x > 0, x, jnp.multiply(*aligned(x, slope)))


def _logit(x: jax.Array, eps: float | None = None) -> jax.Array:
    return special.logit(x if eps is None else jnp.clip(x, eps, 1 - eps))


def _to_copy(x: jax.Array, *, dtype: Any = None) -> jax.Array:
    return x if dtype is None else x.astype(dtype)


def _copy(x: jax.Array, source: jax.Array, non_blocking: bool = False) -> jax.Array:
    return jnp.broadcast_to(source, x.shape)


def _rrelu(x: jax.Array, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False) -> jax.Array:
    return jax.nn.leaky_relu(x, (lower + upper) / 2)  # whoever traces refuses training


def _dropout(x: jax.Array, rate: float, train: bool) -> jax.Array:
    return x  # whoever traces refuses those that are active


UNARY: dict[str, Rule] = {
    "abs": jnp.abs,
    "acos": jnp.arccos,
    "acosh": jnp.arccosh,
    "asin": jnp.arcsin,
    "asinh": jnp.arcsinh,
    "atan": jnp.arctan,
    "atanh": jnp.arctanh,
    "bitwise_not": jnp.invert,
    "ceil": jnp.ceil,
    "cos": jnp.cos,
    "cosh": jnp.cosh,
    "digamma": special.digamma,
    "erf": special.erf,
    "erfc": special.erfc,
    "erfinv": special.erfinv,
    "exp": jnp.exp,
    "exp2": jnp.exp2,
    "expm1": jnp.expm1,
    "floor": jnp.floor,
    "hardsigmoid": jax.nn.hard_sigmoid,
    "hardswish": jax.nn.hard_silu,
    "isfinite": jnp.isfinite,
    "isinf": jnp.isinf,
    "isnan": jnp.isnan,
    "lgamma": special.gammaln,
    "log": jnp.log,
    "log10": jnp.log10,
    "log1p": jnp.log1p,
    "log2": jnp.log2,
    "log_sigmoid": jax.nn.log_sigmoid,
    "logical_not": jnp.logical_not,
    "mish": jax.nn.mish,
    "neg": jnp.negative,
    "reciprocal": jnp.reciprocal,
    "relu": jax.nn.relu,
    "relu6": jax.nn.relu6,
    "round": jnp.round,
    "rsqrt": lax.rsqrt,
    "selu": jax.nn.selu,
    "sgn": jnp.sign,
    "sigmoid": jax.nn.sigmoid,
    "sign": jnp.sign,
    "silu": jax.nn.silu,
    "sin": jnp.sin,
    "sinh": jnp.sinh,
    "sqrt": jnp.sqrt,
    "square": jnp.square,
    "tan": jnp.tan,
    "tanh": jnp.tanh,
    "trunc": jnp.trunc,
}
"""Functions of one array, overload "default"."""

COMPARISONS: dict[str, Rule] = {
    "eq": jnp.equal,
    "ge": jnp.greater_equal,
    "gt": jnp.greater,
    "le": jnp.less_equal,
    "lt": jnp.less,
    "ne": jnp.not_equal,
    "bitwise_and": jnp.bitwise_and,
    "bitwise_or": jnp.bitwise_or,
    "bitwise_xor": jnp.bitwise_xor,
    "fmod": jnp.fmod,
    "copysign": jnp.copysign,
    "mul": jnp.multiply,
    "remainder": jnp.remainder,
}
"""Functions of an array and another, or a number: overloads "Tensor" and "Scalar"."""

BINARY: dict[str, Rule] = {
    "atan2": jnp.arctan2,
    "hypot": jnp.hypot,
    "floor_divide": jnp.floor_divide,
    "logical_and": jnp.logical_and,
    "logical_or": jnp.logical_or,
    "logical_xor": jnp.logical_xor,
    "maximum": jnp.maximum,
    "minimum": jnp.minimum,
}
"""Functions of two arrays, overload "default"."""


def _same(x: jax.Array, *, memory_format: Any = None) -> jax.Array:
    return x


RULES: dict[str, Rule] = {
    **{f"{name}.default": f for name, f in UNARY.items()},
    **{f"{name}.default": _broadcasting(f) for name, f in BINARY.items()},
    **{f"{name}.{form}": _broadcasting(f) for name, f in COMPARISONS.items() for form in ("Tensor", "Scalar")},
    **{f"{name}.default": _same for name in ("alias", "clone", "contiguous", "detach", "lift_fresh_copy")},
    **{f"add.{form}": _scaled(jnp.add) for form in ("Tensor", "Scalar")},
    **{f"sub.{form}": _scaled(jnp.subtract) for form in ("Tensor", "Scalar")},
    **{f"rsub.{form}": lambda x, y, alpha=1: _scaled(jnp.subtract)(y, x, alpha) for form in ("Tensor", "Scalar")},
    **{f"div.{form}": _divide for form in ("Tensor", "Scalar", "Tensor_mode", "Scalar_mode")},
    **{f"pow.{form}": _broadcasting(jnp.power) for form in ("Tensor_Tensor", "Tensor_Scalar", "Scalar")},
    **{f"clamp.{form}": _clamp for form in ("default", "Tensor")},
    **{f"clamp_min.{form}": _clamp for form in ("default", "Tensor")},
    **{f"clamp_max.{form}": lambda x, most: _clamp(x, None, most) for form in ("default", "Tensor")},
    **{f"masked_fill.{form}": _masked_fill for form in ("Scalar", "Tensor")},
    **{f"where.{form}": _broadcasting(jnp.where) for form in ("self", "ScalarSelf", "ScalarOther", "Scalar")},
    "_to_copy.default": _to_copy,
    "copy.default": _copy,
    "dropout.default": _dropout,
    "elu.default": _elu,
    "gelu.default": _gelu,
    "hardtanh.default": lambda x, least=-1.0, most=1.0: _clamp(x, least, most),
    "ldexp.Tensor": _broadcasting(lambda x, power: x * jnp.exp2(power)),
    "leaky_relu.default": lambda x, slope=0.01: jax.nn.leaky_relu(x, slope),
    "logit.default": _logit,
    "prelu.default": _prelu,
    "rrelu.default": _rrelu,
    "softplus.default": _softplus,
}
