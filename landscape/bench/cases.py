"""What `landscape bench` measures: surfaces and trainings of fixed sizes, on random data of the shapes of the paper's.

Each case is compiled ahead of time, so that tracing, lowering, compiling, the first run and later runs stand apart.
"""

import itertools
import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from landscape import losses, networks, planes
from landscape.arrays import trees
from landscape.datasets import Dataset
from landscape.evaluation import block, cost_model, sharded
from landscape.evaluation.execution import Execution
from landscape.planes.grids import grid_around
from landscape.problem import Problem
from landscape.training import shallow, train
from landscape.training.solutions import Solutions

WIDTH, SEEDS = 16, 100
"""Hidden units of the networks of Table 1 that are timed, and their number."""


class Case(NamedTuple):
    """The sizes of one case.

    Attributes:
        kind: "surface", "table1" (a block of Table 1's networks) or "train" (one multi-branch network).
        inputs: D.
        hidden: Hidden units of a branch, layer by layer.
        outputs: C; 1 with the hinge loss, more with the multi-class hinge loss.
        branches: I.
        examples: N.
        points: Grid points along an axis; 0 for trainings.
        batch: Examples a step of SGD; 0 for surfaces.
        steps: Steps of SGD in one call.
    """

    kind: str
    inputs: int
    hidden: tuple[int, ...]
    outputs: int
    branches: int
    examples: int
    points: int = 0
    batch: int = 0
    steps: int = 0


_SYNTHETIC = Case("surface", 10, (1,), 1, 100, 1_000, 51)
_MNIST = Case("surface", 784, (8,), 10, 100, 1_000, 51)
_CIFAR = _MNIST._replace(inputs=3_072)
_TABLE1 = Case("table1", 10, (1,), 1, WIDTH, 1_000, batch=100, steps=1_000)
_TRAIN = _MNIST._replace(kind="train", points=0, batch=100, steps=40)

SUITES: dict[str, dict[str, Case]] = {
    "cpu": {
        "synthetic-100": _SYNTHETIC,
        "synthetic-1000": _SYNTHETIC._replace(branches=1_000),
        "mnist-100": _MNIST,
        "cifar-100": _CIFAR,
        "888-100": _CIFAR._replace(hidden=(8, 8, 8)),
        "table1-16": _TABLE1,
        "train-mnist-100": _TRAIN,
    },
    "gpu": {
        "synthetic-100": _SYNTHETIC,
        "synthetic-1000": _SYNTHETIC._replace(branches=1_000),
        "mnist-100": _MNIST._replace(examples=60_000),
        "cifar-100": _CIFAR._replace(examples=50_000),
        "888-1000": _CIFAR._replace(hidden=(8, 8, 8), branches=1_000, examples=50_000),
        "table1-16": _TABLE1._replace(steps=5_000),
        "train-mnist-100": _TRAIN._replace(examples=60_000, steps=1_000),
    },
}
"""For 2 cores and 2 minutes, 1,000 examples each; for a GPU, as many as MNIST and CIFAR-10 have."""


def shrunk(case: Case) -> Case:
    """The same case in a size that takes a moment and measures nothing."""
    least = {"branches": 3, "examples": 64, "points": 5, "batch": 16, "steps": 4, "inputs": 12}
    return case._replace(**{name: min(getattr(case, name), most) for name, most in least.items()})


class Stages(NamedTuple):
    """Seconds from a Python function to its first result; None where they could not be told apart."""

    trace: float | None
    lower: float | None
    compile: float | None
    first: float


class Ready(NamedTuple):
    """A case compiled and run once.

    Attributes:
        case: The sizes.
        unit: What is counted: "grid points" or "steps" (of one network).
        program: Units of one run of the compiled program, and the run, which returns when it is done.
        call: The same for the call of the package that a user makes.
        devices: Devices that the program runs on.
        operations: Floating-point operations of one run of the program.
        nbytes: Bytes counted: "least", what must be read and written once (parameters, data, result); "points", values
            of the first layer that are read at each grid point, from the cache or from the memory.
        stages: Seconds up to the first result.
        memory: Bytes: those planned, and those of `memory_analysis()` of the compiled program.
    """

    case: Case
    unit: str
    program: tuple[int, Callable[[], Any]]
    call: tuple[int, Callable[[], Any]]
    devices: int
    operations: float
    nbytes: dict[str, float]
    stages: Stages
    memory: dict[str, int]


def ready(case: Case, *, precision: str, memory: int | None, seed: int) -> Ready:
    """Prepare a case: random data, compiled program, first run."""
    with jax.default_matmul_precision(precision):
        if case.kind == "surface":
            return _surface(case, precision, memory, seed)
        return _table1(case, seed) if case.kind == "table1" else _train(case, seed)


def problem_of(case: Case, seed: int) -> Problem:
    """Random examples and labels, and a network of the case's sizes."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(case.examples, case.inputs)).astype(np.float32)
    binary = case.outputs == 1
    y = (
        np.sign(rng.normal(size=case.examples)).astype(np.float32)
        if binary
        else rng.integers(0, case.outputs, case.examples)
    )
    branch = networks.mlp_branch((case.inputs, *case.hidden, case.outputs))
    network = networks.MultiBranch(branch, case.branches, average=False)
    return Problem(Dataset(x, y), network, losses.hinge if binary else losses.multiclass_hinge)


def _surface(case: Case, precision: str, memory: int | None, seed: int) -> Ready:
    problem = problem_of(case, seed)
    plane = planes.through_solutions(*(problem.network.init(jax.random.key(s)) for s in range(3)))
    grid = grid_around(plane, case.points)
    execution = Execution(precision, memory, devices=tuple(jax.local_devices()))
    plan = sharded.plan_for(problem, plane, grid, execution)
    made = block.prepare(problem, [plane], [grid], [problem.loss], plan, execution, whole=True)
    inputs = made.affine, made.data(0)[0], made.axes[0], made.references(None)[0]
    trace = partial(block.block_sums.trace, *inputs, **made.options)
    run, stages, used = _staged(trace, lambda run: run(*inputs))

    def call() -> np.ndarray:
        return sharded.problem_means(problem, plane, grid, [problem.loss], execution)

    found = cost_model.costs(problem.network, plane.origin, jax.ShapeDtypeStruct(problem.data.x.shape[1:], np.float32))
    held = sum(n * cost.held for n, cost in zip(problem.network.counts, found, strict=True))
    chunks = math.ceil(case.examples / plan.tile.examples)
    least = chunks * 3 * trees.nbytes(plane.origin) + trees.nbytes(inputs[1]) + 4 * case.points**2
    return Ready(
        case,
        "grid points",
        (case.points**2, lambda: jax.block_until_ready(run(*inputs))),
        (case.points**2, call),
        len(execution.devices),
        plan.operations,
        {"least": float(least), "points": 2.0 * 4 * held * case.examples * case.points**2},
        stages,
        {"planned": plan.temporary, **used},
    )


def _table1(case: Case, seed: int) -> Ready:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(case.examples, case.inputs)).astype(np.float32)
    data = Dataset(x, np.sign(rng.normal(size=case.examples)).astype(np.float32))
    config = shallow.TrainingConfig(case.steps, case.batch)
    networks = [(case.branches, s) for s in range(SEEDS)]
    ensemble = shallow.ensembles_of(networks, config)[0]
    epochs = math.ceil(case.steps / (case.examples // case.batch))
    orders = np.stack([rng.permutation(case.examples).astype(np.int16) for _ in range(epochs)])
    arrays = (jnp.asarray(x.T), jnp.asarray(data.y)), config.learning_rate, jnp.asarray(orders), case.steps
    # A loss of its own, so that nothing is compiled already.
    loss = losses.tau_hinge(tau=1.0)
    first = shallow.Weights(*map(jnp.asarray, shallow.start(ensemble, case.inputs, config)))
    kept = [first]

    def go(run: Any) -> Any:
        kept[0] = jax.block_until_ready(run(kept[0], *arrays))
        return kept[0]

    run, stages, used = _staged(partial(shallow.advance.trace, loss, case.batch, first, *arrays), go)
    count, width = len(ensemble) * case.steps, case.branches
    operations = case.batch * width * (4 * case.inputs + 7) + 2 * width * (case.inputs + 1)
    least = count / len(ensemble) * 4 * case.batch * (case.inputs + 1) + 8 * len(ensemble) * width * (case.inputs + 1)
    return Ready(
        case,
        "steps",
        (count, lambda: go(run)),
        (len(networks) * case.steps, lambda: shallow.train_networks(data, networks, config, progress=False)),
        1,
        float(count * operations),
        {"least": least},
        stages,
        used,
    )


def _train(case: Case, seed: int) -> Ready:
    problem = problem_of(case, seed)
    keys, optimizer = jax.random.split(jax.random.key(seed), 1), optax.sgd(0.01)

    def call() -> Solutions:
        return train(problem, keys, optimizer, steps=case.steps, batch_size=case.batch, progress=False)

    begun = time.perf_counter()
    call()
    stages = Stages(None, None, None, time.perf_counter() - begun)
    widths = (case.inputs, *case.hidden, case.outputs)
    products = [2 * one * other for one, other in itertools.pairwise(widths)]
    # Forward, and backward to weights and inputs, but not to the examples.
    operations = case.steps * case.batch * case.branches * (3 * sum(products) - products[0])
    parameters = case.branches * sum(products) // 2
    least = 4.0 * case.steps * (2 * parameters + case.batch * case.inputs)
    return Ready(
        case,
        "steps",
        (case.steps, call),
        (case.steps, call),
        1,
        float(operations),
        {"least": least},
        stages,
        {},
    )


def _staged(trace: Callable[[], Any], go: Callable[[Any], Any]) -> tuple[Any, Stages, dict[str, int]]:
    """Trace, lower, compile and run once; the compiled program, the seconds, its bytes."""
    marks = [time.perf_counter()]

    def mark(found: Any) -> Any:
        marks.append(time.perf_counter())
        return found

    run = mark(mark(mark(trace()).lower()).compile())
    mark(jax.block_until_ready(go(run)))
    return run, Stages(*np.diff(marks).tolist()), _analysed(run)


def _analysed(run: Any) -> dict[str, int]:
    found = run.memory_analysis()
    names = {"temporary": "temp", "arguments": "argument", "outputs": "output", "code": "generated_code"}
    return {name: int(getattr(found, f"{word}_size_in_bytes")) for name, word in names.items()} if found else {}
