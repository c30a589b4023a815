"""Any other function of the parameters on a grid: point by point inside one compiled loop, resumable row by row."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from landscape.arrays import hardware
from landscape.compiler.flatten import program
from landscape.evaluation import sharded
from landscape.files import atomic
from landscape.files.progress import showing
from landscape.planes import Plane
from landscape.planes.grids import Grid

ROUNDING = 1e-3
"""Two evaluations of one function may differ by so much of its value, or of 1, in float32 and another order of sums."""


def function_values(
    risk: Callable[[Any], Any], plane: Plane, grid: Grid, settings: sharded.Settings
) -> Mapping[str, np.ndarray]:
    """Any function of the parameters at every point of a grid, {name: [A, B]}, a row of points at a time.

    Of several processes each computes all of it; one keeps it.
    """
    names, values = quantities(risk, plane)
    row = jax.jit(
        lambda b, axis, triple: lax.map(
            lambda a: values(Plane(triple[0], triple[1], triple[2], plane.anchors).at((a, b))), axis
        )
    )
    dtype = sharded.float_type(plane)
    axis, triple = jnp.asarray(grid.a, dtype), (plane.origin, plane.u, plane.v)
    kept = atomic.Blocks(None, "")
    if settings.directory and hardware.leading():
        computed = names, settings.precision, program(values, plane.origin)
        kept = atomic.Blocks(settings.directory, atomic.fingerprint(triple, tuple(grid), *computed))
    rows = []
    with showing(settings.progress, "surface", len(grid.a) * len(grid.b), "points") as bar:
        for j, b in enumerate(grid.b):
            found = kept.load(j)
            if found is None:
                with jax.default_matmul_precision(settings.precision):
                    found = {"values": np.asarray(row(jnp.asarray(b, dtype), axis, triple), np.float64)}
                kept.save(j, found)
            rows.append(found["values"])
            bar.update(len(grid.a))
            settings.check_stop()
    stacked = np.stack(rows, 1)
    return {name: stacked[..., k] for k, name in enumerate(names)}


def quantities(risk: Callable[[Any], Any], plane: Plane) -> tuple[list[str], Callable[[Any], jax.Array]]:
    """The names of a function's quantities, and the function that stacks them, [Q].

    Raises:
        ValueError: They are not scalars.
    """
    shape = jax.eval_shape(risk, plane.origin)
    found = shape if isinstance(shape, Mapping) else {"risk": shape}
    wrong = {k: v.shape for k, v in found.items() if getattr(v, "shape", None) != ()}
    if wrong or not found:
        raise ValueError(f"risk(params) must return a scalar or a dict of scalars; got shapes {wrong or 'of nothing'}.")

    def values(params: Any) -> jax.Array:
        out = risk(params)
        return jnp.stack([jnp.asarray(out[name] if isinstance(out, Mapping) else out) for name in found])

    return list(found), values


def check_function(risk: Callable[[Any], Any], plane: Plane) -> dict[str, Any]:
    """The function at the anchors (else the origin): called twice, and within the loop over points, traced anew.

    Returns:
        deterministic, max_difference between the loop and the direct calls, and examples, of which nothing is known.

    Raises:
        ValueError: Two calls differ, or the loop by more than rounding.
    """
    names, values = quantities(risk, plane)
    points = jnp.asarray(plane.anchors if len(plane.anchors) else np.zeros((1, 2)), sharded.float_type(plane))
    direct = jax.jit(lambda w: values(w))
    once, twice = (np.stack([np.asarray(direct(plane.at(tuple(ab)))) for ab in points]) for _ in range(2))
    trio = (plane.origin, plane.u, plane.v)
    loop = jax.jit(
        lambda points, trio: lax.map(
            lambda ab: values(plane._replace(origin=trio[0], u=trio[1], v=trio[2]).at(ab)), points
        )
    )
    looped = np.asarray(loop(points, trio))
    with np.errstate(invalid="ignore"):
        differences = np.nan_to_num(np.abs(looped - once))
    scale = np.maximum(1.0, np.nan_to_num(np.abs(once)))
    if not np.array_equal(once, twice, equal_nan=True) or (differences > ROUNDING * scale).any():
        again = looped if np.array_equal(once, twice, equal_nan=True) else twice
        raise ValueError(
            f"risk(params) gave {once[0].tolist()} and then {again[0].tolist()} at the same parameters; a surface "
            "needs a deterministic function.\n  Fix its random keys, and switch dropout and data augmentation off."
        )
    drawn = names.index("risk") if "risk" in names else 0
    return {"deterministic": True, "max_difference": float(differences[:, drawn].max()), "examples": 0}
