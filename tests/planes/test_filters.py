"""Filters by the axes that a trace shows: norms of the weights into every output unit, whatever the layout."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import seeds

import landscape as ls

pytestmark = pytest.mark.slow

D, H, C, T, V = 6, 4, 3, 5, 7
UNCLEAR = "output units of"


@pytest.fixture(autouse=True)
def numpy_rules():
    """Networks of other people, which let a bias grow axes."""
    with jax.numpy_rank_promotion("allow"):
        yield


class Convolutional(nn.Module):
    """Convolutions of every kind in flax's layout, a dense layer, a norm."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(nn.Conv(4, (3, 3), name="plain")(x))
        x = nn.Conv(8, (3, 2), feature_group_count=4, name="depthwise")(x)
        x = nn.ConvTranspose(5, (2, 2), name="transposed")(nn.GroupNorm(2, name="norm")(x))
        return nn.Dense(C, name="dense")(x.mean((1, 2)))


def normal(shapes):
    rng = seeds.generator()
    return {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}


def attention(w, x):  # [N, T, D]
    q, k = (jnp.einsum("ntd,dhk->nthk", x, w[name]) for name in ("q", "k"))
    a = jax.nn.softmax(jnp.einsum("nthk,nshk->nhts", q, k))
    v = jnp.einsum("ntd,hkd->nthk", x, w["v"])  # PyTorch's order
    return jnp.einsum("nhts,nshk,hkc->nc", a, v, w["o"])


def image(w, x):  # NCHW, kernels OIHW
    f = jax.lax.conv_general_dilated(x, w["oihw"], (1, 1), "SAME")
    return jnp.tanh(f + w["shift"][None, :, None, None]).mean((2, 3)) @ w["rows"].T


def grouped(w, x):
    f = jax.lax.conv_general_dilated(x, w["oihw"], (1, 1), "SAME", feature_group_count=2)
    return (f * w["gain"]).mean((2, 3))


def heads(w, x):  # a head of its own for each part of x: the products' common axis counts units as well
    return jnp.einsum("nhd,hdk->nhk", x.reshape(-1, 2, 3), w["each"]).reshape(-1, 2 * C)


def stack_of_layers(w, x):
    return jax.lax.scan(lambda f, layer: (jnp.tanh(f @ layer.T), None), x, w["layers"])[0]


def first_of_many(w, x):
    return jnp.tanh(w["layers"][0] @ x.T).T @ w["layers"][1].T


def normalised(w, x):  # weight normalisation: a gain and the directions of the rows
    v = w["v"] / jnp.linalg.norm(w["v"], axis=1, keepdims=True)
    return x @ (w["gain"][:, None] * v).T


def split(w, x):  # one array for three projections, [3 H, D]
    q, k, v = jnp.split(w["qkv"], 3)
    return jnp.tanh(x @ q.T) * (x @ k.T) + x @ v.T


def masked(w, x):
    return jnp.where(jnp.asarray(np.tri(D, H)) > 0, w["k"], 0).astype(jnp.float32).T @ x if x.ndim == 1 else jnp.dot(
        x, jnp.where(jnp.asarray(np.tri(D, H)) > 0, w["k"], 0))  # fmt: skip


def floats(*shape):
    return seeds.generator().normal(size=(9, *shape)).astype("f4")


def words(*shape):
    return seeds.generator().integers(0, V, (9, *shape))


CASES = {  # apply, shapes, x, axes that count output units by name; None for directions that are 0
    "dense": (lambda w, x: x @ w["k"] + w["b"], {"k": (D, C), "b": (C,)}, floats(D), {"k": (1,), "b": None}),
    "transposed": (lambda w, x: x @ w["k"].T + w["b"], {"k": (C, D), "b": (C,)}, floats(D), {"k": (0,), "b": None}),
    "contracted": (
        lambda w, x: jax.lax.dot_general(x, w["k"], (((1,), (1,)), ((), ()))), {"k": (C, D)}, floats(D), {"k": (0,)},
    ),
    "attention": (
        attention, {"q": (D, 2, H), "k": (D, 2, H), "v": (2, H, D), "o": (2, H, C)}, floats(T, D),
        {"q": (1, 2), "k": (1, 2), "v": (0, 1), "o": (2,)},
    ),
    "images": (
        image, {"oihw": (4, 3, 3, 2), "shift": (4,), "rows": (C, 4)}, floats(3, 5, 5),
        {"oihw": (0,), "shift": None, "rows": (0,)},
    ),
    "groups": (grouped, {"oihw": (4, 3, 3, 3), "gain": (1, 4, 1, 1)}, floats(6, 5, 5), {"oihw": (0,), "gain": None}),
    "heads": (heads, {"each": (2, 3, C)}, floats(D), {"each": (0, 2)}),
    "scan": (stack_of_layers, {"layers": (3, D, D)}, floats(D), {"layers": (0, 1)}),
    "indexed": (first_of_many, {"layers": (2, D, D)}, floats(D), {"layers": (0, 1)}),
    "table": (lambda w, x: w["e"][x].mean(1) @ w["o"], {"e": (V, H), "o": (H, C)}, words(T), {"e": (1,), "o": (1,)}),
    "tied": (
        lambda w, x: jnp.tanh(w["e"][x].mean(1)) @ w["e"].T, {"e": (V, H)}, words(T), {"e": (0,)},
    ),
    "weight norm": (normalised, {"v": (C, D), "gain": (C,)}, floats(D), {"v": (0,), "gain": None}),
    "a column of gains": (
        lambda w, x: x @ (w["g"] * w["v"]).T, {"v": (C, D), "g": (C, 1)}, floats(D), {"v": (0,), "g": None},
    ),
    "one input": (lambda w, x: x @ w["k"].T, {"k": (C, 1)}, floats(1), {"k": (0,)}),
    "one array for three": (split, {"qkv": (3 * C, D)}, floats(D), {"qkv": (0,)}),
    "masked": (masked, {"k": (D, H)}, floats(D), {"k": (1,)}),
    "reshaped": (lambda w, x: x @ w["k"].reshape(D, -1), {"k": (D, 2, C)}, floats(D), {"k": (1, 2)}),
    "a vector that is a weight": (lambda w, x: x @ w["k"], {"k": (D,)}, floats(D), {"k": ()}),
    "vectors alone": (lambda w, x: x * w["a"] + w["b"], {"a": (D,), "b": (D,)}, floats(D), {"a": (), "b": ()}),
}  # fmt: skip


def norms(x, units):
    """Norms over all axes but those that count units, by NumPy."""
    x = np.asarray(x, np.float64)
    return np.sqrt((x**2).sum(tuple(d for d in range(x.ndim) if d not in units)))


def compare(u, w, wanted):
    for name, units in wanted.items():
        if units is None:
            assert not np.any(u[name])
        else:
            np.testing.assert_allclose(norms(u[name], units), norms(w[name], units), rtol=1e-5)
            assert not np.allclose(u[name], w[name])


@pytest.mark.parametrize("name", CASES)
def test_filters_of_every_layout(name: str) -> None:
    apply, shapes, x, wanted = CASES[name]
    w, key = normal(shapes), jax.random.key(seeds.draw())
    network = ls.Network(lambda key: w, apply)
    y = np.zeros(len(x), int)
    problem = ls.Problem(ls.Dataset(x, y), network, lambda f, y: (f.reshape(len(f), -1) ** 2).sum(1))
    lifted = jax.tree.map(lambda t: t[None], w)
    u = ls.planes.random_filter_normalized(key, lifted, network=problem).u
    compare(jax.tree.map(lambda t: t[0], u), w, wanted)
    compare(ls.planes.random_filter_normalized(key, w, network=lambda w: (apply(w, x) ** 2).mean()).u, w, wanted)


def test_every_branch_by_itself_in_rows_and_as_a_function() -> None:
    network = ls.MultiBranch(ls.Network(lambda k: normal({"k": (C, D), "b": (C,)}), lambda w, x: x @ w["k"].T), 2)
    w = {"k": jnp.stack([normal({"k": (C, D)})["k"] * s for s in (1, 9)]), "b": jnp.ones((2, C))}
    problem = ls.Problem(ls.Dataset(floats(D), np.zeros(9)), network, lambda f, y: (f**2).sum(1))
    key = jax.random.key(seeds.draw())
    for given in ({"network": problem}, {"network": lambda w: problem.risk(w), "branch_axis": True}):
        u = ls.planes.random_filter_normalized(key, w, **given).u
        np.testing.assert_allclose(norms(u["k"], (0, 1)), norms(w["k"], (0, 1)), rtol=1e-5)
        assert not np.any(u["b"])


def test_flax_modules_and_the_option_that_moves_vectors() -> None:
    x = floats(6, 6, 2)
    network = ls.from_linen(Convolutional(), x[:1])
    w = network.init(jax.random.key(seeds.draw()))
    w = jax.tree.map(lambda t: t + 0.1, w)
    key = jax.random.key(seeds.draw())
    for vectors in (False, True):
        u = ls.planes.random_filter_normalized(key, w, network=network, example=x[0], vectors=vectors).u
        for name, layer in w.items():
            wanted = {k: ((t.ndim - 1,) if t.ndim > 1 else () if vectors else None) for k, t in layer.items()}
            compare(u[name], layer, wanted)


def test_what_the_trace_does_not_show_is_said() -> None:
    w = normal({"p": (T, D), "k": (C, D)})
    network = ls.Network(lambda key: w, lambda w, x: (x + w["p"]).mean(1) @ w["k"].T)
    with pytest.warns(UserWarning, match=r"\['p'\] are: their last axis"):
        u = ls.planes.random_filter_normalized(jax.random.key(0), w, network=network, example=floats(T, D)[0]).u
    compare(u, w, {"p": (1,), "k": (0,)})


def test_pytorch_has_its_filters_first() -> None:
    torch = pytest.importorskip("torch")
    layers = (torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU(), torch.nn.ConvTranspose2d(4, 2, 2),
              torch.nn.Flatten(), torch.nn.Linear(50, C))  # fmt: skip
    network = ls.from_torch(torch.nn.Sequential(*layers), floats(3, 6, 6)[0])
    w = network.init(jax.random.key(0))
    u = ls.planes.random_filter_normalized(jax.random.key(1), w, network=network).u
    for name, axis in (("0", 0), ("3", 1), ("5", 0)):
        compare(u[name], w[name], {"weight": (axis,), "bias": None})
    assert not np.any(u["1"]["weight"])
