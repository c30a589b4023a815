"""Deep networks from plain Python against a PyTorch loop at its best: one run, interleaved, agreement beside ratios.

    python benchmarks/deep.py                     all networks; writes results/deep.json
    python benchmarks/deep.py MLP --rounds 3      one network
    python benchmarks/deep.py --cold              a new process to its first surface, of 100 images

Ours is `evaluate` as a user calls it, its self-checks included: of the flax module, and of the PyTorch module through
`from_torch`. The peer sets the weights and passes the images in batches, one grid point after the other: the better of
two layouts, threads and sizes of batches. It runs on a few points of the grid, and its cost is given a point.
"""

import argparse
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from deep_networks import CLASSES, FLAX, SIDE, in_torch

import landscape as ls
from landscape import evaluation
from landscape.bench.ceilings import arithmetic_peak
from landscape.evaluation import cost_model

RESULTS = Path(__file__).parent / "results"
MUST = {"CNN": 1.4, "ResNet-20": 0.8, "transformer": 1.2, "MLP": 1.4}
"""Wanted ratios to the PyTorch loop."""
BATCHES = (100, 400)


class Setting(NamedTuple):
    """One network made concrete."""

    problem: ls.Problem
    plane: ls.Plane
    grid: ls.Grid


def images(count: int, first: bool = False) -> ls.Dataset:
    """Random images, channels last or first, and labels."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(count, SIDE, SIDE, 3)).astype("f4"), rng.integers(0, CLASSES, count)
    return ls.Dataset(np.ascontiguousarray(x.transpose(0, 3, 1, 2)) if first else x, y)


def setting(network: ls.networks.Network, data: ls.Dataset, points: int) -> Setting:
    """A plane through three random solutions."""
    problem = ls.Problem(data, ls.MultiBranch(network, 1), ls.losses.logistic)
    plane = ls.planes.through_solutions(*(problem.network.init(jax.random.key(s)) for s in range(3)))
    return Setting(problem, plane, ls.grid_around(plane, points))


def ours(s: Setting) -> Callable[[], np.ndarray]:
    """The surface, as a user calls it."""
    return lambda: ls.evaluate(s.problem, s.plane, s.grid, progress=False).risk


def torch_loops(module: Any, s: Setting, some: np.ndarray) -> dict[str, Callable[[], np.ndarray]]:
    """Every variant of the peer, on the plane of the same module."""
    import torch
    from torch.nn import functional as F

    x, y = torch.as_tensor(np.array(s.problem.data.x)), torch.as_tensor(np.array(s.problem.data.y))
    trees = [dict(flat(tree)) for tree in (s.plane.origin, s.plane.u, s.plane.v)]

    def loop(layout: Any, threads: int, batch: int) -> Callable[[], np.ndarray]:
        net, data = module().eval().to(memory_format=layout), x.contiguous(memory_format=layout)
        parameters = dict(net.named_parameters())
        o, u, v = ([torch.as_tensor(np.array(tree[k][0])) for k in parameters] for tree in trees)

        def risk(a: float, b: float) -> float:
            for p, q, r, t in zip(parameters.values(), o, u, v, strict=True):
                p.copy_(q + a * r + b * t)
            parts = zip(data.split(batch), y.split(batch), strict=True)
            return sum(F.cross_entropy(net(part), labels, reduction="sum").item() for part, labels in parts) / len(x)

        def run() -> np.ndarray:
            torch.set_num_threads(threads)
            with torch.no_grad():
                return np.array([risk(float(a), float(b)) for a, b in some])

        return run

    cores = len(os.sched_getaffinity(0))
    layouts = {"NCHW": torch.contiguous_format, "channels last": torch.channels_last}
    settings = itertools.product(layouts, sorted({1, cores}), BATCHES)
    return {f"torch {name} {t} {batch}": loop(layouts[name], t, batch) for name, t, batch in settings}


def flat(tree: Any, before: str = "") -> list[tuple[str, Any]]:
    """The arrays of nested dictionaries by the names that PyTorch gives them."""
    pairs = [(f"{before}{key}", value) for key, value in tree.items()]
    found = [flat(value, f"{name}.") if isinstance(value, dict) else [(name, value)] for name, value in pairs]
    return list(itertools.chain(*found))


def one_by_one(s: Setting, some: np.ndarray) -> np.ndarray:
    """The risk at a few points, by the plain forward pass."""
    return np.array([s.problem.risk(s.plane.at(tuple(ab))) for ab in some])


def timed(ways: dict[str, Callable[[], np.ndarray]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every way, in interleaved rounds."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            begun = time.perf_counter()
            way()
            found[name].append(time.perf_counter() - begun)
    return found


def compare(name: str, points: int, few: int, examples: int, rounds: int) -> dict[str, Any]:
    """One network: cost a point of every way, ratios, agreement."""
    frozen = "frozen" if name == "ResNet-20" else None
    settings = {"flax": setting(ls.from_flax(FLAX[name], state=frozen), images(examples), points)}
    rng = np.random.default_rng(1)
    where = tuple(rng.integers(0, points, (2, few)))
    ways, counts, agree = {}, {}, {}
    try:
        module = in_torch()[name]
        data = images(examples, first=True)
        through = setting(ls.from_torch(module, data.x[0]), data, points)
        some = np.stack([axis[i] for axis, i in zip(through.grid, where, strict=True)], 1)
        peers = torch_loops(module, through, some)
        settings, ways = settings | {"from_torch": through}, dict(peers)
    except ImportError:
        peers = {}
    counts |= dict.fromkeys(ways, few)
    values = {k: way() for k, way in ways.items()}
    for kind, s in settings.items():
        ways[kind], counts[kind] = ours(s), points**2
        risk = ways[kind]()[where]
        some = np.stack([axis[i] for axis, i in zip(s.grid, where, strict=True)], 1)
        wanted = next(iter(values.values())) if kind == "from_torch" else one_by_one(s, some)
        agree[kind] = float(np.abs(risk - wanted).max() / max(1.0, np.abs(risk).max()))
    seconds = timed(ways, rounds)
    cost = {k: 1e3 * statistics.median(t) / counts[k] for k, t in seconds.items()}
    spread = {k: [1e3 * q / counts[k] for q in np.quantile(t, [0.25, 0.75])] for k, t in seconds.items()}
    best = min((cost[k] for k in peers), default=None)
    flops = cost_model.forward_operations(*(lambda p: (p.network, p.shapes, p.data.example))(settings["flax"].problem))
    plans = {k: evaluation.plan(*s) for k, s in settings.items()}
    return {
        "ms_per_point": cost,
        "interquartile": spread,
        "ratio_to_torch": {k: best / cost[k] for k in settings} if best else {},
        "must": MUST[name],
        "largest_relative_difference": agree,
        "route": {k: str(plan.route) for k, plan in plans.items()},
        "tile": {k: list(plan.tile) for k, plan in plans.items()},
        "gflops": {k: flops * examples / cost[k] / 1e6 for k in settings},
    }


COLD = """
import time; begun = time.perf_counter()
import sys; sys.path.insert(0, {folder!r})
import deep; s = deep.setting(deep.ls.from_flax(deep.FLAX[{name!r}], state={state!r}), deep.images(100), 9)
made = time.perf_counter(); deep.ours(s)()
print(made - begun, time.perf_counter() - begun)
"""


def cold(name: str) -> dict[str, float]:
    """Seconds of a new process until three solutions and their plane are there, and until the first surface."""
    state = "frozen" if name == "ResNet-20" else None
    program = COLD.format(folder=str(Path(__file__).parent), name=name, state=state)
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    made, done = map(float, out.split())
    return {"solutions": made, "surface": done}


def main() -> None:
    """Run and print; write results/deep.json when all networks ran."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", default=list(FLAX), help=f"among {', '.join(FLAX)}; all by default")
    parser.add_argument("--points", type=int, default=9)
    parser.add_argument("--few", type=int, default=3, help="grid points that the peer runs")
    parser.add_argument("--examples", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cold", action="store_true", help="only the seconds to a first surface")
    asked = parser.parse_args()
    if asked.cold:
        for name in asked.networks:
            print(f"{name}: " + ", ".join(f"{k} {v:.1f} s" for k, v in cold(name).items()))
        return
    peak = arithmetic_peak()
    found = {}
    for name in asked.networks:
        found[name] = one = compare(name, asked.points, asked.few, asked.examples, asked.rounds)
        one["share_of_peak"] = {k: 1e9 * rate / peak for k, rate in one["gflops"].items()}
        ratios = "  ".join(f"{k} {r:.2f}" for k, r in one["ratio_to_torch"].items())
        print(f"{name}: {ratios} x PyTorch (wanted {one['must']}); {one['route']['flax']}")
        print("    ms a point: " + "  ".join(f"{k} {v:.3g}" for k, v in one["ms_per_point"].items()))
        shares = "  ".join(f"{k} {100 * v:.0f} %" for k, v in one["share_of_peak"].items())
        print(f"    {shares} of the arithmetic peak of {peak / 1e9:.0f} GFLOP/s, counted in forward passes")
        print(f"    largest relative difference {max(one['largest_relative_difference'].values()):.0e}")
    if set(asked.networks) == set(FLAX):
        report = {
            "machine": {"processor": platform.processor() or platform.machine(), "cores": len(os.sched_getaffinity(0))},
            "versions": {"jax": jax.__version__, "landscape": ls.__version__, "python": platform.python_version()},
            "sizes": {"points": asked.points, "examples": asked.examples},
            "arithmetic_peak": peak,
            "networks": found,
            "cold": {name: cold(name) for name in FLAX},
        }
        (RESULTS / "deep.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
