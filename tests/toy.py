"""Toy: a run of many small units, each a file with a checksum, to be interrupted at any moment by the tests."""

import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from landscape.__main__ import exit_code
from landscape.cli import commands
from landscape.files import atomic
from landscape.runs import Run

SMOKE = {"units": 3, "seconds": 0.0}
PAPER = {"units": 50}


@dataclass(frozen=True)
class Config:
    """Sizes of the toy."""

    units: int = 10
    """Units of work."""
    seconds: float = 0.05
    """Time of one unit."""
    values: int = 1000
    """Numbers in a unit."""
    sizes: tuple[int, ...] = (10, 30)
    """A list of numbers."""
    fail: str = ""
    """Name of an exception to raise in the middle."""

    def __post_init__(self) -> None:
        if self.units < 1:
            raise ValueError(f"--units wants at least 1; got {self.units}.\n  Give a positive number.")


def run(config: Config, run: Run) -> None:
    """Unit k holds numbers that depend on the seed and on unit k - 1."""
    run.say("toy:", f"{config.units} units")
    run.plan("0.01 GiB")
    key = atomic.fingerprint(run.options.seed, config.units, config.values)
    last = np.zeros(config.values)
    with run.bar("add      k=1 …", config.units, "units") as bar:
        for k in range(config.units):
            path = run.file(f"unit-{k}.npz")
            stored = atomic.load_arrays(path, key)
            if stored is None:
                time.sleep(config.seconds)
                stored = {"values": last + np.random.default_rng([run.options.seed, k]).normal(size=config.values)}
                atomic.save_arrays(path, stored, key)
            last = stored["values"]
            bar.note(f"sum {last.sum():.3f}")
            bar.update()
            run.check_stop()
            if config.fail and 2 * k >= config.units:
                raise {"RuntimeError": RuntimeError, "ValueError": ValueError}[config.fail]("asked to fail")
    run.measures({"sum": float(last.sum())})


def draw(path: Path) -> None:
    """A figure in name only."""
    (path / "figure.png").write_bytes((path / "measures.json").read_bytes())


if __name__ == "__main__":
    sys.exit(exit_code(partial(commands.compute, "toy", sys.modules["__main__"], sys.argv[1:])))
