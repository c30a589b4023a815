"""`evaluate`: the loss at every point of a grid on a plane, with the checks that make it trustworthy."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from landscape import __version__
from landscape.arrays import trees
from landscape.evaluation import checks, cost_model, pointwise, sharded
from landscape.evaluation.example_layout import ORDER_SEED
from landscape.evaluation.execution import Execution
from landscape.evaluation.grid_loop import Tile
from landscape.files.progress import Bar
from landscape.losses import Loss
from landscape.planes import Plane, check_solutions, of_read
from landscape.planes.grids import Grid, checked, grid_around
from landscape.problem import Problem, refuse_mixing
from landscape.surfaces import Provenance, Surface, check_names


def evaluate(
    problem: Problem | Callable[[Any], Any],
    plane: Plane,
    grid: Grid | None = None,
    *,
    layers: Mapping[str, Loss] | None = None,
    precision: str = "highest",
    memory: int | None = None,
    tile: Tile | None = None,
    devices: Sequence[Any] | None = None,
    branch_devices: int | None = None,
    route: str | None = None,
    tolerance: float | str | None = None,
    directory: Path | str | None = None,
    progress: bool | Bar = True,
    check_stop: Callable[[], None] = lambda: None,
) -> Surface:
    """The risk at every point of a grid on a plane, R(w(a_i, b_j)) with w(a, b) = o + a u + b v (§5.1).

    A `Problem` runs staged on all devices; w(a, b) never exists for more than a chunk of branches. Any
    other function of the parameters runs point by point inside one compiled loop.

    Args:
        problem: A `Problem`, or a pure function risk(params) -> scalar or dict of scalars ("risk" or its first entry is
            drawn, the others become layers). Leaves of the plane that it does not read are taken out of it, and named.
        plane: The plane.
        grid: The points; `grid_around(plane)` when None. A ≠ B is allowed.
        layers: Further losses by name, evaluated in the same pass (for a `Problem`).
        precision: Of matrix products: "highest" (float32), "high" (tf32 or bf16 in three passes), "default".
        memory: Bytes allowed on each device.
        tile: Sizes of the grid loop instead of those of the cost model.
        devices: All devices of all processes when None.
        branch_devices: Over how many of them the branches of each solution are split, a divisor of both numbers; when
            None as few as the memory asks for.
        route: "lanes", all branches and examples side by side behind a first layer that is computed once, or "direct",
            the forward pass as its author wrote it; chosen by the cost model when None.
        tolerance: Stop as soon as the largest standard error of the surface is this small, in loss units or as a share
            of the surface's range ("1%"). The examples of a `Problem` are then taken in a fixed random order, and the
            errors are those of the mean over all of its data. Without it all examples are taken, and the errors are
            those of the mean over the population that they were drawn from.
        directory: Where finished blocks are kept, so that the same call continues an interrupted one.
        progress: True for a bar, False for silence, or a bar already open.
        check_stop: Called whenever a block is on disk; may raise to interrupt.

    Returns:
        The surface, with its self-checks in `metadata["checks"]`; that of a `Problem` with its standard errors.

    Raises:
        ValueError: Parameters that do not fit the problem or are not finite, outputs for one example that depend on the
            others of its batch, names that `surfaces.check_names` refuses, a grid that does not increase, a surface
            that does not fit the memory, a function that is not deterministic or returns no scalars, or a tolerance
            that is no positive number or share, or was given with a function.
    """
    execution = Execution(
        precision=precision,
        memory=memory,
        tile=tile,
        branch_shards=branch_devices,
        route=route,
        tolerance=tolerance,
        directory=Path(directory) if directory else None,
        progress=progress,
        check_stop=check_stop,
    )
    if devices:
        execution = replace(execution, devices=tuple(devices))
    if not isinstance(problem, Problem):
        check_solutions(plane.origin, plane.u, plane.v)
        pointwise.quantities(problem, plane)
        plane = of_read(problem, plane, rebuild=grid is None)
    return surface_on(problem, plane, grid_around(plane) if grid is None else grid, execution, layers)


def surface_on(
    problem: Problem | Callable[[Any], Any],
    plane: Plane,
    grid: Grid,
    execution: Execution,
    layers: Mapping[str, Loss] | None = None,
) -> Surface:
    """`evaluate`, with everything that concerns the run in one record; arguments and errors are those of `evaluate`."""
    if isinstance(problem, Problem):
        return evaluate_stack(problem, [plane], [grid], execution, layers)[0]
    if execution.tolerance is not None:
        raise ValueError(
            "A tolerance is for the mean over examples of a Problem; a function risk(params) has no examples."
        )
    check_solutions(plane.origin, plane.u, plane.v)
    return _of_function(problem, plane, checked(grid), execution)


def evaluate_stack(
    problem: Problem,
    planes: Sequence[Plane],
    grids: Sequence[Grid],
    execution: Execution | None = None,
    layers: Mapping[str, Loss] | None = None,
) -> list[Surface]:
    """`evaluate` on R planes in one compiled computation, traced once whatever R is.

    Args:
        problem: The risk on all of them.
        planes: R planes, of triples of solutions for example; where they do not fit the memory, a few run at a time.
        grids: As many grids, with the same numbers of points.
        execution: How to run.
        layers: Further losses by name.

    Raises:
        ValueError: As in `evaluate`, or no planes, or other numbers of grids or of points.
    """
    execution = execution or Execution()
    grids, layers = [checked(grid) for grid in grids], layers or {}
    check_names(layers)
    shapes = {(len(grid.a), len(grid.b)) for grid in grids}
    if not planes or len(grids) != len(planes) or len(shapes) > 1:
        raise ValueError(
            f"A stack of surfaces needs one grid a plane, all with the same numbers of points; got {len(planes)} "
            f"planes and {len(grids)} grids of {' and '.join(f'{a} x {b}' for a, b in sorted(shapes)) or 'no'} points."
        )
    for plane in planes:
        check_solutions(plane.origin, plane.u, plane.v)
        _refuse_misfit(problem, plane)
    losses, counted = {"risk": problem.loss, **layers}, problem.on_support
    with jax.default_matmul_precision(execution.precision):
        direct = sharded.plan_for(counted, planes[0], grids[0], execution).route.name == "direct"
        refuse_mixing(problem.network, planes[0].origin, counted.data.x, in_pairs=direct)
    sums = sharded.stack_means(counted, planes, grids, list(losses.values()), execution)
    checked_at = _checked(counted, planes, grids, list(losses.values()), sums.plan, execution)
    for found in checked_at:
        checks.refuse_disagreement(found)
    about = replace(
        _about(planes[0], execution),
        branches=problem.network.total,
        average=problem.network.average,
        loss=getattr(problem.loss, "__name__", "loss"),
        dataset=problem.data.name,
        data_sha256=problem.data.fingerprint,
        tile=list(sums.plan.tile),
        route=str(sums.plan.route),
        operations=sums.plan.operations,
    )
    found = []
    for plane, grid, values, part, at in zip(planes, grids, sums.values, sums.planes, checked_at, strict=True):
        drawn, *others = values
        errors = {k: v.reshape(*v.shape[:-1], *drawn.shape) for k, v in _errors(part, counted, execution).items()}
        known = replace(
            about,
            plane=plane.kind,
            checks=at,
            **_sampled(part, problem if execution.tolerance is None else counted, execution, errors),
        )
        named = dict(zip(layers, others, strict=True))
        found.append(Surface(grid, drawn, plane.anchors, part.anchor_risk, named, known, **errors))
    return found


def _errors(part: sharded.PlaneSums, problem: Problem, execution: Execution) -> dict[str, np.ndarray]:
    """The sampling errors of a surface, by the names that it gives them; [..., A B]."""
    found = part.total.errors(of=None if execution.tolerance is None else len(problem.data))
    left_out = {"left_out": found.left_out.astype(np.float32)} if found.left_out.shape[0] > 1 else {}
    return {"standard_error": found.standard, "difference_error": found.difference, **left_out}


def _sampled(
    part: sharded.PlaneSums, problem: Problem, execution: Execution, errors: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """Which examples were taken, and what for."""
    if execution.tolerance is None:
        return {"examples": len(problem.data), "error_of": "the population"}
    return {
        "examples": len(part.total.weight),
        "examples_available": len(problem.data),
        "error_of": "the data set",
        "tolerance": str(execution.tolerance),
        "largest_standard_error": float(np.nanmax(errors["standard_error"], initial=0.0)),
        "order_seed": ORDER_SEED,
    }


def _checked(
    problem: Problem,
    planes: Sequence[Plane],
    grids: Sequence[Grid],
    losses: Sequence[Loss],
    plan: cost_model.Plan,
    execution: Execution,
) -> list[dict[str, Any]]:
    """The self-checks of every plane."""
    if plan.route.name == "direct":
        pairs = zip(planes, grids, strict=True)
        return [checks.check_direct(problem, *pair, losses, plan, execution) for pair in pairs]
    return checks.check_anchors(problem, planes, losses, plan.tile, execution)


def _about(plane: Plane, execution: Execution) -> Provenance:
    return Provenance(
        plane=plane.kind,
        parameters=trees.size(plane.origin),
        precision=execution.precision,
        device=execution.device_words,
        versions={"landscape": __version__, "jax": jax.__version__},
    )


def plan(
    problem: Problem, plane: Plane, grid: Grid, memory: int | None = None, tile: Tile | None = None
) -> cost_model.Plan:
    """Tile, operations and bytes of `evaluate`, from shapes alone: nothing runs and the plane may be one of shapes."""
    execution = Execution(memory=memory, tile=tile)
    with jax.default_matmul_precision(execution.precision):
        return sharded.plan_for(problem, plane, grid, execution)


def _of_function(risk: Callable[[Any], Any], plane: Plane, grid: Grid, execution: Execution) -> Surface:
    direct, steady = pointwise.check_function(risk, plane, execution)
    layers = dict(pointwise.function_values(risk, plane, grid, execution))
    name = pointwise.drawn(list(layers))
    loss = getattr(risk, "__name__", "risk") if name == "risk" else name
    about = replace(_about(plane, execution), loss=loss, checks=steady)
    return Surface(grid, layers.pop(name), plane.anchors, direct[: len(plane.anchors)], layers, about)


def _refuse_misfit(problem: Problem, plane: Plane) -> None:
    wanted = problem.shapes
    shapes = [[x.shape for x in jax.tree.leaves(tree)] for tree in (wanted, plane.origin)]
    if jax.tree.structure(wanted) != jax.tree.structure(plane.origin) or shapes[0] != shapes[1]:
        raise ValueError(
            f"The plane's parameters do not belong to {problem.network}: it has arrays {shapes[0]}, the plane "
            f"{shapes[1]}."
        )


def profile(
    problem: Problem | Callable[[Any], Any],
    start: Any,
    end: Any,
    *,
    points: int = 51,
    precision: str = "highest",
    memory: int | None = None,
) -> np.ndarray:
    """The risk along the segment (1 − t) start + t end, at equally spaced t from 0 to 1, [points].

    Args:
        problem: A `Problem`, or a pure function risk(params) -> scalar.
        start: Parameters at t = 0.
        end: Parameters at t = 1.
        points: Points on the segment, ends included.
        precision: As in `evaluate`.
        memory: As in `evaluate`.

    Raises:
        ValueError: Fewer than two points, different trees, or values that are not finite.
    """
    lines = profiles(problem, [(start, end)], points=points, precision=precision, memory=memory)
    return (lines.get("risk", next(iter(lines.values()))) if isinstance(lines, Mapping) else lines)[0]


def profiles(
    problem: Problem | Callable[[Any], Any],
    segments: Sequence[tuple[Any, Any]],
    *,
    points: int = 51,
    precision: str = "highest",
    memory: int | None = None,
) -> Any:
    """`profile` along E segments in one compiled computation, [E, points]; of a dict of scalars a dict of these.

    Args:
        problem: A `Problem`, or a pure function risk(params) -> scalar or dict of scalars.
        segments: Pairs (start, end) of parameters.
        points: As in `profile`, like the others.
        precision: As in `evaluate`.
        memory: As in `evaluate`; where E segments do not fit, as many as do run at a time.

    Raises:
        ValueError: As in `profile`.
    """
    grid = _along(points)
    for ends in segments:
        check_solutions(*ends)
    if not isinstance(problem, Problem):
        with jax.default_matmul_precision(precision):
            found = _of_function_along(problem, *map(trees.stack, zip(*segments, strict=True)), jnp.asarray(grid.a))
        return jax.tree.map(np.asarray, found)
    if not segments:
        return np.zeros((0, points))
    lines, execution = (_line(*ends) for ends in segments), Execution(precision, memory)
    grids = [grid] * len(segments)
    return sharded.stack_means(problem.on_support, lines, grids, [problem.loss], execution).values[:, 0, :, 0]


@partial(jax.jit, static_argnums=0)
def _of_function_along(risk: Callable[[Any], Any], starts: Any, ends: Any, t: jax.Array) -> Any:
    def segment(pair: tuple[Any, Any]) -> Any:
        start, end = map(trees.widened, pair)
        step = trees.subtract(end, start)
        return lax.map(lambda s: risk(trees.axpy(s, step, start)), t)

    return lax.map(segment, (starts, ends))


def _along(points: int) -> Grid:
    if points < 2:
        raise ValueError(f"A profile needs at least 2 points, its ends included; got {points}.")
    return Grid(np.linspace(0, 1, points), np.zeros(1))


def _line(start: Any, end: Any) -> Plane:
    start = trees.widened(start)
    step = trees.subtract(trees.widened(end), start)
    return Plane(start, step, jax.tree.map(jnp.zeros_like, step), np.zeros((0, 2)), "line")
