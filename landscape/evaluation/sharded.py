"""Running the grid loop: over blocks of examples and all devices, resumable block by block."""

import contextlib
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from landscape.arrays import hardware, trees
from landscape.evaluation import cost_model
from landscape.evaluation.grid_loop import Tile, grid_sums, lay_out
from landscape.files import atomic
from landscape.files.progress import Bar, showing
from landscape.losses import Loss
from landscape.networks import MultiBranch
from landscape.planes import Plane
from landscape.planes.grids import Grid
from landscape.problem import Problem, fingerprint

OPERATIONS_A_BLOCK = {"cpu": 1e11, "gpu": 2e13, "tpu": 2e13}
"""Aim for one block of work on one device: a second or a few; how much is lost by an interruption."""


class Settings(NamedTuple):
    """How to run; nothing of this changes what is computed beyond rounding."""

    precision: str
    memory: int | None
    tile: Tile | None
    devices: tuple[Any, ...]
    directory: Path | None
    progress: bool | Bar
    check_stop: Callable[[], None]
    branch_devices: int | None = None

    @property
    def budget(self) -> int:
        """Bytes allowed on each device, the same on all processes."""
        return hardware.allowed(self.memory, self.devices)


class Sums(NamedTuple):
    """Σ weight ℓ / Σ weight at every grid point, and how it was computed."""

    values: np.ndarray
    plan: cost_model.Plan


def problem_means(problem: Problem, plane: Plane, grid: Grid, losses: Sequence[Loss], settings: Settings) -> Sums:
    """The mean of every loss at every point of a grid, [Q, A, B], float64 sums of blocks."""
    found = stack_means(problem, [plane], [grid], losses, settings)
    return found._replace(values=found.values[0])


def stack_means(
    problem: Problem, planes: Sequence[Plane], grids: Sequence[Grid], losses: Sequence[Loss], settings: Settings
) -> Sums:
    """`problem_means` on R planes, with grids of one shape, by one program: [R, Q, A, B].

    When the device runs out of memory the tile is halved, with a warning, and the surfaces begun again; of several
    processes none can know that of the others, and the error ends them.
    """
    plan, parts = plan_for(problem, planes[0], grids[0], settings), []
    size = -(-len(planes) // -(-len(planes) // together(planes[0], plan, settings)))
    while size * len(parts) < len(planes):
        part = slice(size * len(parts), size * (len(parts) + 1))
        try:
            with jax.default_matmul_precision(settings.precision):
                parts.append(_blocks(problem, planes[part], grids[part], tuple(losses), plan, settings))
        except jax.errors.JaxRuntimeError as error:
            halved = cost_model.smaller(plan.tile)
            if "RESOURCE_EXHAUSTED" not in str(error) or halved == plan.tile or jax.process_count() > 1:
                raise
            plan = plan._replace(tile=halved)
            warnings.warn(f"The device ran out of memory; going on with half of it: {plan.tile}.", stacklevel=2)
    return Sums(np.concatenate(parts) / float(np.sum(np.asarray(problem.data.weight, float))), plan)


def together(plane: Plane, plan: cost_model.Plan, settings: Settings) -> int:
    """How many planes fit the memory beside each other, as they come, laid out and stacked; one where one is spread."""
    if plan.share > 1 or jax.process_count() > 1:
        return 1
    copies = len(settings.devices) if settings.devices[0].platform == "cpu" else 1
    return max(1, (settings.budget - plan.temporary) // (4 * copies * nbytes(plane)))


def plan_for(problem: Problem, plane: Plane, grid: Grid, settings: Settings) -> cost_model.Plan:
    """Tile, operations and bytes of a surface, before anything runs; the same on all processes.

    Branches are split over as few devices as the memory asks for.

    Raises:
        ValueError: It fits however the branches are split, or they cannot be split as asked.
    """
    network, memory, devices = problem.network, settings.budget, len(settings.devices)
    possible = hardware.shares(network.counts, devices)
    if settings.branch_devices not in (None, *possible):
        raise ValueError(
            f"branch_devices must divide the {devices} devices and the {network.counts} branches: one of {possible}; "
            f"got {settings.branch_devices}."
        )
    *others, last = [settings.branch_devices] if settings.branch_devices else possible
    for share in others:
        with contextlib.suppress(ValueError):
            return _plan(problem, plane, grid, settings, share, memory)
    return _plan(problem, plane, grid, settings, last, memory)


def _plan(problem: Problem, plane: Plane, grid: Grid, settings: Settings, share: int, memory: int) -> cost_model.Plan:
    network, several = problem.network, not isinstance(problem.network.num_branches, int)
    counts = tuple(n // share for n in network.counts)
    plan = cost_model.plan(
        replace(network, num_branches=counts if several else counts[0]),
        part_of(plane.origin, share).tree(),
        jax.ShapeDtypeStruct(problem.data.x.shape[1:], float_type(plane)),
        examples=len(problem.data),
        points=(len(grid.a), len(grid.b)),
        memory=memory,
        devices=len(settings.devices) // share,
        platform=settings.devices[0].platform,
    )
    tile = settings.tile or Tile(*hardware.from_leader(np.array(plan.tile)).tolist())
    return plan._replace(tile=tile, operations=plan.operations * share, share=share)


def part_of(params: Any, share: int) -> trees.Signature:
    """Shapes of one device's part of parameters [I, ...] whose branches are split over `share` devices."""
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct((x.shape[0] // share, *x.shape[1:]), x.dtype), params)
    return trees.Signature.of(shapes)


def float_type(plane: Plane) -> Any:
    """The type in which a plane's parameters are held."""
    return jnp.result_type(*jax.tree.leaves(plane.origin))


class _Layout(NamedTuple):
    """Examples in blocks: each block is `chunks` chunks on every one of the devices that share the examples."""

    mesh: Mesh
    chunks: int
    blocks: int
    block: int

    def over(self, axis: str) -> NamedSharding:
        """Values whose first axis is split along an axis of the mesh."""
        return NamedSharding(self.mesh, P(axis))


def _layout(problem: Problem, plan: cost_model.Plan, settings: Settings, planes: int, whole: bool) -> _Layout:
    chunks, devices = -(-len(problem.data) // plan.tile.examples), len(settings.devices) // plan.share
    sharing = max(d for d in range(1, devices + 1) if devices % d == 0 and d <= chunks)
    mesh = hardware.mesh(settings.devices, points=devices // sharing, examples=sharing, branches=plan.share)
    operations = max(planes * plan.operations / plan.share, 1)
    aim = math.inf if whole else OPERATIONS_A_BLOCK.get(settings.devices[0].platform, 1e11) * chunks / operations
    blocks = -(-chunks // (sharing * max(1, int(min(aim, chunks)))))
    each = -(-chunks // (sharing * blocks))
    return _Layout(mesh, each, blocks, each * sharing * plan.tile.examples)


@partial(jax.jit, static_argnames=("network", "losses", "tile", "mesh", "like", "stacked"))
def block_sums(
    triple: Any,
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

    A stack of R planes is a loop on the device, traced once whatever R. In its place `vmap` takes R times the
    temporary memory and is no faster, as a tile fills the cache already (measured at R = 5).

    Args:
        triple: (o, u, v), trees [I, ...].
        data: (x [N, ...], y [N], weight [N]), split along "examples".
        axes: (a [A], b [B]), the latter split along "points".
        network: The network.
        losses: Q functions.
        tile: Sizes of the grid loop.
        mesh: Axes "points", "examples" and, where branches are split, "branches".
        like: As in `grid_sums`, of one device's part of the branches.
        stacked: Whether triple, axes and the result have a first axis [R], one entry a plane.
    """
    axis = "branches" if mesh.shape.get("branches", 1) > 1 else None

    def one(triple: Any, data: Any, axes: Any) -> jax.Array:
        return grid_sums(network, losses, triple, data, axes, tile, like.tree() if like else None, axis)[None]

    run = jax.shard_map(
        one,
        mesh=mesh,
        in_specs=(P(axis), P("examples"), (P(), P("points"))),
        out_specs=P("examples", None, None, "points"),
        check_vma=False,
    )
    return lax.map(lambda plane: run(plane[0], data, plane[1]), (triple, axes)) if stacked else run(triple, data, axes)


class Prepared(NamedTuple):
    """The arguments of `block_sums`, on the devices; the examples block by block."""

    problem: Problem
    layout: _Layout
    triple: Any
    axes: Any
    options: dict[str, Any]

    def data(self, i: int) -> tuple[Any, ...]:
        """Block i of the examples."""
        dtype = jnp.result_type(*self.axes)
        return hardware.placed(_block(self.problem, self.layout, i, dtype), self.layout.over("examples"))

    def sums(self, i: int) -> np.ndarray:
        """Σ weight ℓ over block i, [R, Q, A, padded B] or without R for one plane, in float64."""
        found = block_sums(self.triple, self.data(i), self.axes, **self.options)
        return hardware.gathered(found).astype(float).sum(-4)


def prepare(
    problem: Problem,
    planes: Sequence[Plane],
    grids: Sequence[Grid],
    losses: Sequence[Loss],
    plan: cost_model.Plan,
    settings: Settings,
    whole: bool = False,
) -> Prepared:
    """Lay planes and grids on the devices, and the weights of the first layer out where there is room.

    Args:
        problem: Data and network.
        planes: R planes.
        grids: As many grids, of one shape.
        losses: Q functions.
        plan: Of one of the surfaces.
        settings: How to run.
        whole: Take all examples as one block.
    """
    layout, one = _layout(problem, plan, settings, len(planes), whole), planes[0]
    placed = [_placed(problem, *both, layout, plan, settings.budget) for both in zip(planes, grids, strict=True)]
    triple, axes = trees.stack(placed) if len(planes) > 1 else placed[0]
    like = part_of(one.origin, plan.share) if _roomy(one, plan, settings.budget) else None
    options = {"network": problem.network, "losses": tuple(losses), "tile": plan.tile, "mesh": layout.mesh}
    return Prepared(problem, layout, triple, axes, options | {"like": like, "stacked": len(planes) > 1})


def _blocks(
    problem: Problem,
    planes: Sequence[Plane],
    grids: Sequence[Grid],
    losses: tuple[Loss, ...],
    plan: cost_model.Plan,
    settings: Settings,
) -> np.ndarray:
    prepared = prepare(problem, planes, grids, losses, plan, settings)
    layout = prepared.layout
    kept = _kept(problem, planes, grids, losses, plan.tile, layout, settings)
    known = [kept.load(i) for i in range(layout.blocks)]
    total = np.zeros((len(planes), len(losses), len(grids[0].a), len(grids[0].b)))
    points = total[:, 0].size
    with showing(settings.progress, "surface", points, "points") as bar:
        for i, there in enumerate(hardware.from_leader(np.array([found is not None for found in known])).tolist()):
            found = known[i]
            if not there:
                found = {"sums": prepared.sums(i)[..., : total.shape[-1]].reshape(total.shape)}
                kept.save(i, found)
            total += found["sums"] if found else 0.0
            bar.update(points * (i + 1) // layout.blocks - points * i // layout.blocks)
            settings.check_stop()
    return hardware.from_leader(total)


def _roomy(plane: Plane, plan: cost_model.Plan, memory: int) -> bool:
    """Whether the weights of the first layer can be laid out beside the plane."""
    return 4 * nbytes(plane) < memory * plan.share


def _placed(
    problem: Problem, plane: Plane, grid: Grid, layout: _Layout, plan: cost_model.Plan, memory: int
) -> tuple[Any, Any]:
    """The three trees and the axes on the devices, the weights of the first layer laid out where there is room."""
    triple, dtype = hardware.placed((plane.origin, plane.u, plane.v), layout.over("branches")), float_type(plane)
    if _roomy(plane, plan, memory):
        triple = tuple(_laid_out(problem.network, problem.data.x.shape[1:], w) for w in triple)
    b = np.pad(grid.b, (0, -len(grid.b) % layout.mesh.shape["points"]), mode="edge").astype(dtype)
    a = hardware.placed(grid.a.astype(dtype), NamedSharding(layout.mesh, P()))
    return triple, (a, hardware.placed(b, layout.over("points")))


def _kept(
    problem: Problem,
    planes: Sequence[Plane],
    grids: Sequence[Grid],
    losses: tuple[Loss, ...],
    tile: Tile,
    layout: _Layout,
    settings: Settings,
) -> atomic.Blocks:
    """Where the blocks are kept: nowhere without a folder, or where another process keeps them."""
    if settings.directory is None or not hardware.leading():
        return atomic.Blocks(None, "")
    sizes = (*tile, settings.precision, layout.blocks, dict(layout.mesh.shape))
    where = [(plane[:3], tuple(grid)) for plane, grid in zip(planes, grids, strict=True)]
    return atomic.Blocks(settings.directory, atomic.fingerprint(fingerprint(problem, losses), where, sizes))


@partial(jax.jit, static_argnums=(0, 1))
def _laid_out(network: MultiBranch, shape: tuple[int, ...], params: Any) -> Any:
    """Compiled once a network, and not once a surface."""
    return lay_out(network, params, jax.ShapeDtypeStruct(shape, jnp.result_type(*jax.tree.leaves(params))))


def _block(problem: Problem, layout: _Layout, i: int, dtype: Any) -> tuple[np.ndarray, ...]:
    """Examples of block i on the host, the last block padded with examples of weight zero."""
    data, part = problem.data, slice(i * layout.block, (i + 1) * layout.block)
    x, y, weight = (np.asarray(t[part]) for t in (data.x, data.y, data.weight))
    rest = layout.block - len(y)
    x = x.astype(dtype) if np.issubdtype(x.dtype, np.floating) else x
    y = y.astype(dtype) if np.issubdtype(y.dtype, np.floating) else y
    x, y = (np.pad(t, [(0, rest)] + [(0, 0)] * (t.ndim - 1), mode="edge") for t in (x, y))
    return x, y, np.pad(weight, (0, rest)).astype(dtype)


def device_words(devices: Sequence[Any]) -> str:
    """Devices in words: "2 x cpu"."""
    return f"{len(devices)} x {devices[0].device_kind}"


def nbytes(plane: Plane) -> int:
    """Bytes of the three trees of a plane."""
    return trees.nbytes(tuple(plane)[:3])
