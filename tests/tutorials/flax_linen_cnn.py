"""Flax's linen example for MNIST: a `TrainState`, kept by orbax and as flax's own bytes (msgpack)."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import linen as nn
from flax import serialization
from flax.training import train_state


class CNN(nn.Module):
    """A simple CNN model."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(features=4, kernel_size=(3, 3))(x)
        x = nn.relu(x)
        x = nn.avg_pool(x, window_shape=(2, 2), strides=(2, 2))
        x = nn.Conv(features=8, kernel_size=(3, 3))(x)
        x = nn.relu(x)
        x = nn.avg_pool(x, window_shape=(2, 2), strides=(2, 2))
        x = x.reshape((x.shape[0], -1))  # flatten
        x = nn.Dense(features=32)(x)
        x = nn.relu(x)
        return nn.Dense(features=10)(x)


@jax.jit
def apply_model(state, images, labels):
    """Computes gradients and loss for a single batch."""

    def loss_fn(params):
        logits = state.apply_fn({"params": params}, images)
        one_hot = jax.nn.one_hot(labels, 10)
        return jnp.mean(optax.softmax_cross_entropy(logits=logits, labels=one_hot))

    return jax.grad(loss_fn)(state.params)


def create_train_state(rng):
    """Creates initial `TrainState`."""
    cnn = CNN()
    params = cnn.init(rng, jnp.ones([1, 28, 28, 1]))["params"]
    return train_state.TrainState.create(apply_fn=cnn.apply, params=params, tx=optax.sgd(0.1, 0.9))


def train(images: np.ndarray, labels: np.ndarray, seed: int, steps: int):
    """A few steps."""
    state = create_train_state(jax.random.key(seed))
    for step in range(steps):
        rows = slice(32 * step, 32 * (step + 1))
        state = state.apply_gradients(grads=apply_model(state, images[rows, ..., None], labels[rows]))
    return state


def main(images: np.ndarray, labels: np.ndarray, folder: Path, steps: int) -> list[str]:
    """Train and save three seeds as orbax folders."""
    for seed in range(3):
        checkpointer = ocp.StandardCheckpointer()
        checkpointer.save(folder / f"ck{seed}", train(images, labels, seed, steps))
        checkpointer.wait_until_finished()
    return ["ck0", "ck1", "ck2"]


def main_msgpack(images: np.ndarray, labels: np.ndarray, folder: Path, steps: int) -> list[str]:
    """Train and save three seeds as msgpack."""
    for seed in range(3):
        state = train(images, labels, seed, steps)
        (folder / f"ck{seed}.msgpack").write_bytes(serialization.to_bytes(state))
    return [f"ck{seed}.msgpack" for seed in range(3)]


def outputs(file: Path, images: np.ndarray, first: Path) -> np.ndarray:
    """The network of a checkpoint, by the framework itself."""
    state = create_train_state(jax.random.key(0))
    if file.suffix == ".msgpack":
        state = serialization.from_bytes(state, file.read_bytes())
    else:
        state = ocp.StandardCheckpointer().restore(file, state)
    return np.asarray(state.apply_fn({"params": state.params}, images[..., None]))
