"""Data sets: the record `Dataset`, the synthetic teacher, MNIST and CIFAR-10 of §5.1."""

import io
import json
import os
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from landscape.arrays import on_disk
from landscape.datasets import downloads
from landscape.files import atomic

Array = jax.Array | np.ndarray

NO_SIGN = 1e-6
MARGIN = 2.0


@jax.tree_util.register_pytree_node_class
@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """Examples, labels and weights. As a pytree it is (x, y, weight); inside `jit` its values are not checked again.

    Attributes:
        x: Examples [N, ...]; of several inputs a dictionary or a tuple of arrays. A `np.memmap`, or an
            array of h5py or zarr, stays in its file: training and evaluation read the rows that they need.
        y: Labels [N] (or targets [N, ...]).
        weight: Weight of each example [N], float32; 1 when None, 0 for padding.
        name: What `repr` and run directories call it.
        teacher: Parameters of the network that made the labels, where they are known.

    Raises:
        ValueError: No examples, different lengths, a value that is not finite, a negative weight or no positive one.

    >>> Dataset(np.zeros([5, 2], "f4"), np.ones(5, "f4"), name="five")
    Dataset(five: x [5, 2] float32, y [5] float32)
    """

    x: Any
    y: Array
    weight: Any = None
    name: str = "data"
    teacher: Any = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.isprintable():
            raise ValueError(f"The name of a data set is one line of text; got {self.name!r}.")
        x, y = _inputs(self.x), self.y if isinstance(self.y, jax.Array) else np.asarray(self.y)
        ones = jnp.ones if isinstance(y, jax.Array) else np.ones
        weight = ones(y.shape[:1], np.float32) if self.weight is None else _as_array(self.weight).astype(np.float32)
        lengths = {leaf.shape[:1] for leaf in (*jax.tree.leaves(x), y, weight)}
        if len(lengths) != 1 or lengths & {(), (0,)} or weight.ndim != 1 or not jax.tree.leaves(x):
            shapes = {"x": jax.tree.map(np.shape, x), "y": y.shape, "weight": weight.shape}
            raise ValueError(
                f"A data set needs x [N, ...], y [N] and weight [N], one or more of each; got {shapes}.\n"
                "  Several inputs are a dictionary or a tuple of arrays x."
            )
        for name, array in {"x": x, "y": y, "weight": weight}.items():
            for leaf in jax.tree.leaves(array):
                _refuse_not_finite(name, leaf)
            object.__setattr__(self, name, array)
        if not isinstance(weight, Tracer) and (np.min(np.asarray(weight)) < 0 or np.max(np.asarray(weight)) <= 0):
            raise ValueError("Weights must not be negative, and one at least must be positive.")

    def tree_flatten(self) -> tuple[tuple[Any, Array, Array], str]:
        """Leaves (x, y, weight), and the name as static data; the teacher is dropped."""
        return (on_disk.streamed(self.x), self.y, self.weight), self.name

    @classmethod
    def tree_unflatten(cls, name: str, children: tuple[Any, Any, Any]) -> "Dataset":
        """Rebuild the record without checks, because JAX passes tracers and placeholders."""
        made = object.__new__(cls)
        for field, value in zip(("x", "y", "weight", "name", "teacher"), (*children, name, None), strict=True):
            object.__setattr__(made, field, value)
        return made

    @cached_property
    def fingerprint(self) -> str:
        """sha256 (hex) of x, y and weight with their shapes and types."""
        return atomic.fingerprint(self.x, self.y, self.weight)

    @cached_property
    def support(self) -> "Dataset":
        """The examples of positive weight; the record itself if these are all.

        Weights are scaled by the power of two that brings the largest into [1, 2): a mean Σ w ℓ / Σ w keeps its bits,
        and neither overflows nor vanishes whatever the unit of the weights.
        """
        weight = np.asarray(self.weight)
        scaled = np.ldexp(weight, 1 - np.frexp(weight.max())[1])
        kept = np.flatnonzero(scaled)
        if np.array_equal(weight, scaled) and len(kept) == len(weight):
            return self
        x, y = (self.x, self.y) if len(kept) == len(weight) else (on_disk.chosen(self.x, kept), self.y[kept])
        found = Dataset.tree_unflatten(self.name, (x, y, scaled[kept]))
        object.__setattr__(found, "teacher", self.teacher)
        return found

    def taken(self, which: Any) -> "Dataset":
        """The examples at positions, or in a slice, of one or more; those on disk are read."""
        arrays = (self.x, self.y, self.weight)
        return Dataset.tree_unflatten(self.name, jax.tree.map(lambda t: on_disk.rows(t, which), arrays))

    @property
    def example(self) -> Any:
        """Shape and type of one example, [...]."""
        return jax.tree.map(lambda t: jax.ShapeDtypeStruct(t.shape[1:], t.dtype), self.x)

    def __len__(self) -> int:
        return self.weight.shape[0]

    def __repr__(self) -> str:
        inputs = jax.tree_util.tree_leaves_with_path(self.x)
        parts = [f"x{jax.tree_util.keystr(where)} {_shape(array)}" for where, array in inputs]
        parts.append(f"y {_shape(self.y)}")
        return f"Dataset({self.name}: {', '.join(parts)})"


def synthetic_teacher(key: jax.Array, examples: int = 1000, inputs: int = 10, hidden: int = 11) -> Dataset:
    """Examples labelled by a one-hidden-layer ReLU network, y = sign f*(x), f*(x) = Σ_i w*_(i,2) [W*_(i,1) x]_+ (§5.1).

    x, W* and w* are standard Gaussian, drawn and labelled on the host in float64 so that every device gets the same
    bits. An example with |f*(x)| < 1e-6 (all units off: f* = 0, one in 2^hidden) has no sign and is drawn again.

    `data.teacher` holds the teacher's own parameters for `MultiBranch(relu_branch(inputs), hidden, average=False)`,
    ({"kernel": [hidden, inputs, 1]}, {"kernel": [hidden, 1, 1]}), with w*_(i,2) scaled so that the smallest margin
    y f*(x) is 2 up to rounding. So min R = 0 for the hinge loss with τ <= 1, attained there.

    Args:
        key: Random key; not inside `jit`.
        examples: N.
        inputs: D.
        hidden: Hidden units of the teacher.

    Raises:
        ValueError: A size below 1.
    """
    if min(examples, inputs, hidden) < 1:
        raise ValueError(f"examples, inputs and hidden must be at least 1; got {examples}, {inputs}, {hidden}.")
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())
    first, last = (rng.standard_normal(shape).astype(np.float32) for shape in ((hidden, inputs), (hidden,)))
    kept: list[np.ndarray] = []
    while sum(map(len, kept)) < examples:
        x = rng.standard_normal((examples, inputs)).astype(np.float32)
        kept.append(x[np.abs(_teach(first, last, x)) >= NO_SIGN])
    x = np.concatenate(kept)[:examples]
    f = _teach(first, last, x)
    last = (last * (MARGIN / np.abs(f).min())).astype(np.float32)
    teacher = ({"kernel": jnp.asarray(first[:, :, None])}, {"kernel": jnp.asarray(last[:, None, None])})
    y = jnp.asarray(np.sign(f).astype(np.float32))
    return Dataset(jnp.asarray(x), y, name=f"synthetic teacher with {hidden} units", teacher=teacher)


def _teach(first: np.ndarray, last: np.ndarray, x: np.ndarray) -> np.ndarray:
    return np.maximum(x.astype(np.float64) @ first.T.astype(np.float64), 0) @ last.astype(np.float64)


def mnist(
    root: Path | str | None = None,
    split: str = "train",
    limit: int | None = None,
    classes: Sequence[int] | None = None,
    *,
    images: bool = False,
    download: bool = True,
) -> Dataset:
    """MNIST (60,000 and 10,000 digits), each pixel standardised: x_j ← (x_j − mean_j) / std_j (§5.1).

    mean_j and std_j (divided by N) are those of pixel j over all 60,000 training digits, whatever the split, limit or
    classes; the 67 pixels that are the same in all of them become 0. The order is that of the files.

    Args:
        root: Folder with `MNIST/raw/`, packed or not; LANDSCAPE_DATA, then the cache, then the mirrors when None.
        split: "train" or "test".
        limit: At most so many examples, the first ones of the classes chosen.
        classes: Digits to keep; the k-th named becomes label k.
        images: x as [N, 28, 28, 1] instead of [N, 784].
        download: Whether absent files may be downloaded.

    Raises:
        ValueError: A file that is not the published one, or a wrong split, limit or class.
        FileNotFoundError: A file is nowhere to be had.
    """
    _refuse_selection(split, limit, classes)
    _refuse_download("mnist", root, download)
    part = {"train": "train", "test": "t10k"}[split]
    names = [f"MNIST/raw/{part}-{kind}-ubyte.gz" for kind in ("labels-idx1", "images-idx3")]
    labels_file, pixels_file = downloads.find("mnist", names, root)
    labels = np.frombuffer(downloads.read(labels_file), np.uint8, offset=8)
    chosen, y = _choose(labels, limit, classes)
    pixels = np.frombuffer(downloads.read(pixels_file, 16 + 784 * (int(chosen[-1]) + 1)), np.uint8, offset=16)
    x = _standardise("mnist", pixels.reshape(-1, 784)[chosen])
    return Dataset(jnp.asarray(x.reshape(-1, 28, 28, 1) if images else x), jnp.asarray(y), name=f"mnist {split}")


def cifar10(
    root: Path | str | None = None,
    split: str = "train",
    limit: int | None = None,
    classes: Sequence[int] | None = None,
    *,
    images: bool = False,
    download: bool = True,
) -> Dataset:
    """CIFAR-10 (50,000 and 10,000 photographs), standardised as in `mnist` by the 50,000 training photographs.

    Args:
        root: Folder with `cifar-10-batches-py/`; LANDSCAPE_DATA, then the cache, then the mirrors when None.
        split: "train" or "test".
        limit: At most so many examples, the first ones of the classes chosen; no more batches are read than needed.
        classes: Classes 0 … 9 to keep; the k-th named becomes label k.
        images: x as [N, 32, 32, 3] instead of [N, 3072], which is in the files' order: all red values row by row,
            then green, then blue.
        download: Whether absent files may be downloaded.

    Raises:
        ValueError: A file that is not the published one, or a wrong split, limit or class.
        FileNotFoundError: A file is nowhere to be had.
    """
    _refuse_selection(split, limit, classes)
    _refuse_download("cifar10", root, download)
    batches = ["test_batch"] if split == "test" else [f"data_batch_{k}" for k in range(1, 6)]
    needed = batches if limit is None or classes is not None else batches[: -(-limit // 10_000)]
    pixels, labels = [], []
    for file in downloads.find("cifar10", [f"cifar-10-batches-py/{name}" for name in needed], root):
        batch = read_batch(downloads.read(file))
        chosen, y = _choose(np.asarray(batch["labels"]), limit, classes)
        pixels.append(batch["data"][chosen])
        labels.append(y)
        if limit is not None and (limit := limit - len(y)) == 0:
            break
    x = _standardise("cifar10", np.concatenate(pixels))
    x = np.ascontiguousarray(x.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)) if images else x
    return Dataset(jnp.asarray(x), jnp.asarray(np.concatenate(labels)), name=f"cifar10 {split}")


def at_hand(name: str, root: Path | str | None = None) -> bool:
    """Whether `mnist` or `cifar10` need no download, because a folder is named or the cache holds all files."""
    source, folder = downloads.SOURCES[name], downloads.data_folder(root)
    kinds = zip(source.files, source.unpacked or source.files, strict=True)
    whole = all(any((folder / file.path).is_file() for file in kind) for kind in kinds)
    return whole or bool(root or os.environ.get(downloads.VARIABLE))


def random_images(name: str, examples: int, key: jax.Array) -> Dataset:
    """Gaussian numbers with random labels in the shape of `mnist` or `cifar10`, named as random, for trying things out.

    Args:
        name: "mnist" or "cifar10".
        examples: N.
        key: Random key; not inside `jit`.
    """
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())
    x = rng.standard_normal((examples, {"mnist": 784, "cifar10": 3072}[name]), np.float32)
    return Dataset(x, rng.integers(0, 10, examples, np.int32), name=f"random numbers in the shape of {name}")


def read_batch(content: bytes) -> dict[str, Any]:
    """A CIFAR-10 batch out of its pickle: plain containers, strings, numbers and NumPy arrays; nothing else is made.

    Raises:
        pickle.UnpicklingError: It asks for anything else, such as a function to call.
    """
    return _ArraysOnly(io.BytesIO(content), encoding="latin1").load()


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return np.empty(0).__reduce__()[0]
        if module == "numpy" and name == "ndarray":
            return np.ndarray
        if module == "numpy" and name == "dtype":
            return _number_type
        raise pickle.UnpicklingError(f"A data file asks for {module}.{name}; it may hold arrays and builtins only.")


def _number_type(code: str, align: int = 0, copy: int = 1) -> np.dtype:
    """A type of numbers, named as in old pickles; not of Python objects."""
    made = np.dtype(code, align=bool(align), copy=bool(copy))
    if made.hasobject:
        raise pickle.UnpicklingError(f"A data file asks for arrays of type {made}; it may hold arrays of numbers only.")
    return made


def _refuse_selection(split: str, limit: int | None, classes: Sequence[int] | None) -> None:
    if split not in ("train", "test"):
        raise ValueError(f'split must be "train" or "test"; got {split!r}.')
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, or None for all examples; got {limit}.")
    if classes is not None and (not classes or len(set(classes)) != len(classes) or not set(classes) <= set(range(10))):
        raise ValueError(f"classes must be different numbers from 0 to 9, one at least; got {tuple(classes)}.")


def _refuse_download(name: str, root: Path | str | None, download: bool) -> None:
    if not (download or at_hand(name, root)):
        raise FileNotFoundError(f"No folder with {name} is named, and nothing may be downloaded.")


def _choose(labels: np.ndarray, limit: int | None, classes: Sequence[int] | None) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the first `limit` examples of the classes, and their new labels (int32)."""
    new = np.full(10, -1, np.int32)
    kept = range(10) if classes is None else classes
    new[list(kept)] = range(len(kept))
    chosen = np.flatnonzero(new[labels] >= 0)[:limit]
    return chosen, new[labels[chosen]]


def _standardise(name: str, pixels: np.ndarray) -> np.ndarray:
    """float32 [N, D] from bytes [N, D], by exact sums over the training set kept in pixels.json."""
    sums = json.loads(resources.files("landscape.datasets").joinpath("pixels.json").read_text())[name]
    mean = np.asarray(sums["sum"]) / sums["examples"]
    std = np.sqrt(np.asarray(sums["sum_of_squares"]) / sums["examples"] - mean**2)
    scale = np.divide(1, std, out=np.zeros_like(std), where=std > 0)
    x = np.empty(pixels.shape, np.float32)
    for start in range(0, len(x), 64):  # stays in the cache of a core
        x[start : start + 64] = (pixels[start : start + 64] - mean) * scale
    return x


def _inputs(x: Any) -> Any:
    """Examples as one array, or several inputs as a tree of arrays: a dictionary, or a tuple of arrays."""
    several = isinstance(x, dict) or (isinstance(x, tuple) and all(hasattr(part, "shape") for part in x))
    return jax.tree.map(_as_array, x) if several else _as_array(x)


def _as_array(values: Any) -> Array:
    return values if isinstance(values, jax.Array) or on_disk.stays(values) else np.asarray(values)


def _shape(array: Any) -> str:
    return f"{list(getattr(array, 'shape', '?'))} {getattr(array, 'dtype', '')}"


def _refuse_not_finite(name: str, array: Array) -> None:
    wrong = 0 if isinstance(array, Tracer) else on_disk.not_finite(array)
    if wrong:
        raise ValueError(f"{name} holds values that are not finite: {wrong} of {int(np.prod(array.shape))}.")
