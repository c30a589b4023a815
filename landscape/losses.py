"""Losses per example, (outputs [N, C], y [N]) -> [N]: the τ-hinge of Eq. (1), the 10-class hinge of §5.1 and others.

Any leading axes will do: one example is outputs [C] with a scalar label. Shapes and types are always checked, the
values of the labels where they are known (outside `jit`).
"""

from collections.abc import Callable
from typing import overload

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

Loss = Callable[[jax.Array, jax.Array], jax.Array]

IGNORED = -100
"""The label of what has no part in a mean over the labels of an example, such as padding; PyTorch's number."""


@overload
def tau_hinge(*, tau: float = 1.0) -> Loss: ...
@overload
def tau_hinge(outputs: jax.Array, y: jax.Array, tau: float = 1.0) -> jax.Array: ...
def tau_hinge(outputs: jax.Array | None = None, y: jax.Array | None = None, tau: float = 1.0) -> jax.Array | Loss:
    """τ-hinge loss, Eq. (1): max(0, 1 − y f / τ) for labels y = ±1; with `tau` alone, the loss function of that τ.

    Args:
        outputs: [N, 1].
        y: Labels −1 or +1, [N].
        tau: The margin parameter τ > 0.

    Raises:
        ValueError: τ is not positive, or the outputs are not one an example.

    >>> tau_hinge(jnp.array([[0.5], [-4.0]]), jnp.array([1.0, 1.0]), tau=2.0).tolist()
    [0.75, 3.0]
    >>> tau_hinge(tau=2.0)(jnp.array([[0.5]]), jnp.array([-1])).tolist()
    [1.25]
    """
    if not 0 < tau < float("inf"):
        raise ValueError(f"tau must be positive and finite, Eq. (1); got {tau}.")
    if outputs is not None and y is not None:
        return optax.hinge_loss(_only(outputs, y, "tau_hinge") / tau, _signs(y, "the hinge loss"))
    if outputs is not None or y is not None:
        raise ValueError("tau_hinge takes outputs and labels, or tau alone by name: tau_hinge(tau=2.0).")

    def loss(outputs: jax.Array, y: jax.Array) -> jax.Array:
        return tau_hinge(outputs, y, tau)

    loss.__name__ = f"tau_hinge({tau:g})"
    return loss


def hinge(outputs: jax.Array, y: jax.Array) -> jax.Array:
    """The classic hinge loss, Eq. (1) with τ = 1: max(0, 1 − y f) for labels y = ±1."""
    return tau_hinge(outputs, y)


def multiclass_hinge(outputs: jax.Array, y: jax.Array) -> jax.Array:
    """The 10-class hinge loss of §5.1, for any number of classes: Σ_{j ≠ y} max(0, 1 + f_j − f_y).

    Args:
        outputs: [N, C], C ≥ 2.
        y: Classes 0 … C − 1, integers [N].

    Raises:
        ValueError: Fewer than two outputs, or labels that are not integers.

    >>> multiclass_hinge(jnp.array([[2.0, 1.5, 0.0]]), jnp.array([0])).tolist()
    [0.5]
    """
    right = _one_hot(y, outputs, "multiclass_hinge")
    own = (outputs * right).sum(-1, keepdims=True)
    return jax.nn.relu(outputs - own + (1 - right)).sum(-1)


def squared(outputs: jax.Array, y: jax.Array) -> jax.Array:
    """Squared error ‖f − y‖², summed over the outputs, without the factor ½.

    Args:
        outputs: [N, C].
        y: Targets [N, C], or [N] when C = 1, or classes [N] (integers, C ≥ 2) standing for unit vectors.
    """
    if y.shape[-1:] == outputs.shape[-1:] and y.ndim == outputs.ndim:
        return optax.squared_error(outputs, y).sum(-1)
    if outputs.shape[-1] == 1:
        return optax.squared_error(_only(outputs, y, "squared"), y)
    return optax.squared_error(outputs, _one_hot(y, outputs, "squared")).sum(-1)


def logistic(outputs: jax.Array, y: jax.Array) -> jax.Array:
    """Logistic loss log(1 + exp(−y f)) for one output and labels ±1; softmax cross-entropy for classes 0 … C − 1.

    With several labels an example, one a token say, it is their mean over those that are not `IGNORED`, −100; and 0
    where all are: such an example is left out of a risk by its weight 0.

    Args:
        outputs: [N, C], or [N, ..., C] with several labels an example.
        y: Labels −1 or +1 when C = 1, else integer classes, [N] or [N, ...].

    >>> [round(v, 4) for v in logistic(jnp.zeros([2, 1]), jnp.array([1, -1])).tolist()]
    [0.6931, 0.6931]
    """
    if outputs.shape[-1] == 1:
        return optax.sigmoid_binary_cross_entropy(_only(outputs, y, "logistic"), (1 + _signs(y, "logistic")) / 2)
    return mean_of_labels(optax.safe_softmax_cross_entropy(outputs, _one_hot(y, outputs, "logistic", True)), y)


def mean_of_labels(values: jax.Array, y: jax.Array) -> jax.Array:
    """The mean over all labels of an example that are not `IGNORED`, [N]; 0 where all are.

    Args:
        values: One a label, [N, ...].
        y: Labels [N, ...].

    >>> mean_of_labels(jnp.array([[2.0, 4.0, 9.0]]), jnp.array([[1, 0, -100]])).tolist()
    [3.0]
    """
    there, axes = y != IGNORED, tuple(range(1, jnp.ndim(y)))
    if not axes:
        return jnp.where(there, values, 0)
    count = there.sum(axes)
    return jnp.where(there, values, 0).sum(axes) / jnp.where(count > 0, count, 1).astype(values.dtype)


def nll(outputs: jax.Array, y: jax.Array) -> jax.Array:
    """Negative log-likelihood −f_y of classes, where the outputs are log-probabilities (`log_softmax`).

    Args:
        outputs: Log-probabilities [N, C]; for scores take `logistic`.
        y: Classes 0 … C − 1, integers [N].

    >>> print(nll(jnp.log(jnp.array([[0.25, 0.75]])), jnp.array([1])).round(4))
    [0.2877]
    """
    return -jnp.where(_one_hot(y, outputs, "nll") > 0, outputs, 0).sum(-1)


def log_of_probability(outputs: jax.Array, y: jax.Array) -> jax.Array:
    """Cross-entropy −log f_y of classes, where the outputs are probabilities (`softmax`).

    Args:
        outputs: Probabilities [N, C]; those below the smallest positive number count as that.
        y: Classes 0 … C − 1, integers [N].
    """
    return nll(jnp.log(jnp.maximum(outputs, jnp.finfo(outputs.dtype).tiny)), y)


def bce(outputs: jax.Array, y: jax.Array) -> jax.Array:
    """Binary cross-entropy of scores, log(1 + exp(f)) − y f: the sigmoid is part of the loss.

    Args:
        outputs: Scores [N, 1], or [N, C] for C labels an example.
        y: Labels 0 or 1, [N]; [N, C] for C labels an example, whose losses are averaged.

    Raises:
        ValueError: Labels of another shape, or other than 0 and 1.

    >>> print(bce(jnp.zeros([2, 1]), jnp.array([0, 1])).round(4))
    [0.6931 0.6931]
    """
    y = y if jnp.ndim(y) == outputs.ndim else y[..., None]
    if y.shape != outputs.shape:
        raise ValueError(
            f"bce takes as many labels an example as outputs; got outputs {outputs.shape} and labels {y.shape}.\n"
            "  With a class an example and an output a class, take cross_entropy."
        )
    if not isinstance(y, Tracer) and not np.isin(y, (0, 1)).all():
        raise ValueError(f"bce takes labels 0 and 1; got {_some(y)}.\n  For labels -1 and +1 take logistic.")
    return optax.sigmoid_binary_cross_entropy(outputs, y).mean(-1)


BY_NAME: dict[str, Loss] = {
    "hinge": hinge,
    "multiclass_hinge": multiclass_hinge,
    "squared": squared,
    "mse": squared,
    "logistic": logistic,
    "cross_entropy": logistic,
    "nll": nll,
    "bce": bce,
}


def _only(outputs: jax.Array, y: jax.Array, name: str) -> jax.Array:
    if outputs.ndim != jnp.ndim(y) + 1 or outputs.shape[-1] != 1:
        raise ValueError(
            f"{name} takes one output an example, [N, 1], and labels [N]; got outputs {outputs.shape} and labels "
            f"{jnp.shape(y)}.\n  With several outputs, multiclass_hinge and logistic take integer classes."
        )
    return outputs[..., 0]


def _signs(y: jax.Array, name: str) -> jax.Array:
    if not isinstance(y, Tracer) and not np.isin(y, (-1, 1)).all():
        raise ValueError(
            f"{name} with one output takes labels -1 and +1; got {_some(y)}.\n"
            "  Turn classes 0 and 1 into 2 y - 1, or give the network an output a class."
        )
    return y


def _some(y: jax.Array) -> str:
    values = np.unique(y)
    return ", ".join(f"{value:g}" for value in values[:5]) + (" …" if len(values) > 5 else "")


def _one_hot(y: jax.Array, outputs: jax.Array, name: str, ignoring: bool = False) -> jax.Array:
    if outputs.shape[-1] < 2 or outputs.ndim != jnp.ndim(y) + 1 or not jnp.issubdtype(jnp.result_type(y), jnp.integer):
        raise ValueError(
            f"{name} takes outputs [N, C] with C >= 2 and integer classes [N]; got outputs {outputs.shape} and labels "
            f"{jnp.shape(y)} of type {jnp.result_type(y)}.\n  For labels -1 and +1 and one output, take hinge."
        )
    if not isinstance(y, Tracer) and not _are_classes(np.asarray(y), outputs.shape[-1], ignoring):
        raise ValueError(
            f"{name} takes classes 0 … {outputs.shape[-1] - 1} for {outputs.shape[-1]} outputs; got {_some(y)}."
        )
    return jax.nn.one_hot(y, outputs.shape[-1], dtype=outputs.dtype)


def _are_classes(y: np.ndarray, count: int, ignoring: bool) -> bool:
    return bool((((y >= 0) & (y < count)) | (ignoring & (y == IGNORED))).all())
