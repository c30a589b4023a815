"""The commands: they compute a figure, table or theorem of the paper, or work on finished run directories."""

import contextlib
import importlib
import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from landscape import runs
from landscape.cli import sweeps
from landscape.cli.parsing import configuration, parse
from landscape.runs import record
from landscape.runs.options import Options

PAPER = ("figure1", "figure3", "figure4", "table1", "theorem1", "theorem2", "explore")
"""Commands that compute: one module each in landscape/paper, but `explore`, which is nobody's paper."""
SINGLE_PROCESS = ("figure3", "table1", "theorem1", "theorem2", "explore")
"""Commands that run in one process, on all of its devices."""


def recipe(name: str) -> ModuleType:
    """The module of a command that computes."""
    return importlib.import_module(home(name))


def home(name: str) -> str:
    """The name of that module."""
    return f"landscape.{name}" if name == "explore" else f"landscape.paper.{name}"


def compute(name: str, module: ModuleType, arguments: list[str]) -> None:
    """Parse, open the run directory, compute, draw; a finished run is a no-op.

    Raises:
        ValueError: Wrong use or configuration.
        Stopped: SIGTERM or SIGUSR1 came; the same command continues.
    """
    config, options = configuration(name, module, arguments)
    if options.distributed and name in SINGLE_PROCESS:
        raise ValueError(
            f"{name} runs in one process; --distributed is for figure1 and figure4.\n"
            "  Spread its configurations over a job array instead: `landscape sweep --help`."
        )
    path = options.out or Path("runs") / name
    if runs.finished(name, config, options):
        runs.print_line(f"done already: {path} (delete it or choose --out to run again)")
        return
    command = shlex.join(["landscape", name, *arguments])
    with runs.stopping_on_signals():
        _compute(name, module, (config, options), command)


def _compute(name: str, module: ModuleType, asked: tuple[Any, Options], command: str) -> None:
    config, options = asked
    leader = start_jax(options)
    # Again, because joining other processes may have changed the handlers.
    with runs.opened(name, config, options, command, leader) as run, runs.stopping_on_signals():
        try:
            if not runs.complete(run.path, "computed"):
                module.run(config, run)
                runs.mark(run, "computed")
            if leader:
                module.draw(run.path)
        except BaseException as error:
            run.log("end", error=f"{type(error).__name__}: {error}")
            raise
        run.say("done:", "  ".join([str(run.path), *shown(runs.mark(run, "finished"))]))


def shown(files: list[str]) -> list[str]:
    """The result files of a run, pictures first."""
    first = ("figure.png", "report.html", "surface.nc", "measures.json")
    hidden = ("config.json", "figure.pdf")
    return [
        *filter(files.__contains__, first),
        *(f for f in files if f not in first + hidden and not f.endswith(".npz")),
    ]


def start_jax(options: Options) -> bool:
    """Set JAX up before its first use: all cores as CPU devices, the precision; True in the leading process.

    Raises:
        ValueError: --distributed outside a job.
    """
    import jax

    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        with contextlib.suppress(RuntimeError):  # already in use in this process: its devices stay as they are
            jax.config.update("jax_num_cpu_devices", len(os.sched_getaffinity(0)))
    jax.config.update("jax_default_matmul_precision", options.precision)
    if options.distributed and not jax.distributed.is_initialized():
        try:
            jax.distributed.initialize()
        except ValueError as error:
            raise ValueError(f"--distributed found no job to join ({error})\n  Start the command with srun.") from error
    return jax.process_index() == 0


def plot(arguments: list[str]) -> None:
    """Draw the figures of a run directory again, from its files."""
    path = parse(Folder, "plot", arguments, plot.__doc__).folder
    name = record.read_config(path).get("name")
    if name not in PAPER:
        raise ValueError(f"{path} holds a run of `{name}`, which has no figure.")
    recipe(name).draw(path)
    runs.print_line(f"drawn:   {path}")


def export(arguments: list[str]) -> None:
    """Write the surfaces of a run directory for other tools: npz, csv, h5 or vts."""
    asked = parse(Export, "export", arguments, export.__doc__)
    from landscape.report.export import export as write_for

    for path in write_for(asked.folder, asked.to):
        runs.print_line(f"written: {path}")


def sweep(arguments: list[str]) -> None:
    """Run a command for every configuration of a TOML file, or one of them in a job array."""
    asked = parse(Sweep, "sweep", arguments, sweep.__doc__)
    name, tasks = sweeps.tasks(asked.file, PAPER)
    indices = sweeps.chosen(len(tasks), asked.task_index)
    module = recipe(name)
    for task in tasks:
        configuration(name, module, task)
    with runs.stopping_on_signals():
        for index in indices:
            runs.print_line(f"task {index}: {shlex.join(['landscape', name, *tasks[index]])}")
            compute(name, module, tasks[index])


def collect(arguments: list[str]) -> None:
    """Join the finished runs of one or more folders into one netCDF file."""
    asked = parse(Collect, "collect", arguments, collect.__doc__)
    from landscape.report.collect import collect as join

    path, count, left_out = join(asked.folders, asked.out)
    unfinished = f"  (unfinished, left out: {', '.join(map(str, left_out))})" if left_out else ""
    runs.print_line(f"done:    {path}  {count} runs{unfinished}")


def compare(arguments: list[str]) -> None:
    """Lay finished runs side by side: surfaces on one colour scale, measures in one table."""
    asked = parse(Compare, "compare", arguments, compare.__doc__)
    from landscape.report.compare import compare as lay_side_by_side

    lines = lay_side_by_side(asked.folders, asked.out)
    runs.print_line("\n".join([*lines, f"done:    {asked.out}  figure.png  report.html  measures.json"]))


def bench(arguments: list[str]) -> None:
    """Measure how fast this machine is, or lay two results side by side: `bench compare A.json B.json`."""
    from landscape import bench as measuring
    from landscape.bench.compare import compare as lay_side_by_side

    if arguments[:1] == ["compare"]:
        asked = parse(Results, "bench compare", arguments[1:], lay_side_by_side.__doc__)
        runs.print_line("\n".join(lay_side_by_side(asked.first, asked.second)))
        return
    config, options = configuration("bench", measuring, arguments)
    if options.distributed:
        raise ValueError("bench measures the devices of one process.\n  Leave --distributed out.")
    start_jax(options)
    say = (lambda text: None) if options.quiet else runs.print_line
    say(f"done:    {measuring.run(config, options, say)}")


def data(arguments: list[str]) -> None:
    """Fetch the data files, or verify their sizes and checksums."""
    asked = parse(Data, "data", arguments, data.__doc__)
    from landscape.datasets import downloads

    for name in asked.names or ("mnist", "cifar10"):
        if asked.action == "fetch":
            files = downloads.fetch(name, asked.data_root, progress=not asked.quiet)
        else:
            files = downloads.verify(name, asked.data_root)
        runs.print_line("\n".join(f"{name}: {file}" for file in files))


@dataclass(frozen=True)
class Folder:
    """A run directory."""

    folder: Path
    """The run directory."""


@dataclass(frozen=True)
class Export:
    """What to write, and how."""

    folder: Path
    """The run directory, or a surface.nc."""
    to: Literal["npz", "csv", "h5", "vts"] = "npz"
    """NumPy; one row a point; the keys of the loss-landscape scripts; ParaView."""


@dataclass(frozen=True)
class Sweep:
    """Which configurations to run."""

    file: Path
    """TOML file: command, out, [fixed] (an option a line) and [grid] (a list an option; every combination is run)."""
    task_index: int | None = None
    """Run only this one, counted from 0 (default: SLURM_ARRAY_TASK_ID, else all, one after the other)."""


@dataclass(frozen=True)
class Compare:
    """What to lay side by side, and where to write it."""

    folders: tuple[Path, ...]
    """Run directories."""
    out: Path = Path("runs") / "compare"
    """Folder for the figure, the report and the measures."""

    def __post_init__(self) -> None:
        if len(self.folders) < 2:
            raise ValueError("name at least two run directories: `landscape compare runs/figure1 runs/other`.")


@dataclass(frozen=True)
class Results:
    """Two results of `landscape bench`."""

    first: Path
    """A: a bench.json, or the folder that holds it."""
    second: Path
    """B: another one."""


@dataclass(frozen=True)
class Collect:
    """What to join, and where."""

    folders: tuple[Path, ...]
    """Run directories, or folders of them."""
    out: Path = Path("runs") / "collect"
    """Folder for collected.nc."""

    def __post_init__(self) -> None:
        if not self.folders:
            raise ValueError("name at least one folder with finished runs: `landscape collect runs/sweep`.")


@dataclass(frozen=True)
class Data:
    """What to do, with which data."""

    action: Literal["fetch", "verify"]
    """Download what is missing, or check what is there."""
    names: tuple[Literal["mnist", "cifar10"], ...]
    """Data sets (none named: both)."""
    data_root: Path | None = None
    """Folder for MNIST/raw and cifar-10-batches-py (default: LANDSCAPE_DATA, else the cache)."""
    quiet: bool = False
    """Show no bar."""
