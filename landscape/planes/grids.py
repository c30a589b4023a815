"""Grids of coordinates on a plane."""

from typing import NamedTuple

import numpy as np

from landscape.planes import Plane

MOST_POINTS = 4_000_000


class Grid(NamedTuple):
    """Coordinates a [A] and b [B] of the points (a_i, b_j); any increasing arrays.

    >>> Grid(np.linspace(-1, 1, 5), np.array([0.0, 1.0]))
    Grid(5 x 2 points, a from -1 to 1, b from 0 to 1)
    """

    a: np.ndarray
    b: np.ndarray

    def __repr__(self) -> str:
        spans = [f"{name} from {x[0]:.4g} to {x[-1]:.4g}" for name, x in zip("ab", self, strict=True)]
        return f"Grid({len(self.a)} x {len(self.b)} points, {', '.join(spans)})"


def grid_around(plane: Plane, points: int | tuple[int, int] = 51, margin: float = 0.3) -> Grid:
    """The rectangle around the plane's anchors, wider on every side by `margin` times its own width and height.

    A plane with fewer than two anchors gets [−1, 1] around its origin, widened in the same way.

    Args:
        plane: The plane.
        points: Points along each axis, or (A, B).
        margin: Share of the rectangle's width (height) added left and right (below and above).

    Raises:
        ValueError: Fewer than two points along an axis, or a negative margin.

    >>> plane = Plane(None, None, None, np.array([[0.0, 0.0], [2.0, 0.0], [1.0, 1.0]]))
    >>> grid_around(plane, (5, 3), margin=0.5).b.tolist()
    [-0.5, 0.5, 1.5]
    """
    counts = (points, points) if isinstance(points, int) else tuple(points)
    if len(counts) != 2 or min(counts) < 2:
        raise ValueError(f"A grid needs at least 2 points along each axis; got points={points}.")
    if not 0 <= margin < np.inf:
        raise ValueError(f"margin must be a share of the extent, at least 0; got {margin}.")
    anchors = plane.anchors if len(plane.anchors) > 1 else np.array([[-1.0, -1.0], [1.0, 1.0]])
    low, high = anchors.min(0), anchors.max(0)
    room = margin * np.where(high > low, high - low, np.max(high - low))
    return Grid(*(np.linspace(lo, hi, n) for lo, hi, n in zip(low - room, high + room, counts, strict=True)))


def checked(grid: Grid) -> Grid:
    """The grid as float64 arrays.

    Raises:
        ValueError: An axis that is not one-dimensional, finite and strictly increasing, or too many points.
    """
    a, b = (np.asarray(x, np.float64) for x in grid)
    for name, x in (("a", a), ("b", b)):
        if x.ndim != 1 or len(x) < 2 or not np.isfinite(x).all() or not (np.diff(x) > 0).all():
            raise ValueError(
                f"Grid axis {name} must be at least 2 finite, strictly increasing numbers; got {_shown(x)}."
            )
    if len(a) * len(b) > MOST_POINTS:
        raise ValueError(f"A grid may have {MOST_POINTS:,} points; this one has {len(a):,} x {len(b):,}.")
    return Grid(a, b)


def _shown(x: np.ndarray) -> str:
    return f"shape {x.shape}" if x.ndim != 1 or len(x) > 6 else str(x.tolist())
