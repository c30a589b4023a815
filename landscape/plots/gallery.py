"""Surfaces beside each other: a row over the number of branches (Figure 1), rows of networks (Figure 4), pairs."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from landscape.plots import caption, scale, summary
from landscape.plots.measures import draw_trend, spread
from landscape.plots.style import STYLE, TWO_COLUMNS, figure
from landscape.plots.surface import colour_bar, draw_contour, draw_surface, note

if TYPE_CHECKING:
    from landscape.surfaces import Surface

LEFT, RIGHT, NOTE, TREND = 0.28, 0.62, 0.4, 1.65
"""Inches for the names of the rows, the common colour bar, the note under the figure, and the measures above it."""


def one_for_each(surfaces: Sequence["Surface"]) -> list["Surface"]:
    """The first surface of each number of branches, in increasing order; all of them where none is stated."""
    if not all("branches" in s.metadata for s in surfaces):
        return list(surfaces)
    first: dict[int, Surface] = {}
    for surface in surfaces:
        first.setdefault(int(surface.metadata["branches"]), surface)
    return [first[branches] for branches in sorted(first)]


def _triples(surfaces: Sequence["Surface"], shown: Sequence["Surface"]) -> str:
    if len(surfaces) == len(shown):
        return ""
    return f" Of the {len(surfaces)} surfaces the first for each I is drawn."


class _Sheet:
    """Places axes on a figure in inches from its upper left corner: columns of equal width, bands of given height."""

    def __init__(self, columns: int, height: float) -> None:
        self.height, self.columns = height + NOTE, columns
        self.column = (TWO_COLUMNS - LEFT - RIGHT) / columns
        self.fig = Figure(figsize=(TWO_COLUMNS, self.height))

    def place(self, left: float, top: float, width: float, height: float) -> tuple[float, float, float, float]:
        """Figure fractions of a rectangle given in inches from the upper left corner."""
        return left / TWO_COLUMNS, 1 - (top + height) / self.height, width / TWO_COLUMNS, height / self.height

    def cell(self, n: int, top: float, height: float, *, pad: tuple[float, float] = (0.0, 0.0)) -> tuple:
        """Figure fractions of column `n` of the band at `top`, less `pad` inches at the left and at the right."""
        return self.place(LEFT + n * self.column + pad[0], top, self.column - sum(pad), height)

    def name(self, text: str, top: float, height: float) -> None:
        """The name of a band, upright at its left."""
        self.fig.text(0.11 / TWO_COLUMNS, 1 - (top + height / 2) / self.height, text, rotation=90, va="center")

    def bar(self, norm: Normalize, label: str, top: float, height: float) -> None:
        """The colour bar of a band at its right."""
        place = self.place(TWO_COLUMNS - RIGHT + 0.08, top + 0.15 * height, 0.07, 0.7 * height)
        colour_bar(self.fig, self.fig.add_axes(place), norm, label, inside=True).set_label(label, fontsize=6.5)


def _solid_band(
    sheet: _Sheet, surfaces: Sequence["Surface"], norms: Sequence[Normalize], top: float, *, heights: bool
) -> float:
    """A band of surfaces in three dimensions, their heights labelled on request; returns the band's height."""
    height = min(sheet.column * 1.02, 1.6)
    for n, (surface, norm) in enumerate(zip(surfaces, norms, strict=True)):
        ax: Any = sheet.fig.add_axes(sheet.cell(n, top, height), projection="3d")
        draw_surface(ax, surface, norm)
        ax.patch.set_alpha(0)
        ax.tick_params(labelsize=5, pad=-4)
        ax.set(xticklabels=[], yticklabels=[])
        if not heights:
            ax.set_zticklabels([])
    return height


def _titles(sheet: _Sheet, titles: Sequence[str], top: float) -> None:
    for n, title in enumerate(titles):
        x = (LEFT + (n + 0.5) * sheet.column) / TWO_COLUMNS
        sheet.fig.text(x, 1 - top / sheet.height, title, ha="center", va="top", fontsize=8)


def _flat_band(sheet: _Sheet, surfaces: Sequence["Surface"], norms: Sequence[Normalize], top: float) -> float:
    """A band of filled contours, each with its own colour bar beneath; returns its height."""
    size = min(sheet.column - 0.3, 1.5)
    for n, (surface, norm) in enumerate(zip(surfaces, norms, strict=True)):
        ax = sheet.fig.add_axes(sheet.cell(n, top, size, pad=(0.24, 0.06)))
        draw_contour(ax, surface, norm, count=9, small=True)
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_locator(MaxNLocator(2, integer=True))
        ax.tick_params(labelsize=5.5, pad=1, length=2)
        bar = sheet.fig.add_axes(sheet.cell(n, top + size + 0.2, 0.05, pad=(0.24, 0.06)))
        colour_bar(sheet.fig, bar, norm, "", inside=True, across=True).ax.tick_params(labelsize=5.5, pad=1, length=2)
    return size + 0.5


def row(
    surfaces: Sequence["Surface"],
    *,
    titles: Sequence[str] | None = None,
    measures: Sequence[Mapping[str, Any]] = (),
    log: bool = False,
) -> Figure:
    """The row of surfaces over I as in Figure 1: on one common scale, each on its own, and their contours beneath.

    Where there are several surfaces with the same number of branches, the first is drawn.

    Args:
        surfaces: In any order; titled with `metadata["branches"]`.
        titles: Other titles, one for each surface; then all are drawn, in the order given.
        measures: Records with `branches` and measures by name, drawn against I below the surfaces.
        log: Heights and colours on a log scale.

    Raises:
        ValueError: There is no surface, a surface has no finite value, or a log scale has no positive one.
    """
    note_text = caption.limits(surfaces)
    shown = one_for_each(surfaces) if titles is None else list(surfaces)
    titles = [caption.title(s) for s in shown] if titles is None else list(titles)
    arrays = [scale.values(s) for s in shown]
    common, own = scale.norm(arrays, log=log), [scale.norm([a], log=log) for a in arrays]
    with mpl.rc_context(STYLE):
        columns = max(len(shown), 2)
        wide = (TWO_COLUMNS - LEFT - RIGHT) / columns
        solid, flat = min(wide * 1.02, 1.6), min(wide - 0.3, 1.5) + 0.5
        end = 0.3 + 2 * solid + flat
        sheet = _Sheet(columns, end + (TREND if measures else 0.0))
        _titles(sheet, titles, 0.06)
        _solid_band(sheet, shown, [common] * len(shown), 0.2, heights=False)
        sheet.name("common scale", 0.2, solid)
        sheet.bar(common, caption.loss_label(shown[0]), 0.2, solid)
        _solid_band(sheet, shown, own, 0.2 + solid, heights=True)
        sheet.name("own scale", 0.2 + solid, solid)
        _flat_band(sheet, shown, own, 0.3 + 2 * solid)
        sheet.name("from above", 0.3 + 2 * solid, flat - 0.5)
        if measures:
            _trend_band(sheet, measures, end)
        note(sheet.fig, note_text + _triples(surfaces, shown) + (f" {spread([measures])}" if measures else ""))
    return sheet.fig


def _trend_band(sheet: _Sheet, measures: Sequence[Mapping[str, Any]], top: float) -> None:
    """The first measures against I, with their spread, across the width of the sheet."""
    keys = [key for key in summary.keys_of(measures) if key != "test_barrier"][:4]
    wide = (TWO_COLUMNS - LEFT) / max(len(keys), 1)
    for n, key in enumerate(keys):
        ax = sheet.fig.add_axes(sheet.place(LEFT + n * wide + 0.25, top + 0.32, wide - 0.4, TREND - 0.75))
        draw_trend(ax, {"": measures}, key, "branches")
        ax.tick_params(labelsize=6)


def rows(groups: Mapping[str, Sequence["Surface"]], *, scales: str = "row", log: bool = False) -> Figure:
    """Rows of surfaces over I as in Figure 4, one for each named network or run.

    Args:
        groups: Surfaces of each row by its name, for example "MNIST".
        scales: One scale in each "row", one for "all", or each surface on its "own".
        log: Heights and colours on a log scale.

    Raises:
        ValueError: There is no surface in a row, `scales` is none of the three, or nothing finite to draw.
    """
    if not groups or scales not in ("row", "all", "own"):
        raise ValueError(f"Rows need named groups of surfaces and scales row, all or own; got {len(groups)}, {scales}.")
    note_text = caption.limits([s for group in groups.values() for s in group])
    shown = {name: one_for_each(group) for name, group in groups.items()}
    every = scale.norm([scale.values(s) for group in shown.values() for s in group], log=log)
    with mpl.rc_context(STYLE):
        columns = max(2, *(len(group) for group in shown.values()))
        band = min((TWO_COLUMNS - LEFT - RIGHT) / columns * 1.02, 1.6) + 0.2
        sheet = _Sheet(columns, band * len(shown) + 0.05)
        for n, (name, group) in enumerate(shown.items()):
            arrays = [scale.values(s) for s in group]
            common = {"row": scale.norm(arrays, log=log), "all": every}.get(scales)
            norms = [common or scale.norm([a], log=log) for a in arrays]
            _row_of(sheet, name, group, n * band, norms, common)
        words = {"row": "One scale in each row.", "all": "One scale for all.", "own": "Each surface on its own scale."}
        note(sheet.fig, f"{note_text} {words[scales]}")
    return sheet.fig


def _row_of(
    sheet: _Sheet,
    name: str,
    group: Sequence["Surface"],
    top: float,
    norms: Sequence[Normalize],
    common: Normalize | None,
) -> None:
    """One named row of solids, with one colour bar where they share a scale."""
    _titles(sheet, [caption.title(s) for s in group], top + 0.06)
    height = _solid_band(sheet, group, norms, top + 0.2, heights=common is None)
    sheet.name(name, top + 0.2, height)
    if common is not None:
        sheet.bar(common, caption.loss_label(group[0]), top + 0.2, height)


def before_after(before: "Surface", after: "Surface", *, names: tuple[str, str] = ("as trained", "aligned")) -> Figure:
    """Two surfaces as contours on one colour scale: the solutions as trained and after aligning their branches.

    Raises:
        ValueError: A surface has no finite value.
    """
    pair = (before, after)
    norm = scale.norm([scale.values(s) for s in pair])
    fig, (axes,) = figure(TWO_COLUMNS, 3.4, columns=2)
    with mpl.rc_context(STYLE):
        for ax, surface, name in zip(axes, pair, names, strict=True):
            draw_contour(ax, surface, norm)
            a, b = caption.axis_labels(surface)
            high = "" if not np.isfinite(surface.risk).any() else f" (highest {np.nanmax(surface.risk):.3g})"
            ax.set(xlabel=a, ylabel=b, title=", ".join(filter(None, [name, caption.title(surface)])) + high)
        colour_bar(fig, axes, norm, caption.loss_label(before))
        note(fig, caption.limits(pair))
    return fig
