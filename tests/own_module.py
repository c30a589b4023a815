"""A user's module, named on the command line by the tests: networks of every kind, data, losses good and bad."""

import dataclasses
import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import seeds
from flax import nnx

import landscape as ls


class Small(nnx.Module):
    """Two layers of flax nnx."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.hidden, self.out = nnx.Linear(4, 5, rngs=rngs), nnx.Linear(5, 3, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.out(nnx.tanh(self.hidden(x)))


class Linear(nnx.Module):
    """Without hidden units."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.out = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.out(x)


class Normed(nnx.Module):
    """With running statistics."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.hidden, self.norm = nnx.Linear(4, 5, rngs=rngs), nnx.BatchNorm(5, rngs=rngs)
        self.out = nnx.Linear(5, 3, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.out(nnx.tanh(self.norm(self.hidden(x))))


class Linen(nn.Module):
    """Two layers of flax linen."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(3)(nn.tanh(nn.Dense(5)(x)))


class LinenNormed(nn.Module):
    """With running statistics; `running` says whether they are used."""

    running: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(3)(nn.BatchNorm(use_running_average=self.running)(nn.Dense(5)(x)))


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Tree:
    """In the manner of Equinox: arrays and static fields, called for one example."""

    first: jax.Array
    rest: dict[str, jax.Array]
    activation: Callable[[jax.Array], jax.Array] = dataclasses.field(metadata={"static": True})

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.activation(self.first @ x) @ self.rest["second"] + self.rest["bias"]


def tree(key: jax.Array) -> Tree:
    """A `Tree` with random arrays."""
    a, b, c = jax.random.split(key, 3)
    rest = {"second": jax.random.normal(b, (5, 3)), "bias": jax.random.normal(c, (3,))}
    return Tree(jax.random.normal(a, (5, 4)), rest, jnp.tanh)


def tree_by_keyword(*, key: jax.Array) -> Tree:
    """The same with its key by name."""
    return tree(key)


def factory(rngs: nnx.Rngs) -> Small:
    """A factory."""
    return Small(rngs)


@functools.cache
def many() -> ls.MultiBranch:
    """Four branches; the same object every time, so that it is compiled once for all tests."""
    return ls.MultiBranch(ls.from_flax(Small), 4)


linen, running, training = Linen(), LinenNormed(True), LinenNormed(False)
module = tree(jax.random.key(0))


def pure(params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    """A network by hand."""
    return jnp.tanh(x @ params["a"]) @ params["b"]


def risk(params: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """A function of the parameters; the first of its names is not the risk."""
    return {
        "a size": jnp.abs(params["b"]).sum(),
        "risk": (params["a"] ** 2).sum() + params["b"].sum() ** 2,
    }


def vector(params: dict[str, jax.Array]) -> jax.Array:
    """Not a scalar."""
    return params["a"].sum(0)


def data() -> tuple[np.ndarray, np.ndarray]:
    """Sixty examples of three classes."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(60, 4)).astype("f4"), rng.integers(0, 3, 60)


def loss(outputs: jax.Array, y: jax.Array) -> jax.Array:
    """The logistic loss."""
    return ls.losses.logistic(outputs, y)


def mean(outputs: jax.Array, y: jax.Array) -> jax.Array:
    """Not one value an example."""
    return loss(outputs, y).mean()


def drawn_when_traced(outputs: jax.Array, y: jax.Array) -> jax.Array:
    """Other numbers whenever it is traced."""
    return loss(outputs, y) * seeds.generator().uniform(1, 2)


def drawn_when_run(outputs: jax.Array, y: jax.Array) -> jax.Array:
    """Other numbers whenever it is run."""
    drawn = jax.pure_callback(lambda: np.float32(seeds.generator().uniform(1, 2)), jax.ShapeDtypeStruct((), "f4"))
    return loss(outputs, y) * drawn


def wandering(params: dict[str, jax.Array]) -> jax.Array:
    """Other numbers whenever it is run."""
    drawn = jax.pure_callback(lambda: np.float32(seeds.generator().uniform(1, 2)), jax.ShapeDtypeStruct((), "f4"))
    return (params["a"] ** 2).sum() * drawn
