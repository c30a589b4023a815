"""Numbers for "less non-convex" against the number of branches: mean, interval and every single triple."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from landscape.plots import summary
from landscape.plots.style import COLOURS, STYLE, TWO_COLUMNS, figure
from landscape.plots.surface import note


def trend(
    measures: Sequence[Mapping[str, Any]] | Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    keys: Sequence[str] | None = None,
    against: str = "branches",
) -> Figure:
    """Each measure of non-convexity against I: every triple as a dot, their mean, and its 95 % bootstrap interval.

    Args:
        measures: One record for each surface: `branches`, `triple`, and numbers by name; or several such lists by
            name (for example "as trained" and "aligned"), drawn in different colours.
        keys: Which measures to draw; by default those of `summary.SHOWN` that the records hold.
        against: The key on the horizontal axis.

    Raises:
        ValueError: There is no record, one lacks `against`, or there is no measure to draw.
    """
    groups = {"": list(measures)} if not isinstance(measures, Mapping) else {k: list(v) for k, v in measures.items()}
    records = [r for group in groups.values() for r in group]
    if any(against not in r for r in records):
        raise ValueError(f"Every record needs {against!r} for the horizontal axis; one has only {sorted(records[0])}.")
    keys = list(keys) if keys is not None else summary.keys_of(records)
    if not keys:
        raise ValueError("A trend needs at least one record with at least one measure; none came.")
    columns = min(len(keys), 4)
    lines = -(-len(keys) // columns)
    fig, axes = figure(TWO_COLUMNS * min(1.0, 0.26 * columns + 0.05), 1.75 * lines + 0.35, rows=lines, columns=columns)
    with mpl.rc_context(STYLE):
        for ax, key in zip(axes.flat, keys, strict=False):
            draw_trend(ax, groups, key, against)
        spare = axes.flat[len(keys) :]
        for ax in spare:
            ax.set_axis_off()
        if len(groups) > 1:
            where = (spare[0], "center left") if len(spare) else (axes.flat[0], "best")
            where[0].legend(*axes.flat[0].get_legend_handles_labels(), loc=where[1])
        note(fig, spread(list(groups.values()), against), columns=fig.get_figwidth())
    return fig


def draw_trend(ax: Any, groups: Mapping[str, Sequence[Mapping[str, Any]]], key: str, against: str) -> None:
    """One measure: dots, mean, interval; log axes where the values span them, from zero otherwise."""
    for colour, (name, records) in zip(COLOURS * len(groups), groups.items(), strict=False):
        where = sorted({r[against] for r in records})
        samples = [summary.finite([r for r in records if r[against] == x], key) for x in where]
        means, lows, highs = np.array([summary.interval(s) for s in samples]).T
        for x, sample in zip(where, samples, strict=True):
            ax.plot([x] * len(sample), sample, ".", color=colour, alpha=0.35, markersize=3, markeredgewidth=0)
        ax.plot(where, means, "o-", color=colour, markersize=3, label=name or None)
        ax.fill_between(where, lows, highs, color=colour, alpha=0.2, linewidth=0)
    _axes(ax, sorted({r[against] for g in groups.values() for r in g}))
    ax.set_xlabel("branches I" if against == "branches" else against)
    ax.set_title("\n".join(textwrap.wrap(summary.name(key), 26)), fontsize=6.5)


def _axes(ax: Any, where: Sequence[float]) -> None:
    if min(where) > 0 and max(where) / min(where) >= 8:
        ax.set_xscale("log")
    ticks = [where[n] for n in sorted({round(k) for k in np.linspace(0, len(where) - 1, min(len(where), 5))})]
    ax.set_xticks(ticks, [f"{t:,}" for t in ticks])
    ax.xaxis.set_minor_locator(NullLocator())
    low, high = ax.get_ylim()
    if low >= 0 or min(float(v) for line in ax.lines for v in line.get_ydata()) >= 0:
        ax.set_ylim(0, (high if high > 0 else 1.0) * 1.02)
    ax.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))


def spread(groups: Sequence[Sequence[Mapping[str, Any]]], against: str = "branches") -> str:
    """The legend of dots, line and band in words, with the number of triples."""
    counts = {sum(r[against] == x for r in group) for group in groups for x in {r[against] for r in group}}
    if counts == {1}:
        return "One triple of solutions for each I: no spread can be given. Other planes and extents are not shown."
    many = f"{min(counts)}" if len(counts) == 1 else f"{min(counts)} to {max(counts)}"
    return (
        f"Dots: single surfaces ({many} for each I). Line: mean; band: 95 % bootstrap interval of the mean "
        "over triples of solutions. Other planes and extents are not shown."
    )
