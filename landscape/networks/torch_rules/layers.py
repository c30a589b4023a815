"""Products, convolutions, normalisations and attention."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from landscape.networks.torch_rules.elementwise import aligned
from landscape.networks.torch_rules.reductions import safe_softmax, vector_norm

Rule = Callable[..., Any]


def _plus(x: jax.Array, bias: jax.Array | None) -> jax.Array:
    return x if bias is None else jnp.add(*aligned(x, bias))


def _linear(x: jax.Array, weight: jax.Array, bias: jax.Array | None = None) -> jax.Array:
    return _plus(jnp.matmul(x, weight.T), bias)


def _added_product(bias: jax.Array, x: jax.Array, y: jax.Array, *, beta: Any = 1, alpha: Any = 1) -> jax.Array:
    product = jnp.matmul(x, y)
    return _plus(product if alpha == 1 else alpha * product, bias if beta == 1 else beta * bias)


def _bilinear(x: jax.Array, y: jax.Array, weight: jax.Array, bias: jax.Array | None = None) -> jax.Array:
    return _plus(jnp.einsum("...i,oij,...j->...o", x, weight, y), bias)


def _distances(x: jax.Array, y: jax.Array, order: float, mode: int | None = None) -> jax.Array:
    """‖x_i − y_j‖ for all pairs."""
    return vector_norm(x[..., :, None, :] - y[..., None, :, :], order, [-1])


def _einsum(equation: str, arrays: Sequence[jax.Array], *, path: Any = None) -> jax.Array:
    return jnp.einsum(equation.replace(" ", ""), *arrays)


def per_axis(value: Any, n: int) -> list[int]:
    """One number for each of n axes, where one may stand for all."""
    values = list(value) if isinstance(value, Sequence) else [value]
    return values * n if len(values) == 1 else values


def _convolution(
    x: jax.Array,
    weight: jax.Array,
    bias: jax.Array | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
) -> jax.Array:
    """Any number of spatial axes, channels first."""
    n = weight.ndim - 2
    stride, padding, dilation, more = (per_axis(v, n) for v in (stride, padding, dilation, output_padding))
    widths, spread = [(p, p) for p in padding], [1] * n
    if transposed:
        reach = [d * (k - 1) - p for d, k, p in zip(dilation, weight.shape[2:], padding, strict=True)]
        widths, spread, stride = [(r, r + m) for r, m in zip(reach, more, strict=True)], stride, [1] * n
        weight = _turned(weight, groups)
    found = lax.conv_general_dilated(
        x, weight, stride, widths, lhs_dilation=spread, rhs_dilation=dilation, feature_group_count=groups
    )
    return found if bias is None else found + bias.reshape(1, -1, *[1] * n)


def _turned(weight: jax.Array, groups: int) -> jax.Array:
    """Weights [inputs, outputs / groups, ...] of a transposed convolution as those of a plain one, windows reversed."""
    inputs, outputs, *window = weight.shape
    weight = jnp.flip(weight, range(2, weight.ndim)).reshape(groups, inputs // groups, outputs, *window)
    return jnp.swapaxes(weight, 1, 2).reshape(groups * outputs, inputs // groups, *window)


def _along_channels(x: jax.Array, weight: jax.Array | None, bias: jax.Array | None) -> jax.Array:
    """x weight + bias, one of each for every channel (axis 1)."""
    shape = (1, -1, *[1] * (x.ndim - 2))
    x = x if weight is None else x * weight.reshape(shape)
    return x if bias is None else x + bias.reshape(shape)


def _with_statistics(x: Any, weight: Any, bias: Any, mean: jax.Array, var: jax.Array, eps: float) -> jax.Array:
    """BatchNorm as one factor and one summand a channel."""
    factor = lax.rsqrt(var + eps) if weight is None else weight * lax.rsqrt(var + eps)
    return _along_channels(x, factor, -mean * factor if bias is None else bias - mean * factor)


def _batch_norm(
    x: Any, weight: Any, bias: Any, mean: Any, var: Any, training: bool, momentum: float, eps: float, cudnn: bool = True
) -> jax.Array:
    return _with_statistics(x, weight, bias, mean, var, eps)  # whoever traces refuses training


def _batch_norm_legit(x: Any, weight: Any, bias: Any, mean: Any, var: Any, momentum: float, eps: float) -> Any:
    return (_with_statistics(x, weight, bias, mean, var, eps), None, None)


def _standardised(x: jax.Array, axes: tuple[int, ...], eps: float) -> jax.Array:
    centred = x - x.mean(axes, keepdims=True)
    return centred * lax.rsqrt((centred * centred).mean(axes, keepdims=True) + eps)


def _instance_norm(
    x: Any,
    weight: Any,
    bias: Any,
    mean: Any,
    var: Any,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    cudnn: bool = True,
) -> jax.Array:
    if not use_input_stats:
        return _with_statistics(x, weight, bias, mean, var, eps)
    return _along_channels(_standardised(x, tuple(range(2, x.ndim)), eps), weight, bias)


def _layer_norm(
    x: Any, shape: Sequence[int], weight: Any = None, bias: Any = None, eps: float = 1e-5, cudnn: bool = True
) -> jax.Array:
    found = _standardised(x, tuple(range(-len(shape), 0)), eps)
    return _plus(found if weight is None else jnp.multiply(*aligned(found, weight)), bias)


def _group_norm(
    x: Any, groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5, cudnn: bool = True
) -> jax.Array:
    found = _standardised(x.reshape(x.shape[0], groups, -1), (2,), eps)
    return _along_channels(found.reshape(x.shape), weight, bias)


def _rms_norm(x: jax.Array, shape: Sequence[int], weight: Any = None, eps: float | None = None) -> jax.Array:
    axes = tuple(range(-len(shape), 0))
    eps = float(jnp.finfo(x.dtype).eps) if eps is None else eps
    found = x * lax.rsqrt((x * x).mean(axes, keepdims=True) + eps)
    return found if weight is None else jnp.multiply(*aligned(found, weight))


def _attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array | None = None,
    dropout: float = 0.0,
    causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> jax.Array:
    """softmax(Q Kᵀ scale + mask) V; heads of keys and values may be shared by several of the queries."""
    if enable_gqa:
        key, value = (jnp.repeat(t, query.shape[-3] // t.shape[-3], axis=-3) for t in (key, value))
    scores = jnp.matmul(query, jnp.swapaxes(key, -1, -2)) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if causal:
        mask = jnp.tril(jnp.ones(scores.shape[-2:], bool))
    if mask is None:
        return jnp.matmul(jax.nn.softmax(scores, -1), value)
    scores, kept = aligned(scores, mask)
    scores = jnp.where(kept, scores, -jnp.inf) if kept.dtype == jnp.bool_ else scores + kept
    return jnp.matmul(safe_softmax(scores), value)


RULES: dict[str, Rule] = {
    "_cdist_forward.default": _distances,
    "linalg_inv_ex.default": lambda x, check_errors=False: (jnp.linalg.inv(x), None),
    "linalg_matrix_exp.default": jax.scipy.linalg.expm,
    **dict.fromkeys(("bmm.default", "dot.default", "matmul.default", "mm.default", "mv.default"), jnp.matmul),
    **dict.fromkeys(("addmm.default", "addmv.default", "baddbmm.default"), _added_product),
    "_native_batch_norm_legit_no_training.default": _batch_norm_legit,
    "batch_norm.default": _batch_norm,
    "bilinear.default": _bilinear,
    "convolution.default": _convolution,
    "einsum.default": _einsum,
    "group_norm.default": _group_norm,
    "instance_norm.default": _instance_norm,
    "layer_norm.default": _layer_norm,
    "linear.default": _linear,
    "rms_norm.default": _rms_norm,
    "scaled_dot_product_attention.default": _attention,
}
