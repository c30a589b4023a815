"""What makes a surface trustworthy: the evaluator at the anchors, against direct evaluation and against itself."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from landscape.arrays.trees import Affine
from landscape.compiler import staged
from landscape.datasets import Dataset
from landscape.evaluation import anchors, block, cost_model, sharded
from landscape.evaluation.execution import Execution
from landscape.evaluation.grid_loop import Tile
from landscape.losses import Loss
from landscape.planes import Plane
from landscape.planes.grids import Grid
from landscape.problem import Problem, each, outputs_in_pairs

EXAMPLES_CHECKED = 512
PAIRS_CHECKED = 64
"""Examples on which the direct route is checked: by programs that are compiled anyway, and not the fastest."""
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


def check_direct(
    problem: Problem, plane: Plane, grid: Grid, losses: Sequence[Loss], plan: cost_model.Plan, execution: Execution
) -> dict[str, Any]:
    """`check_anchors` on the direct route: by the program that computes the surface, against two examples at a time."""
    points = plane.anchors if len(plane.anchors) else np.zeros((1, 2))

    def means(precision: str) -> tuple[np.ndarray, Dataset]:
        with jax.default_matmul_precision(precision):
            inputs = block.prepare(problem, [plane], [grid], losses, plan, execution).at(points)
            first = inputs.part(0, PAIRS_CHECKED)
            found = inputs.sums(0, PAIRS_CHECKED)[: len(losses)]
            return found / np.sum(np.asarray(first.weight, float)), first

    (once, first), (twice, _) = (means(execution.precision) for _ in range(2))
    count = len(first)
    with jax.default_matmul_precision(execution.precision):
        expected = _in_pairs(problem, plane, points, first)
        coarsest = staged.rounding(problem.network, plane.origin, block.example_of(problem, plane))
    known = agreement((once[0][:, None], twice[0][:, None]), expected[:, None], [coarsest], count, execution.precision)
    known["deterministic"] &= bool(np.array_equal(once, twice, equal_nan=True))
    if execution.precision != "highest":
        known["precision_error"] = float(np.abs(once[0] - means("highest")[0][0]).max())
    return known


def _in_pairs(problem: Problem, plane: Plane, points: np.ndarray, data: Dataset) -> np.ndarray:
    """The risk over some examples at points of a plane, by the plain forward pass of two examples, [M]."""
    count = len(data)
    y, weight = np.asarray(data.y), np.asarray(data.weight, float)
    x = jax.tree.map(lambda t: np.pad(t, [(0, count % 2)] + [(0, 0)] * (t.ndim - 1), mode="edge"), data.x)
    found = []
    for ab in points.astype(plane.float_type):
        f = outputs_in_pairs(problem.network, _at(plane.affine, ab), x)[:count]
        found.append(weight @ np.asarray(_each(problem.loss, f, y), float) / weight.sum())
    return np.array(found)


_at, _each = jax.jit(Affine.at), jax.jit(each, static_argnums=0)


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
    execution = replace(execution, tile=tile._replace(points=1), directory=None, progress=False, tolerance=None)

    def means(precision: str) -> np.ndarray:
        found = sharded.stack_means(first, planes, grids, losses, replace(execution, precision=precision))
        return np.diagonal(found.values, axis1=2, axis2=3)

    once, twice = (means(execution.precision) for _ in range(2))
    exact = means("highest") if execution.precision != "highest" else None
    with jax.default_matmul_precision(execution.precision):
        expected = [anchors.risks_at(anchors.plainly, first, *at) for at in zip(planes, points, strict=True)]
        coarsest = staged.rounding(problem.network, planes[0].origin, block.example_of(problem, planes[0]))
    found = []
    for k in range(len(planes)):
        runs = once[k, 0][:, None], twice[k, 0][:, None]
        known = agreement(runs, expected[k][:, None], [coarsest], count, execution.precision)
        known["deterministic"] &= bool(np.array_equal(once[k], twice[k], equal_nan=True))
        error = {} if exact is None else {"precision_error": float(np.abs(once[k, 0] - exact[k, 0]).max())}
        found.append(known | error)
    return found
