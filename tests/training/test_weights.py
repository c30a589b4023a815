"""Example weights in SGD: their unit and padding change no step, and a NumPy loop takes the same steps."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import own_module
import pytest
import seeds

import landscape as ls
from landscape import networks, problem
from landscape.arrays import trees
from landscape.networks import modules
from landscape.training import hitting, shallow

WAYS = {"whole": {}, "four devices": {"branch_devices": 4}}


@pytest.fixture
def rng() -> np.random.Generator:
    seed = seeds.draw()
    print("seed", seed)
    return np.random.default_rng(seed)


def weighted(rng: np.random.Generator, chunk: int | None = None, **more: Any) -> ls.Problem:
    """Two kinds of branches on examples whose weights are small whole numbers, so that five times them is exact."""
    x, y = rng.normal(size=(37, 5)).astype("f4"), rng.integers(0, 3, 37)
    kinds = [networks.relu_branch(5, 2, 3, bias=True), networks.mlp_branch((5, 2, 3), jnp.tanh)]
    network = ls.MultiBranch(kinds, [8, 4], branch_chunk=chunk, **more)
    return ls.Problem(ls.Dataset(x, y, rng.integers(1, 9, 37)), network, ls.losses.multiclass_hinge)


def of_weights(made: ls.Problem, weight: Any) -> ls.Problem:
    return ls.Problem(ls.Dataset(made.data.x, made.data.y, weight), made.network, made.loss)


def padded(made: ls.Problem, rng: np.random.Generator, x: float = 1e3) -> ls.Problem:
    """The same with examples of weight zero in between, far away and with labels that do not exist."""
    data = made.data
    where = np.sort(rng.integers(0, len(data) + 1, 20))
    parts = [np.insert(np.asarray(t), where, v, 0) for t, v in ((data.x, x), (data.y, -9), (data.weight, 0))]
    return ls.Problem(ls.Dataset(*parts), made.network, made.loss)


def trained(made: ls.Problem, keys: jax.Array, optimizer: Any = None, **options: Any) -> list[np.ndarray]:
    options = {"steps": 12, "batch_size": 7, "record": 6, "progress": False} | options
    found = ls.train(made, keys, optimizer or optax.sgd(0.1, 0.9), trajectory=True, **options)
    return [np.asarray(t) for t in jax.tree.leaves((found.trajectory, found.history, found.risk))]


def same(a: list[np.ndarray], b: list[np.ndarray]) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(("way", "batch"), [("whole", 7), ("four devices", 37)])
def test_the_unit_of_weights_and_padding_change_no_step(way, batch, rng) -> None:
    """To the last bit for padding and powers of two; five times the weights differ in the rounding of their shares."""
    made = weighted(rng, *([3] if way == "whole" else []), average=bool(rng.integers(2)))
    keys, options = jax.random.split(jax.random.key(int(rng.integers(10**6))), 3), {**WAYS[way], "batch_size": batch}
    found = trained(made, keys, **options)
    for other in (of_weights(made, made.data.weight / 8), padded(made, rng)):
        assert same(found, trained(other, keys, **options))
    if way != "whole":
        return
    with trees.float64():
        precise = ls.Problem(replace(made.data, x=made.data.x.astype(float)), made.network, made.loss)
        start = jax.tree.map(lambda w: jnp.asarray(w, float), jax.vmap(made.network.init)(keys))
        times = [trained(of_weights(precise, c * made.data.weight), keys, start=start, **options) for c in (1, 5)]
    for a, b in zip(*times, strict=True):
        assert a.dtype == np.float64
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.slow
def test_equal_weights_in_any_unit_are_no_weights(rng) -> None:
    made, unit = weighted(rng), rng.choice([1e37, 1e-42])
    keys = jax.random.split(jax.random.key(1), 2)
    one, other = (trained(of_weights(made, w), keys) for w in (None, np.full(37, unit)))
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_minibatches_follow_their_own_weighted_mean(rng) -> None:
    """A linear network with squared loss in NumPy, the orders of the examples drawn as `train` says."""
    size, batch, rate, seeds, steps = 23, 4, 0.03, 3, 40
    x, y, weight = rng.normal(size=(size, 3)), rng.normal(size=(size, 2)), rng.lognormal(size=size).astype("f4")
    weight[rng.permutation(size)[:5]] = 0
    keys = jax.random.split(jax.random.key(int(rng.integers(10**6))), seeds)
    with trees.float64():
        made = ls.Problem(ls.Dataset(x, y, weight), networks.mlp_branch((3, 2)), ls.losses.squared)
        start = jax.tree.map(lambda s: jnp.asarray(rng.normal(size=(seeds, *s.shape))), made.shapes)
        options = {"steps": steps, "batch_size": batch, "start": start, "progress": False}
        found = ls.train(made, keys, optax.sgd(rate), **options)
    kept = np.flatnonzero(weight)
    for seed in range(seeds):
        w = np.asarray(jax.tree.leaves(start)[0])[seed, 0]
        for step in range(steps):
            epoch, k = divmod(step, len(kept) // batch)
            order = kept[np.asarray(jax.random.permutation(jax.random.fold_in(keys[seed], epoch), len(kept)))]
            part = order[k * batch : (k + 1) * batch]
            share = weight[part].astype(float) / weight[part].astype(float).sum()
            w = w - rate * x[part].T @ (share[:, None] * 2 * (x[part] @ w - y[part]))
        np.testing.assert_allclose(jax.tree.leaves(found.params)[0][seed, 0], w, rtol=1e-6, atol=1e-8)
        risk = np.average(((x @ w - y) ** 2).sum(-1), weights=weight.astype(float))
        np.testing.assert_allclose(found.risk[seed], risk, rtol=1e-6)


@pytest.mark.slow
def test_padding_may_lie_where_the_network_is_not_a_number(rng) -> None:
    made = weighted(rng)
    inner = networks.relu_branch(5, 2, 3)
    branch = networks.Network(inner.init, lambda w, x: inner.apply(w, x / jnp.linalg.norm(x, axis=-1, keepdims=True)))
    made = ls.Problem(made.data, ls.MultiBranch(branch, 4), made.loss)
    other, keys = padded(made, rng, 0.0), jax.random.split(jax.random.key(0), 2)
    assert same(trained(made, keys), trained(other, keys))
    w, v = (made.network.init(key) for key in keys)
    assert made.risk(w) == other.risk(w)
    for name in ("gradient", "hessian_vector_product"):
        one, two = (getattr(p, name)(*(w, v)[: 1 + (name != "gradient")]) for p in (made, other))
        assert same(*([np.asarray(t) for t in jax.tree.leaves(tree)] for tree in (one, two)))
    lines = [ls.evaluate(p, ls.planes.through_solutions(w, v, made.network.init(jax.random.key(9))),
                         progress=False) for p in (made, other)]  # fmt: skip
    np.testing.assert_array_equal(lines[0].risk, lines[1].risk)
    assert lines[1].metadata["checks"]["max_difference"] < 1e-5


@pytest.mark.slow
def test_a_minibatch_without_weight_makes_no_step(rng) -> None:
    made = weighted(rng)
    w = made.network.init(jax.random.key(0))

    def risk(w: Any, weight: Any) -> jax.Array:
        return problem.minibatch_risk(made.network, made.loss, w, made.data.x, jnp.asarray(made.data.y), weight)

    value, slope = jax.value_and_grad(risk)(w, jnp.zeros(37))
    assert value == 0
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(slope))
    np.testing.assert_allclose(risk(w, jnp.asarray(made.data.weight)), made.risk(w), rtol=1e-5)


def test_batches_are_no_larger_than_the_examples_that_weigh(rng) -> None:
    made = padded(weighted(rng), rng)
    with pytest.raises(ValueError, match=r"between 1 and the 37 examples of positive weight; got 38"):
        trained(made, jax.random.split(jax.random.key(0), 2), batch_size=38)


@pytest.mark.slow
def test_steps_of_averaged_networks_are_those_of_sums_over_the_number_of_branches(rng) -> None:
    """With a loss linear in the outputs, so that its slope is the same in both."""
    count, keys = int(rng.integers(2, 30)), jax.random.split(jax.random.key(3), 2)
    x, y = rng.normal(size=(20, 4)).astype("f4"), rng.normal(size=20).astype("f4")
    steps = {}
    for average in (True, False):
        network = ls.MultiBranch(networks.relu_branch(4, 2), count, average)
        made = ls.Problem(ls.Dataset(x, y), network, lambda f, y: -f[:, 0] * y)
        start = jax.vmap(network.init)(keys)
        found = ls.train(made, keys, optax.sgd(0.5), steps=1, batch_size=10, start=start, progress=False)
        steps[average] = jax.tree.leaves(jax.tree.map(jnp.subtract, found.params, start))
    for mean, total in zip(steps[True], steps[False], strict=True):
        np.testing.assert_allclose(count * mean, total, rtol=1e-2, atol=1e-5)
        assert np.abs(total).max() > 1e-3


def test_padding_has_no_part_in_statistics_computed_anew(rng) -> None:
    (x, y), module, loss = own_module.data(), own_module.Normed, own_module.loss
    where = np.sort(rng.integers(0, len(y) + 1, 9))
    junk = [np.insert(t, where, v, 0) for t, v in ((x, 1e3), (y, 0), (np.ones(len(y)), 0))]
    sets = ls.Dataset(x, y), ls.Dataset(*junk)
    w = ls.from_flax(module, state="frozen").init(jax.random.key(0))
    one, other = (modules.recomputed_risk(module, d, loss, quantities={"again": (d, loss)})(w) for d in sets)
    assert one == other
    assert one["again"] == one["risk"]


@pytest.mark.parametrize("batch", [10, 40])
def test_the_shallow_trainer_too(batch, rng) -> None:
    x, y = rng.normal(size=(40, 5)).astype("f4"), np.sign(rng.normal(size=40)).astype("f4")
    config = shallow.TrainingConfig(steps=60, batch_size=batch)
    where = np.sort(rng.integers(0, 41, 15))
    junk = [np.insert(t, where, v, 0) for t, v in ((x, 1e3), (y, 7.0), (np.full(40, 5.0), 0))]
    sets = [ls.Dataset(x, y), ls.Dataset(x, y, np.full(40, 5.0)), ls.Dataset(*junk)]
    networks = [(3, 0), (3, 1), (6, 0)]
    one, *others = (jax.tree.leaves(shallow.train_networks(d, networks, config, progress=False)) for d in sets)
    assert all(same(one, other) for other in others)
    rates = [hitting.hitting_rate(d, [3], range(2), config, progress=False).risk for d in sets]
    assert all(np.array_equal(rates[0], r) for r in rates)


def test_the_support_keeps_the_mean_and_the_record_where_nothing_changes(rng) -> None:
    x, y, weight = rng.normal(size=(9, 2)), rng.normal(size=9), rng.lognormal(sigma=9, size=9).astype("f4")
    plain = ls.Dataset(x, y)
    assert plain.support is plain
    weight[3] = 0
    found = ls.Dataset(x, y, weight, "nine", teacher="t").support
    assert (found.name, found.teacher, len(found)) == ("nine", "t", 8)
    assert found.support is found
    assert 1 <= found.weight.max() < 2
    np.testing.assert_array_equal(found.weight / found.weight.max(), np.delete(weight, 3) / weight.max())
