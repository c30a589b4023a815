"""The true hinge, where Assumption 1 fails: the convexification gap P_I − D_conv, not the same as Theorem 1's gap.

The Lagrangian does not separate over branches then. What shrinks with I is the distance from

    P_I = min{ E max(0, 1 − y f(w; x)/τ) : (1/I) Σ h_i ≤ K },   f = (1/I) Σ f_i,

to D_conv, the same problem over the convex hull of one branch's image { (h(w), f(w; ·)) : w ∈ W }: a linear program.
Both are exact for a finite set of settings w; for all of W, D_conv is bounded from below by its own dual.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import sparse
from scipy.optimize import LinearConstraint, linprog, milp

from landscape.arrays import trees
from landscape.duality.branches import Branch, Domain, as_function, checked_domain, lattice, regulariser
from landscape.duality.certified.branch_and_bound import make_kernels
from landscape.duality.certified.envelopes import tilted_minima
from landscape.duality.certified.frontiers import Interval
from landscape.duality.risks import Sample, sample
from landscape.networks import Network


class Settings(NamedTuple):
    """Candidate settings w_m of a branch: outputs f(w_m; x_n), [M, N], and h(w_m), [M], with labels and weights [N]."""

    outputs: np.ndarray
    sizes: np.ndarray
    y: np.ndarray
    weight: np.ndarray
    tau: float

    def hinge(self, mixture: np.ndarray) -> float:
        """E max(0, 1 − y f/τ) with f = Σ_m mixture_m f(w_m; ·)."""
        margins = self.y * (mixture @ self.outputs) / self.tau
        return float(self.weight @ np.maximum(0.0, 1 - margins))


class Convexification(NamedTuple):
    """The true hinge's minimum and its convexification.

    Attributes:
        primal: P_I.
        relaxed: D_conv.
        gap: P_I − D_conv, the convexification gap.
        counts: Branches at each setting in the best solution found, [M].
        multipliers: Dual solution of D_conv: one for each example, [N], and λ for the budget, last.
    """

    primal: Interval
    relaxed: Interval
    gap: Interval
    counts: np.ndarray
    multipliers: np.ndarray


def settings(
    branch: Branch | Network,
    h: str | Callable[[jax.Array], jax.Array],
    domain: Domain | tuple[Any, Any],
    data: Any,
    tau: float,
    points: int = 400,
) -> Settings:
    """Outputs and sizes of a branch on a lattice of about `points` points of W.

    Raises:
        ValueError: As for `frontier`.
    """
    with trees.float64():
        checked, found = checked_domain(domain), sample(data)
        w = jnp.asarray(lattice(checked, points))
        f = as_function(branch, w.shape[1], jnp.asarray(found.x[0]))
        outputs = jax.jit(jax.vmap(lambda v: jax.vmap(f, (None, 0))(v, jnp.asarray(found.x))))(w)
        sizes = jax.jit(jax.vmap(regulariser(h).value))(w)
        return Settings(np.asarray(outputs), np.asarray(sizes), found.y, found.weight, float(tau))


def convexification_gap(given: Settings, num_branches: int, K: float, *, seconds: float = 60.0) -> Convexification:
    """P_I by integer programming and D_conv by linear programming, for a finite set of settings.

    Args:
        given: The settings.
        num_branches: I.
        K: Bound on the mean of h.
        seconds: Time after which the integer program is cut off; its bounds stay valid.

    Raises:
        ValueError: I below 1, K below the smallest h (infeasible), values that are not finite.
    """
    if num_branches < 1:
        raise ValueError(f"num_branches must be at least 1; got {num_branches}.")
    if not (np.isfinite(given.outputs).all() and np.isfinite(given.sizes).all()):
        raise ValueError("The branch's outputs and h must be finite at all settings.")
    if given.sizes.min() > K:
        raise ValueError(f"K = {K:.6g} is infeasible: the smallest h of the settings is {given.sizes.min():.6g}.")
    relaxed, multipliers = _relaxation(given, K)
    primal, counts = _integer_program(given, num_branches, K, seconds)
    primal = Interval(max(primal.lo, relaxed.lo), primal.hi)
    gap = Interval(max(0.0, primal.lo - relaxed.hi), max(0.0, primal.hi - relaxed.lo))
    return Convexification(primal, relaxed, gap, counts, multipliers)


def relaxation_on(
    branch: Branch | Network,
    h: str | Callable[[jax.Array], jax.Array],
    domain: Domain | tuple[Any, Any],
    data: Any,
    tau: float,
    K: float,
    *,
    points: int = 400,
    tol: float = 1e-4,
) -> Interval:
    """D_conv for all of W (p ≤ 3): from above by the lattice's linear program, from below by its dual on W.

    With multipliers α_n ∈ [0, weight_n] and λ ≥ 0, D_conv ≥ min over W of Σ α_n (1 − y_n f(w; x_n)/τ) + λ (h(w) − K),
    found by interval branch and bound.

    Raises:
        ValueError: As for `frontier` and `convexification_gap`.
    """
    given = settings(branch, h, domain, data, tau, points)
    above, multipliers = _relaxation(given, K)
    alpha, lam = multipliers[:-1], float(multipliers[-1])
    total = float(alpha.sum())
    if total == 0:
        return Interval(0.0, above.hi)
    with trees.float64():
        found = sample(data)
        weighted = Sample(found.x, found.y, alpha / total, found.boxes)
        kernels = make_kernels(branch, regulariser(h), checked_domain(domain), weighted, tau)

        def bounds(lo: np.ndarray, hi: np.ndarray) -> Any:
            cells = kernels.bounds(lo, hi)
            return jax.tree.map(lambda g, s: total * g + lam * s, cells.g, cells.h)

        reached = np.array([np.inf])
        least = tilted_minima(bounds, kernels.domain, np.zeros((1, len(kernels.domain.lo))), reached, tol, 400_000)
    return Interval(max(0.0, float(least[0]) - lam * K), above.hi)


def _relaxation(given: Settings, K: float) -> tuple[Interval, np.ndarray]:
    """D_conv for the settings, bracketed by feasible multipliers and a feasible mixture; and the multipliers."""
    count, examples = given.outputs.shape
    cost = np.concatenate([np.zeros(count), given.weight])
    margins = np.hstack([-(given.y * given.outputs / given.tau).T, -np.eye(examples)])
    budget = np.concatenate([given.sizes, np.zeros(examples)])[None]
    total = np.concatenate([np.ones(count), np.zeros(examples)])[None]
    found = linprog(cost, np.vstack([margins, budget]), np.append(-np.ones(examples), K), total, [1.0], method="highs")
    if found.status != 0:
        raise ValueError(f"The linear program of D_conv could not be solved: {found.message}")
    mixture = np.maximum(found.x[:count], 0)
    mixture /= mixture.sum()
    excess = float(mixture @ given.sizes) - K
    if excess > 0:
        least = int(np.argmin(given.sizes))
        share = excess / (excess + K - given.sizes[least]) if given.sizes[least] < K else 1.0
        mixture = (1 - share) * mixture + share * (np.arange(count) == least)
    alpha = np.clip(-found.ineqlin.marginals[:-1], 0, given.weight)
    lam = max(0.0, -float(found.ineqlin.marginals[-1]))
    losses = alpha.sum() - given.outputs @ (alpha * given.y) / given.tau + lam * (given.sizes - K)
    high, rounding = given.hinge(mixture), 1e-13 * (1 + float(np.abs(losses).max()))
    return Interval(float(losses.min()) - rounding, high + rounding), np.append(alpha, lam)


def _integer_program(given: Settings, num: int, K: float, seconds: float) -> tuple[Interval, np.ndarray]:
    """P_I for the settings, and the number of branches at each."""
    count, examples = given.outputs.shape
    cost = np.concatenate([np.zeros(count), given.weight])
    margins = sparse.hstack([(given.y * given.outputs / given.tau).T / num, sparse.eye(examples)])
    limits = [
        LinearConstraint(margins, 1.0, np.inf),
        LinearConstraint(np.concatenate([given.sizes, np.zeros(examples)])[None], -np.inf, num * K),
        LinearConstraint(np.concatenate([np.ones(count), np.zeros(examples)])[None], num, num),
    ]
    found = milp(
        cost,
        constraints=limits,
        integrality=np.concatenate([np.ones(count), np.zeros(examples)]),
        bounds=(0.0, np.concatenate([np.full(count, num), np.full(examples, np.inf)])),
        options={"time_limit": seconds, "mip_rel_gap": 0.0},
    )
    if found.x is None:
        raise ValueError(f"The integer program of P_I found no solution in {seconds:g} s: {found.message}")
    counts = np.round(found.x[:count]).astype(int)
    high = given.hinge(counts / num)
    low = found.mip_dual_bound if found.mip_dual_bound is not None else 0.0
    return Interval(min(float(low), high) - 1e-6 * (1 + abs(high)), high + 1e-13), counts
