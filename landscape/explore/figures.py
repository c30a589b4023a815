"""The pictures of `landscape explore`, from the files in its run directory alone."""

import html
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from landscape import plots, report, surfaces
from landscape.files.tables import html_table
from landscape.planes import spectrum
from landscape.plots import summary
from landscape.surfaces import Surface


def draw(path: Path) -> None:
    """Draw figure, surface3d or alignment; edges, paths, curvature and hessian if there are any; report.html."""
    measures = json.loads(path.joinpath("measures.json").read_text())
    stack = [_marked(s) for s in surfaces.load_stack(path / "surface.nc")]
    with np.load(path / "explore.npz") as stored:
        arrays = {name: stored[name] for name in stored.files}
    trails = _named(arrays, "path ")
    edges = {name: line for name, line in _named(arrays, "edge ").items() if np.isfinite(line).all()}
    shown = [s for s in stack if s.metadata.get("triple", 0) == 0]
    last, titles = shown[-1], _titles(shown)
    names = titles if len(shown) == len(stack) else report.name_all(stack)
    if not all(np.isfinite(surface.risk).any() for surface in shown):
        figures = {}  # there is nothing to draw; the report says so
    elif len(shown) == 2:
        figures = {"figure": plots.row(shown, titles=titles), "alignment": plots.before_after(*shown)}
    else:
        figures = {"figure": plots.contour(last), "surface3d": plots.surface3d(last)}
    drawn = {name: line for name, line in edges.items() if "test " not in name and int(name.split()[-1]) <= 3}
    if drawn:  # those of the first triple
        figures["edges"] = plots.edges(drawn)
    if trails and figures:
        figures["paths"] = plots.trajectory(stack[0], trails)
    if "slope_a" in last.layers and np.isfinite(last.layers["slope_a"]).any():
        figures["curvature"] = plots.curvatures(last)
    nodes, weights = _named(arrays, "nodes "), _named(arrays, "weights ")
    if nodes:
        curves = {f"solution {k}": spectrum.Density(nodes[k], weights[k]).smooth() for k in nodes}
        figures["hessian"] = plots.density(curves)
    for name, figure in figures.items():
        plots.save(figure, path / name)
    title = f"Surface of {last.metadata.get('dataset', 'a function of the parameters')}"
    report.write(
        path / "report.html",
        stack,
        title=title,
        names=names,
        measures=measures["records"],
        paths=[trails if s is stack[0] else {} for s in stack],
        tables=_tables(measures, last),
    )


def _marked(surface: Surface) -> Surface:
    """The surface with its solutions marked; of a trajectory only the last point is a solution."""
    count = 1 if surface.metadata.get("plane") == "trajectory_pca" else 0
    risk = np.asarray(surface.anchor_risk)
    return Surface(
        surface.grid, surface.risk, surface.anchors[-count:], risk[-count:], surface.layers, surface.metadata
    )


def _titles(stack: list[Surface]) -> list[str]:
    return (
        ["before alignment", "after alignment"]
        if len(stack) == 2
        else [f"{summary.kind(stack[0].metadata)} plane".strip()]
    )


def _named(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def _number(value: float | None, digits: int = 4) -> str:
    """A number of measures.json, which has no nan."""
    return "not finite" if value is None else f"{value:.{digits}g}"


def _tables(measures: Mapping[str, Any], surface: Surface) -> dict[str, str]:
    """Measures of the surface, barriers, and eigenvalues or the reason why curvature is not shown."""
    found: dict[str, str] = {}
    if measures["barriers"]:
        rows = [(name, _number(height)) for name, height in measures["barriers"].items()]
        found["Barriers on the lines between solutions"] = html_table(("edge", "barrier (loss units)"), rows)
    if measures.get("hessian"):
        head = ("solution", "largest eigenvalues", "smallest", "trace ± standard error")
        rows = [
            (
                k,
                " ".join(map(_number, r["largest"])),
                _number(r["smallest"]),
                f"{_number(r['trace'])} ± {_number(r['trace_error'], 2)}",
            )
            for k, r in enumerate(measures["hessian"], 1)
        ]
        found["Hessian at the solutions"] = html_table(head, rows)
    reason = str(surface.metadata.get("curvature", "shown"))
    if reason != "shown":
        found["Curvature in the plane"] = f"<p>{html.escape(reason)}</p>"
    return found
