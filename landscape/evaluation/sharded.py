"""Running a surface: block of examples after block, resumable, a few planes at a time."""

import contextlib
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain, islice
from typing import Any, NamedTuple

import jax
import numpy as np

from landscape.arrays import hardware, trees
from landscape.evaluation import block, cost_model, moments
from landscape.evaluation.anchors import compiled, losses_at
from landscape.evaluation.block import DeviceInputs, example_of, shard_shapes
from landscape.evaluation.example_layout import ORDER_SEED
from landscape.evaluation.execution import Execution
from landscape.evaluation.grid_loop import Tile
from landscape.files import atomic
from landscape.files.progress import showing
from landscape.losses import Loss
from landscape.planes import Plane
from landscape.planes.grids import Grid
from landscape.problem import Problem, fingerprint

EXAMPLES_AT_LEAST = 200
"""Examples before a standard error is believed."""


class PlaneSums(NamedTuple):
    """What was computed on one plane.

    Attributes:
        total: The sums over examples at the grid points, row by row of a, [K, A B].
        anchor_risk: The risk at the anchors, over the same examples, [M].
    """

    total: moments.Total
    anchor_risk: np.ndarray


class Sums(NamedTuple):
    """The sums over examples on R planes, and the plan by which they were computed.

    Attributes:
        planes: R results.
        plan: Route and sizes.
        points: (A, B).
    """

    planes: list[PlaneSums]
    plan: cost_model.Plan
    points: tuple[int, int]

    @property
    def values(self) -> np.ndarray:
        """Means of the losses, [R, Q, A, B]."""
        found = np.stack([plane.total.means for plane in self.planes])
        return found.reshape(*found.shape[:2], *self.points)


def problem_means(
    problem: Problem, plane: Plane, grid: Grid, losses: Sequence[Loss], execution: Execution
) -> np.ndarray:
    """The mean of every loss at every point of a grid, [Q, A, B]."""
    return stack_means(problem, [plane], [grid], losses, execution).values[0]


def stack_means(
    problem: Problem, planes: Iterable[Plane], grids: Sequence[Grid], losses: Sequence[Loss], execution: Execution
) -> Sums:
    """The sums over examples on R planes, with grids of one shape, by one program.

    Planes are taken a few at a time, as many as fit the memory.

    Args:
        problem: Data and network.
        planes: R planes, at least one; they may be made on demand.
        grids: As many grids, of one shape.
        losses: Q functions.
        execution: How to run.
    """
    waiting, parts = iter(planes), []
    first = next(waiting)
    with jax.default_matmul_precision(execution.precision):
        plan = plan_for(problem, first, grids[0], execution)
        batches = -(-len(grids) // planes_per_batch(first, plan, execution))
        size, waiting = -(-len(grids) // batches), chain([first], waiting)
        for start in range(0, len(grids), size):
            batch, their = list(islice(waiting, size)), grids[start : start + size]
            found, plan = _while_it_fits(partial(_blocks, problem, batch, their, tuple(losses), execution), plan)
            parts.extend(found)
    return Sums(parts, plan, (len(grids[0].a), len(grids[0].b)))


def _while_it_fits(
    compute: Callable[[cost_model.Plan], list[PlaneSums]], plan: cost_model.Plan
) -> tuple[list[PlaneSums], cost_model.Plan]:
    """Compute with a plan; when the device runs out of memory, warn, halve the tile and begin again.

    Of several processes none can know that of the others, and the error ends them.
    """
    while True:
        try:
            return compute(plan), plan
        except jax.errors.JaxRuntimeError as error:
            halved = cost_model.smaller(plan.tile)
            if "RESOURCE_EXHAUSTED" not in str(error) or halved == plan.tile or jax.process_count() > 1:
                raise
            plan = plan._replace(tile=halved)
            warnings.warn(f"The device ran out of memory; going on with half of it: {plan.tile}.", stacklevel=2)


def planes_per_batch(plane: Plane, plan: cost_model.Plan, execution: Execution) -> int:
    """Number of planes whose parameters fit in memory at once; 1 if the branches are sharded."""
    if plan.branch_shards > 1 or jax.process_count() > 1 or plan.route.name == "direct":
        return 1
    if execution.tolerance is not None:
        return 1  # each plane stops by itself
    copies = len(execution.devices) if execution.platform == "cpu" else 1
    # Every plane is held as it comes, laid out, and in the stack.
    return max(1, (execution.budget - plan.temporary) // (4 * copies * trees.nbytes(plane.affine)))


def plan_for(problem: Problem, plane: Plane, grid: Grid, execution: Execution) -> cost_model.Plan:
    """Tile, operations and bytes of a surface, before anything runs; the same on all processes.

    Branches are split over as few devices as the memory asks for.

    Raises:
        ValueError: The surface does not fit however the branches are split, or they cannot be split as asked.
    """
    counts, devices, memory = problem.network.counts, len(execution.devices), execution.budget
    possible, asked = hardware.shares(counts, devices), execution.branch_shards
    if asked not in (None, *possible):
        raise ValueError(
            f"branch_devices must divide the {devices} devices and the {counts} branches: one of {possible}; "
            f"got {asked}."
        )
    *others, last = [asked] if asked else possible
    for shards in others:
        with contextlib.suppress(ValueError):
            return _plan(problem, plane, grid, execution, shards, memory)
    return _plan(problem, plane, grid, execution, last, memory)


def _plan(
    problem: Problem, plane: Plane, grid: Grid, execution: Execution, shards: int, memory: int
) -> cost_model.Plan:
    network, several = problem.network, not isinstance(problem.network.num_branches, int)
    counts = tuple(n // shards for n in network.counts)
    plan = cost_model.plan(
        replace(network, num_branches=counts if several else counts[0]),
        shard_shapes(plane.origin, shards).tree(),
        example_of(problem, plane),
        examples=len(problem.data),
        points=(len(grid.a), len(grid.b)),
        memory=memory,
        devices=len(execution.devices) // shards,
        platform=execution.platform,
        route=execution.route,
        threads=execution.workers // len(execution.devices),
    )
    tile = execution.tile or Tile(*hardware.from_leader(np.array(plan.tile)).tolist())
    return plan._replace(tile=tile, operations=plan.operations * shards, branch_shards=shards)


def _blocks(
    problem: Problem,
    planes: Sequence[Plane],
    grids: Sequence[Grid],
    losses: tuple[Loss, ...],
    execution: Execution,
    plan: cost_model.Plan,
) -> list[PlaneSums]:
    """The sums on every plane; finished blocks are kept on disk."""
    inputs = block.prepare(problem, planes, grids, losses, plan, execution)
    blocks, kept = inputs.layout.blocks, _kept(inputs, planes, grids, execution)
    known = [kept.load(i) for i in range(blocks)]
    points, examples = len(planes) * len(grids[0].a) * len(grids[0].b), 0
    sums = np.zeros((len(planes), moments.length(len(losses)), inputs.size))
    anchors = np.zeros((len(planes), 0 if inputs.direct else len(planes[0].anchors)))
    with showing(execution.progress, "surface", points, "points") as bar:
        for i, there in enumerate(hardware.from_leader(np.array([found is not None for found in known])).tolist()):
            found = known[i]
            if not there:
                found = _of_block(inputs, i, planes)
                kept.save(i, found)
            if found:
                sums, anchors = sums + found["sums"], anchors + found["anchors"]
            examples = min((i + 1) * inputs.layout.block, len(problem.data))
            bar.update(points * (i + 1) // blocks - points * i // blocks)
            execution.check_stop()
            if execution.tolerance is not None:
                so_far = _apart(inputs, hardware.from_leader(sums), anchors, examples, grids[0])[0].total
                if _precise_enough(so_far, execution, len(problem.data)):
                    bar.update(points - points * (i + 1) // blocks)
                    break
    return _apart(inputs, hardware.from_leader(sums), hardware.from_leader(anchors), examples, grids[0])


def _of_block(inputs: DeviceInputs, i: int, planes: Sequence[Plane]) -> dict[str, np.ndarray]:
    """The sums over block i, [R, K, points], and Σ w ℓ at the anchors, [R, M]; on the direct route these are points."""
    if inputs.direct:
        return {"sums": inputs.sums(i)[None], "anchors": np.zeros((1, 0))}
    x, y, weights = inputs.examples(i)
    at = [losses_at(compiled(inputs.problem, p), inputs.problem, p, p.anchors, x, y) for p in planes]
    first = np.stack([losses[0] if len(losses) else np.zeros(len(y)) for losses in at])
    sums = inputs.sums(i, reference=first)
    return {"sums": sums if len(planes) > 1 else sums[None], "anchors": np.stack([a @ weights.weight for a in at])}


def _apart(inputs: DeviceInputs, sums: Any, anchors: Any, examples: int, grid: Grid) -> list[PlaneSums]:
    """The sums plane by plane, those at the anchors by themselves."""
    data, layout, size = inputs.problem.data, inputs.layout, len(grid.a) * len(grid.b)
    weight = np.asarray(data.weight, float)
    weight = (weight if layout.order is None else weight[layout.order])[:examples]
    group, found = layout.group[:examples], []
    for part, at in zip(sums, anchors, strict=True):
        whole = moments.Total(part, weight, group)
        risk = whole.means[0, size:] if inputs.direct else at / weight.sum()
        found.append(PlaneSums(whole._replace(sums=part[:, :size]), risk))
    return found


def _precise_enough(total: moments.Total, execution: Execution, examples: int) -> bool:
    """Whether the largest standard error is below the tolerance, of the mean over all `examples`."""
    known = np.count_nonzero(total.weight)
    if known < min(EXAMPLES_AT_LEAST, examples):
        return False
    risk, error = total.means[0], total.errors(of=examples).standard
    return bool(np.nanmax(np.where(np.isfinite(risk), error, np.nan), initial=0.0) <= execution.allowed_error(risk))


def _kept(inputs: DeviceInputs, planes: Sequence[Plane], grids: Sequence[Grid], execution: Execution) -> atomic.Blocks:
    """Where the blocks are kept: nowhere without a folder, or where another process keeps them."""
    if execution.directory is None or not hardware.leading():
        return atomic.Blocks(None, "")
    layout, options = inputs.layout, inputs.options
    sizes = (*options["tile"], execution.precision, layout.blocks, dict(layout.mesh.shape), layout.threads)
    sizes += ("random order", ORDER_SEED) if layout.order is not None else ()
    of = block.direct_points if inputs.direct else lambda _, grid: tuple(grid)
    where = [(tuple(plane.affine), of(plane, grid)) for plane, grid in zip(planes, grids, strict=True)]
    computed = fingerprint(inputs.problem, options["losses"]), *options["route"][:2]
    return atomic.Blocks(execution.directory, atomic.fingerprint(computed, where, sizes))
