"""Aligning: outputs never change, permuted copies come back, and the assignment is the best of all permutations."""

from itertools import permutations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from landscape import alignment, convexity, losses
from landscape.arrays import trees
from landscape.datasets import Dataset
from landscape.networks import MultiBranch, Network, conv_branch, from_flax, mlp_branch, relu_branch
from landscape.problem import Problem


class FlaxBranch(nnx.Module):
    def __init__(self, rngs, bias=True):
        self.last = nnx.Linear(4, 3, use_bias=bias, rngs=rngs)
        self.hidden = nnx.Linear(5, 4, use_bias=bias, rngs=rngs, bias_init=nnx.initializers.normal(1.0))

    def __call__(self, x):
        return self.last(nnx.relu(self.hidden(x)))


BRANCHES = {
    "one unit": (relu_branch(5), 1),
    "units": (relu_branch(5, hidden=4, outputs=3), 3),
    "biases": (relu_branch(5, hidden=4, outputs=3, bias=True), 3),
    "flax": (from_flax(lambda rngs: FlaxBranch(rngs)), 3),
    "flax without bias": (from_flax(lambda rngs: FlaxBranch(rngs, bias=False)), 3),
    "square": (relu_branch(5, hidden=5, outputs=5), 5),
}
OTHERS = {
    "three layers": (mlp_branch((5, 4, 4, 3)), 3),
    "tanh": (mlp_branch((5, 4, 3), jnp.tanh), 3),
    "leaky": (mlp_branch((5, 4, 3), jax.nn.leaky_relu), 3),
    "linear": (mlp_branch((5, 3)), 3),
}


@pytest.fixture
def seed():
    seed = np.random.SeedSequence().entropy % 2**31
    print("seed", seed)
    return seed


def make_problem(branch, outputs=1, count=7, *, average=False, inputs=(5,), seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(40, *inputs)).astype("f4")
    y = rng.integers(0, outputs, 40) if outputs > 1 else np.sign(rng.normal(size=40)).astype("f4")
    loss = losses.multiclass_hinge if outputs > 1 else losses.tau_hinge
    return Problem(Dataset(x, y), MultiBranch(branch, count, average=average), loss)


def outputs(problem, params):
    return np.asarray(problem.network.apply(params, problem.data.x))


def permuted(params, seed):
    length = len(jax.tree.leaves(params)[0])
    order = np.random.default_rng(seed).permutation(length)
    return jax.tree.map(lambda leaf: leaf[order], params)


def assert_equal(a, b, tolerance=1e-5):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, atol=tolerance)


@pytest.mark.parametrize("name", [*BRANCHES, *OTHERS])
def test_a_permuted_copy_comes_back_and_its_barrier_is_zero(name, seed):
    problem = make_problem(*(BRANCHES | OTHERS)[name], seed=seed)
    reference = problem.network.init(jax.random.key(seed))
    copy = permuted(reference, seed)
    aligned = alignment.align(problem, reference, copy)
    np.testing.assert_allclose(outputs(problem, aligned), outputs(problem, copy), rtol=1e-4, atol=1e-5)
    assert convexity.barriers(problem, [reference, aligned]).max() <= 1e-6
    if "bias" not in name and name != "flax":
        assert_equal(aligned, reference)


@pytest.mark.parametrize("name", BRANCHES)
def test_units_permuted_across_branches_and_rescaled_come_back(name, seed):
    problem = make_problem(*BRANCHES[name], seed=seed)
    reference = problem.network.init(jax.random.key(seed))
    roles = alignment._one_hidden_layer(problem.network.branch, reference, problem.data.x)
    incoming, outgoing = alignment._units(reference, roles)
    rng = np.random.default_rng(seed)
    order, c = rng.permutation(len(incoming)), rng.lognormal(size=(len(incoming), 1))
    copy = alignment._joined(reference, roles, incoming[order] * c, outgoing[order] / c)
    np.testing.assert_allclose(outputs(problem, copy), outputs(problem, reference), rtol=1e-4, atol=1e-5)
    assert_equal(alignment.align(problem, reference, copy), reference)
    assert convexity.barriers(problem, [reference, alignment.align(problem, reference, copy)]).max() <= 1e-6


@pytest.mark.parametrize("by", ["auto", "parameters", "outputs"])
@pytest.mark.parametrize("name", ["flax", "tanh"])
def test_outputs_never_change(name, by, seed):
    problem = make_problem(*(BRANCHES | OTHERS)[name], average=True, seed=seed)
    reference, params = (problem.network.init(k) for k in jax.random.split(jax.random.key(seed)))
    aligned = alignment.align(problem, reference, params, by=by)
    np.testing.assert_allclose(outputs(problem, aligned), outputs(problem, params), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("by", ["parameters", "outputs"])
def test_the_assignment_is_the_best_of_all_permutations(by, seed):
    problem = make_problem(mlp_branch((5, 4, 3), jnp.tanh), 3, 5, seed=seed)
    reference, params = (problem.network.init(k) for k in jax.random.split(jax.random.key(seed)))

    def features(w):
        if by == "parameters":
            return np.concatenate([np.asarray(leaf, float).reshape(5, -1) for leaf in jax.tree.leaves(w)], 1)
        alone = [jax.tree.map(lambda leaf, i=i: leaf[i], w) for i in range(5)]
        return np.stack([np.ravel(problem.network.branch.apply(one, problem.data.x)) for one in alone]).astype(float)

    aligned = alignment.align(problem, reference, params, by=by)
    scores = features(reference) @ features(params).T
    best = max(sum(scores[i, p] for i, p in enumerate(order)) for order in permutations(range(5)))
    assert (features(reference) * features(aligned)).sum() == pytest.approx(best, rel=1e-5)


def test_aligning_brings_solutions_closer(seed):
    problem = make_problem(relu_branch(5), 1, 30, seed=seed)
    keys = jax.random.split(jax.random.key(seed))
    reference, params = (alignment.balance(problem, problem.network.init(k)) for k in keys)
    aligned = alignment.align(problem, reference, params)
    gap = [trees.norm(trees.subtract(reference, w)) for w in (aligned, params)]
    assert gap[0] < gap[1]


@pytest.mark.parametrize("name", BRANCHES)
def test_balanced_units_have_equal_norms_and_the_same_outputs(name, seed):
    problem = make_problem(*BRANCHES[name], seed=seed)
    params = problem.network.init(jax.random.key(seed))
    balanced = alignment.balance(problem, params)
    roles = alignment._one_hidden_layer(problem.network.branch, params, problem.data.x)
    norms = [np.linalg.norm(part, axis=1) for part in alignment._units(balanced, roles)]
    np.testing.assert_allclose(*norms, rtol=1e-5)
    np.testing.assert_allclose(outputs(problem, balanced), outputs(problem, params), rtol=1e-4, atol=1e-5)
    aligned = alignment.align(problem, balanced, problem.network.init(jax.random.key(seed + 1)))
    norms = [np.linalg.norm(part, axis=1) for part in alignment._units(aligned, roles)]
    np.testing.assert_allclose(*norms, rtol=1e-4)


@pytest.mark.parametrize("name", OTHERS)
def test_other_branches_are_not_taken_for_units(name):
    problem = make_problem(*OTHERS[name])
    params = problem.network.init(jax.random.key(0))
    assert_equal(alignment.balance(problem, params), params, 0)
    with pytest.raises(ValueError, match="one hidden layer of ReLU"):
        alignment.align(problem, params, params, by="units")


def test_groups_of_different_branches_are_aligned_within_themselves(seed):
    problem = make_problem((relu_branch(5), mlp_branch((5, 3, 3, 1))), 1, (4, 6), seed=seed)
    reference = problem.network.init(jax.random.key(seed))
    copy = tuple(permuted(group, seed + k) for k, group in enumerate(reference))
    aligned = alignment.align(problem, reference, copy)
    assert isinstance(aligned, tuple)
    assert_equal(aligned, reference)


def test_images_and_branches_written_for_one_example(seed):
    images = make_problem(conv_branch((4, 4, 2), (3,)), 1, 5, inputs=(4, 4, 2), seed=seed)
    unit = relu_branch(6)
    flat = Network(unit.init, lambda w, x: unit.apply(w, x.reshape(-1)))
    for problem in (images, make_problem(flat, 1, 5, inputs=(2, 3), seed=seed)):
        reference = problem.network.init(jax.random.key(seed))
        assert_equal(alignment.align(problem, reference, permuted(reference, seed)), reference)


def test_units_that_are_zero_stay_finite(seed):
    problem = make_problem(relu_branch(5), 1, 6, seed=seed)
    first, last = problem.network.init(jax.random.key(seed))
    first = {"kernel": first["kernel"].at[2].set(0.0)}
    last = {"kernel": last["kernel"].at[4].set(0.0)}
    other = problem.network.init(jax.random.key(seed + 1))
    for reference, params in ((other, (first, last)), ((first, last), other)):
        aligned = alignment.align(problem, reference, params)
        np.testing.assert_allclose(outputs(problem, aligned), outputs(problem, params), rtol=1e-4, atol=1e-5)


def test_the_callers_arrays_are_not_changed(seed):
    problem = make_problem(relu_branch(5, 4, 3), 3, seed=seed)
    reference, params = (
        jax.tree.map(np.array, problem.network.init(k)) for k in jax.random.split(jax.random.key(seed))
    )
    before = jax.tree.map(np.copy, (reference, params))
    alignment.align(problem, reference, params)
    alignment.balance(problem, params)
    assert_equal((reference, params), before, 0)


def test_wrong_use_is_refused(monkeypatch):
    problem = make_problem(relu_branch(5))
    params = problem.network.init(jax.random.key(0))
    with pytest.raises(ValueError, match="by must be"):
        alignment.align(problem, params, params, by="weights")
    stacked = jax.tree.map(lambda leaf: leaf[None], params)
    with pytest.raises(ValueError, match="one solution at a time"):
        alignment.align(problem, params, stacked)
    monkeypatch.setattr(alignment, "MOST", 3)
    with pytest.raises(ValueError, match="at most 3"):
        alignment.align(problem, params, params)
