"""The plane of `landscape explore` and its extent."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from landscape import planes
from landscape.arrays import trees
from landscape.explore.inputs import Target
from landscape.planes import Plane, spectrum
from landscape.planes.grids import Grid, grid_around

Params = Any
LEAST = 0.01
"""Least loss at the centre when an extent is chosen; smaller losses count as this."""
MOST = 1e6


def plane_of(
    config: Any, target: Target, solutions: Sequence[Params], paths: Mapping[str, Sequence[Params]], key: jax.Array
) -> Plane:
    """The plane that --plane names."""
    if config.plane == "solutions":
        return planes.through_solutions(*solutions[:3])
    if config.plane == "oblique":
        return planes.oblique_through_solutions(*solutions[:3])
    if config.plane == "random":
        axis = None if target.problem else False  # a function has no branches to tell apart
        return planes.random_filter_normalized(
            key, solutions[0], config.normalize, network=target.risk, branch_axis=axis, vectors=config.vectors
        )
    if config.plane == "pca":
        return planes.trajectory_pca(next(iter(paths.values())) if paths else solutions)
    build = planes.top_hessian if config.plane == "hessian" else planes.gradient_curvature
    return build(target.risk, solutions[0], key)


def to_arrays(plane: Plane, grid: Grid, extent: str) -> dict[str, Any]:
    """A plane with its grid as named arrays."""
    trio = {
        f"{name}{n}": x for name in ("origin", "u", "v") for n, x in enumerate(jax.tree.leaves(getattr(plane, name)))
    }
    return {**trio, "anchors": plane.anchors, "kind": plane.kind, "a": grid.a, "b": grid.b, "extent": extent}


def from_arrays(arrays: Mapping[str, np.ndarray], like: Params) -> tuple[Plane, Grid, str]:
    """Read the arrays of `to_arrays`, for parameters like the given ones."""
    structure = jax.tree.structure(like)
    trio = [
        structure.unflatten([jnp.asarray(arrays[f"{name}{n}"]) for n in range(structure.num_leaves)])
        for name in ("origin", "u", "v")
    ]
    plane = Plane(trio[0], trio[1], trio[2], arrays["anchors"], str(arrays["kind"]))
    return plane, Grid(arrays["a"], arrays["b"]), str(arrays["extent"])


def grid_of(config: Any, risk: Any, plane: Plane) -> tuple[Grid, str]:
    """The grid, and in words how its extent was chosen."""
    if len(plane.anchors) > 1:
        if plane.kind == "trajectory_pca":
            return _around_path(plane, config.points, config.margin), f"the path and {config.margin:.0%} around, square"
        return grid_around(plane, config.points, config.margin), f"the solutions and {config.margin:.0%} around"
    size, met = radius(risk, plane, config.rise)
    axis = np.linspace(-size, size, config.points)
    if met == "nothing":
        return Grid(axis, axis), f"radius {size:.3g}: the loss at the centre is not finite"
    if not met:
        return Grid(axis, axis), f"radius {size:.3g}: the loss never rises to {config.rise:g} times that of the centre"
    least = f" (taken as {LEAST:g})" if met == "least" else ""
    return Grid(axis, axis), f"radius {size:.3g}, where the loss is {config.rise:g} times that of the centre{least}"


def _around_path(plane: Plane, points: int, margin: float) -> Grid:
    """A square around a path. A path mostly runs along the first direction, and a strip would hide its surroundings."""
    low, high = plane.anchors.min(0), plane.anchors.max(0)
    half = (0.5 + margin) * float(np.max(high - low))
    return Grid(*(np.linspace(middle - half, middle + half, points) for middle in (low + high) / 2))


def radius(risk: Any, plane: Plane, rise: float) -> tuple[float, str]:
    """The radius r at which the mean loss at ±r on both axes is `rise` times that of the centre (at least 0.01).

    Args:
        risk: A `Problem`, or a pure function risk(params).
        plane: A plane; its origin is the centre.
        rise: Factor, more than 1.

    Returns:
        r in the coordinates of the plane, to one per cent, and "centre" or "least", for which loss was multiplied;
        1 and "" where the loss never rises so far; 1 and "nothing" where that of the centre is not finite.
    """
    of, data = spectrum.objective(risk)
    value = jax.jit(lambda data, plane, a, b: of(data, plane.at((a, b))))
    trio = plane._replace(anchors=jnp.zeros((0, 2)), kind=None)  # a tree of arrays

    def mean(r: float) -> float:
        points = [(r, 0.0), (-r, 0.0), (0.0, r), (0.0, -r)]
        return float(np.mean([float(value(data, trio, a, b)) for a, b in points]))

    centre = float(value(data, trio, 0.0, 0.0))
    if not np.isfinite(centre):
        return 1.0, "nothing"
    target = rise * max(centre, LEAST)
    low, high = 0.0, 1e-3
    while mean(high) < target:  # a loss that is not finite has risen
        low, high = high, 2 * high
        if high > MOST:
            return 1.0, ""
    while high - low > 0.01 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if mean(middle) < target else (low, middle)
    return high, "centre" if centre >= LEAST else "least"


def regulariser(plane: Plane, grid: Grid, weight: float) -> np.ndarray:
    """λ/2 ‖o + a u + b v‖² at every point, [A, B], from six inner products."""
    trio = [plane.origin, plane.u, plane.v]
    products = np.array([[float(trees.vdot(x, y)) for x in trio] for y in trio])
    one = np.stack([np.ones((len(grid.a), len(grid.b))), *np.meshgrid(grid.a, grid.b, indexing="ij")], -1)
    return weight / 2 * np.einsum("abi,ij,abj->ab", one, products, one)
