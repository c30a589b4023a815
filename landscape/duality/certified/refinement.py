"""Branch and bound over cells of W, breadth first: the loop, and how cells are cut."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from landscape.duality.branches import Domain
from landscape.duality.certified.intervals import Enclosure

Corners = tuple[np.ndarray, np.ndarray]
"""Lower and upper corners of cells, [C, p] each."""


class Round(NamedTuple):
    """What a search knows after one round.

    Attributes:
        children: Number of cells of the next round; 0 ends the search.
        cut: Makes them.
        left: The bounds on the open cells; the search returns them if it gives up now.
        stop: Whether to give up now, however few cells are open.
    """

    children: int
    cut: Callable[[], Corners]
    left: Any
    stop: bool = False


def refine(lo: np.ndarray, hi: np.ndarray, limit: int, examine: Callable[[np.ndarray, np.ndarray], Round]) -> Any:
    """Examine cells and cut those that stay open, until none does.

    Args:
        lo: Lower corner of the first cell, [p].
        hi: Upper corner, [p].
        limit: Cells examined before the search gives up.
        examine: Maps all cells of a round (lo, hi) to its `Round`.

    Returns:
        None if every cell was closed, otherwise `left` of the last round.
    """
    cells, examined = (lo[None], hi[None]), 0
    while True:
        examined += len(cells[0])
        found = examine(*cells)
        if not found.children:
            return None
        if found.stop or examined + found.children > limit:
            return found.left
        cells = found.cut()


def halving(
    lo: np.ndarray, hi: np.ndarray, still: np.ndarray, found: Enclosure, domain: Domain, left: Any, stop: bool = False
) -> Round:
    """The round in which the cells `still` are cut across the side whose slope is least known.

    Args:
        lo: Lower corners of all cells, [C, p].
        hi: Upper corners.
        still: Indices of the open cells.
        found: Bounds of the slopes on all cells.
        domain: W.
        left: As for `Round`.
        stop: As for `Round`.
    """
    return Round(2 * len(still), lambda: _halved(lo[still], hi[still], chosen(found, still), domain), left, stop)


def chosen(cells: Any, rows: np.ndarray) -> Any:
    """Some rows of every array in a tree."""
    return jax.tree.map(lambda v: v[rows], cells)


def _halved(lo: np.ndarray, hi: np.ndarray, found: Enclosure, domain: Domain) -> Corners:
    """Cells cut across the side whose slope is least known."""
    half = (hi - lo) / 2
    shape = relative(half, domain)
    known = np.isfinite(found.slope_lo) & np.isfinite(found.slope_hi)
    low, high = (np.where(known, slope, 0.0) for slope in (found.slope_lo, found.slope_hi))
    score = np.where(known, half * (high - low), 1.0) + 1e-6 * shape
    return halved_across(lo, hi, np.where(slivers(shape, 8), -1.0, score))


def relative(lengths: np.ndarray, domain: Domain) -> np.ndarray:
    """Lengths [C, p] in units of the sides of W."""
    return lengths / np.maximum(domain.hi - domain.lo, 1e-300)


def slivers(shape: np.ndarray, longest: float) -> np.ndarray:
    """Sides that would make a cell a sliver: those `longest` times shorter than the cell's longest side, [C, p]."""
    return shape * longest < shape.max(1, keepdims=True)


def halved_across(lo: np.ndarray, hi: np.ndarray, score: np.ndarray) -> Corners:
    """Cells halved across their side of largest score [C, p]; first all lower halves, then all upper ones."""
    side, rows = np.argmax(score, 1), np.arange(len(lo))
    middle = (lo + hi)[rows, side] / 2
    below, above = hi.copy(), lo.copy()
    below[rows, side] = above[rows, side] = middle
    return np.concatenate([lo, above]), np.concatenate([below, hi])
