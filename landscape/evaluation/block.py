"""One block of examples on all devices: how it is shared out, what lies where, and the program that runs it."""

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
from landscape.datasets import Dataset
from landscape.evaluation import cost_model, moments
from landscape.evaluation.cost_model import Route
from landscape.evaluation.direct import point_sums
from landscape.evaluation.example_layout import ExampleLayout, layout_for
from landscape.evaluation.execution import Execution
from landscape.evaluation.grid_loop import Tile, grid_sums, lay_out
from landscape.losses import Loss
from landscape.networks import MultiBranch
from landscape.planes import Plane
from landscape.planes.grids import Grid
from landscape.problem import Problem


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


@partial(jax.jit, static_argnames=("network", "losses", "tile", "mesh", "like", "stacked", "route"))
def block_sums(
    affine: Affine,
    data: Any,
    axes: Any,
    reference: jax.Array | None = None,
    *,
    network: MultiBranch,
    losses: tuple[Loss, ...],
    tile: Tile,
    mesh: Mesh,
    like: trees.Signature | None = None,
    stacked: bool = False,
    route: Route = cost_model.LANES,
) -> jax.Array:
    """The sums of a route on every device of a mesh: [devices that share the examples, K, A, B], K of `moments`.

    A stack of R planes is a loop on the device, traced once whatever R. In its place `vmap` takes R times the
    temporary memory and is no faster, as a tile fills the cache already (measured at R = 5).

    Args:
        affine: (o, u, v), trees [I, ...].
        data: (x [N, ...], y [N], weights and groups [N]), split along "examples"; on the direct route with the chunks
            of each.
        axes: (a [A], b [B]), the latter split along "points"; on the direct route P points [P, 2] and the counts of
            each device, both split: A = 1, B = P.
        reference: The first loss of every example at the first solution, [N]; the direct route finds it itself.
        network: The network.
        losses: Q functions.
        tile: Sizes of the loop.
        mesh: Axes "points", "examples" and, where branches are split, "branches".
        like: As in `grid_sums`, of one device's part of the branches.
        stacked: Whether affine, axes and the result have a first axis [R], one entry a plane.
        route: Which loop.
    """
    axis = "branches" if mesh.shape.get("branches", 1) > 1 else None

    def one(affine: Affine, data: Any, axes: Any, reference: Any) -> jax.Array:
        if route.name == "direct":
            return point_sums(network, losses, affine, data, axes, tile, route.prefix, axis)[None, :, None]
        shapes = like.tree() if like else None
        return grid_sums(network, losses, affine, data, axes, reference, tile, shapes, axis)[None]

    run = jax.shard_map(
        one,
        mesh=mesh,
        in_specs=(P(axis), P("examples"), P("points") if route.name == "direct" else (P(), P("points")), P("examples")),
        out_specs=P("examples", None, None, "points"),
        check_vma=False,
    )
    if not stacked:
        return run(affine, data, axes, reference)
    return lax.map(lambda plane: run(plane[0], data, *plane[1:]), (affine, axes, reference))


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

    def examples(self, i: int, most: int | None = None) -> tuple[Any, ...]:
        """Block i of the examples, or its first ones, on the host: x, y, weights and groups."""
        dtype = jax.tree.leaves(self.axes[0])[0].dtype
        part, layout = self.part(i, most), self.layout
        (x, y, weight), rest = jax.tree.map(np.asarray, (part.x, part.y, part.weight)), layout.block - len(part)
        group = layout.group[i * layout.block :][: len(part)]

        def padded(t: np.ndarray) -> np.ndarray:
            return np.pad(t.astype(_as_floats(t.dtype, dtype)), [(0, rest)] + [(0, 0)] * (t.ndim - 1), mode="edge")

        weights = moments.Weights(np.pad(weight, (0, rest)).astype(dtype), padded(group))
        return *jax.tree.map(padded, (x, y)), weights

    def part(self, i: int, most: int | None = None) -> Dataset:
        """Block i of the data, or its first examples."""
        count = len(self.problem.data)
        size = self.layout.block if most is None else min(most, self.layout.block)
        start = i * self.layout.block
        stop = min(start + size, count)
        return self.problem.data.taken(
            slice(start, stop) if self.layout.order is None else self.layout.order[start:stop]
        )

    def data(self, i: int, most: int | None = None) -> list[tuple[Any, ...]]:
        """`examples` on the devices, one entry a thread that shares them."""
        part = self.examples(i, most)
        if self.direct:
            there = min(self.layout.block, len(self.problem.data) - i * self.layout.block)
            part = *part, self._chunks(there if most is None else min(most, there))
        shares = zip(*(np.split(t, self.layout.threads[0]) for t in jax.tree.leaves(part)), strict=True)
        structure, over = jax.tree.structure(part), self.layout.over("examples")
        return [hardware.placed(structure.unflatten(share), over) for share in shares]

    def references(self, losses: np.ndarray | None) -> list[jax.Array | None]:
        """The losses at the first solution, [R, n] of a block, one entry a thread; zeros when None."""
        if self.direct:
            return [None] * self.layout.threads[0]
        several, dtype = self.options["stacked"], jax.tree.leaves(self.axes[0])[0].dtype
        count = jax.tree.leaves(self.axes[0])[0].shape[0] if several else 1
        given = np.zeros((count, self.layout.block)) if losses is None else losses
        spec = NamedSharding(self.layout.mesh, P(None, "examples") if several else P("examples"))
        shares = np.split((given if several else given[0]).astype(dtype), self.layout.threads[0], -1)
        return [hardware.placed(share, spec) for share in shares]

    def _chunks(self, examples: int) -> np.ndarray:
        """Chunks with examples in every share of a block."""
        sharing, n = self.layout.sharing_examples, self.options["tile"].examples
        each = self.layout.block // sharing
        return np.clip(-(-(examples - each * np.arange(sharing)) // n), 0, each // n).astype(np.int32)

    def sums(self, i: int, most: int | None = None, reference: np.ndarray | None = None) -> np.ndarray:
        """`moments.uncentred` sums over block i or its first examples, [R, K, points], or without R for one plane.

        Args:
            i: The block.
            most: How many of its examples at most.
            reference: The first loss of its examples at the first solution of each plane, [R, n].
        """
        parts = zip(self.data(i, most), self.references(reference), strict=True)
        jobs = [(data, axes, first) for data, first in parts for axes in self.axes]
        if len(jobs) > 1:
            block_sums.lower(self.affine, *jobs[0], **self.options).compile()

        def run(job: tuple[Any, Any, Any]) -> np.ndarray:
            found = moments.uncentred(self._flat(hardware.gathered(block_sums(self.affine, *job, **self.options))))
            return found.sum(-3)

        found, several = hardware.in_threads(run, jobs), len(self.axes)
        rows = [self._joined(found[k : k + several]) for k in range(0, len(jobs), several)]
        return np.sum(rows, axis=0)

    def _flat(self, found: np.ndarray) -> np.ndarray:
        """Sums [..., K, A, B] of a share of the points as [..., K, points]; on the direct route without references."""
        if self.direct:
            found = found.reshape(*found.shape[:-2], self.layout.mesh.shape["points"], -1)[..., 1:]
        return found.reshape(*found.shape[:-2], -1)

    def _joined(self, shares: list[np.ndarray]) -> np.ndarray:
        """Shares of the points [..., K, points] together, without padding."""
        if self.direct:
            return np.concatenate(shares, -1)[..., : self.columns]
        rows = [t.reshape(*t.shape[:-1], self.rows, -1) for t in shares]
        return np.concatenate(rows, -1)[..., : self.columns].reshape(*shares[0].shape[:-1], -1)

    def at(self, points: np.ndarray) -> "DeviceInputs":
        """The same program at other points (a, b) [M, 2], no more than before; on the direct route."""
        each = sum(len(axes[0]) for axes in self.axes) // self.layout.sharing_points
        axes = _points(points, points[0], self.layout, each, self.axes[0][0].dtype)
        return self._replace(axes=axes, columns=len(points))


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
    layout, one, direct = (
        layout_for(problem, plan, execution, len(planes), whole),
        planes[0],
        plan.route.name == "direct",
    )
    prelaid = not direct and fits_prelaid(one, plan, execution.budget)
    placed = [_placed(problem, plane, layout, prelaid) for plane in planes]
    if direct:
        points = [direct_points(*both) for both in zip(planes, grids, strict=True)]
        shared, size = layout.sharing_points, plan.tile.points
        each = -(-(-(-len(points[0]) // shared) + 1) // size) * size
        firsts = [plane.anchors[0] if len(plane.anchors) else np.zeros(2) for plane in planes]
        axes = [_points(*both, layout, each, one.float_type) for both in zip(points, firsts, strict=True)]
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


def _points(points: np.ndarray, first: np.ndarray, layout: ExampleLayout, each: int, dtype: Any) -> list[Any]:
    """Points with their counts, `each` a share, of which `first` is the first."""
    sharing, own = layout.sharing_points, each - 1
    padded = np.zeros((own * sharing, 2), dtype)
    padded[: len(points)] = points
    padded = np.concatenate([np.tile(first.astype(dtype), (sharing, 1, 1)), padded.reshape(sharing, own, 2)], 1)
    counts = np.clip(len(points) - own * np.arange(sharing), 0, own).astype(np.int32)
    shares = np.split(padded.reshape(-1, 2), layout.threads[1]), np.split(counts + (counts > 0), layout.threads[1])
    return [hardware.placed(share, layout.over("points")) for share in zip(*shares, strict=True)]


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
