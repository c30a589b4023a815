"""Running the grid loop: over blocks of examples and all devices, resumable block by block; and any other function."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from landscape import costs, storage, trees
from landscape.grids import Grid
from landscape.losses import Loss
from landscape.networks import MultiBranch
from landscape.planes import Plane
from landscape.problem import Problem, programs, weighted_risk
from landscape.progress import Bar, showing
from landscape.tiles import Tile, grid_sums, lay_out
from landscape.tracing import program

OPERATIONS_A_BLOCK = {"cpu": 1e11, "gpu": 2e13, "tpu": 2e13}
"""Aim for one block of work on one device: a second or a few; how much is lost by an interruption."""
EXAMPLES_CHECKED = 4096


plain_risk = jax.jit(weighted_risk, static_argnums=(0, 1))


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
        except (jax.errors.JaxRuntimeError, MemoryError) as error:
            if "RESOURCE_EXHAUSTED" not in str(error) or plan.tile.examples <= 8:
                raise
            plan = plan._replace(tile=costs.smaller(plan.tile))
            warnings.warn(f"The device ran out of memory; going on with half of it: {plan.tile}.", stacklevel=2)


def plan_for(problem: Problem, plane: Plane, grid: Grid, settings: Settings) -> costs.Plan:
    """Tile, operations and bytes of a surface, before anything runs."""
    x = problem.data.x
    example = jax.ShapeDtypeStruct(x.shape[1:], _float_type(plane))
    one = jax.ShapeDtypeStruct((1, *x.shape[1:]), example.dtype)
    outputs = jax.eval_shape(problem.network.apply, plane.origin, one).shape[-1]
    device = settings.devices[0]
    plan = costs.plan(
        problem.network,
        plane.origin,
        example,
        outputs=outputs,
        examples=len(problem.data),
        points=(len(grid.a), len(grid.b)),
        memory=settings.memory or costs.default_memory(device),
        devices=len(settings.devices),
        platform=device.platform,
    )
    return plan if settings.tile is None else plan._replace(tile=settings.tile)


def _float_type(plane: Plane) -> Any:
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


class Signature(NamedTuple):
    """Structure and shapes of a tree, hashable: what a compiled program depends on."""

    structure: Any
    shapes: tuple[jax.ShapeDtypeStruct, ...]

    @classmethod
    def of(cls, tree: Any) -> "Signature":
        """The signature of a tree of arrays."""
        leaves, structure = jax.tree.flatten(tree)
        return cls(structure, tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in leaves))

    def tree(self) -> Any:
        """The tree of shapes."""
        return self.structure.unflatten(self.shapes)


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
    like: Signature | None = None,
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
    layout, dtype = _layout(problem, plan, settings), _float_type(plane)
    rows = layout.mesh.shape["points"]
    b = np.pad(grid.b, (0, -len(grid.b) % rows), mode="edge")
    axes = jnp.asarray(grid.a, dtype), jnp.asarray(b, dtype)
    triple = jax.device_put((plane.origin, plane.u, plane.v), NamedSharding(layout.mesh, P()))
    like = None
    if 4 * nbytes(plane) < (settings.memory or costs.default_memory(settings.devices[0])):
        like = Signature.of(plane.origin)
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
            found = _stored(file, key)
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


def _stored(file: Path | None, key: str) -> np.ndarray | None:
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


def check_anchors(
    problem: Problem, plane: Plane, losses: Sequence[Loss], tile: Tile, settings: Settings
) -> dict[str, Any]:
    """The evaluator at the anchors, twice, against the network's own `apply`, on the first examples of the data.

    Returns:
        deterministic, max_difference (loss units) and the number of examples.
    """
    points = plane.anchors if len(plane.anchors) else np.zeros((1, 2))
    count = min(len(problem.data), EXAMPLES_CHECKED)
    mesh = jax.make_mesh((1, 1), ("points", "examples"), axis_types=(AxisType.Auto,) * 2, devices=settings.devices[:1])
    tile = tile._replace(points=1)
    chunks = -(-count // tile.examples)
    data = problem.data
    first = type(data)(data.x[:count], data.y[:count], data.weight[:count])
    dtype = _float_type(plane)
    block = _block(
        Problem(first, problem.network, problem.loss), _Layout(mesh, chunks, 1, chunks * tile.examples), 0, dtype
    )
    triple = jax.device_put((plane.origin, plane.u, plane.v), NamedSharding(mesh, P()))
    axes = tuple(jnp.asarray(points[:, k], dtype) for k in (0, 1))
    run = partial(block_sums, network=problem.network, losses=tuple(losses), tile=tile, mesh=mesh)
    with jax.default_matmul_precision(settings.precision):
        once, twice = (np.asarray(run(triple, block, axes), np.float64)[0, 0] for _ in range(2))
        risks = [plain_risk(problem.network, losses[0], plane.at(tuple(ab)), first) for ab in axes_pairs(points, dtype)]
    expected = np.array(risks, float)
    mean = np.diagonal(once) / float(np.sum(np.asarray(first.weight, float)))
    return {
        "deterministic": bool((once == twice).all()),
        "max_difference": float(np.abs(mean - expected).max()),
        "examples": count,
    }


def axes_pairs(points: np.ndarray, dtype: Any) -> list[jax.Array]:
    """Anchors as pairs of scalars of the parameters' type."""
    return [jnp.asarray(p, dtype) for p in points]


def function_values(
    risk: Callable[[Any], Any], plane: Plane, grid: Grid, settings: Settings
) -> Mapping[str, np.ndarray]:
    """Any function of the parameters at every point of a grid, {name: [A, B]}, a row of points at a time."""
    names, values = _named(risk, plane)
    row = jax.jit(
        lambda b, axis, triple: lax.map(
            lambda a: values(Plane(triple[0], triple[1], triple[2], plane.anchors).at((a, b))), axis
        )
    )
    dtype = _float_type(plane)
    axis, triple = jnp.asarray(grid.a, dtype), (plane.origin, plane.u, plane.v)
    key = ""
    if settings.directory:
        key = storage.fingerprint(triple, tuple(grid), names, settings.precision, program(values, plane.origin))
    rows = []
    with showing(settings.progress, "surface", len(grid.a) * len(grid.b), "points") as bar:
        for j, b in enumerate(grid.b):
            file = settings.directory / f"block-{key[:8]}-{j:04}.npz" if settings.directory else None
            found = _stored(file, key)
            if found is None:
                with jax.default_matmul_precision(settings.precision):
                    found = np.asarray(row(jnp.asarray(b, dtype), axis, triple), np.float64)
                if file:
                    storage.save_arrays(file, {"sums": found}, key)
            rows.append(found)
            bar.update(len(grid.a))
            settings.check_stop()
    stacked = np.stack(rows, 1)
    return {name: stacked[..., k] for k, name in enumerate(names)}


def _named(risk: Callable[[Any], Any], plane: Plane) -> tuple[list[str], Callable[[Any], jax.Array]]:
    """The names of a function's quantities, and the function that stacks them, [Q]."""
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
    """Whether a function gives the same bits twice at the same parameters, jitted and called anew.

    Raises:
        ValueError: It does not.
    """
    _, values = _named(risk, plane)
    once, twice = (np.asarray(jax.jit(lambda w: values(w))(plane.origin)) for _ in range(2))
    if not np.array_equal(once, twice, equal_nan=True):
        raise ValueError(
            f"risk(params) gave {once.tolist()} and then {twice.tolist()} at the same parameters; a surface needs a "
            "deterministic function.\n  Fix its random keys, and switch dropout and data augmentation off."
        )
    return {"deterministic": True, "max_difference": 0.0, "examples": 0}


def device_words(devices: Sequence[Any]) -> str:
    """Devices in words: "2 x cpu"."""
    return f"{len(devices)} x {devices[0].device_kind}"


def nbytes(plane: Plane) -> int:
    """Bytes of the three trees of a plane."""
    return trees.nbytes(tuple(plane)[:3])
