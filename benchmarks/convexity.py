"""Time of the lower convex envelope and of the whole report, for surfaces of different shape and size.

Run `python benchmarks/convexity.py`; results go to benchmarks/results/convexity.json.
"""

import json
import os
import platform
import statistics
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np

from landscape.convexity import report
from landscape.convexity.envelope import envelope
from landscape.planes.grids import Grid
from landscape.surfaces import Surface

ROUNDS = 5
ANCHORS = np.array([[-1.0, -0.5], [1.0, -0.5], [0.0, 1.0]])
SHAPES = {
    "bowl": lambda x, y: x**2 + y**2 + 0 * x * y,
    "double well": lambda x, y: (x**2 - 1) ** 2 + y**2,
    "waves": lambda x, y: np.sin(9 * x) * np.cos(7 * y) + x**2,
    "noise": lambda x, y: np.random.default_rng(0).random((x.size, y.size)),
}


def median(call, *arguments) -> float:
    """Median seconds of ROUNDS calls."""
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        call(*arguments)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    """Measure, print and store."""
    rows = []
    for points in (51, 101, 201):
        x = np.linspace(-2, 2, points)
        for name, shape in SHAPES.items():
            f = shape(x[:, None], x[None])
            surface = Surface(Grid(x, x), f, ANCHORS)
            hull, whole = median(envelope, x, x, f), median(report, surface)
            rows.append({"points": points, "surface": name, "envelope_s": hull, "report_s": whole})
            print(f"{points:4} x {points:<4} {name:12} envelope {hull:.3f} s, report {whole:.3f} s")
    machine = {"cores": os.cpu_count(), "machine": platform.machine()}
    versions = {name: version(name) for name in ("numpy", "scipy")}
    target = Path(__file__).parent / "results" / "convexity.json"
    target.write_text(json.dumps({**machine, **versions, "rounds": ROUNDS, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
