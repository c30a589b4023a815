"""Estimates for large branches: labelled, on the right side of certified values, never taken for certificates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import seeds

from landscape import networks
from landscape.duality.estimates import Estimate, FrontierEstimate, UpperBound, estimate_frontier, estimate_gap
from landscape.duality.multi_branch import duality_gap, frontier, unit


@pytest.fixture(scope="module")
def data() -> tuple[np.ndarray, np.ndarray]:
    rng = seeds.generator()
    return rng.normal(size=(8, 1)), rng.choice([-1.0, 1.0], 8)


@pytest.fixture(scope="module")
def found(data) -> FrontierEstimate:
    key = jax.random.key(0)
    return estimate_frontier(networks.relu_branch(1), "l1", data, 5.0, 2.0, key, budgets=8, starts=8, steps=200)


def test_bounds_lie_above_certified_values(data, found) -> None:
    """A small branch done both ways: the search's values bound the certified ones from above, and come near."""
    exact = frontier(unit("relu"), "l1", ([-2, -2], [2, 2]), data, 5.0, budgets=60, delta=False)
    lower = np.interp(found.budgets, exact.budgets, exact.lower)
    assert (found.upper >= lower - 1e-12).all()
    assert (found.upper <= lower + 2e-3).all()
    for branches in (1, 4, 30):
        estimate, certified = estimate_gap(found, branches, 1.1), duality_gap(exact, branches, 1.1)
        assert estimate.primal.value >= certified.primal.lo
        assert estimate.hull.value >= certified.dual.lo
        assert estimate.dual.value <= estimate.hull.value + 1e-12
        assert estimate.gap.value == pytest.approx(estimate.primal.value - estimate.dual.value)


def test_labels(found) -> None:
    gap = estimate_gap(found, 5, 2.0)
    assert isinstance(gap.gap, Estimate)
    assert isinstance(gap.dual, Estimate)
    assert isinstance(gap.primal, UpperBound)
    assert gap.gap.kind == found.kind == "estimate"
    assert "estimate" in repr(gap.gap)
    with pytest.raises(ValueError, match="certified frontiers"):
        duality_gap(found, 5, 2.0)
    with pytest.raises(ValueError, match="beyond"):
        estimate_gap(found, 2, 3.0)


def test_starts_are_live_and_searched_in_one_call(data) -> None:
    """Dead units (a bias far below zero) are not used as starts; the network is traced once, whatever the starts."""
    traces = []

    def init(key: jax.Array) -> jax.Array:
        w = jax.random.normal(key, (3,))
        return w.at[2].add(jnp.where(jax.random.bernoulli(jax.random.fold_in(key, 1), 0.8), -50.0, 0.0))

    def apply(w: jax.Array, x: jax.Array) -> jax.Array:
        traces.append(1)
        return w[0] * jax.nn.relu(w[1] * x + w[2])

    network = networks.Network(init, apply)
    counts = []
    for starts in (4, 32):
        traces.clear()
        found = estimate_frontier(network, "l1", data, 9.0, 2.0, jax.random.key(2), budgets=3, starts=starts, steps=20)
        counts.append(len(traces))
        assert 0.02 < found.live < 0.6
    assert counts[1] <= counts[0] < 20
    assert isinstance(found, FrontierEstimate)


def test_wrong_use_says_what_to_do(data) -> None:
    dead = networks.Network(lambda key: -jnp.ones(1), lambda w, x: 0 * x)
    with pytest.raises(ValueError, match="dead region"):
        estimate_frontier(dead, "l1", data, 5.0, 2.0, jax.random.key(0))
    with pytest.raises(ValueError, match="positive"):
        estimate_frontier(networks.relu_branch(1), "l1", data, 5.0, 0.0, jax.random.key(0))
    with pytest.raises(ValueError, match="0 at 0"):
        estimate_frontier(networks.relu_branch(1), lambda w: 1 + w @ w, data, 5.0, 2.0, jax.random.key(0))
