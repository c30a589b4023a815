"""Theorem 1's Δ: closed forms, brute force, regularisers that are not convex."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import seeds
from scipy.optimize import linprog

from landscape.arrays import trees
from landscape.duality.branches import NORMS
from landscape.duality.certified.divergence import NotConvexWarning
from landscape.duality.multi_branch import Ball, Frontier, chain, divergence, duality_gap, frontier, unit

ONE = (np.ones((1, 1)), np.ones(1))


def known(last: float, v) -> Frontier:
    r = np.linspace(0, last, 2001)
    return Frontier(r, v(r), (0.0, 1e-6))


@pytest.mark.parametrize(
    ("branch", "h", "box", "last", "v", "truth", "tol"),
    [
        (lambda w, x: w[0] ** 2, "l1", ([0], [1]), 1, lambda r: 1 - r**2 / 2, 1 / 8, 1e-5),
        (unit("relu"), "l1", ([0, 0], [1, 1]), 2, lambda r: 1 - r**2 / 8, 1 / 8, 1e-4),
        (unit("relu"), "l1", ([-1, -1], [1, 1]), 2, lambda r: 1 - r**2 / 8, 9 / 32, 1e-4),
        (chain(3), "squared_l2", ([0] * 3, [1] * 3), 3, lambda r: 1 - (r / 3) ** 1.5 / 2, 0.19245008972987525, 2e-3),
    ],
)
def test_reference_values(branch, h, box, last, v, truth, tol) -> None:
    found = divergence(branch, h, box, ONE, 2.0, known(last, v), tol=tol)
    assert found.paper.contains(truth)
    assert found.paper.width <= tol + 3e-6
    assert found.convex


def test_weight_decay_has_no_gap_although_delta_is_positive() -> None:
    found = frontier(unit("relu"), "squared_l2", ([0, 0], [1, 1]), ONE, 2.0, budgets=40)
    assert found.delta.lo > 0.1
    gap = duality_gap(found, 3, 0.7)
    assert gap.gap.contains(0.0)
    assert gap.delta_worst == found.delta
    assert gap.ratio.hi < 1e-2


def test_regularisers_that_are_not_convex() -> None:
    """h = √w, f = w: the paper's Δ is 0 while the gap is 1/8 at I = 1, K = 1/2; with conv h the bound holds again."""
    square = known(1, lambda r: 1 - r**2 / 2)
    with pytest.warns(NotConvexWarning, match="Theorem 1 does not apply"):
        found = divergence(lambda w, x: w[0], lambda w: jnp.sqrt(w[0]), ([0], [1]), ONE, 2.0, square, tol=1e-4)
    assert not found.convex
    assert found.paper.contains(0.0)
    assert found.paper.hi < 1e-3
    assert duality_gap(square, 1, 0.5).gap.contains(1 / 8)
    assert found.bertsekas.contains(1 / 8)


def test_a_convex_function_of_the_user_is_not_accused() -> None:
    def h(w: jax.Array) -> jax.Array:
        return jnp.sum(jnp.abs(w)) + w[0] ** 2

    found = frontier(unit("tanh"), h, ([-1, -1], [1, 1]), ONE, 2.0, budgets=30, tol=1e-4)
    assert found.delta.width < 1e-2


def test_equals_a_linear_program() -> None:
    """On random data and sets, Δ is at least what a linear program over a sample gives at its points, and G₁."""
    seed = int(seeds.generator().integers(2**31))
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(5, 1)), rng.choice([-1.0, 1.0], 5)
    branch = unit(rng.choice(["tanh", "relu", "sine"]))
    domain = Ball(rng.normal(size=2) / 4, 1.0) if rng.random() < 0.5 else (-np.ones(2), np.ones(2))
    h = rng.choice(list(NORMS))
    found = frontier(branch, h, domain, (x, y), 3.0, budgets=60, tol=1e-4)
    assert found.nonconvexity.lo <= found.delta.hi, seed
    lo, hi = (domain.lo, domain.hi) if isinstance(domain, Ball) else domain
    w = rng.uniform(lo, hi, (1500, 2))
    w = w[domain.contains(w)] if isinstance(domain, Ball) else w
    with trees.float64():
        f = jax.vmap(jax.vmap(branch, (None, 0)), (0, None))
        loss = np.asarray(1 - f(jnp.asarray(w), jnp.asarray(x)) @ y / len(y) / 3.0)
        sizes = np.asarray(jax.vmap(NORMS[h])(jnp.asarray(w)))
    lower = np.interp(sizes, found.budgets, found.lower)
    for i in range(0, 200, 10):
        hull = linprog(loss, A_eq=np.vstack([w.T, np.ones(len(w))]), b_eq=[*w[i], 1], method="highs").fun
        assert lower[i] - hull <= found.delta.hi, seed
