"""Theorem 2: the values meet on problems of every kind, and independent solvers agree."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import seeds

from landscape.arrays import trees
from landscape.duality import deep_linear
from landscape.duality.deep_linear import DeepLinear
from landscape.duality.linear import descent, splitting

KINDS = (
    "plain", "rank deficient", "few examples", "bias", "one output", "no regularisation", "gamma above sigma_min",
    "gamma above sigma_1", "gamma at a singular value", "tied", "nearly tied", "wide", "narrow", "scaled", "decaying",
)  # fmt: skip


@pytest.fixture
def rng():
    seed = seeds.draw()
    print(f"seed {seed}")
    return np.random.default_rng(seed)


def spectrum(problem):
    """Singular values of Ỹ = Y X⁺X by NumPy's pseudo-inverse."""
    X = problem.X
    return np.linalg.svd(problem.Y @ np.linalg.pinv(X, rcond=1e-13) @ X, compute_uv=False)


def oracle(problem):
    """½‖Y‖² − ½ Σ_{i≤d} (σ_i − γ)₊², as printed."""
    top = np.maximum(spectrum(problem)[: min(problem.widths)] - problem.gamma, 0)
    return 0.5 * (problem.Y**2).sum() - 0.5 * (top**2).sum()


def printed_objective(problem, weights):
    """Eq. (4) word by word."""
    H, product = len(weights), problem.X
    for W in weights:
        product = W @ product
    schatten = [np.linalg.svd(A, compute_uv=False) for A in (weights[0] @ problem.X, *weights[1:])]
    return 0.5 * np.linalg.norm(problem.Y - product) ** 2 + problem.gamma / H * sum((s**H).sum() for s in schatten)


def with_spectrum(rng, rows, columns, values):
    """A random matrix with given singular values."""
    u, _, vt = np.linalg.svd(rng.normal(size=(rows, columns)), full_matrices=False)
    return (u * values) @ vt


def sizes(rng, kind):
    inputs, examples, outputs = (int(k) for k in rng.integers(1, 13, 3))
    if kind == "few examples":
        inputs = examples + int(rng.integers(1, 6))
    if kind == "one output":
        outputs = 1
    return inputs, examples, outputs


def data(rng, kind):
    inputs, examples, outputs = sizes(rng, kind)
    X, Y = rng.normal(size=(inputs, examples)), rng.normal(size=(outputs, examples))
    smaller = min(outputs, examples)
    if kind == "rank deficient":
        rank = int(rng.integers(1, min(inputs, examples) + 1))
        X = rng.normal(size=(inputs, rank)) @ rng.normal(size=(rank, examples))
    if kind == "bias":
        X = deep_linear.with_bias(X)
    if kind in ("tied", "nearly tied"):
        X = np.linalg.qr(rng.normal(size=(examples, examples)))[0]
        spread = 10.0 ** -rng.integers(2, 12) if kind == "nearly tied" else 0.0
        Y = with_spectrum(rng, outputs, examples, rng.integers(1, 4, smaller) + spread * rng.normal(size=smaller))
    if kind == "decaying":
        Y = with_spectrum(rng, outputs, examples, 10.0 ** -(rng.uniform(0, 1) * np.arange(smaller)))
    if kind == "scaled":
        X, Y = X * 10.0 ** rng.uniform(-3, 3), Y * 10.0 ** rng.uniform(-3, 3)
    return X, Y


def random_problem(rng, kind):
    X, Y = data(rng, kind)
    depth = int(rng.integers(2, 7))
    widths = tuple(int(w) for w in rng.integers(1, 9, depth - 1))
    if kind == "wide":
        widths = tuple(int(w) for w in rng.integers(13, 20, depth - 1))
    if kind == "narrow":
        widths = (*widths[:-1], 1)
    s = spectrum(DeepLinear(X, Y, widths, 0.0))
    s = s[s > 1e-10 * s[0]]
    gamma = {
        "no regularisation": 0.0,
        "gamma above sigma_min": rng.uniform(s[-1], s[0]),
        "gamma above sigma_1": s[0] * rng.uniform(1, 2),
        "gamma at a singular value": rng.choice(s),
    }.get(kind, rng.choice([0.0, 1e-4 * s[0], rng.uniform(0, s[-1]), rng.uniform(0, s[0]), s[0]]))
    return DeepLinear(X, Y, widths, float(gamma))


def test_values_meet_on_300_problems_of_every_kind(rng):
    kinds = [KINDS[i % len(KINDS)] for i in range(300)]
    problems = [random_problem(rng, kind) for kind in kinds]
    for kind, problem, found in zip(kinds, problems, deep_linear.douglas_rachford_batch(problems), strict=True):
        direct, value = deep_linear.closed_form(problem), oracle(problem)
        scale = max(value, 1e-2 * (problem.Y**2).sum())
        where = f"{kind}: {found}"
        assert deep_linear.optimum(problem) == pytest.approx(value, rel=1e-10, abs=1e-10 * scale), where
        for certificate in (found, direct):
            primal = printed_objective(problem, certificate.weights)
            assert tuple(W.shape for W in certificate.weights) == problem.shapes, where
            assert abs(primal - value) <= 1e-10 * scale, where
            assert abs(certificate.dual - value) <= 1e-10 * scale, where
            assert certificate.primal == pytest.approx(primal, rel=1e-12, abs=1e-12 * scale), where
            assert certificate.spectral_residual <= 1e-10 * np.sqrt((problem.Y**2).sum()), where
            assert certificate.row_residual <= 1e-10 * np.sqrt((problem.Y**2).sum()), where
            assert deep_linear.verify(certificate), where
        assert found.iterations <= 100, where


def test_balanced_weights_make_both_forms_equal(rng):
    problem = random_problem(rng, "plain")
    weights = deep_linear.closed_form(problem).weights
    assert deep_linear.variational(problem, weights) == pytest.approx(deep_linear.objective(problem, weights))
    other = [rng.normal(size=shape) for shape in problem.shapes]
    assert deep_linear.variational(problem, other) <= deep_linear.objective(problem, other) * (1 + 1e-12)


def test_weak_duality_at_random_points(rng):
    problem = random_problem(rng, "rank deficient")
    weights = [rng.normal(size=shape) for shape in problem.shapes]
    Q = problem.coordinates.Q
    Lam = rng.normal(size=problem.Y.shape) @ Q @ Q.T
    Lam *= problem.gamma / np.linalg.norm(Lam, 2)
    assert deep_linear.dual_value(problem, Lam) <= deep_linear.optimum(problem) * (1 + 1e-12)
    assert deep_linear.optimum(problem) <= deep_linear.objective(problem, weights) * (1 + 1e-12)


@pytest.mark.parametrize("depth", range(2, 7))
@pytest.mark.parametrize(("gamma", "value"), [(0, 2), (0.5, 27 / 8), (2, 6), (2.5, 51 / 8), (3, 13 / 2), (4, 13 / 2)])
def test_reference_values(depth, gamma, value):
    problem = DeepLinear(np.eye(2), np.diag([3.0, 2.0]), (1,) * (depth - 1), gamma)
    for certificate in (deep_linear.closed_form(problem), deep_linear.douglas_rachford(problem)):
        assert certificate.primal == pytest.approx(value, rel=1e-13)
        assert certificate.dual == pytest.approx(value, rel=1e-11)


def test_no_regularisation_leaves_no_dual_variable(rng):
    certificate = deep_linear.douglas_rachford(random_problem(rng, "no regularisation"))
    assert not certificate.Lam.any()


def test_tied_maximiser_is_recovered():
    problem = DeepLinear(np.eye(2), np.diag([2.0, 3.0]), (1,), 0.5)
    tied = np.diag([-0.5, 0.5])  # a maximiser of (5) with Ỹ − Λ = 2.5·I, whose singular vectors say nothing
    assert deep_linear.dual_value(problem, tied) == pytest.approx(deep_linear.optimum(problem))
    for certificate in (deep_linear.douglas_rachford(problem), deep_linear.closed_form(problem)):
        first, second = certificate.weights
        np.testing.assert_allclose(second @ first, np.diag([0.0, 2.5]), atol=1e-10)


def test_fully_tied_labels_are_split(rng):
    rotation = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    problem = DeepLinear(np.eye(6), rotation, (4, 2), 0.25)
    certificate = deep_linear.douglas_rachford(problem)
    assert certificate.primal == pytest.approx(3 - 0.75**2, rel=1e-11)
    assert np.linalg.matrix_rank(np.linalg.multi_dot(certificate.weights[::-1]), tol=1e-8) == 2


def test_zero_instances_leave_the_risk_of_no_network():
    problem = DeepLinear(np.zeros((3, 4)), np.ones((2, 4)), (2,), 0.5)
    assert deep_linear.douglas_rachford(problem).primal == pytest.approx(4.0)


def test_a_batch_equals_its_members(rng):
    problems = [random_problem(rng, kind) for kind in rng.choice(KINDS, 4)]
    for problem, together in zip(problems, deep_linear.douglas_rachford_batch(problems), strict=True):
        alone = deep_linear.douglas_rachford(problem)
        assert alone.primal == pytest.approx(together.primal, rel=1e-10, abs=1e-12)
        assert alone.iterations <= 100


def test_a_failed_decomposition_is_done_again(rng, monkeypatch):
    problems = [random_problem(rng, "plain") for _ in range(3)]
    expected = deep_linear.douglas_rachford_batch(problems)
    solve = splitting.solve

    def failing(*arguments):
        solved = solve(*arguments)
        if arguments[-1] == splitting.FAST:
            solved = solved._replace(u=solved.u.at[1].set(jnp.nan))
        return solved

    monkeypatch.setattr(splitting, "solve", failing)
    for again, before in zip(deep_linear.douglas_rachford_batch(problems), expected, strict=True):
        assert again.primal == pytest.approx(before.primal, rel=1e-11)
        assert deep_linear.verify(again)


def test_too_few_iterations_leave_an_honest_gap(rng):
    problem = DeepLinear(np.eye(4), np.diag([4.0, 3.0, 2.0, 1.0]), (3,), 2.2)
    certificate = deep_linear.douglas_rachford(problem, max_iterations=2)
    assert certificate.iterations == 2
    assert certificate.history.shape == (3, 2)
    assert certificate.gap > 1e-6
    assert certificate.dual < deep_linear.optimum(problem) <= certificate.primal * (1 + 1e-12)
    assert not deep_linear.verify(certificate)


def test_verify_rejects_what_is_wrong(rng):
    good = deep_linear.closed_form(DeepLinear(np.eye(3), np.diag([3.0, 2.0, 1.0]), (2,), 0.5))
    assert deep_linear.verify(good)
    worse = tuple(W * 1.01 for W in good.weights)
    assert not deep_linear.verify(dataclasses.replace(good, weights=worse))
    assert not deep_linear.verify(dataclasses.replace(good, Lam=good.Lam * 1.01))


def slow_prox(z, t, d):
    """The same prox by bisection on s in 1/s: no breakpoints."""
    low, high = 1e-12, 1e12
    for _ in range(400):
        u = np.sqrt(low * high)
        low, high = (low, u) if np.clip((z * u - 1) / t, 0, 1).sum() >= d else (u, high)
    s = 1 / high if d < len(z) else 0.0
    return np.where(z >= (1 + t) * s, z / (1 + t), np.minimum(z, s))


def test_prox_equals_bisection(rng):
    with trees.float64():
        for _ in range(100):
            k = int(rng.choice([1, 4, 9]))
            z = np.round(rng.exponential(size=k), int(rng.integers(1, 8)))  # ties and zeros happen
            t, d = rng.exponential() + 1e-2, int(rng.integers(1, k + 2))
            got = splitting.prox_top_squares(jnp.asarray(z), t, d)
            np.testing.assert_allclose(got, slow_prox(z, t, d), rtol=1e-10, atol=1e-11)


def test_prox_agrees_with_lripy(rng):
    lripy = pytest.importorskip("lripy", reason="lripy is part of the test extra")
    with trees.float64():
        for _ in range(40):
            m, n = rng.choice([1, 4, 7], 2)
            A, t, d = rng.normal(size=(m, n)), rng.exponential() + 0.1, int(rng.integers(1, min(m, n) + 1))
            conjugate, _ = lripy.proxnormrast_square(A / t, d, 2, 1 / t)
            got = splitting.prox_top_singular(jnp.asarray(A), t, d)
            np.testing.assert_allclose(got, A - t * conjugate, atol=1e-12 * max(1, t))


def conic_dual(problem, solver, **options):
    """(5) as a semidefinite program in row coordinates: ‖A‖²_d = min { d·s + tr T : [[T + sI, A], [Aᵀ, I]] ⪰ 0 }."""
    cvxpy = pytest.importorskip("cvxpy", reason="cvxpy is part of the test extra")
    rows = problem.coordinates
    m, r = rows.labels.shape
    Lam, T, s = cvxpy.Variable((m, r)), cvxpy.Variable((m, m), PSD=True), cvxpy.Variable(nonneg=True)
    A = rows.labels - Lam
    block = cvxpy.bmat([[T + s * np.eye(m), A], [A.T, np.eye(r)]])
    cost = min(problem.d_min, m) * s + cvxpy.trace(T)
    program = cvxpy.Problem(cvxpy.Minimize(cost), [block >> 0, cvxpy.sigma_max(Lam) <= problem.gamma])
    program.solve(solver=solver, **options)
    return 0.5 * (problem.Y**2).sum() - 0.5 * program.value


@pytest.mark.filterwarnings("default")  # the solvers' own
@pytest.mark.parametrize(("solver", "accuracy"), [("CLARABEL", 1e-6), ("SCS", 1e-5)])
def test_cvxpy_agrees(rng, solver, accuracy):
    for kind in ("plain", "gamma above sigma_min", "few examples"):
        problem = random_problem(rng, kind)
        size = np.linalg.norm(problem.Y)
        problem = DeepLinear(problem.X, problem.Y / size, problem.widths, problem.gamma / size)
        options = {"eps": 1e-8, "max_iters": 20_000} if solver == "SCS" else {}
        value = conic_dual(problem, solver, **options)
        assert value == pytest.approx(deep_linear.douglas_rachford(problem).dual, abs=accuracy), problem


def test_gradient_descent_reaches_the_optimum_from_every_seed():
    X = np.eye(3)
    problem = DeepLinear(X, np.diag([3.0, 2.0, 1.0]), (3, 2), 0.25)
    keys = jax.random.split(jax.random.key(0), 4)
    found = descent.descend(problem, keys, optax.adam(optax.cosine_decay_schedule(0.05, 1500)), steps=1500)
    assert found.values.shape == (4, 1501)
    assert found.share(1e-5) == 1.0
    assert found.excess.min() > -1e-12
    last = tuple(W[0] for W in found.weights)
    assert found.values[0, -1] == pytest.approx(printed_objective(problem, last), rel=1e-12)


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_zero_start_is_a_trap(rng, depth):
    problem = DeepLinear(rng.normal(size=(3, 5)), rng.normal(size=(2, 5)), (2,) * (depth - 1), 1e-3)
    zero = [np.zeros(shape) for shape in problem.shapes]
    assert descent.gradient_norm(problem, zero) == 0.0
    assert deep_linear.objective(problem, zero) > deep_linear.optimum(problem) + 1e-6
    assert descent.gradient_norm(problem, deep_linear.closed_form(problem).weights) < 1e-9


def test_risk_and_its_gradient_are_those_of_the_printed_problem(rng):
    for H in (2, 3, 5):
        problem = DeepLinear(rng.normal(size=(4, 3)), rng.normal(size=(3, 3)), (3,) * (H - 1), 0.7)
        weights = [rng.normal(size=shape) for shape in problem.shapes]
        weights[-1][1] = weights[-1][0] = 0.0  # repeated zero singular values
        along = [rng.normal(size=shape) for shape in problem.shapes]
        with trees.float64():
            value = descent.risk(problem)
            assert float(value(tuple(map(jnp.asarray, weights)))) == pytest.approx(printed_objective(problem, weights))
            gradient = [np.asarray(g) for g in jax.grad(value)(tuple(map(jnp.asarray, weights)))]
        slope = sum(float((g * a).sum()) for g, a in zip(gradient, along, strict=True))
        ends = [
            printed_objective(problem, [W + h * a for W, a in zip(weights, along, strict=True)]) for h in (1e-5, -1e-5)
        ]
        assert slope == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"Y": np.ones((2, 4))}, "columns"),
        ({"Y": np.ones(3)}, "matrix"),
        ({"X": np.ones((0, 3))}, "matrix"),
        ({"X": np.full((2, 3), np.nan)}, "nan"),
        ({"gamma": -0.1}, "gamma"),
        ({"gamma": float("nan")}, "gamma"),
        ({"widths": (2, 0)}, "widths"),
        ({"widths": ()}, "widths"),
        ({"widths": (1.5,)}, "widths"),
        ({"widths": 3}, "widths"),
    ],
)
def test_wrong_problems_are_refused(changes, message):
    good = {"X": np.ones((2, 3)), "Y": np.ones((2, 3)), "widths": (2,), "gamma": 0.1}
    with pytest.raises(ValueError, match=message):
        DeepLinear(**(good | changes))


def test_wrong_use_is_refused():
    problem = DeepLinear(np.eye(2), np.eye(2), (2,), 0.1)
    with pytest.raises(ValueError, match="shapes"):
        deep_linear.objective(problem, [np.eye(3), np.eye(2)])
    with pytest.raises(ValueError, match="tolerance"):
        deep_linear.douglas_rachford(problem, tolerance=0.0)
    with pytest.raises(ValueError, match="problem"):
        deep_linear.douglas_rachford_batch([])
    with pytest.raises(ValueError, match="steps"):
        descent.descend(problem, jax.random.split(jax.random.key(0), 2), optax.sgd(0.1), steps=0)


def test_a_varied_problem_keeps_its_data(rng):
    problem = random_problem(rng, "rank deficient")
    varied = problem.varied(widths=(2, 1), gamma=0.3)
    fresh = DeepLinear(problem.X, problem.Y, (2, 1), 0.3)
    assert varied.shapes == fresh.shapes
    assert deep_linear.optimum(varied) == pytest.approx(deep_linear.optimum(fresh), rel=1e-13)
    assert problem.varied(gamma=0.0).widths == problem.widths


def test_records_print_one_line():
    certificate = deep_linear.closed_form(DeepLinear(np.eye(2), np.eye(2), (2,), 0.1))
    assert repr(certificate).count("\n") == 0
    assert len(repr(certificate)) < 160


@pytest.mark.slow
def test_command_says_what_is_missing_and_does_the_rest(tmp_path, monkeypatch, capsys):
    from landscape.__main__ import dispatch
    from landscape.paper import theorem2

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("LANDSCAPE_DATA", raising=False)
    monkeypatch.setattr("landscape.datasets.downloads.find", lambda *_, **__: pytest.fail("a download was begun"))
    sizes = ["--depths", "2", "4", "--gammas", "0.5", "--seeds", "2", "--steps", "60"]
    dispatch(["theorem2", "--smoke", *sizes, "--out", str(tmp_path / "run")])
    printed = capsys.readouterr().out
    assert "NOT DONE" in printed
    assert "--data-root" in printed
    measures = json.loads((tmp_path / "run" / "measures.json").read_text())
    assert [row["depth"] for row in measures["meeting"]] == [2, 4]
    for row in measures["meeting"]:
        assert row["verified"]
        assert abs(row["gap"]) <= 1e-10 * row["optimum"]
        assert row["zero_gradient"] == 0.0
        assert row["zero_excess"] > 1
    for name in ("figure.png", "figure.pdf"):
        assert (tmp_path / "run" / name).stat().st_size > 10_000
    with pytest.raises(ValueError, match="depths"):
        theorem2.Config(depths=(1, 2))
    with pytest.raises(ValueError, match="gammas"):
        theorem2.Config(gammas=(-1.0,))


def test_reduced_rank_regressions_are_certified(rng):
    from landscape.paper import theorem2

    labels = np.eye(10)[np.concatenate([np.arange(10), rng.integers(0, 10, 50)])].T
    rows = theorem2.regressions(rng.normal(size=(30, 60)), labels)
    assert [row["d_min"] for row in rows] == 3 * list(range(1, 10))
    for row in rows:
        assert row["verified"]
        assert row["value"] == pytest.approx(row["formula"], rel=1e-10)
    values = np.array([row["value"] for row in rows]).reshape(3, 9)
    assert (np.diff(values, axis=1) < 1e-12).all()  # a wider network is never worse
    assert (np.diff(values, axis=0) > 0).all()  # more regularisation always costs


def test_complex_infinite_and_misshapen_inputs_are_refused() -> None:
    """Nothing is cut to its real part, and no nan reaches a value."""
    X, Y = np.eye(2), np.diag([3.0, 2.0])
    cases = [
        ((X, Y * 1j, (1,), 0.5), "Y must be real"),
        ((X + 0j, Y, (1,), 0.5), "X must be real"),
        ((X, Y, (1,), 0.5 + 0j), "gamma must be real"),
        ((X, Y, (1,), [0.5]), "gamma must be one number"),
        ((X, Y, (1,), np.nan), "gamma must be a finite"),
        ((X, Y, (np.nan,), 0.5), "whole numbers"),
        ((X, Y, (1.5,), 0.5), "whole numbers"),
        ((X, Y[0], (1,), 0.5), "must be a matrix"),
        ((X, Y[None], (1,), 0.5), "must be a matrix"),
        ((X, np.full((2, 2), np.inf), (1,), 0.5), "nan or infinite"),
        ((X, Y * 1e200, (1,), 0.5), "largest float64"),
        ((X, [["a", "b"]], (1,), 0.5), "real numbers"),
    ]
    for arguments, words in cases:
        with np.errstate(all="ignore"), pytest.raises(ValueError, match=words):
            deep_linear.DeepLinear(*arguments)
    problem = deep_linear.DeepLinear(X, Y, (1,), 0.5)
    weights = deep_linear.closed_form(problem).weights
    for f in (deep_linear.objective, deep_linear.variational):
        with pytest.raises(ValueError, match="must be real"):
            f(problem, [W + 0j for W in weights])
        with pytest.raises(ValueError, match="must be finite"):
            f(problem, [W * np.nan for W in weights])
    with pytest.raises(ValueError, match="must be real"):
        deep_linear.dual_value(problem, 1j * Y)
    with pytest.raises(ValueError, match="shape of Y"):
        deep_linear.dual_value(problem, Y[:1])
    with pytest.raises(ValueError, match="must be a matrix"):
        deep_linear.with_bias(X[0])
    broken = dataclasses.replace(deep_linear.closed_form(problem), Lam=np.full((2, 2), np.nan))
    with pytest.raises((ValueError, np.linalg.LinAlgError)):
        deep_linear.verify(broken)
