"""Measures of non-convexity: known answers, plain oracles, and exactly 0 on whatever is convex."""

from itertools import combinations

import jax.numpy as jnp
import numpy as np
import pytest
import seeds
from scipy.optimize import linprog

from landscape import convexity
from landscape.convexity.envelope import envelope
from landscape.surfaces import Grid, Surface

LOSS_FREE = ("env_max", "env_mean", "midpoint_mean", "curvature_negative_share", "persistence")


@pytest.fixture
def rng():
    seed = seeds.draw()
    print("seed", seed)
    return np.random.default_rng(seed)


def surface(function, a, b=None, **fields):
    b = a if b is None else b
    return Surface(Grid(a, b), function(a[:, None], b[None]), **fields)


def double_well(x, y):
    return (x**2 - 1) ** 2 + y**2


def nonuniform(rng, points, low, high):
    steps = rng.uniform(0.2, 2, points - 1)
    return low + (high - low) * np.concatenate([[0], np.cumsum(steps) / steps.sum()])


def random_grid(rng, kind):
    sizes = rng.integers(2, 40, 2)
    spans = (-1.0, 2.0), (-3.0, 1.0)
    if kind % 2:
        return [np.linspace(*span, n) for span, n in zip(spans, sizes, strict=True)]
    return [nonuniform(rng, n, *span) for span, n in zip(spans, sizes, strict=True)]


def convex_function(rng, kind):
    w = rng.normal(size=(rng.integers(1, 6), 3)) * rng.lognormal(0, 2, 3)[None]

    def planes(x, y):
        return [p * x + q * y + r for p, q, r in w]

    return (
        lambda x, y: np.max(planes(x, y), 0),
        lambda x, y: sum(p**2 for p in planes(x, y)),
        lambda x, y: planes(x, y)[0],
        lambda x, y: np.logaddexp(0, planes(x, y)[0]) + abs(x - y),
    )[kind % 4]


def check_zero(report, part=""):
    found = {name: getattr(report, name) for name in LOSS_FREE} | {"minima": report.minima - 1}
    assert not any(found.values()), (part, found)
    assert not report.barriers.any(), (part, report.barriers)


def test_double_well_has_its_known_answers():
    x = np.linspace(-2, 2, 201)
    report = convexity.report(surface(double_well, x))
    assert report.env_max == pytest.approx(1 / 13, abs=1e-9)
    assert report.env_mean == pytest.approx(4 / 195, abs=1e-6)
    assert report.persistence == pytest.approx(1 / 13, abs=1e-9)
    assert report.curvature_negative_share == pytest.approx(0.049538, abs=1e-3)
    assert report.minima == 2
    assert report.range == pytest.approx(13)
    assert report.persistence_loss == pytest.approx(1)
    assert report.env_max_loss == pytest.approx(1)
    assert report.env_mean_loss == pytest.approx(4 / 15, abs=1e-5)


def test_curvature_share_converges_to_its_known_answer():
    errors = [
        convexity.report(surface(double_well, np.linspace(-2, 2, n))).curvature_negative_share - 0.049538
        for n in (51, 101)
    ]
    assert abs(2 * errors[1] - errors[0]) < 3e-4  # first order in the spacing: the border has no second difference


def test_saddle_has_its_known_answers():
    a, b = np.linspace(-1, 1, 81), np.linspace(-1, 1, 61)
    report = convexity.report(surface(lambda x, y: x**2 - y**2, a, b))
    assert report.env_max == pytest.approx(1 / 2)
    assert report.env_mean == pytest.approx(1 / 3, abs=1e-3)
    square = convexity.report(surface(lambda x, y: x**2 - y**2, a))
    assert square.curvature_negative_share == pytest.approx(1 / 2, abs=1e-9)


@pytest.mark.parametrize(("extent", "known"), [(1.5, 0.375), (2, 0.119), (3, 0.0218), (6, 0.00127)])
def test_extent_dominates_what_is_divided_by_the_range(extent, known):
    x = np.linspace(-extent, extent, 121)
    report = convexity.report(surface(lambda x, y: (x**2 - 1) ** 2 + 0 * y, x))
    values = (x**2 - 1) ** 2
    assert report.env_max == pytest.approx(1 / np.ptp(values), abs=0.06 / np.ptp(values))
    assert report.env_max_loss == pytest.approx(1, abs=0.06), known


@pytest.mark.parametrize("kind", range(16))
def test_everything_is_zero_on_convex_samples(rng, kind):
    a, b = random_grid(rng, kind // 4)
    corners = np.array([[a[0], b[0]], [a[-1], b[0]], [a[0], b[-1]]])
    anchors = rng.dirichlet(np.ones(3), 3) @ corners
    report = convexity.report(surface(convex_function(rng, kind), a, b, anchors=anchors))
    check_zero(report)
    if report.triangle is not None:
        check_zero(report.triangle, "triangle")


def test_measures_do_not_depend_on_scale_shift_or_the_order_of_the_axes(rng):
    f = rng.normal(size=(9, 7))
    a, b = nonuniform(rng, 9, -1, 1), nonuniform(rng, 7, 0, 5)
    one = convexity.report(Surface(Grid(a, b), f))
    for other in (Surface(Grid(a, b), 30 * f + 7), Surface(Grid(10 * a + 3, b), f), Surface(Grid(b, a), f.T)):
        report = convexity.report(other)
        for name in ("env_max", "env_mean", "persistence", "minima"):
            assert getattr(report, name) == pytest.approx(getattr(one, name)), name
    assert convexity.report(Surface(Grid(a, b), 30 * f + 7)).curvature_negative_share == pytest.approx(
        one.curvature_negative_share
    )


def test_envelope_equals_a_linear_program_at_every_point(rng):
    a, b = nonuniform(rng, 6, -1, 2), nonuniform(rng, 5, 0, 1)
    f = rng.normal(size=(6, 5))
    points = np.stack(np.meshgrid(a, b, indexing="ij"), -1).reshape(-1, 2)
    queries = np.concatenate([points, rng.dirichlet(np.ones(30), 6) @ points])
    programs = [linprog(f.ravel(), np.empty((0, 30)), [], [*points.T, np.ones(30)], [*q, 1]).fun for q in queries]
    hull = envelope(a, b, f)
    np.testing.assert_allclose(hull.at(queries), programs, atol=1e-9)
    np.testing.assert_allclose(hull.gap.ravel(), f.ravel() - programs[:30], atol=1e-9)


def test_curvature_share_equals_plain_loops(rng):
    a, b = nonuniform(rng, 6, -1, 2), nonuniform(rng, 5, 0, 1)
    f = rng.normal(size=(6, 5))
    mass = []
    for values, x, y in ((f, a, b), (f.T, b, a)):
        for i in range(1, len(x) - 1):
            for j in range(len(y)):
                width = (y[min(j + 1, len(y) - 1)] - y[max(j - 1, 0)]) / 2
                right = (values[i + 1, j] - values[i, j]) / (x[i + 1] - x[i])
                mass.append((right - (values[i, j] - values[i - 1, j]) / (x[i] - x[i - 1])) * width)
    share = -sum(m for m in mass if m < 0) / sum(map(abs, mass))
    assert convexity.report(Surface(Grid(a, b), f)).curvature_negative_share == pytest.approx(share)


def test_midpoint_mean_equals_its_integral_on_the_saddle():
    x = np.linspace(-1, 1, 101)
    p, q = np.random.default_rng(0).uniform(-1, 1, (2, 400_000, 2))
    violation = np.maximum((p - q)[:, 1] ** 2 - (p - q)[:, 0] ** 2, 0).mean() / 4
    report = convexity.report(surface(lambda x, y: x**2 - y**2, x))
    assert report.midpoint_mean_loss == pytest.approx(violation, rel=0.05)
    assert abs(report.midpoint_mean_loss - violation) < 5 * report.midpoint_mean_error_loss
    assert report.midpoint_mean == pytest.approx(report.midpoint_mean_loss / 2)
    assert report.midpoint_mean_error == pytest.approx(report.midpoint_mean_error_loss / 2)


def all_midpoints(f):
    """The mean violation over all pairs of an odd grid whose midpoints are samples again, with trapezoid weights."""
    side = [np.r_[0.5, np.ones(n - 2), 0.5] for n in f.shape]
    weight, total, found = np.outer(*side), 0.0, 0.0
    for i, j in np.ndindex(f.shape):
        rows, columns = (np.arange(k % 2, n, 2) for k, n in zip((i, j), f.shape, strict=True))
        other = np.ix_(rows, columns)
        middle = f[np.ix_((rows + i) // 2, (columns + j) // 2)]
        found += (weight[i, j] * weight[other] * np.maximum(middle - (f[i, j] + f[other]) / 2, 0)).sum()
        total += (weight[i, j] * weight[other]).sum()
    return found / total


def test_midpoint_mean_lies_within_its_standard_error_and_keeps_still_when_axes_swap(rng):
    a, b = np.linspace(-1, 1, 61), np.linspace(-2, 1, 45)
    scores = []
    for _ in range(12):
        waves = rng.normal(size=(4, 2)) * 2
        f = sum(np.sin(p * a[:, None] + q * b[None] + rng.uniform(0, 6)) for p, q in waves)
        one, swapped = convexity.report(Surface(Grid(a, b), f)), convexity.report(Surface(Grid(b, a), f.T))
        assert swapped.midpoint_mean == pytest.approx(one.midpoint_mean, rel=1e-9)
        assert swapped.midpoint_mean_error == pytest.approx(one.midpoint_mean_error, rel=1e-9)
        assert 0 < one.midpoint_mean_error < 0.05 * one.midpoint_mean
        scores.append((one.midpoint_mean_loss - all_midpoints(f)) / one.midpoint_mean_error_loss)
    assert np.abs(scores).max() < 6, scores
    assert 0.1 < np.std(scores) < 3, scores


def persistence_of_a_line(g):
    """Merge by merge, quadratic: every minimum lasts until the lowest pass to something deeper."""
    found = []
    for i in range(len(g)):
        if (i and g[i - 1] <= g[i]) or (i + 1 < len(g) and g[i + 1] < g[i]):
            continue
        passes = [max(g[min(i, j) : max(i, j) + 1]) for j in range(len(g)) if (g[j], j) < (g[i], i)]
        found += [min(passes) - g[i]] if passes else []
    return found


def test_minima_and_persistence_equal_those_of_the_line_they_are_made_of(rng):
    g = rng.normal(size=25)
    a, b = np.linspace(-1, 1, 25), np.linspace(-1, 1, 8)
    report = convexity.report(Surface(Grid(a, b), g[:, None] + 9 * (b[None] - b[3]) ** 2))
    lost = [p for p in persistence_of_a_line(g) if p > 1e-3 * report.range]
    assert report.minima == 1 + len(lost)
    assert report.persistence_loss == pytest.approx(sum(lost))


def test_eight_neighbours_join_diagonal_valleys():
    n = 12
    f = np.where(np.eye(n, dtype=bool), 0.0, 1.0)
    assert convexity.report(Surface(Grid(np.arange(n), np.arange(n)), f)).minima == 1


def test_float32_noise_on_a_flat_surface_measures_zero(rng):
    noise = (0.7 * (1 + 1e-7 * rng.normal(size=(21, 21)))).astype("f4")
    anchors = np.array([[0.0, 0.0], [10.0, 2.0], [3.0, 15.0]])
    report = convexity.report(Surface(Grid(np.arange(21), np.arange(21)), noise, anchors=anchors))
    check_zero(report)
    check_zero(report.triangle, "triangle")


def test_float32_rounding_of_a_convex_surface_measures_zero(rng):
    x = np.linspace(-1, 1, 41)
    f = surface(convex_function(rng, 0), x).risk + 1.0
    report = convexity.report(Surface(Grid(x, x), f.astype("f4")))
    check_zero(report)


def test_constant_surface_measures_zero_with_one_minimum():
    for value in (0.0, -3.0, 1e30):
        report = convexity.report(Surface(Grid(np.arange(5), np.arange(4)), np.full((5, 4), value)))
        check_zero(report)
        assert report.range == report.env_max_loss == 0


def test_two_by_two_grid_has_no_interior(rng):
    report = convexity.report(Surface(Grid(np.arange(2), np.arange(2)), rng.normal(size=(2, 2))))
    check_zero(report)


def test_unknown_cells_are_left_out(rng):
    x = np.linspace(-2, 2, 41)
    holes = np.zeros((41, 41), bool)
    holes[1::3, 1::3] = rng.random((14, 14)) < 0.9  # apart, so that no cell loses all that lie below it
    bad = np.where(rng.random((41, 41)) < 0.5, np.nan, np.inf)
    whole = convexity.report(surface(double_well, x))
    report = convexity.report(surface(lambda a, b: np.where(holes, bad, double_well(a, b)), x))
    assert report.env_max == pytest.approx(whole.env_max, rel=0.3)
    assert report.env_mean == pytest.approx(whole.env_mean, rel=0.2)
    assert report.minima == 2
    convex = surface(lambda a, b: np.where(holes, np.nan, a**2 + a * b + b**2), x)
    check_zero(convexity.report(convex))


def test_a_wall_of_unknown_cells_makes_no_minimum():
    x = np.linspace(-2, 2, 31)
    f = np.where(abs(x[:, None]) < 0.5, np.nan, x[:, None] ** 2 + x[None] ** 2)
    check_zero(convexity.report(Surface(Grid(x, x), f)))


def test_too_few_finite_samples_are_refused():
    line = np.full((5, 5), np.nan)
    line[2] = 1.0
    for f in (line, np.full((5, 5), np.nan), np.where(np.eye(5) > 0, 1.0, np.inf)):
        with pytest.raises(ValueError, match="three finite samples"):
            convexity.report(Surface(Grid(np.arange(5), np.arange(5)), f))


def test_barriers_between_the_anchors_are_those_of_the_function():
    x = np.linspace(-2, 2, 121)
    anchors = np.array([[-1.0, 0.0], [1.0, 0.0], [0.25, 1.5]])
    found = convexity.report(surface(double_well, x, anchors=anchors)).barriers
    t = np.linspace(0, 1, 2001)[:, None]
    for barrier, (p, q) in zip(found, combinations(anchors, 2), strict=True):
        values = double_well(*((1 - t) * p[None] + t * q[None]).T)
        exact = (values - np.linspace(values[0], values[-1], len(values))).max()
        assert barrier == pytest.approx(max(exact, 0), abs=3e-3)


def test_a_barrier_is_unknown_where_its_edge_leaves_the_samples():
    x = np.linspace(-1, 1, 11)
    anchors = np.array([[-1.0, 0.0], [1.0, 0.0], [0.0, 1.5]])
    report = convexity.report(surface(lambda a, b: a**2 + b**2, x, anchors=anchors))
    assert report.barriers[0] == 0
    assert np.isnan(report.barriers[1:]).all()


def test_exact_barriers_equal_a_loop(rng):
    shapes = {"w": (3, 2), "v": (4,)}
    solutions = [{k: jnp.asarray(rng.normal(size=s), "f4") for k, s in shapes.items()} for _ in range(3)]
    target = rng.normal(size=(3, 2))

    def risk(w):
        return jnp.sin(3 * w["w"]).sum() + jnp.sum((w["w"] - target) ** 2) * jnp.cos(w["v"]).mean()

    found = convexity.barriers(lambda w: {"train": risk(w), "twice": 2 * risk(w)}, solutions, points=21)
    for k, (p, q) in enumerate(combinations(solutions, 2)):
        path = np.array([risk({n: (1 - t) * p[n] + t * q[n] for n in p}) for t in np.linspace(0, 1, 21)])
        exact = (path - np.linspace(path[0], path[-1], 21)).max()
        assert found["train"][k] == pytest.approx(max(exact, 0), rel=1e-3, abs=1e-4)
    np.testing.assert_allclose(found["twice"], 2 * found["train"], rtol=1e-4, atol=1e-4)


def test_barriers_of_a_convex_function_are_zero(rng):
    solutions = [jnp.asarray(rng.normal(size=5), "f4") for _ in range(3)]
    assert not convexity.barriers(lambda w: jnp.sum(w**2) + jnp.abs(w).max(), solutions).any()


def test_given_barriers_and_layers_replace_the_samples(rng):
    x = np.linspace(-2, 2, 21)
    both = surface(lambda a, b: a**2 + b**2, x, layers={"test_risk": double_well(x[:, None], x[None])})
    assert convexity.report(both).minima == 1
    report = convexity.report(both, layer="test_risk", barriers=np.array([0.25]))
    assert report.minima == 2
    assert report.barriers == [0.25]


def test_triangle_sees_only_what_lies_inside():
    x = np.linspace(-2, 2, 41)
    left = np.array([[-2.0, -2.0], [-0.7, -2.0], [-2.0, 2.0]])
    report = convexity.report(surface(double_well, x, anchors=left))
    assert report.minima == 2
    check_zero(report.triangle, "triangle")
    around = np.array([[-2.0, -2.0], [2.0, -2.0], [0.0, 2.0]])
    assert convexity.report(surface(double_well, x, anchors=around)).triangle.minima == 2


def test_triangle_without_grid_points_is_none():
    x = np.linspace(-2, 2, 5)
    small = np.array([[0.1, 0.1], [0.2, 0.1], [0.1, 0.2]])
    flat = np.array([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]])
    for anchors in (small, flat):
        assert convexity.report(surface(double_well, x, anchors=anchors)).triangle is None


def test_numbers_are_flat_and_named():
    x = np.linspace(-2, 2, 21)
    report = convexity.report(surface(double_well, x, anchors=np.array([[-1.0, 0], [1, 0], [0, 1.0]])))
    flat = convexity.numbers(report)
    assert flat["barrier"] == report.barriers.max()
    assert flat["triangle_env_max_loss"] == report.triangle.env_max_loss
    assert all(isinstance(value, float) for value in flat.values())
    assert "\n" not in repr(report)
    assert f"± {report.midpoint_mean_error:.1g}" in repr(report)


@pytest.mark.parametrize(
    ("a", "shape", "message"),
    [
        ([0, 1, 2], (2, 3), "one value a grid point"),
        ([0], (1, 3), "at least 2 finite"),
        ([0, 0, 1], (3, 3), "strictly increasing"),
    ],
)
def test_wrong_grids_are_refused(a, shape, message):
    with pytest.raises(ValueError, match=message):
        convexity.report(Surface(Grid(np.array(a, float), np.arange(3.0)), np.zeros(shape)))


def test_an_edge_without_an_inside_is_refused():
    with pytest.raises(ValueError, match="at least 3 points"):
        convexity.barriers(jnp.sum, [jnp.zeros(2), jnp.ones(2)], points=2)
    with pytest.raises(ValueError, match="two solutions"):
        convexity.barriers(jnp.sum, [jnp.zeros(2)])
