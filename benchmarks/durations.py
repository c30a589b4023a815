"""How long the commands of README.md take: each one run once from an empty folder.

    python benchmarks/durations.py                                 all, a quarter of an hour on two cores
    python benchmarks/durations.py figure3 "figure4 --dataset"     those that begin so; the others keep their entry

Results go to benchmarks/results/durations.json: seconds by the clock, seconds of the processor (of all cores and
processes together), and the load before, since a busy machine takes longer.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

TARGET = Path(__file__).parent / "results" / "durations.json"
COMMANDS = (
    "figure1",
    "figure3",
    "figure4",
    "figure4 --dataset cifar10",
    "figure4 --dataset cifar10 --hidden 8 8 8",
    "table1",
    "theorem1",
    "theorem2",
    "bench --suite cpu",
)


def processor() -> str:
    """The processor's name, or its architecture where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line.split(": ", 1)[1] for line in lines if line.startswith("model name")), platform.machine())


def processor_seconds() -> float:
    """Seconds of the processor that finished subprocesses took."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def timed(command: str) -> dict[str, Any]:
    """One run of `landscape COMMAND`, with nothing kept from earlier runs."""
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, "-m", "landscape", *command.split(), "--out", f"{folder}/run", "--quiet"]
        begun, used = time.perf_counter(), processor_seconds()
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - begun
    return {
        "seconds": round(seconds, 1),
        "processor_seconds": round(processor_seconds() - used, 1),
        "load_before": round(load, 2),
        "machine": f"{processor()}, {len(os.sched_getaffinity(0))} cores",
        "measured": time.strftime("%Y-%m-%d"),
    }


def main() -> None:
    """Time the commands asked for, print and store."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", help="beginnings of commands; all by default")
    asked = parser.parse_args().names
    for command in COMMANDS:
        if not asked or command.startswith(tuple(asked)):
            took = timed(command)
            print(f"landscape {command}: {took['seconds']} s", flush=True)
            known = json.loads(TARGET.read_text()) if TARGET.exists() else {}
            TARGET.write_text(json.dumps(dict(sorted((known | {command: took}).items())), indent=1) + "\n")


if __name__ == "__main__":
    main()
