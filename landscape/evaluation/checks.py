"""What makes a surface trustworthy: the evaluator at the anchors, against direct evaluation and against itself."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from landscape.arrays import hardware
from landscape.arrays.trees import Affine
from landscape.compiler import staged
from landscape.evaluation import block, cost_model, sharded
from landscape.evaluation.execution import Execution
from landscape.evaluation.grid_loop import Tile
from landscape.losses import Loss
from landscape.planes import Plane
from landscape.planes.grids import Grid
from landscape.problem import Problem, each, outputs, outputs_in_pairs, streamed_risk

EXAMPLES_CHECKED = 512
PAIRS_CHECKED = 64
"""Examples on which the direct route is checked: by programs that are compiled anyway, and not the fastest."""
BRANCHES_CHECKED = 512
"""Where the network does not say: activations of so many branches exist at a time."""
PRODUCTS = {"highest": 0.0, "high": 2.0**-10, "default": 2.0**-8}
"""Rounding of matrix products at each precision on accelerators (tf32, bfloat16); "highest" is that of the outputs."""


def agreement(
    runs: tuple[np.ndarray, np.ndarray], other: np.ndarray, dtypes: Sequence[Any], examples: int, precision: str
) -> dict[str, Any]:
    """Whether two runs of one computation are equal, and whether another way of computing it agrees with them.

    Args:
        runs: The same program run twice, [..., Q].
        other: The same quantities computed in another way, [..., Q].
        dtypes: Types in which it is computed; the coarsest sets the tolerance, the square root of its rounding.
        examples: Examples that entered.
        precision: Of matrix products.

    Returns:
        deterministic; max_difference of the first quantity (its units); relative_difference, the largest of all
        quantities against their size or 1; tolerance of the latter; rounding, the coarsest type; examples.
    """
    one, again = (np.asarray(run, np.float64) for run in runs)
    other = np.asarray(other, np.float64)
    with np.errstate(invalid="ignore"):
        away = np.where((one == other) | (np.isnan(one) & np.isnan(other)), 0.0, np.abs(one - other))
    away = np.where(np.isnan(away), np.inf, away).reshape(-1, one.shape[-1])
    sizes = np.abs(np.where(np.isfinite(other), other, 0.0)).reshape(away.shape).max(0, initial=1.0)
    coarsest = max(dtypes, key=lambda dtype: float(jnp.finfo(dtype).eps))
    rounding = max(PRODUCTS.get(precision, 0.0), float(jnp.finfo(coarsest).eps))
    return {
        "deterministic": bool(np.array_equal(one, again, equal_nan=True)),
        "max_difference": float(away[:, 0].max()),
        "relative_difference": float((away / sizes).max()),
        "tolerance": float(np.sqrt(rounding)),
        "rounding": str(jnp.dtype(coarsest)),
        "examples": examples,
    }


def disagreement(found: Mapping[str, Any]) -> str:
    """What is wrong with a surface, in words, from its `metadata["checks"]`; empty where nothing is."""
    if not found["deterministic"]:
        return "two evaluations at the same parameters give different losses"
    if found["relative_difference"] > found["tolerance"]:
        return (
            f"the surface and a direct evaluation at the same parameters differ by {found['relative_difference']:.1e} "
            f"(relative); rounding of {found.get('rounding', 'float32')} explains {found['tolerance']:.0e}"
        )
    return ""


def refuse_disagreement(found: Mapping[str, Any]) -> None:
    """Refuse a loss that is not one function of the parameters.

    Raises:
        ValueError: `disagreement` finds something.
    """
    if wrong := disagreement(found):
        raise ValueError(
            f"The loss is not one function of the parameters: {wrong}; a surface needs a deterministic function.\n"
            "  Fix its random keys, switch dropout and augmentation off."
        )


Forward = Callable[..., jax.Array]


def plainly(network: Any, params: Any, x: jax.Array, axis: str | None) -> jax.Array:
    """The network's own `apply`, summed over the devices that the branches are split over."""
    return hardware.summed(network.apply(params, x), axis)


@partial(jax.jit, static_argnums=(0, 1, 2, 6))
def _risk(forward: Forward, network: Any, loss: Loss, affine: Affine, ab: Any, data: Any, mesh: Mesh | None) -> Any:
    """The risk at w(a, b), whose branches may be split over a mesh ("branches",)."""

    def risk(w: Any, data: Any) -> jax.Array:
        return streamed_risk(partial(forward, network, axis=mesh and "branches"), loss, w, data)

    if mesh is None:
        return risk(affine.at(ab), data)
    split = jax.shard_map(risk, mesh=mesh, in_specs=(P("branches"), P()), out_specs=P(), check_vma=False)
    return split(affine.at(ab), data)


def directly(forward: Forward, problem: Problem, plane: Plane, points: np.ndarray) -> np.ndarray:
    """The risk at points w(a, b) of a plane, one after another, [M].

    Args:
        forward: (network, params, x, axis) -> outputs: `plainly` or `problem.outputs`.
        problem: The problem; its network runs a chunk of branches at a time.
        plane: The plane; where its branches are split over devices, they stay so.
        points: (a, b), [M, 2].
    """
    network = replace(problem.network, branch_chunk=problem.network.branch_chunk or BRANCHES_CHECKED)
    mesh, points = hardware.home_of(plane.origin), points.astype(plane.float_type)
    return np.array(
        [_risk(forward, network, problem.loss, plane.affine, ab, problem.data, mesh) for ab in points], float
    )


def check_direct(
    problem: Problem, plane: Plane, grid: Grid, losses: Sequence[Loss], plan: cost_model.Plan, execution: Execution
) -> dict[str, Any]:
    """`check_anchors` on the direct route: by the program that computes the surface, against two examples at a time."""
    points = plane.anchors if len(plane.anchors) else np.zeros((1, 2))

    def means(precision: str) -> tuple[np.ndarray, int]:
        with jax.default_matmul_precision(precision):
            inputs = block.prepare(problem, [plane], [grid], losses, plan, execution).at(points)
            count = min(len(problem.data), inputs.layout.block, PAIRS_CHECKED)
            return inputs.sums(0, count) / np.sum(np.asarray(problem.data.weight[:count], float)), count

    (once, count), (twice, _) = (means(execution.precision) for _ in range(2))
    with jax.default_matmul_precision(execution.precision):
        expected = _in_pairs(problem, plane, points, count)
        coarsest = staged.rounding(problem.network, plane.origin, block.example_of(problem, plane))
    known = agreement((once[0][:, None], twice[0][:, None]), expected[:, None], [coarsest], count, execution.precision)
    known["deterministic"] &= bool(np.array_equal(once, twice, equal_nan=True))
    if execution.precision != "highest":
        known["precision_error"] = float(np.abs(once[0] - means("highest")[0][0]).max())
    return known


def _in_pairs(problem: Problem, plane: Plane, points: np.ndarray, count: int) -> np.ndarray:
    """The risk over the first examples at points of a plane, by the plain forward pass of two examples, [M]."""
    data = problem.data.taken(slice(count))
    y, weight = np.asarray(data.y), np.asarray(data.weight, float)
    x = jax.tree.map(lambda t: np.pad(t, [(0, count % 2)] + [(0, 0)] * (t.ndim - 1), mode="edge"), data.x)
    found = []
    for ab in points.astype(plane.float_type):
        f = outputs_in_pairs(problem.network, _at(plane.affine, ab), x)[:count]
        found.append(weight @ np.asarray(each(problem.loss, jnp.asarray(f), jnp.asarray(y)), float) / weight.sum())
    return np.array(found)


_at = jax.jit(Affine.at)


def check_anchors(
    problem: Problem, planes: Sequence[Plane], losses: Sequence[Loss], tile: Tile, execution: Execution
) -> list[dict[str, Any]]:
    """The evaluator at the anchors, twice, against the network's own `apply`, on the first examples of the data.

    Returns:
        For each plane what `agreement` returns; with products below float32 also precision_error, the largest
        difference from the same in float32 (loss units).
    """
    points = [plane.anchors if len(plane.anchors) else np.zeros((1, 2)) for plane in planes]
    count = min(len(problem.data), EXAMPLES_CHECKED)
    some = problem.data.taken(slice(count))
    x, y, weight = jax.tree.map(np.asarray, (some.x, some.y, some.weight))
    first = Problem(type(problem.data)(x, y, weight), problem.network, problem.loss)
    grids = [Grid(*at.T) for at in points]
    execution = replace(execution, tile=tile._replace(points=1), directory=None, progress=False)

    def means(precision: str) -> np.ndarray:
        found = sharded.stack_means(first, planes, grids, losses, replace(execution, precision=precision))
        return np.diagonal(found.values, axis1=2, axis2=3)

    once, twice = (means(execution.precision) for _ in range(2))
    exact = means("highest") if execution.precision != "highest" else None
    with jax.default_matmul_precision(execution.precision):
        expected = [directly(plainly, first, *at) for at in zip(planes, points, strict=True)]
        coarsest = staged.rounding(problem.network, planes[0].origin, block.example_of(problem, planes[0]))
    found = []
    for k in range(len(planes)):
        runs = once[k, 0][:, None], twice[k, 0][:, None]
        known = agreement(runs, expected[k][:, None], [coarsest], count, execution.precision)
        known["deterministic"] &= bool(np.array_equal(once[k], twice[k], equal_nan=True))
        error = {} if exact is None else {"precision_error": float(np.abs(once[k, 0] - exact[k, 0]).max())}
        found.append(known | error)
    return found


def anchor_risks(problem: Problem, plane: Plane, precision: str = "highest") -> np.ndarray:
    """The risk at the plane's anchors, evaluated directly at w(a, b), [M]; half precision by `apply` itself."""
    with jax.default_matmul_precision(precision):
        coarsest = staged.rounding(problem.network, plane.origin, sharded.example_of(problem, plane))
        return directly(outputs if coarsest.itemsize >= 4 else plainly, problem, plane, plane.anchors)
