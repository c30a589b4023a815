"""How far the convex hull of an averaged l_p ball is from the ball, by branch and bound with certified ends.

Everything in the first orthant, scaled by the number I of copies: the sum Σ A of I copies of A = {x ≥ 0 : Σ x_i^p ≤ 1}
and the face {y ≥ 0 : Σ y_i = I} of its hull.

The sum is down-closed, and at a maximal point of it no two summands share two nonzero coordinates: moving δ from one
to the other within the shared coordinates leaves the sum and, since Σ x_i^p is strictly concave, makes room in one.
So maximal points are lattice points (sums of vertices e_i) plus one *piece*: a point of the full surface Σ x_i^p = 1,
or points of arcs in different coordinate planes. The distance from y to the sum is then the least ‖(y − q)₊‖ over those
points q; it grows with y, so the Hausdorff distance is attained on the face, where it is 1-Lipschitz.

R(I) = I·ρ(I) does not increase for I ≥ dimension − 1 (the face of side I + 1 is covered by unit translates of the face
of side I, and the sum contains the same translates), and is never below R(∞), the same distance with every integer
translate of the pieces allowed.
"""

from functools import partial
from itertools import combinations, product
from typing import NamedTuple

import numpy as np

from landscape.arrays.chunked import chunked_map

POINTS_AT_A_TIME = 64
"""Points of the face whose distances are computed together; it bounds the memory."""

DEEPEST = 60
"""Largest number of halvings of a parameter; floating point allows no more."""


class Piece(NamedTuple):
    """A family of maximal points.

    Attributes:
        supports: The nonzero coordinates of each summand that is not a vertex.
        translates: Lattice points it may be added to [T, D].
    """

    supports: tuple[tuple[int, ...], ...]
    translates: np.ndarray


class Boxes(NamedTuple):
    """Boxes of parameters u = x^p of one piece, each for one point y and one translate.

    Attributes:
        point: Index of y [B].
        target: y minus the translate [B, D].
        low: Lower ends [B, parameters].
        high: Upper ends [B, parameters].
    """

    point: np.ndarray
    target: np.ndarray
    low: np.ndarray
    high: np.ndarray


def pieces(dimension: int, copies: int) -> list[Piece]:
    """The pieces of the sum of `copies` balls, with the translates by sums of the remaining vertices."""
    planes = list(combinations(range(dimension), 2))
    groups = [(tuple(range(dimension)),)]
    if dimension == 3:
        groups += [group for size in range(2, min(copies, 3) + 1) for group in combinations(planes, size)]
    return [Piece(group, lattice(dimension, copies - len(group), 0)) for group in groups]


def periodic_pieces(dimension: int) -> list[Piece]:
    """The pieces on all integer translates near the face of side 2, for the limit of many copies.

    A translate with a coordinate below −2 is at least 1 from the face, further than the nearest lattice point.
    """
    return [
        Piece(piece.supports, lattice(dimension, 2 - len(piece.supports), -2)) for piece in pieces(dimension, dimension)
    ]


def lattice(dimension: int, total: int, least: int) -> np.ndarray:
    """All integer vectors [T, dimension] with entries ≥ `least` that sum to `total`."""
    top = total - least * (dimension - 1)
    rows = [
        (*head, total - sum(head))
        for head in product(range(least, top + 1), repeat=dimension - 1)
        if total - sum(head) >= least
    ]
    return np.array(rows, dtype=np.float64).reshape(-1, dimension)


def bounds(piece: Piece, boxes: Boxes, p: float) -> tuple[np.ndarray, np.ndarray]:
    """[lower, upper] of the least distance from each target to the points of its box, [B] each.

    The last coordinate of a support is a convex function of the others, so the box's points lie below the hull of its
    corners: for the unit direction ν ≥ 0 from a point of the box to the target, ν·(target − q) is least at a corner.
    """
    upper = np.zeros_like(boxes.target)
    inner = np.zeros_like(boxes.target)
    for support, low, high in _by_support(piece, boxes):
        middle = np.where((low + high).sum(axis=1, keepdims=True) <= 2.0, 0.5 * (low + high), low)
        inner[:, support] += _surface(middle, middle, p)
        upper[:, support] += _surface(high, low, p)
    away = np.maximum(boxes.target - inner, 0.0)
    length = np.sqrt((away**2).sum(axis=1))
    normal = away / np.maximum(length, np.finfo(float).tiny)[:, None]
    along = (normal * boxes.target).sum(axis=1)
    for support, low, high in _by_support(piece, boxes):
        ends = [np.where(side, high, low) for side in product((False, True), repeat=low.shape[1])]
        along -= np.max([(normal[:, support] * _surface(end, end, p)).sum(axis=1) for end in ends], axis=0)
    apart = np.sqrt((np.maximum(boxes.target - upper, 0.0) ** 2).sum(axis=1))
    return np.maximum(apart, along), length


def split(boxes: Boxes, piece: Piece) -> Boxes:
    """Each box halved along every parameter, without the halves that lie outside Σ u ≤ 1."""
    middle = 0.5 * (boxes.low + boxes.high)
    halves = []
    for side in product((False, True), repeat=boxes.low.shape[1]):
        half = boxes._replace(low=np.where(side, middle, boxes.low), high=np.where(side, boxes.high, middle))
        inside = np.all([low.sum(axis=1) <= 1.0 for _, low, _ in _by_support(piece, half)], axis=0)
        halves.append(Boxes(*(part[inside] for part in half)))
    return Boxes(*(np.concatenate(parts) for parts in zip(*halves, strict=True)))


def distances(y: np.ndarray, enough: np.ndarray, parts: list[Piece], p: float, slack: float) -> np.ndarray:
    """Upper bounds of the distances from points to the sum, within `slack` unless they fall to `enough`.

    Args:
        y: Points [P, D].
        enough: A point is finished once its distance is at most this [P].
        parts: Pieces of the sum.
        p: Exponent.
        slack: Wanted accuracy: the distance is at least the returned value minus this.
    """
    best = np.full(len(y), np.inf)
    open_boxes = [_start(y, piece) for piece in parts]
    for _ in range(DEEPEST):
        if not sum(len(boxes.point) for boxes in open_boxes):
            break
        lower = []
        for piece, boxes in zip(parts, open_boxes, strict=True):
            least, attained = bounds(piece, boxes, p)
            np.minimum.at(best, boxes.point, attained)
            lower.append(least)
        for i, (piece, boxes) in enumerate(zip(parts, open_boxes, strict=True)):
            kept = (lower[i] < best[boxes.point] - slack) & (best[boxes.point] > enough[boxes.point])
            open_boxes[i] = split(Boxes(*(part[kept] for part in boxes)), piece)
    return best


def farthest(parts: list[Piece], dimension: int, side: int, p: float, tolerance: float) -> tuple[float, float]:
    """[lo, hi] with hi ≤ lo·(1 + tolerance) around the greatest distance from the face of the given side to the sum.

    The face's symmetries leave one simplex of D!, halved until no cell can hold more than lo·(1 + tolerance).
    """
    chamber = [[side / k] * k + [0.0] * (dimension - k) for k in range(1, dimension + 1)]
    cells, lo, hi = np.array([chamber]), 0.0, 0.0
    while len(cells):
        centre = cells.mean(axis=1)
        radius = np.linalg.norm(cells - centre[:, None, :], axis=2).max(axis=1)
        limit = lo * (1.0 + tolerance)
        slack = 0.25 * tolerance * lo if lo else 0.05
        near = partial(distances, parts=parts, p=p, slack=slack)
        reach = chunked_map(near, POINTS_AT_A_TIME, centre, limit - radius)
        settled = reach <= limit - radius
        lo = max(lo, float((reach - slack)[~settled].max(initial=0.0)))
        bound = reach + radius
        done = bound <= lo * (1.0 + tolerance)
        hi = max(hi, float(bound[done].max(initial=0.0)))
        cells = _halved(cells[~done])
    return lo, max(lo, hi)


def _start(y: np.ndarray, piece: Piece) -> Boxes:
    """The whole parameter cube of a piece for every point and translate."""
    parameters = sum(len(support) - 1 for support in piece.supports)
    target = (y[:, None, :] - piece.translates[None, :, :]).reshape(-1, y.shape[1])
    point = np.repeat(np.arange(len(y)), len(piece.translates))
    return Boxes(point, target, np.zeros((len(point), parameters)), np.ones((len(point), parameters)))


def _by_support(piece: Piece, boxes: Boxes) -> list[tuple[list[int], np.ndarray, np.ndarray]]:
    """(support, low, high) of each summand."""
    ends = np.cumsum([len(support) - 1 for support in piece.supports])
    lows, highs = np.split(boxes.low, ends[:-1], axis=1), np.split(boxes.high, ends[:-1], axis=1)
    return [(list(support), low, high) for support, low, high in zip(piece.supports, lows, highs, strict=True)]


def _surface(first: np.ndarray, rest: np.ndarray, p: float) -> np.ndarray:
    """Coordinates u^{1/p} of the parameters `first`, then (1 − Σ u)₊^{1/p} of `rest`."""
    last = np.maximum(1.0 - rest.sum(axis=1, keepdims=True), 0.0)
    return np.concatenate([first, last], axis=1) ** (1.0 / p)


def _halved(cells: np.ndarray) -> np.ndarray:
    """Segments [c, 2, D] cut in two, triangles [c, 3, D] in four, at the midpoints of their sides."""
    a, b = cells[:, 0], cells[:, 1]
    if cells.shape[1] == 2:
        m = 0.5 * (a + b)
        children = [(a, m), (m, b)]
    else:
        c = cells[:, 2]
        ab, bc, ca = 0.5 * (a + b), 0.5 * (b + c), 0.5 * (c + a)
        children = [(a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca)]
    return np.concatenate([np.stack(child, axis=1) for child in children])
