"""SGD for several seeds in one program: the layout on the devices, its memory, and the compiled steps."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from landscape.arrays import hardware, on_disk, trees
from landscape.datasets import Dataset
from landscape.losses import Loss
from landscape.networks import MultiBranch, Network
from landscape.problem import BRANCHES_AT_A_TIME, Problem, minibatch_risk, outputs, streamed_risk

Params = Any


class State(NamedTuple):
    """The state of SGD, one entry a seed: parameters, optimiser and order of the examples."""

    params: Params
    optimizer: Any
    order: jax.Array


class Static(NamedTuple):
    """Constants of the compiled programs.

    Attributes:
        network: The network.
        loss: Loss per example.
        optimizer: An optax optimiser.
        batch_size: Examples a step.
        mesh: Axes "seeds" and "branches".
    """

    network: MultiBranch
    loss: Loss
    optimizer: optax.GradientTransformation
    batch_size: int
    mesh: Mesh

    @property
    def axis(self) -> str | None:
        """The mesh axis over which branches are split; None if they are not."""
        return "branches" if self.mesh.shape["branches"] > 1 else None


class SeedLayout(NamedTuple):
    """How seeds and branches are distributed over the devices.

    Attributes:
        seeds: Seeds in hand at a time, padded to a multiple of the devices that share them; the others wait.
        shards: Devices that the branches of each are split over.
        devices: All devices in use.
        nbytes: Bytes on each device.
        total: Bytes of all devices together, with those of the seeds that wait.
    """

    seeds: int
    shards: int
    devices: tuple[Any, ...]
    nbytes: int
    total: int

    @property
    def mesh(self) -> Mesh:
        """Axes "seeds" and "branches"."""
        return hardware.mesh(self.devices, seeds=len(self.devices) // self.shards, branches=self.shards)


class Sizes(NamedTuple):
    """Bytes of one seed and of the data.

    Attributes:
        solution: Its parameters.
        held: Parameters and the optimiser's state.
        chunk: Parameters of the branches computed at a time.
        data: All examples.
    """

    solution: int
    held: int
    chunk: int
    data: int


def sizes(problem: Problem, optimizer: optax.GradientTransformation) -> Sizes:
    """The bytes of one seed, from shapes alone."""
    network = problem.network
    one, state = trees.nbytes(problem.shapes), trees.nbytes(jax.eval_shape(optimizer.init, problem.shapes))
    chunk = min(network.branch_chunk or BRANCHES_AT_A_TIME, network.total) * one // network.total
    return Sizes(one, one + state, chunk, trees.nbytes(problem.data))


def seed_layout(
    problem: Problem,
    optimizer: optax.GradientTransformation,
    seeds: int,
    memory: int | None = None,
    shards: int | None = None,
) -> SeedLayout:
    """Distribute seeds over the devices; if they do not fit, split branches too; if that does not fit, take turns.

    Only shapes are used. CPU devices share one memory: their bytes are added, and seeds take turns on all cores before
    branches are split.

    Args:
        problem: Data and network.
        optimizer: The optimiser, whose state counts.
        seeds: S.
        memory: Bytes allowed on each device; chosen from the device when None.
        shards: Devices over which branches are split; chosen when None.

    Raises:
        ValueError: One seed does not fit the memory however its branches are split, or they cannot be split as asked.
    """
    devices, counts = jax.devices(), problem.network.counts
    memory = hardware.allowed(memory, devices)
    possible = hardware.shares(counts, len(devices))
    if shards not in (None, *possible):
        raise ValueError(
            f"branch_devices must divide the {len(devices)} devices and the {counts} branches: one of {possible}; "
            f"got {shards}."
        )
    one, choices = sizes(problem, optimizer), [shards] if shards else possible
    together = [_shared_out(devices, seeds, seeds, d, one) for d in choices]
    in_turn = [_shared_out(devices, 1, seeds, d, one) for d in reversed(choices)]
    fitting = [p for p in together + in_turn if p.nbytes <= memory]
    if devices[0].platform == "cpu":
        # The fewest parts first; seeds that wait can be nowhere else, so that at least the one in hand must fit.
        whole = [p for p in together + in_turn if p.total <= memory]
        fitting = sorted(whole or [p for p in in_turn if p in fitting], key=lambda p: p.shards)
    if not fitting:
        least = min(p.nbytes for p in together + in_turn)
        raise ValueError(
            f"Training needs {least / hardware.GIB:.2f} GiB on each device for one solution of "
            f"{one.solution / hardware.GIB:.2f} GiB; {memory / hardware.GIB:.2f} GiB are allowed.\n"
            "  Raise --memory, or take fewer branches."
        )
    return fitting[0]


def _shared_out(devices: list[Any], at_once: int, seeds: int, shards: int, one: Sizes) -> SeedLayout:
    processes, rows = jax.process_count(), len(devices) // shards
    sharing = min(rows, at_once)
    if processes > 1:  # every process takes part, with as many of its devices as the others
        sharing = next(r for r in range(sharing, rows + 1) if r * shards % processes == 0)
    each = sharing * shards // processes
    used = [d for p in range(processes) for d in [d for d in devices if d.process_index == p][:each]]
    padded = -(-at_once // sharing) * sharing
    on_each = padded // sharing * (one.held + one.solution + one.chunk) // shards + 2 * one.data
    return SeedLayout(padded, shards, tuple(used), on_each, on_each * len(used) + (seeds - at_once) * one.held)


def shardings(static: Static, state: State) -> State:
    """Shardings of a state: seeds over "seeds"; arrays of the parameters' shapes also over "branches"."""
    shapes = {x.shape for x in jax.tree.leaves(state.params)}

    def of(x: Any) -> NamedSharding:
        return NamedSharding(static.mesh, P("seeds", "branches") if x.shape in shapes and x.ndim > 1 else P("seeds"))

    return jax.tree.map(of, state)


def begin(static: Static, keys: jax.Array, examples: int, start: Params | None) -> State:
    """The state before the first step, placed on the devices.

    Args:
        static: Network, optimiser, mesh.
        keys: [S].
        examples: N.
        start: Initial parameters [S, I, ...]; random ones when None.
    """
    if start is not None:
        start = hardware.placed(start, NamedSharding(static.mesh, P("seeds", static.axis)))
    return _begin(static, examples, keys, start)


@partial(jax.jit, static_argnums=(0, 1))
def _begin(static: Static, examples: int, keys: jax.Array, start: Params | None) -> State:
    params = _random(static, keys) if start is None else start
    order = jnp.zeros((len(keys), examples), jnp.int32)
    return _settled(static, State(params, jax.vmap(static.optimizer.init)(params), order))


def _settled(static: Static, state: State) -> State:
    return lax.with_sharding_constraint(state, shardings(static, state))


def _random(static: Static, keys: jax.Array) -> Params:
    """`network.init` of every seed, branch after branch: random bits of all branches at once would take memory and
    compile slowly."""
    network = static.network

    def drawn(branch: Network, keys: jax.Array) -> Params:
        def of_seeds(keys: jax.Array) -> Params:
            return lax.map(lambda of_one: lax.map(branch.init, of_one), keys)

        where = P("seeds", "branches")
        return jax.shard_map(of_seeds, mesh=static.mesh, in_specs=where, out_specs=where, check_vma=False)(keys)

    kinds = jax.vmap(lambda key: jax.random.split(key, len(network.counts)))(keys)
    pairs = enumerate(zip(network.branches, network.counts, strict=True))
    return network.join([drawn(f, jax.vmap(partial(jax.random.split, num=n))(kinds[:, k])) for k, (f, n) in pairs])


@partial(jax.jit, static_argnums=0, donate_argnums=1)
def advance(static: Static, state: State, keys: jax.Array, data: Dataset, start: Any, stop: Any) -> State:
    """Steps start … stop − 1 of every seed."""
    examples = len(data.y)
    count, streamed = examples // static.batch_size, on_disk.any_streamed(data.x)

    def shuffled(key: jax.Array, epoch: jax.Array) -> jax.Array:
        return jax.random.permutation(jax.random.fold_in(key, epoch), examples).astype(jnp.int32)

    def ordered(t: jax.Array, key: jax.Array, order: jax.Array) -> tuple[jax.Array, Any]:
        order = lax.cond(t % count == 0, shuffled, lambda *_: order, key, t // count)
        chosen = lax.dynamic_slice_in_dim(order, t % count * static.batch_size, static.batch_size)
        return order, chosen if streamed else jax.tree.map(lambda x: x[chosen], (data.x, data.y, data.weight))

    def step(t: jax.Array, state: State) -> State:
        order, batch = jax.vmap(ordered, (None, 0, 0))(t, keys, state.order)
        batch = _read(static, data, batch) if streamed else batch
        slope = _slopes(static, state.params, batch)
        update, optimizer = jax.vmap(static.optimizer.update)(slope, state.optimizer, state.params)
        return State(optax.apply_updates(state.params, update), optimizer, order)

    return _settled(static, lax.fori_loop(start, stop, step, state))


def _read(static: Static, data: Dataset, chosen: jax.Array) -> Any:
    """The minibatches [S, B, ...] of data on disk at positions [S, B]; each device calls for those of its own seeds."""
    where = P("seeds")
    run = jax.shard_map(
        lambda data, chosen: on_disk.at((data.x, data.y, data.weight), chosen),
        mesh=static.mesh,
        in_specs=(P(), where),
        out_specs=where,
        check_vma=False,
    )
    return run(data, chosen)


def _slopes(static: Static, params: Params, batch: Any) -> Params:
    """The gradient of every seed's minibatch risk, [S, I, ...]; each device computes that of its own branches."""

    def slopes(params: Params, batch: Any) -> Params:
        objective = partial(minibatch_risk, static.network, static.loss, axis=static.axis)
        return jax.vmap(jax.grad(objective))(params, *batch)

    if static.axis is None:
        return slopes(params, batch)
    where = P("seeds", "branches")
    run = jax.shard_map(slopes, mesh=static.mesh, in_specs=(where, P("seeds")), out_specs=where, check_vma=False)
    return run(params, batch)


@partial(jax.jit, static_argnums=0)
def risks(static: Static, params: Params, data: Dataset) -> jax.Array:
    """The risk of every seed on all the data, [S]."""

    def of(params: Params, data: Dataset) -> jax.Array:
        forward = partial(outputs, static.network, axis=static.axis)
        return jax.vmap(partial(streamed_risk, forward, static.loss, data=data))(params)

    if static.axis is not None:
        specs = {"in_specs": (P("seeds", "branches"), P()), "out_specs": P("seeds")}
        of = jax.shard_map(of, mesh=static.mesh, check_vma=False, **specs)
    return of(params, data)
