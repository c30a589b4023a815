"""Time of Theorem 1's gap for identical branches: how it grows with I, and with the number of budgets.

Run `python benchmarks/theorem1.py`; results go to benchmarks/results/theorem1.json.
"""

import json
import math
import os
import platform
import statistics
import time
from pathlib import Path

import numpy as np

from landscape.duality.multi_branch import Frontier, duality_gap

GOLDEN = (math.sqrt(5) - 1) / 2
ROUNDS = 5


def seconds(steps: int, branches: int) -> dict[str, float]:
    """Median and quartiles of ROUNDS calls after one to warm up; R1's frontier v = 1 − r²/2."""
    r = np.linspace(0, 1, steps + 1)
    frontier = Frontier(r, 1 - r**2 / 2, (0.0, steps**-2 / 8))
    times = []
    for _ in range(ROUNDS + 1):
        start = time.perf_counter()
        found = duality_gap(frontier, branches, GOLDEN)
        times.append(time.perf_counter() - start)
    theta = (branches * GOLDEN) % 1
    if not found.gap.contains(theta * (1 - theta) / 2 / branches):
        raise RuntimeError(f"The known gap at I = {branches} is not inside {found.gap}.")
    low, middle, high = statistics.quantiles(times[1:], n=4)
    return {"budgets": steps, "branches": branches, "median_s": middle, "quartile_low_s": low, "quartile_high_s": high}


def main() -> None:
    """Measure, print and store."""
    rows = [seconds(2000, 10**k) for k in range(7)] + [seconds(n, 1000) for n in (250, 500, 1000, 4000)]
    print(f"{'budgets':>8} {'branches':>9} {'median s':>9}")
    for row in rows:
        print(f"{row['budgets']:8} {row['branches']:9} {row['median_s']:9.3f}")
    at_2000 = [row for row in rows if row["budgets"] == 2000 and row["branches"] > 1]
    slope, start = np.polyfit([math.log2(row["branches"]) for row in at_2000], [row["median_s"] for row in at_2000], 1)
    print(f"2,000 budgets: about {start:.3f} + {slope:.3f} log2(I) seconds")
    machine = {"cores": os.cpu_count(), "machine": platform.machine(), "numpy": np.__version__}
    target = Path(__file__).parent / "results" / "theorem1.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps({**machine, "seconds_per_doubling": slope, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
