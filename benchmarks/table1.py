"""Table 1's trainer against a PyTorch loop over steps and seeds, in one run: microseconds a step of one network.

Run `python benchmarks/table1.py`; needs torch. Results go to benchmarks/results/table1-speed.json. The loop trains one
network after the other, each step a forward, a backward and an update written with as few calls as possible, in one
process per core; the package trains blocks of networks on as many local devices. Both start compiled and warm.
"""

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

EXAMPLES, INPUTS, WIDTH, SEEDS = 1000, 10, 16, 100
BATCHES = {1: 20_000, 10: 6_000, 100: 3_000, 1000: 200}
"""Steps timed at each batch size."""
PAPER_STEPS = 10 * 100 * 100_000
RATE = 0.015


def torch_loop(batch: int, steps: int, barrier: Any, queue: Any) -> None:
    """Seconds of a loop of `steps` SGD steps of one network, in a process with one thread."""
    import torch

    torch.set_num_threads(1)
    draw = torch.Generator().manual_seed(batch)
    x = torch.randn(EXAMPLES, INPUTS, generator=draw)
    y = torch.sign(torch.randn(EXAMPLES, generator=draw))
    w = ((torch.rand(INPUTS, WIDTH, generator=draw) - 0.5) / INPUTS**0.5).requires_grad_()
    v = ((torch.rand(WIDTH, generator=draw) - 0.5) / WIDTH**0.5).requires_grad_()

    def train(steps: int) -> None:
        for step in range(steps):
            k = step * batch % EXAMPLES
            if k == 0:
                order = torch.randperm(EXAMPLES, generator=draw)
            part = order[k : k + batch]
            loss = torch.relu(1 - y[part] * (torch.relu(x[part] @ w) @ v)).mean()
            slopes = torch.autograd.grad(loss, (w, v))
            with torch.no_grad():
                w.sub_(slopes[0], alpha=RATE)
                v.sub_(slopes[1], alpha=RATE)

    train(50)
    barrier.wait()
    start = time.perf_counter()
    train(steps)
    queue.put(time.perf_counter() - start)


def peer(batch: int, cores: int, steps: int = 1500) -> float:
    """Microseconds a step, all cores busy with loops of their own."""
    context = multiprocessing.get_context("spawn")
    barrier, queue = context.Barrier(cores), context.Queue()
    loops = [context.Process(target=torch_loop, args=(batch, steps, barrier, queue)) for _ in range(cores)]
    for loop in loops:
        loop.start()
    times = [queue.get() for _ in loops]
    for loop in loops:
        loop.join()
    return max(times) / (cores * steps) * 1e6


def package(batch: int) -> float:
    """Microseconds a step of one network, all cores busy."""
    import jax

    from landscape import datasets
    from landscape.training import shallow

    data = datasets.synthetic_teacher(jax.random.key(0), EXAMPLES, INPUTS)
    config = shallow.TrainingConfig(BATCHES[batch], batch, RATE)
    members = [(WIDTH, seed) for seed in range(SEEDS)]
    start = time.perf_counter()
    shallow.train_networks(data, members, config, progress=False)
    return (time.perf_counter() - start) / (BATCHES[batch] * SEEDS) * 1e6


def main() -> None:
    """Measure in interleaved rounds, print and store."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, nargs="+", default=list(BATCHES))
    options = parser.parse_args()
    import jax

    cores = len(os.sched_getaffinity(0))
    jax.config.update("jax_num_cpu_devices", cores)
    rows = []
    for batch in options.batches:
        package(batch)
        rounds = [(peer(batch, cores), package(batch)) for _ in range(options.rounds)]
        ratios = [theirs / ours for theirs, ours in rounds]
        low, ratio, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
        theirs, ours = (statistics.median(side) for side in zip(*rounds, strict=True))
        row = {"batch": batch, "torch_us": theirs, "package_us": ours, "ratio": ratio}
        rows.append(row | {"quartile_low": low, "quartile_high": high, "table1_s": ours * PAPER_STEPS / 1e6})
        print(
            f"batch {batch:5}: torch {theirs:7.2f} us, package {ours:6.3f} us: {ratio:4.0f} times "
            f"({low:.0f} … {high:.0f}); whole table {ours * PAPER_STEPS / 1e6:.0f} s"
        )
    machine = {"cores": cores, "machine": platform.machine(), "devices": jax.device_count()}
    versions = {name: version(name) for name in ("jax", "torch", "numpy")}
    target = Path(__file__).parent / "results" / "table1-speed.json"
    target.parent.mkdir(exist_ok=True)
    content = {**machine, **versions, "unit": "one SGD step of one network, all cores", "width": WIDTH, "seeds": SEEDS}
    target.write_text(json.dumps({**content, "rounds": options.rounds, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
