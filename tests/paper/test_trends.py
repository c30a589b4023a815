"""Trends over I: intervals and rank correlations against scipy, and the protocol against its parts."""

import jax
import numpy as np
import pytest
import seeds
from scipy.stats import bootstrap, spearmanr

from landscape import alignment, convexity, evaluation, losses
from landscape.datasets import synthetic_teacher
from landscape.evaluation import cost_model, example_layout
from landscape.evaluation.execution import Execution
from landscape.files import atomic
from landscape.networks import MultiBranch, relu_branch
from landscape.paper import trends
from landscape.planes import oblique_through_solutions
from landscape.planes.grids import grid_around
from landscape.problem import Problem


@pytest.fixture
def rng():
    seed = seeds.draw()
    print("seed", seed)
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def problem():
    return Problem(
        synthetic_teacher(jax.random.key(1), 60, 4), MultiBranch(relu_branch(4), 8, average=False), losses.hinge
    )


@pytest.fixture(scope="module")
def solutions(problem):
    return [problem.network.init(key) for key in jax.random.split(jax.random.key(2), 6)]


def small(plane):
    return grid_around(plane, points=9)


def test_spearman_equals_scipy_and_its_p_value_a_permutation_test(rng):
    sizes, values = [1, 3, 10, 30], rng.normal(size=(4, 5)) - 0.4 * np.arange(4)[:, None]
    found = trends.trend(sizes, values)
    exact = spearmanr(np.repeat(sizes, 5), values.ravel())
    assert found.spearman == pytest.approx(exact.statistic)
    assert found.p_value == pytest.approx(exact.pvalue, abs=0.03)


def test_p_value_of_few_points_is_exact_up_to_sampling():
    """Five values in falling order: 2 of the 120 orders are as extreme."""
    found = trends.trend([1, 2, 3, 4, 5], np.array([[5.0], [4.0], [3.0], [2.0], [1.0]]))
    assert found.spearman == pytest.approx(-1)
    assert found.p_value == pytest.approx(2 / 120, abs=0.005)
    assert np.isnan(found.low).all()


def test_interval_equals_scipys_percentile_bootstrap(rng):
    values = rng.lognormal(size=(2, 12))
    found = trends.trend([1, 2], values)
    for k in range(2):
        exact = bootstrap((values[k],), np.mean, method="percentile", n_resamples=9999, rng=rng).confidence_interval
        width = exact.high - exact.low
        assert found.low[k] == pytest.approx(exact.low, abs=0.05 * width)
        assert found.high[k] == pytest.approx(exact.high, abs=0.05 * width)
    np.testing.assert_allclose(found.mean, values.mean(1))


def test_order_of_sizes_missing_values_and_ties(rng):
    values = rng.normal(size=(3, 4))
    one = trends.trend([10, 1, 3], values)
    assert one.branches.tolist() == [1, 3, 10]
    np.testing.assert_array_equal(one.values, values[[1, 2, 0]])
    holed = np.column_stack([values, np.full(3, np.nan)])
    assert trends.trend([10, 1, 3], holed).spearman == one.spearman
    flat = trends.trend([1, 2, 3], np.ones((3, 2)))
    assert (flat.spearman, flat.p_value) == (0, 1)


@pytest.mark.parametrize(
    ("sizes", "values", "message"),
    [
        ([1, 2], np.ones((3, 2)), "K = 2"),
        ([1, 2], np.ones(2), "K = 2"),
        ([1, 2], [[1.0], [np.nan]], "three finite"),
        ([5, 5], np.ones((2, 3)), "two numbers"),
    ],
)
def test_too_little_is_refused(sizes, values, message):
    with pytest.raises(ValueError, match=message):
        trends.trend(sizes, values)


def test_protocol_measures_each_triple_as_if_alone(problem, solutions):
    found = trends.measure(problem, solutions, test=problem, grid=small)
    assert [m.surface.metadata["triple"] for m in found] == [0, 1]
    (second,) = trends.measure(problem, solutions[3:], grid=small)
    np.testing.assert_allclose(second.surface.risk, found[1].surface.risk, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found[1].report.barriers, convexity.barriers(problem, solutions[3:]), atol=1e-6)
    np.testing.assert_array_equal(found[0].test_barriers, found[0].report.barriers)
    assert np.isnan(second.test_barriers).all()
    record = trends.record(found[1])
    assert record["branches"] == 8
    assert record["triple"] == 1
    assert record["barrier"] == record["test_barrier"] == found[1].report.barriers.max()


def test_one_program_draws_all_triples_and_one_all_edges_however_many_there_are():
    """The loss is traced as often for two triples as for five."""
    data, network = synthetic_teacher(jax.random.key(1), 60, 4), MultiBranch(relu_branch(4), 8, average=False)
    solutions = [network.init(key) for key in jax.random.split(jax.random.key(2), 15)]
    calls = {}
    for triples in (2, 5):
        calls[triples] = []

        def counted(outputs, y, calls=calls[triples]):
            calls.append(outputs.shape)
            return losses.squared(outputs, y)

        problem = Problem(data, network, counted)
        assert len(trends.measure(problem, solutions[: 3 * triples], grid=small)) == triples
    assert calls[2] == calls[5]
    assert len(calls[2]) < 15


def test_stacked_surfaces_are_those_of_single_planes_to_the_last_bit(problem, solutions):
    planes = [oblique_through_solutions(*solutions[k : k + 3]) for k in (0, 3)]
    grids = [grid_around(p, points=(5, 4)) for p in planes]
    together = evaluation.evaluate_stack(problem, planes, grids)
    for plane, grid, found in zip(planes, grids, together, strict=True):
        alone = evaluation.evaluate(problem, plane, grid, progress=False)
        np.testing.assert_array_equal(found.risk, alone.risk)
        np.testing.assert_array_equal(found.anchor_risk, alone.anchor_risk)
        assert found.metadata == alone.metadata
    small_memory = evaluation.evaluate_stack(problem, planes, grids, Execution(memory=40_000))
    np.testing.assert_allclose(small_memory[1].risk, together[1].risk, rtol=1e-6)
    for wrong in ([], grids[:1], [grids[0], grid_around(planes[1], points=3)]):
        with pytest.raises(ValueError, match="one grid a plane"):
            evaluation.evaluate_stack(problem, planes, wrong)


def test_a_stack_is_interrupted_and_continued_to_the_last_bit(problem, solutions, tmp_path, monkeypatch):
    monkeypatch.setattr(example_layout, "OPERATIONS_A_BLOCK", {"cpu": 1.0})
    monkeypatch.setattr(cost_model, "LANES_ON_CPU", (16, 16))
    monkeypatch.setattr(cost_model, "ROW_EXAMPLES", 16)
    monkeypatch.setattr(cost_model, "ROW_BYTES", 320)
    large = Problem(synthetic_teacher(jax.random.key(1), 300, 4), problem.network, problem.loss)
    planes = [oblique_through_solutions(*solutions[k : k + 3]) for k in (0, 3)]
    grids = [grid_around(p, points=5) for p in planes]
    whole = evaluation.evaluate_stack(large, planes, grids)

    def stop():
        raise atomic.Stopped

    with pytest.raises(atomic.Stopped):
        evaluation.evaluate_stack(large, planes, grids, Execution(directory=tmp_path, check_stop=stop))
    assert len(list(tmp_path.glob("block-*.npz"))) == 1
    again = evaluation.evaluate_stack(large, planes, grids, Execution(directory=tmp_path))
    assert len(list(tmp_path.glob("block-*.npz"))) > 1
    for one, other in zip(whole, again, strict=True):
        np.testing.assert_array_equal(one.risk, other.risk)


def test_aligned_triples_are_balanced_equal_in_output_and_lower(problem, solutions):
    triple = trends.aligned(problem, solutions[:3])
    for before, after in zip(solutions, triple, strict=False):
        x = problem.data.x
        np.testing.assert_allclose(
            problem.network.apply(after, x), problem.network.apply(before, x), rtol=1e-4, atol=1e-5
        )
    first, last = (np.asarray(leaf) for leaf in jax.tree.leaves(triple[0]))
    np.testing.assert_allclose(np.linalg.norm(first[:, :, 0], axis=1), abs(last[:, 0, 0]), rtol=1e-5)
    raw, matched = (trends.measure(problem, solutions[:3], align=a, grid=small)[0] for a in (False, True))
    assert matched.surface.metadata["aligned"]
    balanced = [alignment.balance(problem, w) for w in solutions[:3]]
    assert matched.report.barriers.sum() < max(raw.report.barriers.sum(), convexity.barriers(problem, balanced).sum())


def test_any_plane_and_a_wrong_number_of_solutions(problem, solutions):
    (found,) = trends.measure(problem, solutions[:3], plane=oblique_through_solutions, grid=small)
    assert found.surface.metadata["plane"] == "oblique"
    for count in (0, 2, 4):
        with pytest.raises(ValueError, match="3 R solutions"):
            trends.measure(problem, solutions[:count])
