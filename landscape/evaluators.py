"""Running the grid loop: over blocks of examples and all devices, resumable block by block."""

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from landscape import costs, storage, trees
from landscape.grids import Grid
from landscape.losses import Loss
from landscape.networks import MultiBranch
from landscape.planes import Plane
from landscape.problem import Problem, programs
from landscape.progress import Bar, showing
from landscape.tiles import Tile, grid_sums, lay_out

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


class Sums(NamedTuple):
    """Σ weight ℓ / Σ weight at every grid point, and how it was computed."""

    values: np.ndarray
    plan: costs.Plan


def problem_means(problem: Problem, plane: Plane, grid: Grid, losses: Sequence[Loss], settings: Settings) -> Sums:
    """The mean of every loss at every point of a grid, [Q, A, B], float64 sums of blocks.

    When the device runs out of memory the tile is halved, with a warning, and the surface begun again.
    """
    plan = plan_for(problem, plane, grid, settings)
    while True:
        try:
            with jax.default_matmul_precision(settings.precision):
                sums = _blocks(problem, plane, grid, tuple(losses), plan, settings)
            return Sums(sums / float(np.sum(np.asarray(problem.data.weight, float))), plan)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error) or plan.tile.examples <= 8:
                raise
            plan = plan._replace(tile=costs.smaller(plan.tile))
            warnings.warn(f"The device ran out of memory; going on with half of it: {plan.tile}.", stacklevel=2)


def plan_for(problem: Problem, plane: Plane, grid: Grid, settings: Settings) -> costs.Plan:
    """Tile, operations and bytes of a surface, before anything runs."""
    device = settings.devices[0]
    plan = costs.plan(
        problem.network,
        plane.origin,
        jax.ShapeDtypeStruct(problem.data.x.shape[1:], float_type(plane)),
        examples=len(problem.data),
        points=(len(grid.a), len(grid.b)),
        memory=settings.memory or costs.default_memory(device),
        devices=len(settings.devices),
        platform=device.platform,
    )
    return plan if settings.tile is None else plan._replace(tile=settings.tile)


def float_type(plane: Plane) -> Any:
    return jnp.result_type(*jax.tree.leaves(plane.origin))


class _Layout(NamedTuple):
    """Examples in blocks: each block is `chunks` chunks on every one of the devices that share the examples."""

    mesh: Mesh
    chunks: int
    blocks: int
    block: int


def _layout(problem: Problem, plan: costs.Plan, settings: Settings) -> _Layout:
    chunks, devices = -(-len(problem.data) // plan.tile.examples), len(settings.devices)
    sharing = max(d for d in range(1, devices + 1) if devices % d == 0 and d <= chunks)
    mesh = jax.make_mesh(
        (devices // sharing, sharing), ("points", "examples"), axis_types=(AxisType.Auto,) * 2, devices=settings.devices
    )
    aim = OPERATIONS_A_BLOCK.get(settings.devices[0].platform, 1e11) * chunks / max(plan.operations, 1)
    blocks = -(-chunks // (sharing * max(1, int(min(aim, chunks)))))
    each = -(-chunks // (sharing * blocks))
    return _Layout(mesh, each, blocks, each * sharing * plan.tile.examples)


@partial(jax.jit, static_argnames=("network", "losses", "tile", "mesh", "like"))
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
) -> jax.Array:
    """`grid_sums` on every device of a mesh ("points", "examples"): [devices that share the examples, Q, A, B]."""

    def one(triple: Any, data: Any, axes: Any) -> jax.Array:
        return grid_sums(network, losses, triple, data, axes, tile, like.tree() if like else None)[None]

    specs = (P(), P("examples"), (P(), P("points")))
    return jax.shard_map(
        one, mesh=mesh, in_specs=specs, out_specs=P("examples", None, None, "points"), check_vma=False
    )(triple, data, axes)


def _blocks(
    problem: Problem, plane: Plane, grid: Grid, losses: tuple[Loss, ...], plan: costs.Plan, settings: Settings
) -> np.ndarray:
    layout, dtype = _layout(problem, plan, settings), float_type(plane)
    rows = layout.mesh.shape["points"]
    b = np.pad(grid.b, (0, -len(grid.b) % rows), mode="edge")
    axes = jnp.asarray(grid.a, dtype), jnp.asarray(b, dtype)
    triple = jax.device_put((plane.origin, plane.u, plane.v), NamedSharding(layout.mesh, P()))
    like = None
    if 4 * nbytes(plane) < (settings.memory or costs.default_memory(settings.devices[0])):
        like = trees.Signature.of(plane.origin)
        triple = tuple(_laid_out(problem.network, problem.data.x.shape[1:], w) for w in triple)
    key = _key(problem, plane, grid, losses, (plan.tile, settings.precision), layout) if settings.directory else ""
    run = partial(
        block_sums,
        triple,
        axes=axes,
        network=problem.network,
        losses=losses,
        tile=plan.tile,
        mesh=layout.mesh,
        like=like,
    )
    total = np.zeros((len(losses), len(grid.a), len(grid.b)))
    points, share = total[0].size, total[0].size / layout.blocks
    with showing(settings.progress, "surface", points, "points") as bar:
        for i in range(layout.blocks):
            file = settings.directory / f"block-{key[:8]}-{i:04}.npz" if settings.directory else None
            found = stored(file, key)
            if found is None:
                data = jax.device_put(_block(problem, layout, i, dtype), NamedSharding(layout.mesh, P("examples")))
                found = np.asarray(run(data=data), np.float64).sum(0)[..., : len(grid.b)]
                if file:
                    storage.save_arrays(file, {"sums": found}, key)
            total += found
            bar.update(round((i + 1) * share) - round(i * share))
            settings.check_stop()
    return total


@partial(jax.jit, static_argnums=(0, 1))
def _laid_out(network: MultiBranch, shape: tuple[int, ...], params: Any) -> Any:
    """Compiled once a network, and not once a surface."""
    return lay_out(network, params, jax.ShapeDtypeStruct(shape, jnp.result_type(*jax.tree.leaves(params))))


def stored(file: Path | None, key: str) -> np.ndarray | None:
    """A finished block; a damaged one is computed again."""
    try:
        arrays = storage.load_arrays(file, key) if file else None
    except storage.Corrupted as error:
        warnings.warn(f"{error.args[0].splitlines()[0]} It is computed again.", stacklevel=2)
        return None
    return None if arrays is None else arrays["sums"]


def _key(
    problem: Problem, plane: Plane, grid: Grid, losses: tuple[Loss, ...], how: tuple[Tile, str], layout: _Layout
) -> str:
    sizes = (*how[0], how[1], layout.blocks, dict(layout.mesh.shape))
    computed = (repr(problem.network), *programs(problem, losses))
    return storage.fingerprint(problem.data.fingerprint, computed, tuple(plane)[:3], tuple(grid), sizes)


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
