"""report.html: one self-contained file for each run with interactive surfaces, measures and self-checks."""

import base64
import html
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from landscape.files import atomic
from landscape.files.tables import html_table
from landscape.plots import caption, summary

if TYPE_CHECKING:
    from landscape.surfaces import Surface

Paths = Mapping[str, np.ndarray]
Record = Mapping[str, Any]

SUBTITLE = ("network", "files", "dataset", "layout", "notes", "loss")
"""Metadata shown below the heading."""
LIMITS = """<p>A picture like this shows the loss on one two-dimensional slice of a space with as many dimensions as the
network has weights. Non-convexity that is seen on a slice is real: a function that is convex has only convex slices.
Its absence proves nothing about the rest of the space: a loss that looks convex here can be anything but convex along
other directions. A minimum of the slice need not be a minimum of the loss, and a barrier on a straight line can often
be walked around.</p>
<p>What is seen depends on the extent (the same valley in a wider frame looks rounder), on the scale of axes and
colours, and on the solutions that span the plane. Branches can be exchanged without changing the network, and part of
what separates two solutions is nothing but the order of their branches. Compare surfaces on one scale, read the
measures in loss units, and judge a trend by its spread over several triples of solutions.</p>
<p>A trajectory drawn on the plane is a projection: the loss of its points is not the loss below them unless the
distance out of the plane is small. Between grid points values are interpolated.</p>"""
"""The paragraph on what a slice can and cannot show."""


def records(surfaces: Sequence["Surface"]) -> list[dict[str, Any]]:
    """`convexity.report` of each surface as one flat record with its `branches` and `triple`.

    A surface with too few finite values to be measured has no record.
    """
    from landscape import convexity

    found = []
    for surface in surfaces:
        if np.count_nonzero(np.isfinite(surface.risk)) >= 3:
            keys = {
                k: surface.metadata[k]
                for k in ("branches", "triple", "seed", "plane", "aligned")
                if k in surface.metadata
            }
            found.append({**keys, **convexity.numbers(convexity.report(surface))})
    return found


def write(
    path: str | Path,
    surfaces: Sequence["Surface"],
    *,
    title: str = "Loss surfaces",
    names: Sequence[str] | None = None,
    measures: Sequence[Record] | None = None,
    paths: Sequence[Paths] | None = None,
    tables: Mapping[str, str] | None = None,
) -> None:
    """Write one HTML file that shows the surfaces, opens offline and asks no network for anything.

    Args:
        path: The file, usually report.html in the run directory; written whole or not at all.
        surfaces: The surfaces to switch between: numbers of branches, triples, checkpoints; layers come with each.
        title: Heading of the page.
        names: What each surface is called; by default its I and its triple.
        measures: Records of measures by name with `branches`; computed from the surfaces by default.
        paths: For each surface its trajectories by name, [T, 2] or [T, 3]: a, b, distance out of the plane.
        tables: Further tables by heading, as HTML.

    Raises:
        ValueError: There is no surface, or `names` or `paths` are not one for each surface.
    """
    from plotly.offline import get_plotlyjs

    names = name_all(surfaces) if names is None else list(names)
    for what, given in (("names", names), ("paths", paths)):
        if given is not None and len(given) != len(surfaces):
            raise ValueError(f"A report of {len(surfaces)} surfaces needs as many {what}; got {len(given)}.")
    if not surfaces:
        raise ValueError("A report needs at least one surface; none came.")
    measures = records(surfaces) if measures is None else list(measures)
    data = {
        "surfaces": [_surface(s, n, p) for s, n, p in zip(surfaces, names, paths or [{}] * len(names), strict=True)],
        "trend": _trend(measures),
    }
    parts = {
        "title": html.escape(title),
        "subtitle": html.escape(_subtitle(surfaces)),
        "measures": _measures(measures, tables or {}),
        "checks": "".join(_checks(s, n, k) for k, (s, n) in enumerate(zip(surfaces, names, strict=True))),
        "limits": LIMITS,
        "metadata": "".join(_metadata(s, k) for k, s in enumerate(surfaces)),
        "data": json.dumps(data, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c"),
        "plotly": get_plotlyjs(),
        "script": _asset("page.js"),
    }
    atomic.write_atomic(Path(path), lambda pending: pending.write_text(_fill(_asset("page.html"), parts), "utf-8"))


def _asset(name: str) -> str:
    return resources.files("landscape.report").joinpath(name).read_text("utf-8")


def _fill(template: str, parts: Mapping[str, str]) -> str:
    """The template with each {{name}} replaced once; inserted text is not searched again."""
    first, *rest = template.split("{{")
    pieces = [first]
    for piece in rest:
        name, _, tail = piece.partition("}}")
        pieces += [parts[name], tail]
    return "".join(pieces)


def name_all(surfaces: Sequence["Surface"]) -> list[str]:
    """Distinct names of surfaces: I and triple if known, otherwise their number."""
    found = []
    for n, surface in enumerate(surfaces, 1):
        known = surface.metadata
        parts = [f"I = {int(known['branches']):,}"] if "branches" in known else []
        if "triple" in known and any(s.metadata.get("triple") != known["triple"] for s in surfaces):
            parts.append(f"triple {int(known['triple']) + 1}")
        if len({summary.kind(s.metadata) for s in surfaces}) > 1:
            parts.append(summary.kind(known))
        found.append(", ".join(filter(None, parts)) or f"surface {n}")
    repeated = {name for name in found if found.count(name) > 1}
    return [f"{name} ({n})" if name in repeated else name for n, name in enumerate(found, 1)]


def _floats(array: Any) -> str:
    """Numbers as base64 of little-endian float32, which takes a third of their size as text and keeps nan and inf."""
    with np.errstate(over="ignore"):
        return base64.b64encode(np.ascontiguousarray(array, "<f4").tobytes()).decode()


def _surface(surface: "Surface", name: str, paths: Paths) -> dict[str, Any]:
    """The data of one surface for the page."""
    errors = {k.replace("_", " "): v for k, v in surface.errors.items() if k != "left_out"}
    layers = {"risk": surface.risk, **surface.layers, **errors}
    return {
        "name": name,
        "a": _floats(surface.grid.a),
        "b": _floats(surface.grid.b),
        "values": {key: _floats(values) for key, values in layers.items()},
        "anchors": atomic.plain(np.asarray(surface.anchors, float).reshape(-1, 2)),
        "anchor_risk": atomic.plain(np.asarray(surface.anchor_risk, float)),
        "label": caption.loss_label(surface),
        "isometric": caption.isometric(surface),
        "gram": atomic.plain(surface.metadata.get("gram")),
        "caption": caption.limits([surface]),
        "paths": [{"name": k, "points": atomic.plain(np.asarray(p, float))} for k, p in paths.items()],
    }


def _words(key: str, value: Any) -> str:
    return str(value) if key in ("network", "files", "notes") else str(value).replace("_", " ")


def _subtitle(surfaces: Sequence["Surface"]) -> str:
    """Network, data set, loss and plane of the surfaces, and how many there are."""
    known = [s.metadata for s in surfaces]
    parts = [", ".join(sorted({_words(k, m[k]) for m in known if k in m})) for k in SUBTITLE]
    kinds = " or ".join(sorted({summary.kind(m) for m in known} - {""}))
    count = f"{len(surfaces)} surface{'s' * (len(surfaces) > 1)}"
    return " · ".join([*filter(None, [*parts, kinds and f"{kinds} plane"]), count])


def by_plane(measures: Sequence[Record]) -> dict[str, list[Record]]:
    """Records by the kind of their plane; measures on different kinds have no common mean."""
    found: dict[str, list[Record]] = {}
    for record in measures:
        found.setdefault(summary.kind(record) or "–", []).append(record)
    return found


def by_branches(measures: Sequence[Record]) -> dict[Any, list[Record]]:
    """Records by their number of branches, increasing; None comes first."""
    where = sorted({r.get("branches") for r in measures}, key=lambda i: -1 if i is None else i)
    return {x: [r for r in measures if r.get("branches") == x] for x in where}


def _trend(measures: Sequence[Record]) -> dict[str, Any]:
    """Mean and interval of each measure for each I, for each kind of plane."""
    keys, curves = summary.keys_of(measures), []
    for plane, group in by_plane([r for r in measures if "branches" in r]).items():
        cells = by_branches(group)
        points = [[summary.interval(summary.finite(c, k)) for c in cells.values()] for k in keys]
        curves.append({"name": plane, "x": list(cells), "points": points})
    return {"keys": [summary.name(key) for key in keys], "curves": atomic.plain(curves)}


def measures_table(measures: Sequence[Record]) -> str:
    """A table of the measures: for each I the mean over its triples, with a 95 % bootstrap interval of the mean."""
    keys, planes = summary.keys_of(measures), by_plane(measures)
    if not keys:
        return "<p>No surface has enough finite values to be measured.</p>"
    groups = [(plane, x, cell) for plane, group in planes.items() for x, cell in by_branches(group).items()]
    spread = "Mean over the triples of solutions, in brackets its 95 % bootstrap interval."
    if max(len(cell) for _, _, cell in groups) == 1:
        spread = "One triple of solutions for each I, so no spread can be given: run with several triples to get one."
    head = [*["plane"][: len(planes) - 1], "I", "triples", *map(summary.name, keys)]
    rows = [[*[plane][: len(planes) - 1], *measures_row(x, cell, keys)] for plane, x, cell in groups]
    return f'{html_table(head, rows)}<p class="soft">{spread} 0 (one minimum) on a convex surface.</p>'


def measures_row(branches: int | None, group: Sequence[Record], keys: Sequence[str]) -> list[str]:
    """Cells of a table: I, how many triples, and each measure's mean with its interval."""
    samples = [summary.finite(group, key) for key in keys]
    cells = [summary.several(*summary.interval(values), len(values)) for values in samples]
    return ["–" if branches is None else f"{branches:,}", str(len(group)), *cells]


def _measures(measures: Sequence[Record], tables: Mapping[str, str]) -> str:
    """The section of measures: the table of measures or the given tables."""
    own = measures_table(measures) if measures or not tables else ""
    return own + "".join(f"<h3>{html.escape(heading)}</h3>{table}" for heading, table in tables.items())


def _text(value: Any) -> str:
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, float | np.floating):
        return f"{value:.6g}"
    return str(atomic.plain(value)) if isinstance(value, list | tuple | np.ndarray) else str(value)


def _flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested metadata as one level, keys joined by dots."""
    found: dict[str, str] = {}
    for key, value in content.items():
        if isinstance(value, Mapping):
            found.update(_flat(value, f"{prefix}{key}."))
        else:
            found[f"{prefix}{key}"] = _text(value)
    return found


def _pairs(content: Mapping[str, str]) -> str:
    rows = (f'<tr><th>{html.escape(k)}</th><td class="value">{html.escape(v)}</td></tr>' for k, v in content.items())
    return f"<table>{''.join(rows)}</table>"


def _checks(surface: "Surface", name: str, number: int) -> str:
    """The self-checks of one surface, and how many of its points are not finite."""
    checks = surface.metadata.get("checks", {})
    content = _flat(checks) if isinstance(checks, Mapping) else {"checks": str(checks)}
    content = {key.replace("_", " "): value for key, value in content.items()}
    count = int(np.count_nonzero(~np.isfinite(surface.risk)))
    content["points that are not finite"] = f"{count:,} of {surface.risk.size:,}"
    if not checks:
        content["checks"] = "none recorded with this surface"
    return f'<div data-of="{number}"><p class="soft">{html.escape(name)}</p>{_pairs(content)}</div>'


def _metadata(surface: "Surface", number: int) -> str:
    """The metadata of a surface without its checks."""
    known = {key: value for key, value in surface.metadata.items() if key != "checks"}
    shape = {"points": "{} x {}".format(*surface.risk.shape), "quantities": ", ".join(["risk", *surface.layers])}
    return f'<div data-of="{number}">{_pairs({**_flat(known), **shape})}</div>'
