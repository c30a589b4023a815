"""Recurrent layers: LSTM (with projections), GRU and Elman networks; one `scan` a layer and direction."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

Rule = Callable[..., Any]
Carry = tuple[jax.Array, ...]


class Weights(NamedTuple):
    """Weights of one layer in one direction; biases are None where the layer has none, as is the projection."""

    inputs: jax.Array
    state: jax.Array
    input_bias: jax.Array | None
    state_bias: jax.Array | None
    projection: jax.Array | None

    def drive(self, x: jax.Array) -> jax.Array:
        """W x + b for all steps at once."""
        return _affine(x, self.inputs, self.input_bias)


def _affine(x: jax.Array, weight: jax.Array, bias: jax.Array | None) -> jax.Array:
    y = jnp.matmul(x, weight.T)
    return y if bias is None else y + bias.reshape((1,) * (y.ndim - 1) + (-1,))


def _lstm_cell(weights: Weights, carry: Carry, driven: jax.Array) -> Carry:
    h, c = carry
    i, f, g, o = jnp.split(driven + _affine(h, weights.state, weights.state_bias), 4, -1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    h = jax.nn.sigmoid(o) * jnp.tanh(c)
    return h if weights.projection is None else jnp.matmul(h, weights.projection.T), c


def _gru_cell(weights: Weights, carry: Carry, driven: jax.Array) -> Carry:
    (h,) = carry
    r, z, n = jnp.split(driven, 3, -1)
    own_r, own_z, own_n = jnp.split(_affine(h, weights.state, weights.state_bias), 3, -1)
    z = jax.nn.sigmoid(z + own_z)
    return ((1 - z) * jnp.tanh(n + jax.nn.sigmoid(r + own_r) * own_n) + z * h,)


def _elman_cell(activation: Rule) -> Rule:
    def cell(weights: Weights, carry: Carry, driven: jax.Array) -> Carry:
        return (activation(driven + _affine(carry[0], weights.state, weights.state_bias)),)

    return cell


def _weights(flat: Sequence[jax.Array], bias: bool, count: int) -> list[Weights]:
    """The flat list of ATen, cut into as many parts as there are layers and directions."""
    size, found = len(flat) // count, []
    for k in range(count):
        inputs, state, *rest = flat[k * size : (k + 1) * size]
        input_bias, state_bias = (rest.pop(0), rest.pop(0)) if bias else (None, None)
        found.append(Weights(inputs, state, input_bias, state_bias, rest[0] if rest else None))
    return found


def _run(
    cell: Rule,
    x: jax.Array,
    start: Carry,
    flat: Sequence[jax.Array],
    bias: bool,
    layers: int,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[jax.Array, ...]:
    """All layers: outputs at every step, and the last states [layers · directions, N, ...]."""
    x = jnp.swapaxes(x, 0, 1) if batch_first else x
    directions, last = 1 + bidirectional, []
    weights = _weights(flat, bias, layers * directions)
    for layer in range(layers):
        outputs = []
        for d in range(directions):
            w, carry = weights[layer * directions + d], tuple(s[layer * directions + d] for s in start)

            def step(carry: Carry, driven: jax.Array, w: Weights = w) -> tuple[Carry, jax.Array]:
                after = cell(w, carry, driven)
                return after, after[0]

            after, states = lax.scan(step, carry, w.drive(x), reverse=bool(d))
            outputs.append(states)
            last.append(after)
        x = jnp.concatenate(outputs, -1)
    x = jnp.swapaxes(x, 0, 1) if batch_first else x
    return x, *(jnp.stack(states) for states in zip(*last, strict=True))


def _lstm(
    x: Any,
    start: Any,
    flat: Any,
    bias: bool,
    layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> Any:
    return _run(_lstm_cell, x, tuple(start), flat, bias, layers, bidirectional, batch_first)


def _one_state(cell: Rule) -> Rule:
    def rule(
        x: Any,
        start: Any,
        flat: Any,
        bias: bool,
        layers: int,
        dropout: float,
        train: bool,
        bidirectional: bool,
        batch_first: bool,
    ) -> Any:
        return _run(cell, x, (start,), flat, bias, layers, bidirectional, batch_first)

    return rule


RULES: dict[str, Rule] = {
    "gru.input": _one_state(_gru_cell),
    "lstm.input": _lstm,
    "rnn_relu.input": _one_state(_elman_cell(jax.nn.relu)),
    "rnn_tanh.input": _one_state(_elman_cell(jnp.tanh)),
}
