"""Frontiers known in closed form, with a certified bound on what linear interpolation between the budgets loses."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from landscape.arrays import trees
from landscape.duality.certified.frontiers import Frontier, Interval
from landscape.duality.certified.intervals import enclose

PIECES = 8
"""Parts into which the stretch between two budgets is cut to bound v there."""


def closed_form(
    v: Callable[[jax.Array], jax.Array],
    last: float,
    *,
    first: float = 0.0,
    steps: int = 2000,
    delta: Interval | None = None,
    name: str = "",
) -> Frontier:
    """The frontier r -> v(r) on uniform budgets; its band by interval arithmetic over v's derivative.

    On a piece of length s where v' lies in [a, b], v is within (b − a) s/4 of its chord.

    Args:
        v: Continuous function of one number, traceable by JAX.
        last: The largest h on W.
        first: The smallest h on W.
        steps: N.
        delta: Theorem 1's Δ_i, where known.
        name: For tables and legends.

    Raises:
        ValueError: v is not finite or not decreasing, or has no interval rule.

    >>> closed_form(lambda r: 1 - r**2 / 2, 1.0)
    Frontier(2001 budgets 0 … 1, values 1 … 0.5, error 3.22e-08)
    """
    with trees.float64():
        nodes = np.linspace(first, last, steps * PIECES + 1)
        along = jax.jit(jax.vmap(lambda a, b: enclose(lambda w: v(w[0]), a[None], b[None])))
        found = jax.tree.map(np.asarray, along(jnp.asarray(nodes[:-1]), jnp.asarray(nodes[1:])))
        values = np.asarray(jax.jit(jax.vmap(v))(jnp.asarray(nodes)))
    bend = ((found.slope_hi - found.slope_lo)[:, 0] * np.diff(nodes) / 4).reshape(steps, PIECES)
    pieces = np.column_stack([values[:-1].reshape(steps, PIECES), values[PIECES::PIECES]])
    share = np.linspace(0, 1, PIECES + 1)
    away = pieces - (pieces[:, :1] + share * (pieces[:, -1:] - pieces[:, :1]))
    above = np.max(np.maximum(away[:, :-1], away[:, 1:]) + bend, 1)
    below = np.max(bend - np.minimum(away[:, :-1], away[:, 1:]), 1)
    rounding = 1e-15 * (1 + np.abs(values).max())
    band = tuple(np.maximum(np.append(e, 0.0), np.append(0.0, e)) + rounding for e in (below, above))
    budgets = nodes[::PIECES]
    return Frontier(budgets, values[::PIECES], (band[0], band[1]), at_budgets=rounding, delta=delta, name=name)
