"""Branches that show Theorem 1: a visible 1/I, no gap at all, two classes of real data, the true hinge, an estimate."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from landscape.datasets import Dataset, synthetic_teacher
from landscape.duality import convexification, estimates
from landscape.duality.branches import chain, unit
from landscape.duality.certified import arrangement
from landscape.duality.certified.assumption import check_tau, smallest_tau
from landscape.duality.certified.closed_forms import closed_form
from landscape.duality.certified.frontiers import Frontier, Interval
from landscape.duality.certified.plane_branch import plane_delta
from landscape.duality.multi_branch import divergence, duality_gap, frontier
from landscape.networks import relu_branch

COPIES = (1, 2, 3, 10)
"""Numbers of epigraphs averaged."""


def one_example(name: str, tau: float, budgets: int) -> tuple[Frontier, Interval]:
    """A branch on the one example x = y = 1, W = [0, 1]^p: its frontier with Δ, and the smallest admissible τ.

    Args:
        name: "relu_l1" is a [w]_+ with |a| + |w|, v = 1 − (r/2)²/τ; "chain3_decay" three layers with Σ w², v = 1 −
            (r/3)^(3/2)/τ; "relu_decay" a [w]_+ with a² + w², v = 1 − r/(2τ), traced instead of taken from its formula.
        tau: τ.
        budgets: Steps of the grid.

    Raises:
        ValueError: Another name, or a τ for which Assumption 1 fails.
    """
    if name not in ("relu_l1", "chain3_decay", "relu_decay"):
        raise ValueError(f"There is no example {name!r}; choose relu_l1, chain3_decay or relu_decay.")
    data = np.ones((1, 1)), np.ones(1)
    depth = 3 if name == "chain3_decay" else 2
    h, power = ("l1", 2.0) if name == "relu_l1" else ("squared_l2", 1.5)
    branch = chain(3) if depth == 3 else unit("relu")
    box = np.zeros(depth), np.ones(depth)
    smallest = smallest_tau([(branch, box, 1)], data, tol=1e-6)
    check_tau(tau, smallest)
    if name == "relu_decay":
        found = frontier(branch, h, box, data, tau, budgets=min(budgets, 200), tol=1e-6, delta=False, name=name)
    else:
        found = closed_form(lambda r: 1 - (r / depth) ** power / tau, depth, steps=budgets, name=name)
    delta = divergence(branch, h, box, data, tau, found, tol=1e-3).paper
    return dataclasses.replace(found, delta=delta), smallest


def two_classes(data: Dataset, tau: float, budgets: int) -> tuple[Frontier, Interval]:
    """One ReLU unit a [⟨u, x⟩]_+, |a| ≤ 1, ‖u‖ ≤ 1, h = |a| + ‖u‖, on the plane of two principal components, exactly.

    Args:
        data: Labels 0 (taken as −1) and 1.
        tau: τ.
        budgets: Steps of the grid.
    """
    points = principal_plane(np.asarray(data.x, np.float64)), np.where(np.asarray(data.y) == 0, -1.0, 1.0)
    smallest = arrangement.plane_tau(points)
    found = arrangement.plane_frontier(points, tau, size="sum", budgets=budgets)
    delta = plane_delta(points, tau, found, tol=2e-4)
    return dataclasses.replace(found, delta=delta), Interval(smallest, smallest)


def principal_plane(x: np.ndarray) -> np.ndarray:
    """Examples [N, D] on their two principal components, scaled so that the longest has length 1, [N, 2]."""
    centred = x - x.mean(0)
    _, vectors = np.linalg.eigh(centred.T @ centred)
    plane = centred @ vectors[:, :-3:-1]
    return plane / np.sqrt((plane**2).sum(1)).max()


def epigraph(tau: float) -> dict[str, Any]:
    """The lower edge of the Minkowski average of I augmented epigraphs (§4a) of "relu_l1", r -> P_I(r)."""
    found = closed_form(lambda r: 1 - (r / 2) ** 2 / tau, 2.0, steps=240)
    budgets = np.linspace(0, 2, 121)
    edges = [[float(duality_gap(found, n, r).primal) for r in budgets] for n in COPIES]
    return {"budget": budgets, "edge": edges, "copies": COPIES, "hull": 1 - budgets / 2 / tau}


def hinge(branches: Sequence[int], share: float) -> dict[str, Any]:
    """P_I − D_conv of the true hinge, τ = 0.5: tanh units with l1 norm on eight examples, 121 settings of W."""
    rng = np.random.default_rng(0)
    data = rng.normal(size=(8, 1)), rng.choice([-1.0, 1.0], 8)
    given = convexification.settings(unit("tanh"), "l1", (-np.ones(2), np.ones(2)), data, 0.5, 121)
    found = [convexification.convexification_gap(given, n, 2 * share, seconds=10) for n in branches]
    return {"branches": branches, **{key: [getattr(f, key) for f in found] for key in ("primal", "relaxed", "gap")}}


def estimate(branches: Sequence[int], share: float, seed: int) -> dict[str, Any]:
    """Two ReLU units a branch on the synthetic teacher's data, 22 parameters, l1 norm: multi-start estimates."""
    key = jax.random.key(seed)
    data, network = synthetic_teacher(key, examples=200), relu_branch(10, hidden=2)
    found = estimates.estimate_frontier(network, "l1", data, 20.0, 4.0, key, budgets=16, starts=16, steps=400)
    gaps = [estimates.estimate_gap(found, n, 4.0 * share) for n in branches]
    values = {key: [float(getattr(g, key)) for g in gaps] for key in ("primal", "hull", "dual", "gap")}
    return {"branches": branches, "budget": found.budgets, "upper": found.upper, "live": found.live, **values}
