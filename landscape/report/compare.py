"""Runs side by side: surfaces on one colour scale, a table of measures, paired differences over the same seeds."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from landscape import report
from landscape.files import atomic
from landscape.files.tables import html_table, text_table
from landscape.plots import gallery, style, summary

if TYPE_CHECKING:
    from landscape.surfaces import Surface

PAIRED_BY = ("branches", "triple", "seed")
"""Two surfaces are a pair if they agree in all of these keys that both state, and both state at least one."""

MOST_COLUMNS = 6
"""Largest number of surfaces drawn beside each other."""

SHOWN = ("env_max_loss", "env_mean_loss", "barrier", "minima")
"""The measures in the printed table; the files hold all."""


Record = Mapping[str, Any]


class Difference(NamedTuple):
    """Mean difference of one measure between two runs over pairs of surfaces, with its 95 % bootstrap interval."""

    run: str
    against: str
    branches: int | None
    measure: str
    mean: float
    low: float
    high: float
    pairs: int


def compare(paths: Sequence[Path], out: Path) -> list[str]:
    """Lay runs side by side in `out`: figure.png and .pdf, report.html, measures.json.

    Args:
        paths: Run directories with a surface.nc, or such files; differences are taken against the first.
        out: The folder to write to.

    Returns:
        The lines of the table to print.

    Raises:
        ValueError: Fewer than two runs, or one without surfaces.
    """
    if len(paths) < 2:
        raise ValueError(f"A comparison needs at least two run directories; got {len(paths)}.")
    runs = dict(zip(names_of(paths), map(surfaces_of, paths), strict=True))
    records = {name: report.records(surfaces) for name, surfaces in runs.items()}
    found = differences(records)
    atomic.write_json(out / "measures.json", _content(dict(zip(runs, paths, strict=True)), records, found))
    figure = _figure(runs)
    style.save(figure, out / "figure")
    _write_report(out / "report.html", runs, records, found)
    return table(records, found)


def names_of(paths: Sequence[Path]) -> list[str]:
    """Short distinct names of runs: the folder's name, preceded by its parents' if needed.

    >>> names_of([Path("runs/a"), Path("other/a"), Path("runs/b/surface.nc")])
    ['runs/a', 'other/a', 'b']
    """
    folders = [(path.parent if path.name == "surface.nc" else path).absolute() for path in paths]
    names = []
    for n, folder in enumerate(folders):
        others = [f.parts for k, f in enumerate(folders) if k != n]
        depth = next((d for d in range(1, len(folder.parts)) if all(o[-d:] != folder.parts[-d:] for o in others)), None)
        names.append(f"{folder.name} ({n + 1})" if depth is None else "/".join(folder.parts[-depth:]))
    return names


def surfaces_of(path: Path) -> list["Surface"]:
    """The surfaces of a run directory or of a netCDF file.

    Raises:
        ValueError: There is no surface.nc.
    """
    from landscape import surfaces

    file = path if path.suffix == ".nc" else path / "surface.nc"
    if not file.is_file():
        raise ValueError(f"{path} has no surface.nc to compare; wanted the directory of a finished run with surfaces.")
    return list(surfaces.load_stack(file))


def differences(records: Mapping[str, Sequence[Record]]) -> list[Difference]:
    """Differences of each run from the first, measure by measure, over surfaces with the same I, triple and seed.

    Runs of different sizes or seeds have few pairs or none; there, only the two tables can be read side by side.
    """
    (base, first), *others = records.items()
    found = []
    for name, second in others:
        pairs = _pairs(first, second)
        for branches, group in report.by_branches([b for _, b in pairs]).items():
            chosen = [(a, b) for a, b in pairs if any(b is c for c in group)]
            for key in summary.keys_of(group):
                values = [float(b[key]) - float(a[key]) for a, b in chosen if key in a and key in b]
                values = [v for v in values if np.isfinite(v)]
                found.append(Difference(name, base, branches, key, *summary.interval(values), len(values)))
    return found


def _pairs(first: Sequence[Record], second: Sequence[Record]) -> list[tuple[Record, Record]]:
    """Pairs of records that belong to the same place in two runs.

    The kinds of plane may differ unless a run has several of them.
    """
    one = max(len(report.by_plane(first)), len(report.by_plane(second))) == 1
    alone = len(first) == len(second) == 1
    every = [(a, b) for b in second for a in first]
    return [(a, b) for a, b in every if alone or (_alike(a, b) and (one or summary.kind(a) == summary.kind(b)))]


def _alike(a: Record, b: Record) -> bool:
    shared = [key for key in PAIRED_BY if key in a and key in b]
    return bool(shared) and all(a[key] == b[key] for key in shared)


def _content(paths: Mapping[str, Path], records: Mapping[str, Any], found: Sequence[Difference]) -> dict[str, Any]:
    """What measures.json holds: the runs, their measures, and the differences."""
    return {
        "runs": {name: str(path) for name, path in paths.items()},
        "measures": [{"run": name, **r} for name, group in records.items() for r in group],
        "differences": [d._asdict() for d in found],
    }


def _figure(runs: Mapping[str, Sequence["Surface"]]) -> Any:
    """All runs on one colour scale, a row for each; a single row if each run has one number of branches."""
    few = [(name, surface) for name, group in runs.items() for surface in _first_of_each_kind(group)]
    sizes = [{s.metadata.get("branches") for s in group} for group in runs.values()]
    if len(few) > MOST_COLUMNS or max(map(len, sizes)) > 1:
        return gallery.rows(runs, scales="all")
    several = {name for name, group in runs.items() if len(_first_of_each_kind(group)) > 1}
    titles = [f"{name}\n{summary.kind(s.metadata)}" if name in several else name for name, s in few]
    return gallery.row([surface for _, surface in few], titles=titles)


def _first_of_each_kind(surfaces: Sequence["Surface"]) -> list["Surface"]:
    found: dict[str, Surface] = {}
    for surface in surfaces:
        found.setdefault(summary.kind(surface.metadata), surface)
    return list(found.values())


def _write_report(path: Path, runs: Mapping[str, Sequence["Surface"]], records: Mapping[str, Any], found: Any) -> None:
    """The report over the surfaces of all runs, with the tables of each run and of the differences."""
    names = [f"{run}: {name}" for run, surfaces in runs.items() for name in report.name_all(surfaces)]
    tables = {f"Run {name}": report.measures_table(group) for name, group in records.items()}
    tables["Paired differences"] = html_table(
        ["run", "minus", "I", "measure", "mean difference", "pairs"],
        [[d.run, d.against, d.branches or "–", summary.name(d.measure), _words(d), d.pairs] for d in found],
    )
    surfaces = [surface for group in runs.values() for surface in group]
    report.write(path, surfaces, title=f"Comparison of {', '.join(runs)}", names=names, measures=[], tables=tables)


def _words(d: Difference) -> str:
    return summary.several(d.mean, d.low, d.high, d.pairs)


def table(records: Mapping[str, Sequence[Record]], found: Sequence[Difference]) -> list[str]:
    """The printed lines: mean measures (95 % interval) of each run and I, then the paired differences."""
    keys = [key for key in SHOWN if any(key in r for group in records.values() for r in group)]
    rows = [["run", "plane", "I", "triples", *keys]]
    for name, group in records.items():
        for plane, part in report.by_plane(group).items():
            rows += [[name, plane, *report.measures_row(x, cell, keys)] for x, cell in report.by_branches(part).items()]
    wanted = [d for d in found if d.measure in keys]
    if not wanted:
        return [*text_table(rows, left=4), "No pairs: the runs share no surface with the same I, triple and seed."]
    head = [f"minus {wanted[0].against}", "I", "pairs", "measure", "difference (95 % interval)"]
    body = [[d.run, _count(d.branches), str(d.pairs), d.measure, _words(d)] for d in wanted]
    return [*text_table(rows, left=4), "", *text_table([head, *body], left=4)]


def _count(branches: int | None) -> str:
    return "–" if branches is None else f"{branches:,}"
