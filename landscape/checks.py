"""What makes a surface trustworthy: the evaluator at the anchors, against direct evaluation and against itself."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from landscape import evaluators
from landscape.evaluators import Settings
from landscape.grids import Grid
from landscape.losses import Loss
from landscape.planes import Plane
from landscape.problem import Problem, streamed_risk, weighted_risk
from landscape.tiles import Tile

EXAMPLES_CHECKED = 4096


plain_risk = jax.jit(weighted_risk, static_argnums=(0, 1))
fast_risk = jax.jit(streamed_risk, static_argnums=(0, 1))


def check_anchors(
    problem: Problem, plane: Plane, losses: Sequence[Loss], tile: Tile, settings: Settings
) -> dict[str, Any]:
    """The evaluator at the anchors, twice, against the network's own `apply`, on the first examples of the data.

    Returns:
        deterministic, max_difference (loss units) and the number of examples; with products below float32 also
        precision_error, the largest difference from the same in float32 (loss units).
    """
    points = plane.anchors if len(plane.anchors) else np.zeros((1, 2))
    count = min(len(problem.data), EXAMPLES_CHECKED)
    x, y, weight = (t[:count] for t in (problem.data.x, problem.data.y, problem.data.weight))
    first = Problem(type(problem.data)(x, y, weight), problem.network, problem.loss)
    grid = Grid(*points.T)
    settings = settings._replace(tile=tile._replace(points=1), directory=None, progress=False)

    def means(precision: str) -> np.ndarray:
        found = evaluators.problem_means(first, plane, grid, losses, settings._replace(precision=precision))
        return np.diagonal(found.values, axis1=1, axis2=2)

    once, twice = (means(settings.precision) for _ in range(2))
    with jax.default_matmul_precision(settings.precision):
        dtype = evaluators.float_type(plane)
        at = [plane.at(tuple(jnp.asarray(ab, dtype))) for ab in points]
        expected = np.array([plain_risk(problem.network, losses[0], w, first.data) for w in at], float)
    found = {
        "deterministic": bool((once == twice).all()),
        "max_difference": float(np.abs(once[0] - expected).max()),
        "examples": count,
    }
    if settings.precision != "highest":
        found["precision_error"] = float(np.abs(once[0] - means("highest")[0]).max())
    return found


def anchor_risks(problem: Problem, plane: Plane, precision: str = "highest") -> np.ndarray:
    """The risk at the plane's anchors, evaluated directly at w(a, b), [M]."""
    points = [plane.at(tuple(ab)) for ab in plane.anchors.tolist()]
    with jax.default_matmul_precision(precision):
        return np.array([fast_risk(problem.network, problem.loss, w, problem.data) for w in points], float)
