"""Gradient descent on problem (4) itself: the witness of Theorem 2 that knows nothing of duality.

Full-batch, since ‖W_1 X‖ couples all examples; in row coordinates, which leave (4) and its gradient unchanged. The
all-zero start is stationary (every layer's gradient contains another layer), so it is a trap and never a start.
Weight decay inside an optimiser equals the regulariser of (4) only for H = 2.
"""

from collections.abc import Callable, Sequence
from functools import reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from landscape.arrays import trees
from landscape.duality.linear.problem import DeepLinear, optimum

Weights = tuple[jax.Array, ...]


class Descent(NamedTuple):
    """What gradient descent reached from each seed.

    Attributes:
        weights: W_1 [S, d_1, d_0], …, W_H [S, d_H, d_{H−1}].
        values: (4) before each step and after the last [S, steps + 1].
        excess: (last value − optimum)/optimum [S].
    """

    weights: tuple[np.ndarray, ...]
    values: np.ndarray
    excess: np.ndarray

    def share(self, tolerance: float = 1e-6) -> float:
        """The share of seeds that end within a relative `tolerance` of the optimum."""
        return float(np.mean(self.excess <= tolerance))


def schatten_power(A: jax.Array, H: int) -> jax.Array:
    """‖A‖_{S_H}^H = Σ σ_i^H, with the right gradient at zero and at repeated singular values.

    Even H needs no decomposition: tr (AᵀA)^{H/2}.
    """
    if H % 2:
        return (jnp.linalg.svd(A, compute_uv=False) ** H).sum()
    gram = A @ A.T if A.shape[0] <= A.shape[1] else A.T @ A
    return jnp.trace(jnp.linalg.matrix_power(gram, H // 2))


def risk(problem: DeepLinear) -> Callable[[Weights], jax.Array]:
    """Eq. (4) as a differentiable function of (W_1, …, W_H). Build and call it within `trees.float64()`."""
    rows = problem.coordinates
    X, Y = jnp.asarray(rows.left / rows.inverse[None, :]), jnp.asarray(rows.labels)
    H, gamma, unreachable = problem.depth, problem.gamma, rows.unreachable

    def value(weights: Weights) -> jax.Array:
        first = weights[0] @ X
        product = reduce(lambda M, W: W @ M, weights[1:], first)
        regulariser = sum(schatten_power(W, H) for W in (first, *weights[1:]))
        return unreachable + 0.5 * ((Y - product) ** 2).sum() + gamma / H * regulariser

    return value


def gradient_norm(problem: DeepLinear, weights: Sequence[np.ndarray]) -> float:
    """‖∇(4)‖ at W_1 … W_H: 0 at the all-zero start, which is no minimum wherever γ < σ_1(Ỹ)."""
    with trees.float64():
        return float(trees.norm(jax.grad(risk(problem))(tuple(jnp.asarray(W) for W in weights))))


def random_start(problem: DeepLinear, key: jax.Array) -> Weights:
    """Gaussian weights of variance 1/d_{i−1}."""
    keys = jax.random.split(key, problem.depth)
    return tuple(
        1 / shape[1] ** 0.5 * jax.random.normal(k, shape) for k, shape in zip(keys, problem.shapes, strict=True)
    )


def descend(
    problem: DeepLinear,
    keys: jax.Array,
    optimizer: optax.GradientTransformation,
    *,
    steps: int,
) -> Descent:
    """Train W_1 … W_H on (4) from random starts, vmapped over seeds.

    Args:
        problem: What to minimise.
        keys: One key a seed [S].
        optimizer: From optax, with its schedule.
        steps: Gradient steps.

    Raises:
        ValueError: steps is not positive.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1; got {steps}.")
    with trees.float64():
        value = risk(problem)

        def train(key: jax.Array) -> tuple[Weights, jax.Array]:
            def step(state: tuple, _: None) -> tuple[tuple, jax.Array]:
                weights, memory = state
                before, gradient = jax.value_and_grad(value)(weights)
                update, memory = optimizer.update(gradient, memory, weights)
                return (optax.apply_updates(weights, update), memory), before

            start = random_start(problem, key)
            (weights, _), values = lax.scan(step, (start, optimizer.init(start)), length=steps)
            return weights, jnp.append(values, value(weights))

        weights, values = jax.jit(jax.vmap(train))(keys)
        best = optimum(problem)
        seen = np.asarray(values)
        return Descent(tuple(np.asarray(W) for W in weights), seen, (seen[:, -1] - best) / best)
