"""Stochastic gradient descent, vmapped over seeds and looped over steps on the device, resumable (§5.1)."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from landscape.arrays import hardware
from landscape.compiler.flatten import jaxpr_hash
from landscape.datasets import Dataset
from landscape.files import atomic
from landscape.files.progress import Bar, showing
from landscape.problem import Problem, fingerprint, refuse_mixing
from landscape.training import sgd
from landscape.training.sgd import State, Static
from landscape.training.solutions import Solutions

Params = Any

SECONDS_A_CALL = 2.0
"""Aimed duration of one call to the device; between calls the bar moves and requests to stop are answered."""
TURNS = 5
"""Factor on this duration if seeds take turns on the devices, so that moving them takes little of the time."""
SECONDS_A_SAVE = 10.0


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
    memory: int | None = None,
    branch_devices: int | None = None,
    directory: Path | str | None = None,
    progress: bool | Bar = True,
    check_stop: Callable[[], None] = lambda: None,
) -> Solutions:
    """Minibatch SGD from several seeds at once, all in one compiled loop (§5.1).

    Seeds are shared out over all devices of all processes. Where the memory does not allow that, branches are split
    over the devices, or one seed after the other takes its turn; on a CPU, whose devices share one memory, turns first.

    Minibatches are drawn without replacement: every seed has its own order of the examples in every epoch, and the
    N mod batch_size examples at its end are left out of that epoch. Examples of weight zero are never drawn, so that
    padding changes nothing. A step follows the gradient of the minibatch's own weighted mean Σ_B w ℓ / Σ_B w: weights w
    and 5 w give the same steps. The gradient in one branch of a network that averages, f = 1/I Σ_i f_i, carries the
    factor 1/I, and so do the steps of plain SGD: a step length that suits a sum of branches is I times as large here.

    Args:
        problem: Data, network and loss.
        keys: Random keys [S], one a solution; each gives the initial parameters and the orders.
        optimizer: Any optax optimiser, for example `optax.sgd(0.05)`.
        steps: Most steps taken.
        batch_size: Examples a step.
        record: Steps between two entries of the history; 1/20 of all by default.
        tolerance: Stop once no seed's lowest risk has fallen by more than this over the last `patience` entries of the
            history; never when None.
        patience: See `tolerance`.
        trajectory: Keep the parameters at every entry of the history.
        start: Initial parameters [S, I, ...] instead of random ones.
        memory: Bytes allowed on each device; chosen from the device when None.
        branch_devices: Over how many devices the branches of each seed are split, a divisor of both numbers; when None
            as few as the memory asks for.
        directory: Where the state is kept while training, so that the same call continues an interrupted one.
        progress: True for a bar, False for silence, or a bar already open.
        check_stop: Called whenever the state is on disk; may raise to interrupt.

    Returns:
        The solutions. Interrupted and continued, they are the same to the last bit.

    Raises:
        ArithmeticError: The risk is no longer finite.
        ValueError: Outputs for one example that depend on the others of its batch, no steps, a batch larger than the
            examples of positive weight, keys that are not [S], a stored state of other inputs, or a seed that does not
            fit the memory.
    """
    problem = problem.on_support
    _check(problem, keys, steps, batch_size, record)
    record, count = record or max(1, steps // 20), len(keys)
    layout = sgd.seed_layout(problem, optimizer, count, memory, branch_devices)
    static = Static(problem.network, problem.loss, optimizer, batch_size, layout.mesh)
    seeds = _Seeds(static, keys, _checked(start, count), problem.data, layout.seeds)
    refuse_mixing(problem.network, jax.tree.map(lambda w: w[0, :1], seeds.states[0].params), problem.data.x)
    saved = _Saved(directory, problem, keys, (steps, batch_size, record), trajectory, seeds, start)
    done = saved.load(seeds)
    if not saved.history:
        saved.note(seeds)
    with showing(progress, "train", steps, "steps") as bar:
        bar.update(done)
        pace = 8
        while done < steps and not _settled(saved.history, tolerance, patience).all():
            until = min(steps, (done // record + 1) * record)
            now, begun = min(until - done, pace), time.perf_counter()
            seeds.advance(done, done + now)
            aim = SECONDS_A_CALL * (TURNS if seeds.swapped else 1)
            faster = round(now * aim / (time.perf_counter() - begun))
            pace = int(hardware.from_leader(max(1, min(8 * now, faster))))
            done += now
            if done == until:
                saved.note(seeds)
                bar.note("risk " + " ".join(f"{r:.3g}" for r in saved.history[-1]))
            bar.update(now)
            saved.save(seeds, done)
            _ask(check_stop, saved, seeds, done)
    settled = _settled(saved.history, tolerance, patience)
    return saved.solutions(seeds, done, record, settled, layout.shards)


def _ask(check_stop: Callable[[], None], saved: "_Saved", seeds: "_Seeds", done: int) -> None:
    """Answer a request to stop; the state is written first."""
    try:
        check_stop()
    except atomic.Stopped:
        saved.save(seeds, done, now=True)
        raise


class _Seeds:
    """The states of all seeds. If they do not fit the devices together, each is moved there for its turn only."""

    def __init__(self, static: Static, keys: jax.Array, start: Params | None, data: Dataset, at_once: int) -> None:
        self.static, self.count = static, len(keys)
        split, whole = (NamedSharding(static.mesh, spec) for spec in (P("seeds"), P()))
        self.data = hardware.placed(data, whole)
        self.parts = [range(i, min(i + at_once, self.count)) for i in range(0, self.count, at_once)]
        # All devices of a CPU share one memory, so that moving states would save nothing.
        self.at_once = at_once
        self.swapped = len(self.parts) > 1 and static.mesh.devices.flat[0].platform != "cpu"
        self.keys = [hardware.placed(self._padded(keys, part), split) for part in self.parts]
        self.states: list[State] = []
        for part, of_part in zip(self.parts, self.keys, strict=True):
            begun = None if start is None else jax.tree.map(lambda x, part=part: self._padded(x, part), start)
            self.states.append(self._away(sgd.begin(static, of_part, len(data), begun)))

    def _padded(self, x: Any, part: range) -> Any:
        """The rows of one part; the last row is repeated until all devices have equally many."""
        return x[np.minimum(np.arange(part.start, part.start + self.at_once), part.stop - 1)]

    def _away(self, state: State) -> State:
        return hardware.gathered(state) if self.swapped else state

    def _here(self, state: State) -> State:
        if not self.swapped:
            return state
        where = sgd.shardings(self.static, state)
        return jax.tree.map(hardware.placed, state, where)

    def advance(self, start: int, stop: int) -> None:
        """Take steps start … stop − 1 with every seed."""
        for keys in self.keys:
            state = sgd.advance(self.static, self._here(self.states.pop(0)), keys, self.data, start, stop)
            self.states.append(self._away(jax.block_until_ready(state)))

    def risks(self) -> np.ndarray:
        """The risk of every seed on all the data, [S]."""
        found = [sgd.risks(self.static, self._here(s).params, self.data) for s in self.states]
        return self._joined(*found).astype(float)

    def whole(self, of: Callable[[State], Any] = lambda state: state) -> Any:
        """The states, or parts of them, of all seeds on the host of every process, [S, ...]."""
        return jax.tree.map(self._joined, *map(of, self.states))

    def shapes(self) -> State:
        """Shapes and types of the states of all seeds together, [S, ...]."""
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct((self.count, *x.shape[1:]), x.dtype), self.states[0])

    def _joined(self, *parts: Any) -> np.ndarray:
        """Rows of all parts without padding, [S, ...]. Parts are copied to the host one after the other."""
        if len(parts) == 1:
            return hardware.gathered(parts[0])[: self.count]
        whole = np.empty((self.count, *parts[0].shape[1:]), parts[0].dtype)
        for x, part in zip(parts, self.parts, strict=True):
            whole[part.start : part.stop] = hardware.gathered(x)[: len(part)]
        return whole

    def replace(self, whole: State) -> None:
        """Take up stored states of all seeds, [S, ...]."""
        for k, part in enumerate(self.parts):
            padded = jax.tree.map(lambda x, part=part: self._padded(x, part), whole)
            where = sgd.shardings(self.static, padded)
            self.states[k] = padded if self.swapped else jax.tree.map(hardware.placed, padded, where)


def _checked(start: Params | None, count: int) -> Params | None:
    lengths = {x.shape[0] for x in jax.tree.leaves(start)}
    if start is not None and lengths != {count}:
        raise ValueError(f"start must hold one set of parameters a key, {count}; got {sorted(lengths)}.")
    return start


def _settled(history: list[np.ndarray], tolerance: float | None, patience: int) -> np.ndarray:
    """Whether each seed's lowest risk has fallen by at most the tolerance over the last `patience` entries, [S].

    Lowest risks are compared because single entries are noisy under a constant step length.
    """
    if tolerance is None or len(history) <= patience:
        return np.zeros(history[-1].shape, bool)
    return np.min(history[:-patience], axis=0) - np.min(history[-patience:], axis=0) <= tolerance


class _Saved:
    """The states and the history on disk. Only the leading process writes, and only if there is a directory."""

    def __init__(
        self,
        directory: Path | str | None,
        problem: Problem,
        keys: jax.Array,
        sizes: tuple,
        trajectory: bool,
        seeds: _Seeds,
        start: Params | None,
    ) -> None:
        self.file = Path(directory) / "training.npz" if directory else None
        self.history: list[np.ndarray] = []
        self.path: list[Params] = []
        self.trajectory, self.written, self.pause = trajectory, time.monotonic(), SECONDS_A_SAVE
        self.key = ""
        if directory:
            state = seeds.shapes()
            begun = jaxpr_hash(problem.network.init, keys[0]) if start is None else start
            update = jaxpr_hash(jax.vmap(seeds.static.optimizer.update), state.params, state.optimizer, state.params)
            inputs = (jax.random.key_data(keys), sizes, begun, update, trajectory)
            self.key = atomic.fingerprint(fingerprint(problem, [problem.loss]), *inputs)

    def note(self, seeds: _Seeds) -> None:
        """One entry of the history.

        Raises:
            ArithmeticError: A risk is not finite.
        """
        risks = seeds.risks()
        if not np.isfinite(risks).all():
            words = " ".join(f"{r:.3g}" for r in risks)
            raise ArithmeticError(f"Training diverged: the risks are {words}.\n  Take a smaller step length.")
        self.history.append(risks)
        if self.trajectory:
            self.path.append(seeds.whole(lambda state: state.params))

    def load(self, seeds: _Seeds) -> int:
        """Continue from stored states, if there are any; returns the number of steps done."""
        arrays = atomic.load_arrays(self.file, self.key) if self.file and hardware.leading() else None
        if not hardware.from_leader(arrays is not None):
            return 0
        state = seeds.shapes()
        leaves, structure = jax.tree.flatten(state)
        steps = jax.tree.leaves(state.params) if self.trajectory else []
        done, length = hardware.from_leader([arrays["done"], len(arrays["history"])] if arrays else [0, 0]).tolist()
        shapes = {f"state{i}": (x.shape, x.dtype) for i, x in enumerate(leaves)}
        shapes |= {f"path{i}": ((length, *x.shape), x.dtype) for i, x in enumerate(steps)}
        shapes |= {"history": ((length, seeds.count), np.dtype(float))}
        found = {name: hardware.from_leader(arrays[name] if arrays else np.zeros(*of)) for name, of in shapes.items()}
        self.history = list(found["history"])
        path = zip(*(found[f"path{i}"] for i in range(len(steps))), strict=True)
        self.path = [jax.tree.unflatten(jax.tree.structure(state.params), leaves) for leaves in path]
        seeds.replace(jax.tree.unflatten(structure, [found[f"state{i}"] for i in range(len(leaves))]))
        return done

    def save(self, seeds: _Seeds, done: int, now: bool = False) -> None:
        """Write everything, `now` or else once in `SECONDS_A_SAVE`; writing takes at most a tenth of the time."""
        begun = time.monotonic()
        if self.file is None or not hardware.from_leader(now or begun - self.written >= self.pause):
            return
        state = seeds.whole()
        if hardware.leading():
            arrays = {f"state{i}": x for i, x in enumerate(jax.tree.leaves(state))}
            arrays |= {f"path{i}": x for i, x in enumerate(jax.tree.leaves(self._path()))}
            arrays |= {"history": np.array(self.history), "done": np.array(done)}
            atomic.save_arrays(self.file, arrays, self.key)
        self.written = time.monotonic()
        self.pause = max(SECONDS_A_SAVE, 9 * (self.written - begun)) if SECONDS_A_SAVE else 0.0

    def _path(self) -> Params | None:
        return jax.tree.map(lambda *x: np.stack(x), *self.path) if self.path else None

    def solutions(self, seeds: _Seeds, done: int, record: int, settled: np.ndarray, branch_shards: int) -> Solutions:
        """The record returned by `train`. The caller removes the file once it has kept the solutions."""
        history = np.array(self.history).T
        steps = np.minimum(np.arange(history.shape[1]) * record, done)
        path = jax.tree.map(lambda x: np.moveaxis(x, 0, 1), self._path())
        params = seeds.whole(lambda state: state.params)
        if branch_shards == 1 and len(seeds.parts) == 1:
            params = jax.device_put(params, jax.local_devices()[0])
        return Solutions(params, history[:, -1], history, steps, settled, path, branch_shards)


def _check(problem: Problem, keys: jax.Array, steps: int, batch_size: int, record: int | None) -> None:
    single = jnp.ndim(keys) == (0 if jnp.issubdtype(keys.dtype, jax.dtypes.prng_key) else 1)
    if single or len(keys) == 0:
        raise ValueError(f"keys must be several random keys, [S]: jax.random.split(key, 3); got shape {keys.shape}.")
    if steps < 1 or (record is not None and record < 1):
        raise ValueError(f"steps and record must be at least 1; got {steps} and {record}.")
    if not 1 <= batch_size <= len(problem.data):
        raise ValueError(
            f"batch_size must be between 1 and the {len(problem.data):,} examples of positive weight; got {batch_size}."
        )
