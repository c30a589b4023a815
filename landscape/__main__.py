"""The command line: `landscape COMMAND [options]`, the same as `python -m landscape`.

Exit codes: 0 done, 1 failure, 2 wrong use or configuration, 75 stopped and resumable, 130 Ctrl-C.
"""

import difflib
import errno
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import landscape
from landscape import runs
from landscape.cli import commands
from landscape.files import atomic
from landscape.runs import record

DONE, FAILED, WRONG, STOPPED, INTERRUPTED = 0, 1, 2, 75, 130
WRONG_USE = record.REFUSALS
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


def main() -> int:
    """Run the command that was typed; returns its exit code."""
    return exit_code(partial(dispatch, sys.argv[1:]))


def exit_code(action: Callable[[], object]) -> int:
    """Do something; errors become one to three lines on standard error and an exit code."""
    try:
        action()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else DONE
    except KeyboardInterrupt:
        return complain("interrupted; the same command continues where it stopped.", INTERRUPTED)
    except atomic.Stopped:
        return complain("stopped on request; the same command continues where it stopped.", STOPPED)
    except WRONG_USE as error:
        return complain(str(error), WRONG)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except OSError as error:
        room = "\n  What is finished is on disk; make room and give the same command again."
        return complain(f"{str(error).rstrip('.')}.{room if error.errno in NO_ROOM else ''}", FAILED)
    except Exception as error:
        return complain(f"{type(error).__name__}: {error}\n  LANDSCAPE_DEBUG=1 shows where.", FAILED)
    return DONE


def complain(text: str, code: int) -> int:
    """Write an error in at most three lines, after the traceback if LANDSCAPE_DEBUG is set; returns `code`."""
    if os.environ.get("LANDSCAPE_DEBUG", "0") not in ("", "0"):
        traceback.print_exc()
    lines = [line.rstrip() for line in text.strip().splitlines() if line.strip()][:3]
    sys.stderr.write("landscape: " + "\n".join(lines) + "\n")
    return code


def dispatch(arguments: Sequence[str]) -> None:
    """Give the command named first what follows it.

    Raises:
        ValueError: There is no such command.
    """
    name, *rest = arguments or ["--help"]
    if name in ("-h", "--help", "help"):
        return runs.print_line(overview())
    if name == "--version":
        return runs.print_line(f"landscape {landscape.__version__}")
    known = table()
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean `landscape {near[0]}`?" if near else f"there are {', '.join(known)}."
        raise ValueError(f"no command `{name}`; {hint}\n  `landscape --help` lists them.")
    if name in commands.PAPER:
        return commands.compute(name, commands.recipe(name), rest)
    return known[name](rest)


def table() -> dict[str, Any]:
    """Name of a command -> its module or function, whose docstring describes it."""
    others = (commands.plot, commands.compare, commands.export, commands.sweep, commands.collect)
    named = {other.__name__: other for other in (*others, commands.bench, commands.data)}
    return {**{name: commands.recipe(name) for name in commands.PAPER}, **named}


def overview() -> str:
    """The text of `landscape --help`."""
    rows = [f"  {name:<10} {(what.__doc__ or '').strip().splitlines()[0]}" for name, what in table().items()]
    return "\n".join(
        [
            "usage: landscape COMMAND [options]\n",
            (landscape.__doc__ or "").splitlines()[0],
            "\ncommands:",
            *rows,
            "\n`landscape COMMAND --help` shows a command's options; `landscape --version` the version.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
