"""Standard errors against a loop over examples in NumPy, coverage of their intervals, stopping at a tolerance.

The loop runs in float64, where losses differ from those in float32 by 1e-6.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import seeds

import landscape as ls
from landscape import convexity, networks
from landscape.arrays import trees
from landscape.evaluation import example_layout, moments
from landscape.evaluation.execution import Execution
from landscape.files import atomic

ROUTES = ("lanes", "direct")
quiet: dict[str, Any] = {"progress": False}


def case(rng, examples=1003, weight=None) -> tuple[ls.Problem, ls.Plane, ls.Grid]:
    """A network of three branches; labels that go round in a circle, as sorted data sets have them."""
    x = rng.normal(size=(examples, 5)).astype("f4")
    y = (np.arange(examples) % 10).astype("i4")
    network = ls.MultiBranch(networks.mlp_branch((5, 4, 10)), 3)
    problem = ls.Problem(ls.Dataset(x, y, weight), network, ls.losses.logistic)
    plane = ls.planes.through_solutions(*(network.init(jax.random.key(int(k))) for k in rng.integers(0, 10**6, 3)))
    return problem, plane, ls.grid_around(plane, points=(4, 3))


def losses(problem: ls.Problem, w: Any) -> np.ndarray:
    """Every example's loss in float64."""
    w, x = oracles.float64(w), np.asarray(problem.data.x, float)
    f = np.mean([oracles.mlp()(oracles.tree_map(lambda t, i=i: t[i], w), x) for i in range(3)], 0)
    return np.logaddexp.reduce(f, -1) - f[np.arange(len(f)), np.asarray(problem.data.y)]


def error(values: np.ndarray, weight: np.ndarray, of: int | None = None) -> float:
    """Standard error of a weighted mean, by its formula."""
    n, mean = np.count_nonzero(weight), weight @ values / weight.sum()
    share = n / (n - 1) * (1 if of is None else 1 - n / of)
    return float(np.sqrt(share * np.square(weight * (values - mean)).sum()) / weight.sum())


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("weighted", [False, True])
def test_errors_equal_a_loop_over_examples(route: str, weighted: bool) -> None:
    rng = seeds.generator()
    weight = np.where(rng.random(1003) < 0.3, 0, rng.uniform(0.1, 9, 1003)).astype("f4") if weighted else None
    problem, plane, grid = case(rng, weight=weight)
    found = ls.evaluate(problem, plane, grid, route=route, **quiet)
    at = partial(oracles.surface, plane.affine, grid)
    first, own = losses(problem, plane.at(tuple(plane.anchors[0]))), np.asarray(problem.data.weight, float)
    np.testing.assert_allclose(found.standard_error, at(lambda w: error(losses(problem, w), own)), rtol=1e-4, atol=1e-9)
    away = at(lambda w: error(losses(problem, w) - first, own))
    np.testing.assert_allclose(found.difference_error, away, rtol=1e-4, atol=1e-7)
    spread = moments.jackknife(found.left_out)
    assert found.left_out.shape == (moments.GROUPS, 4, 3)
    assert 0.5 < np.median(spread / found.standard_error) < 1.8
    np.testing.assert_allclose(found.left_out.mean(0), found.risk, rtol=2e-2 if weighted else 2e-4)


def test_losses_far_from_zero_lose_no_digits() -> None:
    """Σ ℓ² would round to nothing of the spread."""
    rng, n = seeds.generator(), 512
    values = (1000 + rng.normal(size=(1, n)) * 0.01).astype("f4")
    weights, none = moments.Weights(jnp.ones(n), jnp.arange(n) % moments.GROUPS), jnp.zeros(n)
    total = moments.zeros(1, jnp.float32)
    for part in np.split(np.arange(n), 4):
        total = moments.add(total, values[:, part], jax.tree.map(lambda t, p=part: t[p], weights), none[part])
    sums = moments.uncentred(np.asarray(total)[:, None])
    found = moments.Total(sums, np.ones(n), np.arange(n) % moments.GROUPS).errors()
    wanted = error(values[0].astype(float), np.ones(n))
    np.testing.assert_allclose(found.standard, wanted, rtol=2e-3)


def test_intervals_cover_the_mean_of_the_data_set() -> None:
    """1,500 draws of 200 of 10,000 examples with skewed losses: 95 % intervals hold 92–98 % of the time."""
    rng, n = seeds.generator(), 200
    values = rng.gamma(2.0, 1.0, 10_000)
    held, weights = 0, moments.Weights(jnp.ones(n), jnp.arange(n) % moments.GROUPS)
    add = jax.jit(moments.add)
    for _ in range(1500):
        drawn = rng.choice(values, n, replace=False)
        sums = add(moments.zeros(1, jnp.float32), drawn[None].astype("f4"), weights, jnp.zeros(n))
        total = moments.Total(moments.uncentred(np.asarray(sums)[:, None]), np.ones(n), np.arange(n) % moments.GROUPS)
        held += abs(total.means[0, 0] - values.mean()) <= 1.96 * total.errors(of=10_000).standard[0]
    assert 0.92 < held / 1500 < 0.98, held


@pytest.mark.parametrize("route", ROUTES)
def test_a_surface_stops_at_its_tolerance(route: str, tmp_path, monkeypatch) -> None:
    problem, plane, grid = case(seeds.generator(), examples=5000)
    whole = ls.evaluate(problem, plane, grid, route=route, **quiet)
    wanted = float(whole.standard_error.max() * 2)
    found = ls.evaluate(problem, plane, grid, route=route, tolerance=wanted, **quiet)
    used = found.metadata["examples"]
    assert 200 <= used < 4000
    assert found.standard_error.max() <= wanted
    assert found.metadata["largest_standard_error"] == found.standard_error.max()
    order = np.random.default_rng(found.metadata["order_seed"]).permutation(5000)[:used]
    values = losses(problem, plane.at(tuple(plane.anchors[1])))
    np.testing.assert_allclose(found.anchor_risk[1], values[order].mean(), rtol=1e-5)
    known = oracles.surface(plane.affine, grid, lambda w: error(losses(problem, w)[order], np.ones(used), 5000))
    np.testing.assert_allclose(found.standard_error, known, rtol=1e-4)
    assert (abs(found.risk - whole.risk) < 5 * wanted).all()

    def stop() -> None:
        raise atomic.Stopped

    with pytest.raises(atomic.Stopped):
        ls.evaluate(problem, plane, grid, route=route, tolerance=wanted, directory=tmp_path, check_stop=stop, **quiet)
    again = ls.evaluate(problem, plane, grid, route=route, tolerance=wanted, directory=tmp_path, **quiet)
    for name in ("risk", "standard_error", "difference_error", "left_out", "anchor_risk"):
        np.testing.assert_array_equal(getattr(again, name), getattr(found, name))


def test_all_examples_have_no_error_of_the_data_set() -> None:
    problem, plane, grid = case(seeds.generator(), examples=300)
    whole, exact = (ls.evaluate(problem, plane, grid, tolerance=t, **quiet) for t in (None, 1e-9))
    assert exact.metadata["examples"] == exact.metadata["examples_available"] == 300
    assert (exact.standard_error == 0).all()
    assert (whole.standard_error > 0).all()
    np.testing.assert_allclose(exact.risk, whole.risk, rtol=1e-6)
    share = ls.evaluate(problem, plane, grid, tolerance="300%", **quiet)
    assert share.standard_error.max() <= 3 * np.ptp(share.risk)


def test_measures_have_errors_and_files_keep_them(tmp_path) -> None:
    problem, plane, grid = case(seeds.generator())
    surface = ls.evaluate(problem, plane, grid, **quiet)
    surface.save(tmp_path / "s.nc")
    loaded = ls.Surface.load(tmp_path / "s.nc")
    for name in ("standard_error", "difference_error", "left_out"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(surface, name))
    report = convexity.report(loaded)
    known = convexity.numbers(report)
    assert known["range_standard_error"] > 0
    assert report.standard_errors["barriers"].shape == (3,)
    ends = [np.unravel_index(f(surface.risk), surface.risk.shape) for f in (np.argmax, np.argmin)]
    apart = [surface.left_out[:, *ends[0]] - surface.left_out[:, *ends[1]]]
    np.testing.assert_allclose(known["range_standard_error"], moments.jackknife(apart[0]), rtol=0.5)


def test_groups_are_drawn_at_random_and_equal() -> None:
    found = example_layout.groups(None, 1000)
    assert set(np.bincount(found)) == {50}
    assert len(set(found[::20])) > 5


@pytest.mark.parametrize("tolerance", [0, -1.0, "1", "%", "-1%", "a lot", float("nan"), "nan%"])
def test_a_tolerance_is_a_positive_number_or_share(tolerance: Any) -> None:
    if tolerance == "1":
        assert Execution(tolerance=tolerance).allowed_error(np.zeros(2)) == 1.0
        return
    with pytest.raises(ValueError, match="A tolerance is"):
        Execution(tolerance=tolerance)


def test_a_function_has_no_examples() -> None:
    _, plane, grid = case(seeds.generator())
    with pytest.raises(ValueError, match="no examples"):
        ls.evaluate(trees.norm, plane, grid, tolerance=0.1, **quiet)
