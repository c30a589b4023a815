"""Aligning: outputs never change, permuted copies come back, and the assignment is the best of all permutations."""

import contextlib
import re
from functools import partial
from itertools import permutations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import seeds
from flax import nnx

from landscape import alignment, convexity, losses
from landscape.arrays import trees
from landscape.datasets import Dataset
from landscape.networks import MultiBranch, Network, conv_branch, from_flax, mlp_branch, relu_branch
from landscape.networks.modules import with_statistics
from landscape.networks.statistics import as_parameters
from landscape.paper import trends
from landscape.problem import Problem
from landscape.training import train


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
    seed = seeds.draw()
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


def layers(name, params):
    """The first and the last layer of a branch with one hidden layer."""
    return (params["hidden"], params["last"]) if "flax" in name else params


def units(name, params):
    """Incoming weights with the bias [I·h, D (+1)] and outgoing weights [I·h, C] of every unit."""
    first, last = layers(name, jax.tree.map(np.asarray, params))
    kernel = np.swapaxes(first["kernel"], 1, 2).reshape(-1, first["kernel"].shape[1])
    incoming = np.column_stack([kernel, first["bias"].ravel()]) if "bias" in first else kernel
    return incoming, last["kernel"].reshape(-1, last["kernel"].shape[2])


def joined(name, params, incoming, outgoing):
    """The parameters made of these units."""
    first, last = layers(name, jax.tree.map(np.asarray, params))
    count, inputs, hidden = first["kernel"].shape
    kernel = np.swapaxes(incoming[:, :inputs].reshape(count, hidden, inputs), 1, 2)
    first = (
        first | {"kernel": kernel} | ({"bias": incoming[:, inputs:].reshape(count, hidden)} if "bias" in first else {})
    )
    last = last | {"kernel": outgoing.reshape(count, hidden, -1)}
    return {"hidden": first, "last": last} if "flax" in name else (first, last)


@pytest.mark.parametrize("name", BRANCHES)
def test_units_permuted_across_branches_and_rescaled_come_back(name, seed):
    problem = make_problem(*BRANCHES[name], seed=seed)
    reference = problem.network.init(jax.random.key(seed))
    incoming, outgoing = units(name, reference)
    rng = np.random.default_rng(seed)
    order, c = rng.permutation(len(incoming)), rng.lognormal(size=(len(incoming), 1)).astype("f4")
    copy = joined(name, reference, incoming[order] * c, outgoing[order] / c)
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
    norms = [np.linalg.norm(part, axis=1) for part in units(name, balanced)]
    np.testing.assert_allclose(*norms, rtol=1e-5)
    np.testing.assert_allclose(outputs(problem, balanced), outputs(problem, params), rtol=1e-4, atol=1e-5)
    aligned = alignment.align(problem, balanced, problem.network.init(jax.random.key(seed + 1)))
    norms = [np.linalg.norm(part, axis=1) for part in units(name, aligned)]
    np.testing.assert_allclose(*norms, rtol=1e-4)


@pytest.mark.parametrize("name", ["tanh", "linear"])
def test_what_cannot_be_rescaled_stays(name):
    problem = make_problem(*OTHERS[name])
    params = problem.network.init(jax.random.key(0))
    assert_equal(alignment.balance(problem, params), params, 0)
    if name == "linear":
        with pytest.raises(ValueError, match="this network has none"):
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


def relu_between(low, high, slope):
    """ReLU up to `high`, from there with another slope; 0 below `low`."""

    def activation(z):
        return jnp.where(z < low, 0, jnp.minimum(z, high) + slope * jnp.maximum(z - high, 0))

    return activation


ALMOST = {
    "relu6": jax.nn.relu6,
    "clipped": lambda z: jnp.clip(z, 0, 10),
    "shifted hard tanh": lambda z: 8 * (jax.nn.hard_tanh(z / 4 - 1) + 1) / 2,
    "leaks above": relu_between(0, 6, 0.1),
    "steeper above": relu_between(0, 7, 2),
    "falls above": relu_between(0, 6, -1),
    "scaled": lambda z: 3 * jnp.clip(z / 3, 0, 2.5),
    "nothing when small": relu_between(5e-3, 1e9, 1),
    "rounded off": lambda z: jax.nn.softplus(300 * z) / 300,
}
"""Activations that small Gaussian probes may take for a ReLU."""


@pytest.mark.parametrize("name", ALMOST)
def test_what_is_relu_on_some_inputs_only_is_not_rescaled(name, seed):
    """Units and branches are permuted all the same."""
    rng = np.random.default_rng(seed)
    count, hidden, classes = (int(rng.integers(*ends)) for ends in ((12, 30), (1, 4), (1, 4)))
    branch = mlp_branch((5, hidden, classes), ALMOST[name], bias=bool(rng.integers(2)))
    problem = make_problem(branch, classes, count, average=bool(rng.integers(2)), seed=seed)
    reference, params = (spread(problem, key, rng, 10, 1) for key in jax.random.split(jax.random.key(seed), 2))
    before, size = outputs(problem, params), np.abs(outputs(problem, params)).max()
    for by in ("auto", "parameters", "outputs"):
        aligned = alignment.align(problem, reference, params, by=by)
        np.testing.assert_allclose(outputs(problem, aligned), before, atol=1e-5 * size)
    first, second = trends.aligned(problem, [reference, params])
    np.testing.assert_allclose(outputs(problem, second), before, atol=1e-5 * size)
    np.testing.assert_allclose(outputs(problem, first), outputs(problem, reference), rtol=1e-4, atol=1e-5 * size)
    moved = alignment.align(problem, reference, params, by="units")
    np.testing.assert_allclose(outputs(problem, moved), before, atol=1e-5 * size)
    with contextlib.suppress(alignment.Changed):  # a difference that shows on the data only is refused
        np.testing.assert_allclose(outputs(problem, alignment.balance(problem, params)), before, atol=1e-5 * size)


def spread(problem, key, rng, size, deviation):
    """Random parameters whose layers differ in size from branch to branch, so that balancing changes them much."""

    def scaled(w):
        return size * w * rng.lognormal(0, deviation, (len(w),) + (1,) * (w.ndim - 1)).astype("f4")

    return jax.tree.map(scaled, problem.network.init(key))


def test_the_refusal_names_what_changed_and_by_how_much(seed):
    """Of two groups of branches the first is ReLU, the second only up to 1e9, which only the data reach."""
    kinds = relu_branch(5, 2), mlp_branch((5, 2, 1), lambda z: jnp.clip(z, 0, 1e9))
    made = make_problem(kinds, 1, (4, 6), seed=seed)
    far = np.where(np.arange(40)[:, None] < 8, 1, 1e12).astype("f4")
    problem = Problem(Dataset(far * made.data.x, made.data.y), made.network, made.loss)
    params, other = (made.network.init(jax.random.key(seed + k)) for k in range(2))
    words = r"params, group 2 \(leaves 0.kernel, 1.kernel\) changes its outputs on \d+ of 40"
    with pytest.raises(alignment.Changed, match=words) as refused:
        alignment.balance(problem, params)
    balanced = params[0], alignment.balance(made, params)[1]
    away = np.abs(outputs(problem, balanced) - outputs(problem, params)).max()
    (stated,) = re.findall(r"by up to ([\d.e+]+),", str(refused.value))
    assert float(stated) == pytest.approx(away, rel=1e-2)
    aligned = alignment.align(problem, other, params, by="units")  # permuted, and only the first rescaled
    size = np.abs(outputs(problem, params)).max()
    np.testing.assert_allclose(outputs(problem, aligned), outputs(problem, params), atol=1e-5 * size)
    assert_equal([np.sort(np.ravel(t)) for t in jax.tree.leaves(aligned[1])],
                 [np.sort(np.ravel(t)) for t in jax.tree.leaves(params[1])], 0)  # fmt: skip


@pytest.mark.parametrize("examples", [1, 40])
def test_true_relu_is_never_refused(examples, seed):
    """Cancelling sums, extreme balances, far examples."""
    rng = np.random.default_rng(seed)
    for inputs, hidden, classes, count in ((5, 1, 1, 3), (30, 20, 2, 50)):
        x = (10.0 ** rng.integers(-3, 4) * rng.normal(size=(examples, inputs))).astype("f4")
        network = MultiBranch(relu_branch(inputs, hidden, classes, bias=bool(rng.integers(2))), count, average=False)
        y = rng.integers(0, classes, examples) if classes > 1 else np.ones(examples, "f4")
        problem = Problem(Dataset(x, y), network, losses.multiclass_hinge if classes > 1 else losses.hinge)
        one, two = (spread(problem, key, rng, 1, 3) for key in jax.random.split(jax.random.key(seed), 2))
        # A unit and its negative: their sum is far below its terms.
        last = two[1]["kernel"].at[1].set(-two[1]["kernel"][0])
        two = ({**two[0], "kernel": two[0]["kernel"].at[1].set(two[0]["kernel"][0])}, {**two[1], "kernel": last})
        alignment.align(problem, alignment.balance(problem, one), two, by="units")


def test_networks_that_are_not_functions_are_refused(seed):
    inner, numbers = relu_branch(5, 2), np.random.default_rng(seed)

    def called(x):
        return (x * (1 + 0.1 * numbers.normal(size=np.shape(x)))).astype("f4")

    def at_run_time(w, x):
        noisy = jax.pure_callback(called, jax.ShapeDtypeStruct(x.shape, x.dtype), x, vmap_method="expand_dims")
        return inner.apply(w, noisy)

    def when_traced(w, x):
        return inner.apply(w, x * np.float32(numbers.normal()))

    for apply in (at_run_time, when_traced):
        problem = make_problem(Network(inner.init, apply), seed=seed)
        w = problem.network.init(jax.random.key(0))
        for wrong in (partial(alignment.align, problem, w), partial(alignment.balance, problem)):
            with pytest.raises(ValueError, match=r"not the same when they are computed twice(.|\n)*random keys"):
                wrong(w)


@pytest.mark.parametrize("branch", [relu_branch(5), mlp_branch((5, 3, 1), jnp.tanh)])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_refused(branch, value, seed):
    problem = make_problem(branch, seed=seed)
    w = problem.network.init(jax.random.key(0))
    spoilt = (w[0], {"kernel": w[1]["kernel"].at[2].set(value)})
    for wrong in ((w, spoilt), (spoilt, w)):
        with pytest.raises(ValueError, match="holds values that are not finite"):
            alignment.align(problem, *wrong, by="parameters")
    with pytest.raises(ValueError, match="params holds values that are not finite"):
        alignment.balance(problem, spoilt)
    inner = branch.apply
    made = make_problem(Network(branch.init, lambda w, x: inner(w, jnp.log(x + 1))), seed=seed)
    with pytest.raises(ValueError, match=r"outputs of params are not finite on \d+ of 40"):
        alignment.align(made, w, w)


def test_padding_is_not_compared(seed):
    """Examples of weight zero may lie where the network saturates, or is nothing at all."""
    made = make_problem(mlp_branch((5, 2, 1), jax.nn.relu6), seed=seed)
    w, other = (jax.tree.map(lambda t: t / 20, made.network.init(jax.random.key(seed + k))) for k in range(2))
    far = np.concatenate([made.data.x, np.full((3, 5), 1e30, "f4")])
    weight = np.concatenate([np.ones(40), np.zeros(3)])
    padded = Problem(Dataset(far, np.append(made.data.y, [1, 1, 1]), weight), made.network, made.loss)
    assert_equal(alignment.align(padded, other, w, by="units"), alignment.align(made, other, w, by="units"), 0)


class Normed(nnx.Module):
    def __init__(self, rngs):
        self.a, self.norm = nnx.Conv(2, 4, (3, 3), rngs=rngs), nnx.BatchNorm(4, rngs=rngs)
        self.b, self.out = nnx.Conv(4, 3, (3, 3), rngs=rngs), nnx.Linear(3, 2, rngs=rngs)

    def __call__(self, x):
        return self.out(nnx.relu(self.b(nnx.relu(self.norm(self.a(x))))).mean((1, 2)))


def test_running_statistics_move_along_with_their_channels(seed):
    """Frozen in the network they keep the channels in order; as parameters they are permuted with them."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(12, 3, 3, 2)).astype("f4")
    network = as_parameters(lambda rngs: Normed(rngs), x[:1])

    def drawn(tree):
        return jax.tree.map(lambda t: np.asarray(t + 0.3 * np.abs(rng.normal(size=t.shape)), "f4"), tree)

    params = jax.tree.map(lambda t: t[None], drawn(network.init(jax.random.key(seed))))
    problem = Problem(Dataset(x, rng.integers(0, 2, 12)), network, losses.logistic)
    order, last = (rng.permutation(n) for n in (4, 3))
    moved = jax.tree.map(np.copy, params)
    w, s = moved["params"], moved["statistics"]
    w["a"] = jax.tree.map(lambda t: t[..., order], w["a"])
    w["norm"], s["norm"] = (jax.tree.map(lambda t: t[..., order], t["norm"]) for t in (w, s))
    w["b"] = {"kernel": w["b"]["kernel"][:, :, :, order][..., last], "bias": w["b"]["bias"][:, last]}
    w["out"]["kernel"] = w["out"]["kernel"][:, last]
    np.testing.assert_allclose(outputs(problem, moved), outputs(problem, params), rtol=1e-4, atol=1e-5)
    assert_equal(
        alignment.align(problem, alignment.balance(problem, params), moved), alignment.balance(problem, params)
    )
    kept = with_statistics(lambda rngs: Normed(rngs), x[:1], jax.tree.map(lambda t: t[0], params["statistics"]))
    sizes = [s.size for kind in alignment.symmetries(kept, x=x).kinds for s in kind.symmetries.found]
    assert sizes == [3]


def test_several_solutions_are_matched_to_each_other(seed):
    """Copies in other orders and scales become equal; of others, no pair of three is left behind."""
    problem = make_problem(mlp_branch((5, 4, 3, 2)), 2, 3, seed=seed)
    first = problem.network.init(jax.random.key(seed))
    rng = np.random.default_rng(seed)
    units = [rng.permutation(n) for n in (4, 3)]
    scale = rng.lognormal(size=4).astype("f4")
    copy = jax.tree.map(np.asarray, permuted(first, seed))
    one, two, three = (layer["kernel"] for layer in copy)
    copy = ({"kernel": (one * scale)[..., units[0]]},
            {"kernel": (two / scale[:, None])[:, units[0]][..., units[1]]},
            {"kernel": three[:, units[1]]})  # fmt: skip
    same = alignment.align_all(problem, [first, copy, permuted(copy, seed + 1)])
    for other in same[1:]:
        assert_equal(other, same[0])
    others = [problem.network.init(k) for k in jax.random.split(jax.random.key(seed + 1), 3)]
    together = alignment.align_all(problem, others)
    star = [together[0], *(alignment.align(problem, together[0], w) for w in others[1:])]
    for aligned in (together, star):
        for before, after in zip(others, aligned, strict=True):
            np.testing.assert_allclose(outputs(problem, after), outputs(problem, before), rtol=1e-4, atol=1e-5)
    pairs = [(0, 1), (0, 2), (1, 2)]
    gaps = [sum(float(trees.vdot(w[i], w[j])) for i, j in pairs) for w in (together, star)]
    assert gaps[0] >= gaps[1] - 1e-5


def test_the_table_names_units_leaves_and_what_is_fixed():
    problem = make_problem(mlp_branch((5, 4, 3, 2), bias=True), 2, 3)
    lines = str(alignment.symmetries(problem)).splitlines()
    wanted = [
        "branches                3",
        "4 units                 0.bias, 0.kernel, 1.kernel",
        "    rescaled            0.bias, 0.kernel against 1.kernel",
        "3 units                 1.bias, 1.kernel, 2.kernel",
        "    rescaled            1.bias, 1.kernel against 2.kernel",
        "in their order          2.bias",
    ]
    assert lines == wanted
    with pytest.raises(ValueError, match="needs examples"):
        alignment.symmetries(mlp_branch((5, 4, 2)))
    pooled = str(alignment.symmetries(make_problem(relu_branch(5, 2), 1, 3)))
    assert "3, a sum over 6 units that change places" in pooled


def test_the_metric_of_the_inputs_compares_what_is_computed_from_them(seed):
    """Units of one hidden layer, on correlated inputs: the assignment is the best in that metric."""
    made = make_problem(mlp_branch((6, 5, 2), jnp.tanh), 2, 1, inputs=(6,), seed=seed)
    rng = np.random.default_rng(seed)
    x = (made.data.x @ rng.normal(size=(6, 6)) * 3).astype("f4")
    problem = Problem(Dataset(x, made.data.y), made.network, made.loss)
    reference, params = (made.network.init(k) for k in jax.random.split(jax.random.key(seed)))

    def value(w, of):
        first, last = (np.asarray(layer["kernel"][0], float) for layer in w)
        theirs, fixed = (np.asarray(layer["kernel"][0], float) for layer in reference)
        return np.vdot(of @ theirs, of @ first) / len(of) + np.vdot(fixed, last)

    names = ("parameters", "inputs")
    aligned = {name: alignment.align(problem, reference, params, metric=name) for name in names}
    for name, of in zip(names, (np.eye(6) * 6**0.5, x.astype(float)), strict=True):
        orders = [[{"kernel": params[0]["kernel"][..., o]}, {"kernel": params[1]["kernel"][:, o]}]
                  for o in map(np.array, permutations(range(5)))]  # fmt: skip
        assert value(aligned[name], of) == pytest.approx(max(value(w, of) for w in orders), rel=1e-5)
    with pytest.raises(ValueError, match="metric must be"):
        alignment.align(problem, reference, params, metric="outputs")


def test_trained_branches_of_two_hidden_layers_meet_far_below_those_whose_units_stay(seed):
    """Ten branches fit random labels; whole branches permuted remove a part of the barrier, their units most of it."""
    rng = np.random.default_rng(seed)
    data = Dataset(rng.normal(size=(100, 20)).astype("f4"), rng.integers(0, 5, 100))
    network = MultiBranch(mlp_branch((20, 6, 6, 5), summed_over=10), 10, average=False)
    problem = Problem(data, network, losses.multiclass_hinge)
    keys = jax.random.split(jax.random.key(seed), 3)
    found = train(problem, keys, optax.adam(1e-2), steps=400, batch_size=50, progress=False)
    solutions = [found[k] for k in range(3)]
    whole = [solutions[0], *(alignment.align(problem, solutions[0], w, by="parameters") for w in solutions[1:])]
    together = alignment.align_all(problem, solutions)
    for before, after in zip(solutions, together, strict=True):
        assert float(problem.risk(after)) == pytest.approx(float(problem.risk(before)), abs=1e-4)
    raw, branches, units = (convexity.barriers(problem, w, points=11).mean() for w in (solutions, whole, together))
    assert units < 0.7 * branches
    assert units < 0.6 * raw
