"""Curves over a plane: the edges between solutions with their barriers, and trajectories with what the plane hides."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from landscape.convexity import barrier
from landscape.plots import caption, scale
from landscape.plots.style import ONE_COLUMN, STYLE, TWO_COLUMNS, figure
from landscape.plots.surface import colour_bar, colours, draw_contour, draw_paths, note

if TYPE_CHECKING:
    from landscape.surfaces import Surface


def edges(profiles: Mapping[str, np.ndarray], *, label: str = "loss") -> Figure:
    """The loss along the lines between solutions, each with its barrier over the straight interpolation.

    Args:
        profiles: By name of the edge (for example "1 – 2"), the losses [T] at equal steps from end to end.
        label: What is drawn, with its unit.

    Raises:
        ValueError: There is no profile, or one has fewer than two points.
    """
    if not profiles or min(len(p) for p in profiles.values()) < 2:
        raise ValueError("Edges need at least one profile of two or more losses.")
    fig, ((ax,),) = figure(ONE_COLUMN, 2.4)
    with mpl.rc_context(STYLE):
        for colour, (name, losses) in zip(colours(len(profiles)), profiles.items(), strict=True):
            t = np.linspace(0, 1, len(losses))
            straight = losses[0] + t * (losses[-1] - losses[0])
            ax.plot(t, losses, color=colour, label=f"{name}: barrier {barrier(losses):.3g}")
            ax.plot(t[[0, -1]], straight[[0, -1]], color=colour, linewidth=0.6, linestyle=":")
        ax.set(xlabel="position between the two solutions", ylabel=label, xlim=(0, 1))
        ax.legend(loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2, ncols=min(len(profiles), 2), fontsize=6)
        note(fig, "Straight lines between solutions: curved paths may have no barrier.", columns=ONE_COLUMN)
    return fig


def trajectory(surface: "Surface", paths: Mapping[str, np.ndarray], *, log: bool = False) -> Figure:
    """Optimisers' paths projected onto the plane, and beside it how far from the plane they really are.

    Args:
        surface: The surface below the paths.
        paths: By name, [T, 3]: a, b and the distance out of the plane at each recorded step.
        log: Colours on a log scale.

    Raises:
        ValueError: There is no path or one is not [T, 3].
    """
    wrong = [f"{name} {np.shape(path)}" for name, path in paths.items() if np.ndim(path) != 2 or np.shape(path)[1] != 3]
    if wrong or not paths:
        raise ValueError(f"Paths are arrays [T, 3] of a, b and the distance out of the plane; got {wrong or 'none'}.")
    norm = scale.norm([scale.values(surface)], log=log)
    fig, ((plane, away),) = figure(TWO_COLUMNS, 2.9, columns=2, width_ratios=(1.25, 1))
    with mpl.rc_context(STYLE):
        draw_contour(plane, surface, norm)
        a, b = caption.axis_labels(surface)
        plane.set(xlabel=a, ylabel=b)
        draw_paths(plane, paths)
        colour_bar(fig, plane, norm, caption.loss_label(surface))
        for colour, (name, path) in zip(colours(len(paths)), paths.items(), strict=True):
            away.plot(np.linspace(0, 1, len(path)), path[:, 2], color=colour, label=name)
        away.set(xlabel="part of the path", ylabel="distance out of the plane", xlim=(0, 1))
        away.set_ylim(bottom=0)
        text = "The loss under a point of the path is that of its projection, not of the weights themselves."
        note(fig, f"{caption.limits([surface])} {text}")
    return fig
