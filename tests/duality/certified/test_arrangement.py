"""ReLU units with data in the plane, the smallest τ, frontiers in closed form: against sampling, branch and bound."""

import numpy as np
import pytest
import seeds

from landscape.duality.certified.arrangement import plane_frontier, sweep
from landscape.duality.certified.assumption import check_tau, margins, smallest_tau
from landscape.duality.certified.closed_forms import closed_form
from landscape.duality.multi_branch import Ball, Interval, circle, duality_gap, frontier, unit


def plane_data(rng: np.random.Generator, examples: int) -> tuple[np.ndarray, np.ndarray]:
    x = rng.normal(size=(examples, 2))
    if rng.random() < 0.3:
        x[: examples // 2] = np.round(x[: examples // 2])
    return x, rng.choice([-1.0, 1.0], examples)


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_the_sweep_beats_and_meets_sampling(norm: str) -> None:
    seed = int(seeds.generator().integers(2**31))
    rng = np.random.default_rng(seed)
    for _ in range(30):
        x, y = plane_data(rng, int(rng.integers(1, 12)))
        found = sweep((x, y), norm)
        angle = np.linspace(0, 2 * np.pi, 20001)
        u = np.stack([np.cos(angle), np.sin(angle)], 1)
        u = u / np.abs(u).sum(1, keepdims=True) if norm == "l1" else u
        values = (np.maximum(x @ u.T, 0) * y[:, None]).mean(0)
        assert values.max() <= found.largest.hi + 1e-14, seed
        assert values.min() >= found.smallest.lo - 1e-14, seed
        assert values.max() > found.largest.lo - 1e-3, seed
        assert values.min() < found.smallest.hi + 1e-3, seed
        for at, value in ((found.at_largest, found.largest), (found.at_smallest, found.smallest)):
            assert value.contains(float((np.maximum(x @ at, 0) * y).mean())), seed
            length = np.abs(at).sum() if norm == "l1" else np.sqrt((at**2).sum())
            assert length == pytest.approx(1)
        assert found.sectors <= 2 * len(x)


def test_the_plane_agrees_with_branch_and_bound() -> None:
    """On budgets that the corners of the box do not reach, the box and the product of balls are the same set."""
    rng = seeds.generator()
    size = str(rng.choice(["l1", "l2"]))
    x, y = plane_data(rng, 6)
    exact = plane_frontier((x, y), 5.0, size=size, budgets=500)
    traced = frontier(unit("relu", 2), size, (-np.ones(3), np.ones(3)), (x, y), 5.0, budgets=24, tol=1e-3, delta=False)
    inside = traced.budgets <= 1.0
    value = exact(traced.budgets)
    assert (traced.lower <= value + 1e-9)[inside].all()
    assert (traced.upper_at_budgets >= value - 1e-9)[inside].all()
    assert np.max((traced.upper_at_budgets - traced.lower)[inside]) < 3e-3


def test_unequal_bounds_divide_the_budget_as_a_search_does() -> None:
    x, y = np.array([[1.0, 0.0]]), np.ones(1)
    for size, output, input in (("sum", 0.5, 3.0), ("l2", 2.0, 1.0), ("squared_l2", 0.5, 1.0)):
        found = plane_frontier((x, y), 8.0, size=size, output=output, input=input, budgets=20)
        a, b = np.meshgrid(np.linspace(0, output, 401), np.linspace(0, input, 401), indexing="ij")
        h = {"sum": a + b, "l2": np.hypot(a, b), "squared_l2": a**2 + b**2}[size]
        for r, low, high in zip(found.budgets, found.lower, found.upper_at_budgets, strict=True):
            best = 1 - np.max(np.where(h <= r + 1e-12, a * b, 0)) / 8
            assert low <= best + 1e-12
            assert best <= high + 2e-2 * max(output, input)


def test_norms_leave_a_gap_and_weight_decay_none() -> None:
    x, y = plane_data(seeds.generator(), 40)
    K = (5**0.5 - 1) / 2
    unsquared, squared = (plane_frontier((x, y), 9.0, size=size) for size in ("sum", "squared_l2"))
    for branches in (1, 5, 100):
        found = duality_gap(unsquared, branches, 2 * K).gap
        assert found.width < 1e-6
        theta = branches * K % 1
        gain = 4 * (1 - float(unsquared(2.0)))
        assert found.contains(gain * theta * (1 - theta) / 4 / branches)
        assert duality_gap(squared, branches, 2 * K).gap.contains(0.0)


def test_closed_forms_hold_between_budgets() -> None:
    for v, last in ((lambda r: 1 - r**1.5 / 2, 1.0), (lambda r: -(r**2) + r**4 / 3, 1.0), (lambda r: -abs(r), 2.0)):
        found = closed_form(v, last, steps=37)
        r = np.linspace(0, last, 9999)
        assert (np.interp(r, found.budgets, found.lower) <= v(r) + 1e-15).all()
        assert (np.interp(r, found.budgets, found.upper) >= v(r) - 1e-15).all()
        assert max(part.max() for part in found.band) < 3 * (last / 37) ** 1.5


def test_the_smallest_tau() -> None:
    """For a relu unit on a box the largest margin is at a corner; branches average; the circle's is at most ‖w‖."""
    rng = seeds.generator()
    x, y = rng.normal(size=(7, 2)), rng.choice([-1.0, 1.0], 7)
    box = (-np.ones(3), np.ones(3))
    each = margins(unit("relu", 2), box, (x, y))
    truth = np.abs(x).sum(1)
    assert (each.lo <= truth + 1e-12).all()
    assert (truth <= each.hi).all()
    one = smallest_tau([(unit("relu", 2), box, 1)], (x, y))
    assert one.contains(truth.max())
    assert one.width < 2e-3
    half = smallest_tau([(unit("relu", 2), box, 3), (unit("linear", 2), (np.zeros(3), np.zeros(3)), 3)], (x, y))
    assert half.contains(truth.max() / 2)
    around = smallest_tau([(unit("relu", 2, output=False), Ball(np.zeros(2), 2.0), 1)], circle(64))
    assert around.lo <= 2.0 <= around.hi
    check_tau(one.hi + 1e-9, one)
    with pytest.raises(ValueError, match="Assumption 1 fails"):
        check_tau(one.lo - 1e-9, one)
    with pytest.raises(ValueError, match="could not be verified"):
        check_tau(1.5, Interval(1.0, 2.0))


def test_wrong_use_says_what_to_do() -> None:
    x, y = np.ones((3, 2)), np.ones(3)
    with pytest.raises(ValueError, match=r"x \[N, 2\]"):
        sweep((np.ones((3, 3)), y))
    with pytest.raises(ValueError, match="l1 or l2"):
        sweep((x, y), "linf")
    with pytest.raises(ValueError, match="size must be"):
        plane_frontier((x, y), 1.0, size="linf")
    with pytest.raises(ValueError, match="at least one branch"):
        smallest_tau([], (x, y))
