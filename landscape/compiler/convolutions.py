"""Convolutions written so that XLA is fast on a CPU: as products where they are slow, or with channels last."""

import itertools
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from landscape.compiler.interpreter import Equation

FEW = 8
"""Most input channels at which the product over rows is faster than XLA's convolution (3: 0.4 of the time; 16: 1.0)."""


def of_one_example(e: Equation) -> bool:
    """Whether an equation is a convolution of one example, of one group, with nothing put between its values."""
    return _plain(e) and _image(e).shape[e.params["dimension_numbers"].lhs_spec[0]] == 1


def of_few_channels(e: Equation) -> bool:
    """Whether an equation is a convolution of one group, with nothing put between its values, of few channels."""
    return _plain(e) and _image(e).shape[e.params["dimension_numbers"].lhs_spec[1]] <= FEW


def in_another_layout(e: Equation) -> bool:
    """Whether an equation is a convolution whose channels are not last: in a loop 17 times slower than XLA's best."""
    return e.primitive.name == "conv_general_dilated" and e.params["dimension_numbers"] != _last(_image(e).ndim)


def with_channels_last(e: Equation, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The same convolution between transposes, which XLA merges with those of the next one."""
    (left, right, _), rank = e.params["dimension_numbers"], x.ndim
    x, kernel = lax.transpose(x, (left[0], *left[2:], left[1])), lax.transpose(kernel, (*right[2:], right[1], right[0]))
    options = {name: value for name, value in e.params.items() if name != "dimension_numbers"}
    return _as_written(e, lax.conv_general_dilated_p.bind(x, kernel, dimension_numbers=_last(rank), **options))


def _last(rank: int) -> lax.ConvDimensionNumbers:
    """Images [n, space, channels], kernels [window, channels, outputs]."""
    images = (0, rank - 1, *range(1, rank - 1))
    return lax.ConvDimensionNumbers(images, (rank - 1, rank - 2, *range(rank - 2)), images)


def _plain(e: Equation) -> bool:
    if e.primitive.name != "conv_general_dilated" or not jnp.issubdtype(_image(e).dtype, jnp.floating):
        return False
    one_group = e.params["feature_group_count"] == e.params["batch_group_count"] == 1
    out: Any = e.outvars[0].aval
    return one_group and set(e.params["lhs_dilation"]) == {1} and 0 not in (*_image(e).shape, *out.shape)


def _image(e: Equation) -> Any:
    return e.invars[0].aval


def product_with_patches(e: Equation, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The convolution of one example as one product.

    Where branches and seeds differ, its gradient is 20 times faster on a CPU. Patches are gathered axis by axis, so
    that a window of k x k takes 2 k slices.
    """
    x, kernel = _channels_last(e, x, kernel)
    x = x[0]
    for axis in range(x.ndim - 1):
        x = _windows(e, x, axis, axis)  # the window's later axes vary slowest
    order = (*reversed(range(kernel.ndim - 2)), kernel.ndim - 2, kernel.ndim - 1)
    weights = lax.transpose(kernel, order).reshape(-1, kernel.shape[-1])
    return _as_written(e, _product(e, x, weights)[None])


def product_of_rows(e: Equation, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The convolution as a sum of products with windows of the last axis, one for every position along the others.

    Windows along one axis only are read k times, patches of k x k would be read k² times.
    """
    x, kernel = _channels_last(e, x, kernel)
    *others, last = range(kernel.ndim - 2)
    x = _windows(e, x, last, last + 1)

    def at(where: tuple[int, ...]) -> jax.Array:
        rows = x
        for axis, i in zip(others, where, strict=True):
            rows = _shifted(e, rows, axis, axis + 1, i)
        return _product(e, rows, kernel[where].reshape(-1, kernel.shape[-1]))

    return _as_written(e, reduce(jnp.add, map(at, itertools.product(*(range(kernel.shape[k]) for k in others)))))


def _channels_last(e: Equation, x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The padded image [n, space, channels] and the kernel [window, channels, outputs]."""
    left, right, _ = e.params["dimension_numbers"]
    x = lax.transpose(x, (left[0], *left[2:], left[1]))
    sides = [(0, 0, 0), *((*both, 0) for both in e.params["padding"]), (0, 0, 0)]
    return lax.pad(x, jnp.zeros((), x.dtype), sides), lax.transpose(kernel, (*right[2:], right[1], right[0]))


def _windows(e: Equation, x: jax.Array, axis: int, at: int) -> jax.Array:
    """The values under the window along one axis of space, which is axis `at` of x, beside each other as channels."""
    kernel: Any = e.invars[1].aval
    size = kernel.shape[e.params["dimension_numbers"].rhs_spec[2 + axis]]
    return jnp.concatenate([_shifted(e, x, axis, at, i) for i in range(size)], -1)


def _shifted(e: Equation, x: jax.Array, axis: int, at: int, i: int) -> jax.Array:
    """What position i of the window sees along one axis of space, which is axis `at` of x."""
    left, right, _ = e.params["dimension_numbers"]
    kernel: Any = e.invars[1].aval
    size, stride, spread = (
        kernel.shape[right[2 + axis]],
        e.params["window_strides"][axis],
        e.params["rhs_dilation"][axis],
    )
    padded = _image(e).shape[left[2 + axis]] + sum(e.params["padding"][axis])
    length = (padded - spread * (size - 1) - 1) // stride + 1
    return lax.slice_in_dim(x, spread * i, spread * i + stride * (length - 1) + 1, stride, at)


def _product(e: Equation, x: jax.Array, weights: jax.Array) -> jax.Array:
    options = {name: e.params[name] for name in ("precision", "preferred_element_type")}
    return lax.dot_general(x, weights, (((x.ndim - 1,), (0,)), ((), ())), **options)


def _as_written(e: Equation, found: jax.Array) -> jax.Array:
    """Outputs [n, space, channels] in the layout of the equation."""
    out, space = e.params["dimension_numbers"].out_spec, range(1, found.ndim - 1)
    moved = lax.transpose(found, (0, found.ndim - 1, *space))
    return lax.transpose(moved, tuple(out.index(d) for d in range(len(out))))
