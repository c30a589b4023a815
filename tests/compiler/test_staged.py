"""A staged branch equals the plain forward at w(a, b), branch by branch in float64 NumPy, for any branch."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import seeds
from flax import nnx
from jax import lax

from landscape import networks, problem
from landscape.arrays import trees
from landscape.compiler import flatten, staged
from landscape.compiler.analysis import StagedBranch
from landscape.networks import MultiBranch, Network, one_example

INPUTS, BRANCHES, EXAMPLES = 72, 3, 5
ONE = np.ones((1, INPUTS))


class Case(NamedTuple):
    """A kind of branch with its forward pass in NumPy."""

    branch: Callable[[], Network]
    forward: oracles.Branch


class Convolutional(nn.Module):
    """Two convolutions, the second with strides, and pooling between them."""

    pool: Callable = nn.avg_pool

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(3, (3, 3))(x.reshape(*x.shape[:-1], 6, 6, 2)))
        x = nn.gelu(nn.Conv(2, (2, 2), strides=(2, 2))(self.pool(x, (2, 2), (2, 2))))
        return nn.Dense(3)(x.reshape(*x.shape[:-3], -1))


def convolutional(reduce: Callable) -> oracles.Branch:
    def forward(w: Any, x: np.ndarray) -> np.ndarray:
        x = oracles.pooled(np.maximum(oracles.convolution(w["Conv_0"], x.reshape(-1, 6, 6, 2)), 0), reduce)
        x = oracles.ACTIVATIONS["gelu"](oracles.convolution(w["Conv_1"], x, 2))
        return oracles.affine(w["Dense_0"], x.reshape(len(x), -1))

    return forward


class Image(nnx.Module):
    """A convolution and mean over the pixels, for a batch of images."""

    def __init__(self, rngs):
        self.conv = nnx.Conv(2, 3, (3, 3), rngs=rngs, param_dtype=jnp.float64)
        self.out = nnx.Linear(3, 3, rngs=rngs, param_dtype=jnp.float64)

    def __call__(self, x):
        x = nnx.avg_pool(nnx.relu(self.conv(x.reshape(-1, 6, 6, 2))), (2, 2), (2, 2))
        return self.out(x.mean((1, 2)))


def image(w: Any, x: np.ndarray) -> np.ndarray:
    x = np.maximum(oracles.convolution(w["conv"], x.reshape(-1, 6, 6, 2)), 0)
    return oracles.affine(w["out"], oracles.pooled(x, np.mean).mean((1, 2)))


class Gated(nn.Module):
    """A GRU whose input projections do not depend on its state."""

    @nn.compact
    def __call__(self, x):
        cell = nn.GRUCell(4, param_dtype=jnp.float64, name="cell")
        return nn.Dense(3)(nn.RNN(cell)(x.reshape(*x.shape[:-1], 9, 8))[..., -1, :])


class GatedModule(nnx.Module):
    """The same with nnx, for a batch."""

    def __init__(self, rngs):
        self.rnn = nnx.RNN(nnx.SimpleCell(8, 4, rngs=rngs, dtype=jnp.float64, param_dtype=jnp.float64), rngs=rngs)
        self.out = nnx.Linear(4, 3, rngs=rngs, param_dtype=jnp.float64)

    def __call__(self, x):
        return self.out(self.rnn(x.reshape(-1, 9, 8))[:, -1])


def simple(w: Any, x: np.ndarray) -> np.ndarray:
    """An Elman cell with nnx's names."""
    cell, x, h = w["rnn"]["cell"], x.reshape(-1, 9, 8), np.zeros((len(x), 4))
    for t in range(9):
        h = np.tanh(oracles.affine(cell["dense_i"], x[:, t]) + oracles.affine(cell["dense_h"], h))
    return oracles.affine(w["out"], h)


class Attention(nn.Module):
    """Products of examples with examples, normalisation, a residual."""

    @nn.compact
    def __call__(self, x):
        x = x.reshape(*x.shape[:-1], 9, 8)
        x = nn.LayerNorm(name="norm")(x + nn.MultiHeadDotProductAttention(2, name="heads")(x))
        return nn.Dense(3, name="out")(jnp.tanh(x.mean(-2)))


def attention(w: Any, x: np.ndarray) -> np.ndarray:
    x = x.reshape(-1, 9, 8)
    x = oracles.layer_norm(w["norm"], x + oracles.attention(w["heads"], x))
    return oracles.affine(w["out"], np.tanh(x.mean(-2)))


class OneExample(nnx.Module):
    """Written for one example: a batch of them would not fit."""

    def __init__(self, rngs):
        self.hidden = nnx.Linear(8, 4, rngs=rngs, param_dtype=jnp.float64)
        self.out = nnx.Linear(36, 3, rngs=rngs, param_dtype=jnp.float64)

    def __call__(self, x):
        return self.out(nnx.relu(self.hidden(x.reshape(9, 8))).reshape(36))


def hidden(w: Any, x: np.ndarray) -> np.ndarray:
    x = np.maximum(oracles.affine(w["hidden"], x.reshape(-1, 9, 8)), 0)
    return oracles.affine(w["out"], x.reshape(len(x), -1))


@jax.custom_jvp
def steep(z):
    """max(z, 0), whose derivative at 0 is stated to be 1."""
    return jnp.maximum(z, 0)


steep.defjvp(lambda z, dz: (steep(*z), jnp.where(z[0] >= 0, dz[0], 0)))


def written(forward: Callable, shapes: dict[str, tuple[int, ...]]) -> Case:
    """A branch given by one formula, forward(xp, w, x [72]) -> [C], that JAX and NumPy both understand."""

    def init(key):
        return {name: jax.random.normal(key, shape, jnp.float64) for name, shape in shapes.items()}

    return Case(
        lambda: Network(init, lambda w, x: forward(jnp, w, x)),
        lambda w, x: np.stack([np.atleast_1d(forward(np, w, one)) for one in x]),
    )


def settled(xp: Any, z: Any) -> Any:
    """A loop of unknown length: halved until it is small."""
    if xp is jnp:
        return lax.while_loop(lambda v: jnp.abs(v).max() > 1, lambda v: v / 2, z)
    while np.abs(z).max() > 1:
        z = z / 2
    return z


LAYER = {"w": (INPUTS, 4), "v": (4, 3)}
CASES = {
    "one unit": Case(lambda: networks.relu_branch(INPUTS), oracles.mlp()),
    "layer": Case(lambda: networks.relu_branch(INPUTS, 8, 3, bias=True), oracles.mlp()),
    "affine": Case(lambda: networks.mlp_branch((INPUTS, 3), bias=True), oracles.mlp()),
    "convolution": Case(
        lambda: networks.conv_branch((6, 6, 2), (4, 3), 3, bias=True),
        lambda w, x: conv(w, x.reshape(-1, 6, 6, 2)),
    ),
    "elman": Case(
        lambda: one_sequence(networks.recurrent_branch(8, 4, 3, bias=True)),
        lambda w, x: oracles.elman(w, x.reshape(-1, 9, 8)),
    ),
    "linen convolution, mean pooling": Case(lambda: networks.from_linen(Convolutional(), ONE), convolutional(np.mean)),
    "linen convolution, max pooling": Case(
        lambda: networks.from_linen(Convolutional(nn.max_pool), ONE), convolutional(np.max)
    ),
    "nnx convolution": Case(lambda: networks.from_flax(Image), image),
    "gru": Case(
        lambda: networks.from_linen(Gated(), ONE),
        lambda w, x: oracles.affine(w["Dense_0"], oracles.gru(w["cell"], x.reshape(-1, 9, 8))),
    ),
    "nnx recurrent": Case(lambda: networks.from_flax(GatedModule, state="frozen"), simple),
    "attention": Case(lambda: networks.from_linen(Attention(), ONE), attention),
    "one example": Case(lambda: networks.from_flax(OneExample), hidden),
    "ends in relu": written(lambda xp, w, x: xp.maximum(2 * (x @ w["w"]), 0) + 1.5, LAYER),
    "constant summands": written(
        lambda xp, w, x: xp.maximum(x @ w["w"], 0) @ w["v"] + xp.arange(3.0) - (x[:3] + 0.5), LAYER
    ),
    "the same for every example": written(lambda xp, w, x: xp.tanh(w["b"]) + 0.5, {"b": (3,)}),
    "nothing but a summand": written(lambda xp, w, x: w["b"] + x[:3], {"b": (3,)}),
    "output used twice": written(lambda xp, w, x: (x @ w["w"]) * xp.tanh(x @ w["w"]), LAYER),
    "product of weights": written(lambda xp, w, x: x @ (w["w"] @ w["v"]), LAYER),
    "weight times itself": written(lambda xp, w, x: (x @ w["w"] ** 2) @ w["v"], LAYER),
    "scalar gain": written(lambda xp, w, x: w["g"] * xp.maximum(x @ w["w"], 0) / (1 + w["g"] ** 2), LAYER | {"g": ()}),
    "normalised weights": written(
        lambda xp, w, x: xp.tanh(x @ (w["w"] / xp.sqrt((w["w"] ** 2).sum(0, keepdims=True)))) @ w["v"], LAYER
    ),
    "max and sort": written(lambda xp, w, x: xp.sort(x @ w["w"])[1:] + (x @ w["w"]).max(), LAYER),
    "selection": written(lambda xp, w, x: xp.where(x @ w["w"] > 0, x @ w["w"], x[:4]) @ w["v"], LAYER),
    "while": written(lambda xp, w, x: settled(xp, x @ w["w"]) @ w["v"], LAYER),
    "both sides": written(
        lambda xp, w, x: (x.reshape(9, 8)[:, :4] * xp.sin(x @ w["w"])[None]).sum(0) @ w["v"] * x[0], LAYER
    ),
    "slices": written(
        lambda xp, w, x: xp.concatenate([x[::2], -x[1::2]])[::-1] @ xp.flip(w["w"], 0)[:, 1:] + w["v"].T.sum(1), LAYER
    ),
    "custom derivative": written(
        lambda xp, w, x: (steep(x @ w["w"]) if xp is jnp else np.maximum(x @ w["w"], 0)) @ w["v"], LAYER
    ),
}


def conv(w: Any, x: np.ndarray) -> np.ndarray:
    for layer in w[:-1]:
        x = np.maximum(oracles.convolution(layer, x), 0)
    return oracles.affine(w[-1], x.mean((1, 2)))


def one_sequence(branch: Network) -> Network:
    return Network(branch.init, lambda w, x: branch.apply(w, x.reshape(9, 8)))


def random_like(rng: np.random.Generator, tree: Any) -> Any:
    return jax.tree.map(lambda t: jnp.asarray(rng.normal(size=t.shape) / np.sqrt(max(t.shape[-2:-1], default=1))), tree)


def check(case: Case, words: str = "") -> StagedBranch:
    """Staged, laid out beforehand, plain in lanes, `apply` and `outputs` against NumPy, at a random (a, b)."""
    seed = seeds.draw()
    rng = np.random.default_rng(seed)
    with trees.float64():
        branch = case.branch()
        network = MultiBranch(branch, BRANCHES, average=False)
        shapes = jax.eval_shape(network.init, jax.random.key(0))
        triple = tuple(random_like(rng, shapes) for _ in range(3))
        x, ab = jnp.asarray(rng.normal(size=(EXAMPLES, INPUTS))), rng.normal(size=2)
        one = jax.tree.map(lambda t: jax.ShapeDtypeStruct(t.shape[1:], t.dtype), shapes)
        f = one_example(branch, one, x[0])
        traced, plain = (staged.staged(jax.make_jaxpr(f)(one, x[0]), inference) for inference in (True, False))

        @jax.jit
        def ways(triple: Any, w: Any, a: jax.Array, b: jax.Array) -> list[jax.Array]:
            laid = tuple(staged.lay_out(traced, t) for t in triple)
            residuals = staged.precompute(traced, triple, x.T), staged.precompute(traced, laid, x.T, prelaid=True)
            return [
                *(staged.at_point(traced, staged.at_row(found, b), a).T for found in residuals),
                staged.at_point(plain, staged.precompute(plain, (w,), x.T), jnp.zeros(())).T,
                network.apply(w, x),
                problem.outputs(network, w, x),
            ]

        w = jax.tree.map(lambda o, u, v: o + ab[0] * u + ab[1] * v, *triple)
        expected = oracles.network([(case.forward, w)], x, average=False)
        for found in ways(triple, w, *ab):
            np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9, err_msg=f"{words} seed {seed}")
    return traced


@pytest.mark.parametrize("name", CASES)
def test_every_kind_of_branch_equals_its_plain_forward(name: str) -> None:
    check(CASES[name], name)


ACTIVATIONS = {
    "relu": jax.nn.relu,
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
    "gelu": jax.nn.gelu,
    "softplus": jax.nn.softplus,
    "sin": jnp.sin,
}
SHIFT = int(seeds.generator().integers(4))
"""Which depth meets which activation changes from run to run; every depth meets three."""


@pytest.mark.parametrize(
    ("turn", "name", "bias"), [(i + 6 * b, n, b) for b in (0, 1) for i, n in enumerate(oracles.ACTIVATIONS)]
)
def test_random_mlps_equal_their_plain_forward(turn: int, name: str, bias: int) -> None:
    rng = seeds.generator()
    depth = 1 + (turn + SHIFT) % 4
    widths = (INPUTS, *map(int, rng.integers(1, 6, depth)), int(rng.integers(1, 4)))
    branch = networks.mlp_branch(widths, ACTIVATIONS[name], bool(bias))
    traced = check(Case(lambda: branch, oracles.mlp(name)), f"{widths} {name} {bias}")
    products = [[s.product for s in steps if s.name == "dot_general"] for steps in (traced.prefix, traced.nonlinear)]
    assert [len(found) for found in products] == [1, depth]  # the first layer is paid once
    assert products[1][-1].folds  # the sum over branches is part of the last product


def test_input_projections_of_a_scan_are_hoisted() -> None:
    with trees.float64():
        branch = networks.from_linen(Gated(), ONE)
        w = jax.eval_shape(branch.init, jax.random.key(0))
        x = jnp.zeros(INPUTS)
        traced = staged.staged(jax.make_jaxpr(one_example(branch, w, x))(w, x))
    assert [s.name for s in traced.prefix].count("dot_general") == 3


def test_a_hoisted_scan_is_traced_alike_every_time() -> None:
    """What is kept on disk belongs to a fingerprint of the traced function, which must not depend on addresses."""

    def f(w: jax.Array, xs: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda h, x: (h * jnp.sin(w * x) + jnp.cos(x) * w - jnp.exp(x), x), 0.0, xs)[0]

    assert len({flatten.jaxpr_hash(lambda w, xs: f(w, xs), 2.0, jnp.ones(4)) for _ in range(20)}) == 1


def test_a_maximum_with_a_constant_keeps_nan_on_either_side() -> None:
    z = jnp.array([np.nan, np.inf, -np.inf, 0.0, -1.5, 1.5, 1e-40])

    def f(w: jax.Array, x: jax.Array) -> jax.Array:
        return jnp.concatenate([jnp.maximum(w * x, 0.25), jnp.maximum(0.0, w * x), jnp.minimum(w * x, 0.5)])

    fast = staged.staged(jax.make_jaxpr(f)(z, z[:1]), inference=True)
    rest = jnp.zeros((1, len(z)))
    residuals = staged.precompute(fast, (z[None], rest, rest), jnp.ones((1, 1)))
    found = staged.at_point(fast, staged.at_row(residuals, jnp.ones(())), jnp.ones(()))
    np.testing.assert_array_equal(found[:, 0], f(z, jnp.ones(1)))
    assert np.isnan(found[jnp.array([0, 7, 14]), 0]).all()


@pytest.mark.parametrize("activation", [jax.nn.relu, steep, jnp.abs], ids=["relu", "custom derivative", "abs"])
def test_the_gradient_is_that_of_the_plain_forward_even_at_a_kink(activation: Callable) -> None:
    rng = seeds.generator()
    network = MultiBranch(networks.mlp_branch((6, 4, 3, 1), activation, bias=True), 5, average=False)
    w = jax.jit(network.init)(jax.random.key(int(rng.integers(1000))))
    w[0]["bias"] = jnp.zeros_like(w[0]["bias"])
    x = jnp.asarray(rng.normal(size=(7, 6)), jnp.float32).at[0].set(0.0)  # every first-layer unit sits at its kink

    @jax.jit
    def both(w: Any) -> tuple[Any, Any]:
        plain, fast = (lambda p: network.apply(p, x).sum()), (lambda p: problem.outputs(network, p, x).sum())
        return jax.grad(fast)(w), jax.grad(plain)(w)

    for a, b in zip(*map(jax.tree.leaves, both(w)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_groups_of_different_branches_in_ragged_chunks() -> None:
    rng = seeds.generator()
    kinds = [networks.relu_branch(6, 2, 2), networks.mlp_branch((6, 3, 2, 2), jnp.tanh, bias=True)]
    x = rng.normal(size=(4, 6)).astype("f4")
    network = MultiBranch(kinds, [5, 3], branch_chunk=2)
    w = jax.jit(network.init)(jax.random.key(int(rng.integers(1000))))
    expected = oracles.network([(oracles.mlp(), w[0]), (oracles.mlp("tanh"), w[1])], x, average=True)
    for found in jax.jit(lambda w: (problem.outputs(network, w, x), network.apply(w, x)))(w):
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-6)


def test_branches_in_chunks_give_the_same_outputs_and_gradient() -> None:
    rng = seeds.generator()
    branch = networks.relu_branch(6, 4, 2)
    w = jax.jit(MultiBranch(branch, 7).init)(jax.random.key(int(rng.integers(1000))))
    x = jnp.asarray(rng.normal(size=(5, 6)), jnp.float32)

    def both(chunk: int | None) -> list[Any]:
        network = MultiBranch(branch, 7, branch_chunk=chunk)
        values = jax.jit(jax.value_and_grad(lambda p: (problem.outputs(network, p, x) ** 2).sum()))(w)
        return jax.tree.leaves(values)

    whole = both(None)
    for chunk in (1, 3, 7, 9):
        for a, b in zip(whole, both(chunk), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_the_two_pass_gradient_needs_no_memory_for_all_branches() -> None:
    def temporary(branches: int) -> tuple[int, int]:
        network = MultiBranch(networks.mlp_branch((4, 8, 8, 1)), branches, branch_chunk=8)
        shapes = jax.eval_shape(network.init, jax.random.key(0))
        x = jax.ShapeDtypeStruct((512, 4), jnp.float32)
        step = jax.jit(jax.grad(lambda p, x: problem.outputs(network, p, x).sum()))
        return step.lower(shapes, x).compile().memory_analysis().temp_size_in_bytes, trees.nbytes(shapes)

    (small, few), (large, many) = temporary(16), temporary(256)
    assert large - small <= 3 * (many - few)
    assert large < 256 * 8 * 512 * 4  # one hidden layer of all branches
