"""Multi-branch networks against a loop over branches in NumPy; modules with state are refused with advice."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import seeds
from flax import nnx

import landscape as ls
from landscape import networks
from landscape.networks import MultiBranch, Network, one_example
from landscape.problem import refuse_mixing


def batch(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.normal(size=shape).astype("f4")


def key(rng: np.random.Generator) -> jax.Array:
    return jax.random.key(int(rng.integers(10**6)))


@pytest.mark.parametrize("average", [False, True])
def test_the_mean_and_the_sum_over_branches_in_any_order_and_chunk(average: bool) -> None:
    rng = seeds.generator()
    branch = networks.relu_branch(5, 3, 2, bias=True)
    chunked = [MultiBranch(branch, 7, average, chunk) for chunk in (None, 1, 3, 7, 20)]
    w, x = jax.jit(chunked[0].init)(key(rng)), batch(rng, 4, 5)
    expected = oracles.network([(oracles.mlp(), w)], x, average)
    order = rng.permutation(7)

    @jax.jit
    def ways(w: tuple) -> list[jax.Array]:
        permuted = jax.tree.map(lambda t: t[order], w)
        return [n.apply(v, x) for n in chunked for v in (w, permuted)]

    for found in ways(w):
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-6)


def test_different_branches_side_by_side() -> None:
    rng = seeds.generator()
    kinds = [networks.relu_branch(6, 2), networks.recurrent_branch(3, 4), networks.relu_branch(6, 3, bias=True)]
    kinds[1] = Network(kinds[1].init, lambda w, x, f=kinds[1].apply: f(w, x.reshape(2, 3)))
    network = MultiBranch(kinds, [2, 3, 1])
    w, x = jax.jit(network.init)(key(rng)), batch(rng, 4, 6)
    forwards = (oracles.mlp(), lambda w, x: oracles.elman(w, x.reshape(-1, 2, 3)), oracles.mlp())
    expected = oracles.network(list(zip(forwards, w, strict=True)), x, average=True)
    np.testing.assert_allclose(jax.jit(network.apply)(w, x), expected, rtol=2e-5, atol=1e-6)
    assert network.total == 6
    assert repr(network) == "MultiBranch(2 + 3 + 1 branches, mean)"


def test_branches_start_independently_and_within_their_bounds() -> None:
    network = MultiBranch(networks.relu_branch(16, 4, 2, bias=True, summed_over=50), 50)
    first, last = jax.jit(network.init)(key(seeds.generator()))
    assert first["kernel"].shape == (50, 16, 4)
    assert last["bias"].shape == (50, 2)
    for layer, fan_in in ((first, 16), (last, 4 * 50)):
        for values in layer.values():
            assert float(jnp.abs(values).max()) <= 1 / np.sqrt(fan_in)
        assert float(jnp.abs(layer["kernel"]).max()) > 0.9 / np.sqrt(fan_in)
        rows = np.asarray(layer["kernel"]).reshape(50, -1)
        assert len(np.unique(rows, axis=0)) == 50


class One(nnx.Module):
    """For a batch, as flax's layers are, or for one example only."""

    def __init__(self, rngs: nnx.Rngs, alone: bool):
        self.first, self.out = nnx.Linear(4, 3, rngs=rngs), nnx.Linear(6, 2, rngs=rngs)
        self.alone = alone

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.relu(self.first(x.reshape(2, 4) if self.alone else x.reshape(-1, 2, 4)))
        return self.out(x.reshape(6) if self.alone else x.reshape(-1, 6))


@pytest.mark.parametrize("alone", [False, True])
def test_modules_for_one_example_and_for_a_batch(alone: bool) -> None:
    rng = seeds.generator()
    network = MultiBranch(ls.from_flax(lambda rngs: One(rngs, alone)), 3)
    w, x = jax.jit(network.init)(key(rng)), batch(rng, 5, 8)

    def forward(w: dict, x: np.ndarray) -> np.ndarray:
        hidden = np.maximum(oracles.affine(w["first"], x.reshape(-1, 2, 4)), 0)
        return oracles.affine(w["out"], hidden.reshape(-1, 6))

    expected = oracles.network([(forward, w)], x, average=True)
    np.testing.assert_allclose(jax.jit(network.apply)(w, x), expected, rtol=2e-5, atol=1e-6)


def test_work_along_the_first_axis_of_one_example_is_refused_or_mapped() -> None:
    rng = seeds.generator()
    w, x = (jnp.asarray(rng.normal(size=size), jnp.float32) for size in ((4, 3), (5, 4)))
    network = Network(lambda key: jnp.zeros((4, 3)), lambda w, x: jax.nn.softmax(x @ w, axis=0))
    with pytest.raises(ValueError, match=r"depend on the other examples(.|\n)*jax.vmap"):
        refuse_mixing(MultiBranch(network, 1), w[None], x)
    mapped = MultiBranch(network._replace(apply=jax.vmap(network.apply, (None, 0))), 1)
    refuse_mixing(mapped, w[None], x)
    scores = np.exp(np.asarray(x, float) @ np.asarray(w, float))
    np.testing.assert_allclose(mapped.apply(w[None], x), scores / scores.sum(1, keepdims=True), rtol=1e-5)


def test_outputs_that_are_no_vector_are_refused() -> None:
    network = Network(lambda key: {"w": jnp.zeros(())}, lambda w, x: w["w"] * jnp.stack([x, x]))
    with pytest.raises(ValueError, match=r"one vector of outputs each.*\(2, 3\)"):
        one_example(network, {"w": jnp.zeros(())}, jnp.zeros(3))


class Normalised(nnx.Module):
    """BatchNorm, and dropout where asked for."""

    def __init__(self, rngs: nnx.Rngs, dropout: bool = False):
        self.linear, self.norm = nnx.Linear(4, 2, rngs=rngs), nnx.BatchNorm(2, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs) if dropout else None

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.norm(self.linear(x))
        return self.dropout(x) if self.dropout else x


def test_state_besides_parameters_is_refused_with_advice_or_frozen() -> None:
    with pytest.raises(ValueError, match=r"parameters only.*BatchStat(.|\n)*frozen"):
        ls.from_flax(Normalised)
    with pytest.raises(ValueError, match="this one also has BatchStat"):
        ls.from_flax(lambda rngs: Normalised(rngs, dropout=True))
    with pytest.raises(ValueError, match="got 'moving'"):
        ls.from_flax(Normalised, state="moving")
    rng = seeds.generator()
    frozen = ls.from_flax(lambda rngs: Normalised(rngs, dropout=True), state="frozen")
    w, x = frozen.init(key(rng)), batch(rng, 3, 4)
    once, twice = (np.asarray(frozen.apply(w, x)) for _ in range(2))
    assert (once == twice).all()
    expected = oracles.affine(oracles.float64(w["linear"]), x) / np.sqrt(1 + 1e-5)
    np.testing.assert_allclose(once, expected, rtol=2e-5, atol=1e-6)


class LinenNormalised(nn.Module):
    """BatchNorm with its running statistics."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.BatchNorm(use_running_average=True)(nn.Dense(2)(x))


def test_linen_modules_with_statistics() -> None:
    rng = seeds.generator()
    x = batch(rng, 3, 4)
    with pytest.raises(ValueError, match="batch_stats"):
        ls.from_linen(LinenNormalised(), x)
    given = {"batch_stats": {"BatchNorm_0": {"mean": jnp.array([1.0, -2.0]), "var": jnp.array([4.0, 0.25])}}}
    frozen = networks.from_linen(LinenNormalised(), x, state="frozen", values=given)
    w = frozen.init(key(rng))
    centred = oracles.affine(oracles.float64(w["Dense_0"]), x) - np.array([1, -2])
    np.testing.assert_allclose(frozen.apply(w, x), centred / np.sqrt([4 + 1e-5, 0.25 + 1e-5]), rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda unit: MultiBranch(unit, 0), "at least 1"),
        (lambda unit: MultiBranch(unit, -3), "at least 1"),
        (lambda unit: MultiBranch([unit, unit], [2, 0]), "at least 1"),
        (lambda unit: MultiBranch([], []), "at least 1"),
        (lambda unit: MultiBranch([unit, unit], [2]), "2 kinds .* 1 counts"),
        (lambda unit: MultiBranch(unit, 3, branch_chunk=0), "branch_chunk must be at least 1"),
        (lambda unit: networks.mlp_branch((3,)), "widths must be"),
        (lambda unit: networks.mlp_branch((3, 0, 1)), "widths must be"),
    ],
)
def test_wrong_sizes_are_refused(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(networks.relu_branch(3))


def test_a_network_is_one_constant_of_a_compiled_program() -> None:
    branch, traced = networks.relu_branch(3), []

    @partial(jax.jit, static_argnums=0)
    def outputs(network: MultiBranch, w: tuple) -> jax.Array:
        traced.append(network)
        return network.apply(w, jnp.ones((2, 3)))

    for counts in ([4], (4,), [4], [5]):
        network = MultiBranch([branch], counts)
        outputs(network, network.init(jax.random.key(0)))
    assert len(traced) == 2
