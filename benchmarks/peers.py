"""The same plane by the loops that two PyTorch tools are built on, written here anew: agreement and ratio of times.

    python benchmarks/peers.py              writes results/peers.json
    python benchmarks/peers.py --points 9   a smaller grid

Peers, each with the weights of the same network carried over, the same data and the same grid:
"in place": in the manner of loss-landscapes, the parameters are moved from point to point by additions in place;
"set weights": in the manner of tomgoldstein/loss-landscape, at every point the weights are set to w + a u + b v and the
data pass in batches through a loader, the losses summed.
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch

import landscape as ls

RESULTS = Path(__file__).parent / "results"
AGREES = 1e-4


def network_and_plane(inputs: int, branches: int, examples: int) -> tuple[ls.Problem, ls.Plane]:
    """A multi-branch ReLU network with 8 hidden units and 10 classes, and the plane through three sets of weights."""
    rng = np.random.default_rng(0)
    data = ls.Dataset(rng.normal(size=(examples, inputs)).astype("f4"), rng.integers(0, 10, examples))
    network = ls.MultiBranch(ls.networks.mlp_branch((inputs, 8, 10), bias=True), branches)
    problem = ls.Problem(data, network, ls.losses.multiclass_hinge)
    return problem, ls.planes.through_solutions(*(network.init(k) for k in jax.random.split(jax.random.key(1), 3)))


class Branches(torch.nn.Module):
    """The same network: mean over branches of W2 [W1 x + b1]_+ + b2, all branches in one batched product."""

    def __init__(self, params: Any) -> None:
        super().__init__()
        leaves = [torch.tensor(np.array(leaf)) for leaf in jax.tree.leaves(params)]
        self.weights = torch.nn.ParameterList(torch.nn.Parameter(t, requires_grad=False) for t in leaves)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Outputs [N, C]."""
        bias1, kernel1, bias2, kernel2 = self.weights
        hidden = torch.relu(torch.einsum("nd,idh->inh", x, kernel1) + bias1[:, None])
        return (torch.einsum("inh,ihc->inc", hidden, kernel2) + bias2[:, None]).mean(0)


def hinge(outputs: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Σ_{j ≠ y} max(0, 1 + f_j − f_y) for every example."""
    own = outputs.gather(1, y[:, None])
    right = torch.nn.functional.one_hot(y, outputs.shape[1])
    return torch.relu(outputs - own + (1 - right)).sum(1)


def in_place(net: Branches, axes: list[list[torch.Tensor]], grid: ls.Grid, x: Any, y: Any) -> np.ndarray:
    """From point to point by additions in place: columns by steps of b, rows by steps of a."""
    found = np.empty((len(grid.a), len(grid.b)))
    where = np.zeros(2)

    def move(to: tuple[float, float]) -> None:
        for k in (0, 1):
            for weight, direction in zip(net.weights, axes[k], strict=True):
                weight.add_(direction, alpha=float(to[k] - where[k]))
            where[k] = to[k]

    for i, a in enumerate(grid.a):
        for j, b in enumerate(grid.b):
            move((a, b))
            found[i, j] = hinge(net(x), y).mean().item()
    move((0.0, 0.0))
    return found


def set_weights(net: Branches, axes: list[list[torch.Tensor]], grid: ls.Grid, x: Any, y: Any) -> np.ndarray:
    """The weights set anew at every point, then a pass over batches of 128."""
    start = [weight.clone() for weight in net.weights]
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=128)
    found = np.empty((len(grid.a), len(grid.b)))
    for i, a in enumerate(grid.a):
        for j, b in enumerate(grid.b):
            for weight, w, u, v in zip(net.weights, start, *axes, strict=True):
                weight.data = w + float(a) * u + float(b) * v
            found[i, j] = sum(hinge(net(inputs), labels).sum().item() for inputs, labels in loader) / len(y)
    return found


def timed(works: dict[str, Callable[[], np.ndarray]], rounds: int) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """The results, and the median times of interleaved rounds after a warm-up of all."""
    found, times = {name: work() for name, work in works.items()}, {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            begun = time.perf_counter()
            found[name] = work()
            times[name].append(time.perf_counter() - begun)
    return found, {name: float(np.median(t)) for name, t in times.items()}


def main() -> None:
    """Run everything, print a table, write results/peers.json; fails where a peer disagrees."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--points", type=int, default=11)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--branches", type=int, default=30)
    parser.add_argument("--inputs", type=int, default=784)
    parser.add_argument("--examples", type=int, default=1000)
    asked, load = parser.parse_args(), os.getloadavg()[0]
    jax.config.update("jax_num_cpu_devices", len(os.sched_getaffinity(0)))
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    problem, plane = network_and_plane(asked.inputs, asked.branches, asked.examples)
    grid = ls.grid_around(plane, (asked.points, asked.points - 1))
    x, y = torch.tensor(np.asarray(problem.data.x)), torch.tensor(np.asarray(problem.data.y))
    axes = [[torch.tensor(np.array(leaf)) for leaf in jax.tree.leaves(tree)] for tree in (plane.u, plane.v)]
    works: dict[str, Callable[[], np.ndarray]] = {
        "landscape": lambda: ls.evaluate(problem, plane, grid, progress=False).risk,
        "in place": lambda: in_place(Branches(plane.origin), axes, grid, x, y),
        "set weights": lambda: set_weights(Branches(plane.origin), axes, grid, x, y),
    }
    with torch.no_grad():
        found, seconds = timed(works, asked.rounds)
    content: dict[str, Any] = {
        "device": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "load_before": load,
        "versions": {"jax": jax.__version__, "torch": torch.__version__},
        "sizes": vars(asked),
        "seconds": seconds,
    }
    for name in ("in place", "set weights"):
        difference = float(np.max(np.abs(found[name] - found["landscape"]) / np.abs(found["landscape"])))
        ratio = seconds[name] / seconds["landscape"]
        content[name] = {"ratio": ratio, "largest_relative_difference": difference}
        print(f"{name:<12} {seconds[name]:8.3f} s   {ratio:6.1f} x   relative difference {difference:.1e}")
        if difference > AGREES:
            raise SystemExit(f"{name} differs by {difference:.1e}, more than {AGREES:.0e}.")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "peers.json").write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
