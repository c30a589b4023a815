"""Theorem 1 in pictures: the gap against I with its bounds, frontiers with their envelopes, averaged epigraphs."""

from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from landscape.plots.style import COLOURS, STYLE, TWO_COLUMNS, figure
from landscape.plots.surface import note

LARGE = ("relu_l1", "chain3_decay", "mnist_l2")
"""The cases with a gap, one column each."""

BLUE, RED, GREEN, PINK, ORANGE, _, BLACK = COLOURS


def overview(stored: Any, titles: Mapping[str, str], measures: Mapping[str, Any]) -> Figure:
    """Gaps above, frontiers in the middle, epigraphs, the trivial case and what is not Theorem 1 below.

    Args:
        stored: The xarray data set of theorem1.nc.
        titles: Case -> title.
        measures: The content of measures.json.
    """
    fig, axes = figure(TWO_COLUMNS, 7.4, rows=3, columns=3)
    with mpl.rc_context(STYLE):
        present = set(stored["case"].values.tolist())
        for column, name in enumerate(LARGE):
            if name in present:
                gap_panel(axes[0, column], stored.sel(case=name), titles[name])
                frontier_panel(axes[1, column], stored.sel(case=name))
            else:
                _absent(axes[0, column], titles[name])
                axes[1, column].set_axis_off()
        epigraph_panel(axes[2, 0], stored)
        gap_panel(axes[2, 1], stored.sel(case="relu_decay"), titles["relu_decay"])
        if "hinge_gap" in stored or "estimate_gap" in stored:
            other_panel(axes[2, 2], stored)
        else:
            axes[2, 2].set_axis_off()
        axes[0, 0].set_ylabel("duality gap (loss)")
        axes[1, 0].set_ylabel("least loss v(r)")
        axes[2, 0].set_ylabel("loss")
        note(fig, caption(stored, measures), columns=TWO_COLUMNS)
    return fig


def caption(stored: Any, measures: Mapping[str, Any]) -> str:
    """What is certified, what is not, and what the picture leaves out."""
    settings = measures["protocol"]
    return (
        f"τ = {settings['tau']:g}, K = {settings['share']:.4g} of the largest h; identical branches, one K. Dots: "
        "certified intervals [lo, hi], narrower than the dots; triangles: the interval reaches down to 0 and only its "
        "upper end is drawn. The gap is 0 whenever I times K's share is a whole number, so the dots swing below the "
        "bounds. Weight decay on two layers: f and h have the same degree, v is straight, the gap is 0 for every I "
        "although Δ > 0. Crosses are estimates, squares belong to the true hinge, where Assumption 1 fails: neither is "
        "Theorem 1's certified gap. Not shown: other K, larger branches with certificates."
    )


def gap_panel(ax: Axes, case: Any, title: str) -> None:
    """The certified gap against I on logarithmic axes, with the paper's bound and the sharp one."""
    branches, (low, high) = case["branches"].values, case["gap"].values.T
    delta = float(case["delta"].values[1])
    ax.plot(branches, 2 * delta / branches, "--", color=BLACK, lw=0.9, label="paper: 2Δ/I")
    ax.plot(branches, delta / branches, "-", color=RED, lw=0.9, label="sharp: Δ/I")
    known = low > 0
    if known.any():
        ax.vlines(branches[known], low[known], high[known], color=BLUE, lw=1.5)
        middle = np.sqrt(low[known] * high[known])
        ax.plot(branches[known], middle, "o-", color=BLUE, ms=3, lw=0.6, label="gap, certified")
    if (~known).any():
        bound = np.maximum(high[~known], 1e-16)
        ax.plot(branches[~known], bound, "v", color=BLUE, ms=3.5, label="gap ∈ [0, here]")
    ax.set(xscale="log", yscale="log", xlabel="branches I")
    ax.set_title(_two_lines(title))
    ax.legend(loc="lower left", handlelength=1.6)
    if not known.any():
        ax.set_ylim(bottom=max(1e-9, float(np.min(high[~known])) / 300))


def frontier_panel(ax: Axes, case: Any) -> None:
    """v with its certified band, its convex envelope and K."""
    r = case["frontier_budget"].values
    ax.fill_between(r, case["frontier_lower"].values, case["frontier_upper"].values, color=BLUE, alpha=0.3, lw=0)
    ax.plot(r, case["frontier_values"].values, color=BLUE, label="frontier v")
    ax.plot(r, case["frontier_envelope"].values, "--", color=RED, label="envelope v**")
    ax.axvline(float(case["K"]), color="#777777", lw=0.8, ls=":")
    ax.annotate(" K", (float(case["K"]), 1), xycoords=("data", "axes fraction"), va="top", color="#555555", fontsize=7)
    ax.set_xlabel("budget r, h(w) ≤ r")
    ax.legend(loc="lower left")


def epigraph_panel(ax: Axes, stored: Any) -> None:
    """Lower edges of the Minkowski averages of I augmented epigraphs, which sink to the convex hull."""
    r = stored["epigraph_budget"].values
    ax.fill_between(r, stored["epigraph_edge"].values[0], 1.06, color=BLUE, alpha=0.12, lw=0)
    for copies, edge, colour in zip(
        stored["copies"].values, stored["epigraph_edge"].values, (BLUE, GREEN, ORANGE, PINK), strict=False
    ):
        ax.plot(r, edge, color=colour, label=f"I = {copies}")
    ax.plot(r, stored["epigraph_hull"].values, "--", color=BLACK, lw=0.9, label="convex hull")
    ax.set(xlabel="mean of h", ylim=(None, 1.06))
    ax.set_title("Lower edge of the average of\nI augmented epigraphs, first case")
    ax.legend(loc="lower left")


def other_panel(ax: Axes, stored: Any) -> None:
    """What is measured beside the theorem: the true hinge, and an estimate for a larger branch."""
    if "hinge_gap" in stored:
        low, high = stored["hinge_gap"].values.T
        branches = stored["hinge_branches"].values
        shown = np.maximum((low + high) / 2, 1e-16)
        ax.plot(branches, shown, "s-", color=GREEN, ms=3.5, lw=0.6, label="true hinge, $P_I - D_{conv}$")
    if "estimate_gap" in stored:
        values = stored["estimate_gap"].values
        seen = values > 0
        label = "22 parameters: estimate"
        ax.plot(stored["branches"].values[seen], values[seen], "x", color=PINK, ms=4, label=label)
    ax.set(xscale="log", yscale="log", xlabel="branches I")
    ax.set_title("Beside Theorem 1: another\nquantity, and an estimate")
    ax.set_ylim(top=30 * ax.get_ylim()[1])
    ax.legend(loc="upper right", fontsize=6.5, handlelength=1.2)


def _absent(ax: Axes, title: str) -> None:
    ax.set_title(_two_lines(title))
    text = "data not found:\ngive --data-root,\nor set LANDSCAPE_DATA"
    ax.text(0.5, 0.5, text, transform=ax.transAxes, ha="center", va="center", color="#555555")
    ax.set_xticks([])
    ax.set_yticks([])


def _two_lines(title: str) -> str:
    """The title cut at its first comma."""
    return title.replace(", ", "\n", 1)
