"""Averaged l_p balls: closed forms in the plane, membership and distances against brute force, the bounds."""

import json

import numpy as np
import pytest
import seeds

from landscape.duality import hausdorff
from landscape.duality.shapley_folkman import averaged_ball, nonconvexity


@pytest.fixture
def rng():
    seed = seeds.draw()
    print(f"seed {seed}")
    return np.random.default_rng(seed)


def random_averages(rng, p, dimension, copies, count):
    """Averages [count, D] of random points of A in the first orthant, many of them on its faces."""
    shares = rng.dirichlet(np.full(dimension, 0.3), size=(count, copies))
    shares[rng.random(shares.shape) < 0.4] = 0.0
    total = np.maximum(shares.sum(axis=2, keepdims=True), 1e-300)
    return ((shares / total) ** (1 / p)).mean(axis=1)


def test_reference_distances_in_the_plane():
    for copies in range(1, 101):
        found = nonconvexity(p=0.5, dimension=2, copies=copies)
        value = 2**0.5 / (4 * copies)
        assert found.lo <= value <= found.hi
        assert found.hi - found.lo <= 0.01 * value
        assert found.exact == pytest.approx(value, rel=1e-15)
    assert nonconvexity(p=0.5, dimension=2, copies=1000).hi < 4e-4


def test_area_deficit():
    for copies in (1, 2, 7, 100):
        assert nonconvexity(p=0.5, dimension=2, copies=copies).area_deficit == pytest.approx(4 / (3 * copies))
    x = np.linspace(0, 1, 200_001)
    for p in (0.3, 0.8):
        ball = averaged_ball(p, 2, 3)
        assert ball.area == pytest.approx(4 * np.trapezoid(ball.boundary(x), x), rel=1e-4)


@pytest.mark.parametrize("copies", [1, 2, 3])
def test_intervals_in_space_are_narrow_and_shrink(copies):
    found = nonconvexity(p=0.5, dimension=3, copies=copies)
    assert 0 < found.lo <= found.hi <= 1.05 * found.lo
    finer = nonconvexity(p=0.5, dimension=3, copies=copies, tolerance=0.008)
    assert finer.hi <= 1.008 * finer.lo * (1 + 1e-12)
    assert max(found.lo, finer.lo) <= min(found.hi, finer.hi)
    assert finer.hi >= nonconvexity(p=0.5, dimension=2, copies=copies).lo  # the coordinate planes are part of it


def test_three_copies_computed_directly_agree_with_the_two_sided_bracket():
    lo, hi = hausdorff.farthest(hausdorff.pieces(3, 3), 3, 3, 0.5, 0.02)
    found = nonconvexity(p=0.5, dimension=3, copies=3)
    assert max(lo / 3, found.lo) <= min(hi / 3, found.hi)


@pytest.mark.parametrize("p", [0.2, 0.45, 0.75])
@pytest.mark.parametrize("dimension", [2, 3])
def test_bounds_hold_for_any_exponent(p, dimension):
    for copies in (1, 2, 3, 10, 1000):
        found = nonconvexity(p=p, dimension=dimension, copies=copies, tolerance=0.05)
        assert 0 < found.lo <= found.hi <= 1.06 * found.lo
        assert found.lo <= found.inner_radius_bound <= found.circumradius_bound
        assert found.exact is None


def test_bounds_of_shapley_folkman_and_starr():
    found = nonconvexity(p=0.5, dimension=2, copies=8)
    assert found.circumradius_bound == pytest.approx(2**0.5 / 8)
    assert found.inner_radius_bound == pytest.approx(1 / 8)
    assert nonconvexity(p=0.5, dimension=3, copies=1).inner_radius_bound == pytest.approx((2 / 3) ** 0.5)


@pytest.mark.parametrize(("dimension", "copies"), [(2, 1), (2, 3), (3, 1), (3, 2), (3, 3)])
def test_distances_agree_with_a_cloud_of_random_averages(rng, dimension, copies):
    p = 0.5
    y = rng.dirichlet(np.ones(dimension), size=20) * copies
    parts = hausdorff.pieces(dimension, copies)
    found = hausdorff.distances(y, np.full(len(y), -1.0), parts, p, 1e-4) / copies
    cloud = random_averages(rng, p, dimension, copies, 100_000)
    nearest = np.array([np.linalg.norm(np.maximum(t / copies - cloud, 0), axis=1).min() for t in y])
    assert (found <= nearest + 1e-4).all()
    assert (nearest - found).mean() < 0.03


def test_distance_from_the_middle_of_the_plane():
    parts = hausdorff.pieces(2, 1)
    found = hausdorff.distances(np.array([[0.5, 0.5], [1.0, 0.0]]), np.array([-1.0, -1.0]), parts, 0.5, 1e-6)
    assert found == pytest.approx([2**0.5 / 4, 0.0], abs=1e-6)


@pytest.mark.parametrize("copies", [1, 2, 5])
def test_boundary_in_the_plane_is_the_greatest_average(rng, copies):
    for p in (0.3, 0.5, 0.9):
        ball = averaged_ball(p, 2, copies)
        x, y = random_averages(rng, p, 2, copies, 20_000).T
        assert (y <= ball.boundary(np.maximum(x - 1e-9, 0)) + 1e-12).all()
        k = np.arange(copies + 1) / copies
        np.testing.assert_allclose(ball.boundary(k), 1 - k, atol=1e-12)
    half = averaged_ball(0.5, 2, copies)
    theta = rng.random()
    assert half.boundary(theta / copies) == pytest.approx((copies - 1 + (1 - theta**0.5) ** 2) / copies)


@pytest.mark.parametrize("copies", [1, 2, 3, 5])
def test_boundary_in_space_is_attained_and_greatest(rng, copies):
    ball = averaged_ball(0.5, 3, copies)
    x, y, z = random_averages(rng, 0.5, 3, copies, 5_000).T * (1 - 1e-9)
    top = ball.boundary(x, y)
    # arcs are tried at 400 points, so the height may be missed by what a vertical wall between two of them hides
    assert np.quantile(z - top, 0.99) < 1e-2
    a, b = rng.dirichlet(np.ones(3), size=120).T[:2]
    c = ball.boundary(a, b)
    points = np.stack([a, b, c], axis=1)[np.isfinite(c)] * copies
    assert len(points) > 10
    near = hausdorff.distances(points, np.full(len(points), -1.0), hausdorff.pieces(3, copies), 0.5, 1e-4)
    assert near.max() < 1e-3


def test_boundary_outside_is_not_a_number():
    assert np.isnan(averaged_ball(0.5, 2, 2).boundary(-0.1))
    assert np.isnan(averaged_ball(0.5, 3, 2).boundary(0.8, 0.8))


@pytest.mark.parametrize("dimension", [2, 3])
def test_lattice_and_cells(dimension):
    points = hausdorff.lattice(dimension, 3, -1)
    assert (points.sum(axis=1) == 3).all()
    assert points.min() == -1
    assert len({tuple(row) for row in points}) == len(points)
    assert len(hausdorff.lattice(dimension, -1, 0)) == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"p": 0.0}, "p must"),
        ({"p": 1.0}, "p must"),
        ({"p": -0.5}, "p must"),
        ({"p": float("nan")}, "p must"),
        ({"copies": 0}, "copies"),
        ({"copies": 1.5}, "copies"),
        ({"dimension": 4}, "dimension"),
        ({"tolerance": 0.0}, "tolerance"),
    ],
)
def test_wrong_use_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        nonconvexity(**({"p": 0.5, "dimension": 2, "copies": 1} | changes))
    if "tolerance" not in changes:
        with pytest.raises(ValueError, match=message):
            averaged_ball(**({"p": 0.5, "dimension": 2, "copies": 1} | changes))


def test_wrong_coordinates_are_refused():
    with pytest.raises(ValueError, match="coordinates"):
        averaged_ball(0.5, 3, 1).boundary(0.5)
    with pytest.raises(ValueError, match="area"):
        _ = averaged_ball(0.5, 3, 1).area


def test_command_measures_and_draws(tmp_path, capsys):
    from landscape.__main__ import dispatch
    from landscape.paper import figure3

    folder = tmp_path / "run"
    sizes = ["--copies", "1", "2", "3", "--measured", "1", "4", "--mesh", "6"]
    dispatch(["figure3", "--p", "0.5", *sizes, "--out", str(folder)])
    assert "0.353553" in capsys.readouterr().out
    measures = json.loads((folder / "measures.json").read_text())
    for row in measures["distance"]["2"]:
        assert row["lo"] <= 2**0.5 / 4 / row["copies"] <= row["hi"]
    for name in ("figure.png", "figure.pdf"):
        assert (folder / name).stat().st_size > 10_000
    for wrong in ({"p": 1.0}, {"copies": (0,)}, {"measured": ()}, {"mesh": 1}):
        with pytest.raises(ValueError, match="--"):
            figure3.Config(**wrong)


def test_radii_lie_between_ball_and_hull():
    from landscape.paper import figure3

    toward = figure3.directions(5)
    one, many = (figure3.radii(averaged_ball(0.5, 3, copies), toward) for copies in (1, 4))
    norm = (np.sqrt(toward).sum(axis=1)) ** -2.0
    np.testing.assert_allclose(one, norm, atol=1e-4)
    assert (many >= one - 1e-4).all()
    assert (many <= 1 + 1e-12).all()
