"""Figure 3: averaged l_p balls in two and three dimensions, and their distance to the hull against the bounds."""

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.colors import LightSource
from matplotlib.figure import Figure

from landscape.plots.style import COLOURS, STYLE, TWO_COLUMNS
from landscape.plots.surface import note

HULL = "#888888"


def averages(
    p: float,
    copies: Sequence[int],
    arrays: Mapping[str, np.ndarray],
    distance: Mapping[str, Sequence[Mapping[str, Any]]],
) -> Figure:
    """The balls in 2-D (first row), in 3-D (second row), and ρ(I) with the Shapley–Folkman–Starr bounds (third).

    Args:
        p: Exponent.
        copies: The I of each panel.
        arrays: "curve-I" [2, points] of the first quadrant, "radius-I" [K] along "directions" [K, 3].
        distance: By dimension "2" and "3", records with copies, lo, hi, exact, the bounds and area_deficit.
    """
    columns = len(copies) + 1
    with mpl.rc_context(STYLE):
        fig = Figure(figsize=(TWO_COLUMNS, 5.9), layout="constrained")
        flat, solid, below = np.ravel(np.asarray(fig.subfigures(3, 1, height_ratios=[1, 1.1, 1.25])))
        planes = flat.subplots(1, columns)
        solids = solid.subplots(1, columns, subplot_kw={"projection": "3d"})
        for ax, ax3d, count in zip(planes, solids, [*copies, None], strict=True):
            _planar(ax, count, arrays)
            _spatial(ax3d, count, arrays)
        left, middle, right = below.subplots(1, 3)
        _distance(left, distance["2"], "2-D")
        _distance(middle, distance["3"], "3-D")
        left.set_ylabel("distance to the hull")
        left.legend(handles=left.get_legend_handles_labels()[0][2:], loc="lower left")
        middle.legend(handles=middle.get_legend_handles_labels()[0][:2], loc="lower left")
        _area(right, distance["2"])
        note(
            below,
            f"l_p balls, p = {p:g}, averaged over I copies. Curves are exact; 3-D surfaces are computed along "
            f"{len(arrays['directions']):,} directions an octant. Markers: certified intervals, narrower than the "
            "marker. R and r: Shapley–Folkman bound with the circumradius, and Starr's with the inner radius. "
            "Other exponents, other sets and averages of different sets are not shown.",
        )
    return fig


def _title(count: int | None) -> str:
    return "convex hull" if count is None else "$I$ = 1" if count == 1 else f"$I$ = {count:,}"


def _planar(ax: Any, count: int | None, arrays: Mapping[str, np.ndarray]) -> None:
    """The set in all four quadrants, with the hull's outline behind it."""
    ax.plot([1, 0, -1, 0, 1], [0, 1, 0, -1, 0], color=HULL, lw=0.7, ls="--")
    x, y = np.array([[0.0, 1.0], [1.0, 0.0]]) if count is None else arrays[f"curve-{count}"]
    outline = np.concatenate(
        [np.stack([x, y], 1), np.stack([x, -y], 1)[::-1], np.stack([-x, -y], 1), np.stack([-x, y], 1)[::-1]]
    )
    ax.fill(*outline.T, facecolor=COLOURS[5], edgecolor=COLOURS[0], lw=0.8, alpha=0.9)
    ax.set(
        aspect="equal",
        xlim=(-1.08, 1.08),
        ylim=(-1.08, 1.08),
        xticks=(-1, 0, 1),
        yticks=(-1, 0, 1),
        title=_title(count),
    )


def _spatial(ax: Any, count: int | None, arrays: Mapping[str, np.ndarray]) -> None:
    """The set in all eight octants, as a shaded surface."""
    toward = arrays["directions"]
    radius = np.ones(len(toward)) if count is None else arrays[f"radius-{count}"]
    triangles = _triangles(toward)
    signs = list(product((1, -1), repeat=3))
    points = np.concatenate([radius[:, None] * toward * np.array(sign) for sign in signs])
    faces = np.concatenate(
        [k * len(toward) + (triangles if np.prod(sign) > 0 else triangles[:, ::-1]) for k, sign in enumerate(signs)]
    )
    x, y, z = points.T
    light = LightSource(azdeg=60, altdeg=50)
    ax.plot_trisurf(x, y, z, triangles=faces, color="#a6d4f2", lw=0, antialiased=False, lightsource=light)
    ax.set(xlim=(-1, 1), ylim=(-1, 1), zlim=(-1, 1))
    ax.set_box_aspect((1, 1, 1), zoom=1.55)
    ax.view_init(elev=22, azim=32)
    ax.set_axis_off()


def _triangles(toward: np.ndarray) -> np.ndarray:
    """Triangles [F, 3] of the mesh of directions, which is stored row by row."""
    mesh = round(1 / np.min(toward[toward > 0]))
    index = {(i, j): k for k, (i, j) in enumerate((i, j) for i in range(mesh + 1) for j in range(mesh + 1 - i))}
    up = [(index[i, j], index[i + 1, j], index[i, j + 1]) for i, j in index if i + j < mesh]
    down = [(index[i + 1, j], index[i + 1, j + 1], index[i, j + 1]) for i, j in index if i + j < mesh - 1]
    return np.array(up + down)


def _distance(ax: Any, rows: Sequence[Mapping[str, Any]], title: str) -> None:
    """ρ(I) and its bounds on logarithmic axes."""
    copies = [row["copies"] for row in rows]
    for key, label, style in (
        ("circumradius_bound", "bound with $R$", ":"),
        ("inner_radius_bound", "bound with $r$", "--"),
    ):
        ax.loglog(copies, [row[key] for row in rows], style, color=HULL, label=label)
    if all(row["exact"] is not None for row in rows):
        ax.loglog(copies, [row["exact"] for row in rows], color=COLOURS[1], label=r"$\sqrt{2}/(4I)$, proved")
    middle = np.array([0.5 * (row["lo"] + row["hi"]) for row in rows])
    half = np.array([0.5 * (row["hi"] - row["lo"]) for row in rows])
    ax.errorbar(copies, middle, half, fmt="o", ms=3, color=COLOURS[0], label=r"$\rho(I)$, certified")
    ax.set(xlabel="copies $I$", title=title)


def _area(ax: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    """Area that S_I lacks, in the plane."""
    copies, lost = [row["copies"] for row in rows], [row["area_deficit"] for row in rows]
    ax.loglog(copies, lost, "o-", ms=3, color=COLOURS[2])
    ax.set(xlabel="copies $I$", ylabel="area missing", title="2-D, exact")
