"""The command line: `landscape COMMAND [options]`, the same as `python -m landscape`.

One table of commands; each command's own options are the fields of its module's Config. Exit codes: 0 done, 1 failure,
2 wrong use or configuration, 75 stopped and resumable, 130 Ctrl-C.
"""

import contextlib
import dataclasses
import difflib
import errno
import importlib
import importlib.util
import io
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import landscape
from landscape import records, runs, storage
from landscape.options import Options

PAPER = ("figure1", "figure3", "figure4", "table1", "theorem1", "theorem2")
DONE, FAILED, WRONG, STOPPED, INTERRUPTED = 0, 1, 2, 75, 130
WRONG_USE = (ValueError, FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; errors become one to three lines on standard error."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return dispatch(arguments)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else FAILED
    except KeyboardInterrupt:
        return complain("interrupted; the same command continues where it stopped.", INTERRUPTED)
    except storage.Stopped:
        return complain("stopped on request; the same command continues.", STOPPED)
    except WRONG_USE as error:
        return complain(str(error), WRONG)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except OSError as error:
        full = "\n  What is finished is on disk; make room and give the same command again."
        return complain(f"{error}.{full if error.errno in (errno.ENOSPC, errno.EDQUOT) else ''}", FAILED)
    except Exception as error:
        return complain(f"{type(error).__name__}: {error}", FAILED)


def complain(text: str, code: int) -> int:
    """Write an error in at most three lines, with the traceback only if LANDSCAPE_DEBUG is set; returns `code`."""
    if os.environ.get("LANDSCAPE_DEBUG", "0") not in ("", "0"):
        traceback.print_exc()
    lines = [line.rstrip() for line in text.strip().splitlines() if line.strip()][:3]
    sys.stderr.write("landscape: " + "\n".join(lines) + "\n")
    return code


def dispatch(arguments: list[str]) -> int:
    """Find the command named first and give it the rest."""
    name, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    if name in ("-h", "--help", "help"):
        runs.print_line(overview())
        return DONE
    if name == "--version":
        runs.print_line(f"landscape {landscape.__version__}")
        return DONE
    table = commands()
    if name not in table:
        near = difflib.get_close_matches(name, table, 1)
        hint = f"did you mean `landscape {near[0]}`?" if near else f"there are {', '.join(table)}."
        raise ValueError(f"no command `{name}`; {hint}\n  `landscape --help` lists them.")
    return table[name](rest)


def commands() -> dict[str, Callable[[list[str]], int]]:
    """Name -> what runs it."""
    paper = {name: paper_command(name) for name in PAPER if importlib.util.find_spec(f"landscape.paper.{name}")}
    return {**paper, "plot": plot}


def overview() -> str:
    """The text of `landscape --help`."""
    table = commands()
    rows = [f"  {name:<10} {first_line(recipe(name) if name in PAPER else table[name])}" for name in table]
    return "\n".join(
        [
            "usage: landscape COMMAND [options]",
            "",
            (landscape.__doc__ or "").splitlines()[0],
            "",
            "commands:",
            *rows,
            "",
            "`landscape COMMAND --help` shows a command's options; `landscape --version` the version.",
        ]
    )


def first_line(documented: Any) -> str:
    """The first line of a docstring."""
    return (documented.__doc__ or "").strip().splitlines()[0]


def recipe(name: str) -> ModuleType:
    """The module of a command of the paper."""
    return importlib.import_module(f"landscape.paper.{name}")


def parse(kind: Any, name: str, arguments: list[str], description: str) -> Any:
    """Parse a command's options into the dataclass `kind`.

    Raises:
        ValueError: With the message of the dataclass's own check, or of the parser.
    """
    import tyro

    spelling = (
        tyro.conf.CascadeSubcommandArgs,
        tyro.conf.OmitArgPrefixes,
        tyro.conf.OmitSubcommandPrefixes,
        tyro.conf.FlagCreatePairsOff,
    )
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            return tyro.cli(kind, prog=f"landscape {name}", args=arguments, description=description, config=spelling)
    except SystemExit as end:
        if end.code in (0, None):
            raise
        raise ValueError(own_message(end) or f"{unboxed(box.getvalue())}\n  See `landscape {name} --help`.") from end


def own_message(end: BaseException) -> str:
    """The message of the ValueError that a dataclass's __post_init__ raised on the way to `end`, if one did."""
    error = end.__context__
    while error is not None:
        frames = traceback.extract_tb(error.__traceback__)
        if isinstance(error, ValueError) and any(frame.name == "__post_init__" for frame in frames):
            return str(error)
        error = error.__context__
    return ""


def unboxed(text: str) -> str:
    """The parser's complaint without its frame, in one line."""
    lines = [line.strip(" │╭╮╰╯") for line in text.splitlines()]
    content = [line for line in lines if line and not line.startswith("For full helptext")]
    words = " ".join(line for line in content if "──" not in line)
    return words.split("Argument helptext:")[0].strip()


def paper_command(name: str) -> Callable[[list[str]], int]:
    """The command of one module of the paper."""
    return lambda arguments: compute(name, recipe(name), arguments)


def compute(name: str, module: ModuleType, arguments: list[str]) -> int:
    """Parse, open the run directory, compute, draw; a finished run is a no-op."""
    config, options = configuration(name, module, arguments)
    path = options.out or Path("runs") / name
    if runs.finished(name, config, options):
        runs.print_line(f"done already: {path} (delete it or choose --out to run again)")
        return DONE
    leader = start_jax(options)
    command = shlex.join(["landscape", name, *arguments])
    with runs.opened(name, config, options, command, leader) as run, runs.stopping_on_signals():
        if run.resumed:
            run.say("resuming:", str(path))
        try:
            module.run(config, run)
            if leader:
                module.draw(run.path)
        except BaseException as error:
            run.log("end", error=f"{type(error).__name__}: {error}")
            raise
        run.say("done:", "  ".join([str(path), *shown(runs.finish(run))]))
    return DONE


def shown(files: list[str]) -> list[str]:
    """The files of a run that a reader looks at, pictures first."""
    order = ("figure.png", "report.html", "surface.nc", "measures.json")
    return sorted((f for f in files if f not in ("config.json", "figure.pdf")), key=lambda f: (f not in order, f))


def configuration(name: str, module: ModuleType, arguments: list[str]) -> tuple[Any, Options]:
    """The command's Config and the shared options; a preset changes the defaults, explicit options win."""
    preset = {**(module.SMOKE if "--smoke" in arguments else module.PAPER if "--paper" in arguments else {})}
    fields = [
        ("config", module.Config, dataclasses.field(default=module.Config(**preset))),
        ("options", Options, dataclasses.field(default=Options())),
    ]
    kind = dataclasses.make_dataclass(name, fields, frozen=True)
    parsed = parse(kind, name, arguments, (module.__doc__ or "").strip())
    return parsed.config, parsed.options


def start_jax(options: Options) -> bool:
    """Set JAX up before its first use: all cores as CPU devices, the precision; True in the leading process."""
    import jax

    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        jax.config.update("jax_num_cpu_devices", len(os.sched_getaffinity(0)))
    jax.config.update("jax_default_matmul_precision", options.precision)
    if options.distributed:
        jax.distributed.initialize()
    return jax.process_index() == 0


def plot(arguments: list[str]) -> int:
    """Draw the figures of a run directory again, from its files."""
    path = parse(Path, "plot", arguments, first_line(plot))
    name = records.read_config(path).get("name")
    if name not in PAPER:
        raise ValueError(f"{path} holds a run of `{name}`, which has no figure.")
    recipe(name).draw(path)
    runs.print_line(f"drawn:   {path}")
    return DONE


if __name__ == "__main__":
    sys.exit(main())
