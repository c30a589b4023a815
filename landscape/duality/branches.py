"""The parts of a branch in Theorem 1: the compact set W, the regulariser h, the function f; ready-made units."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.flatten_util import ravel_pytree

from landscape.duality.certified.frontiers import real_array, real_number
from landscape.networks import Network, one_example


class Box(NamedTuple):
    """W = { w : lo ≤ w ≤ hi }, both [p]."""

    lo: np.ndarray
    hi: np.ndarray

    def contains(self, w: np.ndarray) -> np.ndarray:
        """Whether points [..., p] lie in W."""
        return np.all((w >= self.lo) & (w <= self.hi), axis=-1)

    def project(self, w: np.ndarray) -> np.ndarray:
        """The nearest points of W, [..., p]."""
        return np.clip(w, self.lo, self.hi)

    def meets(self, lo: np.ndarray, hi: np.ndarray) -> np.ndarray:
        """Whether cells [C, p] have points of W."""
        return np.all((lo <= self.hi) & (hi >= self.lo), axis=-1)


class Ball(NamedTuple):
    """W = { w : ‖w − centre‖₂ ≤ radius }, centre [p]."""

    centre: np.ndarray
    radius: float

    @property
    def lo(self) -> np.ndarray:
        """Lower corner of the box around W, [p]."""
        return np.asarray(self.centre, np.float64) - self.radius

    @property
    def hi(self) -> np.ndarray:
        """Upper corner of the box around W, [p]."""
        return np.asarray(self.centre, np.float64) + self.radius

    def contains(self, w: np.ndarray) -> np.ndarray:
        """Whether points [..., p] lie in W."""
        return np.sum((w - self.centre) ** 2, -1) <= self.radius**2 * (1 + 1e-12)

    def project(self, w: np.ndarray) -> np.ndarray:
        """The nearest points of W, [..., p]."""
        away = w - self.centre
        length = np.sqrt(np.sum(away**2, -1, keepdims=True))
        return self.centre + away * np.minimum(1.0, self.radius / np.maximum(length, 1e-300))

    def meets(self, lo: np.ndarray, hi: np.ndarray) -> np.ndarray:
        """Whether cells [C, p] have points of W."""
        return self.contains(np.clip(self.centre, lo, hi))


class Product(NamedTuple):
    """W = W_1 × W_2 × …, one set after the other along the parameters."""

    parts: "tuple[Box | Ball, ...]"

    @property
    def lo(self) -> np.ndarray:
        """Lower corner of the box around W, [p]."""
        return np.concatenate([part.lo for part in self.parts])

    @property
    def hi(self) -> np.ndarray:
        """Upper corner of the box around W, [p]."""
        return np.concatenate([part.hi for part in self.parts])

    def contains(self, w: np.ndarray) -> np.ndarray:
        """Whether points [..., p] lie in W."""
        return np.all([part.contains(v) for part, v in zip(self.parts, self._split(w), strict=True)], axis=0)

    def project(self, w: np.ndarray) -> np.ndarray:
        """The nearest points of W, [..., p]."""
        return np.concatenate([part.project(v) for part, v in zip(self.parts, self._split(w), strict=True)], axis=-1)

    def meets(self, lo: np.ndarray, hi: np.ndarray) -> np.ndarray:
        """Whether cells [C, p] have points of W."""
        pieces = zip(self.parts, self._split(lo), self._split(hi), strict=True)
        return np.all([part.meets(a, b) for part, a, b in pieces], axis=0)

    def _split(self, w: np.ndarray) -> list[np.ndarray]:
        return np.split(w, np.cumsum([len(part.lo) for part in self.parts])[:-1], axis=-1)


Domain = Box | Ball | Product


def checked_domain(domain: Domain | tuple[Any, Any]) -> Domain:
    """W with arrays of float64; a pair (lo, hi) is a box.

    Raises:
        ValueError: W is not compact, or empty, or not given by real vectors.
    """
    if isinstance(domain, Product):
        return Product(tuple(_checked_part(part) for part in domain.parts))
    return _checked_part(domain)


def _checked_part(domain: Box | Ball | tuple[Any, Any]) -> Box | Ball:
    if isinstance(domain, Ball):
        centre, radius = real_array("A ball's centre", domain.centre), real_number("A ball's radius", domain.radius)
        found: Box | Ball = Ball(np.atleast_1d(centre), radius)
        ends = [found.centre]
    else:
        if len(domain) != 2:
            raise ValueError(f"W is a Box, a Ball, a Product or a pair (lo, hi); got {len(domain)} parts.")
        ends = [np.atleast_1d(real_array("W's bounds", end)) for end in domain]
        if len({end.shape for end in ends} - {(1,)}) > 1:
            raise ValueError(f"W's bounds must have the same length p; got shapes {[end.shape for end in ends]}.")
        found = Box(*(end.copy() for end in np.broadcast_arrays(*ends)))
    if any(end.ndim != 1 or end.size == 0 for end in ends):
        raise ValueError(f"W's bounds or centre must be vectors [p], p ≥ 1; got shapes {[end.shape for end in ends]}.")
    if not (np.isfinite(found.lo).all() and np.isfinite(found.hi).all()):
        raise ValueError(f"W must be compact (Theorem 1); got {domain}.\n  Give finite bounds, or a ball.")
    if not np.all(found.lo <= found.hi):
        raise ValueError(f"W is empty: {domain}.")
    return found


def lattice(domain: Domain, points: int) -> np.ndarray:
    """About `points` points of W on a lattice that includes the corners of its box, [M, p]."""
    size = len(domain.lo)
    side = max(3, round(points ** (1 / size)) | 1)
    axes = [np.linspace(a, b, side) for a, b in zip(domain.lo, domain.hi, strict=True)]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, size)
    return np.unique(domain.project(grid), axis=0)


NORMS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "squared_l2": lambda w: jnp.sum(w**2),
    "l2": lambda w: jnp.sqrt(jnp.sum(w**2)),
    "l1": lambda w: jnp.sum(jnp.abs(w)),
    "linf": lambda w: jnp.max(jnp.abs(w)),
}
"""Regularisers known to be convex, by name."""


class Regulariser(NamedTuple):
    """h: its value for one w [p], and whether it is known to be convex."""

    value: Callable[[jax.Array], jax.Array]
    convex: bool


def regulariser(h: "str | Callable[[jax.Array], jax.Array] | Regulariser") -> Regulariser:
    """h by name (squared_l2, l2, l1, linf), as a function of w [p], or as a `Regulariser` said to be convex.

    Raises:
        ValueError: An unknown name.
    """
    if isinstance(h, Regulariser):
        return h
    if callable(h):
        return Regulariser(h, False)
    if not isinstance(h, str) or h not in NORMS:
        raise ValueError(f"A regulariser is one of {', '.join(NORMS)} or a function of w; got {h!r}.")
    return Regulariser(NORMS[h], True)


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": jax.nn.relu,
    "leaky_relu": jax.nn.leaky_relu,
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
    "softplus": jax.nn.softplus,
    "gelu": jax.nn.gelu,
    "sine": jnp.sin,
    "linear": lambda x: x,
}

Branch = Callable[[jax.Array, jax.Array], jax.Array]


def unit(activation: str, inputs: int = 1, *, shift: bool = False, output: bool = True) -> Branch:
    """One unit, f(w; x) = a·σ(⟨u, x⟩ + b), as a function of w = (a, u, b) and one example x [inputs].

    Args:
        activation: relu, leaky_relu, tanh, sigmoid, softplus, gelu, sine or linear.
        inputs: D.
        shift: Whether there is a shift b inside the activation; otherwise w = (a, u).
        output: Whether there is an output weight a; otherwise a = 1 and w starts with u.

    Raises:
        ValueError: An unknown activation.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"An activation is one of {', '.join(ACTIVATIONS)}; got {activation!r}.")
    sigma, first = ACTIVATIONS[activation], int(output)

    def branch(w: jax.Array, x: jax.Array) -> jax.Array:
        before = jnp.dot(w[first : first + inputs], jnp.atleast_1d(x))
        value = sigma(before + w[first + inputs] if shift else before)
        return w[0] * value if output else value

    return branch


def chain(depth: int) -> Branch:
    """A scalar ReLU chain w_1 [w_2 […[w_H x]_+]_+]_+ of `depth` weights (R3 with w ≥ 0)."""

    def branch(w: jax.Array, x: jax.Array) -> jax.Array:
        value = jnp.reshape(x, ())
        for layer in range(depth - 1, 0, -1):
            value = jax.nn.relu(w[layer] * value)
        return w[0] * value

    return branch


def bisected(fits: Callable[[jax.Array], jax.Array], most: float, halvings: int) -> jax.Array:
    """The largest t in [0, most] for which fits(t), found by bisection from below."""

    def halve(_: int, ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = ends
        middle = (low + high) / 2
        fit = fits(middle)
        return jnp.where(fit, middle, low), jnp.where(fit, high, middle)

    return lax.fori_loop(0, halvings, halve, (jnp.zeros(()), jnp.full((), most)))[0]


def as_function(branch: Branch | Network, size: int, example: jax.Array) -> Branch:
    """A branch as a function of the flat parameters w [p] and one example.

    Raises:
        ValueError: The number of parameters is not that of W, or the output is not one number.
    """
    if isinstance(branch, Network):
        shapes = jax.eval_shape(branch.init, jax.random.key(0))
        flat, unravel = ravel_pytree(jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float64), shapes))
        if len(flat) != size:
            raise ValueError(f"The branch has {len(flat)} parameters, but W has dimension {size}.")
        apply = one_example(branch, unravel(flat), example)
        function: Branch = partial(_flat, apply, unravel)
    else:
        function = branch
    out = jax.eval_shape(function, jnp.zeros(size), example)
    if out.size != 1:
        raise ValueError(f"A branch of Theorem 1 has one output; this one has shape {out.shape}.")
    return lambda w, x: function(w, x).reshape(())


def _flat(apply: Branch, unravel: Callable[[jax.Array], Any], w: jax.Array, x: jax.Array) -> jax.Array:
    return apply(unravel(w), x)
