"""Stochastic gradient descent, vmapped over seeds and looped over steps on the device, resumable (§5.1)."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from landscape import storage
from landscape.datasets import Dataset
from landscape.losses import Loss
from landscape.networks import MultiBranch
from landscape.problem import Problem, minibatch_risk, programs, streamed_risk
from landscape.progress import Bar, showing
from landscape.tracing import program

Params = Any

SECONDS_A_CALL = 2.0
"""Aim for one call to the device: how soon a request to stop is answered and how often the bar moves."""
SECONDS_A_SAVE = 10.0


@dataclass(frozen=True, eq=False)
class Solutions:
    """What training found, one solution a seed; iterates over the seeds.

    Attributes:
        params: Final parameters [S, I, ...].
        risk: Risk on all the data at the end, [S], loss units.
        history: Risk on all the data at the recorded steps, [S, T].
        steps: The recorded steps, [T].
        converged: Whether the criterion was met before the last step, [S].
        trajectory: Parameters at the recorded steps, [S, T, I, ...]; None unless asked for.
    """

    params: Params
    risk: np.ndarray
    history: np.ndarray
    steps: np.ndarray
    converged: np.ndarray
    trajectory: Params | None = None

    def __len__(self) -> int:
        return len(self.risk)

    def __getitem__(self, seed: int) -> Params:
        return jax.tree.map(lambda x: x[range(len(self))[seed]], self.params)

    def __iter__(self) -> Iterator[Params]:
        return (self[i] for i in range(len(self)))

    def save(self, path: Path | str, key: str = "") -> None:
        """Write all but the trajectory as npz with a checksum; the leaves of params under their paths.

        Args:
            path: The file.
            key: What the solutions belong to; `load` refuses another one.
        """
        leaves = jax.tree_util.tree_leaves_with_path(self.params)
        arrays = {f"params{jax.tree_util.keystr(where)}": leaf for where, leaf in leaves}
        arrays |= {name: getattr(self, name) for name in ("risk", "history", "steps", "converged")}
        storage.save_arrays(Path(path), arrays, key)

    @staticmethod
    def load(path: Path | str, key: str, like: Params) -> "Solutions":
        """Read solutions written by `save`.

        Args:
            path: The file.
            key: As when saved.
            like: Parameters of one seed, or their shapes.

        Raises:
            FileNotFoundError: No such file.
            Corrupted: The file is damaged, belongs to another key, or to a network with other parameters.
        """
        arrays = storage.load_arrays(Path(path), key)
        if arrays is None:
            raise FileNotFoundError(f"{path} does not exist.")
        leaves, structure = jax.tree_util.tree_flatten_with_path(like)
        names = [f"params{jax.tree_util.keystr(where)}" for where, _ in leaves]
        shapes = [arrays[n].shape[1:] if n in arrays else None for n in names]
        if shapes != [leaf.shape for _, leaf in leaves]:
            raise storage.Corrupted(f"{path} holds the parameters of another network: {sorted(arrays)}.")
        params = jax.tree.unflatten(structure, [jnp.asarray(arrays[n]) for n in names])
        rest = (arrays[name] for name in ("risk", "history", "steps", "converged"))
        return Solutions(params, *rest)

    def __repr__(self) -> str:
        return f"Solutions({len(self)} seeds, {self.steps[-1]:,} steps: risk {' '.join(f'{r:.4g}' for r in self.risk)})"


class State(NamedTuple):
    """Everything that the next step depends on, one entry a seed."""

    params: Params
    optimizer: Any
    order: jax.Array


def train(
    problem: Problem,
    keys: jax.Array,
    optimizer: optax.GradientTransformation,
    *,
    steps: int,
    batch_size: int,
    record: int | None = None,
    tolerance: float | None = None,
    patience: int = 5,
    trajectory: bool = False,
    start: Params | None = None,
    directory: Path | str | None = None,
    progress: bool | Bar = True,
    check_stop: Callable[[], None] = lambda: None,
) -> Solutions:
    """Minibatch SGD from several seeds at once, all in one compiled loop (§5.1).

    Minibatches are drawn without replacement: every seed has its own order of the examples in every epoch, and the
    N mod batch_size examples at its end are left out of that epoch.

    Args:
        problem: Data, network and loss.
        keys: Random keys [S], one a solution; each gives the initial parameters and the orders.
        optimizer: Any optax optimiser, for example `optax.sgd(0.05)`.
        steps: Most steps taken.
        batch_size: Examples a step.
        record: Steps between two entries of the history; 1/20 of all by default.
        tolerance: Stop once no seed's risk has fallen by more than this over `patience` entries; never when None.
        patience: See `tolerance`.
        trajectory: Keep the parameters at every entry of the history.
        start: Initial parameters [S, I, ...] instead of random ones.
        directory: Where the state is kept while training, so that the same call continues an interrupted one.
        progress: True for a bar, False for silence, or a bar already open.
        check_stop: Called whenever the state is on disk; may raise to interrupt.

    Returns:
        The solutions. Interrupted and continued, they are the same to the last bit.

    Raises:
        ValueError: No steps, a batch larger than the data, keys that are not [S], or a stored state of other inputs.
    """
    _check(problem, keys, steps, batch_size, record)
    record = record or max(1, steps // 20)
    keys, count = _padded(keys)
    placed = _placement(keys)
    data = jax.device_put(problem.data, placed.shared)
    keys = jax.device_put(keys, placed.split)
    static = _Static(problem.network, problem.loss, optimizer, batch_size)
    state = jax.device_put(_begin(static, keys, data, _repeated(start, count, len(keys))), placed.split)
    saved = _Saved(directory, problem, keys, (steps, batch_size, record), trajectory, state, optimizer)
    state, done = saved.load(state)
    state = jax.device_put(state, placed.split)

    def note() -> None:
        saved.history.append(np.asarray(_risks(static, state.params, data), float))
        if trajectory:
            saved.path.append(jax.tree.map(np.asarray, state.params))

    if not saved.history:
        note()
    with showing(progress, "train", steps, "steps") as bar:
        bar.update(done)
        pace = 8
        while done < steps and not _settled(saved.history, tolerance, patience).all():
            until = min(steps, (done // record + 1) * record)
            now, begun = min(until - done, pace), time.perf_counter()
            state = jax.block_until_ready(_advance(static, state, keys, data, done, done + now))
            pace = max(1, min(8 * now, round(now * SECONDS_A_CALL / (time.perf_counter() - begun))))
            done += now
            if done == until:
                note()
                bar.note("risk " + " ".join(f"{r:.3g}" for r in saved.history[-1][:count]))
            bar.update(now)
            saved.save(state, done)
            check_stop()
    return saved.solutions(state, done, record, count, _settled(saved.history, tolerance, patience))


class _Static(NamedTuple):
    network: MultiBranch
    loss: Loss
    optimizer: optax.GradientTransformation
    batch_size: int


@partial(jax.jit, static_argnums=0)
def _begin(static: _Static, keys: jax.Array, data: Dataset, start: Params | None) -> State:
    params = jax.vmap(static.network.init)(keys) if start is None else start
    order = jnp.zeros((len(keys), len(data.y)), jnp.int32)
    return State(params, jax.vmap(static.optimizer.init)(params), order)


@partial(jax.jit, static_argnums=0, donate_argnums=1)
def _advance(static: _Static, state: State, keys: jax.Array, data: Dataset, start: jax.Array, stop: jax.Array) -> State:
    """Steps start … stop − 1 of every seed."""
    examples = len(data.y)
    count = examples // static.batch_size
    objective = partial(minibatch_risk, static.network, static.loss)

    def shuffled(key: jax.Array, epoch: jax.Array) -> jax.Array:
        return jax.random.permutation(jax.random.fold_in(key, epoch), examples).astype(jnp.int32)

    def step(t: jax.Array, key: jax.Array, state: State) -> State:
        order = lax.cond(t % count == 0, shuffled, lambda *_: state.order, key, t // count)
        chosen = lax.dynamic_slice_in_dim(order, t % count * static.batch_size, static.batch_size)
        batch = jax.tree.map(lambda x: x[chosen], (data.x, data.y, data.weight))
        slope = jax.grad(objective)(state.params, *batch)
        update, optimizer = static.optimizer.update(slope, state.optimizer, state.params)
        return State(optax.apply_updates(state.params, update), optimizer, order)

    every = jax.vmap(step, (None, 0, 0))
    return lax.fori_loop(start, stop, lambda t, state: every(t, keys, state), state)


@partial(jax.jit, static_argnums=0)
def _risks(static: _Static, params: Params, data: Dataset) -> jax.Array:
    return jax.vmap(lambda w: streamed_risk(static.network, static.loss, w, data))(params)


class _Placement(NamedTuple):
    split: NamedSharding
    shared: NamedSharding


def _padded(keys: jax.Array) -> tuple[jax.Array, int]:
    """The keys, the last one repeated until they can be shared out evenly over the devices; and their own number."""
    devices = min(len(jax.local_devices()), len(keys))
    return jnp.concatenate([keys, jnp.repeat(keys[-1:], -len(keys) % devices, axis=0)]), len(keys)


def _placement(keys: jax.Array) -> _Placement:
    devices = jax.local_devices()
    count = max(d for d in range(1, len(devices) + 1) if len(keys) % d == 0)
    mesh = jax.make_mesh((count,), ("seeds",), axis_types=(AxisType.Auto,), devices=devices[:count])
    return _Placement(NamedSharding(mesh, PartitionSpec("seeds")), NamedSharding(mesh, PartitionSpec()))


def _repeated(start: Params | None, count: int, wanted: int) -> Params | None:
    if start is None:
        return None
    lengths = {x.shape[0] for x in jax.tree.leaves(start)}
    if lengths != {count}:
        raise ValueError(f"start must hold one set of parameters a key, {count}; got {sorted(lengths)}.")
    return jax.tree.map(lambda x: jnp.concatenate([x, jnp.repeat(x[-1:], wanted - count, axis=0)]), start)


def _settled(history: list[np.ndarray], tolerance: float | None, patience: int) -> np.ndarray:
    """Which seeds' risks have fallen by no more than the tolerance over the last entries."""
    if tolerance is None or len(history) <= patience:
        return np.zeros(history[-1].shape, bool)
    return history[-1 - patience] - np.min(history[-patience:], axis=0) <= tolerance


class _Saved:
    """The state of a training on disk, with its history; nothing is written without a directory."""

    def __init__(
        self,
        directory: Path | str | None,
        problem: Problem,
        keys: jax.Array,
        sizes: tuple,
        trajectory: bool,
        state: State,
        optimizer: optax.GradientTransformation,
    ) -> None:
        self.file = Path(directory) / "training.npz" if directory else None
        self.history: list[np.ndarray] = []
        self.path: list[Params] = []
        self.trajectory, self.written = trajectory, time.monotonic()
        self.key = ""
        if directory:
            inputs = (jax.random.key_data(keys), sizes, repr(problem.network), state.params, trajectory)
            update = jax.vmap(optimizer.update)
            computed = [
                *programs(problem, [problem.loss]),
                program(update, state.params, state.optimizer, state.params),
            ]
            self.key = storage.fingerprint(*inputs, problem.data.fingerprint, computed)

    def load(self, state: State) -> tuple[State, int]:
        """The stored state and its step; the state given and 0 where none is stored."""
        arrays = storage.load_arrays(self.file, self.key) if self.file else None
        if arrays is None:
            return state, 0
        leaves, structure = jax.tree.flatten(state)
        self.history = list(arrays["history"])
        if self.trajectory:
            count = len(jax.tree.leaves(state.params))
            steps = zip(*(arrays[f"path{i}"] for i in range(count)), strict=True)
            self.path = [jax.tree.unflatten(jax.tree.structure(state.params), leaves) for leaves in steps]
        stored = [jnp.asarray(arrays[f"state{i}"]) for i in range(len(leaves))]
        return jax.tree.unflatten(structure, stored), int(arrays["done"])

    def save(self, state: State, done: int) -> None:
        """Write everything, at most once in `SECONDS_A_SAVE`."""
        if self.file is None or time.monotonic() - self.written < SECONDS_A_SAVE:
            return
        arrays = {f"state{i}": x for i, x in enumerate(jax.tree.leaves(state))}
        arrays |= {f"path{i}": x for i, x in enumerate(jax.tree.leaves(self._path()))}
        storage.save_arrays(self.file, {**arrays, "history": np.array(self.history), "done": np.array(done)}, self.key)
        self.written = time.monotonic()

    def _path(self) -> Params | None:
        return jax.tree.map(lambda *x: np.stack(x), *self.path) if self.path else None

    def solutions(self, state: State, done: int, record: int, count: int, settled: np.ndarray) -> Solutions:
        """The record returned to the caller; the file is removed by whoever has kept the solutions."""
        history = np.array(self.history).T[:count]
        steps = np.minimum(np.arange(history.shape[1]) * record, done)
        path = jax.tree.map(lambda x: np.moveaxis(x, 0, 1)[:count], self._path())
        params = jax.tree.map(lambda x: x[:count], jax.device_put(state.params, jax.local_devices()[0]))
        return Solutions(params, history[:, -1], history, steps, settled[:count], path)


def _check(problem: Problem, keys: jax.Array, steps: int, batch_size: int, record: int | None) -> None:
    single = jnp.ndim(keys) == (0 if jnp.issubdtype(keys.dtype, jax.dtypes.prng_key) else 1)
    if single or len(keys) == 0:
        raise ValueError(f"keys must be several random keys, [S]: jax.random.split(key, 3); got shape {keys.shape}.")
    if steps < 1 or (record is not None and record < 1):
        raise ValueError(f"steps and record must be at least 1; got {steps} and {record}.")
    if not 1 <= batch_size <= len(problem.data):
        raise ValueError(f"batch_size must be between 1 and the {len(problem.data):,} examples; got {batch_size}.")
