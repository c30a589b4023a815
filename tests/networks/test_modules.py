"""Other people's modules against their own forward passes; running statistics frozen and recomputed."""

import jax
import jax.numpy as jnp
import numpy as np
import own_module
import pytest
import seeds
from flax import nnx

import landscape as ls
from landscape.networks import modules

X, Y = own_module.data()
DATA, LOSS = ls.Dataset(X, Y), ls.losses.logistic


def random_like(params: dict, size: float = 0.3) -> dict:
    key = jax.random.key(int(seeds.generator().integers(2**31)))
    return jax.tree.map(lambda x: x + size * jax.random.normal(key, x.shape), params)


@pytest.mark.parametrize("name", ["tree", "tree_by_keyword", "module"])
def test_modules_that_are_pytrees(name: str) -> None:
    network = modules.read(getattr(own_module, name), X[:1]).network
    params = network.init(jax.random.key(0))
    assert {"first", "rest"} == set(params)
    params = random_like(params)
    mine = own_module.Tree(params["first"], params["rest"], jnp.tanh)
    wanted = jax.vmap(mine)(jnp.asarray(X))
    for several in (1, 3):
        stacked = jax.tree.map(lambda x, n=several: jnp.stack([x] * n), params)
        found = ls.MultiBranch(network, several).apply(stacked, jnp.asarray(X))
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    again = network.init(jax.random.key(1))
    assert (name == "module") == bool((again["first"] == network.init(jax.random.key(0))["first"]).all())


def test_a_module_itself_may_be_the_parameters() -> None:
    found = [own_module.tree(key) for key in jax.random.split(jax.random.key(3), 3)]
    kept = [np.array(w.first) for w in found]

    def risk(module: own_module.Tree) -> dict[str, jax.Array]:
        outputs = jax.vmap(module)(jnp.asarray(X))
        return {"accuracy": (outputs.argmax(-1) == Y).mean(), "risk": LOSS(outputs, jnp.asarray(Y)).mean()}

    plane = ls.planes.through_solutions(*found)
    surface = ls.evaluate(risk, plane, ls.grid_around(plane, (3, 4)), progress=False)
    for i, j in ((0, 0), (2, 1), (1, 3)):
        direct = risk(plane.at((surface.grid.a[i], surface.grid.b[j])))
        assert surface.risk[i, j] == pytest.approx(float(direct["risk"]), rel=1e-5)
        assert surface.layers["accuracy"][i, j] == pytest.approx(float(direct["accuracy"]), abs=1e-6)
    for w, before in zip(found, kept, strict=True):  # nobody's parameters are touched
        np.testing.assert_array_equal(w.first, before)


def test_nothing_to_vary_is_refused() -> None:
    with pytest.raises(ValueError, match="no arrays of floating-point"):
        modules.from_pytree(lambda key: own_module.Tree(jnp.arange(3), {}, jnp.tanh))


def normed(w: dict, mean: object, variance: object) -> np.ndarray:
    """`own_module.Normed` written out."""
    hidden = X @ np.asarray(w["hidden"]["kernel"]) + np.asarray(w["hidden"]["bias"])[None]
    mean, variance = (hidden.mean(0)[None], hidden.var(0)[None]) if mean is None else (mean, variance)
    h = (hidden - mean) / np.sqrt(variance + 1e-5) * np.asarray(w["norm"]["scale"])[None]
    h = np.tanh(h + np.asarray(w["norm"]["bias"])[None])
    return h @ np.asarray(w["out"]["kernel"]) + np.asarray(w["out"]["bias"])[None]


def mean_loss(outputs: np.ndarray) -> float:
    return float(LOSS(jnp.asarray(outputs), jnp.asarray(Y)).mean())


def test_statistics_are_frozen_or_recomputed() -> None:
    frozen = ls.from_flax(own_module.Normed, state="frozen")
    w = random_like(frozen.init(jax.random.key(0)))
    kept = ls.Problem(DATA, ls.MultiBranch(frozen, 1), LOSS).risk(jax.tree.map(lambda t: t[None], w))
    assert float(kept) == pytest.approx(mean_loss(normed(w, 0, 1)), rel=1e-5)
    held = {"norm": {"mean": jnp.full(5, 0.5), "var": jnp.full(5, 2.0)}}
    assert jax.tree.structure(modules.statistics(own_module.Normed, X[:1])) == jax.tree.structure(held)
    restored = modules.with_statistics(own_module.Normed, X[:1], held)
    np.testing.assert_allclose(restored.apply(w, jnp.asarray(X)), normed(w, 0.5, 2.0), rtol=1e-4, atol=1e-5)
    half = ls.Dataset(X[:20], Y[:20])
    risk = modules.recomputed_risk(
        own_module.Normed, DATA, LOSS, quantities={"same": (DATA, LOSS), "half": (half, LOSS)}
    )
    found, outputs = jax.jit(risk)(w), normed(w, None, None)
    assert float(found["risk"]) == pytest.approx(mean_loss(outputs), rel=1e-4)
    assert float(found["same"]) == float(found["risk"])
    wanted = LOSS(jnp.asarray(outputs[:20]), jnp.asarray(Y[:20])).mean()  # under the statistics of all the data
    assert float(found["half"]) == pytest.approx(float(wanted), rel=1e-4)


@pytest.mark.parametrize("average", [True, False])
def test_every_branch_has_its_own_statistics(average: bool) -> None:
    frozen = ls.from_flax(own_module.Normed, state="frozen")
    branches = [random_like(frozen.init(jax.random.key(k))) for k in range(3)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *branches)
    found = modules.recomputed_risk(own_module.Normed, DATA, LOSS, num_branches=3, average=average)(stacked)["risk"]
    outputs = sum(normed(w, None, None) for w in branches) / (3 if average else 1)
    assert float(found) == pytest.approx(mean_loss(outputs), rel=1e-4)
    network = ls.MultiBranch(frozen, 3, average)
    outputs = sum(normed(w, 0, 1) for w in branches) / (3 if average else 1)
    assert float(ls.Problem(DATA, network, LOSS).risk(stacked)) == pytest.approx(mean_loss(outputs), rel=1e-4)


def test_linen_statistics() -> None:
    training, running = own_module.training, own_module.running
    w = ls.from_linen(running, jnp.asarray(X[:1]), state="frozen").init(jax.random.key(0))
    moved = {"Dense_1": {"kernel": 3 * w["Dense_1"]["kernel"], "bias": w["Dense_1"]["bias"] + 1}}  # the inner one
    risk = modules.recomputed_risk(training, DATA, LOSS)
    assert float(risk({**w, **moved})["risk"]) == pytest.approx(float(risk(w)["risk"]), rel=1e-3)
    held = modules.statistics(running, X[:1])
    shifted = modules.with_statistics(running, X[:1], jax.tree.map(lambda x: x + 1, held))
    plain = modules.frozen(running, X[:1])
    assert not np.allclose(shifted.apply(w, jnp.asarray(X)), plain.apply(w, jnp.asarray(X)))
    with pytest.raises(ValueError, match="batch_stats"):
        ls.from_linen(running, jnp.asarray(X[:1]))
    with pytest.raises(ValueError, match="use_running_average=False"):
        modules.recomputed_risk(running, DATA, LOSS)
    with pytest.raises(ValueError, match="take an nnx module"):
        modules.recomputed_risk(training, DATA, LOSS, quantities={"test": (ls.Dataset(X[:9], Y[:9]), LOSS)})


def test_dropout_is_off_where_state_is_frozen() -> None:
    network = ls.from_flax(lambda rngs: nnx.Sequential(nnx.Linear(4, 3, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)),
                           state="frozen")  # fmt: skip
    w = network.init(jax.random.key(0))
    kernel, bias = (next(x for x in jax.tree.leaves(w) if x.ndim == n) for n in (2, 1))
    np.testing.assert_allclose(network.apply(w, jnp.asarray(X)), X @ kernel + bias[None], rtol=1e-5, atol=1e-6)
