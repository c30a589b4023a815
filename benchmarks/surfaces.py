"""Surfaces against their peers: the same weights, data and grid, all ways in one run, agreement beside every ratio.

    python benchmarks/surfaces.py                    all cases, scaling curves; writes results/surfaces.json
    python benchmarks/surfaces.py mnist --rounds 3   one case

Peers: a PyTorch loop that sets the weights and runs one full batch a grid point, at the better of 1 and 2 threads;
`loss_landscapes.planar_interpolation` where installed; point-by-point JAX (one full forward a point inside `lax.map`);
chunked `vmap` of full forwards. A peer runs on a few points of the grid, and its cost is given a point.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import landscape as ls
from landscape import evaluation
from landscape.bench.cases import Case, problem_of
from landscape.bench.ceilings import arithmetic_peak
from landscape.evaluation import sharded
from landscape.evaluation.execution import Execution

RESULTS = Path(__file__).parent / "results"


CASES = {
    "synthetic-100": Case("surface", 10, (1,), 1, 100, 1000),
    "synthetic-1000": Case("surface", 10, (1,), 1, 1000, 1000),
    "mnist": Case("surface", 784, (8,), 10, 100, 2000),
    "cifar": Case("surface", 3072, (8,), 10, 100, 2000),
    "888": Case("surface", 3072, (8, 8, 8), 10, 100, 1000),
}
MUST = {"synthetic-100": 8, "synthetic-1000": 12, "mnist": 40, "cifar": 80, "888": 40}
"""Wanted ratios to the PyTorch loop."""


class Setting(NamedTuple):
    """One case made concrete."""

    problem: ls.Problem
    plane: ls.Plane
    grid: ls.Grid


def setting(case: Case, points: int) -> Setting:
    """Random data and three random networks on a plane."""
    problem = problem_of(case, seed=0)
    plane = ls.planes.through_solutions(*(problem.network.init(jax.random.key(s)) for s in range(3)))
    return Setting(problem, plane, ls.grid_around(plane, points))


def ours(s: Setting, devices: int | None = None) -> Callable[[], np.ndarray]:
    """The package, as a user calls it (without the self-checks, which do not grow with the grid)."""
    used = tuple(jax.local_devices()[:devices])
    execution = Execution(devices=used)
    return lambda: sharded.problem_means(s.problem, s.plane, s.grid, [s.problem.loss], execution)[0]


def point_by_point(s: Setting, some: np.ndarray) -> Callable[[], np.ndarray]:
    """One full forward a point, in one compiled loop."""
    risk = s.problem.risk
    run = jax.jit(lambda points: jax.lax.map(lambda ab: risk(s.plane.at((ab[0], ab[1]))), points))
    return lambda: np.asarray(run(jnp.asarray(some, jnp.float32)))


def chunked_vmap(s: Setting, some: np.ndarray) -> Callable[[], np.ndarray]:
    """Full forwards, four points at a time."""
    risk = jax.vmap(lambda ab: s.problem.risk(s.plane.at((ab[0], ab[1]))))
    run = jax.jit(lambda points: jax.lax.map(risk, points.reshape(-1, 4, 2)).ravel())
    return lambda: np.asarray(run(jnp.asarray(some, jnp.float32)))


def torch_loop(s: Setting, some: np.ndarray, threads: int) -> Callable[[], np.ndarray]:
    """Set the weights, run the whole batch, one point after the other, in PyTorch."""
    import torch

    x, y = (torch.as_tensor(np.array(t)) for t in (s.problem.data.x, s.problem.data.y))
    trees = [[np.array(layer["kernel"]) for layer in w] for w in (s.plane.origin, s.plane.u, s.plane.v)]
    o, u, v = ([torch.as_tensor(k) for k in tree] for tree in trees)
    branches, outputs = trees[0][0].shape[0], trees[0][-1].shape[-1]

    def risk(a: float, b: float) -> float:
        w = [p + a * q + b * r for p, q, r in zip(o, u, v, strict=True)]
        hidden = x @ w[0].permute(1, 0, 2).reshape(x.shape[1], -1)
        for kernel in w[1:-1]:
            hidden = torch.relu(hidden).reshape(len(x), branches, -1).transpose(0, 1)
            hidden = torch.bmm(hidden, kernel).transpose(0, 1).reshape(len(x), -1)
        f = torch.relu(hidden) @ w[-1].reshape(-1, outputs)
        if outputs == 1:
            return torch.relu(1 - y * f[:, 0]).mean().item()
        own = f.gather(1, y[:, None])
        return (torch.relu(1 + f - own).sum(1) - 1).mean().item()

    def run() -> np.ndarray:
        torch.set_num_threads(threads)
        with torch.no_grad():
            return np.array([risk(float(a), float(b)) for a, b in some])

    return run


def planar_interpolation(s: Setting, steps: int) -> Callable[[], np.ndarray] | None:
    """The peer package's own loop over a plane; None where it is not installed. Its values are not compared."""
    try:
        import loss_landscapes
        import torch
    except ImportError:
        return None
    layers = [np.asarray(layer["kernel"]) for layer in s.plane.origin]
    if len(layers) != 2:
        return None
    size = layers[0].shape[0] * layers[0].shape[2]
    x, y = (torch.as_tensor(np.array(t)) for t in (s.problem.data.x, s.problem.data.y))

    def model() -> Any:
        first, last = (
            torch.nn.Linear(x.shape[1], size, bias=False),
            torch.nn.Linear(size, layers[1].shape[2], bias=False),
        )
        return torch.nn.Sequential(first, torch.nn.ReLU(), last)

    start, one, two = model(), model(), model()

    def metric(wrapped: Any) -> float:
        with torch.no_grad():
            f = wrapped.forward(x)
            if f.shape[1] == 1:
                return torch.relu(1 - y * f[:, 0]).mean().item()
            return (torch.relu(1 + f - f.gather(1, y[:, None])).sum(1) - 1).mean().item()

    return lambda: np.asarray(loss_landscapes.planar_interpolation(start, one, two, metric, steps))


def timed(ways: dict[str, Callable[[], np.ndarray]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every way, in interleaved rounds after one warm-up."""
    for way in ways.values():
        way()
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            found[name].append(time.perf_counter() - start)
    return found


def compare(name: str, points: int, few: int, rounds: int) -> dict[str, Any]:
    """One case: cost a point of every way, ratios, agreement."""
    s = setting(CASES[name], points)
    rng = np.random.default_rng(1)
    where = np.stack([rng.integers(0, points, few), rng.integers(0, points, few)], 1)
    some = np.stack([s.grid.a[where[:, 0]], s.grid.b[where[:, 1]]], 1)
    ways = {"landscape": ours(s), "jit point": point_by_point(s, some), "vmap": chunked_vmap(s, some)}
    ways |= {f"torch {t}": torch_loop(s, some, t) for t in (1, 2)}
    other = planar_interpolation(s, 4)
    ways |= {"loss-landscapes": other} if other else {}
    values = {k: way() for k, way in ways.items() if k != "loss-landscapes"}
    values["landscape"] = values["landscape"][where[:, 0], where[:, 1]]
    counts = dict.fromkeys(ways, few) | {"landscape": points**2, "loss-landscapes": 16}
    seconds = timed(ways, rounds)
    cost = {k: 1e3 * statistics.median(t) / counts[k] for k, t in seconds.items()}
    spread = {k: [1e3 * q / counts[k] for q in np.quantile(t, [0.25, 0.75])] for k, t in seconds.items()}
    torch = min(cost["torch 1"], cost["torch 2"])
    scale = max(1.0, float(np.abs(values["torch 1"]).max()))
    agreement = {k: float(np.abs(v - values["torch 1"]).max() / scale) for k, v in values.items()}
    operations = evaluation.plan(s.problem, s.plane, s.grid).operations
    rate = operations / statistics.median(seconds["landscape"])
    return {
        "case": CASES[name]._asdict(),
        "ms_per_point": cost,
        "interquartile": spread,
        "ratio_to_torch": torch / cost["landscape"],
        "must": MUST[name],
        "ratio_to_jit_point": cost["jit point"] / cost["landscape"],
        "ratio_to_vmap": cost["vmap"] / cost["landscape"],
        "largest_relative_difference": agreement,
        "gflops": rate / 1e9,
    }


def scaling() -> dict[str, list[list[float]]]:
    """Seconds of whole surfaces against G, N, I, C, D and the number of devices, from one base case."""
    base = CASES["mnist"]._replace(examples=1000, branches=50)
    axes: dict[str, list[tuple[int, Case, int, int | None]]] = {
        "grid points along an axis": [(g, base, g, None) for g in (11, 21, 41, 81)],
        "examples": [(n, base._replace(examples=n), 21, None) for n in (500, 1000, 2000, 4000)],
        "branches": [(i, base._replace(branches=i), 21, None) for i in (25, 50, 100, 200)],
        "outputs": [(c, base._replace(outputs=c), 21, None) for c in (5, 10, 20, 40)],
        "inputs": [(d, base._replace(inputs=d), 21, None) for d in (784, 3072)],
        "devices": [(k, base, 21, k) for k in range(1, jax.local_device_count() + 1)],
    }
    found = {}
    for name, variants in axes.items():
        ways = {str(x): ours(setting(case, points), devices) for x, case, points, devices in variants}
        seconds = timed(ways, 5)
        found[name] = [[float(x), statistics.median(t)] for x, t in seconds.items()]
        print(f"{name}: " + "  ".join(f"{x:g}: {1e3 * t:.1f} ms" for x, t in found[name]))
    return found


def main() -> None:
    """Run and print; write results/surfaces.json when all cases ran."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", default=list(CASES), help=f"among {', '.join(CASES)}; all by default")
    parser.add_argument("--points", type=int, default=51)
    parser.add_argument("--few", type=int, default=16, help="grid points that the peers run")
    parser.add_argument("--rounds", type=int, default=7)
    asked = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", len(os.sched_getaffinity(0)))
    peak = arithmetic_peak()
    found = {}
    for name in asked.cases:
        found[name] = result = compare(name, asked.points, asked.few, asked.rounds)
        result["share_of_peak"] = 1e9 * result["gflops"] / peak
        cost = "  ".join(f"{k} {v:.4g}" for k, v in result["ms_per_point"].items())
        print(f"{name}: {result['ratio_to_torch']:.0f} x PyTorch (wanted {result['must']}); ms a point: {cost}")
        worst = max(result["largest_relative_difference"].values())
        share = f"{100 * result['share_of_peak']:.0f} % of the arithmetic peak"
        print(f"    largest difference {worst:.0e} of the largest loss; {share}")
    if set(asked.cases) == set(CASES):
        machine = {"processor": platform.processor() or platform.machine(), "devices": jax.device_count()}
        versions = {"jax": jax.__version__, "landscape": ls.__version__, "python": platform.python_version()}
        report = {
            "machine": machine,
            "versions": versions,
            "precision": "highest",
            "arithmetic_peak": peak,
            "cases": found,
        }
        report["scaling"] = scaling()
        (RESULTS / "surfaces.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
