"""Resolving MODULE:NAME and short names of the command line: objects, data sets, losses, further quantities."""

import importlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from landscape import datasets, losses
from landscape.datasets import Dataset
from landscape.explore import layouts
from landscape.losses import Loss


def named(text: str, option: str) -> Any:
    """The object MODULE:NAME, modules of the current folder included.

    Raises:
        ValueError: There is no such module or name, or the module fails on import.
    """
    module, _, name = text.partition(":")
    if not module or not name:
        raise ValueError(f"{option} wants MODULE:NAME, such as my_module:make; got {text!r}.")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found = importlib.import_module(module)
    except Exception as error:  # whatever the user's module does on import
        raise ValueError(f"{option} {text}: importing {module} failed ({type(error).__name__}: {error}).") from error
    for part in name.split("."):
        if not hasattr(found, part):
            raise ValueError(f"{option} {text}: {module} has no {name}.")
        found = getattr(found, part)
    return found


def data_of(text: str, option: str, *, split: str = "train", root: Path | None = None, limit: int | None = None) -> Any:
    """The data set behind --data: mnist, cifar10, or MODULE:NAME of a Dataset, of (x, y) or of their function.

    Raises:
        ValueError: It is none of these.
    """
    if text in ("mnist", "cifar10"):
        return getattr(datasets, text)(root, split, limit)
    found = named(text, option)
    if callable(found) and not isinstance(found, Dataset):
        found = found()
    if isinstance(found, Dataset):
        return found
    if isinstance(found, tuple | list) and len(found) in (2, 3):
        return Dataset(*found, name=text)
    raise ValueError(f"{option} {text} is {type(found).__name__}; wanted a Dataset, (x, y) or (x, y, weight).")


def loss_of(text: str) -> Loss:
    """The loss of a name, or MODULE:NAME.

    Raises:
        ValueError: There is no such loss.
    """
    if text in losses.BY_NAME:
        return losses.BY_NAME[text]
    if ":" not in text:
        raise ValueError(f"--loss wants {', '.join(losses.BY_NAME)} or MODULE:NAME; got {text}.")
    return named(text, "--loss")


def tested(config: Any, root: Path | None, layout: str) -> Dataset | None:
    """The data of the test risk, if there are any; built-in images in the layout of the training data."""
    name, option = (config.test_data, "--test-data") if config.test_data else (config.data, "--data")
    if not config.test_data and name not in layouts.SIZES:
        return None
    data = data_of(name, option, split="test", root=root, limit=config.limit)
    return layouts.arranged(data, name, layout) if layout and name in layouts.SIZES else data


def further(data: Dataset) -> Mapping[str, Loss]:
    """The accuracy as a further quantity, where the labels are classes (of examples or of their tokens) or ±1.

    Examples without a valid label have no part in the mean.
    """
    y = np.asarray(data.y)
    if y.ndim == 1 and np.isin(y, (-1, 1)).all():
        return {"accuracy": sign_accuracy}
    weight = np.asarray(data.weight, np.float64)
    counted = weight[(y != losses.IGNORED).reshape(len(y), -1).any(1)].sum()
    if not np.issubdtype(y.dtype, np.integer) or not counted:
        return {}
    scale = float(weight.sum() / counted)
    return {"accuracy": accuracy if scale == 1 else lambda outputs, y: scale * accuracy(outputs, y)}


def accuracy(outputs: jax.Array, y: jax.Array) -> jax.Array:
    """1 where the largest output is that of the class, else 0; of several labels an example their mean.

    A single output is the score of class 1.

    Args:
        outputs: [N, ..., C].
        y: Classes [N, ...]; those equal to `losses.IGNORED` have no part in the mean, which is 0 where all are.
    """
    found = outputs[..., 0] > 0 if outputs.shape[-1] == 1 else jnp.argmax(outputs, -1)
    return losses.mean_of_labels((found == y).astype(outputs.dtype), y)


def sign_accuracy(outputs: jax.Array, y: jax.Array) -> jax.Array:
    """1 where the output has the sign of the label, else 0."""
    return (outputs[..., 0] * y > 0).astype(outputs.dtype)
