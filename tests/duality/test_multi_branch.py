"""Theorem 1's primal, dual and gap: reference values, brute force, random problems, wrong use."""

import itertools
import math

import jax.numpy as jnp
import numpy as np
import pytest
import seeds
from scipy.optimize import linprog

import landscape as ls
from landscape.duality.certified.closed_forms import closed_form
from landscape.duality.certified.frontiers import envelope
from landscape.duality.multi_branch import Frontier, Interval, duality_gap

GOLDEN = (5**0.5 - 1) / 2
STEPS = 2000
UNIT = np.linspace(0, 1, STEPS + 1)


def quadratic(scale: float = 1.0, last: float = 1.0) -> Frontier:
    """R1 and R2: v = 1 − (r/scale)²/2 on [0, last]."""
    r = np.linspace(0, last, STEPS + 1)
    return Frontier(r, 1 - (r / scale) ** 2 / 2, (0.0, (last / STEPS / scale) ** 2 / 8))


def chain(depth: int) -> Frontier:
    """R3: v = 1 − (r/H)^(H/2)/2 on [0, H], concave or straight: above its secants by at most twice the value midway."""
    r = np.linspace(0, depth, STEPS + 1)
    v = 1 - (r / depth) ** (depth / 2) / 2
    middle = 1 - ((r[:-1] + r[1:]) / 2 / depth) ** (depth / 2) / 2
    rises = 2 * np.maximum(middle - (v[:-1] + v[1:]) / 2, 0) if depth > 2 else np.zeros(STEPS)
    above = np.maximum(np.append(rises, 0.0), np.append(0.0, rises))
    return Frontier(r, v, (0.0, above), at_budgets=0.0)


def sawtooth(theta: float) -> float:
    return theta * (1 - theta)


@pytest.mark.parametrize("branches", [1, 2, 3, 7, 30, 100, 1000])
def test_closed_forms_lie_inside(branches: int) -> None:
    theta = (branches * GOLDEN) % 1
    cases = [(quadratic(), 1.0, sawtooth(theta) / 2)]
    cases += [(quadratic(2.0, 2.0), 2.0, sawtooth(theta) / 2)]
    cases += [(chain(h), h, (theta - theta ** (h / 2)) / 2) for h in (2, 3, 4)]
    for frontier, unit, truth in cases:
        found = duality_gap(frontier, branches, GOLDEN * unit)
        assert found.gap.contains(truth / branches), (frontier, found)
        assert found.gap.width <= 1e-6
        assert found.gap.lo <= found.primal.hi - found.dual.lo


def test_quoted_digits() -> None:
    for branches, gap in {1: 0.11803398874989485, 3: 0.020768632916351211, 100: 0.00078974561327557481}.items():
        assert duality_gap(quadratic(), branches, GOLDEN).gap.contains(gap)
    curvature = 64 / 2 * (1 / (6 * math.sqrt(3)))
    sigmoid = Frontier(UNIT, 1 - 0.5 / (1 + np.exp(-8 * (UNIT - 0.5))), curvature / STEPS**2 / 8)
    for branches, gap in {1: 0.099474178700940864, 3: 0.017330536612742164, 30: 1.71537881921812e-8}.items():
        found = duality_gap(sigmoid, branches, 0.3)
        assert found.dual.contains(0.81653501386602137644)
        assert found.gap.contains(gap)
        assert found.gap.width <= 1e-6


def test_two_layers_with_weight_decay_have_no_gap() -> None:
    for steps in (10, 100, 1000):
        r = np.linspace(0, 2, steps + 1)
        found = duality_gap(Frontier(r, 1 - r / 4, 1 / steps**2), 17, 1.234)
        assert found.gap.contains(0.0)
        assert found.gap.width <= 2 / steps**2 + 1e-12


def random_branch(rng: np.random.Generator, size: int) -> tuple[Frontier, float]:
    """A piecewise linear g on W = [0, span] with h(w) = w, its frontier and its exact Δ."""
    g = (
        rng.normal(size=size + 1).cumsum() * rng.choice([0.1, 1.0]) + rng.normal()
        if rng.random() < 0.5
        else (rng.normal(size=size + 1) - rng.exponential() * np.linspace(0, 3, size + 1))
    )
    budgets = np.arange(size + 1) * 0.125
    v = np.minimum.accumulate(g)
    rises = np.where((g[:-1] > v[:-1]) & (v[1:] < v[:-1]), v[:-1] - v[1:], 0.0)
    above = np.maximum(np.append(rises, 0.0), np.append(0.0, rises))
    delta = float(np.max(v - envelope(budgets, g)))
    return Frontier(budgets, v, (0.0, above), at_budgets=0.0), delta


def brute_force(frontiers: list[Frontier], total: float) -> tuple[float, float]:
    """(P, D) of the piecewise linear models: every division with all but one branch on the grid; a linear program."""
    best = math.inf
    for free in range(len(frontiers)):
        others = [f for i, f in enumerate(frontiers) if i != free]
        for choice in itertools.product(*(range(len(f.budgets)) for f in others)):
            rest = total - sum(f.budgets[j] for f, j in zip(others, choice, strict=True))
            if rest >= frontiers[free].budgets[0] - 1e-12:
                value = sum(f.values[j] for f, j in zip(others, choice, strict=True)) + float(frontiers[free](rest))
                best = min(best, value)
    cost = np.concatenate([f.values for f in frontiers])
    blocks = np.zeros((len(frontiers), len(cost)))
    ends = np.cumsum([0, *(len(f.values) for f in frontiers)])
    for i in range(len(frontiers)):
        blocks[i, ends[i] : ends[i + 1]] = 1
    budgets = np.concatenate([f.budgets for f in frontiers])[None]
    dual = linprog(cost, budgets, [total], blocks, np.ones(len(frontiers)), method="highs").fun
    return best / len(frontiers), dual / len(frontiers)


def test_equals_brute_force() -> None:
    seed = int(seeds.generator().integers(2**31))
    rng = np.random.default_rng(seed)
    for _ in range(60):
        branches = int(rng.integers(1, 4))
        pool = [random_branch(rng, int(rng.integers(1, 9)))[0] for _ in range(branches)]
        exact = [Frontier(f.budgets + rng.integers(3) / 3, f.values) for f in pool]
        if rng.random() < 0.5:
            exact = [exact[0]] * branches
        low, high = (np.mean([f.budgets[i] for f in exact]) for i in (0, -1))
        K = rng.choice([low, rng.uniform(low, high), rng.uniform(low, high), high + 1])
        primal, dual = brute_force(exact, branches * K)
        found = duality_gap(exact, branches, K)
        assert abs(float(found.primal) - primal) < 1e-10, (seed, exact, K)
        assert abs(float(found.dual) - dual) < 1e-10, (seed, exact, K)
        assert abs(float(found.gap) - (primal - dual)) < 1e-10, (seed, exact, K)
        used = sum(s.branches * s.budget for s in found.shares)
        value = sum(s.branches * exact[s.kind](s.budget) for s in _by_frontier(found.shares, exact))
        assert used <= branches * K + 1e-9, seed
        assert abs(value / branches - primal) < 1e-10, (seed, found.shares)
        assert sum(s.branches for s in found.shares) == branches


def _by_frontier(shares, frontiers):
    """Shares count different frontiers; equal ones are merged."""
    distinct = list(dict.fromkeys(map(id, frontiers)))
    place = {k: next(i for i, f in enumerate(frontiers) if id(f) == d) for k, d in enumerate(distinct)}
    return [s._replace(kind=place[s.kind]) for s in shares]


def test_sharp_bound_on_random_problems() -> None:
    """0 ≤ I·gap ≤ Δ_worst on 2,000 fresh problems, half of them with different branches; I·gap from P and D apart."""
    seed = int(seeds.generator().integers(2**31))
    rng = np.random.default_rng(seed)
    ratios = []
    for trial in range(2000):
        branches = int(rng.integers(1, 11))
        pool = [random_branch(rng, int(rng.integers(2, 17))) for _ in range(branches if trial % 2 else 1)]
        frontiers, deltas = zip(*pool, strict=True)
        low, high = (np.mean([f.budgets[i] for f in frontiers]) for i in (0, -1))
        found = duality_gap(list(frontiers), branches, rng.uniform(low, high), max(deltas))
        assert found.primal.lo >= found.dual.lo - 1e-12, (seed, trial)
        assert branches * (found.primal.lo - found.dual.hi) <= max(deltas) + 1e-9, (seed, trial)
        assert found.gap.lo <= found.gap.hi, (seed, trial)
        if max(deltas) > 0:
            assert found.ratio.lo <= 1 + 1e-9, (seed, trial)
            assert found.paper_ratio.lo <= 0.5 + 1e-9, (seed, trial)
            ratios.append(found.ratio.lo)
    assert max(ratios) > 0.5, "the random problems never come near the bound: they show nothing"


def test_kinds_with_counts_equal_a_list() -> None:
    seed = int(seeds.generator().integers(2**31))
    rng = np.random.default_rng(seed)
    for _ in range(20):
        counts = rng.integers(1, 9, 3)
        kinds = [random_branch(rng, 12)[0] for _ in range(3)]
        flat = [
            Frontier(f.budgets, f.values, f.error, f.at_budgets)
            for f, n in zip(kinds, counts, strict=True)
            for _ in range(n)
        ]
        K = rng.uniform(0, 1.5)
        grouped, listed = duality_gap(kinds, counts.tolist(), K), duality_gap(flat, len(flat), K)
        np.testing.assert_allclose(grouped.primal, listed.primal, atol=1e-10, err_msg=str(seed))
        np.testing.assert_allclose(grouped.gap, listed.gap, atol=1e-10, err_msg=str(seed))


def test_windows_lose_nothing() -> None:
    """Doubling in windows equals adding the branches one at a time over all sums."""
    rng = seeds.generator()
    frontier = random_branch(rng, 10)[0]
    for branches in (37, 64):
        values, K = frontier.values, rng.uniform(0, 1.25)
        total = int(branches * K / 0.125)
        sums = values
        for _ in range(branches - 1):
            sums = np.array(
                [
                    np.min(sums[max(0, s - 10) : s + 1][::-1][: min(s, 10) + 1] + values[: min(s, 10) + 1])
                    if s < len(sums)
                    else np.min(sums[s - 10 :][::-1] + values[s - len(sums) + 1 :])
                    for s in range(len(sums) + 10)
                ]
            )
        exact = Frontier(frontier.budgets, values)
        found = duality_gap(exact, branches, total * 0.125 / branches)
        assert abs(float(found.primal) - sums[total] / branches) < 1e-10


def test_different_grids_share_one() -> None:
    fine, coarse = quadratic(), Frontier(np.linspace(0, 1.5, 701), 1 - np.linspace(0, 1.5, 701) / 4)
    truth = duality_gap([fine, Frontier(np.linspace(0, 1.5, 3001), 1 - np.linspace(0, 1.5, 3001) / 4)], 2, 0.4)
    found = duality_gap([fine, coarse], 2, 0.4)
    assert found.gap.lo <= truth.gap.hi
    assert truth.gap.lo <= found.gap.hi
    assert found.gap.width < 1e-5


def test_conventions_at_the_edges() -> None:
    boundary = duality_gap(Frontier(UNIT, 1 - np.sqrt(UNIT) / 2, (0.0, 0.005), at_budgets=0.0), 5, 0.0)
    assert boundary.gap == Interval(0.0, boundary.gap.hi)
    assert boundary.gap.hi < 1e-9
    assert boundary.primal.contains(1.0)
    slack = duality_gap(quadratic(), 4, 50.0)
    assert slack.gap.hi < 1e-6
    assert slack.multiplier == 0.0
    assert duality_gap(quadratic(), 4, math.inf).primal == slack.primal
    no_gap = duality_gap(Frontier(UNIT, 1 - UNIT / 2), 4, 0.3, delta=0.0)
    assert np.isnan(no_gap.ratio).all()
    assert math.isnan(float(no_gap.ratio))
    unknown = duality_gap(quadratic(), 4, GOLDEN)
    assert unknown.delta_worst.contains(1 / 8)
    assert math.isinf(unknown.delta_worst.hi)


def test_multiplier_and_shares() -> None:
    found = duality_gap(quadratic(), 100, GOLDEN)
    assert found.multiplier == pytest.approx(0.5)
    assert [s.branches for s in found.shares] == [38, 1, 61]
    assert [s.on_envelope for s in found.shares] == [True, False, True]


def test_wrong_use_says_what_to_do() -> None:
    with pytest.raises(ValueError, match="infeasible"):
        duality_gap(Frontier(UNIT + 1, 1 - UNIT), 3, 0.9)
    with pytest.raises(ValueError, match=r"values\[3\] is nan"):
        Frontier(UNIT, np.where(UNIT[3] == UNIT, np.nan, 1.0))
    with pytest.raises(ValueError, match="uniform"):
        Frontier(UNIT**2, 1 - UNIT)
    with pytest.raises(ValueError, match="cannot increase"):
        Frontier(UNIT, UNIT)
    with pytest.raises(ValueError, match="negative"):
        Frontier(UNIT, 1 - UNIT, -1e-3)
    with pytest.raises(ValueError, match="one each"):
        duality_gap([quadratic(), quadratic()], 3, 0.5)
    with pytest.raises(ValueError, match="at least 1"):
        duality_gap(quadratic(), 0, 0.5)
    with pytest.raises(ValueError, match="K must be a number"):
        duality_gap(quadratic(), 1, math.nan)


@pytest.mark.parametrize(
    "bad", [math.inf, math.nan, (0.0, math.inf), (math.nan, 0.0), np.where(UNIT == 0.5, math.nan, 0)]
)
def test_bands_that_say_nothing_are_refused(bad) -> None:
    """An infinite band would make the gap [0, 0]."""
    with pytest.raises(ValueError, match="infinite or nan"):
        Frontier(UNIT, 1 - UNIT, bad)
    with pytest.raises(ValueError, match="infinite or nan"):
        Frontier(UNIT, 1 - UNIT, 0.0, at_budgets=bad[1] if isinstance(bad, tuple) and bad[1] else math.nan)


def test_odd_numbers_are_refused() -> None:
    for words, make in {
        "budgets must be real": lambda: Frontier(UNIT + 0j, 1 - UNIT),
        "values must be real": lambda: Frontier(UNIT, (1 - UNIT) * 1j),
        "error must be real": lambda: Frontier(UNIT, 1 - UNIT, 1j),
        "error must be a number or": lambda: Frontier(UNIT, 1 - UNIT, (0.0, np.zeros(3))),
        "largest float64": lambda: Frontier(UNIT, -1.7e308 * UNIT, 1.7e308),
        "delta must be an interval": lambda: Frontier(UNIT, 1 - UNIT, delta=Interval(math.nan, 1.0)),
        "minimisers must be": lambda: Frontier(UNIT, 1 - UNIT, minimisers=np.zeros(5)),
        "K must be one number": lambda: duality_gap(quadratic(), 2, np.ones(2)),
        "K must be real": lambda: duality_gap(quadratic(), 2, 1j),
        "whole number": lambda: duality_gap(quadratic(), [2.5], 0.5),
        "cannot be negative": lambda: duality_gap(quadratic(), 2, 0.5, delta=math.nan),
    }.items():
        with np.errstate(over="ignore"), pytest.raises(ValueError, match=words):
            make()


def test_an_interval_end_that_is_nan_says_nothing() -> None:
    assert Interval.not_negative(math.nan, math.nan) == Interval(0.0, math.inf)
    assert Interval.not_negative(-1.0, 2.0) == Interval(0.0, 2.0)
    assert Interval.not_negative(-2.0, -1.0) == Interval(0.0, 0.0)


def test_closed_forms_with_steep_ends() -> None:
    """Roots whose slope is infinite or not known at the first budget: finite bands, mixtures' gaps by brute force."""
    seed = int(seeds.generator().integers(2**31))
    rng = np.random.default_rng(seed)
    for _ in range(6):
        pairs = []
        for _ in range(2):
            first, power, scale = rng.uniform(0, 0.5), rng.uniform(0.4, 2.5), rng.uniform(0.2, 0.8)

            def v(r, first=first, power=power, scale=scale):
                return 1 - scale * (r - first) ** power

            pairs.append((v, first, closed_form(v, first + 1.0, first=first, steps=400)))
        for v, first, found in pairs:
            r = first + np.linspace(0, 1, 4003)
            assert np.isfinite(found.band).all(), seed
            assert (np.interp(r, found.budgets, found.lower) <= v(r) + 1e-13).all(), seed
            assert (np.interp(r, found.budgets, found.upper) >= v(r) - 1e-13).all(), seed
        (v, first, _), (w, other, _) = pairs
        total = first + other + rng.uniform(0.2, 1.8)
        r = np.linspace(max(first, total - other - 1), min(first + 1, total - other), 200_001)
        primal = np.min(v(r) + w(np.clip(total - r, other, other + 1))) / 2
        hulls = []
        for f, start, _ in pairs:
            s = start + np.linspace(0, 1, 20_001)
            hulls.append((s, envelope(s, f(s))))
        mixed = np.interp(r, *hulls[0]) + np.interp(total - r, *hulls[1])
        dual = mixed.min() / 2
        found = duality_gap([found for *_, found in pairs], 2, total / 2)
        assert np.isfinite(found.gap).all(), seed
        assert found.gap.lo - 1e-4 <= primal - dual <= found.gap.hi + 1e-4, (seed, primal - dual, found)
        assert found.primal.lo - 1e-9 <= primal, seed
        assert found.dual.hi + 1e-9 >= dual - 1e-4, seed
    found = closed_form(lambda r: 1 - (r - 0.3) ** 1.5 / 2, 1.3, first=0.3)
    assert max(part.max() for part in found.band) < 1e-6
    theta = 0.5
    assert duality_gap(found, 1, 0.8).gap.contains((theta - theta**1.5) / 2)


def test_what_is_no_closed_form() -> None:
    with pytest.raises(ValueError, match="cannot increase"):
        closed_form(lambda r: r, 1.0, steps=20)
    with pytest.raises(ValueError, match="must be finite"):
        closed_form(lambda r: jnp.log(r), 1.0, steps=20)
    with pytest.raises(ValueError, match="one number"):
        closed_form(lambda r: jnp.stack([r, r]), 1.0, steps=20)
    with pytest.raises(ValueError, match="must be real"):
        closed_form(lambda r: 1 - r * 1j, 1.0, steps=20)
    for ends in ((1.0, 1.0), (math.nan, 0.0), (math.inf, 0.0)):
        with pytest.raises(ValueError, match="first < last"):
            closed_form(lambda r: 1 - r, ends[0], first=ends[1])


def test_reached_through_the_package() -> None:
    assert ls.duality.multi_branch.duality_gap is duality_gap
