"""Colour and contour scales of surfaces: linear or log, common to several, levels at quantiles, non-finite masked."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.colors import LogNorm, Normalize

if TYPE_CHECKING:
    from landscape.surfaces import Surface

DECADES = 6
"""A log scale spans at most this many decades below the largest value; what is smaller is drawn at its lower end."""


def values(surface: "Surface", layer: str | None = None) -> np.ma.MaskedArray:
    """The drawn quantity [A, B]; values that are not finite are masked.

    Raises:
        ValueError: The surface has no such layer, or none of its values is finite.
    """
    if layer is not None and layer not in surface.layers:
        raise ValueError(f"No layer {layer!r} on this surface; it has {', '.join(surface.layers) or 'none'} and risk.")
    masked = np.ma.masked_invalid(np.asarray(surface.risk if layer is None else surface.layers[layer], float))
    if masked.count() == 0:
        raise ValueError(f"None of the {masked.size:,} values is finite, so nothing can be drawn.")
    return masked


def norm(arrays: Sequence[np.ma.MaskedArray], *, log: bool = False) -> Normalize:
    """The colour scale common to all arrays: their whole range, linear or log.

    A log scale starts at the smallest positive value, at most `DECADES` below the largest.

    Raises:
        ValueError: A log scale is wanted and no value is positive.
    """
    flat = np.concatenate([a.compressed() for a in arrays])
    low, high = float(flat.min()), float(flat.max())
    if not log:
        return Normalize(low, high if high > low else low + max(abs(low), 1.0) * 1e-6)
    if high <= 0:
        raise ValueError(f"A log scale needs positive values; the largest is {high:.3g}. Use the linear scale.")
    low = max(float(flat[flat > 0].min()), high * 10.0**-DECADES)
    return LogNorm(low, high if high > low else low * (1 + 1e-6))


def span(scale: Normalize) -> tuple[float, float]:
    """The ends of a scale.

    Raises:
        ValueError: The scale has none yet.
    """
    if scale.vmin is None or scale.vmax is None:
        raise ValueError("The colour scale has no ends; make it with `scale.norm`.")
    return float(scale.vmin), float(scale.vmax)


def clip(array: np.ma.MaskedArray, scale: Normalize) -> np.ma.MaskedArray:
    """Values held inside the scale, so that zeros on a log scale take its lowest colour instead of vanishing."""
    return np.ma.clip(array, *span(scale))


def levels(arrays: Sequence[np.ma.MaskedArray], scale: Normalize, count: int = 12) -> np.ndarray:
    """At most `count` increasing contour levels at equal quantiles of the finite values: detail where points are.

    >>> levels([np.ma.array([[0.0, 1.0], [2.0, 100.0]])], Normalize(0, 100), 3)
    array([ 0.75,  1.5 , 26.5 ])
    """
    flat = np.concatenate([clip(a, scale).compressed() for a in arrays])
    found = np.unique(np.quantile(flat, np.linspace(0, 1, count + 2)[1:-1]))
    return found[(found > flat.min()) & (found < flat.max())]


def bands(scale: Normalize) -> np.ndarray:
    """The 65 levels of the filled colours, equally spaced on the scale."""
    return np.asarray(scale.inverse(np.linspace(0, 1, 65)), float)
