"""Frontiers known in closed form, with a certified bound on what linear interpolation between the budgets loses."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from landscape.arrays import trees
from landscape.duality.certified.frontiers import Frontier, Interval, real_array, real_number
from landscape.duality.certified.intervals import enclose

PIECES = 8
"""Number of pieces between two budgets on which v is bounded."""


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

    On a piece of length s where v' lies in [a, b], v is within (b − a) s/4 of its chord. Where v' is not bounded, as
    at the end of a root, it is within the piece's own drop: a frontier does not increase.

    Args:
        v: Continuous function of one number, traceable by JAX.
        last: The largest h on W.
        first: The smallest h on W.
        steps: N.
        delta: Theorem 1's Δ_i, where known.
        name: For tables and legends.

    Raises:
        ValueError: v is not finite, rises, or has no interval rule; ends or steps that are no such numbers.

    >>> closed_form(lambda r: 1 - r**2 / 2, 1.0)
    Frontier(2001 budgets 0 … 1, values 1 … 0.5, error 3.22e-08)
    """
    first, last = real_number("first", first), real_number("last", last)
    if not (np.isfinite(first) and np.isfinite(last) and first < last) or steps != int(steps) or steps < 1:
        raise ValueError(f"Wanted finite first < last and a whole number of steps; got {first}, {last} and {steps}.")
    with trees.float64():
        nodes = np.linspace(first, last, int(steps) * PIECES + 1)
        along = jax.jit(jax.vmap(lambda a, b: enclose(lambda w: v(w[0]), a[None], b[None])))
        values = real_array("v", jax.jit(jax.vmap(v))(jnp.asarray(nodes)))
        _check_values(nodes, values)
        found = jax.tree.map(np.asarray, along(jnp.asarray(nodes[:-1]), jnp.asarray(nodes[1:])))
    bend = ((found.slope_hi - found.slope_lo)[:, 0] * np.diff(nodes) / 4).reshape(-1, PIECES)
    rounding = 1e-15 * (1 + np.abs(values).max())
    pieces = np.column_stack([values[:-1].reshape(-1, PIECES), values[PIECES::PIECES]])
    drop = np.maximum(pieces[:, :-1] - pieces[:, 1:], 0.0)
    bend = np.where(bend <= drop, bend, drop)  # False if bend is nan
    share = np.linspace(0, 1, PIECES + 1)
    away = pieces - (pieces[:, :1] + share * (pieces[:, -1:] - pieces[:, :1]))
    above = np.max(np.maximum(away[:, :-1], away[:, 1:]) + bend, 1)
    below = np.max(bend - np.minimum(away[:, :-1], away[:, 1:]), 1)
    band = tuple(np.maximum(np.append(e, 0.0), np.append(0.0, e)) + rounding for e in (below, above))
    budgets = nodes[::PIECES]
    return Frontier(budgets, values[::PIECES], (band[0], band[1]), at_budgets=rounding, delta=delta, name=name)


def _check_values(nodes: np.ndarray, values: np.ndarray) -> None:
    """v at the nodes [M] is one finite number each, and never rises."""
    if values.shape != nodes.shape:
        raise ValueError(
            f"v must be a function of one number with one value; at {len(nodes)} budgets it has shape {values.shape}."
        )
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise ValueError(f"v must be finite on all budgets; at {nodes[bad[0]]:g} it is {values[bad[0]]}.")
    rises = np.flatnonzero(np.diff(values) > 1e-12 * (1 + np.abs(values).max()))
    if len(rises):
        raise ValueError(
            f"A frontier cannot increase with the budget; v rises from {nodes[rises[0]]:g} to {nodes[rises[0] + 1]:g}."
        )
