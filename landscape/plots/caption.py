"""Captions: the plane, the extent and the number of seeds of a picture, and hence its limits."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from landscape.plots import summary

if TYPE_CHECKING:
    from landscape.surfaces import Surface

ISOMETRIC = ("orthonormal", "aligned", "trajectory_pca", "pca", "top_hessian", "hessian", "gradient_curvature")
"""Kinds of plane whose axes are orthonormal, so that a distance in the picture is a distance between weights."""


def isometric(surface: "Surface") -> bool:
    """Whether a distance on the plane is the distance between two weight vectors (axes orthonormal)."""
    return str(surface.metadata.get("plane", "")) in ISOMETRIC


def axis_labels(surface: "Surface") -> tuple[str, str]:
    """Names of the two axes: distances on orthonormal planes, coordinates otherwise."""
    unit = " (distance)" if isometric(surface) else " (coordinate)"
    return f"a{unit}", f"b{unit}"


def loss_label(surface: "Surface", layer: str | None = None) -> str:
    """Name of the drawn quantity with its unit: "loss (hinge units)", or the name of a layer."""
    metadata: Mapping[str, Any] = surface.metadata
    if layer is not None:
        return layer
    name = str(metadata.get("loss", "loss")).replace("_", " ").replace("<lambda>", "loss")
    name = name if "loss" in name else f"{name} loss"
    unit = metadata.get("units")
    return f"{name} ({unit})" if unit and str(unit) not in name else name


def title(surface: "Surface") -> str:
    """Short name of a surface in a row: its number of branches, the name of somebody's one network, or nothing."""
    branches = surface.metadata.get("branches")
    if branches == 1 and surface.metadata.get("network"):
        return str(surface.metadata["network"])
    return "" if branches is None else f"$I$ = {int(branches):,}"


def missing(values: np.ndarray) -> str:
    """A sentence on the points that are not finite; empty if there are none."""
    count = int(np.count_nonzero(~np.isfinite(values)))
    return f"{count:,} of {values.size:,} points are not finite (masked)." if count else ""


def _range(values: Sequence[np.ndarray]) -> str:
    low, high = (f(v) for f, v in ((min, [x[0] for x in values]), (max, [x[-1] for x in values])))
    return f"{float(low):.3g} … {float(high):.3g}".replace("-", "−")


def _planes(surfaces: Sequence["Surface"]) -> str:
    kinds = sorted({summary.kind(s.metadata) for s in surfaces} - {""})
    kind = f"{' or '.join(kinds)} plane" if kinds else "plane"
    through = " through three solutions" if all(len(s.anchors) == 3 for s in surfaces) else ""
    each = "One" if len(surfaces) == 1 else "For each network one"
    return f"{each} {kind}{through}"


def limits(surfaces: Sequence["Surface"]) -> str:
    """What the picture does not show: one plane, this extent, this many seeds.

    Raises:
        ValueError: There is no surface.
    """
    if not surfaces:
        raise ValueError("A caption needs at least one surface; none came.")
    extent = f"a {_range([s.grid.a for s in surfaces])}, b {_range([s.grid.b for s in surfaces])}"
    shapes = {s.risk.shape for s in surfaces}
    chosen = {str(s.metadata["extent"]) for s in surfaces if "extent" in s.metadata}
    extent += f" ({chosen.pop()})" if len(chosen) == 1 else ""
    points = f", {'{} x {}'.format(*shapes.pop())} points" if len(shapes) == 1 else ""
    solutions = max(len(s.anchors) for s in surfaces)
    seeds = f"{solutions} seeds{' each' * (len(surfaces) > 1)}" if solutions > 1 else "one set of weights"
    gaps = missing(np.concatenate([np.ravel(s.risk) for s in surfaces]))
    text = (
        f"{_planes(surfaces)}, {extent}{points}, {seeds}: other planes, a wider extent and other seeds are not shown."
    )
    return " ".join(filter(None, [text, sampling(surfaces), gaps]))


def sampling(surfaces: Sequence["Surface"]) -> str:
    """A sentence on the standard errors of the loss; empty unless all surfaces carry them."""
    if any(s.standard_error is None or not np.isfinite(s.standard_error).any() for s in surfaces):
        return ""
    level = max(float(np.nanmax(np.asarray(s.standard_error))) for s in surfaces)
    counts = {s.metadata.get("examples") for s in surfaces}
    of = {s.metadata.get("examples_available") for s in surfaces} - {None}
    some = f"{counts.pop():,}" if len(counts) == 1 and None not in counts else "the"
    whole = f" of {of.pop():,}" if len(of) == 1 else ""
    away = [np.asarray(s.difference_error) for s in surfaces if s.difference_error is not None]
    apart = max((float(np.nanmax(x)) for x in away if np.isfinite(x).any()), default=0.0)
    first = f", of differences to the first solution {apart:.2g}" if any(len(s.anchors) for s in surfaces) else ""
    return f"Standard error from {some}{whole} examples: at most {level:.2g}{first} (loss units)."
