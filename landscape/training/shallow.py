"""Many small one-hidden-layer networks trained together by SGD in one compiled loop, in ensembles that fit the cache.

Networks f(x) = Σ_i v_i [w_i · x]_+ are laid out [networks, units, examples]. With the examples last, a step of an
ensemble is a few matrix products and a few passes over values that stay in the L2 cache. Networks of different widths
share an ensemble: the narrower ones are padded with units of weight zero, which have no gradient and stay zero.
"""

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from threading import Event
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from landscape import losses
from landscape.arrays import hardware, trees
from landscape.datasets import Dataset
from landscape.files import atomic
from landscape.files.progress import Bar, showing
from landscape.losses import Loss

Device = Any
WidthSeed = tuple[int, int]
"""(width, seed) of a network."""

STEPS_A_CALL = 250_000
"""Steps of one network in one call to the device; between calls the bar moves and requests to stop are answered."""
SECONDS_A_LOOK, SECONDS_A_SAVE = 0.25, 10.0
HIDDEN_SHARE = 0.2
"""Share of the L2 cache that an ensemble's hidden values fill; their gradient and the weights take as much again."""


@dataclass(frozen=True)
class TrainingConfig:
    """How the networks are trained; §5.2 states the number of steps only.

    Attributes:
        steps: SGD steps.
        batch_size: Examples a step, drawn without replacement in an order that all networks share.
        learning_rate: Constant step size.
        initialisation: "uniform" in ±1/√fan-in, or "normal" with standard deviation 1/√fan-in.
        loss: "hinge" on the labels, or "squared".
        tau: The margin parameter of the hinge loss, Eq. (1).
        seed: Seed of the order of the examples.
        float64: Compute in double precision.

    Raises:
        ValueError: A size or step that is not positive, or an unknown name.
    """

    steps: int = 100_000  # §5.2
    batch_size: int = 100
    learning_rate: float = 0.015
    initialisation: Literal["uniform", "normal"] = "uniform"
    loss: Literal["hinge", "squared"] = "hinge"
    tau: float = 1.0  # §5.1
    seed: int = 0
    float64: bool = False

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "learning_rate", "tau"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be positive; got {getattr(self, name)}.")
        if self.initialisation not in ("uniform", "normal") or self.loss not in ("hinge", "squared"):
            raise ValueError(
                'initialisation must be "uniform" or "normal" and loss "hinge" or "squared"; got '
                f"{self.initialisation!r} and {self.loss!r}."
            )

    @property
    def of_outputs(self) -> Loss:
        """The loss per example, (outputs [N, 1], y [N]) -> [N]; the same object for equal τ, so compiled only once."""
        return _hinge(self.tau) if self.loss == "hinge" else losses.squared

    def precision(self) -> AbstractContextManager:
        """The context in which the networks are trained."""
        return trees.float64() if self.float64 else nullcontext()


DEFAULT = TrainingConfig()
"""Measured to give a rising curve close to the printed one."""


class Weights(NamedTuple):
    """A network or an ensemble of them: w [..., I, D] and v [..., I]."""

    w: Any
    v: Any


def train_networks(
    data: Dataset,
    networks: Sequence[WidthSeed],
    config: TrainingConfig,
    *,
    ensemble: int | None = None,
    directory: Path | None = None,
    progress: bool | Bar = True,
    check_stop: Callable[[], None] = lambda: None,
) -> list[Weights]:
    """Train many one-hidden-layer networks by SGD, in ensembles that are distributed over the local devices or cores.

    Args:
        data: Examples [N, D] and labels [N], of equal weight; those of weight zero are padding and never drawn.
        networks: (width, seed) of each network.
        config: How they are trained.
        ensemble: Networks in an ensemble; when None as many of one width as stay in the cache, on an accelerator all.
        directory: Where the state of every ensemble is kept.
        progress: As in `hitting_rate`.
        check_stop: As in `hitting_rate`.

    Returns:
        The final weights of every network, in float64.

    Raises:
        ValueError: No networks, a width below 1, a batch larger than the data, or unequal weights.
        Corrupted: A state in the directory is damaged.
    """
    data = data.support
    _check(data, networks, config)
    jobs = [_Job(data, part, config, directory) for part in ensembles_of(networks, config, ensemble)]
    with showing(progress, "train", len(networks) * config.steps, "steps") as bar:
        _work(jobs, bar, check_stop)
    found = {key: weights for job in jobs for key, weights in zip(job.networks, job.split(), strict=True)}
    return [found[key] for key in networks]


def ensembles_of(
    networks: Sequence[WidthSeed], config: TrainingConfig, ensemble: int | None = None
) -> list[list[WidthSeed]]:
    """Divide networks into ensembles: on a CPU of one width and within the L2 cache, on an accelerator all in one."""
    if ensemble is None and jax.default_backend() != "cpu":
        return [list(networks)]
    parts, least = [], 1 if ensemble else len(_places())
    for width in sorted({width for width, _ in networks}, reverse=True):  # the longest first: the threads end together
        same = [key for key in networks if key[0] == width]
        count = max(-(-len(same) // (ensemble or _fitting(width, config))), min(least, len(same)))
        even = [c for c in range(count, 2 * count) if len(same) % c == 0]  # ensembles of one size compile once
        count = even[0] if even else count
        parts += [list(map(tuple, part)) for part in np.array_split(np.array(same), count)]
    return [[(int(width), int(seed)) for width, seed in part] for part in parts]


def start(networks: Sequence[WidthSeed], inputs: int, config: TrainingConfig) -> Weights:
    """Initial weights of an ensemble, float32; each network's depend on its own width and seed only."""
    most, parts = max(width for width, _ in networks), []
    for width in sorted({width for width, _ in networks}):
        seeds = jnp.array([seed for w, seed in networks if w == width], jnp.uint32)
        w, v = _initial(seeds, width, inputs, config.initialisation)
        parts.append((np.pad(w, [(0, 0), (0, most - width), (0, 0)]), np.pad(v, [(0, 0), (0, most - width)])))
    order = np.argsort(np.argsort([width for width, _ in networks], kind="stable"), kind="stable")
    return Weights(*(np.concatenate(part)[order] for part in zip(*parts, strict=True)))


def forward(weights: Weights, x: jax.Array) -> jax.Array:
    """f [S, B] of an ensemble of networks on examples x [D, B], the examples last throughout."""
    hidden = jnp.einsum("sid,db->sib", weights.w, x)
    return jnp.einsum("si,sib->sb", weights.v, jax.nn.relu(hidden))


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=2)
def advance(
    loss: Loss, batch: int, weights: Weights, data: tuple[Any, Any], rate: Any, orders: Any, batches: Any
) -> Weights:
    """SGD over `batches` minibatches.

    Args:
        loss: (outputs [B, 1], y [B]) -> [B].
        batch: B.
        weights: Weights of an ensemble.
        data: x [D, N] and y [N].
        rate: Step size.
        orders: [E, N] The order of the examples in each epoch, from the first again after the last.
        batches: Minibatches in all.
    """
    x, y = data
    each = x.shape[1] // batch

    def risk(weights: Weights, x: jax.Array, y: jax.Array) -> jax.Array:
        return jax.vmap(lambda f: loss(f[:, None], y).mean())(forward(weights, x)).sum()

    def epoch(e: jax.Array, weights: Weights) -> Weights:
        order = orders[e % len(orders)]
        ex, ey = (x, y) if batch == x.shape[1] else (x[:, order], y[order])

        def step(k: jax.Array, weights: Weights) -> Weights:
            part = [lax.dynamic_slice_in_dim(t, k * batch, batch, t.ndim - 1) for t in (ex, ey)]
            slope = jax.grad(risk)(weights, *part)
            return jax.tree.map(lambda p, g: p - rate * g, weights, slope)

        return lax.fori_loop(0, jnp.minimum(each, batches - e * each), step, weights)

    return lax.fori_loop(0, -(-batches // each), epoch, weights)


class _Job:
    """One ensemble in training: its weights, the number of steps done, and the file that keeps both."""

    def __init__(
        self, data: Dataset, networks: list[WidthSeed], config: TrainingConfig, directory: Path | None
    ) -> None:
        self.data, self.networks, self.config = data, networks, config
        self.key = atomic.fingerprint(data, networks, asdict(config))
        self.path = directory / f"block-{self.key[:20]}.npz" if directory else None
        kept = atomic.load_arrays(self.path, self.key) if self.path else None
        self.weights = Weights(kept["w"], kept["v"]) if kept else start(networks, data.x.shape[1], config)
        self.done = int(kept["done"]) if kept else 0
        self.saved = time.monotonic()

    @property
    def left(self) -> int:
        """Steps still to be taken."""
        return self.config.steps - self.done

    def run(self, device: Device, stop: Event) -> None:
        """Train to the end, or until asked to stop; either way the state is on disk afterwards."""
        kind = np.float64 if self.config.float64 else np.float32
        with self.config.precision(), jax.default_device(device):
            data = jnp.asarray(np.transpose(self.data.x).astype(kind)), jnp.asarray(np.asarray(self.data.y, kind))
            weights = Weights(*(jnp.asarray(part, kind) for part in self.weights))
            while self.left and not stop.is_set():
                weights = self.call(weights, data)
                if time.monotonic() - self.saved > SECONDS_A_SAVE:
                    self.save(weights)
            self.save(weights)

    def call(self, weights: Weights, data: tuple[Any, Any]) -> Weights:
        """One call to the device: whole epochs, about STEPS_A_CALL steps of one network."""
        batch, examples = self.config.batch_size, len(self.data)
        each = examples // batch
        orders = _orders(self.config.seed, examples, batch, -(-self.config.steps // each))
        first, epochs = self.done // each, max(1, STEPS_A_CALL // (each * len(self.networks)))
        rows = np.arange(first, first + min(epochs, len(orders)))
        part = np.take(orders, rows, axis=0, mode="wrap")
        count = min(self.left, epochs * each)
        weights = advance(self.config.of_outputs, batch, weights, data, self.config.learning_rate, part, count)
        jax.block_until_ready(weights)
        self.done += count
        return weights

    def save(self, weights: Weights) -> None:
        """Write the state."""
        self.weights, self.saved = Weights(*map(np.asarray, weights)), time.monotonic()
        if self.path:
            atomic.save_arrays(self.path, {**self.weights._asdict(), "done": self.done}, self.key)

    def split(self) -> list[Weights]:
        """The networks' weights, without padding, in float64."""
        w, v = (np.asarray(part, np.float64) for part in self.weights)
        return [Weights(w[k, :width], v[k, :width]) for k, (width, _) in enumerate(self.networks)]


def _work(jobs: list[_Job], bar: Bar, check_stop: Callable[[], None]) -> None:
    """Run the jobs, one thread for each place, while this thread shows the progress and answers requests to stop."""
    stop, queue = Event(), iter([job for job in jobs if job.left])

    def worker(device: Device) -> None:
        for job in queue:
            job.run(device, stop)
            if stop.is_set():
                return

    places = _places()
    with ThreadPoolExecutor(len(places)) as pool:
        futures = [pool.submit(worker, device) for device in places]
        try:
            pending = set(futures)
            while pending:
                finished, pending = wait(futures, SECONDS_A_LOOK, FIRST_EXCEPTION)
                bar.update(sum(job.done * len(job.networks) for job in jobs) - bar.done)
                for future in finished:
                    future.result()
                check_stop()
        except BaseException:
            stop.set()
            raise


def _places() -> list[Device]:
    """Where ensembles are trained: the local devices, or one thread for each core if the CPU is a single device."""
    devices = jax.local_devices()
    return devices * (os.cpu_count() or 1) if len(devices) == 1 and devices[0].platform == "cpu" else devices


@lru_cache(maxsize=32)
def _hinge(tau: float) -> Loss:
    return losses.tau_hinge(tau=tau)


@lru_cache(maxsize=2)
def _orders(seed: int, examples: int, batch: int, epochs: int) -> np.ndarray:
    """[E, N] The order of the examples in each epoch; one row, as they are, for the full batch."""
    kind = np.int16 if examples <= np.iinfo(np.int16).max else np.int32
    if batch == examples:
        return np.arange(examples, dtype=kind)[None]
    return np.stack([np.random.default_rng([seed, e]).permutation(examples).astype(kind) for e in range(epochs)])


@partial(jax.jit, static_argnums=(1, 2, 3))
def _initial(seeds: jax.Array, width: int, inputs: int, kind: str) -> tuple[jax.Array, jax.Array]:
    def draw(key: jax.Array, shape: tuple[int, ...], fan_in: int) -> jax.Array:
        if kind == "normal":
            return jax.random.normal(key, shape, jnp.float32) / np.sqrt(fan_in).astype(np.float32)
        return jax.random.uniform(key, shape, jnp.float32, -1, 1) / np.sqrt(fan_in).astype(np.float32)

    def one(seed: jax.Array) -> tuple[jax.Array, jax.Array]:
        first, last = jax.random.split(jax.random.fold_in(jax.random.key(seed), width))
        return draw(first, (width, inputs), inputs), draw(last, (width,), width)

    return jax.vmap(one)(seeds)


def _fitting(width: int, config: TrainingConfig) -> int:
    """Networks whose hidden values take their share of the L2 cache."""
    value = 8 if config.float64 else 4
    return max(1, int(HIDDEN_SHARE * hardware.cache_bytes() / (width * config.batch_size * value)))


def _check(data: Dataset, networks: Sequence[WidthSeed], config: TrainingConfig) -> None:
    if not networks or min(width for width, _ in networks) < 1:
        raise ValueError(f"Widths must be at least 1, and there must be a seed; got {list(networks)[:3]}.")
    if np.ndim(data.x) != 2 or np.ndim(data.y) != 1 or np.ptp(data.weight) != 0:
        raise ValueError(f"Examples must be [N, D] and labels [N], all of equal weight or of weight zero; got {data}.")
    if config.batch_size > len(data):
        raise ValueError(f"batch_size must be at most the {len(data):,} examples; got {config.batch_size:,}.")
