"""Curvature: the principal curvatures inside a plane with the reason where they are not shown, spectra of Hessians."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.colors import SymLogNorm
from matplotlib.figure import Figure

from landscape.plots import caption
from landscape.plots.style import COLOURS, ONE_COLUMN, STYLE, TWO_COLUMNS, figure
from landscape.plots.surface import MISSING, mark_solutions, note, proportions

if TYPE_CHECKING:
    from landscape.surfaces import Surface

DIVERGING = "PuOr"
"""Reversed: orange for positive, purple for negative curvature; safe with every common colour blindness."""


def curvatures(surface: "Surface") -> Figure:
    """The slope, and the smaller and the larger principal curvature of the loss inside the plane.

    Where the surface says why curvature is not shown, that sentence stands in its place.

    Args:
        surface: With the layers of `curvature.Curvature.layers`.

    Raises:
        ValueError: It has no such layers.
    """
    missing = {"slope_a", "slope_b"} - set(surface.layers)
    if missing:
        raise ValueError("The surface has no slopes and curvatures; run `landscape explore --curvature`.")
    fig, ((left, middle, right),) = figure(TWO_COLUMNS, 2.5, columns=3)
    with mpl.rc_context(STYLE):
        slope = np.hypot(surface.layers["slope_a"], surface.layers["slope_b"])
        _map(fig, left, surface, slope, "steepness", "cividis", None)
        reason = str(surface.metadata.get("curvature", ""))
        if "curvature_min" in surface.layers:
            pair = [surface.layers[f"curvature_{end}"] for end in ("min", "max")]
            size = float(np.abs(pair)[np.isfinite(pair)].max(initial=0.0))
            norm = SymLogNorm(max(size * 1e-2, 1e-12), vmin=-size, vmax=size)
            _map(fig, middle, surface, pair[0], "smaller curvature", DIVERGING + "_r", norm, "²")
            _map(fig, right, surface, pair[1], "larger curvature", DIVERGING + "_r", norm, "²")
        else:
            middle.text(0, 0.5, reason, wrap=True, va="center", fontsize=7, transform=middle.transAxes)
            middle.set_axis_off()
            right.set_axis_off()
        note(fig, f"Exact derivatives in the coordinates of the plane. {caption.limits([surface])}")
    return fig


def _map(
    fig: Figure, ax: Any, surface: "Surface", values: np.ndarray, title: str, colours: str, norm: Any, power: str = ""
) -> None:
    grid = surface.grid
    ax.set_facecolor(MISSING)
    shown = np.ma.masked_invalid(values).T
    mesh = ax.pcolormesh(grid.a, grid.b, shown, cmap=colours, norm=norm, shading="nearest", rasterized=True)
    mark_solutions(ax, surface, small=True)
    a, b = caption.axis_labels(surface)
    ax.set(title=title, xlabel=a, ylabel=b, xlim=(grid.a[0], grid.a[-1]), ylim=(grid.b[0], grid.b[-1]))
    proportions(ax, surface)
    bar = fig.colorbar(mesh, ax=ax, fraction=0.046, pad=0.03)
    bar.set_label(f"loss / {'distance' if caption.isometric(surface) else 'coordinate'}{power}", fontsize=6.5)
    if norm is not None:
        size = float(norm.vmax)
        bar.set_ticks(
            [-size, -size / 10, 0, size / 10, size],
            labels=[f"{sign * size:.2g}" if sign else "0" for sign in (-1, -0.1, 0, 0.1, 1)],
        )
        bar.minorticks_off()


def density(curves: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Figure:
    """The spectral density of the Hessian at each solution, on a logarithmic scale.

    Args:
        curves: By name of the solution, eigenvalues and density, as `spectrum.Density.smooth` returns them.

    Raises:
        ValueError: There is no curve.
    """
    if not curves:
        raise ValueError("A spectrum needs at least one solution; none came.")
    fig, ((ax,),) = figure(ONE_COLUMN, 2.4)
    with mpl.rc_context(STYLE):
        top = max(float(y.max()) for _, y in curves.values())
        for colour, (name, (x, y)) in zip(COLOURS * len(curves), curves.items(), strict=False):
            ax.plot(x, np.maximum(y, top * 1e-6), color=colour, label=name)
        ax.set(xlabel="eigenvalue of the Hessian", ylabel="density", yscale="log", ylim=(top * 1e-6, 2 * top))
        ax.axvline(0, color="#888888", linewidth=0.5)
        ax.legend(loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2, ncols=3)
        text = "Stochastic Lanczos quadrature, smoothed over one per cent of the range; only at the solutions."
        note(fig, text, columns=ONE_COLUMN)
    return fig
