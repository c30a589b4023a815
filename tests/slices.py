"""Surfaces for tests of pictures: slices through one hidden layer of ReLU units with the hinge loss, in NumPy."""

from typing import Any

import numpy as np

from landscape.surfaces import Grid, Surface


def relu_slice(
    rng: np.random.Generator, branches: int = 5, shape: tuple[int, int] = (21, 17), **metadata: Any
) -> Surface:
    """The hinge loss of a random network on the plane through three random weight vectors, A x B points."""
    x, labels = rng.normal(size=(60, 4)), rng.choice([-1.0, 1.0], 60)
    w0, w1, w2 = rng.normal(size=(3, branches * 5)) / np.sqrt(branches)
    u, v = np.linalg.qr(np.stack([w1 - w0, w2 - w0], 1))[0].T
    anchors = np.array([[(w - w0) @ u, (w - w0) @ v] for w in (w0, w1, w2)])
    low, high = anchors.min(0) - 0.5, anchors.max(0) + 0.5
    a, b = np.linspace(low[0], high[0], shape[0]), np.linspace(low[1], high[1], shape[1])

    def risk(point: tuple[float, float]) -> float:
        w = (w0 + point[0] * u + point[1] * v).reshape(branches, 5)
        outputs = np.maximum(x @ w[:, :4].T, 0) @ w[:, 4]
        return float(np.maximum(0, 1 - labels * outputs).mean())

    values = np.array([[risk((p, q)) for q in b] for p in a])
    known = {"branches": branches, "triple": 0, "plane": "orthonormal", "loss": "tau_hinge", "units": "τ = 1"}
    anchor_risk = np.array([risk((p, q)) for p, q in anchors])
    return Surface(Grid(a, b), values, anchors, anchor_risk, {"twice": 2 * values}, {**known, **metadata})


def formula(function: Any, a: np.ndarray, b: np.ndarray, **metadata: Any) -> Surface:
    """The surface of a function of a and b, without solutions."""
    return Surface(Grid(a, b), function(a[:, None], b[None]), metadata=metadata)
