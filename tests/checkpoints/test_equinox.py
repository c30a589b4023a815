"""Equinox: `.eqx` in the module's own order, through a module, a Problem or the command line's network."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import own_module
import pytest
import stored

import landscape as ls
from landscape import checkpoints
from landscape.networks import modules


def kept(path: Path, leaves: list[Any], head: bytes = b"") -> None:
    """Arrays one after the other, as Equinox writes them."""
    with open(path, "wb") as file:
        file.write(head)
        for leaf in leaves:
            np.save(file, leaf)


def tree() -> own_module.Tree:
    """A module with random arrays, whose fields are not in the order of the alphabet."""
    return own_module.tree(key=jax.random.key(int(np.random.default_rng().integers(1000))))


def test_equinox_writes_what_is_read(tmp_path: Path) -> None:
    equinox = pytest.importorskip("equinox", reason="equinox is not installed")

    class Attention(equinox.Module):
        query: jax.Array
        key: jax.Array
        half: jax.Array
        layers: list
        drop: Any
        act: Any

        def __init__(self, key: jax.Array) -> None:
            self.query, self.key = jax.random.normal(key, (2, 4, 4))
            self.half = jnp.arange(4, dtype=jnp.bfloat16)
            self.layers = [equinox.nn.Linear(4, 4, key=k) for k in jax.random.split(key, 12)]
            self.drop, self.act = equinox.nn.Dropout(0.5, inference=True), jax.nn.relu

        def __call__(self, x: jax.Array) -> jax.Array:
            x = self.drop(self.query @ self.act(self.key @ x) + self.half)
            for layer in self.layers:
                x = layer(x)
            return x

    module, start = Attention(jax.random.key(1)), Attention(jax.random.key(2))
    equinox.tree_serialise_leaves(tmp_path / "a.eqx", module)
    (found,) = checkpoints.load(tmp_path / "a.eqx", start)
    x = jnp.asarray(np.random.default_rng().normal(size=(5, 4)).astype("f4"))
    np.testing.assert_allclose(jax.vmap(found)(x), jax.vmap(module)(x), rtol=1e-6)
    network = modules.from_pytree(start)
    problem = ls.Problem(ls.Dataset(x, np.zeros(5, int)), network, ls.losses.logistic)
    (params,) = checkpoints.load(tmp_path / "a.eqx", problem)
    one = jax.tree.map(lambda w: w[0], params)
    np.testing.assert_allclose(jax.vmap(network.apply, (None, 0))(one, x), jax.vmap(module)(x), rtol=1e-6)
    with open(tmp_path / "b.eqx", "wb") as file:  # as Equinox's documentation keeps the hyperparameters
        file.write((json.dumps({"width": 4}) + "\n").encode())
        equinox.tree_serialise_leaves(file, module)
    stored.same(checkpoints.load(tmp_path / "b.eqx", problem)[0], params)


def test_the_order_is_the_modules(tmp_path: Path) -> None:
    module = tree()
    kept(tmp_path / "a.eqx", jax.tree.leaves(module))
    found = checkpoints.load(tmp_path / "a.eqx", tree())[0]
    jax.tree.map(np.testing.assert_array_equal, found, module)
    network = modules.from_pytree(own_module.tree)
    x, y = own_module.data()
    problem = ls.Problem(ls.Dataset(x, y), network, ls.losses.logistic)
    params = checkpoints.load(tmp_path / "a.eqx", problem)[0]
    np.testing.assert_array_equal(network.apply(jax.tree.map(lambda w: w[0], params), x[0]), module(x[0]))


def test_without_a_module_there_are_no_names(tmp_path: Path) -> None:
    kept(tmp_path / "a.eqx", [np.ones(3, "f4")])
    for like in (None, {"w": np.ones(3, "f4")}):
        stored.refused(tmp_path / "a.eqx", like, "the module")


def test_another_module_and_damage(tmp_path: Path) -> None:
    module = tree()
    leaves = jax.tree.leaves(module)
    path = tmp_path / "a.eqx"
    kept(path, leaves[:-1])
    stored.refused(path, module, f"holds {len(leaves) - 1} arrays", f"has {len(leaves)}")
    kept(path, [np.ones((2, 2), "f4"), *leaves[1:]])
    stored.refused(path, module, "[2, 2], wanted")
    kept(path, leaves)
    whole = path.read_bytes()
    for length in (0, 4, 20, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        stored.refused(path, module)
    kept(path, leaves, b"no json\n")
    stored.refused(path, module)
    with open(path, "wb") as file:
        np.save(file, np.array([{}], dtype=object), allow_pickle=True)
    stored.refused(path, module)
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (2**60,)})
    stored.refused(path, module)
