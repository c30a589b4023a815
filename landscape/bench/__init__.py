"""How fast this machine is: surfaces and trainings of fixed sizes, beside ceilings measured in the same run.

Random data of the shapes of the paper's: nothing is read. Every run measures anew; `landscape bench compare A B` lays
two results side by side.
"""

import os
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from landscape.bench.compare import FILE, FORMAT, table
from landscape.files import atomic
from landscape.files.progress import showing
from landscape.runs import record
from landscape.runs.options import Options

if TYPE_CHECKING:
    from landscape.bench.cases import Case, Ready

WARM_UPS = 3
GIB = 2**30

SMOKE: dict[str, Any] = {"rounds": 2}
PAPER: dict[str, Any] = {"suite": "gpu"}


@dataclass(frozen=True)
class Config:
    """What is measured, and how often."""

    suite: Literal["auto", "cpu", "gpu"] = "auto"
    """cpu: 2 minutes on 2 cores; gpu: MNIST and CIFAR-10 shapes in full, on one GPU; auto: by the devices."""
    rounds: int = 5
    """Rounds over all cases, for medians and quartiles."""
    cases: tuple[str, ...] = ()
    """Only these cases (default: all of the suite)."""

    def __post_init__(self) -> None:
        if self.rounds < 2:
            raise ValueError(f"--rounds wants at least 2, to have a spread; got {self.rounds}.")


def run(config: Config, options: Options, say: Callable[[str], object]) -> Path:
    """Measure, print a table, write the JSON; returns the file.

    Args:
        config: What is measured.
        options: The shared options; there are no data files to find.
        say: Prints a line.

    Raises:
        ValueError: The suite has no such case, or --out cannot be written.
    """
    from landscape.bench import ceilings

    file = file_of(options.out)
    about = {"format": FORMAT, "begun": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **conditions(config, options)}
    chosen = chosen_cases(about["suite"], config.cases, options.smoke)
    make_room(file)
    say(f"bench:   suite {about['suite']} · {len(chosen)} cases · {config.rounds} rounds after {WARM_UPS} warm-ups")
    say(f"plan:    {about['environment']['devices']} x {about['device']} · precision {options.precision} · {file}")
    limits = ceilings.ceilings(options.precision, small=options.smoke)
    ready = prepared(chosen, options)
    ways = {f"ceiling {name}": limit.call for name, limit in limits.items()}
    for name, one in ready.items():
        ways |= {f"program {name}": one.program[1], f"call {name}": one.call[1]}
    seconds = timed(ways, config.rounds, options.progress)
    rates = {name: rate(limit.amount, seconds[f"ceiling {name}"]) for name, limit in limits.items()}
    about |= {"load_after": list(os.getloadavg()), "peak_bytes": peak_bytes(), "ceilings": rates}
    shares = {name: most["best"] for name, most in rates.items()}
    about["cases"] = {
        name: result(one, seconds[f"program {name}"], seconds[f"call {name}"], shares, about["environment"]["devices"])
        for name, one in ready.items()
    }
    atomic.write_json(file, about)
    say("\n".join(table(about)))
    return file


def file_of(out: Path | None) -> Path:
    """Where the result goes: --out is a folder, or a file whose name ends in .json."""
    out = out or Path("runs") / "bench"
    return out if out.suffix == ".json" else out / FILE


def make_room(file: Path) -> None:
    """Create the folder of the result, before anything is measured.

    Raises:
        ValueError: It cannot be written.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=file.parent).close()
    except OSError as error:
        raise ValueError(f"{file.parent} cannot be written ({error.strerror}).\n  Choose another --out.") from error


def conditions(config: Config, options: Options) -> dict[str, Any]:
    """The conditions on which the figures depend."""
    import jax

    environment = record.environment_of()
    auto = "cpu" if environment["platform"] == "cpu" else "gpu"
    processor = processor_name()
    return {
        "suite": auto if config.suite == "auto" else config.suite,
        "smoke": options.smoke,
        "device": processor if environment["platform"] == "cpu" else environment["device_kind"],
        "processor": processor,
        "cores": len(os.sched_getaffinity(0)),
        "environment": environment,
        "precision": options.precision,
        "memory": options.memory,
        "seed": options.seed,
        "rounds": config.rounds,
        "warm_ups": WARM_UPS,
        "compilation_cache": jax.config.values.get("jax_compilation_cache_dir"),
        "load_before": list(os.getloadavg()),
    }


def processor_name() -> str:
    """The processor as the system calls it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def chosen_cases(suite: str, names: tuple[str, ...], smoke: bool) -> dict[str, "Case"]:
    """The cases asked for, in the order of the suite.

    Raises:
        ValueError: The suite has no such case.
    """
    from landscape.bench import cases

    known = cases.SUITES[suite]
    strange = [name for name in names if name not in known]
    if strange:
        raise ValueError(f"--cases {strange[0]} is none of the suite {suite}; it has {', '.join(known)}.")
    chosen = {name: case for name, case in known.items() if name in names or not names}
    return {name: cases.shrunk(case) if smoke else case for name, case in chosen.items()}


def prepared(chosen: Mapping[str, "Case"], options: Options) -> dict[str, "Ready"]:
    """Every case compiled and run once, which is the first of its warm-ups."""
    from landscape.bench import cases

    found = {}
    with showing(options.progress, "compile", len(chosen), "cases") as bar:
        for name, case in chosen.items():
            found[name] = cases.ready(case, precision=options.precision, memory=options.memory_bytes, seed=options.seed)
            found[name].call[1]()
            bar.note(name)
            bar.update(1)
    return found


def timed(ways: Mapping[str, Callable[[], Any]], rounds: int, progress: bool) -> dict[str, list[float]]:
    """Seconds of every way in interleaved rounds, warm-ups left out; what goes by two names is run once a round."""
    found: dict[Callable[[], Any], list[float]] = {way: [] for way in ways.values()}
    names = {way: name for name, way in ways.items()}
    rounds += WARM_UPS - 1
    with showing(progress, "measure", rounds * len(found), "runs") as bar:
        for _ in range(rounds):
            for way, seconds in found.items():
                start = time.perf_counter()
                way()
                seconds.append(time.perf_counter() - start)
                bar.note(names[way])
                bar.update(1)
    return {name: found[way][WARM_UPS - 1 :] for name, way in ways.items()}


def spread(seconds: list[float]) -> dict[str, Any]:
    """Median, quartiles and all of them."""
    low, median, high = np.quantile(seconds, [0.25, 0.5, 0.75]).tolist()
    return {"median": median, "quartiles": [low, high], "rounds": seconds}


def rate(amount: float, seconds: list[float]) -> dict[str, Any]:
    """So much in these seconds: a second, the best, the median and the quartiles."""
    low, median, high = np.quantile(amount / np.array(seconds), [0.25, 0.5, 0.75]).tolist()
    return {"best": amount / min(seconds), "median": median, "quartiles": [low, high]}


def result(
    one: "Ready", program: list[float], call: list[float], limits: Mapping[str, float], devices: int
) -> dict[str, Any]:
    """What is written of a case."""
    median, share = float(np.median(program)), one.devices / devices
    speeds = {"multiply-add": one.operations, "product": one.operations, "stream": one.nbytes["least"]}
    return {
        "sizes": one.case._asdict(),
        "unit": one.unit,
        "devices": one.devices,
        "seconds": {**one.stages._asdict(), "steady": spread(program), "call": spread(call)},
        "rate": rate(one.program[0], program),
        "call_rate": rate(one.call[0], call),
        "operations": one.operations,
        "bytes": one.nbytes,
        "share_of_ceiling": {name: speeds[name] / median / (limits[name] * share) for name in limits},
        "memory": one.memory,
    }


def peak_bytes() -> dict[str, int]:
    """The most memory used so far by this process, and by each device that tells."""
    import jax

    unit = 1 if sys.platform == "darwin" else 1024
    host = {"host": unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}
    told = {str(device): device.memory_stats() for device in jax.local_devices() if device.platform != "cpu"}
    return host | {name: stats["peak_bytes_in_use"] for name, stats in told.items() if stats}
