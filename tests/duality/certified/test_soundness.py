"""What is called certified against brute force: frontiers, primal, dual, gap, Δ and τ of random branches.

Two kinds of checks. Certain ones: no point found by NumPy may beat a bound. Near ones: a bound may not beat what the
search found by more than the search can have missed. `--cases 10000` runs overnight.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import seeds
from random_branches import GROUPS, Case, draw, kernels, least_size, loss, margin_kernels, outputs, size
from scipy.spatial import ConvexHull

from landscape.duality.branches import checked_domain
from landscape.duality.certified import assumption, branch_frontier, cutting_planes
from landscape.duality.certified.assumption import check_tau, smallest_tau
from landscape.duality.certified.closed_forms import closed_form
from landscape.duality.certified.divergence import divergence_of
from landscape.duality.certified.frontiers import Frontier
from landscape.duality.multi_branch import Ball, duality_gap, frontier

ONE = (np.ones((1, 1)), np.ones(1))
SQUARE = ((-1.0, -1.0), (1.0, 1.0))
SLACK = 1e-12
"""Rounding of NumPy's values, relative to their size."""


class Found(NamedTuple):
    """Points of W [M, p] with their h and g, and the widest known error of `frontier_below`."""

    points: np.ndarray
    size: np.ndarray
    loss: np.ndarray


def brute_force(rng: np.random.Generator, case: Case, budgets: np.ndarray) -> Found:
    """A sample of W, densest around the best points for each of the budgets, in rounds that close in."""
    domain = checked_domain(case.domain)
    extent = domain.hi - domain.lo
    points = domain.project(rng.uniform(domain.lo, domain.hi, (3000, case.size)))
    corners = np.stack(np.meshgrid(*zip(domain.lo, domain.hi, strict=True), indexing="ij"), -1).reshape(-1, case.size)
    points = np.concatenate([points, domain.project(corners), domain.project(case.constants["at"][None])])
    sizes, losses = size(case, points), loss(case, points)
    for scale in 0.3 ** np.arange(1, 9):
        best = np.unique([np.where(sizes <= r, losses, np.inf).argmin() for r in budgets] + [sizes.argmin()])
        near = points[best][:, None] + extent * scale * rng.normal(size=(len(best), 60, case.size)) / 3
        near = domain.project(near.reshape(-1, case.size))
        points = np.concatenate([points, near])
        sizes, losses = np.append(sizes, size(case, near)), np.append(losses, loss(case, near))
    return Found(points, sizes, losses)


def steps(found: Found, budgets: np.ndarray) -> np.ndarray:
    """The least g found for each budget."""
    order = np.argsort(found.size)
    least = np.minimum.accumulate(found.loss[order])
    count = np.searchsorted(found.size[order], budgets * (1 + 1e-15), side="right")
    return np.where(count > 0, least[np.maximum(count - 1, 0)], np.inf)


def check_frontier(case: Case, found: Frontier, brute: Found) -> None:
    """v inside its band: no point below it, the minimisers feasible and as good as they are said to be."""
    scale = SLACK * (1 + np.abs(brute.loss).max())
    assert found.budgets[0] <= brute.size.min() + SLACK * (1 + brute.size.min())
    assert found.budgets[-1] >= brute.size.max() - SLACK * (1 + brute.size.max())
    assert (brute.loss >= np.interp(brute.size, found.budgets, found.lower) - scale).all()
    at = found.minimisers
    assert checked_domain(case.domain).contains(at).all()
    least = size(case, at[:1])  # the first budget, a lower bound of min h, may be below it
    assert least <= brute.size.min() + 0.01 * (1 + brute.size.min())
    assert (size(case, at) <= np.maximum(found.budgets, least) * (1 + SLACK) + 1e-15).all()
    assert (np.minimum.accumulate(loss(case, at)) <= found.upper_at_budgets + scale).all()


def check_near(found: Frontier, brute: Found, spread: float) -> None:
    """v(r) ≤ what was found at r, up to what sampling misses; at the budgets and between them."""
    between = np.linspace(found.budgets[0], found.budgets[-1], 5 * len(found.budgets))
    assert (steps(brute, between) >= np.interp(between, found.budgets, found.lower) - spread).all()
    assert (found.lower <= found.upper_at_budgets).all()
    assert (found.upper_at_budgets <= found.upper + 1e-15).all()


def primal_from_above(kinds: list[Found], counts: list[int], K: float) -> float:
    """A feasible value of problem (2): budgets on a grid, handed out one branch at a time."""
    least = [found.size.min() for found in kinds]
    spare = sum(counts) * K - float(np.dot(counts, least))
    if spare < 0:
        return np.inf
    grid = spare * np.arange(121) / 120
    total = np.zeros(121)
    for found, count, low in zip(kinds, counts, least, strict=True):
        v = steps(found, low + grid)
        for _ in range(count):
            total = np.array([np.min(total[: k + 1] + v[k::-1]) for k in range(121)])
    return float(total[-1] / sum(counts))


def dual_from_above(kinds: list[Found], counts: list[int], K: float) -> float:
    """sup D of the branches' images as far as they were sampled: max over λ of a concave function."""
    num = sum(counts)
    shares = [count / num for count in counts]

    def value(lam: float) -> float:
        least = [np.min(found.loss + lam * found.size) for found in kinds]
        return float(np.dot(shares, least) - lam * K)

    lams = np.concatenate([[0.0], np.geomspace(1e-6, 1e9, 61)])
    for _ in range(4):
        values = [value(lam) for lam in lams]
        k = int(np.argmax(values))
        lams = np.linspace(lams[max(k - 1, 0)], lams[min(k + 1, len(lams) - 1)], 31)
    return max(values)


def check_gap(rng: np.random.Generator, kinds: list[tuple[Frontier, Found]]) -> None:
    """Primal, dual and gap of a random mixture, at a random K from tight to slack.

    All kinds share the finest of their grids, so those whose h hardly varies are left to themselves.
    """
    if max(f.step for f, _ in kinds) > 200 * min(f.step for f, _ in kinds):
        for kind in kinds:
            check_gap(rng, [kind])
        return
    counts = [int(n) for n in rng.integers(1, 4, len(kinds))]
    num = sum(counts)
    low, high = (float(np.dot(counts, [f.budgets[end] for f, _ in kinds])) / num for end in (0, -1))
    K = low + (high - low) * rng.choice([0.0, 0.02, rng.uniform(0, 0.5), rng.uniform(0.3, 1.2)])
    gap = duality_gap([f for f, _ in kinds], counts, K)
    brute = [found for _, found in kinds]
    primal = primal_from_above(brute, counts, K)
    scale = SLACK * (1 + max(float(np.abs(found.loss).max()) for found in brute))
    assert gap.primal.lo <= primal + scale, ("primal", gap, primal)
    assert gap.gap.lo <= gap.gap.hi
    assert gap.dual.lo <= gap.primal.hi + scale
    if min(found.size.min() for found in brute) < K:
        dual = dual_from_above(brute, counts, K)
        assert gap.dual.lo <= dual + 1e-7 * (1 + abs(dual)), ("dual", gap, dual)
        assert gap.gap.hi >= gap.primal.lo - dual - 1e-7 * (1 + abs(dual)), ("gap", gap, dual)
        assert gap.gap.lo <= primal - gap.dual.lo + scale, ("gap", gap, primal)
    worst = max(f.nonconvexity.hi for f, _ in kinds)
    assert gap.gap.lo <= worst / num + scale


def check_delta(rng: np.random.Generator, found: Frontier, brute: Found) -> None:
    """Δ is at least what the hull of a sample shows with v's lower bound, and at most the whole range of g."""
    assert found.delta is not None
    assert 0 <= found.delta.lo <= found.delta.hi
    thin = np.ptp(brute.points, 0) > 0
    points = brute.points[:, thin]
    chosen = rng.choice(len(points), min(len(points), 300 if points.shape[1] < 3 else 120), replace=False)
    points, losses, sizes = points[chosen], brute.loss[chosen], brute.size[chosen]
    spread = np.ptp(losses)
    if points.shape[1] == 0 or spread < 1e-9:
        return
    cloud = np.column_stack([(points - points.min(0)) / np.ptp(points, 0), (losses - losses.min()) / spread])
    cloud = np.vstack([cloud, [*cloud[:, :-1].mean(0), 10.0]])
    equations = ConvexHull(cloud).equations
    below = equations[equations[:, -2] < -1e-6]
    hull = np.max(-(cloud[:-1, :-1] @ below[:, :-2].T + below[:, -1]) / below[:, -2], 1) * spread + losses.min()
    shown = np.interp(sizes, found.budgets, found.lower) - hull
    assert shown.max() <= found.delta.hi + 1e-9 * (1 + spread), ("Δ", found.delta, shown.max())
    assert found.delta.lo <= np.interp(brute.size, found.budgets, found.upper).max() - brute.loss.min() + 1e-9


def largest_margins(rng: np.random.Generator, case: Case, points: np.ndarray) -> np.ndarray:
    """The largest y f for each example, in rounds that close in, [N]."""
    domain = checked_domain(case.domain)
    for scale in 0.4 ** np.arange(12):
        order = np.argsort(-outputs(case, points) * case.constants["y"], 0)[:4].ravel()
        near = (
            points[order][:, None] + (domain.hi - domain.lo) * scale * rng.normal(size=(len(order), 40, case.size)) / 3
        )
        points = np.concatenate([points[order], domain.project(near.reshape(-1, case.size))])
    return (outputs(case, points) * case.constants["y"]).max(0)


def check_tau_of(
    rng: np.random.Generator, cases: list[Case], found: list[Found], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The smallest τ of a mixture with common data."""
    first = cases[0].constants
    same = [c._replace(constants={**c.constants, **{k: first[k] for k in ("x", "y", "weight")}}) for c in cases]
    turn = iter(same)
    monkeypatch.setattr(assumption, "_kernels", lambda f, data: margin_kernels(next(turn), data))
    monkeypatch.setattr(assumption, "CELLS", 1000)
    monkeypatch.setattr(assumption, "as_function", lambda f, size, example: f)
    smallest = smallest_tau([(lambda w, x: w, c.domain, k + 1) for k, c in enumerate(same)], same[0].data, tol=0.02)
    total = sum(range(1, len(same) + 1))
    best = [largest_margins(rng, c, b.points) for c, b in zip(same, found, strict=True)]
    shown = np.max(sum((k + 1) * m for k, m in enumerate(best)) / total)
    assert smallest.lo <= smallest.hi
    assert shown <= smallest.hi + SLACK * (1 + abs(shown)), ("τ", smallest, shown)
    sampled = max(float(np.abs(m).max()) for m in best)
    assert smallest.lo <= shown + 0.05 * (1 + sampled), ("τ", smallest, shown)


def traced(rng: np.random.Generator, case: Case, monkeypatch: pytest.MonkeyPatch) -> Frontier | None:
    """The frontier with the family's compiled functions; None where it is refused for lack of a bound."""
    monkeypatch.setattr(branch_frontier, "make_kernels", partial(kernels, case))
    monkeypatch.setattr(branch_frontier, "least_size", partial(least_size, case))
    monkeypatch.setattr(branch_frontier, "divergence_of", lambda k, f, tol, *_: divergence_of(k, f, tol, 600))
    chosen = {"budgets": int(rng.integers(4, 12)), "delta": bool(rng.random() < 0.3)}
    try:
        with np.errstate(invalid="ignore"):  # infinite slopes along sides of length 0: nan, which says nothing
            return frontier(lambda w, x: w, "l2", case.domain, case.data, case.tau, tol=3e-3, max_cells=800, **chosen)
    except ValueError as error:
        if "no certified frontier" in str(error) or "is not bounded" in str(error):
            return None
        raise


def mixture(rng: np.random.Generator, group: int, size: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """All checks on one to three random branches of a family, alone and together; how many were certified."""
    cases = [draw(rng, group, size) for _ in range(rng.integers(1, 4))]
    found = [traced(rng, case, monkeypatch) for case in cases]
    brute = [
        brute_force(rng, c, np.linspace(0, 1, 8) if f is None else f.budgets) for c, f in zip(cases, found, strict=True)
    ]
    kinds = [(f, b) for f, b in zip(found, brute, strict=True) if f is not None]
    for case, f, b in zip(cases, found, brute, strict=True):
        if f is None:
            continue
        check_frontier(case, f, b)
        check_near(f, b, SLACK * (1 + float(np.abs(b.loss).max())))
        if f.delta is not None:
            check_delta(rng, f, b)
    if kinds:
        check_gap(rng, kinds)
    check_tau_of(rng, cases, brute, monkeypatch)
    return len(kinds)


@pytest.mark.parametrize("group", range(len(GROUPS)))
def test_random_branches(group: int, monkeypatch, request) -> None:
    """Activations, constants, sets, regularisers, mixtures and K at random, each count of parameters in turn."""
    cases = -(-request.config.getoption("--cases") // len(GROUPS))
    seed = seeds.draw()
    if cases <= 400:  # bounds hold whatever the effort
        monkeypatch.setattr(cutting_planes, "ROUNDS", 8)
    sizes = (1, 2, 3) if cases > 400 else ((group + seeds.SEED) % 3 + 1,)
    done, turn = 0, 0
    while done < cases:
        try:
            done += mixture(np.random.default_rng((seed, group, turn)), group, sizes[turn % len(sizes)], monkeypatch)
        except Exception as error:
            error.add_note(f"seed {seed}, group {group}, turn {turn}, {done} of {cases} cases done")
            raise
        turn += 1
        assert turn < 10 + 2 * cases, "most branches are refused"


CENTRE = np.array([0.37, -0.21])


def narrow(w: jax.Array) -> jax.Array:
    """q = 4·10⁴‖w − c‖² + 0.1, as a product that intervals take for one that may be negative."""
    return 4e4 * jnp.dot(w - CENTRE, w - CENTRE) + 0.1


NARROW = {
    "log": (lambda w, x: jax.nn.relu(-jnp.log(narrow(w))), float(np.log(10)), 4.0),
    "division": (lambda w, x: jax.nn.relu(jnp.dot(jnp.stack([1 / narrow(w), 1.0]), jnp.array([1, -0.5]))), 9.5, 19.0),
    "expanded": (
        lambda w, x: jnp.maximum(-jnp.log(4e2 * (w @ w - 2 * w @ CENTRE + CENTRE @ CENTRE) + 0.1), 0),
        np.log(10),
        4.0,
    ),
    "compared": (lambda w, x: jnp.where(jnp.log(narrow(w)) < 0, -jnp.log(narrow(w)), 0.0), float(np.log(10)), 4.0),
    "root": (lambda w, x: jax.nn.relu(1 / jnp.sqrt(narrow(w)) - 0.5), 10**0.5 - 0.5, 4.0),
}
"""Branches that are 0 but for a peak at c: their largest value and a τ."""


@pytest.mark.parametrize("name", NARROW)
def test_a_narrow_peak_is_not_missed(name: str) -> None:
    """Ends that are nan or infinite do not close the cell that holds the peak."""
    branch, top, tau = NARROW[name]
    smallest = smallest_tau([(branch, SQUARE, 1)], ONE)
    assert smallest.lo - 1e-9 <= top <= smallest.hi
    with pytest.raises(ValueError, match="Assumption 1"):
        check_tau(top / 2, smallest)
    found = frontier(branch, "l1", SQUARE, ONE, tau, budgets=20, tol=1e-3, delta=False)
    reached = found.budgets >= np.abs(CENTRE).sum()
    assert (found.lower[reached] <= 1 - top / tau + 1e-9).all()
    assert (found.upper_at_budgets[reached] <= 1 - top / tau + 2e-3).all()


def test_minima_of_h_on_balls_off_the_origin() -> None:
    """The first budget is at most the smallest h, so that every feasible K is accepted."""
    seed = seeds.draw()
    rng = np.random.default_rng(seed)
    for _ in range(3):
        ball = Ball(rng.normal(size=2) * 2, float(rng.uniform(0.2, 1)))
        found = frontier(lambda w, x: jnp.tanh(w @ x), "l1", ball, (np.eye(2), np.ones(2)), 2.0, budgets=8, delta=False)
        angle = np.linspace(0, 2 * np.pi, 200_001)
        circle = ball.centre + ball.radius * np.stack([np.cos(angle), np.sin(angle)], 1)
        least = 0.0 if np.linalg.norm(ball.centre) <= ball.radius else np.abs(circle).sum(1).min()
        assert found.budgets[0] <= least + 1e-9, seed


def test_a_frontier_with_an_infinite_slope_has_a_true_gap() -> None:
    """(r − 0.3)^1.5 has a finite band although rounding reaches below 0.3; R3's gap is inside."""
    found = closed_form(lambda r: 1 - ((r - 0.3) / 1) ** 1.5 / 2, 1.3, first=0.3)
    assert np.isfinite(found.band).all()
    theta = 2 * (5**0.5 - 1) / 2 % 1
    gap = duality_gap(found, 2, 0.3 + (5**0.5 - 1) / 2).gap
    assert gap.contains((theta - theta**1.5) / 2 / 2)


@pytest.mark.parametrize("scale", [1e-7, 1e5])
def test_bounds_of_delta_follow_the_scale_of_w(scale: float) -> None:
    """Δ of a [w]_+ with l1 norm is 1/8 on [0, 1]², whatever the unit of the weights; one fixed weight leaves 0."""

    def branch(w: jax.Array, x: jax.Array) -> jax.Array:
        return w[0] / scale * jax.nn.relu(w[1] / scale * x[0])

    found = frontier(branch, "l1", ((0, 0), (scale, scale)), ONE, 2.0, budgets=40, tol=1e-4)
    assert found.delta is not None
    assert found.delta.contains(1 / 8)
    assert found.delta.width < 1e-2
    fixed = frontier(branch, "l1", ((scale, 0), (scale, scale)), ONE, 2.0, budgets=40, tol=1e-4)
    assert fixed.delta is not None
    assert 0 == fixed.delta.lo <= fixed.delta.hi < 1e-2
