"""From typed words to dataclasses: every option is a field, every complaint one to three lines."""

import contextlib
import dataclasses
import io
import traceback
from types import ModuleType
from typing import Any

from landscape.runs.options import Options


def configuration(name: str, module: ModuleType, arguments: list[str]) -> tuple[Any, Options]:
    """The command's Config and the shared options; a preset changes the defaults, explicit options win.

    Args:
        name: The command.
        module: Has Config, SMOKE and PAPER.
        arguments: What follows the command.

    Raises:
        ValueError: Unknown option, or a value that the configuration refuses.
    """
    preset = module.SMOKE if "--smoke" in arguments else module.PAPER if "--paper" in arguments else {}
    fields = [
        (name, module.Config, dataclasses.field(default=module.Config(**preset))),
        ("shared", Options, dataclasses.field(default=Options())),
    ]
    kind = dataclasses.make_dataclass(name, fields, frozen=True)
    parsed = parse(kind, name, arguments, module.__doc__)
    return getattr(parsed, name), parsed.shared


def parse(kind: Any, name: str, arguments: list[str], description: str | None) -> Any:
    """Parse the options of a command into `kind`, a dataclass or another type.

    Raises:
        ValueError: With the message of the dataclass's own check, or of the parser.
        SystemExit: With code 0 after --help.
    """
    import tyro

    spelling = (
        tyro.conf.CascadeSubcommandArgs,
        tyro.conf.OmitArgPrefixes,
        tyro.conf.OmitSubcommandPrefixes,
        tyro.conf.FlagCreatePairsOff,
        tyro.conf.PositionalRequiredArgs,
    )
    box = io.StringIO()
    prog, text = f"landscape {name}", (description or "").strip()
    try:
        with contextlib.redirect_stderr(box):
            return tyro.cli(kind, prog=prog, args=arguments, description=text, config=spelling)
    except SystemExit as end:
        if end.code in (0, None):
            raise
        raise ValueError(own_message(end) or f"{unboxed(box.getvalue())}\n  See `{prog} --help`.") from end


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
    """The parser's complaint without its frame and without the help text of the option, in one line."""
    lines = [line.strip(" │╭╮╰╯") for line in text.splitlines()]
    words = " ".join(line for line in lines if line and "──" not in line)
    return words.split("Argument helptext:")[0].split("For full helptext")[0].strip()
