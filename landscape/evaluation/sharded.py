"""Running the grid loop: over blocks of examples and all devices, resumable block by block."""

import contextlib
import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain, islice
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from landscape.arrays import hardware, trees
from landscape.arrays.trees import Affine
from landscape.evaluation import cost_model
from landscape.evaluation.execution import Execution
from landscape.evaluation.grid_loop import Tile, grid_sums, lay_out
from landscape.files import atomic
from landscape.files.progress import showing
from landscape.losses import Loss
from landscape.networks import MultiBranch
from landscape.planes import Plane
from landscape.planes.grids import Grid
from landscape.problem import Problem, fingerprint

OPERATIONS_A_BLOCK, SHARE_OF_EXAMPLES = {"cpu": 1e11, "gpu": 2e13, "tpu": 2e13}, 8
"""Aim for one block of work on one device, a second or a few; its examples take an eighth of the memory at most."""


class Sums(NamedTuple):
    """Means of the losses at every grid point, and their plan."""

    values: np.ndarray
    plan: cost_model.Plan


def problem_means(problem: Problem, plane: Plane, grid: Grid, losses: Sequence[Loss], execution: Execution) -> Sums:
    """The mean of every loss at every point of a grid, [Q, A, B]."""
    values, plan = stack_means(problem, [plane], [grid], losses, execution)
    return Sums(values[0], plan)


def stack_means(
    problem: Problem, planes: Iterable[Plane], grids: Sequence[Grid], losses: Sequence[Loss], execution: Execution
) -> Sums:
    """`problem_means` on R planes, with grids of one shape, by one program: [R, Q, A, B].

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
            values, plan = _while_it_fits(partial(_blocks, problem, batch, their, tuple(losses), execution), plan)
            parts.append(values)
    return Sums(np.concatenate(parts) / float(np.sum(np.asarray(problem.data.weight, float))), plan)


def _while_it_fits(
    compute: Callable[[cost_model.Plan], np.ndarray], plan: cost_model.Plan
) -> tuple[np.ndarray, cost_model.Plan]:
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
    if plan.branch_shards > 1 or jax.process_count() > 1:
        return 1
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
    )
    tile = execution.tile or Tile(*hardware.from_leader(np.array(plan.tile)).tolist())
    return plan._replace(tile=tile, operations=plan.operations * shards, branch_shards=shards)


def shard_shapes(params: Any, shards: int) -> trees.Signature:
    """Shapes of one device's part of parameters [I, ...] whose branches are split over `shards` devices."""
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct((x.shape[0] // shards, *x.shape[1:]), x.dtype), params)
    return trees.Signature.of(shapes)


def example_of(problem: Problem, plane: Plane) -> Any:
    """Shape and type of one example, as the grid loop takes it."""
    return jax.tree.map(lambda x: x.update(dtype=_as_floats(x.dtype, plane.float_type)), problem.data.example)


def _as_floats(dtype: Any, wanted: Any) -> Any:
    """The wanted type in place of float32 and float64; integers and half precision stay."""
    return wanted if dtype in (np.float32, np.float64) else dtype


class ExampleLayout(NamedTuple):
    """How the examples are split into blocks, and each block over the devices that share the examples.

    Attributes:
        mesh: Axes "points", "examples" and "branches".
        blocks: Number of blocks.
        block: Examples of a block; the last block is padded.
    """

    mesh: Mesh
    blocks: int
    block: int

    def over(self, axis: str) -> NamedSharding:
        """Values whose first axis is split along an axis of the mesh."""
        return NamedSharding(self.mesh, P(axis))


def _layout(problem: Problem, plan: cost_model.Plan, execution: Execution, planes: int, whole: bool) -> ExampleLayout:
    chunks, devices = -(-len(problem.data) // plan.tile.examples), len(execution.devices) // plan.branch_shards
    sharing = max(d for d in range(1, devices + 1) if devices % d == 0 and d <= chunks)
    mesh = hardware.mesh(execution.devices, points=devices // sharing, examples=sharing, branches=plan.branch_shards)
    operations = max(planes * plan.operations / plan.branch_shards, 1)
    aim = math.inf if whole else OPERATIONS_A_BLOCK.get(execution.platform, 1e11) * chunks / operations
    one = SHARE_OF_EXAMPLES * trees.nbytes(problem.data.example) * plan.tile.examples * sharing
    aim = aim if whole else max(1, min(aim, execution.budget // one))
    blocks = -(-chunks // (sharing * max(1, int(min(aim, chunks)))))
    each = -(-chunks // (sharing * blocks))
    return ExampleLayout(mesh, blocks, each * sharing * plan.tile.examples)


@partial(jax.jit, static_argnames=("network", "losses", "tile", "mesh", "like", "stacked"))
def block_sums(
    affine: Affine,
    data: Any,
    axes: Any,
    *,
    network: MultiBranch,
    losses: tuple[Loss, ...],
    tile: Tile,
    mesh: Mesh,
    like: trees.Signature | None = None,
    stacked: bool = False,
) -> jax.Array:
    """`grid_sums` on every device of a mesh: [devices that share the examples, Q, A, B].

    A stack of R planes is a loop: `vmap` takes R times the memory and is no faster (at R = 5).
    Args:
        affine: (o, u, v), trees [I, ...].
        data: (x [N, ...], y [N], weight [N]), split along "examples".
        axes: (a [A], b [B]), the latter split along "points".
        network: The network.
        losses: Q functions.
        tile: Sizes of the grid loop.
        mesh: Axes "points", "examples" and, where branches are split, "branches".
        like: As in `grid_sums`, of one device's part of the branches.
        stacked: Whether affine, axes and the result have a first axis [R], one entry a plane; the planes run in a loop.
    """
    axis = "branches" if mesh.shape.get("branches", 1) > 1 else None

    def one(affine: Affine, data: Any, axes: Any) -> jax.Array:
        return grid_sums(network, losses, affine, data, axes, tile, like.tree() if like else None, axis)[None]

    run = jax.shard_map(
        one,
        mesh=mesh,
        in_specs=(P(axis), P("examples"), (P(), P("points"))),
        out_specs=P("examples", None, None, "points"),
        check_vma=False,
    )
    return lax.map(lambda plane: run(plane[0], data, plane[1]), (affine, axes)) if stacked else run(affine, data, axes)


class DeviceInputs(NamedTuple):
    """The arguments of `block_sums`, on the devices; the examples block by block."""

    problem: Problem
    layout: ExampleLayout
    affine: Affine
    axes: Any
    options: dict[str, Any]

    def data(self, i: int) -> tuple[Any, ...]:
        """Block i of the examples."""
        block = _block(self.problem, self.layout, i, jnp.result_type(*self.axes))
        return hardware.placed(block, self.layout.over("examples"))

    def sums(self, i: int) -> np.ndarray:
        """Σ weight ℓ over block i, [R, Q, A, padded B] or without R for one plane, in float64."""
        found = block_sums(self.affine, self.data(i), self.axes, **self.options)
        return hardware.gathered(found).astype(float).sum(-4)


def prepare(
    problem: Problem,
    planes: Sequence[Plane],
    grids: Sequence[Grid],
    losses: Sequence[Loss],
    plan: cost_model.Plan,
    execution: Execution,
    whole: bool = False,
) -> DeviceInputs:
    """Lay planes and grids on the devices, and the weights of the first layer out where there is room.

    Args:
        problem: Data and network.
        planes: R planes.
        grids: As many grids, of one shape.
        losses: Q functions.
        plan: Of one of the surfaces.
        execution: How to run.
        whole: Take all examples as one block.
    """
    layout, one = _layout(problem, plan, execution, len(planes), whole), planes[0]
    prelaid = fits_prelaid(one, plan, execution.budget)
    placed = [_placed(problem, *both, layout, prelaid) for both in zip(planes, grids, strict=True)]
    affine, axes = trees.stack(placed) if len(planes) > 1 else placed[0]
    like = shard_shapes(one.origin, plan.branch_shards) if prelaid else None
    options = {"network": problem.network, "losses": tuple(losses), "tile": plan.tile, "mesh": layout.mesh}
    return DeviceInputs(problem, layout, affine, axes, options | {"like": like, "stacked": len(planes) > 1})


def _blocks(
    problem: Problem,
    planes: Sequence[Plane],
    grids: Sequence[Grid],
    losses: tuple[Loss, ...],
    execution: Execution,
    plan: cost_model.Plan,
) -> np.ndarray:
    """Σ weight ℓ on every plane, [R, Q, A, B]; finished blocks are kept on disk."""
    inputs = prepare(problem, planes, grids, losses, plan, execution)
    blocks, kept = inputs.layout.blocks, _kept(inputs, planes, grids, execution)
    known = [kept.load(i) for i in range(blocks)]
    total = np.zeros((len(planes), len(losses), len(grids[0].a), len(grids[0].b)))
    points = total[:, 0].size
    with showing(execution.progress, "surface", points, "points") as bar:
        for i, there in enumerate(hardware.from_leader(np.array([found is not None for found in known])).tolist()):
            found = known[i]
            if not there:
                found = {"sums": inputs.sums(i)[..., : total.shape[-1]].reshape(total.shape)}
                kept.save(i, found)
            total += found["sums"] if found else 0.0
            bar.update(points * (i + 1) // blocks - points * i // blocks)
            execution.check_stop()
    return hardware.from_leader(total)


def fits_prelaid(plane: Plane, plan: cost_model.Plan, memory: int) -> bool:
    """Whether the weights of the first layer can be laid out beside the plane."""
    return 4 * trees.nbytes(plane.affine) < memory * plan.branch_shards


def _placed(problem: Problem, plane: Plane, grid: Grid, layout: ExampleLayout, prelaid: bool) -> tuple[Affine, Any]:
    """A plane and a grid on the devices."""
    affine, dtype = hardware.placed(plane.affine, layout.over("branches")), plane.float_type
    if prelaid:
        example = trees.Signature.of(example_of(problem, plane))
        affine = Affine(*(_laid_out(problem.network, example, w) for w in affine))
    b = np.pad(grid.b, (0, -len(grid.b) % layout.mesh.shape["points"]), mode="edge").astype(dtype)
    a = hardware.placed(grid.a.astype(dtype), NamedSharding(layout.mesh, P()))
    return affine, (a, hardware.placed(b, layout.over("points")))


@partial(jax.jit, static_argnums=(0, 1))
def _laid_out(network: MultiBranch, example: trees.Signature, params: Any) -> Any:
    """Compiled once a network, and not once a surface."""
    return lay_out(network, params, example.tree())


def _kept(inputs: DeviceInputs, planes: Sequence[Plane], grids: Sequence[Grid], execution: Execution) -> atomic.Blocks:
    """Where the blocks are kept: nowhere without a folder, or where another process keeps them."""
    if execution.directory is None or not hardware.leading():
        return atomic.Blocks(None, "")
    layout, options = inputs.layout, inputs.options
    sizes = (*options["tile"], execution.precision, layout.blocks, dict(layout.mesh.shape))
    where = [(tuple(plane.affine), tuple(grid)) for plane, grid in zip(planes, grids, strict=True)]
    key = atomic.fingerprint(fingerprint(inputs.problem, options["losses"]), where, sizes)
    return atomic.Blocks(execution.directory, key)


def _block(problem: Problem, layout: ExampleLayout, i: int, dtype: Any) -> tuple[Any, ...]:
    """Examples of block i on the host, the last block padded with examples of weight zero."""
    part = problem.data.taken(slice(i * layout.block, (i + 1) * layout.block))
    (x, y, weight), rest = jax.tree.map(np.asarray, (part.x, part.y, part.weight)), layout.block - len(part.y)

    def padded(t: np.ndarray) -> np.ndarray:
        return np.pad(t.astype(_as_floats(t.dtype, dtype)), [(0, rest)] + [(0, 0)] * (t.ndim - 1), mode="edge")

    return *jax.tree.map(padded, (x, y)), np.pad(weight, (0, rest)).astype(dtype)
