"""Finished runs joined into one netCDF file: configurations and measures as a table, surfaces as a stack."""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from landscape import surfaces
from landscape.files import atomic
from landscape.runs import record

if TYPE_CHECKING:
    import xarray

NAME = "collected.nc"


def collect(folders: Sequence[Path], out: Path) -> tuple[Path, int, list[Path]]:
    """Join the finished runs in and below `folders`; the same runs always give the same numbers.

    The file has one entry along `run` for every run: `path`, `command`, each entry of config.json and each number of
    measures.json by the way to it (`config.branches`, `options.seed`, `measures.gap.lo`), measures.json itself as text
    in `measures`. Where the runs have surfaces these are stacked along
    `surface` (see `surfaces.load_stack`), and `run_of_surface` tells whose they are.

    Args:
        folders: Run directories, or folders of them such as that of a sweep.
        out: The folder for collected.nc.

    Returns:
        The file, the number of runs in it, the directories of unfinished runs left out.

    Raises:
        ValueError: A folder does not exist, no run is finished, or a surface.nc cannot be read.
    """
    found = list(runs_in(folders))
    runs = [(path, entry) for path, entry in found if entry.get("finished")]
    left_out = [path for path, entry in found if not entry.get("finished")]
    if not runs:
        raise ValueError(f"no finished run in {', '.join(map(str, folders))} ({len(left_out)} unfinished).")
    files = [(k, path / "surface.nc") for k, (path, _) in enumerate(runs)]
    stack = [(k, surface) for k, file in files if file.exists() for surface in surfaces.load_stack(file)]
    joined = table(runs, [k for k, _ in stack])

    def write(pending: Path) -> None:
        if stack:
            surfaces.save_stack(pending, [surface for _, surface in stack])
        joined.to_netcdf(pending, mode="a" if stack else "w", engine="h5netcdf")

    atomic.write_atomic(out / NAME, write)
    return out / NAME, len(runs), left_out


def runs_in(folders: Sequence[Path]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """(directory, config.json) of every run in or below the given folders, each once, in order of their paths.

    Raises:
        ValueError: A folder does not exist.
    """
    missing = [folder for folder in folders if not folder.is_dir()]
    if missing:
        raise ValueError(f"{missing[0]} is no directory.")
    for path in sorted({file.parent for folder in folders for file in folder.rglob("config.json")}):
        yield path, record.read_config(path)


def table(runs: Sequence[tuple[Path, dict[str, Any]]], owners: Sequence[int]) -> "xarray.Dataset":
    """One row a run: where it is, what was asked, what was measured."""
    import xarray

    rows = [row(path, entry) for path, entry in runs]
    names = list(dict.fromkeys(name for one in rows for name in one))
    columns = {name: ("run", column([one.get(name) for one in rows])) for name in names}
    belongs = {"run_of_surface": ("surface", np.asarray(owners, np.int32))} if owners else {}
    return xarray.Dataset({**columns, **belongs})


def row(path: Path, entry: dict[str, Any]) -> dict[str, Any]:
    """The entries of one run."""
    file = path / "measures.json"
    text = file.read_text(encoding="utf-8") if file.exists() else "{}"
    asked = {f"{part}.{key}": value for part in ("config", "options") for key, value in entry[part].items()}
    asked = {key: " ".join(map(str, value)) if isinstance(value, list) else value for key, value in asked.items()}
    measured = dict(numbers(json.loads(text), "measures"))
    return {"path": str(path), "command": entry["command"], **asked, **measured, "measures": text}


def numbers(content: Any, name: str) -> Iterator[tuple[str, float]]:
    """The single numbers of nested records with their paths: ("measures.gap.lo", 0.1)."""
    if isinstance(content, dict):
        for key, value in content.items():
            yield from numbers(value, f"{name}.{key}".replace("/", " per "))
    elif isinstance(content, int | float):
        yield name, float(content)


def column(values: Sequence[Any]) -> np.ndarray:
    """Values of one name as numbers if all are numbers (absent ones NaN), else as text (absent ones empty)."""
    if all(value is None or isinstance(value, int | float) for value in values):
        return np.array([math.nan if value is None else float(value) for value in values])
    return np.array(["" if value is None else str(value) for value in values], dtype=object)
