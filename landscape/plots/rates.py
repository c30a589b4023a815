"""Hitting rates against width (Table 1): measured with intervals beside the paper's, and how they vary."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from landscape.plots.style import COLOURS, STYLE, TWO_COLUMNS, figure
from landscape.plots.surface import note


def hitting(
    measured: Mapping[str, Sequence[float]],
    printed: Mapping[int, float],
    *,
    others: Mapping[str, Mapping[str, Sequence[float]]] | None = None,
    caption: str = "",
) -> Figure:
    """The share of networks that hit the global minimum, against their width.

    Args:
        measured: `width`, `rate`, `low` and `high` (of the 95 % interval), as sequences of equal length.
        printed: The paper's rates by width.
        others: The same records under other protocols and teachers, by name; drawn in panels of their own.
        caption: The protocol, in words.

    Raises:
        ValueError: There is no width, or the sequences have different lengths.
    """
    for record in (measured, *(others or {}).values()):
        lengths = {len(record[key]) for key in ("width", "rate", "low", "high")}
        if len(lengths) != 1 or 0 in lengths:
            raise ValueError(f"Rates need width, rate, low and high of one length, at least 1; got lengths {lengths}.")
    groups: dict[str, dict[str, Any]] = {}
    for name, record in (others or {}).items():
        groups.setdefault(name.split(" ")[0], {})[name] = record
    fig, axes = figure(TWO_COLUMNS if groups else 4.2, 3.1, columns=1 + len(groups), sharey=True)
    with mpl.rc_context(STYLE):
        _curve(axes[0, 0], measured, "measured", 0)
        if printed:
            axes[0, 0].plot(list(printed), list(printed.values()), "s--", color=COLOURS[1], ms=3.5, label="printed")
        for ax, (name, records) in zip(axes[0, 1:], groups.items(), strict=True):
            for k, (label, record) in enumerate(records.items()):
                _curve(ax, record, label if name == "teacher" else label.removeprefix(f"{name} "), k)
            _legend(ax, f"other {name}s")
        for ax in axes.flat:
            ax.set(xlabel="hidden units", ylim=(-0.02, 1.02))
            ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        _legend(axes[0, 0], None)
        axes[0, 0].set_ylabel("share that hit the global minimum")
        note(fig, caption, columns=fig.get_figwidth())
    return fig


def _legend(ax: Any, title: str | None) -> None:
    """The names of the curves above the panel, where they cover none."""
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2, fontsize=5.5, title=title, title_fontsize=7)


def _curve(ax: Any, record: Mapping[str, Sequence[float]], label: str, k: int) -> None:
    """The k-th curve of a panel, moved a little to the right so that the intervals do not cover each other."""
    where, colour = [width + 0.12 * k for width in record["width"]], COLOURS[k % len(COLOURS)]
    ax.plot(where, record["rate"], "osD^v<>"[k % 7] + "-", color=colour, markersize=3.5, label=label)
    ax.vlines(where, record["low"], record["high"], color=colour, alpha=0.4, linewidth=2)
