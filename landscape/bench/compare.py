"""Results of `landscape bench` as tables: one by itself, and two side by side with ratios."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

FORMAT = "landscape bench 1"
FILE = "bench.json"
BUSY = 0.5
"""Load average a core above which the machine was not idle."""
UNITS = {"multiply-add": "GFLOP/s", "product": "GFLOP/s", "stream": "GB/s"}
STAGES = ("trace", "lower", "compile", "first")
COLUMNS = (*STAGES, "steady ms (quartiles)", "a second", "as called", "GFLOP/s", "peak", "MiB")
WIDTHS = (6, 6, 8, 6, 22, 18, 10, 8, 6, 6)
HEAD = f"{'case':<16}" + "".join(f"{column:>{width}}" for column, width in zip(COLUMNS, WIDTHS, strict=True))
CONDITIONS = (
    *("suite", "smoke", "device", "processor", "cores", "precision", "memory", "rounds", "warm_ups"),
    "compilation_cache",
)
"""What two results may differ in besides their figures and their environment (versions, number and kind of devices)."""

Row = tuple[str, str, float, float, str]
"""What, unit, in A, in B, "*" if the difference exceeds the spread."""


def read(path: Path) -> dict[str, Any]:
    """A result from its file, or from the folder that holds it.

    Raises:
        FileNotFoundError: There is none.
        ValueError: The file is none of `landscape bench`.
    """
    file = path / FILE if path.is_dir() else path
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{file} does not exist.\n  `landscape bench --out {path}` writes one.") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is no JSON ({error}); wanted a file written by `landscape bench`.") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise ValueError(f"{file} was not written by `landscape bench` (its format is not {FORMAT!r}).")
    return found


def table(found: Mapping[str, Any]) -> list[str]:
    """One result: the ceilings, then a line a case."""
    limits = "  ".join(f"{name} {limit['best'] / 1e9:,.0f} {UNITS[name]}" for name, limit in found["ceilings"].items())
    lines = [f"ceilings {limits}", ""]
    lines.append(HEAD)
    lines += [line(name, case) for name, case in found["cases"].items()]
    return [*lines, *notes(found)]


def line(name: str, case: Mapping[str, Any]) -> str:
    """One case."""
    seconds, memory, steady = case["seconds"], case["memory"], case["seconds"]["steady"]
    stages = ["" if seconds[key] is None else f"{seconds[key]:.2f}" for key in STAGES]
    middle, (low, high) = steady["median"], steady["quartiles"]
    cells = [
        *stages,
        f"{milli(middle)} ({milli(low)}–{milli(high)})",
        f"{case['rate']['median']:,.0f} {short(case['unit'])}",
        f"{case['call_rate']['median']:,.0f}",
        f"{case['operations'] / middle / 1e9:,.1f}",
        f"{share_of_peak(case):.0%}",
        f"{memory['temporary'] / 2**20:,.1f}" if "temporary" in memory else "",
    ]
    return "".join([f"{name:<16}", *(f"{cell:>{width}}" for cell, width in zip(cells, WIDTHS, strict=True))]).rstrip()


def share_of_peak(case: Mapping[str, Any]) -> float:
    """Operations a second over the better of the two arithmetic ceilings."""
    return min(case["share_of_ceiling"][name] for name in ("multiply-add", "product"))


def milli(seconds: float) -> str:
    """Seconds as milliseconds, in three digits."""
    return f"{1e3 * seconds:,.0f}" if seconds >= 0.1 else f"{1e3 * seconds:.3g}"


def number(value: float) -> str:
    """A number in three digits, or whole."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def short(unit: str) -> str:
    """The unit of a rate."""
    return "points/s" if unit == "grid points" else f"{unit}/s"


def notes(found: Mapping[str, Any]) -> list[str]:
    """Warnings about the figures, such as a busy machine."""
    said = ["note:    sizes of --smoke, which measure nothing"] if found["smoke"] else []
    load = found["load_before"][0]
    if load > BUSY * found["cores"]:
        said.append(
            f"note:    load average {load:.1f} on {found['cores']} cores at the start: the machine was not idle"
        )
    if found["compilation_cache"]:
        said.append(f"note:    seconds to compile are those of the cache in {found['compilation_cache']}")
    return said


def compare(first: Path, second: Path) -> list[str]:
    """Two results side by side.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A file is none of `landscape bench`.
    """
    a, b = read(first), read(second)
    named = list(zip("AB", (first, second), (a, b), strict=True))
    lines = [f"{label}: {path}  {found['begun']}  {found['device']}" for label, path, found in named]
    differing = [f"{name} {old} / {new}" for name, old, new in differences(a, b)]
    lines.append(f"differ:  {'; '.join(differing)}" if differing else "same device, versions and precision")
    lines += [f"{label}: {note}" for label, _, found in named for note in notes(found)]
    lines += ["", f"{'':<41} {'A':>12} {'B':>12} {'B / A':>8}"]
    last = ""
    for name, what, one, other, mark in rows(a, b):
        shown = "" if name == last else name
        ratio = f"{other / one:.3g}" if one else "–"
        lines.append(f"{shown:<18} {what:<22} {number(one):>12} {number(other):>12} {ratio:>8} {mark}".rstrip())
        last = name
    lines += unmatched(a, b)
    return [*lines, "* beyond the spread: the quartiles do not overlap (seconds up to `first` are measured once)"]


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """(what, in A, in B) of the conditions in which two results differ: device, versions, precision …"""
    flat = [{**{key: one.get(key) for key in CONDITIONS}, **one["environment"]} for one in (a, b)]
    keys = dict.fromkeys([*flat[0], *flat[1]])
    return [(key, flat[0].get(key), flat[1].get(key)) for key in keys if flat[0].get(key) != flat[1].get(key)]


def rows(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[Row]:
    """Every figure that both results have for the same sizes."""
    for name, limit in a["ceilings"].items():
        other = b["ceilings"].get(name)
        if other:
            yield f"{name}", UNITS[name], limit["best"] / 1e9, other["best"] / 1e9, beyond(limit, other)
    for name in shared(a, b):
        one, other = a["cases"][name], b["cases"][name]
        unit = short(one["unit"])
        yield name, unit, one["rate"]["median"], other["rate"]["median"], beyond(one["rate"], other["rate"])
        called = one["call_rate"], other["call_rate"]
        yield name, f"{unit} as called", called[0]["median"], called[1]["median"], beyond(*called)
        for key in STAGES:
            if one["seconds"][key] is not None and other["seconds"][key] is not None:
                yield name, f"{key} s", one["seconds"][key], other["seconds"][key], ""
        if "temporary" in one["memory"] and "temporary" in other["memory"]:
            yield name, "temporary MiB", *(c["memory"]["temporary"] / 2**20 for c in (one, other)), ""


def shared(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Cases of both results, of equal sizes."""
    both = [name for name in a["cases"] if name in b["cases"]]
    return [name for name in both if a["cases"][name]["sizes"] == b["cases"][name]["sizes"]]


def unmatched(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Cases that cannot be compared."""
    found = []
    for name in dict.fromkeys([*a["cases"], *b["cases"]]):
        where = "".join(label for label, one in (("A", a), ("B", b)) if name in one["cases"])
        if name not in shared(a, b):
            found.append(f"{name} ({'other sizes' if where == 'AB' else f'in {where} only'})")
    return [f"left out: {', '.join(found)}"] if found else []


def beyond(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """A star if the quartiles of two rates do not overlap."""
    (low, high), (least, most) = one["quartiles"], other["quartiles"]
    return "*" if high < least or most < low else ""
