"""The look of every figure: sizes for one or two printed columns, real text in PDF, maps that survive greyscale."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
from cycler import cycler
from matplotlib.figure import Figure

from landscape.files import atomic

ONE_COLUMN, TWO_COLUMNS = 3.4, 7.0
"""Widths in inches of a figure in one and in two columns of print."""

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette, distinguishable with every common colour blindness."""

SURFACE_MAP = "cividis"
"""Perceptually uniform, monotone in lightness."""

STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "lines.linewidth": 1.2,
    "grid.linewidth": 0.3,
    "grid.color": "#cccccc",
    "axes.prop_cycle": cycler(color=COLOURS),
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
    "savefig.dpi": 200,
}


def figure(width: float = TWO_COLUMNS, height: float = 2.4, *, rows: int = 1, columns: int = 1, **axes: Any) -> tuple:
    """A figure of width x height inches with rows x columns axes (a 2-D array of them), laid out without overlaps.

    Built without pyplot, hence without global state; `axes` goes to `Figure.subplots`.
    """
    with mpl.rc_context(STYLE):
        fig = Figure(figsize=(width, height), layout="constrained")
        return fig, fig.subplots(rows, columns, squeeze=False, **axes)


def save(fig: Figure, path: str | Path) -> None:
    """Write a figure, whole or not at all: as PNG (200 dpi) or PDF (real text) by its suffix, as both without one."""
    path = Path(path)
    with mpl.rc_context(STYLE):
        for file in (path,) if path.suffix else (path.with_suffix(".png"), path.with_suffix(".pdf")):
            atomic.write_atomic(file, lambda pending: fig.savefig(pending, dpi=200))
