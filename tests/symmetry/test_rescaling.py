"""Rescaling: the exponents known for common activations, none for others, and the least norm at the same outputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from landscape.networks import Network, mlp_branch, one_example
from landscape.symmetry import rescaling, symmetries
from landscape.symmetry.probes import Branch

pytestmark = pytest.mark.slow


def swiglu(w, x):
    return ((x @ w["gate"]) * jax.nn.sigmoid(x @ w["gate"]) * (x @ w["value"])) @ w["out"]


def attention(w, x):
    x = x.reshape(4, 5)
    a = jax.nn.softmax((x @ w["q"]) @ (x @ w["k"]).T, -1)
    return (a @ (x @ w["v"]) @ w["o"]).sum(0)


def made(apply, **shapes):
    def init(key):
        keys = jax.random.split(key, len(shapes))
        return {k: jax.random.normal(key, s) for (k, s), key in zip(shapes.items(), keys, strict=True)}

    return Network(init, apply)


CASES = {
    "relu with bias": (mlp_branch((5, 4, 2), bias=True), (5,), [(1, 1, -1)]),
    "relu twice": (mlp_branch((5, 4, 3, 2)), (5,), [(1, -1), (1, -1)]),
    "leaky relu": (mlp_branch((5, 4, 2), jax.nn.leaky_relu), (5,), [(1, -1)]),
    "squared relu": (mlp_branch((5, 4, 2), lambda z: jax.nn.relu(z) ** 2), (5,), [(1, -2)]),
    "tanh": (mlp_branch((5, 4, 2), jnp.tanh), (5,), []),
    "relu6": (mlp_branch((5, 4, 2), jax.nn.relu6), (5,), []),
    "almost relu": (mlp_branch((5, 4, 2), lambda z: jax.nn.softplus(300 * z) / 300), (5,), []),
    "swiglu": (made(swiglu, gate=(5, 4), value=(5, 4), out=(4, 2)), (5,), [(0, -1, 1)]),
    "attention": (made(attention, q=(5, 3), k=(5, 3), v=(5, 3), o=(3, 2)), (4, 5), [(1, -1), (1, -1)]),
}


def normalised(exponents):
    """Exponents up to a common factor."""
    e = np.array(exponents)
    return tuple(sorted((e / np.abs(e[np.nonzero(e)]).min()).tolist()))


@pytest.mark.parametrize("name", CASES)
def test_exponents_are_known_and_balancing_reaches_the_least_norm(name, seed):
    network, shape, wanted = CASES[name]
    params, x = network.init(jax.random.key(seed)), np.random.default_rng(seed).normal(size=(6, *shape)).astype("f4")
    one = one_example(network, params, jax.ShapeDtypeStruct(shape, x.dtype))
    branch = Branch(one, params, x)
    found = symmetries.find(branch)
    several = rescaling.find(branch, found)
    up_to_sign = [{normalised(r.exponents), normalised([-e for e in r.exponents])} for r in several]
    assert len(up_to_sign) == len(wanted)
    assert all(any(normalised(e) in both for both in up_to_sign) for e in wanted)
    rng = np.random.default_rng(seed)
    blocks = [np.asarray(block, float)[None] for block in found.layout.explode(params)]
    balanced, logs = rescaling.balance(blocks, several)
    for r, log in zip(several, logs, strict=True):
        back = r.applied(balanced, 0 * log)
        squares = r.sums([block**2 for block in back])
        weighed = np.tensordot(r.exponents, squares, 1)  # the derivative of the norm by log c
        np.testing.assert_allclose(weighed, 0, atol=1e-6 * squares.max())
        start = r.applied(blocks, rng.normal(size=log.shape))
    if several:
        again = rescaling.balance(start, several)[0]
        for a, b in zip(again, balanced, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5)
    outputs = jax.vmap(one, (None, 0))
    after = outputs(found.layout.assemble([block[0].astype("f4") for block in balanced]), x)
    before = outputs(params, x)
    np.testing.assert_allclose(after, before, atol=1e-4 * float(jnp.abs(before).max()))
