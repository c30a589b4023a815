"""The true hinge: integer program against joint enumeration, the linear program's bounds, shrinking with I."""

import itertools

import numpy as np
import pytest
import seeds

from landscape.duality.convexification import (
    Settings,
    convexification_gap,
    relaxation_on,
    settings,
)
from landscape.duality.multi_branch import unit


def random_settings(rng: np.random.Generator) -> Settings:
    count, examples = int(rng.integers(2, 15)), int(rng.integers(1, 8))
    weight = rng.dirichlet(np.ones(examples))
    sizes = rng.exponential(size=count)
    return Settings(rng.normal(size=(count, examples)), sizes, rng.choice([-1.0, 1.0], examples), weight, 0.7)


def enumerate_jointly(given: Settings, num_branches: int, K: float) -> float:
    """P_I by trying every choice of settings."""
    choices = map(list, itertools.combinations_with_replacement(range(len(given.sizes)), num_branches))
    allowed = [choice for choice in choices if given.sizes[choice].mean() <= K + 1e-12]
    margins = [given.y * given.outputs[choice].mean(0) / given.tau for choice in allowed]
    return min(float(given.weight @ np.maximum(0.0, 1 - margin)) for margin in margins)


def test_the_integer_program_equals_enumeration() -> None:
    seed = int(seeds.generator().integers(2**31))
    rng = np.random.default_rng(seed)
    for _ in range(40):
        given = random_settings(rng)
        K = rng.uniform(given.sizes.min(), given.sizes.max())
        for branches in (1, 2):
            found = convexification_gap(given, branches, K)
            truth = enumerate_jointly(given, branches, K)
            assert found.primal.contains(truth), (seed, found, truth)
            assert found.primal.width < 1e-5, seed
            assert found.counts.sum() == branches
            assert found.counts @ given.sizes <= branches * K + 1e-6
            assert found.relaxed.lo <= truth + 1e-9, seed
            assert found.relaxed.width < 1e-6, seed


def test_the_gap_shrinks_with_the_branches() -> None:
    """A branch that is off or on: no mixture of few is the wanted one, and the gap falls about as 1/I."""
    given = Settings(np.array([[0.0], [1.0]]), np.array([0.0, 1.0]), np.ones(1), np.ones(1), 1.0)
    K = (5**0.5 - 1) / 2
    for branches in (1, 2, 3, 10, 50):
        found = convexification_gap(given, branches, K)
        assert found.relaxed.contains(1 - K)
        assert found.gap.contains(K - np.floor(branches * K) / branches)


def test_all_of_the_set_from_below() -> None:
    """For f = w, h = |w| on [−1, 1] and one example the true hinge's convexification is max(0, 1 − K/τ)."""
    x, y = np.ones((1, 1)), np.ones(1)
    branch = unit("linear", 1, output=False)
    for tau, K in ((0.5, 0.3), (0.5, 0.8), (2.0, 0.4)):
        found = relaxation_on(branch, "l1", ([-1], [1]), (x, y), tau, K)
        assert found.contains(max(0.0, 1 - K / tau))
        assert found.width < 2e-3
    rng = seeds.generator()
    x, y = rng.normal(size=(5, 1)), rng.choice([-1.0, 1.0], 5)
    box = ([-1, -1], [1, 1])
    found = relaxation_on(unit("tanh"), "l1", box, (x, y), 0.3, 0.8)
    given = settings(unit("tanh"), "l1", box, (x, y), 0.3)
    assert found.lo <= convexification_gap(given, 3, 0.8).primal.hi
    assert found.width < 5e-2


def test_wrong_use_says_what_to_do() -> None:
    given = random_settings(seeds.generator())
    with pytest.raises(ValueError, match="infeasible"):
        convexification_gap(given, 3, given.sizes.min() - 0.1)
    with pytest.raises(ValueError, match="at least 1"):
        convexification_gap(given, 0, 1.0)
    with pytest.raises(ValueError, match="finite"):
        convexification_gap(given._replace(sizes=given.sizes * np.nan), 2, 1.0)
