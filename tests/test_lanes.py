"""The staged restriction equals the plain forward at w(a, b), for any branch, in float64."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from landscape import lanes, networks, problem, trees
from landscape.networks import MultiBranch, Network, one_example

INPUTS, BRANCHES, EXAMPLES = 72, 3, 5


class Convolutional(nn.Module):
    """Two convolutions with pooling between them."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(3, (3, 3))(x.reshape(*x.shape[:-1], 6, 6, 2)))
        x = nn.gelu(nn.Conv(2, (3, 3), strides=(2, 2))(nn.avg_pool(x, (2, 2), (2, 2))))
        return nn.Dense(3)(x.reshape(*x.shape[:-3], -1))


class Recurrent(nn.Module):
    """A GRU whose input projections do not depend on its state."""

    @nn.compact
    def __call__(self, x):
        cell = nn.GRUCell(4, param_dtype=jnp.float64)
        return nn.Dense(3)(nn.RNN(cell)(x.reshape(*x.shape[:-1], 9, 8))[..., -1, :])


class Attention(nn.Module):
    """Products of examples with examples, normalisation, a residual."""

    @nn.compact
    def __call__(self, x):
        x = x.reshape(*x.shape[:-1], 9, 8)
        x = nn.LayerNorm()(x + nn.MultiHeadDotProductAttention(2)(x))
        return nn.Dense(3)(jnp.tanh(x.mean(-2)))


class EndsInRelu(nn.Module):
    """An output that no product ends, with constants beside it."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(2.0 * nn.Dense(3)(x)) + 1.5
        return x - jnp.broadcast_to(jnp.arange(3.0), x.shape)


def elman():
    branch = networks.recurrent_branch(8, 4, 3, bias=True)
    return Network(branch.init, lambda w, x: branch.apply(w, x.reshape(9, 8)))


ONE = np.ones((1, INPUTS))
BRANCH = {
    "one unit": lambda: networks.relu_branch(INPUTS),
    "layer with biases": lambda: networks.relu_branch(INPUTS, 8, 3, bias=True),
    "affine": lambda: networks.mlp_branch((INPUTS, 3), bias=True),
    "convolution": lambda: networks.conv_branch((6, 6, 2), (4, 3), 3, bias=True),
    "flax convolution": lambda: networks.from_linen(Convolutional(), ONE),
    "elman": elman,
    "gru": lambda: networks.from_linen(Recurrent(), ONE),
    "attention": lambda: networks.from_linen(Attention(), ONE),
    "ends in relu": lambda: networks.from_linen(EndsInRelu(), ONE),
}
ACTIVATIONS = [jax.nn.relu, jnp.tanh, jax.nn.sigmoid, jax.nn.gelu, jax.nn.softplus, jnp.sin]


def random_like(rng, tree):
    return jax.tree.map(lambda t: jnp.asarray(rng.normal(size=t.shape)), tree)


def check(branch, rng, seed):
    with trees.float64():
        network = MultiBranch(branch, BRANCHES, average=False)
        shapes = network.init(jax.random.key(0))
        triple = tuple(random_like(rng, shapes) for _ in range(3))
        x, (a, b) = jnp.asarray(rng.normal(size=(EXAMPLES, INPUTS))), rng.normal(size=2)
        first = jax.tree.map(lambda t: t[0], triple[0])
        one = one_example(branch, first, x[0])
        w = trees.axpy(b, triple[2], trees.axpy(a, triple[1], triple[0]))
        expected = np.stack(
            [
                np.sum([one(jax.tree.map(lambda t, i=i: t[i], w), x[n]) for i in range(BRANCHES)], 0)
                for n in range(EXAMPLES)
            ]
        )
        staged = lanes.trace(one, first, x[0])
        found = staged.at(staged.row(staged.prefix(triple, x.T), b), a).T
        laid = tuple(staged.lay_out(t) for t in triple)
        again = staged.at(staged.row(staged.prefix(laid, x.T, laid_out=True), b), a).T
        plain = lanes.trace(one, first, x[0], staged=False)
        forward = plain.at(plain.prefix((w,), x.T), jnp.zeros(())).T
        for values in (found, again, forward, network.apply(w, x), problem.outputs(network, w, x)):
            np.testing.assert_allclose(values, expected, rtol=1e-9, atol=1e-9, err_msg=seed)
    return staged


@pytest.mark.parametrize("name", BRANCH)
def test_every_kind_of_branch_equals_its_plain_forward(name):
    seed = np.random.SeedSequence().entropy
    with trees.float64():
        branch = BRANCH[name]()
    check(branch, np.random.default_rng(seed), str(seed))


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
@pytest.mark.parametrize("bias", [False, True])
def test_random_mlps_equal_their_plain_forward(depth, bias):
    seed = np.random.SeedSequence().entropy
    rng = np.random.default_rng(seed)
    widths = (INPUTS, *rng.integers(1, 6, depth), int(rng.integers(1, 4)))
    activation = ACTIVATIONS[rng.integers(len(ACTIVATIONS))]
    staged = check(networks.mlp_branch(tuple(map(int, widths)), activation, bias), rng, f"{seed} {widths} {activation}")
    products = [i for i, e in enumerate(staged.equations) if e.primitive.name == "dot_general"]
    assert products[0] not in staged.late
    assert staged.products[products[-1]].folds


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_end_the_prefix_after_the_first_layer(activation):
    branch = networks.mlp_branch((4, 3, 3, 2), activation)
    w = branch.init(jax.random.key(0))
    staged = lanes.trace(one_example(branch, w, jnp.zeros(4)), w, jnp.zeros(4))
    late = [staged.equations[i].primitive.name for i in staged.late]
    assert late.count("dot_general") == 2


def test_input_projections_of_a_scan_are_hoisted():
    with trees.float64():
        branch = networks.from_linen(Recurrent(), ONE)
        w = branch.init(jax.random.key(0))
        staged = lanes.trace(one_example(branch, w, jnp.zeros(INPUTS)), w, jnp.zeros(INPUTS))
    early = [e.primitive.name for i, e in enumerate(staged.equations) if i not in staged.late]
    assert early.count("dot_general") == 3


def test_the_gradient_in_lanes_is_that_of_the_plain_forward_even_at_zero():
    rng = np.random.default_rng()
    network = MultiBranch(networks.mlp_branch((6, 4, 3, 1), bias=True), 5, average=False)
    w = network.init(jax.random.key(int(rng.integers(1000))))
    w[0]["bias"] = jnp.zeros_like(w[0]["bias"])
    x = jnp.asarray(rng.normal(size=(7, 6)), jnp.float32).at[0].set(0.0)  # every first-layer unit sits at its kink
    fast, plain = (
        jax.grad(lambda p, f=f: f(p).sum())(w)
        for f in (lambda p: problem.outputs(network, p, x), lambda p: network.apply(p, x))
    )
    for a, b in zip(jax.tree.leaves(fast), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_branches_in_chunks_give_the_same_outputs_and_gradient():
    rng = np.random.default_rng()
    branch = networks.relu_branch(6, 4, 2)
    whole, parts = (MultiBranch(branch, 7, branch_chunk=c) for c in (None, 3))
    w, x = whole.init(jax.random.key(0)), jnp.asarray(rng.normal(size=(5, 6)), jnp.float32)
    for f in (lambda n: problem.outputs(n, w, x), lambda n: jax.grad(lambda p: problem.outputs(n, p, x).sum())(w)):
        for a, b in zip(jax.tree.leaves(f(whole)), jax.tree.leaves(f(parts)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_the_two_pass_gradient_needs_no_memory_for_all_branches():
    def temporary(branches):
        network = MultiBranch(networks.mlp_branch((4, 8, 8, 1)), branches, branch_chunk=8)
        shapes = jax.eval_shape(network.init, jax.random.key(0))
        x = jax.ShapeDtypeStruct((512, 4), jnp.float32)
        step = jax.jit(jax.grad(lambda p, x: problem.outputs(network, p, x).sum()))
        return step.lower(shapes, x).compile().memory_analysis().temp_size_in_bytes, trees.nbytes(shapes)

    (small, few), (large, many) = temporary(16), temporary(256)
    assert large - small <= 3 * (many - few)
    assert large < 256 * 8 * 512 * 4
