"""`evaluate`: the loss at every point of a grid on a plane, with the checks that make it trustworthy."""

from collections.abc import Callable, Mapping, Sequence
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
from landscape.evaluation.grid_loop import Tile
from landscape.files.progress import Bar
from landscape.losses import Loss
from landscape.planes import Plane, check_solutions
from landscape.planes.grids import Grid, checked, grid_around
from landscape.problem import Problem
from landscape.surfaces import Surface


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
    directory: Path | str | None = None,
    progress: bool | Bar = True,
    check_stop: Callable[[], None] = lambda: None,
) -> Surface:
    """The risk at every point of a grid on a plane, R(w(a_i, b_j)) with w(a, b) = o + a u + b v (§5.1).

    A `Problem` runs staged in lanes on all devices; w(a, b) never exists for more than a chunk of branches. Any
    other function of the parameters runs point by point inside one compiled loop.

    Args:
        problem: A `Problem`, or a pure function risk(params) -> scalar or dict of scalars ("risk" or its first entry is
            drawn, the others become layers).
        plane: The plane.
        grid: The points; `grid_around(plane)` when None. A ≠ B is allowed.
        layers: Further losses by name, evaluated in the same pass (for a `Problem`).
        precision: Of matrix products: "highest" (float32), "high" (tf32 or bf16 in three passes), "default".
        memory: Bytes allowed on each device.
        tile: Sizes of the grid loop instead of those of the cost model.
        devices: All devices of all processes when None.
        branch_devices: Over how many of them the branches of each solution are split, a divisor of both numbers; when
            None as few as the memory asks for.
        directory: Where finished blocks are kept, so that the same call continues an interrupted one.
        progress: True for a bar, False for silence, or a bar already open.
        check_stop: Called whenever a block is on disk; may raise to interrupt.

    Returns:
        The surface, with its self-checks in `metadata["checks"]`.

    Raises:
        ValueError: Parameters that do not fit the problem or are not finite, a grid that is not increasing, a surface
            that does not fit the memory, or a function that is not deterministic or returns no scalars.
    """
    grid = checked(grid_around(plane) if grid is None else grid)
    used = tuple(devices or jax.devices())
    settings = sharded.Settings(
        precision, memory, tile, used, Path(directory) if directory else None, progress, check_stop, branch_devices
    )
    if isinstance(problem, Problem):
        return _of_problem(problem, [plane], [grid], layers or {}, settings)[0]
    check_solutions(plane.origin, plane.u, plane.v)
    return _of_function(problem, plane, grid, settings, _about(plane, settings))


def evaluate_stack(
    problem: Problem,
    planes: Sequence[Plane],
    grids: Sequence[Grid],
    *,
    precision: str = "highest",
    memory: int | None = None,
    directory: Path | str | None = None,
    progress: bool | Bar = True,
    check_stop: Callable[[], None] = lambda: None,
) -> list[Surface]:
    """`evaluate` on R planes in one compiled computation, traced once whatever R is.

    Args:
        problem: The risk on all of them.
        planes: R planes, of triples of solutions for example.
        grids: As many grids, with the same numbers of points.
        precision: As in `evaluate`, like the others.
        memory: Bytes allowed on each device; where R planes do not fit, as many as do run at a time.
        directory: Where finished blocks are kept.
        progress: True for a bar, False for silence, or a bar already open.
        check_stop: Called whenever a block is on disk.

    Raises:
        ValueError: As in `evaluate`, or no planes, or other numbers of grids or of points.
    """
    shapes = {(len(grid.a), len(grid.b)) for grid in grids}
    if not planes or len(grids) != len(planes) or len(shapes) > 1:
        raise ValueError(
            f"A stack of surfaces needs one grid a plane, all with the same numbers of points; got {len(planes)} "
            f"planes and {len(grids)} grids of {' and '.join(f'{a} x {b}' for a, b in sorted(shapes)) or 'no'} points."
        )
    folder = Path(directory) if directory else None
    settings = sharded.Settings(precision, memory, None, tuple(jax.devices()), folder, progress, check_stop)
    return _of_problem(problem, planes, [checked(grid) for grid in grids], {}, settings)


def _about(plane: Plane, settings: sharded.Settings) -> dict[str, Any]:
    about = {"plane": plane.kind, "parameters": trees.size(plane.origin), "precision": settings.precision}
    about["device"] = sharded.device_words(settings.devices)
    return about | {"versions": {"landscape": __version__, "jax": jax.__version__}}


def _of_problem(
    problem: Problem,
    planes: Sequence[Plane],
    grids: Sequence[Grid],
    layers: Mapping[str, Loss],
    settings: sharded.Settings,
) -> list[Surface]:
    for plane in planes:
        check_solutions(plane.origin, plane.u, plane.v)
        _refuse_misfit(problem, plane)
    losses, counted = {"risk": problem.loss, **layers}, problem.on_support
    sums = sharded.stack_means(counted, planes, grids, list(losses.values()), settings)
    checked_at = checks.check_anchors(counted, planes, list(losses.values()), sums.plan.tile, settings)
    about = {
        "branches": problem.network.total,
        "average": problem.network.average,
        "loss": getattr(problem.loss, "__name__", "loss"),
        "dataset": problem.data.name,
        "examples": len(problem.data),
        "data_sha256": problem.data.fingerprint,
        "tile": list(sums.plan.tile),
        "operations": sums.plan.operations,
    }
    found = []
    for plane, grid, values, at in zip(planes, grids, sums.values, checked_at, strict=True):
        drawn, *others = values
        risk = checks.anchor_risks(counted, plane, settings.precision)
        known = _about(plane, settings) | about | {"checks": at}
        found.append(Surface(grid, drawn, plane.anchors, risk, dict(zip(layers, others, strict=True)), known))
    return found


def plan(
    problem: Problem, plane: Plane, grid: Grid, memory: int | None = None, tile: Tile | None = None
) -> cost_model.Plan:
    """Tile, operations and bytes of `evaluate`, from shapes alone: nothing runs and the plane may be one of shapes."""
    settings = sharded.Settings("highest", memory, tile, tuple(jax.devices()), None, False, lambda: None)
    return sharded.plan_for(problem, plane, grid, settings)


def _of_function(
    risk: Callable[[Any], Any], plane: Plane, grid: Grid, settings: sharded.Settings, about: dict[str, Any]
) -> Surface:
    steady = pointwise.check_function(risk, plane)
    layers = dict(pointwise.function_values(risk, plane, grid, settings))
    name = "risk" if "risk" in layers else next(iter(layers))
    at_anchors = []
    for ab in plane.anchors.tolist():
        out = jax.jit(risk)(plane.at(tuple(ab)))
        at_anchors.append(float(out[name] if isinstance(out, Mapping) else out))
    about |= {"loss": name if name != "risk" else getattr(risk, "__name__", "risk"), "checks": steady}
    return Surface(grid, layers.pop(name), plane.anchors, np.array(at_anchors), layers, about)


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
    grid, found = _along(points), []
    for ends in segments:
        check_solutions(*ends)
    if not isinstance(problem, Problem):
        with jax.default_matmul_precision(precision):
            lines = _of_function_along(problem, *map(trees.stack, zip(*segments, strict=True)), jnp.asarray(grid.a))
        return jax.tree.map(np.asarray, lines)
    problem = problem.on_support
    settings = sharded.Settings(precision, memory, None, tuple(jax.devices()), None, False, lambda: None)
    while len(found) < len(segments):
        first = _line(*segments[len(found)])
        size = sharded.together(first, sharded.plan_for(problem, first, grid, settings), settings)
        lines = [first, *(_line(*ends) for ends in segments[len(found) + 1 : len(found) + size])]
        sums = sharded.stack_means(problem, lines, [grid] * len(lines), [problem.loss], settings)
        found.extend(sums.values[:, 0, :, 0])
    return np.array(found)


@partial(jax.jit, static_argnums=0)
def _of_function_along(risk: Callable[[Any], Any], starts: Any, ends: Any, t: jax.Array) -> Any:
    def segment(pair: tuple[Any, Any]) -> Any:
        step = trees.subtract(pair[1], pair[0])
        return lax.map(lambda s: risk(trees.axpy(s, step, pair[0])), t)

    return lax.map(segment, (starts, ends))


def _along(points: int) -> Grid:
    if points < 2:
        raise ValueError(f"A profile needs at least 2 points, its ends included; got {points}.")
    return Grid(np.linspace(0, 1, points), np.zeros(1))


def _line(start: Any, end: Any) -> Plane:
    step = trees.subtract(end, start)
    return Plane(start, step, jax.tree.map(jnp.zeros_like, step), np.zeros((0, 2)), "line")
