"""The risk and its derivatives against loops in float64 NumPy."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import seeds

import landscape as ls
from landscape import networks, problem
from landscape.arrays import trees


def case(outputs: int = 3, examples: int = 13):
    """Tanh branches on weighted examples, with the risk in NumPy as a function of the parameters."""
    rng = seeds.generator()
    x, y = rng.normal(size=(examples, 4)), rng.integers(0, outputs, examples)
    weight = rng.uniform(0.1, 2, examples) * (rng.random(examples) < 0.7)
    weight[0] = 1
    network = ls.MultiBranch(networks.mlp_branch((4, 3, outputs), jnp.tanh, bias=True), 5)
    made = ls.Problem(ls.Dataset(x, y, weight), network, ls.losses.multiclass_hinge)

    def risk(w) -> float:
        f = oracles.network([(oracles.mlp("tanh"), w)], x, average=True)
        return oracles.risk(f, y, made.data.weight.astype(float), oracles.multiclass_hinge)

    return made, risk, random_parameters(rng, network)


def random_parameters(rng, network):
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    return jax.tree.map(lambda t: jnp.asarray(rng.normal(size=t.shape)), shapes)


def test_risk_and_derivatives_equal_a_loop() -> None:
    with trees.float64():
        made, risk, w = case()
        rng = seeds.generator()
        direction = jax.tree.map(lambda t: jnp.asarray(rng.normal(size=t.shape)), w)
        np.testing.assert_allclose(made.risk(w), risk(w), rtol=1e-12)
        forward = partial(problem.outputs, made.network)
        fast = jax.jit(problem.streamed_risk, static_argnums=(0, 1))(forward, made.loss, w, made.data)
        np.testing.assert_allclose(fast, risk(w), rtol=1e-12)
        steepness = oracles.slope(risk, oracles.float64(w), oracles.float64(direction))
        np.testing.assert_allclose(trees.vdot(made.gradient(w), direction), steepness, rtol=1e-4, atol=1e-6)
        ahead, behind = (made.gradient(trees.axpy(s, direction, w)) for s in (1e-6, -1e-6))
        curved = made.hessian_vector_product(w, direction)
        difference = trees.scale(0.5e6, trees.subtract(ahead, behind))
        for a, b in zip(jax.tree.leaves(curved), jax.tree.leaves(difference), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


def test_examples_of_weight_zero_count_for_nothing() -> None:
    rng = seeds.generator()
    network = ls.MultiBranch(networks.relu_branch(4), 3)
    x, y = rng.normal(size=(6, 4)).astype("f4"), np.sign(rng.normal(size=6)).astype("f4")
    w = jax.jit(network.init)(jax.random.key(int(rng.integers(1000))))
    padded = ls.Dataset(
        np.concatenate([x, np.full((3, 4), 9, "f4")]), np.append(y, np.ones(3, "f4")), [1.0] * 6 + [0.0] * 3
    )
    for loss in (ls.losses.hinge, ls.losses.squared):
        risks = [ls.Problem(data, network, loss).risk(w) for data in (ls.Dataset(x, y), padded)]
        np.testing.assert_allclose(*risks, rtol=1e-6)


def test_more_examples_than_a_chunk() -> None:
    rng = seeds.generator()
    x = rng.normal(size=(2 * problem.EXAMPLES_AT_A_TIME + 5, 3)).astype("f4")
    made = ls.Problem(ls.Dataset(x, np.sign(x[:, 0])), ls.MultiBranch(networks.relu_branch(3), 2), ls.losses.squared)
    w = jax.jit(made.network.init)(jax.random.key(int(rng.integers(1000))))
    f = oracles.network([(oracles.mlp(), w)], x, average=True)
    expected = oracles.risk(f, np.sign(x[:, 0]), np.ones(len(x)), oracles.squared)
    np.testing.assert_allclose(made.risk(w), expected, rtol=1e-5)


def test_a_minibatch_in_lanes_has_the_gradient_of_the_plain_forward() -> None:
    rng = seeds.generator()
    network = ls.MultiBranch(networks.relu_branch(4, 3, 3, bias=True), 5, average=False, branch_chunk=2)
    w = jax.jit(network.init)(jax.random.key(int(rng.integers(1000))))
    x, y = rng.normal(size=(6, 4)).astype("f4"), rng.integers(0, 3, 6)
    loss = ls.losses.multiclass_hinge

    @jax.jit
    def both(w):
        fast = jax.grad(lambda p: problem.minibatch_risk(network, loss, p, x, y, jnp.ones(6)))(w)
        return fast, jax.grad(lambda p: loss(network.apply(p, x), y).mean())(w)

    for a, b in zip(*map(jax.tree.leaves, both(w)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_a_plain_network_is_one_branch() -> None:
    made = ls.Problem(ls.Dataset(np.ones((2, 3)), np.ones(2)), networks.relu_branch(3), ls.losses.hinge)
    assert made.network.total == 1
    assert "MultiBranch(1 branches" in repr(made)
    assert len(repr(made)) < 200


def test_wrong_losses_and_labels_are_refused() -> None:
    data = ls.Dataset(np.ones((4, 3)), np.ones(4))
    network = ls.MultiBranch(networks.relu_branch(3, 2, 2), 3)
    with pytest.raises(ValueError, match=r"one value an example.*\(4, 2\)"):
        ls.Problem(data, network, lambda f, y: f)
    with pytest.raises(ValueError, match="one value an example"):
        ls.Problem(data, network, lambda f, y: f.mean())
    with pytest.raises(ValueError, match="integer classes"):
        ls.Problem(data, network, ls.losses.multiclass_hinge)
    with pytest.raises(ValueError, match="one output an example"):
        ls.Problem(data, network, ls.losses.hinge)
    with pytest.raises(ValueError, match="positive"):
        ls.losses.tau_hinge(tau=-1.0)
