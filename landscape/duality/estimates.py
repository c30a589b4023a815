"""Branches too large for certificates: multi-start estimates, kept apart from bounds that always hold.

A feasible point bounds v, and with it inf P, from above; the hull of any cloud of points (h(w), g(w)) bounds sup D from
above. Both are valid. That a multi-start search found the least value of the Lagrangian is not known: it is an
`Estimate`, and so is every gap made from it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.flatten_util import ravel_pytree

from landscape.arrays import trees
from landscape.duality.branches import as_function, bisected, regulariser
from landscape.duality.certified.frontiers import Frontier
from landscape.duality.multi_branch import duality_gap
from landscape.duality.risks import margin_loss, sample
from landscape.networks import Network

LIVE = 1e-9
"""A branch is dead if its gradient of g is smaller than this."""


class Estimate(NamedTuple):
    """A number without a guarantee: neither an upper nor a lower bound."""

    value: float
    kind: str = "estimate"

    def __float__(self) -> float:
        return self.value

    def __repr__(self) -> str:
        return f"≈{self.value:.6g} (estimate)"


class UpperBound(NamedTuple):
    """An upper bound, up to rounding."""

    value: float
    kind: str = "upper bound"

    def __float__(self) -> float:
        return self.value

    def __repr__(self) -> str:
        return f"≤{self.value:.6g}"


@dataclass(frozen=True, eq=False)
class FrontierEstimate:
    """Upper bounds of a frontier from the best of many starts; `duality_gap` does not accept it.

    Attributes:
        budgets: Uniform, [N+1].
        upper: g at the best feasible point found for each budget, [N+1].
        points: Those points, flat, [N+1, p].
        lagrangian: λ -> the least g + λ h found, with the same starts.
        starts: Starts for each budget.
        live: Share of random starts that were not in a dead region; dead ones were not used.
        kind: "estimate".
    """

    budgets: np.ndarray
    upper: np.ndarray
    points: np.ndarray
    lagrangian: Callable[[float], float]
    starts: int
    live: float
    kind: str = "estimate"

    def __repr__(self) -> str:
        return (
            f"FrontierEstimate({len(self.budgets)} budgets {self.budgets[0]:.6g} … {self.budgets[-1]:.6g}, "
            f"{self.points.shape[1]} parameters, {self.starts} starts, {self.live:.0%} of random starts live)"
        )


class GapEstimate(NamedTuple):
    """Estimates and bounds of the duality gap of large branches.

    Attributes:
        primal: A feasible solution's value: an upper bound of inf P.
        hull: The hull of the points found, at K: an upper bound of sup D.
        dual: The least Lagrangian found at λ*, less λ* K.
        gap: primal − dual.
        multiplier: λ* of the hull.
        num_branches: I.
        K: The bound on the mean budget.
    """

    primal: UpperBound
    hull: UpperBound
    dual: Estimate
    gap: Estimate
    multiplier: float
    num_branches: int
    K: float


def estimate_frontier(
    network: Network,
    h: str | Callable[[jax.Array], jax.Array],
    data: Any,
    tau: float,
    last: float,
    key: jax.Array,
    *,
    budgets: int = 16,
    starts: int = 16,
    steps: int = 500,
    learning_rate: float = 0.03,
) -> FrontierEstimate:
    """Minimise g subject to h ≤ r for every budget r from many starts, all in one compiled call.

    Adam on g(t w), t ∈ (0, 1] the scale at which w meets its budget; so h must not increase along rays to 0.

    Args:
        network: The branch.
        h: Regulariser of the flat parameters, 0 at 0.
        data: x, y ±1.
        tau: τ.
        last: The largest budget; W is the set of all w with h(w) ≤ last.
        key: Random key.
        budgets: N, steps of the grid from 0 to `last`.
        starts: Starts for each budget.
        steps: Steps of Adam.
        learning_rate: Of Adam, in units of the parameters.

    Raises:
        ValueError: Numbers that are not positive, h(0) ≠ 0, all starts in a dead region, losses that are not finite.
    """
    if min(budgets, starts, steps) < 1 or not last > 0:
        raise ValueError(f"budgets, starts, steps and last must be positive; got {budgets}, {starts}, {steps}, {last}.")
    with trees.float64():
        found, size = sample(data), regulariser(h).value
        shapes = jax.eval_shape(network.init, key)
        flat, _ = ravel_pytree(jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), shapes))
        if abs(float(size(flat))) > 1e-12:
            raise ValueError(f"h must be 0 at 0 for estimates; it is {float(size(flat)):.6g}.")
        f = as_function(network, len(flat), jnp.asarray(found.x[0]))
        loss = margin_loss(f, found, tau)
        first, live = _live_starts(network, loss, key, starts)
        grid = jnp.linspace(0.0, last, budgets + 1)
        descend = _descent(steps, learning_rate)

        def constrained(w: jax.Array, r: jax.Array) -> jax.Array:
            return _shrunk(size, descend(lambda v: loss(_shrunk(size, v, r)), w), r)

        points = np.asarray(jax.jit(jax.vmap(jax.vmap(constrained, (0, None)), (None, 0)))(first, grid))
        values = np.asarray(jax.jit(jax.vmap(jax.vmap(loss)))(points))
        if not np.isfinite(values).any(1).all():
            raise ValueError("The branch's expected loss is not finite from any start; use a smaller learning rate.")
        best = np.nanargmin(values, 1)
        rows = np.arange(budgets + 1)
        upper, chosen = values[rows, best], points[rows, best]
        for k in range(1, budgets + 1):
            if upper[k] > upper[k - 1]:
                upper[k], chosen[k] = upper[k - 1], chosen[k - 1]
    lagrangian = _lagrangian(loss, size, first, chosen, upper, steps, learning_rate, last)
    return FrontierEstimate(np.asarray(grid), upper, chosen, lagrangian, starts, live)


def estimate_gap(frontier: FrontierEstimate, num_branches: int, K: float) -> GapEstimate:
    """The gap of I equal branches, as far as a search can tell.

    Raises:
        ValueError: K infeasible, or above the largest budget of the frontier.
    """
    if frontier.budgets[-1] < K:
        raise ValueError(f"K = {K:.6g} lies beyond the frontier's largest budget {frontier.budgets[-1]:.6g}.")
    drop = -np.diff(frontier.upper)
    stairs = np.maximum(np.append(drop, 0.0), np.append(0.0, drop))
    model = Frontier(frontier.budgets, frontier.upper, (0.0, stairs), at_budgets=0.0)
    found = duality_gap(model, num_branches, K)
    least = frontier.lagrangian(found.multiplier) - found.multiplier * K
    return GapEstimate(
        primal=UpperBound(found.primal.hi),
        hull=UpperBound(found.dual.hi),
        dual=Estimate(least),
        gap=Estimate(found.primal.hi - least),
        multiplier=found.multiplier,
        num_branches=found.num_branches,
        K=float(K),
    )


def _live_starts(
    network: Network, loss: Callable[[jax.Array], jax.Array], key: jax.Array, starts: int
) -> tuple[jax.Array, float]:
    """Starts [S, p] whose gradient does not vanish, and the share of random ones for which it does not."""
    keys = jax.random.split(key, 8 * starts)
    draw = jax.vmap(lambda k: ravel_pytree(network.init(k))[0].astype(jnp.float64))(keys)
    steep = np.asarray(jax.jit(jax.vmap(lambda w: jnp.linalg.norm(jax.grad(loss)(w))))(draw))
    live = np.flatnonzero(steep > LIVE)
    if len(live) == 0:
        raise ValueError(
            "All random starts lie in a dead region: the branch's gradient vanishes on every example.\n"
            "  Change the initialisation, or add a bias."
        )
    return draw[np.resize(live, starts)], len(live) / len(draw)


def _descent(steps: int, learning_rate: float) -> Callable[[Callable[[jax.Array], jax.Array], jax.Array], jax.Array]:
    """A function (objective, start) -> the best point on Adam's path."""
    optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, steps))

    def run(objective: Callable[[jax.Array], jax.Array], w: jax.Array) -> jax.Array:
        def step(state: Any, _: None) -> tuple[Any, None]:
            w, inner, best, at = state
            value, slope = jax.value_and_grad(objective)(w)
            better = value < best
            best, at = jnp.where(better, value, best), jnp.where(better, w, at)
            change, inner = optimizer.update(jnp.nan_to_num(slope), inner)
            return (w + change, inner, best, at), None

        (last, _, best, at), _ = lax.scan(step, (w, optimizer.init(w), jnp.inf, w), length=steps)
        return jnp.where(objective(last) < best, last, at)

    return run


def _shrunk(size: Callable[[jax.Array], jax.Array], w: jax.Array, r: jax.Array) -> jax.Array:
    """t w with the largest t ∈ [0, 1] found by bisection for which h ≤ r; differentiable in w.

    The derivative of t is that of the root of h(t w) = r: −t ∇h / ⟨∇h, w⟩, put in by a step that is zero in value.
    """
    fixed = lax.stop_gradient(w)
    inside = size(fixed) <= r
    t = jnp.where(inside, 1.0, bisected(lambda t: size(t * fixed) <= r, 1.0, 40))
    rate = jnp.vdot(jax.grad(size)(t * fixed), fixed)
    reached = size(t * w)
    step = jnp.where(inside | (rate <= 0), 0.0, (reached - lax.stop_gradient(reached)) / jnp.where(rate > 0, rate, 1.0))
    return (t - step) * w


def _lagrangian(
    loss: Callable[[jax.Array], jax.Array],
    size: Callable[[jax.Array], jax.Array],
    starts: jax.Array,
    points: np.ndarray,
    upper: np.ndarray,
    steps: int,
    learning_rate: float,
    last: float,
) -> Callable[[float], float]:
    """λ -> the least g + λ h on h ≤ last over fresh descents from the starts and over the points already found."""

    def least(lam: jax.Array) -> jax.Array:
        def total(w: jax.Array) -> jax.Array:
            return loss(w) + lam * size(w)

        def bounded(w: jax.Array) -> jax.Array:
            return total(_shrunk(size, w, jnp.asarray(last)))

        run = _descent(steps, learning_rate)
        ends = jax.vmap(lambda w: run(bounded, w))(jnp.concatenate([starts, jnp.asarray(points)]))
        return jnp.minimum(jnp.nanmin(jax.vmap(bounded)(ends)), jnp.min(jax.vmap(total)(jnp.asarray(points))))

    compiled = jax.jit(least)

    def value(lam: float) -> float:
        with trees.float64():
            return float(compiled(jnp.asarray(lam, jnp.float64)))

    return value
