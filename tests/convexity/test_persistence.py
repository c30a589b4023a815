"""Minima on any grid: convex surfaces have one, two wells are two, and heights equal those of a linear program."""

from itertools import pairwise, product

import jax.numpy as jnp
import numpy as np
import pytest
import seeds
from scipy.optimize import linprog

from landscape import convexity
from landscape.convexity.envelope import Samples
from landscape.convexity.persistence import persistences
from landscape.surfaces import Grid, Surface

MEASURES = ("env_max", "env_mean", "midpoint_mean", "midpoint_mean_error", "curvature_negative_share", "persistence")


@pytest.fixture
def cases(request):
    """Random surfaces of a test: half of `--cases`; 6000 takes some minutes."""
    return request.config.getoption("--cases") // 2


@pytest.fixture
def rng():
    seed = seeds.draw()
    print("seed", seed)
    return np.random.default_rng(seed)


def uneven(rng, points, low, high):
    steps = np.cumsum(rng.lognormal(0, 1, points - 1))
    return low + (high - low) * np.concatenate([[0], steps / steps[-1]])


def grid(rng, kind):
    return (
        lambda: (np.linspace(-1, 1, 41), np.linspace(-1, 1, 31)),
        lambda: (np.linspace(-1, 1, 5), np.linspace(-1, 1, 201)),
        lambda: (np.linspace(-3, 7, 51), np.linspace(-1e-3, 1e-3, 51)),
        lambda: (uneven(rng, 31, -1, 2), uneven(rng, 23, -3, 1)),
        lambda: (1e5 + np.linspace(0, 10, 17), np.linspace(5, 6, 64)),
    )[kind % 5]()


def turned(rng, a, b, stretch, angle=np.pi):
    """Coordinates u [A, B] along and v across a random direction, in units of half the plot's sides, v stretched."""
    x, y = (2 * (side - side[0]) / np.ptp(side) - 1 - rng.uniform(-0.2, 0.2) for side in (a, b))
    t = rng.uniform(-angle, angle)
    u = np.cos(t) * x[:, None] + np.sin(t) * y[None]
    return u, stretch * (np.cos(t) * y[None] - np.sin(t) * x[:, None])


def convex(rng, kind, u, v):
    planes = rng.normal(size=(rng.integers(1, 9), 3)) * rng.lognormal(0, 1.5, 3)[None]
    return (
        lambda: np.max([p * u + q * v + r for p, q, r in planes], 0),
        lambda: np.hypot(u, v),
        lambda: np.abs(u) + np.abs(v),
        lambda: np.maximum(np.abs(u), np.abs(v)),
        lambda: (np.abs(u) ** 3 + np.abs(v) ** 3) ** (1 / 3),
        lambda: u**2 + v**2,
        lambda: v**2 + 0 * u,
        lambda: np.logaddexp(u, -v) + np.abs(v),
    )[kind % 8]()


def stored(f, scale, offset, kind):
    return np.asarray(scale * f / np.ptp(f) + offset).astype(kind)


def check_convex(surface, case):
    report = convexity.report(surface)
    for part in (report, report.triangle or report):
        found = {name: getattr(part, name) for name in MEASURES} | {"minima": part.minima - 1}
        assert not any(found.values()), (case, found)  # not any(nan) is False
        assert np.isfinite(list(convexity.numbers(part).values())[:-1]).all(), case
    assert not report.barriers.any(), (case, report.barriers)


def test_convex_surfaces_measure_zero_whatever_their_grid_offset_scale_and_type(cases, rng):
    for k in range(cases):
        a, b = grid(rng, k)
        u, v = turned(rng, a, b, 10 ** rng.uniform(-2, 2))
        scale, offset = 10.0 ** rng.integers(-6, 7), rng.choice([0, 100, 1e8])
        f = stored(convex(rng, k // 5, u, v), scale, offset, ("f4", "f8")[rng.integers(2)])
        corners = np.array([[a[0], b[0]], [a[-1], b[0]], [a[0], b[-1]]])
        check_convex(
            Surface(Grid(a, b), f, anchors=rng.dirichlet(np.ones(3), 3) @ corners), (k, scale, offset, f.dtype)
        )


@pytest.mark.parametrize("kind", [np.float16, jnp.bfloat16])
def test_convex_surfaces_in_half_precision_measure_zero(cases, rng, kind):
    for k in range(cases // 5):
        a, b = grid(rng, k)
        f = convex(rng, k // 5, *turned(rng, a, b, 10 ** rng.uniform(-1, 1)))
        check_convex(Surface(Grid(a, b), stored(f, 10.0, 5.0, kind)), (k, kind))


def test_unknown_cells_of_convex_surfaces_make_no_minimum(cases, rng):
    for k in range(cases // 5):
        a, b = grid(rng, k)
        f = stored(convex(rng, k // 5, *turned(rng, a, b, 10 ** rng.uniform(-2, 2))), 1.0, 100.0, ("f4", "f8")[k % 2])
        f[rng.random(f.shape) < rng.choice([0.1, 0.5, 0.9])] = np.nan
        if k % 3 == 0:
            f[len(a) // 2 - 1 : len(a) // 2 + 1] = np.inf
        check_convex(Surface(Grid(a, b), f), k)


def test_values_less_exact_than_their_type_need_their_resolution(rng):
    a, b = grid(rng, 0)
    u, v = turned(rng, a, b, 30.0)
    f = stored(np.hypot(u, v), 1.0, 1e4, "f4").astype("f8") * 1.1
    assert convexity.report(Surface(Grid(a, b), f)).env_max > 0
    report = convexity.report(Surface(Grid(a, b), f), resolution=0.05)
    assert report.env_max == 0
    assert report.resolution == pytest.approx(0.05)


@pytest.mark.parametrize("wells", ["quartic", "two bowls"])
def test_two_wells_of_known_depth_are_two_minima(cases, rng, wells):
    """Turned and stretched; on 5 x 201 points the wells lie along the finer axis, elsewhere in any direction."""
    counted = 0
    for k in range(cases):
        a, b = grid(rng, k if k % 5 != 3 else 0)
        a, b = (-2 + 4 * (side - side[0]) / np.ptp(side) for side in (a, b))
        if k % 5 == 1:
            v, u = turned(rng, a, b, 1.0, angle=0.1)
        else:
            u, v = turned(rng, a, b, 1.0)
        u, v = 2 * u, 2 * v * 10 ** rng.uniform(-0.5, 0.5 if min(len(a), len(b)) < 50 else 1)
        higher = rng.uniform(0, 0.3)
        bowls = np.minimum((u - 1) ** 2 + v**2, (u + 1) ** 2 + v**2 + higher)
        f, depth = ((u**2 - 1) ** 2 + v**2, 1.0) if wells == "quartic" else (bowls, (1 + higher / 4) ** 2 - higher)
        scale, offset = 10.0 ** rng.integers(-6, 7), rng.choice([0, 100, 1e8])
        depth *= scale / np.ptp(f)
        report = convexity.report(Surface(Grid(a, b), stored(f, scale, offset, ("f4", "f8")[k % 2])))
        tolerance = max(1e-3 * report.range, report.resolution)
        assert report.minima <= 2, (k, scale, offset)
        if 0.25 * depth > tolerance:  # coarse grids see less than the whole depth
            counted += 1
            assert report.minima == 2, (k, scale, offset)
            assert 0.25 * depth < report.persistence_loss < 1.4 * depth + report.resolution, (k, scale, offset)
    assert counted > cases / 4


def test_two_narrow_slanted_valleys_side_by_side_are_two_minima(cases, rng):
    for k in range(cases // 5):
        x = np.linspace(-1, 1, (41, 51, 81)[k % 3])
        u, v = turned(rng, x, x, 1.0)
        slope = 10 ** rng.uniform(-3, -1)
        f = np.minimum((v - 0.3) ** 2 + slope * (u - 0.2) ** 2, (v + 0.3) ** 2 + slope * (u + 0.2) ** 2 + 0.01)
        assert convexity.report(Surface(Grid(x, x), f)).minima == 2, (k, slope)


def height_by_linear_programs(f, p, q):
    """The highest point on the segment from p to q, on the unit grid: envelope of the samples around, plus gaps."""
    step = np.subtract(q, p)
    t = np.unique(np.round([0, 1, *((x - p[k]) / step[k] for k in (0, 1) if step[k] for x in range(f.shape[k]))], 12))
    places = [p + s * step for s in t if 0 <= s <= 1]
    corners = set()
    for middle in ((s + e) / 2 for s, e in pairwise(places)):
        beside = [
            {int(x) + d for d in ((0, 1) if d else (-1, 0, 1))} & set(range(n))
            for x, d, n in zip(middle, step, f.shape, strict=True)
        ]
        corners |= set(product(*beside))
    corners = sorted(corners)
    values, columns = np.array([f[c] for c in corners]), np.column_stack([np.array(corners), np.ones(len(corners))]).T

    def envelope(place):
        return linprog(values, np.empty((0, len(values))), [], columns, [*place, 1]).fun

    gaps = values - [envelope(c) for c in corners]
    hats = [np.maximum(0, 1 - abs(columns[:2].T - place)).prod(1) for place in places]
    return max(envelope(place) + gaps @ hat for place, hat in zip(places, hats, strict=True))


def deaths(f, level):
    """Level at which each minimum meets a lower one, by the minimax path between all pairs of points."""
    level = level.copy()
    for k in range(f.size):
        level = np.minimum(level, np.maximum(level[:, k : k + 1], level[k : k + 1]))
    rank = np.argsort(np.argsort(f.ravel(), kind="stable"))
    return np.where(rank[None] < rank[:, None], level, np.inf).min(1)


def test_persistences_equal_those_of_all_paths_and_linear_programs(rng):
    for _ in range(8):
        shape = tuple(rng.integers(4, 8, 2))
        i, j = np.indices(shape)
        f = rng.normal(size=shape) + rng.choice([0, 1]) * (3 * i - 2 * j) ** 2
        points = np.array(list(np.ndindex(shape)))
        near = abs(points[:, None] - points[None]).max(-1) <= 1
        level = np.where(near, np.maximum(f.reshape(-1, 1), f.reshape(1, -1)), np.inf)
        floor = 0.05
        minima = [k for k in np.argsort(f.ravel()) if deaths(f, level)[k] - f.ravel()[k] > floor]
        for n, k in enumerate(minima):
            away = (((points[minima[:n]] - points[k]) / (np.array(shape) - 1)) ** 2).sum(1)
            for m in np.argsort(away, kind="stable")[:3]:
                low = minima[m]
                height = height_by_linear_programs(f, points[k], points[low])
                level[k, low] = level[low, k] = min(level[k, low], max(height, f.ravel()[k]))
                if height - f.ravel()[k] <= floor:
                    break
        lost = deaths(f, level)[minima[1:]] - f.ravel()[minima[1:]]
        grid = np.arange(shape[0], dtype=float), np.arange(shape[1], dtype=float)
        found = persistences(Samples(*grid, f, 0.0), floor)
        np.testing.assert_allclose(np.sort(found), np.sort(lost[lost > floor]), atol=1e-8)


def test_solutions_and_samples_almost_on_one_line_are_measured_or_refused(rng):
    """Triangles of any thinness, few known samples: finite measures, no triangle, or too few samples."""
    for k in range(60):
        a, b = (np.arange(n) if k % 2 else np.cumsum(rng.lognormal(0, 1, n)) for n in rng.integers(2, 9, 2))
        f = rng.normal(size=(len(a), len(b)))
        f[rng.random(f.shape) < rng.choice([0, 0.5])] = np.nan
        ends = np.array([[a[0], b[0]], [a[-1], b[-1]]], float)
        anchors = np.stack([ends[0], rng.dirichlet([1, 1]) @ ends, ends[1]])
        anchors[1] += 10.0 ** rng.uniform(-17, -1)
        surface = Surface(Grid(a.astype(float), b.astype(float)), f, anchors=anchors)
        known = np.argwhere(np.isfinite(f))
        if len(known) < 3 or np.linalg.matrix_rank(known[1:] - known[:1]) < 2:  # exact: whole numbers
            with pytest.raises(ValueError, match="not on one line"):
                convexity.report(surface)
            continue
        report = convexity.report(surface)
        for part in (report, report.triangle or report):
            assert np.isfinite([part.env_max, part.midpoint_mean, part.persistence]).all(), k
