"""Assumption 1, τ > y f(w; x) for all w ∈ W_1 × … × W_I: the smallest admissible τ, certified."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from landscape.arrays import trees
from landscape.arrays.chunked import chunked_map
from landscape.duality.branches import Branch, Domain, as_function, checked_domain
from landscape.duality.certified.frontiers import Interval
from landscape.duality.certified.interval_rules import Bounds
from landscape.duality.certified.intervals import Enclosure, bounds, halves
from landscape.duality.certified.refinement import Round, halving, refine
from landscape.duality.risks import Sample, sample
from landscape.networks import Network

CELLS = 200_000
"""Largest number of cells examined."""


class Margins(NamedTuple):
    """sup over W of y_n f(w; x_n) for every example: certified bounds, [N] each."""

    lo: np.ndarray
    hi: np.ndarray


def smallest_tau(
    branches: Sequence[tuple[Branch | Network, Domain | tuple[Any, Any], int]], data: Any, *, tol: float = 1e-3
) -> Interval:
    """The smallest τ that Assumption 1 admits, max_n (1/I) Σ_i sup over W_i of y_n f_i(w; x_n).

    Assumption 1 holds for every τ above the interval and fails for every τ below it.

    Args:
        branches: (branch, W, number of branches) for each kind.
        data: The data; for a quadrature its patches' boxes.
        tol: Wanted precision.

    Raises:
        ValueError: W not compact, data or branch not finite, or an operation without an interval rule.
    """
    total = sum(count for _, _, count in branches)
    if total < 1:
        raise ValueError("There must be at least one branch.")
    found = [(margins(branch, domain, data, tol=tol), count) for branch, domain, count in branches]
    low, high = (sum(count * getattr(m, end) for m, count in found) / total for end in ("lo", "hi"))
    return Interval(float(np.max(low)), float(np.max(high)))


def check_tau(tau: float, smallest: Interval) -> None:
    """Refuse a τ for which Assumption 1 fails, or is not known to hold.

    Raises:
        ValueError: τ is not above the smallest admissible one.
    """
    if tau > smallest.hi:
        return
    verdict = "fails" if tau <= smallest.lo else "could not be verified"
    raise ValueError(
        f"Assumption 1 {verdict} for τ = {tau:.6g}: the smallest admissible τ lies in {smallest}.\n"
        "  Choose a larger τ, or measure the true hinge with convexification.convexification_gap."
    )


def margins(branch: Branch | Network, domain: Domain | tuple[Any, Any], data: Any, *, tol: float = 1e-3) -> Margins:
    """sup over W of y_n f(w; x_n) for every example, by interval branch and bound."""
    with trees.float64():
        checked, examples = checked_domain(domain), sample(data)
        size = len(checked.lo)
        f = as_function(branch, size, jnp.asarray(examples.x[0]))
        points, cells = _kernels(f, examples)
        best = np.full(len(examples.y), -np.inf)

        def examine(lo: np.ndarray, hi: np.ndarray) -> Round:
            feasible = checked.project(np.concatenate([(lo + hi) / 2, lo, hi]))
            np.maximum(best, _finite(points, feasible).max(0), out=best)
            high, slopes = cells(lo, hi)
            still = np.flatnonzero(~(high <= best + tol).all(1) & checked.meets(lo, hi))
            return halving(lo, hi, still, slopes, checked, high[still])

        left = refine(checked.lo, checked.hi, CELLS, examine)
        highest = best + tol if left is None else np.maximum(left.max(0), best + tol)
        return Margins(best - 1e-12 * (1 + np.abs(best)), highest)


def _finite(points: Any, w: np.ndarray) -> np.ndarray:
    """y f at points of W, [C, N]."""
    found = points(w)
    bad = np.flatnonzero(~np.isfinite(found).all(1))
    if len(bad):
        raise ValueError(
            f"The branch's output is not finite at w = {w[bad[0]]}, which lies in W.\n"
            "  Assumption 1 needs a branch that is bounded on all of W."
        )
    return found


def enclosed_margins(f: Branch, data: Sample) -> tuple[Callable[..., jax.Array], Callable[..., Any]]:
    """Two functions: y f at a point w [p] -> [N]; upper bounds of y f on a cell (lo, hi) -> [N], with slopes."""
    x, y = jnp.asarray(data.x), jnp.asarray(data.y)
    boxes = Bounds(x, x) if data.boxes is None else Bounds(*map(jnp.asarray, data.boxes))

    def margin(w: jax.Array, inputs: jax.Array) -> jax.Array:
        return y * jax.vmap(f, (None, 0))(w, inputs)

    def upper(lo: jax.Array, hi: jax.Array) -> tuple[jax.Array, Enclosure]:
        centre, half = halves(lo, hi)
        both = jax.jacfwd(lambda w, inputs: (margin(w, inputs),) * 2, has_aux=True)
        slope, natural = bounds(both, Bounds(lo, hi), boxes)
        middle = bounds(margin, Bounds(centre, centre + 0.0), boxes).hi
        steep = jnp.maximum(jnp.abs(slope.lo), jnp.abs(slope.hi))
        far = jnp.sum(steep * half[None], 1)  # nan for 0·inf; fmin then takes the natural bound
        high = jnp.fmin(natural.hi, middle + far + 1e-15 * (jnp.abs(middle) + len(lo) * far))
        spread = jnp.max(slope.hi - slope.lo, 0)
        none = jnp.zeros(())
        return high, Enclosure(none, none, none, none, -spread, spread)

    return (lambda w: margin(w, x)), upper


def _kernels(f: Branch, data: Sample) -> tuple[Any, Any]:
    """`enclosed_margins` compiled, for points [C, p] and cells [C, p] each."""
    chunk = int(np.clip(2**20 // (8 * len(data.y)), 8, 4096))
    points, cells = (jax.jit(jax.vmap(kernel)) for kernel in enclosed_margins(f, data))
    return partial(chunked_map, points, chunk, pad=True), partial(chunked_map, cells, chunk, pad=True)
