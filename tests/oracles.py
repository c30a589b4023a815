"""Plain float64 NumPy: one branch at a time, one grid point at a time, no JAX.

What the package computes in lanes, chunks and tiles is here the obvious loop.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

Branch = Callable[[Any, np.ndarray], np.ndarray]
"""One branch on all examples: parameters, x [N, ...] -> outputs [N, C]."""


def tree_map(f: Callable[..., Any], *trees: Any) -> Any:
    """f at every leaf of nested dicts, lists and tuples."""
    first = trees[0]
    if isinstance(first, Mapping):
        return {key: tree_map(f, *(tree[key] for tree in trees)) for key in first}
    if isinstance(first, list | tuple):
        return tuple(tree_map(f, *parts) for parts in zip(*trees, strict=True))
    return f(*trees)


def float64(tree: Any) -> Any:
    """The same tree in float64 NumPy arrays."""
    return tree_map(lambda t: np.asarray(t, np.float64), tree)


def first_leaf(tree: Any) -> np.ndarray:
    """Any one of the arrays."""
    while isinstance(tree, Mapping | list | tuple):
        tree = next(iter(tree.values())) if isinstance(tree, Mapping) else tree[0]
    return tree


ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "relu": lambda z: np.maximum(z, 0),
    "tanh": np.tanh,
    "sigmoid": lambda z: 1 / (1 + np.exp(-z)),
    "gelu": lambda z: 0.5 * z * (1 + np.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3))),
    "softplus": lambda z: np.logaddexp(z, 0),
    "sin": np.sin,
}


def affine(layer: Mapping[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    """x W + b."""
    return x @ layer["kernel"] + layer.get("bias", 0.0)


def mlp(activation: str = "relu") -> Branch:
    """A fully connected branch."""

    def forward(w: Any, x: np.ndarray) -> np.ndarray:
        for layer in w[:-1]:
            x = ACTIVATIONS[activation](affine(layer, x))
        return affine(w[-1], x)

    return forward


def convolution(layer: Mapping[str, np.ndarray], x: np.ndarray, stride: int = 1) -> np.ndarray:
    """Images [N, H, W, C] by a window [h, w, C, K], zero padding to ceil(H / stride), the odd pixel behind."""
    h, w = layer["kernel"].shape[:2]
    (rows, top), (columns, left) = (_same(n, k, stride) for n, k in ((x.shape[1], h), (x.shape[2], w)))
    padded = np.zeros((len(x), x.shape[1] + h + stride, x.shape[2] + w + stride, x.shape[3]))
    padded[:, top : top + x.shape[1], left : left + x.shape[2]] = x
    found = np.zeros((len(x), rows, columns, layer["kernel"].shape[3]))
    for i, j in np.ndindex(rows, columns):
        window = padded[:, i * stride : i * stride + h, j * stride : j * stride + w]
        found[:, i, j] = np.einsum("nhwc,hwck->nk", window, layer["kernel"])
    return found + layer.get("bias", 0.0)


def _same(size: int, window: int, stride: int) -> tuple[int, int]:
    count = -(-size // stride)
    return count, max((count - 1) * stride + window - size, 0) // 2


def pooled(x: np.ndarray, by: Callable[..., np.ndarray]) -> np.ndarray:
    """Windows of two by two pixels, reduced."""
    n, h, w, c = x.shape
    return by(x.reshape(n, h // 2, 2, w // 2, 2, c), axis=(2, 4))


def elman(w: Any, x: np.ndarray) -> np.ndarray:
    """h_t = tanh(W x_t + U h_(t-1)), read out at the end; x [N, T, D]."""
    h = np.zeros((len(x), w["state"]["kernel"].shape[0]))
    for t in range(x.shape[1]):
        h = np.tanh(affine(w["input"], x[:, t]) + affine(w["state"], h))
    return affine(w["output"], h)


def gru(w: Any, x: np.ndarray) -> np.ndarray:
    """Final state of a gated recurrent unit with flax's names; x [N, T, D]."""
    sigmoid, h = ACTIVATIONS["sigmoid"], np.zeros((len(x), w["hn"]["kernel"].shape[0]))
    for t in range(x.shape[1]):
        r = sigmoid(affine(w["ir"], x[:, t]) + affine(w["hr"], h))
        z = sigmoid(affine(w["iz"], x[:, t]) + affine(w["hz"], h))
        h = (1 - z) * np.tanh(affine(w["in"], x[:, t]) + r * affine(w["hn"], h)) + z * h
    return h


def attention(w: Any, x: np.ndarray) -> np.ndarray:
    """Softmax self-attention with several heads and flax's names; x [N, T, D]."""
    q, k, v = (np.einsum("ntd,dhk->nthk", x, w[name]["kernel"]) + w[name]["bias"] for name in ("query", "key", "value"))
    scores = np.einsum("nthk,nshk->nhts", q, k) / math.sqrt(q.shape[-1])
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    mixed = np.einsum("nhts,nshk->nthk", shares / shares.sum(-1, keepdims=True), v)
    return np.einsum("nthk,hkd->ntd", mixed, w["out"]["kernel"]) + w["out"]["bias"]


def layer_norm(w: Any, x: np.ndarray) -> np.ndarray:
    """Mean 0 and variance 1 along the last axis, then scale and shift."""
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * w["scale"] + w["bias"]


def network(branches: Sequence[tuple[Branch, Any]], x: np.ndarray, average: bool) -> np.ndarray:
    """§2 and §5.1: the mean or the sum over all branches, one after another.

    Args:
        branches: For each kind the forward pass and its parameters [I_k, ...].
        x: Examples [N, ...].
        average: Whether to divide by the number of branches.
    """
    total, count = 0.0, 0
    for forward, stacked in branches:
        w = float64(stacked)
        for i in range(len(first_leaf(w))):
            total = total + forward(tree_map(lambda t, i=i: t[i], w), np.asarray(x, np.float64))
            count += 1
    return total / count if average else total


def hinge(f: np.ndarray, y: np.ndarray) -> np.ndarray:
    """max(0, 1 − y f)."""
    return np.maximum(0, 1 - y * f[:, 0])


def multiclass_hinge(f: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Σ over the other classes of max(0, 1 + f_c − f_y)."""
    return np.array(
        [sum(max(0, 1 + row[c] - row[k]) for c in range(len(row)) if c != k) for row, k in zip(f, y, strict=True)]
    )


def squared(f: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Σ_c (f_c − y_c)²."""
    return ((f - np.reshape(y, f.shape)) ** 2).sum(-1)


def risk(f: np.ndarray, y: np.ndarray, weight: np.ndarray, loss: Callable[..., np.ndarray]) -> float:
    """Σ weight ℓ / Σ weight."""
    return float((weight * loss(f, y)).sum() / weight.sum())


def surface(plane: Sequence[Any], grid: Sequence[np.ndarray], risk_at: Callable[[Any], float]) -> np.ndarray:
    """risk_at(w(a_i, b_j)) for every point of a grid, one after another, [A, B].

    Args:
        plane: (origin, u, v).
        grid: (a [A], b [B]).
        risk_at: A function of the parameters, trees of float64 arrays.
    """
    o, u, v = map(float64, plane)
    found = np.zeros((len(grid[0]), len(grid[1])))
    for i, j in np.ndindex(found.shape):
        w = tree_map(lambda p, q, r, i=i, j=j: p + grid[0][i] * q + grid[1][j] * r, o, u, v)
        found[i, j] = risk_at(w)
    return found


def slope(f: Callable[[Any], float], w: Any, direction: Any, step: float = 1e-6) -> float:
    """Derivative of f along a direction by a central difference."""
    ahead, behind = (tree_map(lambda p, d, s=s: p + s * d, w, direction) for s in (step, -step))
    return (f(ahead) - f(behind)) / (2 * step)
