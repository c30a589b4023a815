"""The smallest regulariser on W, m = min { h(w) : w ∈ W }: the first budget of a frontier, certified from below.

Three ways, the first that applies: the named norms on a box, and l2 on a ball, have closed forms; for a convex h there
are cutting planes (`cutting_planes`); for any other, interval branch and bound over cells of W.
"""

import itertools
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from landscape.arrays.chunked import chunked_map
from landscape.duality.branches import NORMS, Ball, Box, Domain, Regulariser, lattice
from landscape.duality.certified.cutting_planes import CLOSE, Convex, box_of_minimisers, minimum
from landscape.duality.certified.frontiers import EPSILON
from landscape.duality.certified.intervals import enclose
from landscape.duality.certified.refinement import Corners, Round, refine

CELLS = 20_000
"""Largest number of cells examined."""

Sizes = Callable[[np.ndarray], np.ndarray]


class LeastSize(NamedTuple):
    """m = min { h(w) : w ∈ W } from both sides.

    Attributes:
        point: A point of W, [p].
        value: h there, not below m.
        bound: Not above m.
        lo: Lower corners of cells that hold a minimiser of h, [C, p].
        hi: Upper corners, [C, p].
    """

    point: np.ndarray
    value: float
    bound: float
    lo: np.ndarray
    hi: np.ndarray


def least_size(h: Regulariser, domain: Domain) -> LeastSize:
    """The smallest h on W; call inside `trees.float64()`.

    Raises:
        ValueError: h is not one real number, not finite at a point of W, not bounded from below, said to be convex and
            is not, or uses an operation without an interval rule.
    """
    exact = _closed_form(h, domain)
    if exact is not None:
        return exact
    _check_output(h, len(domain.lo))
    return searched(_compiled(h, domain), h.convex)


def searched(h: Convex, convex: bool) -> LeastSize:
    """The smallest value of a compiled function on W.

    A function that is not said to be convex is taken to be (Theorem 1 presumes it) only where cells leave the bounds
    more than `CLOSE` apart, and only if no point found lies below a plane.

    Args:
        h: The function; it need not be convex.
        convex: Whether it is said to be.

    Raises:
        ValueError: As for `least_size`.
    """
    points = np.concatenate([h.domain.project(np.zeros((1, len(h.domain.lo)))), lattice(h.domain, 4096)])
    values = h.value(points)
    if convex:
        found = _by_planes(h, points, values)
        if found is None:
            raise ValueError("The regulariser is said to be convex, but lies below one of its own tangents on W.")
    else:
        found = _by_cells(h, (h.domain.lo, h.domain.hi), points[np.argmin(values)], CELLS)
        if found.value - found.bound > CLOSE * float(np.abs(values).max()):
            planes = _by_planes(h, np.vstack([points, found.point]), np.append(values, found.value))
            if planes is not None:
                found = planes._replace(bound=min(max(planes.bound, found.bound), planes.value))
    if not np.isfinite(found.bound):
        raise ValueError("h is not bounded from below on W, as far as interval arithmetic can tell; change W or h.")
    return found


def _compiled(h: Regulariser, domain: Domain) -> Convex:
    """Values, gradients and enclosures of h, compiled."""
    return Convex(
        _finite(partial(chunked_map, jax.jit(jax.vmap(h.value)), 4096, pad=True)),
        partial(chunked_map, jax.jit(jax.vmap(jax.grad(h.value))), 64, pad=True),
        partial(chunked_map, jax.jit(jax.vmap(partial(enclose, h.value))), 512, pad=True),
        domain,
    )


def _check_output(h: Regulariser, size: int) -> None:
    out = jax.eval_shape(h.value, jnp.zeros(size))
    if getattr(out, "shape", None) != () or jnp.issubdtype(out.dtype, jnp.complexfloating):
        raise ValueError(f"A regulariser maps w [{size}] to one real number; this one returns {out}.")


def _finite(sizes: Sizes) -> Sizes:
    def checked(w: np.ndarray) -> np.ndarray:
        values = sizes(w)
        bad = np.flatnonzero(~np.isfinite(values))
        if len(bad):
            raise ValueError(f"h is {values[bad[0]]} at w = {w[bad[0]]}, which lies in W; it must be finite on W.")
        return values

    return checked


def _closed_form(h: Regulariser, domain: Domain) -> LeastSize | None:
    """Norms named in `NORMS` on a box, and l2 with its square on a ball."""
    name = next((key for key, norm in NORMS.items() if norm is h.value), None)
    origin = np.zeros(len(domain.lo))
    if name is None or not (isinstance(domain, Box) or (isinstance(domain, Ball) and name in ("l2", "squared_l2"))):
        return None
    point = domain.project(origin)
    value = float(h.value(jnp.asarray(point)))
    bound = value * (1 - 16 * len(origin) * EPSILON)
    if isinstance(domain, Ball):
        away = float(np.sqrt(np.sum(domain.centre**2)))
        least = max(0.0, away - domain.radius - 16 * EPSILON * (away + domain.radius))
        if least == 0.0 and bool(np.sum(domain.centre**2) <= domain.radius**2):
            point, value = origin, 0.0
        bound = min(value, (least if name == "l2" else least**2) * (1 - 16 * EPSILON))
    return LeastSize(point, value, bound, point[None], point[None])


def _by_planes(h: Convex, points: np.ndarray, values: np.ndarray) -> LeastSize | None:
    """The minimum by cutting planes, then by cells of the remaining box; None if h is not convex."""
    known = minimum(h, points, values)
    if known is None:
        return None
    found = _by_cells(h, box_of_minimisers(known, h.domain), known.point, CELLS // 10)
    return found._replace(bound=min(max(known.bound, found.bound), found.value))


def _by_cells(h: Convex, box: Corners, start: np.ndarray, limit: int) -> LeastSize:
    """Halve all sides of the cells of `box` that may hold a minimiser, until `limit` cells have been examined."""
    domain, point, value, bound, cells = h.domain, start, float(h.value(start[None])[0]), -np.inf, box

    def examine(lo: np.ndarray, hi: np.ndarray) -> Round:
        nonlocal point, value, bound, cells
        centres = domain.project((lo + hi) / 2)
        values = h.value(centres)
        if values.min() < value:
            point, value = centres[values.argmin()], float(values.min())
        low = h.around(lo, hi).lo
        kept = np.flatnonzero((low <= value) & domain.meets(lo, hi))
        cells = (lo[kept], hi[kept]) if len(kept) else (lo, hi)
        bound = max(bound, float(low[kept].min(initial=np.inf)))
        width = (cells[1] - cells[0]).max(0)
        sides = np.flatnonzero(width > 0)
        closed = value <= bound or np.all(width <= 8 * EPSILON * (1 + np.abs(point)))
        return Round(len(kept) * 2 ** len(sides), lambda: _children(*cells, sides), cells, bool(closed))

    if refine(*box, limit, examine) is None:  # h is certainly larger than its rounded value at the point
        bound = value - 4 * EPSILON * abs(value)
    return LeastSize(point, value, min(bound, value), *cells)


def _children(lo: np.ndarray, hi: np.ndarray, sides: np.ndarray) -> Corners:
    """Cells halved across all the given sides."""
    middle, parts = (lo + hi) / 2, []
    for choice in itertools.product((False, True), repeat=len(sides)):
        upper = np.zeros(lo.shape[1], bool)
        upper[sides[list(choice)]] = True
        lower = np.zeros(lo.shape[1], bool)
        lower[sides[~np.array(choice, bool)]] = True
        parts.append((np.where(upper, middle, lo), np.where(lower, middle, hi)))
    return np.concatenate([a for a, _ in parts]), np.concatenate([b for _, b in parts])
