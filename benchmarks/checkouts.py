"""Two checkouts of this repository side by side: the same numbers to the last bit, and the same speed.

    python benchmarks/checkouts.py bits OLD NEW               `--smoke` of every command, and a zoo of branches
    python benchmarks/checkouts.py bits OLD NEW table1 gru    only some of them
    python benchmarks/checkouts.py speed OLD NEW --rounds 5   CPU seconds in alternating rounds, and their ratio

OLD and NEW are folders that hold `landscape/`. Commands are compared by what they store: the values of surface.nc and
the numbers of measures.json. The zoo calls only the public interface, so that it runs in any checkout; a checkout that
fails where the other does not differs too.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import zoo

COMMANDS = ("figure1", "figure3", "figure4", "table1", "theorem1", "theorem2", "explore")


def numbers(name: str, found: Any) -> Iterator[tuple[str, Any]]:
    """Every leaf of nested lists and dictionaries with its path."""
    if isinstance(found, dict):
        for key, value in found.items():
            yield from numbers(f"{name}.{key}", value)
    elif isinstance(found, list):
        for k, value in enumerate(found):
            yield from numbers(f"{name}[{k}]", value)
    else:
        yield name, found


def stored(folder: Path) -> dict[str, Any]:
    """What a command left behind, by name."""
    import xarray

    found = {}
    for file in sorted(folder.glob("*.nc")):
        with xarray.open_dataset(file, engine="h5netcdf") as data:
            found |= {f"{file.name} {name}": v.values for name, v in data.variables.items() if name != "metadata"}
    measures = folder / "measures.json"
    return found | (dict(numbers(measures.name, json.loads(measures.read_text()))) if measures.exists() else {})


def command(checkout: Path, name: str, folder: Path) -> dict[str, Any]:
    """Run a command in a checkout."""
    run = [sys.executable, "-m", "landscape", name, "--smoke", "--quiet", "--out", str(folder.resolve())]
    where = {"env": environment(checkout), "cwd": checkout}
    done = subprocess.run(run, **where, capture_output=True, text=True, check=False)
    return stored(folder) | {"exit code": done.returncode, "error": done.stderr if done.returncode else ""}


def environment(checkout: Path) -> dict[str, str]:
    """Variables under which Python imports a checkout's package."""
    others = os.environ.get("PYTHONPATH", "")
    return os.environ | {"PYTHONPATH": f"{checkout.resolve()}{os.pathsep}{others}", "MPLBACKEND": "agg"}


class Server:
    """A process that imports one checkout and answers, one line a case, until it is closed."""

    def __init__(self, checkout: Path, devices: int) -> None:
        arguments = [sys.executable, str(Path(__file__).with_name("zoo.py")), str(devices)]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process: Any = subprocess.Popen(arguments, env=environment(checkout), cwd=checkout, **pipes)

    def ask(self, case: str, folder: Path | None = None) -> dict[str, Any]:
        """The arrays of a case, or its CPU seconds where no folder is given."""
        self.process.stdin.write(json.dumps([case, str(folder / "arrays.npz") if folder else ""]) + "\n")
        self.process.stdin.flush()
        found = json.loads(self.process.stdout.readline())
        if folder and not found["error"]:
            with np.load(folder / "arrays.npz") as arrays:
                found |= dict(arrays)
        return found

    def close(self) -> None:
        """End the process."""
        self.process.stdin.close()
        self.process.wait()


def difference(one: Any, other: Any) -> str:
    """How two values differ, in words; empty where they are the same to the last bit."""
    a, b = np.asarray(one), np.asarray(other)
    if a.shape != b.shape or a.dtype.kind != b.dtype.kind:
        return f"{a.dtype}{list(a.shape)} and {b.dtype}{list(b.shape)}"
    if a.dtype.kind not in "fc":
        return "" if np.array_equal(a, b) else f"{str(one)[:60]} and {str(other)[:60]}"
    if np.array_equal(a, b, equal_nan=True):
        return ""
    scale = max(float(np.nanmax(np.abs(a))), 1e-300)
    return f"{float(np.nanmax(np.abs(a - b))) / scale:.1e} of the largest value"


def bits(old: Path, new: Path, chosen: list[str]) -> int:
    """Print what differs; the number of cases that do."""
    servers, wrong = [Server(checkout, 4) for checkout in (old, new)], 0
    for name in chosen or [*COMMANDS, *(case for case in zoo.CASES if case not in zoo.SPEED)]:
        with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
            folders = Path(one), Path(other)
            if name in COMMANDS:
                found = [command(*of) for of in zip((old, new), (name, name), folders, strict=True)]
            else:
                found = [server.ask(name, folder) for server, folder in zip(servers, folders, strict=True)]
        keys = [key for key in dict.fromkeys([*found[0], *found[1]]) if key != "seconds"]
        unlike = {key: difference(found[0].get(key), found[1].get(key)) for key in keys}
        lines = [f"  {key}: {words}" for key, words in unlike.items() if words]
        wrong += bool(lines)
        error = found[0].get("error")
        print(f"{name:<14}", "same" if not lines else "DIFFERENT", f"(both fail: {error.strip()})" if error else "")
        print("\n".join(lines[:8])) if lines else None
    for server in servers:
        server.close()
    return wrong


def speed(old: Path, new: Path, chosen: list[str], rounds: int, devices: int) -> None:
    """Print CPU seconds of either checkout, medians of alternating rounds, and the median ratio of the rounds."""
    servers = [Server(checkout, devices) for checkout in (old, new)]
    for name in chosen or zoo.SPEED:
        first = [server.ask(name) for server in servers]
        if any(answer["error"] for answer in first):
            print(f"{name:<14}", *(answer["error"] for answer in first))
            continue
        begun = [answer["seconds"] for answer in first]
        seconds = [
            [server.ask(name)["seconds"] for server in servers[:: (-1) ** k]][:: (-1) ** k] for k in range(rounds)
        ]
        middle = [statistics.median(of) for of in zip(*seconds, strict=True)]
        ratios = sorted(after / before for before, after in seconds)
        print(
            f"{name:<14} {middle[0]:8.3f} {middle[1]:8.3f} s   ratio {statistics.median(ratios):.3f} "
            f"({ratios[0]:.2f} to {ratios[-1]:.2f})   first call {begun[0]:.2f} {begun[1]:.2f} s",
            flush=True,
        )
    for server in servers:
        server.close()


def main() -> int:
    """Read the arguments and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("bits", "speed"))
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("chosen", nargs="*", help="commands and cases; all when none is named")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--devices", type=int, default=1, help="CPU devices of the speed comparison")
    asked = parser.parse_args()
    if asked.what == "bits":
        return min(bits(asked.old, asked.new, asked.chosen), 1)
    speed(asked.old, asked.new, asked.chosen, asked.rounds, asked.devices)
    return 0


if __name__ == "__main__":
    sys.exit(main())
