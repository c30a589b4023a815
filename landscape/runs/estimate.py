"""Estimates of memory, operations and time, announced before a computation starts."""

import time
from typing import Any, NamedTuple

import jax
import numpy as np

from landscape import evaluation
from landscape.arrays import hardware, trees
from landscape.evaluation import cost_model
from landscape.planes import Plane
from landscape.planes.grids import Grid
from landscape.problem import Problem
from landscape.training import sgd

RATES = {"cpu": (2e10, 4e10), "gpu": (4e12, 1e13), "tpu": (4e12, 1e13)}
"""Operations a second of one device in training and on surfaces; used only for the announced time."""
HVP, CURVATURE = 6, 9
"""Cost of a Hessian-vector product, and of slope and Hessian in a plane, in evaluations of the risk."""
PROCESS = 6 * 10**8
"""Bytes of a process with its libraries, compiled programs and buffers (measured)."""
HELD = 11
"""Number of solutions in memory while one triple is drawn: as trained, aligned, and the axes of the planes."""
COMPILING = 2.0
"""Approximate seconds to compile a program."""


class Amount(NamedTuple):
    """Amounts of work of a command.

    Attributes:
        points: Grid points along each axis.
        surfaces: Surfaces on the training data, or as many examples.
        evaluations: Further single evaluations of the risk.
        hvp_calls: Products of the Hessian with a vector.
        curvature_points: Points at which slope and curvature in the plane are computed.
        trained: Examples passed through training, all seeds and steps together.
    """

    points: int
    surfaces: float = 1.0
    evaluations: int = 0
    hvp_calls: int = 0
    curvature_points: int = 0
    trained: int = 0

    @property
    def everything(self) -> float:
        """Everything but training, in evaluations of the risk."""
        derivatives = HVP * self.hvp_calls + CURVATURE * self.curvature_points
        return self.points**2 * self.surfaces + self.evaluations + derivatives


class Forecast(NamedTuple):
    """Bytes on a device, counted work in words, seconds; of a problem floating-point operations and route, too."""

    nbytes: int
    count: str
    seconds: float
    operations: float = 0.0
    route: str = ""

    def words(self) -> tuple[str, str, str]:
        """Memory, work and time in words."""
        return f"{self.nbytes / hardware.GIB:.2f} GiB", self.count, f"about {duration(self.seconds)}"


def of_problem(problem: Problem, amount: Amount, memory: int | None = None) -> Forecast:
    """The forecast of a problem, from the operations of the cost model and the rates of an ordinary device.

    Raises:
        ValueError: A surface does not fit the memory.
    """
    plan, one, examples = planned(problem, amount.points, memory), forward(problem), len(problem.data)
    training = 3 * one * amount.trained
    slow = one * examples * (HVP * amount.hvp_calls + CURVATURE * amount.curvature_points)
    fast = plan.operations * amount.surfaces + one * examples * amount.evaluations
    rates, devices = RATES.get(jax.devices()[0].platform, RATES["cpu"]), jax.local_device_count()
    seconds = training / rates[0] / min(devices, 3) + slow / rates[0] + fast / rates[1] / devices
    compiled = sum(map(bool, (amount.trained, amount.hvp_calls, amount.curvature_points, amount.surfaces)))
    total = training + slow + fast
    return Forecast(plan.nbytes, operations(total), seconds + COMPILING * compiled, total, str(plan.route))


def of_function(compiled: Any, params: Any, amount: Amount) -> Forecast:
    """The forecast of a function, from the time of one evaluation.

    Args:
        compiled: The function, compiled ahead of time for `params`.
        params: Parameters.
        amount: How much there is to do.
    """
    times = []
    for _ in range(2):
        begun = time.perf_counter()
        jax.block_until_ready(compiled(params))
        times.append(time.perf_counter() - begun)
    memory = getattr(compiled.memory_analysis(), "temp_size_in_bytes", 0)
    count = f"{amount.points**2 * amount.surfaces:,.0f} points x {_short(min(times))}"
    return Forecast(3 * trees.nbytes(params) + memory, count, amount.everything * min(times) + COMPILING)


def planned(problem: Problem, points: int, memory: int | None = None) -> cost_model.Plan:
    """The plan of one surface, from shapes."""
    plane = Plane(problem.shapes, problem.shapes, problem.shapes, np.zeros((0, 2)))
    return evaluation.plan(problem, plane, Grid(np.arange(points), np.arange(points)), memory)


def peak(problem: Problem, optimizer: Any, seeds: int, points: int, memory: int | None) -> int:
    """Peak bytes of training and drawing triples; on a CPU those of the process, otherwise of a device.

    Args:
        problem: Data and network.
        optimizer: The optimiser, whose state counts.
        seeds: Solutions trained.
        points: Grid points along each axis.
        memory: Bytes allowed on each device; chosen from the device when None.

    Raises:
        ValueError: Training or a surface does not fit the memory.
    """
    plan = planned(problem, points, memory)
    trained = sgd.seed_layout(problem, optimizer, seeds, memory)
    if jax.devices()[0].platform != "cpu":
        return max(trained.nbytes, plan.nbytes)
    one = trees.nbytes(problem.shapes)
    drawn = (seeds - 3 + HELD) * one + plan.nbytes * jax.local_device_count()
    return PROCESS + max(trained.total, drawn)


def forward(problem: Problem) -> int:
    """Operations of the network for one example."""
    return cost_model.forward_operations(problem.network, problem.shapes, problem.data.example)


def operations(count: float) -> str:
    """Operations in words: "0.4 TFLOP"."""
    return f"{count / 1e12:.1f} TFLOP" if count >= 1e11 else f"{count / 1e9:.1f} GFLOP"


def duration(seconds: float) -> str:
    """Seconds in words: "40 s", "12 min", "3.5 h"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _short(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds >= 0.1 else f"{seconds * 1e3:.2g} ms"
