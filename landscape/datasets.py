"""Data sets: the record `Dataset` and the synthetic teacher of §5.1."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from landscape import storage

Array = jax.Array | np.ndarray

NO_SIGN = 1e-6
MARGIN = 2.0


@jax.tree_util.register_pytree_node_class
@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """Examples, labels and weights. As a pytree it is (x, y, weight); inside `jit` its values are not checked again.

    Attributes:
        x: Examples [N, ...].
        y: Labels [N] (or targets [N, ...]).
        weight: Weight of each example [N], float32; 1 when None, 0 for padding.
        name: What `repr` and run directories call it.
        teacher: Parameters of the network that made the labels, where they are known.

    Raises:
        ValueError: No examples, different lengths, a value that is not finite, a negative weight or no positive one.

    >>> Dataset(np.zeros([5, 2], "f4"), np.ones(5, "f4"), name="five")
    Dataset(five: x [5, 2] float32, y [5] float32)
    """

    x: Array
    y: Array
    weight: Any = None
    name: str = "data"
    teacher: Any = None

    def __post_init__(self) -> None:
        x, y = _as_array(self.x), _as_array(self.y)
        ones = jnp.ones if isinstance(x, jax.Array) else np.ones
        weight = ones(x.shape[:1], np.float32) if self.weight is None else _as_array(self.weight).astype(np.float32)
        shapes = {"x": x.shape, "y": y.shape, "weight": weight.shape}
        if not x.shape or not y.shape or weight.shape != x.shape[:1] or y.shape[0] != x.shape[0] or not x.shape[0]:
            raise ValueError(f"A data set needs x [N, ...], y [N] and weight [N], one or more of each; got {shapes}.")
        for name, array in {"x": x, "y": y, "weight": weight}.items():
            _refuse_not_finite(name, array)
            object.__setattr__(self, name, array)
        if not isinstance(weight, Tracer) and (weight.min() < 0 or weight.max() <= 0):
            raise ValueError("Weights must not be negative, and one at least must be positive.")

    def tree_flatten(self) -> tuple[tuple[Array, Array, Array], str]:
        """(x, y, weight), and the name; the teacher is not carried along."""
        return (self.x, self.y, self.weight), self.name

    @classmethod
    def tree_unflatten(cls, name: str, children: tuple[Any, Any, Any]) -> "Dataset":
        """The record again, without checks: JAX puts tracers and placeholders here."""
        made = object.__new__(cls)
        for field, value in zip(("x", "y", "weight", "name", "teacher"), (*children, name, None), strict=True):
            object.__setattr__(made, field, value)
        return made

    @cached_property
    def fingerprint(self) -> str:
        """sha256 (hex) of x, y and weight with their shapes and types."""
        return storage.fingerprint(self.x, self.y, self.weight)

    def __len__(self) -> int:
        return self.x.shape[0]

    def __repr__(self) -> str:
        parts = [f"{name} {_shape(array)}" for name, array in (("x", self.x), ("y", self.y))]
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


def _as_array(values: Any) -> Array:
    return values if isinstance(values, jax.Array) else np.asarray(values)


def _shape(array: Any) -> str:
    return f"{list(getattr(array, 'shape', '?'))} {getattr(array, 'dtype', '')}"


def _refuse_not_finite(name: str, array: Array) -> None:
    """Smallest and largest value tell it without a mask of the array's size."""
    if isinstance(array, Tracer) or array.size == 0:
        return
    if not (np.isfinite(array.min()) and np.isfinite(array.max())):
        raise ValueError(
            f"{name} holds values that are not finite: {int((~np.isfinite(array)).sum())} of {array.size}."
        )
