"""What makes a surface trustworthy: the evaluator at the anchors, against direct evaluation and against itself."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from landscape.arrays import hardware
from landscape.evaluation import sharded
from landscape.evaluation.grid_loop import Tile
from landscape.evaluation.sharded import Settings
from landscape.losses import Loss
from landscape.planes import Plane
from landscape.planes.grids import Grid
from landscape.problem import Problem, streamed_risk, weighted_risk

EXAMPLES_CHECKED = 512
BRANCHES_CHECKED = 512
"""Where the network does not say: activations of so many branches exist at a time."""


@partial(jax.jit, static_argnums=(0, 1, 2, 6))
def _risk(
    measure: Callable[..., jax.Array], network: Any, loss: Loss, axes: Any, ab: Any, data: Any, mesh: Mesh | None
) -> Any:
    """A risk at w(a, b), whose branches may be split over a mesh ("branches",)."""
    w = Plane(axes[0], axes[1], axes[2], np.zeros((0, 2))).at(ab)
    if mesh is None:
        return measure(network, loss, w, data)
    run = partial(measure, network, loss, axis="branches")
    return jax.shard_map(run, mesh=mesh, in_specs=(P("branches"), P()), out_specs=P(), check_vma=False)(w, data)


def directly(measure: Callable[..., jax.Array], problem: Problem, plane: Plane, points: np.ndarray) -> np.ndarray:
    """`weighted_risk` or `streamed_risk` at points w(a, b) of a plane, one after another, [M].

    Args:
        measure: One of the two.
        problem: The problem; its plain network runs a chunk of branches at a time.
        plane: The plane; where its branches are split over devices, they stay so.
        points: (a, b), [M, 2].
    """
    dtype, found = sharded.float_type(plane), []
    network = replace(problem.network, branch_chunk=problem.network.branch_chunk or BRANCHES_CHECKED)
    axes, mesh = (plane.origin, plane.u, plane.v), hardware.home_of(plane.origin)
    for ab in points.astype(dtype):
        found.append(_risk(measure, network, problem.loss, axes, ab, problem.data, mesh))
    return np.array(found, float)


def check_anchors(
    problem: Problem, planes: Sequence[Plane], losses: Sequence[Loss], tile: Tile, settings: Settings
) -> list[dict[str, Any]]:
    """The evaluator at the anchors, twice, against the network's own `apply`, on the first examples of the data.

    Returns:
        For each plane deterministic, max_difference (loss units) and the number of examples; with products below
        float32 also precision_error, the largest difference from the same in float32 (loss units).
    """
    points = [plane.anchors if len(plane.anchors) else np.zeros((1, 2)) for plane in planes]
    count = min(len(problem.data), EXAMPLES_CHECKED)
    x, y, weight = (np.asarray(t)[:count] for t in (problem.data.x, problem.data.y, problem.data.weight))
    first = Problem(type(problem.data)(x, y, weight), problem.network, problem.loss)
    grids = [Grid(*at.T) for at in points]
    settings = settings._replace(tile=tile._replace(points=1), directory=None, progress=False)

    def means(precision: str) -> np.ndarray:
        found = sharded.stack_means(first, planes, grids, losses, settings._replace(precision=precision))
        return np.diagonal(found.values, axis1=2, axis2=3)

    once, twice = (means(settings.precision) for _ in range(2))
    exact = means("highest") if settings.precision != "highest" else None
    with jax.default_matmul_precision(settings.precision):
        expected = [directly(weighted_risk, first, *at) for at in zip(planes, points, strict=True)]
    found = []
    for k in range(len(planes)):
        away = float(np.abs(once[k, 0] - expected[k]).max())
        known = {"deterministic": bool((once[k] == twice[k]).all()), "max_difference": away, "examples": count}
        error = {} if exact is None else {"precision_error": float(np.abs(once[k, 0] - exact[k, 0]).max())}
        found.append(known | error)
    return found


def anchor_risks(problem: Problem, plane: Plane, precision: str = "highest") -> np.ndarray:
    """The risk at the plane's anchors, evaluated directly at w(a, b), [M]."""
    with jax.default_matmul_precision(precision):
        return directly(streamed_risk, problem, plane, plane.anchors)
