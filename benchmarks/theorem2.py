"""Theorem 2: time of Douglas–Rachford with its certificate against cvxpy's CLARABEL and SCS on the same dual (5).

Run `OPENBLAS_NUM_THREADS=1 python benchmarks/theorem2.py` (more threads wait for each other on a busy machine); results
go to benchmarks/results/theorem2.json. In interleaved rounds, after one call that compiles, each side is called again
and again for at least 0.1 s. Both start from X and Y: ours decomposes, solves, recovers weights and certifies; cvxpy's
builds the program and solves it, in the row coordinates that we give it for nothing. The time inside its solver alone
stands beside it. Each row also says how far the values are from each other.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cvxpy
import jax
import numpy as np

from landscape.duality import deep_linear

SIZES = ((4, 6), (8, 12), (15, 20), (50, 80))
LARGE = (500, 2000)
BATCH = 100
ROUNDS, FEWER = 7, {("CLARABEL", 50): 1}
"""Interleaved rounds, and where one is all there is time for."""

OPTIONS = {"CLARABEL": {}, "SCS": {"eps": 1e-8, "max_iters": 20_000}}
LONGEST = 30.0
"""Seconds SCS may take before it stops at what it has."""


def random_problem(outputs: int, examples: int) -> deep_linear.DeepLinear:
    """A Gaussian problem with X of full row rank, d_min a third of the outputs and γ a third down the spectrum."""
    rng = np.random.default_rng(outputs)
    X, Y = rng.normal(size=(outputs, examples)), rng.normal(size=(outputs, examples))
    s = np.linalg.svd(Y @ np.linalg.pinv(X) @ X, compute_uv=False)
    return deep_linear.DeepLinear(X, Y, (max(outputs // 3, 1),) * 2, float(s[len(s) // 3]))


def program(problem: deep_linear.DeepLinear) -> tuple[cvxpy.Problem, float]:
    """(5) as a semidefinite program, and ½‖Y‖²; ‖A‖²_d = min { d·s + tr T : [[T+sI, A], [Aᵀ, I]] ⪰ 0 }."""
    rows = problem.coordinates
    m, r = rows.labels.shape
    Lam, T, s = cvxpy.Variable((m, r)), cvxpy.Variable((m, m), PSD=True), cvxpy.Variable(nonneg=True)
    A = rows.labels - Lam
    block = cvxpy.bmat([[T + s * np.eye(m), A], [A.T, np.eye(r)]])
    cost = cvxpy.Minimize(problem.d_min * s + cvxpy.trace(T))
    return cvxpy.Problem(cost, [block >> 0, cvxpy.sigma_max(Lam) <= problem.gamma]), 0.5 * float((problem.Y**2).sum())


def solved(problem: deep_linear.DeepLinear, name: str) -> tuple[float, float]:
    """Value of (5) by a solver of cvxpy, and the seconds in the solver alone."""
    built, half = program(problem)
    limit = {"time_limit_secs": LONGEST} if name == "SCS" else {}
    built.solve(solver=name, **OPTIONS[name], **limit)
    return half - 0.5 * float(built.value), float(built.solver_stats.solve_time)


def timed(call: Callable[[], Any], least: float = 0.1) -> tuple[float, Any]:
    """Seconds a call, over at least `least` seconds of calls, and the last result."""
    start, count = time.perf_counter(), 0
    while True:
        result = call()
        count += 1
        passed = time.perf_counter() - start
        if passed >= least:
            return passed / count, result


def fresh(problem: deep_linear.DeepLinear) -> deep_linear.DeepLinear:
    """The same problem with nothing decomposed yet."""
    return deep_linear.DeepLinear(problem.X, problem.Y, problem.widths, problem.gamma)


def compare(outputs: int, examples: int) -> dict:
    """Interleaved rounds of all solvers on one size."""
    problem = random_problem(outputs, examples)
    ours, theirs, inner = [], {name: [] for name in OPTIONS}, {name: [] for name in OPTIONS}
    values = {}
    deep_linear.douglas_rachford(fresh(problem))
    for k in range(ROUNDS):
        seconds, certificate = timed(lambda: deep_linear.douglas_rachford(fresh(problem)))
        ours.append(seconds)
        for name in OPTIONS:
            if k >= FEWER.get((name, outputs), ROUNDS):
                continue
            seconds, (values[name], alone) = timed(lambda name=name: solved(problem, name))
            theirs[name].append(seconds)
            inner[name].append(alone)
    mine = statistics.median(ours)
    many = [fresh(problem) for _ in range(BATCH)]
    deep_linear.douglas_rachford_batch(many)
    batched = timed(lambda: deep_linear.douglas_rachford_batch([fresh(problem) for _ in many]))[0] / BATCH
    row = {"size": f"{outputs}x{examples}", "douglas_rachford_s": mine, "iterations": certificate.iterations}
    row |= {"douglas_rachford_batched_s": batched, "batch": BATCH}
    row |= {"relative_gap": certificate.gap / certificate.primal, "rounds": ROUNDS}
    row |= {"quartiles_s": statistics.quantiles(ours, n=4)}
    for name in OPTIONS:
        whole = statistics.median(theirs[name])
        row[name] = {
            "seconds": whole,
            "solver_seconds": statistics.median(inner[name]),
            "ratio": whole / mine,
            "batched_ratio": whole / batched,
            "solver_ratio": statistics.median(inner[name]) / mine,
            "relative_difference": abs(values[name] - certificate.dual) / certificate.dual,
        }
    return row


def large() -> dict:
    """The large problem, compiled and once more."""
    problem = random_problem(*LARGE)
    first, _ = timed(lambda: deep_linear.douglas_rachford(fresh(problem)))
    second, certificate = timed(lambda: deep_linear.douglas_rachford(fresh(problem)))
    return {
        "size": "x".join(map(str, LARGE)),
        "first_s": first,
        "douglas_rachford_s": second,
        "iterations": certificate.iterations,
        "relative_gap": certificate.gap / certificate.primal,
    }


def main() -> None:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--sizes", nargs="+", default=["x".join(map(str, size)) for size in SIZES], help="such as 4x6")
    rows = []
    for size in parser.parse_args().sizes:
        row = compare(*map(int, size.split("x")))
        rows.append(row)
        one, many = 1e3 * row["douglas_rachford_s"], 1e3 * row["douglas_rachford_batched_s"]
        steps = f"{row['iterations']} iterations"
        print(f"{row['size']:>8} ours {one:8.2f} ms, {many:.3f} ms each with {BATCH} at once; {steps}")
        for name in OPTIONS:
            peer = row[name]
            print(
                f"{name:>17}: {peer['ratio']:8.0f}x, batched {peer['batched_ratio']:.0f}x "
                f"(one against its solver alone: {peer['solver_ratio']:.0f}x), "
                f"values differ by {peer['relative_difference']:.0e} relative",
                flush=True,
            )
    biggest = large()
    print(
        f"{biggest['size']:>8} ours {biggest['douglas_rachford_s']:.1f} s, gap {biggest['relative_gap']:.0e} relative"
    )
    versions = {"jax": jax.__version__, "numpy": np.__version__, "cvxpy": cvxpy.__version__}
    device = {"device": jax.devices()[0].device_kind, "machine": platform.machine(), "cores": os.cpu_count()}
    device |= {"openblas_threads": os.environ.get("OPENBLAS_NUM_THREADS", "all")}
    target = Path(__file__).parent / "results" / "theorem2.json"
    target.parent.mkdir(exist_ok=True)
    content = {**device, "versions": versions, "precision": "float64", "rows": rows, "large": biggest}
    target.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
