"""What the commands do: compute a figure, table or theorem of the paper, and handle the run directories left by it."""

import contextlib
import importlib
import os
import shlex
from pathlib import Path
from types import ModuleType

from landscape import records, runs
from landscape.options import Options
from landscape.parsing import configuration, parse

PAPER = ("figure1", "figure3", "figure4", "table1", "theorem1", "theorem2")
"""Commands that compute: one module each in landscape/paper."""


def recipe(name: str) -> ModuleType:
    """The module of a command that computes."""
    return importlib.import_module(f"landscape.paper.{name}")


def compute(name: str, module: ModuleType, arguments: list[str]) -> None:
    """Parse, open the run directory, compute, draw; a finished run is a no-op.

    Raises:
        ValueError: Wrong use or configuration.
        Stopped: SIGTERM or SIGUSR1 came; the same command continues.
    """
    config, options = configuration(name, module, arguments)
    path = options.out or Path("runs") / name
    if runs.finished(name, config, options):
        runs.print_line(f"done already: {path} (delete it or choose --out to run again)")
        return
    leader = start_jax(options)
    command = shlex.join(["landscape", name, *arguments])
    with runs.opened(name, config, options, command, leader) as run, runs.stopping_on_signals():
        try:
            module.run(config, run)
            if leader:
                module.draw(run.path)
        except BaseException as error:
            run.log("end", error=f"{type(error).__name__}: {error}")
            raise
        run.say("done:", "  ".join([str(path), *shown(runs.finish(run))]))


def shown(files: list[str]) -> list[str]:
    """The files of a run that a reader looks at, pictures first."""
    first = ("figure.png", "report.html", "surface.nc", "measures.json")
    hidden = ("config.json", "figure.pdf")
    return [
        *filter(files.__contains__, first),
        *(f for f in files if f not in first + hidden and not f.endswith(".npz")),
    ]


def start_jax(options: Options) -> bool:
    """Set JAX up before its first use: all cores as CPU devices, the precision; True in the leading process."""
    import jax

    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        with contextlib.suppress(RuntimeError):  # already in use in this process: its devices stay as they are
            jax.config.update("jax_num_cpu_devices", len(os.sched_getaffinity(0)))
    jax.config.update("jax_default_matmul_precision", options.precision)
    if options.distributed and not jax.distributed.is_initialized():
        jax.distributed.initialize()
    return jax.process_index() == 0


def plot(arguments: list[str]) -> None:
    """Draw the figures of a run directory again, from its files."""
    path = parse(Path, "plot", arguments, plot.__doc__)
    name = records.read_config(path).get("name")
    if name not in PAPER:
        raise ValueError(f"{path} holds a run of `{name}`, which has no figure.")
    recipe(name).draw(path)
    runs.print_line(f"drawn:   {path}")
