"""One block of examples on all devices: how it is shared out, what lies where, and the program that runs it."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from landscape.arrays import hardware, trees
from landscape.arrays.trees import Affine
from landscape.evaluation import cost_model
from landscape.evaluation.cost_model import Route
from landscape.evaluation.direct import point_sums
from landscape.evaluation.execution import Execution
from landscape.evaluation.grid_loop import Tile, grid_sums, lay_out
from landscape.losses import Loss
from landscape.networks import MultiBranch
from landscape.planes import Plane
from landscape.planes.grids import Grid
from landscape.problem import Problem

OPERATIONS_A_BLOCK = {"cpu": 1e11, "gpu": 2e13, "tpu": 2e13}
"""Aim for one block of work on one device: a second or a few; how much is lost by an interruption."""
SHARE_OF_EXAMPLES = 8
"""A block of examples takes at most the memory divided by this."""


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
    """How the examples are split into blocks, and each block over the devices or threads that share the examples.

    Attributes:
        mesh: Axes "points", "examples" and "branches".
        blocks: Number of blocks.
        block: Examples of a block; the last block is padded.
        threads: Threads of a single device that share the examples, and the points.
    """

    mesh: Mesh
    blocks: int
    block: int
    threads: tuple[int, int] = (1, 1)

    def over(self, axis: str) -> NamedSharding:
        """Values whose first axis is split along an axis of the mesh."""
        return NamedSharding(self.mesh, P(axis))

    @property
    def sharing_examples(self) -> int:
        """Devices and threads that share the examples."""
        return self.mesh.shape["examples"] * self.threads[0]

    @property
    def sharing_points(self) -> int:
        """Devices and threads that share the points."""
        return self.mesh.shape["points"] * self.threads[1]


def _layout(problem: Problem, plan: cost_model.Plan, execution: Execution, planes: int, whole: bool) -> ExampleLayout:
    chunks, workers = -(-len(problem.data) // plan.tile.examples), execution.workers // plan.branch_shards
    sharing = max(d for d in range(1, workers + 1) if workers % d == 0 and d <= chunks)
    both = sharing, workers // sharing
    on_devices, in_threads = (both, (1, 1)) if len(execution.devices) > 1 else ((1, 1), both)
    mesh = hardware.mesh(execution.devices, points=on_devices[1], examples=on_devices[0], branches=plan.branch_shards)
    operations = max(planes * plan.operations / plan.branch_shards, 1)
    aim = math.inf if whole else OPERATIONS_A_BLOCK.get(execution.platform, 1e11) * chunks / operations
    room = execution.budget // (SHARE_OF_EXAMPLES * trees.nbytes(problem.data.example) * plan.tile.examples)
    aim = aim if whole else max(1, min(aim, room // sharing))
    blocks = -(-chunks // (sharing * max(1, int(min(aim, chunks)))))
    each = -(-chunks // (sharing * blocks))
    return ExampleLayout(mesh, blocks, each * sharing * plan.tile.examples, in_threads)


@partial(jax.jit, static_argnames=("network", "losses", "tile", "mesh", "like", "stacked", "route"))
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
    route: Route = cost_model.LANES,
) -> jax.Array:
    """The sums of a route on every device of a mesh: [devices that share the examples, Q, A, B].

    A stack of R planes is a loop on the device, traced once whatever R. In its place `vmap` takes R times the
    temporary memory and is no faster, as a tile fills the cache already (measured at R = 5).

    Args:
        affine: (o, u, v), trees [I, ...].
        data: (x [N, ...], y [N], weight [N]), split along "examples"; on the direct route with the chunks of each.
        axes: (a [A], b [B]), the latter split along "points"; on the direct route K points [K, 2] and the counts of
            each device, both split: A = 1, B = K.
        network: The network.
        losses: Q functions.
        tile: Sizes of the loop.
        mesh: Axes "points", "examples" and, where branches are split, "branches".
        like: As in `grid_sums`, of one device's part of the branches.
        stacked: Whether affine, axes and the result have a first axis [R], one entry a plane.
        route: Which loop.
    """
    axis = "branches" if mesh.shape.get("branches", 1) > 1 else None

    def one(affine: Affine, data: Any, axes: Any) -> jax.Array:
        if route.name == "direct":
            return point_sums(network, losses, affine, data, axes, tile, route.prefix, axis)[None, :, None]
        return grid_sums(network, losses, affine, data, axes, tile, like.tree() if like else None, axis)[None]

    run = jax.shard_map(
        one,
        mesh=mesh,
        in_specs=(P(axis), P("examples"), P("points") if route.name == "direct" else (P(), P("points"))),
        out_specs=P("examples", None, None, "points"),
        check_vma=False,
    )
    return lax.map(lambda plane: run(plane[0], data, plane[1]), (affine, axes)) if stacked else run(affine, data, axes)


class DeviceInputs(NamedTuple):
    """The arguments of `block_sums`, on the devices; the examples block by block.

    Attributes:
        problem: Data and network.
        layout: How examples and points are shared.
        affine: The planes.
        axes: The points, one entry a thread that shares them.
        rows: A, or 1 on the direct route.
        columns: B, or on the direct route all points: the grid's and the anchors.
        options: The static arguments.
    """

    problem: Problem
    layout: ExampleLayout
    affine: Affine
    axes: list[Any]
    rows: int
    columns: int
    options: dict[str, Any]

    @property
    def direct(self) -> bool:
        """Whether this is the direct route."""
        return self.options["route"].name == "direct"

    @property
    def size(self) -> int:
        """Number of points."""
        return self.rows * self.columns

    def data(self, i: int, most: int | None = None) -> list[tuple[Any, ...]]:
        """Block i of the examples, or its first ones, one entry a thread that shares them."""
        dtype = jax.tree.leaves(self.axes[0])[0].dtype
        part = _block(self.problem, self.layout, i, dtype, most)
        if self.direct:
            there = min(self.layout.block, len(self.problem.data) - i * self.layout.block)
            part = *part, self._chunks(there if most is None else min(most, there))
        shares = zip(*(np.split(t, self.layout.threads[0]) for t in jax.tree.leaves(part)), strict=True)
        structure, over = jax.tree.structure(part), self.layout.over("examples")
        return [hardware.placed(structure.unflatten(share), over) for share in shares]

    def _chunks(self, examples: int) -> np.ndarray:
        """Chunks with examples in every share of a block."""
        sharing, n = self.layout.sharing_examples, self.options["tile"].examples
        each = self.layout.block // sharing
        return np.clip(-(-(examples - each * np.arange(sharing)) // n), 0, each // n).astype(np.int32)

    def sums(self, i: int, most: int | None = None) -> np.ndarray:
        """Σ weight ℓ over block i or its first examples, [R, Q, points] or without R for one plane, in float64."""
        jobs = [(data, axes) for data in self.data(i, most) for axes in self.axes]
        if len(jobs) > 1:
            block_sums.lower(self.affine, *jobs[0], **self.options).compile()

        def run(job: tuple[Any, Any]) -> np.ndarray:
            return hardware.gathered(block_sums(self.affine, *job, **self.options)).astype(float).sum(-4)

        found, several = hardware.in_threads(run, jobs), len(self.axes)
        rows = [np.concatenate(found[k : k + several], -1) for k in range(0, len(jobs), several)]
        total = np.sum(rows, axis=0)[..., : self.columns]
        return total.reshape(*total.shape[:-2], -1)

    def at(self, points: np.ndarray) -> "DeviceInputs":
        """The same program at other points (a, b) [M, 2], no more than before; on the direct route."""
        tile = self.options["tile"]
        size = sum(len(axes[0]) for axes in self.axes)
        return self._replace(axes=_points(points, self.layout, tile, self.axes[0][0].dtype, size), columns=len(points))


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
    layout, one, direct = _layout(problem, plan, execution, len(planes), whole), planes[0], plan.route.name == "direct"
    prelaid = not direct and fits_prelaid(one, plan, execution.budget)
    placed = [_placed(problem, plane, layout, prelaid) for plane in planes]
    if direct:
        axes = [
            _points(direct_points(*both), layout, plan.tile, one.float_type) for both in zip(planes, grids, strict=True)
        ]
    else:
        axes = [_rows(grid, layout, one.float_type) for grid in grids]
    several = len(planes) > 1
    like = shard_shapes(one.origin, plan.branch_shards) if prelaid else None
    options = {"network": problem.network, "losses": tuple(losses), "tile": plan.tile, "mesh": layout.mesh}
    options |= {"like": like, "stacked": several, "route": plan.route}
    affine, points = (trees.stack(placed), trees.stack(axes)) if several else (placed[0], axes[0])
    sizes = (1, len(direct_points(one, grids[0]))) if direct else (len(grids[0].a), len(grids[0].b))
    return DeviceInputs(problem, layout, affine, points, *sizes, options)


def direct_points(plane: Plane, grid: Grid) -> np.ndarray:
    """The points of the direct route, [A B + M, 2]: those of the grid, row by row of a, and the anchors."""
    a, b = np.meshgrid(*grid, indexing="ij")
    return np.concatenate([np.stack([a.ravel(), b.ravel()], 1), plane.anchors.reshape(-1, 2)])


def _points(points: np.ndarray, layout: ExampleLayout, tile: Tile, dtype: Any, size: int = 0) -> list[Any]:
    """Points with their counts, shared out; padded to `size`, or to what can be shared evenly."""
    sharing = layout.sharing_points
    each = (size or -(-len(points) // (sharing * tile.points)) * sharing * tile.points) // sharing
    padded = np.zeros((each * sharing, 2), dtype)
    padded[: len(points)] = points
    counts = np.clip(len(points) - each * np.arange(sharing), 0, each).astype(np.int32)
    shares = zip(*(np.split(t, layout.threads[1]) for t in (padded, counts)), strict=True)
    return [hardware.placed(share, layout.over("points")) for share in shares]


def _rows(grid: Grid, layout: ExampleLayout, dtype: Any) -> list[Any]:
    """The axes of a grid; b is shared out."""
    b = np.pad(grid.b, (0, -len(grid.b) % layout.sharing_points), mode="edge").astype(dtype)
    a = hardware.placed(grid.a.astype(dtype), NamedSharding(layout.mesh, P()))
    return [(a, hardware.placed(share, layout.over("points"))) for share in np.split(b, layout.threads[1])]


def fits_prelaid(plane: Plane, plan: cost_model.Plan, memory: int) -> bool:
    """Whether the weights of the first layer can be laid out beside the plane."""
    return 4 * trees.nbytes(plane.affine) < memory * plan.branch_shards


def _placed(problem: Problem, plane: Plane, layout: ExampleLayout, prelaid: bool) -> Affine:
    """A plane on the devices."""
    affine = hardware.placed(plane.affine, layout.over("branches"))
    if not prelaid:
        return affine
    example = trees.Signature.of(example_of(problem, plane))
    return Affine(*(_laid_out(problem.network, example, w) for w in affine))


@partial(jax.jit, static_argnums=(0, 1))
def _laid_out(network: MultiBranch, example: trees.Signature, params: Any) -> Any:
    """Compiled once a network, and not once a surface."""
    return lay_out(network, params, example.tree())


def _block(problem: Problem, layout: ExampleLayout, i: int, dtype: Any, most: int | None) -> tuple[Any, ...]:
    """Examples of block i on the host, or its first ones, padded with examples of weight zero."""
    start = i * layout.block
    part = problem.data.taken(slice(start, start + min(layout.block, most or layout.block)))
    (x, y, weight), rest = jax.tree.map(np.asarray, (part.x, part.y, part.weight)), layout.block - len(part.y)

    def padded(t: np.ndarray) -> np.ndarray:
        return np.pad(t.astype(_as_floats(t.dtype, dtype)), [(0, rest)] + [(0, 0)] * (t.ndim - 1), mode="edge")

    return *jax.tree.map(padded, (x, y)), np.pad(weight, (0, rest)).astype(dtype)
