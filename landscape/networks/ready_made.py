"""Branches ready to use: fully connected, convolutional and recurrent ones (§5.1)."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from landscape.networks.multi_branch import Network

Params = Any


def relu_branch(inputs: int, hidden: int = 1, outputs: int = 1, bias: bool = False, *, summed_over: int = 1) -> Network:
    """One hidden layer of ReLU units, W_2 [W_1 x]_+ (§5.1); one unit by default.

    Args:
        inputs: D.
        hidden: ReLU units of the branch.
        outputs: C.
        bias: Whether the layers have biases.
        summed_over: Branches that are summed without averaging: the last layer's fan-in counts the hidden units of all.
    """
    return mlp_branch((inputs, hidden, outputs), bias=bias, summed_over=summed_over)


def mlp_branch(
    widths: Sequence[int],
    activation: Callable[[jax.Array], jax.Array] = jax.nn.relu,
    bias: bool = False,
    *,
    summed_over: int = 1,
) -> Network:
    """A fully connected branch of any depth, for one example or a batch; uniform ±1/√fan-in initialisation.

    Args:
        widths: (D, hidden …, C).
        activation: Applied after every layer but the last.
        bias: Whether the layers have biases.
        summed_over: As in `relu_branch`.

    Raises:
        ValueError: Fewer than two widths, or one that is not positive.
    """
    if len(widths) < 2 or min(widths) < 1:
        raise ValueError(f"widths must be (inputs, hidden …, outputs), all at least 1; got {tuple(widths)}.")
    fan_in = [*widths[:-2], widths[-2] * summed_over]

    def init(key: jax.Array) -> Params:
        keys = jax.random.split(key, len(fan_in))
        shapes = zip(keys, widths[:-1], widths[1:], fan_in, strict=True)
        return tuple(_layer(k, (n, m), count, bias) for k, n, m, count in shapes)

    def apply(params: Params, x: jax.Array) -> jax.Array:
        for layer in params[:-1]:
            x = activation(_affine(layer, x))
        return _affine(params[-1], x)

    return Network(init, apply)


def conv_branch(
    shape: tuple[int, int, int], channels: Sequence[int], outputs: int = 1, window: int = 3, bias: bool = False
) -> Network:
    """Convolutions with ReLU, mean over positions, then a dense layer; images [H, W, channels], flat ones accepted.

    Args:
        shape: (height, width, channels) of an image.
        channels: Channels of each convolution.
        outputs: C.
        window: Height and width of the filters.
        bias: Whether the layers have biases.
    """
    depths = (shape[2], *channels)

    def init(key: jax.Array) -> Params:
        *keys, last = jax.random.split(key, len(channels) + 1)
        filters = [
            _layer(k, (window, window, n, m), window**2 * n, bias)
            for k, n, m in zip(keys, depths[:-1], depths[1:], strict=True)
        ]
        return *filters, _layer(last, (depths[-1], outputs), depths[-1], bias)

    def apply(params: Params, x: jax.Array) -> jax.Array:
        x = x.reshape(-1, *shape)
        for layer in params[:-1]:
            x = lax.conv_general_dilated(x, layer["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
            x = jax.nn.relu(x + layer["bias"][None, None, None] if bias else x)
        return _affine(params[-1], x.mean((1, 2)))

    return Network(init, apply)


def recurrent_branch(inputs: int, hidden: int, outputs: int = 1, bias: bool = False) -> Network:
    """An Elman network read out after the last step, h_t = tanh(W x_t + U h_(t-1)); one example is [T, inputs]."""

    def init(key: jax.Array) -> Params:
        a, b, c = jax.random.split(key, 3)
        return {
            "input": _layer(a, (inputs, hidden), inputs, bias),
            "state": _layer(b, (hidden, hidden), hidden, False),
            "output": _layer(c, (hidden, outputs), hidden, bias),
        }

    def apply(params: Params, x: jax.Array) -> jax.Array:
        def step(h: jax.Array, driven: jax.Array) -> tuple[jax.Array, None]:
            return jnp.tanh(driven + _affine(params["state"], h)), None

        last, _ = lax.scan(step, jnp.zeros(hidden, x.dtype), _affine(params["input"], x))
        return _affine(params["output"], last)

    return Network(init, apply)


def _layer(key: jax.Array, shape: tuple[int, ...], fan_in: int, bias: bool) -> dict[str, jax.Array]:
    bound = 1 / math.sqrt(fan_in)
    a, b = jax.random.split(key)
    layer = {"kernel": jax.random.uniform(a, shape, minval=-bound, maxval=bound)}
    return layer | {"bias": jax.random.uniform(b, shape[-1:], minval=-bound, maxval=bound)} if bias else layer


def _affine(layer: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    y = x @ layer["kernel"]
    return y + layer["bias"].reshape((1,) * (y.ndim - 1) + (-1,)) if "bias" in layer else y
