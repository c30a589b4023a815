"""Certified frontiers of traced branches: closed forms, sampling, population risks, refusals."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import seeds

from landscape import networks
from landscape.arrays import trees
from landscape.duality.branches import ACTIVATIONS, NORMS
from landscape.duality.certified.intervals import NoRule
from landscape.duality.multi_branch import Ball, chain, circle, duality_gap, frontier, sphere, unit

GOLDEN = (5**0.5 - 1) / 2
ONE = (np.ones((1, 1)), np.ones(1))
UNIT_BOX = ((0.0, 0.0), (1.0, 1.0))
SQUARE = ((-1.0, -1.0), (1.0, 1.0))


def sawtooth(theta: float, power: float = 2.0) -> float:
    return (theta - theta**power) / 2


def test_reference_branches() -> None:
    """R1, R2 and R4 traced: v inside, values to 1e-4, the known gaps inside."""
    cases = [
        (lambda w, x: w[0] ** 2, "l1", ((0,), (1,)), lambda r: 1 - r**2 / 2, 1.0),
        (unit("relu"), "l1", UNIT_BOX, lambda r: 1 - r**2 / 8, 2.0),
        (lambda w, x: w[0] * jnp.maximum(w[1] * x[0], 0), "l1", SQUARE, lambda r: 1 - r**2 / 8, 2.0),
    ]
    for branch, h, box, v, last in cases:
        found = frontier(branch, h, box, ONE, 2.0)
        assert found.budgets[-1] == pytest.approx(last)
        assert (found.lower <= v(found.budgets) + 1e-12).all()
        assert (found.upper_at_budgets >= v(found.budgets) - 1e-12).all()
        assert np.max(found.upper_at_budgets - found.lower) <= 1e-4
        between = np.linspace(0, last, 999)
        assert (np.interp(between, found.budgets, found.upper) >= v(between) - 1e-12).all()
        assert (np.interp(between, found.budgets, found.lower) <= v(between) + 1e-12).all()
        for branches in (1, 2, 10, 100):
            gap = duality_gap(found, branches, GOLDEN * last).gap
            assert gap.contains(sawtooth(branches * GOLDEN % 1) / branches)
            assert gap.width < 1e-4
    sigmoid = frontier(lambda w, x: jax.nn.sigmoid(8 * (w[0] - 0.5)), "l1", ((0,), (1,)), ONE, 2.0)
    for branches, gap in {1: 0.099474178700940864, 3: 0.017330536612742164, 30: 1.71537881921812e-8}.items():
        found = duality_gap(sigmoid, branches, 0.3)
        assert found.gap.contains(gap)
        assert found.dual.contains(0.81653501386602137644)


def test_three_layers_have_a_gap() -> None:
    found = frontier(chain(3), "squared_l2", (np.zeros(3), np.ones(3)), ONE, 2.0, budgets=60, tol=1e-4, delta=False)
    truth = 1 - (found.budgets / 3) ** 1.5 / 2
    assert (found.lower <= truth + 1e-12).all()
    assert (found.upper_at_budgets >= truth - 1e-12).all()
    for branches in (1, 4, 11):
        gap = duality_gap(found, branches, 3 * GOLDEN).gap
        assert gap.contains(sawtooth(branches * GOLDEN % 1, 1.5) / branches)
    assert duality_gap(found, 1, 3 * GOLDEN).gap.lo > 0


def test_weight_decay_on_two_layers_has_gap_zero_to_second_order() -> None:
    widths = []
    for budgets in (8, 32):
        found = frontier(
            unit("relu"), "squared_l2", SQUARE, ONE, 2.0, budgets=budgets, tol=0.02 / budgets**2, delta=False
        )
        gap = duality_gap(found, 7, 2 * GOLDEN).gap
        assert gap.lo == 0.0
        widths.append(gap.hi)
    for coarse, fine in itertools.pairwise(widths):
        assert fine < coarse / 10


@pytest.mark.parametrize("case", range(3))
def test_no_sample_is_below(case: int) -> None:
    """For random activations, data, norms and sets, no point of W beats the bound; the minimisers are feasible."""
    seed = int(seeds.generator().integers(2**31))
    rng = np.random.default_rng(seed)
    activation = rng.choice(list(ACTIVATIONS)[case::3])
    x, y = rng.normal(size=(6, 1)), rng.choice([-1.0, 1.0], 6)
    shift = bool(rng.random() < 0.3)
    size = 3 if shift else 2
    domain = Ball(rng.normal(size=size) / 4, 1.0) if rng.random() < 0.5 else (-np.ones(size), rng.uniform(0.2, 1, size))
    h = rng.choice(list(NORMS))
    branch = unit(activation, 1, shift=shift)
    found = frontier(branch, h, domain, (x, y), 4.0, budgets=24, tol=1e-3, delta=False)
    box = domain if isinstance(domain, Ball) else None
    lo, hi = (box.lo, box.hi) if box else domain
    w = rng.uniform(lo, hi, (20000, size))
    w = w[box.contains(w)] if box else w
    with trees.float64():
        f = jax.jit(jax.vmap(jax.vmap(branch, (None, 0)), (0, None)))
        loss = np.asarray(1 - f(w, x) @ y / len(y) / 4.0)
        sizes = np.asarray(jax.vmap(NORMS[h])(jnp.asarray(w)))
        at = np.asarray(1 - f(found.minimisers, x) @ y / len(y) / 4.0)
        used = np.asarray(jax.vmap(NORMS[h])(jnp.asarray(found.minimisers)))
    lower = np.interp(sizes, found.budgets, found.lower)
    assert (loss >= lower - 1e-12).all(), (seed, activation, h, domain)
    assert (used <= found.budgets + 1e-12).all(), seed
    assert (at <= found.values + 1e-12).all(), seed
    assert np.median(found.upper_at_budgets - found.lower) < 2e-3, seed


def test_population_risk_on_circle_and_sphere() -> None:
    """x uniform, y = sgn⟨u, x⟩, f = relu⟨w, x⟩: v(r) = 1 − c r/τ, c = 1/π on the circle, 1/4 on the sphere."""
    cases = [(circle(400, (1, 0.5)), 2, 1 / math.pi, 40), (sphere(12, 16, (1, 0.5, -2)), 3, 0.25, 5)]
    for data, size, rate, budgets in cases:
        branch = unit("relu", size, output=False)
        found = frontier(branch, "l2", Ball(np.zeros(size), 1.0), data, 2.0, budgets=budgets, tol=1e-3, delta=False)
        truth = 1 - rate * found.budgets / 2
        assert (found.lower <= truth).all()
        assert (truth <= found.upper_at_budgets).all()
        assert np.max(found.upper_at_budgets - found.lower) < (2e-3 if size == 2 else 8e-2)
        assert duality_gap(found, 5, 0.4).gap.contains(0.0)


def test_a_network_is_a_branch() -> None:
    x, y = seeds.generator().normal(size=(5, 1)), np.array([1.0, -1, 1, -1, 1])
    own = frontier(unit("relu"), "l1", SQUARE, (x, y), 4.0, budgets=20, delta=False)
    same = frontier(networks.relu_branch(1), "l1", SQUARE, (x, y), 4.0, budgets=20, delta=False)
    assert (own.lower <= same.upper_at_budgets + 1e-12).all()
    assert (same.lower <= own.upper_at_budgets + 1e-12).all()


def test_a_lipschitz_constant_replaces_a_missing_rule() -> None:
    def branch(w: jax.Array, x: jax.Array) -> jax.Array:
        return jnp.sort(jnp.stack([w[0] * x[0], -w[0] * x[0]]))[1]

    with pytest.raises(NoRule, match="lipschitz"):
        frontier(branch, "l1", ((-1,), (1,)), ONE, 2.0, budgets=10)
    found = frontier(branch, "l1", ((-1,), (1,)), ONE, 2.0, budgets=10, tol=1e-3, lipschitz=0.5)
    truth = 1 - found.budgets / 2
    assert (found.lower <= truth + 1e-12).all()
    assert (truth <= found.upper_at_budgets + 1e-9).all()
    assert np.max(found.upper_at_budgets - found.lower) < 2e-3


def test_when_the_search_is_cut_short_the_bounds_still_hold() -> None:
    found = frontier(unit("tanh"), "l1", SQUARE, ONE, 2.0, budgets=50, max_cells=100, delta=False)
    assert np.max(found.values - found.lower) > 1e-3
    truth = 1 - found.budgets / 4 * np.tanh(found.budgets / 2)
    assert (found.lower <= truth + 1e-12).all()


def test_a_jump_is_noticed() -> None:
    with pytest.raises(ValueError, match="not continuous"):
        frontier(lambda w, x: jnp.where(w[0] > 0.37, w[0], 0.01 * w[0]), "l1", ((0,), (1,)), ONE, 2.0, budgets=20)


def test_wrong_use_says_what_to_do() -> None:
    with pytest.raises(ValueError, match="compact"):
        frontier(unit("relu"), "l1", ((-np.inf, 0), (1, 1)), ONE, 2.0)
    with pytest.raises(ValueError, match="compact"):
        frontier(unit("relu"), "l1", Ball(np.zeros(2), np.inf), ONE, 2.0)
    with pytest.raises(ValueError, match=r"(nan|inf) at w"):
        frontier(lambda w, x: jnp.log(w[0]), "l1", ((-1,), (1,)), ONE, 2.0)
    with pytest.raises(ValueError, match=r"(nan|inf) at w"):
        frontier(lambda w, x: -1 / jnp.abs(w[0]), "l1", ((-1,), (1,)), ONE, 2.0)
    with pytest.raises(ValueError, match="at most 3 parameters"):
        frontier(unit("relu", 4), "l1", (-np.ones(5), np.ones(5)), (np.ones((1, 4)), np.ones(1)), 2.0)
    with pytest.raises(ValueError, match="not bounded"):
        frontier(unit("relu"), "l1", SQUARE, (np.array([[np.inf]]), np.ones(1)), 2.0)
    with pytest.raises(ValueError, match="Labels"):
        frontier(unit("relu"), "l1", SQUARE, (np.ones((2, 1)), np.array([0.0, 1.0])), 2.0)
    with pytest.raises(ValueError, match="τ must be positive"):
        frontier(unit("relu"), "l1", SQUARE, ONE, 0.0)
    with pytest.raises(ValueError, match="squared_l2, l2, l1, linf"):
        frontier(unit("relu"), "weight decay", SQUARE, ONE, 2.0)
    with pytest.raises(ValueError, match="activation"):
        unit("step")
    with pytest.raises(ValueError, match="one output"):
        frontier(lambda w, x: w, "l1", SQUARE, ONE, 2.0)
