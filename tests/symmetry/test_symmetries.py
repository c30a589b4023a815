"""Symmetries read from traces: the groups that a person would write down, and none where the order of units matters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from landscape.networks import Network, from_flax, mlp_branch, one_example, recurrent_branch
from landscape.symmetry import matching
from landscape.symmetry.blocks import generators
from landscape.symmetry.probes import Branch
from landscape.symmetry.symmetries import find

pytestmark = pytest.mark.slow

RELU = jax.nn.relu


def normal(key, shapes):
    """A dictionary of normal random arrays, scaled by their fan-in."""
    keys = jax.random.split(key, len(shapes))
    named = zip(shapes.items(), keys, strict=True)
    return {k: jax.random.normal(key, s) / np.sqrt(max(1, np.prod(s[:-1]))) for (k, s), key in named}


def made(apply, **shapes):
    """A network of one example from its formula and the shapes of its parameters."""
    return Network(lambda key: normal(key, shapes), apply)


def layer_norm(x):
    x = x - x.mean(-1, keepdims=True)
    return x / jnp.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)


def convolved(x, kernel, groups=1):
    """[H, W, C] convolved with [3, 3, C / groups, O]."""
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        x[None], kernel, (1, 1), "SAME", dimension_numbers=numbers, feature_group_count=groups
    )[0]


def glu(w, x):
    u, gate = jnp.split(x @ w["in"] + w["bias"], 2)
    return (u * jax.nn.sigmoid(gate)) @ w["out"]


def separable(w, x):
    x = RELU(convolved(x, w["stem"]))
    x = RELU(convolved(x, w["depthwise"], 6) + w["bias"][None, None])
    return RELU(convolved(x, w["pointwise"])).mean((0, 1)) @ w["out"]


def squeeze_excitation(w, x):
    x = RELU(convolved(x, w["conv"]))
    gate = jax.nn.sigmoid(RELU(x.mean((0, 1)) @ w["squeeze"]) @ w["excite"])
    return (x * gate[None, None]).mean((0, 1)) @ w["out"]


def multi_query(w, x):
    """Three query heads, one head of keys and values, on tokens [4, 5]."""
    q = jnp.einsum("td,dhk->htk", x @ w["in"], w["q"])
    k, v = x @ w["in"] @ w["k"], x @ w["in"] @ w["v"]
    a = jax.nn.softmax(jnp.einsum("htk,sk->hts", q, k), -1)
    return jnp.einsum("hts,sv,hvd->d", a, v, w["o"]) @ w["out"]


def tied(w, tokens):
    """The embedding is also the last layer."""
    hidden = layer_norm(w["embedding"][tokens] + RELU(w["embedding"][tokens] @ w["up"]) @ w["down"])
    return hidden[-1] @ w["embedding"].T


def u_net(w, x):
    down = RELU(convolved(x, w["a"]))
    pooled = down.reshape(2, 2, 2, 2, -1).max((1, 3))
    middle = RELU(convolved(pooled, w["b"]))
    up = jnp.repeat(jnp.repeat(middle, 2, 0), 2, 1)
    return convolved(RELU(convolved(jnp.concatenate([down, up], -1), w["c"])), w["d"]).mean((0, 1))


def experts(w, x):
    """Dense routing: every expert is computed, and weighted by its gate."""
    gate = jax.nn.softmax(x @ w["gate"])
    hidden = RELU(jnp.einsum("d,edh->eh", x, w["up"]))
    return jnp.einsum("e,eh,eho->o", gate, hidden, w["down"])


def gru(w, x):
    """Gates fused in one kernel; three units."""

    def step(h, t):
        r, z = jnp.split(jax.nn.sigmoid(t @ w["xg"] + h @ w["hg"]), 2)
        new = jnp.tanh(t @ w["xn"] + r * (h @ w["hn"]))
        return (1 - z) * new + z * h, None

    return lax.scan(step, jnp.zeros(5, x.dtype), x)[0] @ w["out"]


def mixer(w, x):
    """Tokens [4, 5]: one network over tokens, one over channels."""
    x = x @ w["in"]
    x = x + (RELU(x.T @ w["t1"]) @ w["t2"]).T
    x = x + RELU(x @ w["c1"]) @ w["c2"]
    return x.mean(0) @ w["out"]


def iterated(w, x):
    """A weight shared by the steps of a while loop."""
    h = x @ w["in"]
    return lax.fori_loop(0, 3, lambda k, h: jnp.tanh(h @ w["step"] + h), h) @ w["out"]


class LSTMs(nnx.Module):
    def __init__(self, rngs):
        self.cells = nnx.List([nnx.RNN(nnx.LSTMCell(5, 3, rngs=rngs)), nnx.RNN(nnx.LSTMCell(3, 4, rngs=rngs))])
        self.out = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        for cell in self.cells:
            x = cell(x)
        return self.out(x[:, -1])


class Residual(nnx.Module):
    """A stem, a block with BatchNorm in evaluation, and a projection."""

    def __init__(self, rngs):
        self.stem, self.a, self.b = (nnx.Conv(c, 4, (3, 3), rngs=rngs) for c in (2, 4, 4))
        self.norm, self.skip = nnx.BatchNorm(4, rngs=rngs), nnx.Conv(4, 6, (1, 1), rngs=rngs)
        self.c, self.out = nnx.Conv(4, 6, (3, 3), rngs=rngs), nnx.Linear(6, 3, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.stem(x))
        x = nnx.relu(x + self.b(nnx.relu(self.norm(self.a(x)))))
        return self.out(nnx.relu(self.skip(x) + self.c(x)).mean((1, 2)))


class Encoder(nnx.Module):
    def __init__(self, rngs):
        self.into, self.norm = nnx.Linear(5, 6, rngs=rngs), nnx.LayerNorm(6, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 6, rngs=rngs, decode=False)
        self.up, self.down, self.out = (nnx.Linear(n, m, rngs=rngs) for n, m in ((6, 7), (7, 6), (6, 2)))

    def __call__(self, x):
        x = self.into(x)
        x = x + self.attention(self.norm(x))
        return self.out((x + self.down(nnx.gelu(self.up(x)))).mean(-2))


image, tokens = (4, 4, 2), (4, 5)
FOUND = {
    "glu by split": (made(glu, **{"in": (5, 12), "bias": (12,), "out": (6, 2)}), (5,), [(6, 1)]),
    "depthwise and pointwise": (
        made(separable, stem=(3, 3, 2, 6), depthwise=(3, 3, 1, 6), bias=(6,), pointwise=(1, 1, 6, 4), out=(4, 3)),
        image,
        [(4, 1), (6, 1)],
    ),
    "squeeze and excitation": (
        made(squeeze_excitation, conv=(3, 3, 2, 6), squeeze=(6, 3), excite=(3, 6), out=(6, 2)),
        image,
        [(3, 1), (6, 1)],
    ),
    "multi-query attention": (
        made(multi_query, **{"in": (5, 6), "q": (6, 3, 4), "k": (6, 4), "v": (6, 7), "o": (3, 7, 6), "out": (6, 2)}),
        tokens,
        [(3, 1), (4, 1), (6, 1), (6, 1), (7, 1)],
    ),
    "tied embedding": (made(tied, embedding=(11, 6), up=(6, 8), down=(8, 6)), None, [(6, 1), (8, 1)]),
    "u-net": (
        made(u_net, a=(3, 3, 2, 3), b=(3, 3, 3, 5), c=(3, 3, 8, 4), d=(3, 3, 4, 2)),
        image,
        [(3, 1), (4, 1), (5, 1)],
    ),
    "mixture of experts": (made(experts, gate=(5, 3), up=(3, 5, 4), down=(3, 4, 2)), (5,), [(3, 1), (4, 3)]),
    "fused gates": (made(gru, xg=(5, 10), hg=(5, 10), xn=(5, 5), hn=(5, 5), out=(5, 2)), tokens, [(5, 1)]),
    "mixer": (
        made(mixer, **{"in": (5, 6), "t1": (4, 7), "t2": (7, 4), "c1": (6, 8), "c2": (8, 6), "out": (6, 2)}),
        tokens,
        [(6, 1), (7, 1), (8, 1)],
    ),
    "while loop": (made(iterated, **{"in": (5, 4), "step": (4, 4), "out": (4, 2)}), (5,), [(4, 1)]),
    "lstm stack": (from_flax(LSTMs, state="frozen"), tokens, [(3, 1), (4, 1)]),
    "residual": (from_flax(Residual, state="frozen"), image, [(4, 1), (4, 1), (6, 1)]),
    "encoder": (from_flax(Encoder), tokens, [(2, 1), (3, 2), (3, 2), (6, 1), (7, 1)]),
    "elman": (recurrent_branch(5, 4, 2, bias=True), tokens, [(4, 1)]),
    "deep": (mlp_branch((5, 4, 6, 2), jnp.tanh, bias=True), (5,), [(4, 1), (6, 1)]),
}
"""Networks, the shape of an example, and what a person finds: (units, permutations of their own)."""


ORDERED = {
    "arange": lambda h: h * jnp.arange(4.0),
    "cumsum": jnp.cumsum,
    "fft": lambda h: jnp.fft.fft(h).real,
    "roll": lambda h: h * jnp.roll(h, 1),
    "sort": lambda h: jnp.sort(h),
    "reverse": lambda h: h * h[::-1],
    "argmax": lambda h: h * jnp.argmax(h),
    "strided": lambda h: h * jnp.repeat(h[::2], 2),
    "shifted": lambda h: h * jnp.concatenate([h[1:], h[:1]]),
    "padded": lambda h: h + jnp.pad(h, (1, 0))[:-1],
    "gathered": lambda h: h * h[np.array([1, 0, 3, 2])],
    "scattered": lambda h: h.at[1].multiply(2.0),
    "triangular": lambda h: jnp.tril(jnp.ones((4, 4))) @ h,
    "top": lambda h: h * lax.top_k(h, 4)[0],
    "scanned": lambda h: lax.scan(lambda c, t: (c * 0.5 + t, c), 0.0, h)[1],
    "convolved": lambda h: jnp.convolve(h, jnp.array([1.0, 2.0, 3.0]), "same"),
    "updated": lambda h: lax.dynamic_update_slice(h, h[:2] * 2, (1,)),
    "masked": lambda h: jnp.where(jnp.arange(4) < 2, h, 0.5 * h),
    "window": lambda h: lax.reduce_window(h, 0.0, lax.add, (2,), (1,), "SAME"),
    "determinant": lambda h: h * jnp.linalg.det(h.reshape(2, 2)),
    "kronecker": lambda h: jnp.kron(h[:2], h[2:]),
}
"""Functions of four hidden units that may not all change places."""


def examples(shape, seed, count=4):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 11, (count, 6)) if shape is None else rng.normal(size=(count, *shape)).astype("f4")


def traced(network, shape, seed):
    """A network of one example, parameters, examples, and its symmetries."""
    params, x = network.init(jax.random.key(seed)), examples(shape, seed)
    one = one_example(network, params, jax.ShapeDtypeStruct(x.shape[1:], x.dtype))
    return one, params, x, find(Branch(one, params, x, seed), seed=seed)


@pytest.mark.parametrize("name", FOUND)
def test_units_are_found_outputs_stay_and_copies_come_back_bit_for_bit(name, seed):
    network, shape, wanted = FOUND[name]
    one, params, x, symmetries = traced(network, shape, seed)
    blocks = symmetries.layout.explode(params)
    assert sorted((s.size, s.slices(blocks)) for s in symmetries.found if s.size > 1) == wanted
    assert not symmetries.dropped
    assert not symmetries.unknown
    for leaf, again in zip(jax.tree.leaves(params), jax.tree.leaves(symmetries.layout.assemble(blocks)), strict=True):
        np.testing.assert_array_equal(leaf, again)
    # Biases that start at zero, and gains at one, would leave units without a name.
    rng = np.random.default_rng(seed)
    params = jax.tree.map(lambda t: np.asarray(t) + rng.normal(size=t.shape).astype("f4") * 0.1, params)
    blocks = [block[None] for block in symmetries.layout.explode(params)]
    outputs = jax.jit(jax.vmap(one, (None, 0)))
    before = outputs(params, x)
    for k in range(3):
        orders = [generators(rng, 1, s.slices(blocks, 1), s.size)[0] for s in symmetries.found]
        moved = matching.apply(symmetries.found, blocks, np.arange(1), orders)
        copy = symmetries.layout.assemble([block[0] for block in moved])
        assert any(np.any(b != m) for b, m in zip(blocks, moved, strict=True))
        np.testing.assert_allclose(outputs(copy, x), before, atol=1e-5 * float(jnp.abs(before).max()))
        back = matching.apply(symmetries.found, moved, *matching.match(symmetries.found, blocks, moved))
        for again, block in zip(back, blocks, strict=True):
            np.testing.assert_array_equal(again, block, f"copy {k}")


@pytest.mark.parametrize("name", ORDERED)
def test_units_whose_order_matters_are_left_alone(name, seed):
    activation = ORDERED[name]
    network = made(lambda w, x: activation(jnp.tanh(x.reshape(5) @ w["a"])) @ w["b"], a=(5, 4), b=(4, 3))
    assert not [s for s in traced(network, (5,), seed)[3].found if s.size == 4]


def test_a_false_rule_is_caught_by_numbers(seed, monkeypatch):
    """With a rule that takes a cumulative sum for an elementwise function, the group is found and dropped."""
    from landscape.symmetry import rules, trace

    monkeypatch.setattr(trace, "rule_of", lambda name: rules.rule_of("sin" if name == "cumsum" else name))
    network = made(lambda w, x: jnp.cumsum(jnp.tanh(x.reshape(5) @ w["a"])) @ w["b"], a=(5, 4), b=(4, 3))
    _, _, _, symmetries = traced(network, (5,), seed)
    assert not symmetries.found
    assert [s.size for s in symmetries.dropped] == [4]


def test_what_pins_is_named(seed):
    network = made(lambda w, x: jnp.fft.fft(jnp.tanh(x.reshape(5) @ w["a"])).real @ w["b"], a=(5, 4), b=(4, 3))
    assert traced(network, (5,), seed)[3].unknown == {"fft": 1}


def test_what_is_read_for_its_shape_alone_ties_nothing(seed):
    """As masks are made from the first feature of every token."""

    def apply(w, x):
        h = jnp.tanh(x.reshape(5) @ w["a"])
        return (h * jnp.ones_like(jnp.sort(h)[:1])) @ w["b"]

    assert [s.size for s in traced(made(apply, a=(5, 4), b=(4, 3)), (5,), seed)[3].found] == [4]


def test_half_precision_and_fixed_types(seed):
    """Programs that round to bfloat16, or that refuse float64, are verified in their own types."""

    def half(w, x):
        return (RELU(x.astype(jnp.bfloat16) @ w["a"].astype(jnp.bfloat16)) @ w["b"].astype(jnp.bfloat16)).astype("f4")

    def fixed(w, x):
        start = jnp.zeros(4, jnp.float32)
        return lax.scan(lambda h, t: (jnp.tanh(h + t @ w["a"]), None), start, x[None])[0] @ w["b"]

    for apply in (half, fixed):
        found = traced(made(apply, a=(5, 4), b=(4, 3)), (5,), seed)[3]
        assert [s.size for s in found.found] == [4]


def test_branches_under_vmap_have_units_of_their_own(seed):
    inner = mlp_branch((5, 4, 3, 2))

    def init(key):
        return jax.vmap(inner.init)(jax.random.split(key, 6))

    network = Network(init, lambda w, x: jax.vmap(inner.apply, (0, None))(w, x).sum(0))
    found = traced(network, (5,), seed)[3].found
    assert [(s.size, bool(s.within), s.outer) for s in found] == [(6, False, -1), (4, True, 0), (3, True, 0)]
