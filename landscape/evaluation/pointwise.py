"""Any other function of the parameters on a grid: point by point inside one compiled loop, resumable row by row."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from landscape.arrays import hardware
from landscape.arrays.trees import Affine
from landscape.compiler.flatten import coarsest, jaxpr_hash
from landscape.evaluation import checks
from landscape.evaluation.execution import Execution
from landscape.files import atomic
from landscape.files.progress import showing
from landscape.planes import Plane
from landscape.planes.grids import Grid
from landscape.surfaces import check_names

Risk = Callable[[Any], Any]


def point_loop(risk: Risk) -> Callable[[Any, Affine], jax.Array]:
    """The quantities of a function at points [M, 2] of a plane, [M, Q], in one compiled loop.

    It is traced anew whenever it is made: a function may be given again after what it closes over has changed.
    """
    return jax.jit(lambda points, affine: lax.map(lambda ab: _stacked(risk(affine.at(ab))), points))


def _stacked(out: Any) -> jax.Array:
    """A scalar or a dict of scalars as one array [Q]."""
    return jnp.stack([jnp.asarray(value) for value in jax.tree.leaves(out)])


def function_values(
    risk: Risk, plane: Plane, grid: Grid, execution: Execution, loop: Callable[..., Any] | None = None
) -> Mapping[str, np.ndarray]:
    """Any function of the parameters at every point of a grid, {name: [A, B]}, a row of points at a time.

    Of several processes each computes all of it; one keeps it.

    Args:
        risk: The function.
        plane: The plane.
        grid: The points.
        execution: How to run.
        loop: What `point_loop` made of the function before; made anew when None.
    """
    names, values = quantities(risk, plane)
    dtype, loop = plane.float_type, loop or point_loop(risk)
    kept, rows = atomic.Blocks(None, ""), []
    if execution.directory and hardware.leading():
        computed = names, execution.precision, jaxpr_hash(values, plane.origin)
        kept = atomic.Blocks(execution.directory, atomic.fingerprint(tuple(plane.affine), tuple(grid), *computed))
    with showing(execution.progress, "surface", len(grid.a) * len(grid.b), "points") as bar:
        for j, b in enumerate(grid.b):
            found = kept.load(j)
            if found is None:
                points = np.stack([grid.a, np.full(len(grid.a), b)], 1).astype(dtype)
                with jax.default_matmul_precision(execution.precision):
                    found = {"values": np.asarray(loop(points, plane.affine), np.float64)}
                kept.save(j, found)
            rows.append(found["values"])
            bar.update(len(grid.a))
            execution.check_stop()
    stacked = np.stack(rows, 1)
    return {name: stacked[..., k] for k, name in enumerate(names)}


def quantities(risk: Risk, plane: Plane) -> tuple[list[str], Callable[[Any], jax.Array]]:
    """The names of a function's quantities, and the function that stacks them, [Q].

    Raises:
        ValueError: They are not scalars, or have names that a file of surfaces cannot hold.
    """
    shape = jax.eval_shape(risk, plane.origin)
    found = shape if isinstance(shape, Mapping) else {"risk": shape}
    wrong = {k: v.shape for k, v in found.items() if getattr(v, "shape", None) != ()}
    if wrong or not found:
        raise ValueError(f"risk(params) must return a scalar or a dict of scalars; got shapes {wrong or 'of nothing'}.")
    check_names(name for name in found if name != "risk")
    return list(found), lambda params: _stacked(risk(params))


def drawn(names: list[str]) -> str:
    """The quantity that is drawn: "risk", or the first."""
    return "risk" if "risk" in names else names[0]


def check_function(risk: Risk, plane: Plane, execution: Execution) -> tuple[np.ndarray, dict[str, Any]]:
    """The function at the anchors (else the origin): called twice, and within the loop over points, traced anew.

    Returns:
        The drawn quantity at those points, called directly, and what `checks.agreement` finds.

    Raises:
        ValueError: Two calls differ, or the loop by more than rounding.
    """
    names, values = quantities(risk, plane)
    points = np.asarray(plane.anchors if len(plane.anchors) else np.zeros((1, 2))).astype(plane.float_type)
    direct = jax.jit(lambda w: values(w))
    with jax.default_matmul_precision(execution.precision):
        once, twice = (np.stack([np.asarray(direct(plane.at(tuple(ab)))) for ab in points]) for _ in range(2))
        looped = np.asarray(point_loop(risk)(points, plane.affine))
    first = sorted(range(len(names)), key=lambda k: names[k] != drawn(names))
    one, again, loop = (run[:, first] for run in (once, twice, looped))
    computed = coarsest(jax.make_jaxpr(lambda w: values(w))(plane.origin))
    found = checks.agreement((one, again), loop, [once.dtype, computed], 0, execution.precision)
    if checks.disagreement(found):
        other = loop if found["deterministic"] else again
        raise ValueError(
            f"risk(params) gave {one[0].tolist()} and then {other[0].tolist()} at the same parameters; a surface "
            "needs a deterministic function.\n  Fix its random keys, and switch dropout and data augmentation off."
        )
    return one[:, 0], found
