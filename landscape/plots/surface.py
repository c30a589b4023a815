"""One surface: filled contours with the solutions and their triangle, and the surface in three dimensions."""

import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LightSource, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FormatStrFormatter, LogFormatterSciNotation, LogLocator, MaxNLocator, NullLocator

from landscape.plots import caption, scale
from landscape.plots.style import COLOURS, ONE_COLUMN, STYLE, SURFACE_MAP, TWO_COLUMNS, figure

if TYPE_CHECKING:
    from landscape.surfaces import Surface

FACES = 120
"""At most this many faces along each axis of a surface in three dimensions; contours always use every point."""

MISSING = "#d9d9d9"
"""Colour of points that are not finite: a grey that is in no colour map used here."""


def note(fig: Figure, text: str, *, columns: float = TWO_COLUMNS) -> None:
    """Small wrapped text under a figure of the given width in inches."""
    fig.supxlabel("\n".join(textwrap.wrap(text, int(columns * 23))), fontsize=5.5, color="#555555", linespacing=1.3)


def colour_bar(
    fig: Figure, place: Any, norm: Normalize, label: str, *, inside: bool = False, across: bool = False
) -> Any:
    """A colour bar with few readable labels for a scale, beside the axes `place`, or within them (`inside`)."""
    where = {"cax": place} if inside else {"ax": place, "fraction": 0.046, "pad": 0.03}
    bar = fig.colorbar(ScalarMappable(norm, SURFACE_MAP), orientation="horizontal" if across else "vertical", **where)
    bar.set_label(label)
    low, high = scale.span(norm)
    if isinstance(norm, LogNorm) and np.log10(high / low) >= 1.5:
        bar.locator, bar.formatter = LogLocator(numticks=4 if across else 6), LogFormatterSciNotation()
    else:
        bar.locator = MaxNLocator(3 if across else 6)
        bar.formatter = FormatStrFormatter("%.3g")
    bar.minorlocator = NullLocator()
    bar.update_ticks()
    return bar


def mark_solutions(ax: Axes, surface: "Surface", *, small: bool = False) -> None:
    """The anchors as white dots, numbered, and the triangle they span as a dashed line."""
    if len(surface.anchors) == 0:
        return
    closed = np.vstack([surface.anchors, surface.anchors[:1]])
    halo = [withStroke(linewidth=2.2, foreground="black")]
    ax.plot(*closed.T, color="white", linestyle=(0, (4, 2)), linewidth=1.0, path_effects=halo, zorder=4)
    ax.plot(*surface.anchors.T, "o", color="white", markeredgecolor="black", markersize=3 if small else 4.5, zorder=5)
    centre = surface.anchors.mean(0)
    for n, point in enumerate(surface.anchors, 1):
        away = point - centre
        away = away / np.linalg.norm(away) if np.linalg.norm(away) > 0 else np.array([0.0, 1.0])
        style = {
            "ha": "center",
            "va": "center",
            "color": "white",
            "fontsize": 5.5 if small else 7,
            "fontweight": "bold",
        }
        ax.annotate(
            str(n),
            point,
            tuple((5.5 if small else 8) * away),
            textcoords="offset points",
            path_effects=halo,
            zorder=6,
            **style,
        )


def draw_contour(
    ax: Axes, surface: "Surface", norm: Normalize, *, layer: str | None = None, count: int = 12, small: bool = False
) -> None:
    """Filled colours on the scale `norm`, lines at quantiles of the loss, solutions and triangle marked."""
    values = scale.clip(scale.values(surface, layer), norm).T
    grid = surface.grid
    ax.set_facecolor(MISSING)
    filled = ax.contourf(grid.a, grid.b, values, scale.bands(norm), norm=norm, cmap=SURFACE_MAP, extend="both")
    filled.set_rasterized(True)
    lines = scale.levels([values], norm, count)
    if lines.size:
        ax.contour(grid.a, grid.b, values, lines, colors="white", linewidths=0.4, alpha=0.7)
    mark_solutions(ax, surface, small=small)
    ax.set(xlim=(grid.a[0], grid.a[-1]), ylim=(grid.b[0], grid.b[-1]))
    proportions(ax, surface)


def proportions(ax: Axes, surface: "Surface") -> None:
    """Equal axes where distances mean something; elsewhere a square, since neither axis is longer than the other."""
    if caption.isometric(surface):
        ax.set_aspect("equal")
    else:
        ax.set_box_aspect(1)


def draw_surface(ax: Any, surface: "Surface", norm: Normalize, *, layer: str | None = None) -> None:
    """The surface over the plane, coloured and bounded by `norm`, with its contours and solutions on the floor."""
    grid = surface.grid
    height = scale.clip(scale.values(surface, layer), norm)
    log = isinstance(norm, LogNorm)
    raw = np.ma.masked_invalid(np.log10(height) if log else height)
    low, high = np.log10(scale.span(norm)) if log else scale.span(norm)
    a, b = np.meshgrid(grid.a, grid.b, indexing="ij")
    ax.computed_zorder = False
    faces = _lit(surface, raw, mpl.colormaps[SURFACE_MAP](norm(height)))
    mesh = {"rcount": FACES, "ccount": FACES, "shade": False, "linewidth": 0, "antialiased": False, "rasterized": True}
    ax.plot_surface(a, b, raw.filled(np.nan), facecolors=faces, zorder=2, **mesh)
    base = low - 0.45 * (high - low)
    _draw_floor(ax, surface, raw, (base, low, high))
    ax.set_zlim(base, high)
    _tidy(ax, surface, (low, high), log=log)


def _lit(surface: "Surface", raw: np.ma.MaskedArray, colours: np.ndarray) -> np.ndarray:
    """Colours [A, B, 4] lit from the upper left: shape becomes visible, the colour stays that of the scale."""
    steps = [float(np.mean(np.diff(axis))) / float(np.ptp(axis)) for axis in surface.grid]
    height = raw.filled(raw.mean()) / (float(np.ptp(raw)) or 1.0)
    light = LightSource(azdeg=300, altdeg=50).hillshade(height, vert_exag=0.8, dx=steps[1], dy=steps[0])
    lit = colours.copy()
    lit[..., :3] = np.clip(colours[..., :3] * (0.75 + 0.35 * light[..., None]) + 0.06, 0, 1)
    return lit


def _draw_floor(ax: Any, surface: "Surface", raw: np.ma.MaskedArray, span: tuple[float, float, float]) -> None:
    """Contour lines of the surface and its solutions, projected below it."""
    base, low, high = span
    grid = surface.grid
    lines = scale.levels([raw], Normalize(low, high), 8)
    if lines.size:
        ax.contour(
            grid.a,
            grid.b,
            raw.T,
            lines,
            zdir="z",
            offset=base,
            cmap=SURFACE_MAP,
            vmin=low,
            vmax=high,
            linewidths=0.6,
            zorder=1,
        )
    if len(surface.anchors):
        closed = np.vstack([surface.anchors, surface.anchors[:1]])
        ax.plot(*closed.T, base, "-o", color="black", linewidth=0.6, markersize=1.8, zorder=1)


def _tidy(ax: Any, surface: "Surface", span: tuple[float, float], *, log: bool) -> None:
    """Few ticks, light panes, a box whose base has the plane's proportions where distances mean something."""
    grid = surface.grid
    width, depth = float(np.ptp(grid.a)), float(np.ptp(grid.b))
    longest = max(width, depth) if caption.isometric(surface) else 0.0
    ax.set_box_aspect((width / longest, depth / longest, 0.85) if longest else (1, 1, 0.85), zoom=1)
    ax.view_init(elev=24, azim=-58)
    ax.set(xlim=(grid.a[0], grid.a[-1]), ylim=(grid.b[0], grid.b[-1]))
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(3))
    ticks = [
        t for t in MaxNLocator(4, integer=log).tick_values(*span) if span[0] - 1e-9 <= t <= span[1] * (1 + 1e-9) + 1e-9
    ]
    ax.set_zticks(ticks, [f"$10^{{{t:g}}}$" if log else f"{t:.3g}" for t in ticks])
    ax.tick_params(pad=-2, labelsize=6)
    for axis in (ax.xaxis, ax.yaxis, ax.zaxis):
        axis.set_pane_color((1, 1, 1, 0))
        axis.line.set_linewidth(0.5)


def contour(
    surface: "Surface",
    *,
    layer: str | None = None,
    log: bool = False,
    levels: int = 12,
    paths: Mapping[str, np.ndarray] | None = None,
) -> Figure:
    """Filled contours of a surface: equal axes on orthonormal planes, solutions and triangle marked, loss units.

    Args:
        surface: What to draw.
        layer: Name of another quantity of the surface than its risk.
        log: Colours on a log scale instead of a linear one.
        levels: Number of contour lines, at equal quantiles of the finite values.
        paths: Trajectories by name, each [T, 2] or [T, 3]: a, b and the distance out of the plane.

    Raises:
        ValueError: No such layer, no finite value, or a log scale of values none of which is positive.
    """
    norm = scale.norm([scale.values(surface, layer)], log=log)
    fig, ((ax,),) = figure(ONE_COLUMN, ONE_COLUMN)
    with mpl.rc_context(STYLE):
        draw_contour(ax, surface, norm, layer=layer, count=levels)
        a, b = caption.axis_labels(surface)
        ax.set(xlabel=a, ylabel=b, title=caption.title(surface))
        draw_paths(ax, paths or {})
        colour_bar(fig, ax, norm, caption.loss_label(surface, layer))
        note(fig, caption.limits([surface]), columns=ONE_COLUMN)
    return fig


def draw_paths(ax: Axes, paths: Mapping[str, np.ndarray]) -> None:
    """Trajectories projected onto the plane, named above it with how far they leave the plane."""
    for colour, (name, path) in zip(colours(len(paths)), paths.items(), strict=True):
        away = f", up to {np.max(path[:, 2]):.2g} off the plane" if path.shape[1] > 2 else ""
        halo = [withStroke(linewidth=2.0, foreground="white")]
        ax.plot(*path[:, :2].T, color=colour, path_effects=halo, label=f"{name}{away}", zorder=4)
        ax.plot(*path[-1, :2], "s", color=colour, markeredgecolor="white", markersize=4, zorder=5)
    if paths:
        ax.set_title("")
        ax.legend(loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2)


def colours(count: int) -> list[str]:
    """Colours of curves drawn on a surface, the bright ones first."""
    bright = COLOURS[1:] + COLOURS[:1]
    return [bright[n % len(bright)] for n in range(count)]


def surface3d(surface: "Surface", *, layer: str | None = None, log: bool = False) -> Figure:
    """The surface in three dimensions, its contours and solutions on the floor.

    Args:
        surface: What to draw.
        layer: Name of another quantity of the surface than its risk.
        log: Heights and colours on a log scale.

    Raises:
        ValueError: No such layer, no finite value, or a log scale of values none of which is positive.
    """
    norm = scale.norm([scale.values(surface, layer)], log=log)
    with mpl.rc_context(STYLE):
        fig = Figure(figsize=(ONE_COLUMN, 3.2))
        ax = fig.add_axes((0.0, 0.11, 0.77, 0.87), projection="3d")
        draw_surface(ax, surface, norm, layer=layer)
        a, b = caption.axis_labels(surface)
        ax.set_xlabel(a, labelpad=-6)
        ax.set_ylabel(b, labelpad=-6)
        ax.set_title(caption.title(surface), y=0.98)
        colour_bar(fig, fig.add_axes((0.82, 0.3, 0.025, 0.45)), norm, caption.loss_label(surface, layer), inside=True)
        note(fig, caption.limits([surface]), columns=ONE_COLUMN)
    return fig
