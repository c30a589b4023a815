"""Pooling, patches and changes of resolution; the spatial axes are the last ones, one to three."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from landscape.networks.torch_rules.layers import per_axis

Rule = Callable[..., Any]


class Windows(NamedTuple):
    """Where windows lie along n spatial axes: their size, distance, spread, and the padding in front and behind."""

    size: list[int]
    stride: list[int]
    dilation: list[int]
    padding: list[tuple[int, int]]

    def reduce(self, x: jax.Array, f: Rule, start: Any) -> jax.Array:
        """f over every window."""
        front = x.ndim - len(self.size)
        ones, none = [1] * front, [(0, 0)] * front
        shape = (ones + self.size, ones + self.stride, none + self.padding)
        return lax.reduce_window(x, start, f, *shape, window_dilation=ones + self.dilation)


def _windows(
    shape: Sequence[int], size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil: bool = False
) -> Windows:
    """PyTorch's windows: `ceil` adds windows that begin inside the array or its left padding."""
    n = len(shape)
    size = per_axis(size, n)
    stride, padding, dilation = per_axis(stride or size, n), per_axis(padding, n), per_axis(dilation, n)
    widths = []
    for length, k, s, p, d in zip(shape, size, stride, padding, dilation, strict=True):
        free = length + 2 * p - d * (k - 1) - 1
        count = (-(-free // s) if ceil else free // s) + 1
        count -= ceil and (count - 1) * s >= length + p
        widths.append((p, max(p, p + (count - 1) * s - free)))
    return Windows(size, stride, dilation, widths)


def _max_pool(n: int) -> Rule:
    def rule(
        x: jax.Array, size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil: bool = False
    ) -> jax.Array:
        return _windows(x.shape[-n:], size, stride, padding, dilation, ceil).reduce(x, lax.max, -jnp.inf)

    return rule


def _max_pool_with_indices(n: int) -> Rule:
    # The positions serve unpooling only, which has no rule.
    return lambda *arguments: (_max_pool(n)(*arguments), None)


def _avg_pool(n: int) -> Rule:
    def rule(
        x: jax.Array,
        size: Any,
        stride: Any = None,
        padding: Any = 0,
        ceil: bool = False,
        count_padding: bool = True,
        divisor: int | None = None,
    ) -> jax.Array:
        windows = _windows(x.shape[-n:], size, stride, padding, 1, ceil)
        total = windows.reduce(x, lax.add, 0.0)
        return total / (
            divisor
            or _members(x.shape[-n:], windows, padding, count_padding).reshape((1,) * (x.ndim - n) + total.shape[-n:])
        )

    return rule


def _members(shape: Sequence[int], windows: Windows, padding: Any, count_padding: bool) -> np.ndarray:
    """How many entries every window has: the array's, and with `count_padding` those of the padding that was asked for,
    but not those that `ceil` reaches beyond it."""
    factors = []
    axes = zip(shape, windows.size, windows.stride, windows.padding, per_axis(padding, len(shape)), strict=True)
    for length, k, s, (front, behind), p in axes:
        starts = np.arange(0, length + front + behind - k + 1, s) - front
        least, most = (-p, length + p) if count_padding else (0, length)
        factors.append(np.minimum(starts + k, most) - np.maximum(starts, least))
    return np.prod(np.broadcast_arrays(*np.ix_(*factors)), axis=0).astype(np.float32)


def _edges(length: int, count: int) -> list[tuple[int, int]]:
    """The windows of adaptive pooling: [⌊j L / n⌋, ⌈(j + 1) L / n⌉)."""
    return [(j * length // count, -(-(j + 1) * length // count)) for j in range(count)]


def _along(x: jax.Array, matrix: np.ndarray, axis: int) -> jax.Array:
    """One axis multiplied by a matrix [new, old]."""
    return jnp.moveaxis(jnp.matmul(jnp.moveaxis(x, axis, -1), jnp.asarray(matrix.T, x.dtype)), -1, axis)


def _adaptive_avg_pool(n: int) -> Rule:
    def rule(x: jax.Array, size: Any) -> jax.Array:
        for axis, count in zip(range(-n, 0), per_axis(size, n), strict=True):
            length = x.shape[axis]
            if length % count == 0:  # windows side by side
                inner = x.reshape(*x.shape[:axis], count, length // count, *x.shape[x.ndim + axis + 1 :])
                x = inner.mean(x.ndim + axis + 1)
                continue
            matrix = np.zeros((count, length))
            for j, (a, b) in enumerate(_edges(length, count)):
                matrix[j, a:b] = 1 / (b - a)
            x = _along(x, matrix, axis)
        return x

    return rule


def _adaptive_max_pool(n: int) -> Rule:
    def rule(x: jax.Array, size: Any) -> tuple[jax.Array, None]:
        for axis, count in zip(range(-n, 0), per_axis(size, n), strict=True):
            parts = [lax.slice_in_dim(x, a, b, axis=axis).max(axis) for a, b in _edges(x.shape[axis], count)]
            x = jnp.stack(parts, axis)
        return x, None

    return rule


def _im2col(x: jax.Array, size: Any, dilation: Any, padding: Any, stride: Any) -> jax.Array:
    single, x = x.ndim == 3, x if x.ndim == 4 else x[None]
    widths = [(p, p) for p in per_axis(padding, 2)]
    options = (per_axis(size, 2), per_axis(stride, 2), widths)
    found = lax.conv_general_dilated_patches(x, *options, rhs_dilation=per_axis(dilation, 2))
    found = found.reshape(*found.shape[:2], -1)
    return found[0] if single else found


def _new_sizes(shape: Sequence[int], sizes: Any, factors: Any) -> list[tuple[int, int, float]]:
    """Old length, new length and step between the positions read, for every axis."""
    if sizes is None:
        return [(n, math.floor(n * f), 1 / f) for n, f in zip(shape, factors, strict=True)]
    return [(n, m, n / m) for n, m in zip(shape, sizes, strict=True)]


def _nearest(n: int, shift: float = 0.0) -> Rule:
    def rule(x: jax.Array, sizes: Any, factors: Any = None) -> jax.Array:
        for axis, (old, new, step) in zip(range(-n, 0), _new_sizes(x.shape[-n:], sizes, factors), strict=True):
            # In single precision, as PyTorch: a position just below a whole number is rounded as it is there.
            where = np.floor((np.arange(new, dtype=np.float32) + np.float32(shift)) * np.float32(step)).astype(int)
            x = jnp.take(x, np.minimum(where, old - 1), axis)
        return x

    return rule


def _interpolated(n: int) -> Rule:
    """Linear, bilinear and trilinear interpolation: one matrix an axis."""

    def rule(x: jax.Array, sizes: Any, align_corners: bool, factors: Any = None) -> jax.Array:
        for axis, (old, new, step) in zip(range(-n, 0), _new_sizes(x.shape[-n:], sizes, factors), strict=True):
            places = np.arange(new)
            if align_corners:
                at = places * ((old - 1) / (new - 1) if new > 1 else 0.0)
            else:
                at = np.maximum((places + 0.5) * step - 0.5, 0)
            low = np.minimum(at.astype(int), old - 1)
            matrix = np.zeros((new, old))
            np.add.at(matrix, (places, low), 1 - (at - low))
            np.add.at(matrix, (places, np.minimum(low + 1, old - 1)), at - low)
            x = _along(x, matrix, axis)
        return x

    return rule


RULES: dict[str, Rule] = {
    **{f"max_pool{n}d.default": _max_pool(n) for n in (1, 2, 3)},
    **{f"max_pool{n}d_with_indices.default": _max_pool_with_indices(n) for n in (2, 3)},
    **{f"avg_pool{n}d.default": _avg_pool(n) for n in (1, 2, 3)},
    **{f"adaptive_avg_pool{n}d.default": _adaptive_avg_pool(n) for n in (1, 2, 3)},
    **{f"adaptive_max_pool{n}d.default": _adaptive_max_pool(n) for n in (1, 2, 3)},
    **{f"upsample_nearest{n}d.vec": _nearest(n) for n in (1, 2, 3)},
    "im2col.default": _im2col,
    "upsample_linear1d.vec": _interpolated(1),
    "upsample_bilinear2d.vec": _interpolated(2),
    "upsample_trilinear3d.vec": _interpolated(3),
}
