"""Flax's "MNIST tutorial": convolutions, BatchNorm, dropout, average pooling; the state through orbax."""

from functools import partial
from pathlib import Path

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import nnx


class CNN(nnx.Module):
    """A simple CNN model."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.conv1 = nnx.Conv(1, 4, kernel_size=(3, 3), rngs=rngs)
        self.batch_norm1 = nnx.BatchNorm(4, rngs=rngs)
        self.dropout1 = nnx.Dropout(rate=0.025, rngs=rngs)
        self.conv2 = nnx.Conv(4, 8, kernel_size=(3, 3), rngs=rngs)
        self.batch_norm2 = nnx.BatchNorm(8, rngs=rngs)
        self.avg_pool = partial(nnx.avg_pool, window_shape=(2, 2), strides=(2, 2))
        self.linear1 = nnx.Linear(392, 32, rngs=rngs)
        self.dropout2 = nnx.Dropout(rate=0.025, rngs=rngs)
        self.linear2 = nnx.Linear(32, 10, rngs=rngs)

    def __call__(self, x):
        x = self.avg_pool(nnx.relu(self.batch_norm1(self.dropout1(self.conv1(x)))))
        x = self.avg_pool(nnx.relu(self.batch_norm2(self.conv2(x))))
        x = x.reshape(x.shape[0], -1)  # flatten
        x = nnx.relu(self.dropout2(self.linear1(x)))
        return self.linear2(x)


def loss_fn(model: CNN, batch):
    logits = model(batch["image"])
    loss = optax.softmax_cross_entropy_with_integer_labels(logits=logits, labels=batch["label"]).mean()
    return loss, logits


@nnx.jit
def train_step(model: CNN, optimizer: nnx.Optimizer, batch):
    """Train for a single step."""
    (_, _), grads = nnx.value_and_grad(loss_fn, has_aux=True)(model, batch)
    optimizer.update(model, grads)


def main(images: np.ndarray, labels: np.ndarray, folder: Path, steps: int) -> list[str]:
    """Train and save three seeds; images [N, 28, 28]."""
    for seed in range(3):
        model = CNN(rngs=nnx.Rngs(seed))
        optimizer = nnx.Optimizer(model, optax.adamw(0.005, 0.9), wrt=nnx.Param)
        model.train()
        for step in range(steps):
            rows = slice(32 * step, 32 * (step + 1))
            train_step(model, optimizer, {"image": jax.numpy.asarray(images[rows, ..., None]), "label": labels[rows]})
        checkpointer = ocp.StandardCheckpointer()
        checkpointer.save(folder / f"ck{seed}", nnx.state(model))
        checkpointer.wait_until_finished()
    return ["ck0", "ck1", "ck2"]


def outputs(file: Path, images: np.ndarray, first: Path) -> np.ndarray:
    """The network of a checkpoint with the statistics of the first, by the framework itself."""
    parts = []
    for path in (first, file):
        model = nnx.eval_shape(lambda: CNN(rngs=nnx.Rngs(0)))
        state = nnx.state(CNN(rngs=nnx.Rngs(0)))
        parts.append(ocp.StandardCheckpointer().restore(path, state))
        nnx.update(model, parts[-1])
    statistics = nnx.state(nnx.merge(nnx.graphdef(model), parts[0]), nnx.BatchStat)
    model = nnx.merge(nnx.graphdef(model), parts[1])
    nnx.update(model, statistics)
    model.eval()
    return np.asarray(model(jax.numpy.asarray(images[..., None])))
