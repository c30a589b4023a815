"""The smallest regulariser on W: certified from below, feasible from above; random convex functions against oracles."""

import functools

import cvxpy as cp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import seeds
from scipy.optimize import linprog

from landscape.arrays import trees
from landscape.arrays.chunked import chunked_map
from landscape.duality.branches import NORMS, Ball, Box, Product, Regulariser, checked_domain, regulariser
from landscape.duality.certified.cutting_planes import Convex
from landscape.duality.certified.intervals import enclose
from landscape.duality.certified.least_size import least_size, searched
from landscape.duality.multi_branch import duality_gap, frontier, unit

PIECES = 8
EXACT = {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}


@functools.cache
def compiled(kind: str):
    """h and its parameters A, b, compiled once for all cases of a size."""

    def h(w, A, b):
        if kind == "polyhedral":
            return jnp.max(A @ w + b)
        return NORMS[kind](A @ w + b)

    apart = (0, None, None)
    value = jax.jit(jax.vmap(h, apart))
    slope = jax.jit(jax.vmap(jax.grad(h), apart))
    around = jax.jit(jax.vmap(lambda lo, hi, A, b: enclose(lambda w: h(w, A, b), lo, hi), (0, *apart)))
    return value, slope, around


def convex(kind: str, A: np.ndarray, b: np.ndarray, domain: Box | Ball) -> Convex:
    value, slope, around = compiled(kind)
    return Convex(
        lambda w: chunked_map(lambda v: value(v, A, b), 4096, w, pad=True),
        lambda w: chunked_map(lambda v: slope(v, A, b), 64, w, pad=True),
        lambda lo, hi: chunked_map(lambda low, high: around(low, high, A, b), 512, lo, hi, pad=True),
        domain,
    )


def truth(kind: str, A: np.ndarray, b: np.ndarray, domain: Box | Ball) -> float:
    """min h by linear programming where it is one, otherwise by an interior point method."""
    if kind == "polyhedral" and isinstance(domain, Box):
        rows, bounds = np.column_stack([A, -np.ones(len(A))]), [*zip(domain.lo, domain.hi, strict=True), (None, None)]
        cost = np.append(np.zeros(A.shape[1]), 1.0)
        return linprog(cost, rows, -b, bounds=bounds, method="highs", options=EXACT).fun
    w = cp.Variable(A.shape[1])
    at = A @ w + b
    goal = {"polyhedral": cp.max, "l1": cp.norm1, "l2": cp.norm2, "linf": cp.norm_inf, "squared_l2": cp.sum_squares}
    inside = [w >= domain.lo, w <= domain.hi]
    if isinstance(domain, Ball):
        inside = [cp.norm2(w - domain.centre) <= domain.radius]
    tight = {"tol_gap_abs": 1e-10, "tol_gap_rel": 1e-10, "tol_feas": 1e-10}
    return float(cp.Problem(cp.Minimize(goal[kind](at)), inside).solve(solver="CLARABEL", **tight))


def random_case(rng: np.random.Generator):
    size, kind = int(rng.integers(1, 4)), str(rng.choice(["polyhedral", "polyhedral", *NORMS]))
    A, b = rng.normal(size=(PIECES, size)) * rng.choice([0.1, 1, 10]), rng.normal(size=PIECES)
    if kind != "polyhedral":
        A, b = (np.eye(size), np.zeros(size)) if rng.random() < 0.5 else (A[:size], b[:size])
    elif rng.random() < 0.3:  # fewer pieces, so that the minimum lies on the sides of W, or is flat
        A, b = A[np.arange(PIECES) % 2], b[np.arange(PIECES) % 2]
    if rng.random() < 0.5:
        return kind, A, b, Ball(rng.normal(size=size) * rng.choice([0.3, 1, 3]), 0.05 + rng.exponential())
    lo = rng.normal(size=size)
    return kind, A, b, Box(lo, lo + rng.exponential(size=size))


def check(cases: int, seed: int) -> None:
    """The bound is not above the minimum, the point not below it, and the two close."""
    rng = np.random.default_rng(seed)
    for case in range(cases):
        kind, A, b, domain = random_case(rng)
        least, scale = truth(kind, A, b, domain), float(np.abs(A).sum() + np.abs(b).max())
        with trees.float64():
            found = searched(convex(kind, A, b, domain), bool(rng.random() < 0.5))
        where = (seed, case, kind, domain, found.value, found.bound, least)
        assert found.bound <= least + 2e-8 * scale, where  # the interior point method's own error
        if kind == "polyhedral" and isinstance(domain, Box):
            assert found.bound <= least + 1e-12 * scale, where
        assert found.value >= least - 2e-8 * scale, where
        assert found.value - found.bound <= 1e-9 * scale, where
        assert domain.contains(found.point), where


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Solution may be inaccurate")
def test_random_convex_functions() -> None:
    check(25, int(seeds.generator().integers(2**31)))


def test_the_bound_is_certified_by_construction() -> None:
    """No random point of W has a smaller h: sums of unlike terms, flat minima, minima at kinks and on W's sides."""
    with trees.float64():
        forms = [
            lambda w: jnp.abs(w[0] + w[1] - w[2] + 0.1),
            lambda w: jnp.maximum(w[0] + w[1] + 0.3, -w[0] - w[1] + 0.2) + w[2] ** 2,
            lambda w: (w[0] + 2 * w[1] - 0.3) ** 2 + 0.5 + jnp.maximum(w[2], 0.1),
            lambda w: jnp.log(jnp.sum(jnp.exp(w))) + jnp.abs(w[1]),
            lambda w: 1e8 + jnp.abs(w[0] - 0.1) + jnp.abs(w[1]) + w[2],
        ]
        w = seeds.generator().uniform(-1, 1, (100_000, 3))
        for form in forms:
            found = least_size(regulariser(form), Box(-np.ones(3), np.ones(3)))
            values = np.asarray(jax.vmap(form)(jnp.asarray(w)))
            assert found.bound <= values.min()
            assert found.bound <= found.value <= values.min()
            assert found.value - found.bound <= 1e-11 * np.abs(values).max()


def test_functions_that_are_not_convex() -> None:
    """Their bound comes from cells; one that is said to be convex and is not is refused."""

    def waves(w: jax.Array) -> jax.Array:
        return jnp.sin(5 * w[0]) + w[1] ** 2 * jnp.cos(3 * w[0])

    box = Box(-np.array([2.0, 1.0]), np.array([2.0, 1.0]))
    with trees.float64():
        w = seeds.generator().uniform(box.lo, box.hi, (100_000, 2))
        found = least_size(regulariser(waves), box)
        smallest = np.asarray(jax.vmap(waves)(jnp.asarray(w))).min()
        assert found.bound <= found.value <= smallest
        assert found.value - found.bound < 1e-6
        assert least_size(regulariser(lambda w: jnp.sqrt(w[0])), Box(np.zeros(1), np.ones(1))).bound <= 0
        with pytest.raises(ValueError, match="said to be convex"):
            least_size(Regulariser(waves, True), box)


def test_named_norms_on_sets_off_the_origin() -> None:
    rng = seeds.generator()
    centre = np.array([2.0, 1.0])
    domains = [
        Box(centre, centre + 1),
        Ball(centre, 1.0),
        Product((Ball(centre, 1.0), Box(np.ones(1), 2 * np.ones(1)))),
    ]
    for domain in map(checked_domain, domains):
        w = domain.project(rng.uniform(domain.lo, domain.hi, (100_000, len(domain.lo))))
        for name, norm in NORMS.items():
            with trees.float64():
                found = least_size(regulariser(name), domain)
                values = np.asarray(jax.vmap(norm)(jnp.asarray(w)))
            assert found.bound <= values.min() + 1e-14, name
            assert found.value - found.bound <= 1e-11, name
            assert values.min() - found.value < 0.05, name
    with trees.float64():
        assert least_size(regulariser("l2"), Ball(centre / 10, 1.0)).value == 0.0


def test_feasible_budgets_are_accepted_and_others_refused() -> None:
    """At the smallest h the primal's interval holds g there; below it the certified bound is in the sentence."""
    A, b = np.array([[1.0, 0.3], [-0.5, 1.0], [-0.4, -0.8]]), np.array([0.1, 0.0, 0.2])
    box, data = (-np.ones(2), np.ones(2)), (np.ones((1, 1)), np.ones(1))

    def h(w: jax.Array) -> jax.Array:
        pieces = A @ w + b
        return jnp.maximum(jnp.maximum(pieces[0], pieces[1]), pieces[2])

    found = frontier(unit("tanh"), h, box, data, 2.0, budgets=30, tol=1e-3, delta=False)
    solved = linprog([0, 0, 1], np.column_stack([A, -np.ones(3)]), -b, bounds=[(-1, 1), (-1, 1), (None, None)])
    least, w = solved.fun, solved.x[:2]
    assert least - 1e-9 <= found.budgets[0] <= least + 1e-12
    at_least = duality_gap(found, 3, least)
    assert at_least.primal.lo - 1e-9 <= 1 - w[0] * np.tanh(w[1]) / 2 <= at_least.primal.hi + 1e-9
    assert at_least.primal.width < 1e-2
    with pytest.raises(ValueError, match=rf"infeasible.*certainly at least {str(least)[:8]}"):
        duality_gap(found, 3, least - 1e-6)


def test_the_smallest_budget_of_a_smooth_regulariser() -> None:
    """v(min h) is not missed where the minimiser is known to half the digits only: v = 1 − w/2 is steep there."""
    centre = 0.1 + 0.6 * seeds.generator().random()
    for h in (lambda w: (w[0] - centre) ** 2 + 0.5, lambda w: jnp.exp(w[0] - centre) - w[0]):
        found = frontier(
            lambda w, x: w[0] * x[0],
            lambda w, h=h: h(w),
            ((0,), (1,)),
            (np.ones((1, 1)), np.ones(1)),
            2.0,
            budgets=20,
            tol=1e-3,
            delta=False,
        )
        assert found.upper_at_budgets[0] >= 1 - centre / 2
        assert found.lower[0] <= 1 - centre / 2
        assert found.upper_at_budgets[0] - found.lower[0] < 0.1


@pytest.mark.parametrize(
    ("h", "words"),
    [
        (lambda w: w, "one real number"),
        (lambda w: w[0] + 1j * w[1], "one real number"),
        (lambda w: jnp.log(w[0]), "finite on W"),
    ],
)
def test_what_is_no_regulariser(h, words) -> None:
    with trees.float64(), pytest.raises(ValueError, match=words):
        least_size(regulariser(h), Box(-np.ones(2), np.ones(2)))
