"""Random branches for tests of soundness: one formula, traced by JAX and computed by NumPy; compiled once a family.

A family is five activations and a number of parameters. Which activation, its constants, the data, h and τ are inputs
of the compiled functions, so that a new case compiles nothing.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from landscape.arrays.chunked import chunked_map
from landscape.duality.branches import Ball, Domain, Regulariser
from landscape.duality.certified.assumption import enclosed_margins
from landscape.duality.certified.branch_and_bound import Cells, Kernels, enclosed_regulariser, rescale
from landscape.duality.certified.cutting_planes import Convex
from landscape.duality.certified.intervals import enclose
from landscape.duality.certified.least_size import LeastSize, searched
from landscape.duality.risks import Sample, enclosed_loss, margin_loss

EXAMPLES, CHUNK = 4, 96
QUICK: dict[str, Any] = {"xla_backend_optimization_level": 1, "xla_llvm_disable_expensive_passes": True}
"""XLA's options for programs that run less long than they compile."""

Activation = Callable[[Any, Any, Any], Any]
"""σ(xp, z, s): xp is numpy or jax.numpy, s > 0 a shape."""


def guarded(xp: Any, z: Any, f: Callable[[Any], Any]) -> Any:
    """f(z) where z > 0 and 0 elsewhere; f is nan or infinite there."""
    return xp.where(z > 0, f(z), 0.0)


def square(z: Any) -> Any:
    return z * z


def cut(xp: Any, z: Any) -> Any:
    """max(z, 0) by a comparison."""
    return xp.where(z > 0, 1.0, 0.0) * z


def gelu(xp: Any, z: Any, s: Any) -> Any:
    return 0.5 * z * (1 + xp.tanh(0.7978845608028654 * (z + 0.044715 * z * z * z)))


GROUPS: tuple[dict[str, Activation], ...] = (
    {
        "relu": lambda xp, z, s: jax.nn.relu(z) if xp is jnp else np.maximum(z, 0),
        "leaky_relu": lambda xp, z, s: xp.where(z >= 0, z, 0.1 * z),
        "clip": lambda xp, z, s: xp.clip(z, -s, 0.7),
        "abs": lambda xp, z, s: xp.abs(z - s),
        "relu6": lambda xp, z, s: xp.minimum(xp.maximum(z, 0.0), s),
    },
    {
        "tanh": lambda xp, z, s: xp.tanh(z),
        "sigmoid": lambda xp, z, s: jax.nn.sigmoid(z) if xp is jnp else 1 / (1 + np.exp(-z)),
        "softplus": lambda xp, z, s: jax.nn.softplus(z) if xp is jnp else np.logaddexp(z, 0),
        "gelu": gelu,
        "sine": lambda xp, z, s: xp.sin(z * (1 + s)),
    },
    {
        "reciprocal": lambda xp, z, s: 1 / (s + z * z),
        "softsign": lambda xp, z, s: z / (s + xp.abs(z)),
        "log1p": lambda xp, z, s: xp.log1p(xp.abs(z) / s),
        "sqrt": lambda xp, z, s: xp.sqrt(s + z * z),
        "log": lambda xp, z, s: xp.log(z * z - 2 * z + 1.5 + s),
    },
    {
        "log spike": lambda xp, z, s: xp.maximum(-xp.log(90 * s * square(z - 0.5) + 0.1), 0.0),
        "division spike": lambda xp, z, s: cut(xp, 1 / (90 * s * square(z - s) + 0.1) - 0.5),
        "log where positive": lambda xp, z, s: xp.where(xp.log(z) > -s, xp.maximum(xp.log(z), -s) + s, 0.0),
        "root where positive": lambda xp, z, s: guarded(xp, z, xp.sqrt),
        "power": lambda xp, z, s: guarded(xp, z, lambda v: v**1.5) - guarded(xp, -z, lambda v: v**2.5),
    },
    {
        "elu": lambda xp, z, s: xp.where(z > 0, z, xp.expm1(xp.minimum(z, 0.0))),
        "bump": lambda xp, z, s: xp.exp(-z * z * (1 + s)),
        "three pieces": lambda xp, z, s: xp.where((z > -s) & ~(z >= s), z * z - s * s, 0.0),
        "triangle wave": lambda xp, z, s: xp.abs(z - 2 * xp.floor((z + 1) / 2)),
        "signed square": lambda xp, z, s: xp.sign(z) * xp.minimum(z * z, s),
    },
)
"""Continuous activations, finite everywhere; parts of some are nan or infinite where they are not selected."""


class Case(NamedTuple):
    """One random branch: its family, the constants, W, h, the data and τ."""

    group: int
    size: int
    name: str
    constants: dict[str, np.ndarray]
    domain: Domain
    tau: float

    @property
    def data(self) -> Any:
        """Its sample."""
        c = self.constants
        return Sample(c["x"], c["y"], c["weight"], None)


def preactivation(size: int, w: Any, x: Any, c: Any) -> tuple[Any, Any]:
    """(output weight, z) for w [..., p] and one input."""
    if size == 1:
        return 1.0, c["gain"] * (w[..., 0] * x + c["shift"])
    shift = w[..., 2] if size == 3 else c["shift"]
    return w[..., 0], c["gain"] * (w[..., 1] * x + shift)


def branch(group: int, size: int, c: Any, w: jax.Array, x: jax.Array) -> jax.Array:
    """f(w; x), traced: the sum of the family's activations, all but one times 0."""
    output, z = preactivation(size, w, x[0], c)
    values = [f(jnp, z, c["shape"]) for f in GROUPS[group].values()]
    return output * sum(c["which"][k] * value for k, value in enumerate(values))


def regulariser(c: Any, w: jax.Array) -> jax.Array:
    """h(w): a combination of four norms of w − at, with weights ≥ 0."""
    v = w - c["at"]
    norms = (jnp.sum(v**2), jnp.sqrt(jnp.sum(v**2)), jnp.sum(jnp.abs(v)), jnp.max(jnp.abs(v)))
    return sum(c["norm"][k] * norm for k, norm in enumerate(norms))


def outputs(case: Case, w: np.ndarray) -> np.ndarray:
    """f at points [C, p] and all examples, [C, N], by NumPy."""
    c = case.constants
    with np.errstate(all="ignore"):
        parts = [preactivation(case.size, w, x, c) for x in c["x"][:, 0]]
        return np.stack([a * GROUPS[case.group][case.name](np, z, c["shape"]) for a, z in parts], -1)


def loss(case: Case, w: np.ndarray) -> np.ndarray:
    """g at points [C, p], by NumPy."""
    c = case.constants
    return 1 - outputs(case, w) @ (c["weight"] * c["y"]) / case.tau


def size(case: Case, w: np.ndarray) -> np.ndarray:
    """h at points [C, p], by NumPy."""
    v, norm = w - case.constants["at"], case.constants["norm"]
    square, absolute = (v**2).sum(-1), np.abs(v)
    return norm[0] * square + norm[1] * np.sqrt(square) + norm[2] * absolute.sum(-1) + norm[3] * absolute.max(-1)


def draw(rng: np.random.Generator, group: int, size: int) -> Case:
    """A random case of a family."""
    names = list(GROUPS[group])
    which = int(rng.integers(len(names)))
    weight = rng.uniform(size=EXAMPLES) * (rng.random(EXAMPLES) < 0.9) + 1e-3
    norm = np.eye(4)[rng.integers(4)] if rng.random() < 0.7 else rng.uniform(size=4)
    scale = 10 ** rng.uniform(-0.7, 0.4)
    centre = rng.normal(size=size) * rng.choice([0.0, 0.3, 1.0])
    thick = (np.arange(size) == 0) | (norm[3] == 1)  # linf may be constant where a side is 0
    domain: Any = Ball(centre, scale)
    if rng.random() < 0.6:
        half = scale * rng.uniform(0.3, 1, size) * ((rng.random(size) < 0.9) | thick)
        domain = (centre - half, centre + half)
    constants = {
        "which": np.eye(len(names))[which],
        "shape": np.asarray(10 ** rng.uniform(-0.7, 0.2)),
        "gain": np.asarray(10 ** rng.uniform(-0.3, 0.5)),
        "shift": np.asarray(rng.normal() * 0.5),
        "norm": norm,
        "at": rng.normal(size=size) * rng.choice([0.0, 0.3]),
        "x": rng.normal(size=(EXAMPLES, 1)),
        "y": rng.choice([-1.0, 1.0], EXAMPLES),
        "weight": weight / weight.sum(),
    }
    return Case(group, size, names[which], constants, domain, float(10 ** rng.uniform(-0.5, 1)))


@cache
def compiled(group: int, size: int) -> dict[str, Any]:
    """The family's functions, each of (constants, τ, …)."""

    def of(c: Any) -> tuple[Any, Sample]:
        return partial(branch, group, size, c), Sample(c["x"], c["y"], c["weight"], None)

    def scaled(c: Any, tau: Any) -> tuple[Any, Sample]:
        f, data = of(c)
        return (lambda w, x: f(w, x) / tau), data

    def cells(c: Any, tau: Any, lo: jax.Array, hi: jax.Array) -> Any:
        h = Regulariser(partial(regulariser, c), True)
        return enclosed_loss(*scaled(c, tau), 1.0)(lo, hi), enclosed_regulariser(h)(lo, hi)

    def over(f: Callable[..., Any], given: int = 2) -> Any:
        arguments = f.__code__.co_argcount
        return jax.jit(jax.vmap(f, (None,) * given + (0,) * (arguments - given)), compiler_options=QUICK)

    return {
        "loss": over(lambda c, tau, w: margin_loss(*scaled(c, tau), 1.0)(w)),
        "size": over(lambda c, tau, w: regulariser(c, w)),
        "bounds": over(cells),
        "gradient": over(lambda c, tau, w: jax.grad(partial(regulariser, c))(w)),
        "around": over(lambda c, tau, lo, hi: enclose(partial(regulariser, c), lo, hi)),
        "rescale": over(lambda c, tau, start, w, target: rescale(partial(regulariser, c), start, w, target)),
        "margin": over(lambda c, tau, w: enclosed_margins(*of(c))[0](w)),
        "upper": over(lambda c, tau, lo, hi: enclosed_margins(*of(c))[1](lo, hi)),
    }


def _bound(case: Case, name: str) -> Callable[..., Any]:
    return partial(
        chunked_map, partial(compiled(case.group, case.size)[name], case.constants, case.tau), CHUNK, pad=True
    )


def kernels(case: Case, branch: Any, h: Any, domain: Domain, *others: Any) -> Kernels:
    """In the place of `make_kernels`: the same functions, compiled before."""
    found = _bound(case, "bounds")
    return Kernels(
        domain,
        True,
        None,
        _bound(case, "loss"),
        _bound(case, "size"),
        lambda lo, hi: Cells(lo, hi, *found(lo, hi)),
        _bound(case, "rescale"),
    )


def least_size(case: Case, h: Any, domain: Domain) -> LeastSize:
    """In the place of `least_size`."""
    return searched(Convex(*(_bound(case, name) for name in ("size", "gradient", "around")), domain), True)


def margin_kernels(case: Case, data: Any) -> tuple[Any, Any]:
    """In the place of `assumption._kernels`."""
    return _bound(case, "margin"), _bound(case, "upper")
