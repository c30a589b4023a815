"""Many runs of one command: a grid of configurations in a TOML file, one run directory each.

command = "figure4"
out = "runs/sweep"              # optional; runs/NAME-OF-THE-FILE by default

[fixed]                         # options common to all
limit = 10000

[grid]                          # every combination of these; the last varies fastest
dataset = ["mnist", "cifar10"]
hidden = [[8], [8, 8, 8]]
seed = [0, 1, 2]
"""

import itertools
import os
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

KEYS = {"command", "out", "fixed", "grid"}


def tasks(file: Path, known: Sequence[str]) -> tuple[str, list[list[str]]]:
    """The command of a sweep, and the words to be typed after it for each of its tasks.

    Args:
        file: The TOML file.
        known: Commands that may be swept.

    Raises:
        ValueError: The file is missing, is no TOML, or has other keys than the four above.
    """
    content = read(file)
    command, grid, fixed = str(content.get("command")), content.get("grid", {}), content.get("fixed", {})
    if command not in known:
        raise ValueError(f"{file}: command is {command}; wanted one of {', '.join(known)}.")
    empty = [key for key, values in grid.items() if not isinstance(values, list) or not values]
    if empty:
        raise ValueError(f"{file}: [grid] {empty[0]} wants a list of at least one value, such as [0, 1, 2].")
    out = Path(content.get("out", Path("runs") / file.stem))
    points = list(itertools.product(*grid.values()))
    width = max(3, len(str(len(points) - 1)))
    choices = [{**fixed, **dict(zip(grid, point, strict=True))} for point in points]
    return command, [[*typed(choice), "--out", str(out / f"{k:0{width}}")] for k, choice in enumerate(choices)]


def read(file: Path) -> dict[str, Any]:
    """The content of a sweep's file, with the four keys at most."""
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"{file} does not exist.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not a TOML file: {error}.") from error
    strange = sorted(content.keys() - KEYS)
    if strange:
        raise ValueError(f"{file} has `{strange[0]}`; wanted command, out, [fixed] and [grid] only.")
    return content


def typed(options: Mapping[str, Any]) -> list[str]:
    """Options as they would be typed: lists as several words, true as the bare option, false as nothing."""
    words = []
    for name, value in options.items():
        option = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            words += [option] if value else []
        else:
            words += [option, *map(str, value if isinstance(value, list) else [value])]
    return words


def chosen(count: int, index: int | None) -> list[int]:
    """The tasks for this process: the one named by `index` or by SLURM_ARRAY_TASK_ID, else all.

    Raises:
        ValueError: The index is none of 0 … count - 1.
    """
    name, text = "--task-index", str(index)
    if index is None and "SLURM_ARRAY_TASK_ID" in os.environ:
        name, text = "SLURM_ARRAY_TASK_ID", os.environ["SLURM_ARRAY_TASK_ID"]
    elif index is None:
        return list(range(count))
    if not text.isdigit() or int(text) >= count:
        raise ValueError(f"{name} is {text}; this sweep has tasks 0 to {count - 1} (sbatch --array=0-{count - 1}).")
    return [int(text)]
