"""Equinox's example "CNN on MNIST": for one image, log-softmax at its end; `tree_serialise_leaves`."""

from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax


class CNN(eqx.Module):
    """Layers in a list, functions among them."""

    layers: list

    def __init__(self, key):
        key1, key2, key3, key4 = jax.random.split(key, 4)
        self.layers = [
            eqx.nn.Conv2d(1, 3, kernel_size=4, key=key1),
            eqx.nn.MaxPool2d(kernel_size=2),
            jax.nn.relu,
            jnp.ravel,
            eqx.nn.Linear(1728, 32, key=key2),
            jax.nn.sigmoid,
            eqx.nn.Linear(32, 16, key=key3),
            jax.nn.relu,
            eqx.nn.Linear(16, 10, key=key4),
            jax.nn.log_softmax,
        ]

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


def loss(model, x, y):
    pred_y = jax.vmap(model)(x)
    return cross_entropy(y, pred_y)


def cross_entropy(y, pred_y):
    pred_y = jnp.take_along_axis(pred_y, jnp.expand_dims(y, 1), axis=1)
    return -jnp.mean(pred_y)


def main(images: np.ndarray, labels: np.ndarray, folder: Path, steps: int) -> list[str]:
    """Train and save three seeds; images [N, 28, 28]."""
    optim = optax.adamw(3e-3)

    @eqx.filter_jit
    def make_step(model, opt_state, x, y):
        _, grads = eqx.filter_value_and_grad(loss)(model, x, y)
        updates, opt_state = optim.update(grads, opt_state, eqx.filter(model, eqx.is_array))
        return eqx.apply_updates(model, updates), opt_state

    for seed in range(3):
        model = CNN(jax.random.PRNGKey(seed))
        opt_state = optim.init(eqx.filter(model, eqx.is_array))
        for step in range(steps):
            rows = slice(32 * step, 32 * (step + 1))
            model, opt_state = make_step(model, opt_state, images[rows, None], labels[rows])
        eqx.tree_serialise_leaves(folder / f"ck{seed}.eqx", model)
    return [f"ck{seed}.eqx" for seed in range(3)]


def outputs(file: Path, images: np.ndarray, first: Path) -> np.ndarray:
    """The network of a checkpoint, by the framework itself."""
    model = eqx.tree_deserialise_leaves(file, CNN(jax.random.PRNGKey(0)))
    return np.asarray(jax.vmap(model)(images[:, None]))
