"""Theorem 2: primal, dual, Douglas–Rachford and gradient descent meet; the curve of MNIST against d_min."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from landscape.plots.style import COLOURS, STYLE, TWO_COLUMNS, figure
from landscape.plots.surface import note

Row = Mapping[str, Any]

SMALLEST = 1e-16
"""Relative gaps below are drawn here: they are rounding."""


def meeting(config: Mapping[str, Any], rows: Sequence[Row], images: Mapping[str, Any]) -> Figure:
    """Four panels: values against depth, gaps by iteration, excess of gradient descent by step, MNIST.

    Args:
        config: gammas, seeds, steps, tolerance.
        rows: One record for each γ and H.
        images: rows and examples, or why they are absent.
    """
    fig, axes = figure(TWO_COLUMNS, 5.4, rows=2, columns=2)
    with mpl.rc_context(STYLE):
        _values(axes[0, 0], rows)
        _brackets(axes[0, 1], rows)
        _descents(axes[1, 0], [row for row in rows if row["factor"] == rows[0]["factor"]])
        _images(axes[1, 1], images)
        inside = [f"{gamma:g}" for gamma in config["gammas"]]
        real = f"MNIST: {images['examples']:,} digits, H = 3. " if "rows" in images else ""
        note(
            fig,
            f"Random problem with 6 inputs, 5 outputs, 40 examples, d_min = 3; γ = {', '.join(inside)} times σ_min(Ỹ), "
            f"of which the theorem covers those below 1. Gradient descent: {config['seeds']} random starts, "
            f"{config['steps']:,} steps of Adam; lower left: median and range over starts at γ = {rows[0]['factor']:g} "
            f"σ_min. {real}Other data, optimisers and starts are not shown.",
        )
    return fig


def _by_factor(rows: Sequence[Row]) -> dict[float, list[Row]]:
    groups: dict[float, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["factor"], []).append(row)
    return groups


def _values(ax: Any, rows: Sequence[Row]) -> None:
    """The optimum by formula, dual, Douglas–Rachford and the best seed, at every depth; the zero start above."""
    for k, (factor, group) in enumerate(_by_factor(rows).items()):
        depths, colour = np.array([row["depth"] for row in group]), COLOURS[k % len(COLOURS)]
        name = (
            {}
            if k
            else {
                "formula": "formula",
                "dual": "dual (5), by DR",
                "primal": "primal (4), by DR",
                "descent": "descent, each start",
            }
        )
        ax.plot([1.6, depths.max() + 0.4], [group[0]["optimum"]] * 2, color=colour, lw=0.8, label=name.get("formula"))
        ax.plot(
            depths - 0.12, [row["dual"] for row in group], "^", ms=4, color=colour, mfc="none", label=name.get("dual")
        )
        ax.plot(depths, [row["primal"] for row in group], "v", ms=4, color=colour, label=name.get("primal"))
        for row in group:
            seen = {"label": name.get("descent")} if row is group[0] else {}
            ends = row["descent"]
            ax.plot([row["depth"] + 0.14] * len(ends), ends, "x", ms=3, color=colour, alpha=0.6, **seen)
        ax.annotate(
            f"γ = {factor:g} σ$_\\mathrm{{min}}$",
            (depths.max() + 0.42, group[0]["optimum"]),
            va="center",
            fontsize=6,
            color=colour,
        )
    zero = rows[0]["optimum"] * (1 + rows[0]["zero_excess"])
    ax.axhline(zero, color="#888888", ls=":", lw=1, label="zero start: stationary")
    ax.set(
        xlabel="depth $H$",
        ylabel="value",
        title="Four ways to one value",
        xlim=(1.5, max(r["depth"] for r in rows) + 1.6),
    )
    ax.set_ylim(0, 1.75 * zero)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xticks(sorted({row["depth"] for row in rows}))
    ax.legend(loc="upper left", fontsize=6, ncols=2)


def _brackets(ax: Any, rows: Sequence[Row]) -> None:
    """Certified relative gap of Douglas–Rachford by iteration, for every γ (any depth: it does not enter)."""
    for k, (factor, group) in enumerate(_by_factor(rows).items()):
        bracket = np.array(group[0]["bracket"])
        gap = np.maximum((bracket[:, 0] - bracket[:, 1]) / bracket[:, 0], SMALLEST)
        ax.semilogy(
            gap,
            "os^D"[k % 4] + "-",
            ms=max(7 - 2 * k, 3),
            mfc="none",
            color=COLOURS[k % len(COLOURS)],
            label=f"γ = {factor:g} σ$_\\mathrm{{min}}$",
        )
    ax.set(
        xlabel="iteration",
        ylabel="(primal − dual)/primal",
        title="Douglas–Rachford (DR): certified gap",
        ylim=(SMALLEST / 3, 3),
    )
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend()


def _descents(ax: Any, rows: Sequence[Row]) -> None:
    """Relative excess over the optimum along gradient descent, by depth."""
    for k, row in enumerate(rows):
        steps, (low, middle, high) = np.array(row["steps"]) + 1, np.maximum(row["curve"], SMALLEST)
        ax.loglog(steps, middle, color=COLOURS[k % len(COLOURS)], label=f"$H$ = {row['depth']}")
        ax.fill_between(steps, low, high, color=COLOURS[k % len(COLOURS)], alpha=0.15, lw=0)
    ax.axhline(rows[0]["zero_excess"], color="#888888", ls=":", lw=1)
    ax.annotate(
        "zero start",
        (1, rows[0]["zero_excess"]),
        xytext=(0, 2),
        textcoords="offset points",
        fontsize=6,
        color="#666666",
    )
    ax.set(
        xlabel="step",
        ylabel="excess over the optimum, relative",
        title="Gradient descent on (4)",
        ylim=(SMALLEST / 3, None),
    )
    ax.legend(loc="lower left")


def _images(ax: Any, images: Mapping[str, Any]) -> None:
    """Value per example against d_min: formula as line, certificates as markers."""
    ax.set(title="MNIST: reduced-rank regression", xlabel="$d_\\mathrm{min}$", ylabel="value per example")
    if "rows" not in images:
        ax.set(xticks=[], yticks=[])
        ax.text(
            0.5, 0.5, "not computed:\nthe MNIST files were not given", ha="center", va="center", transform=ax.transAxes
        )
        return
    for k, gamma in enumerate(dict.fromkeys(row["gamma"] for row in images["rows"])):
        group = [row for row in images["rows"] if row["gamma"] == gamma]
        d, colour = [row["d_min"] for row in group], COLOURS[k % len(COLOURS)]
        worst = max(abs(row["relative_gap"]) for row in group)
        ax.plot(d, [row["formula"] for row in group], color=colour, lw=0.9)
        ax.plot(
            d,
            [row["value"] for row in group],
            "os^"[k % 3],
            ms=3.5,
            color=colour,
            label=f"γ = {gamma:.3g}: gap ≤ {worst:.0e}",
        )
    ax.set_ylim(0, None)
    ax.legend(loc="lower left", fontsize=6)
