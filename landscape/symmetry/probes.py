"""Networks at random parameters and inputs: what changes their outputs there is no symmetry."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from landscape.arrays import trees
from landscape.compiler.flatten import coarsest
from landscape.compiler.interpreter import needed

Params = Any
One = Callable[[Params, Any], Any]
"""A network on one example, params, x [...] -> outputs."""
RANDOM = 24
"""Examples of normal random numbers besides those that come from the data."""
DRAWS = 10
"""Draws of parameters after which a network is left whose outputs are all zero or none is finite."""
COARSEST = 0.02
"""Half precision rounds by more; a permutation that is no symmetry changes outputs by more."""


class Wide:
    """A function of arrays, computed in float64 where it can be traced so, and otherwise as it is.

    Attributes:
        epsilon: The rounding of the coarsest floating-point type in it.
    """

    def __init__(self, f: Callable[..., Any], *like: Any) -> None:
        self._f, self._like = f, like
        try:
            self._settle(True)
        except Exception:  # programs that fix their types refuse others each in its own way
            self._settle(False)

    def _settle(self, wide: bool) -> None:
        """Trace the function in float64, or as it is."""
        with trees.float64() if wide else nullcontext():
            closed = jax.make_jaxpr(self._f)(*jax.tree.map(lambda leaf: _shape(leaf, wide), self._like))
        closed = closed.replace(jaxpr=closed.jaxpr.replace(eqns=needed(closed.jaxpr)))
        self._wide, self._run, self.epsilon = wide, jax.jit(self._f), float(jnp.finfo(coarsest(closed)).eps)

    def __call__(self, *args: Any) -> Any:
        """The values for arrays of the same shapes, as float64."""
        try:
            return self._values(args)
        except Exception:  # what is called on the host may have types of its own
            if not self._wide:
                raise
            self._settle(False)
            return self._values(args)

    def _values(self, args: Any) -> Any:
        given = jax.tree.map(lambda leaf, like: _cast(leaf, like.dtype, self._wide), args, self._like)
        context = trees.float64() if self._wide else jax.default_matmul_precision("highest")
        with context:
            return jax.tree.map(lambda y: np.asarray(y, np.float64), self._run(*given))


def _shape(leaf: Any, wide: bool) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(np.shape(leaf), np.float64 if wide and trees.is_parameter(leaf) else leaf.dtype)


def _cast(leaf: Any, dtype: Any, wide: bool) -> Any:
    floating = jnp.issubdtype(dtype, jnp.floating)
    return np.asarray(leaf, np.float64 if wide else dtype) if floating else leaf


class Branch:
    """A network on one example that is tried on numbers, compiled once.

    Attributes:
        one: params, x [...] -> outputs.
        params: Its parameters, whose shapes and signs random ones have.
        x: Examples [N, ...]: those given, and as many as RANDOM with random numbers in their place, unless integers.
        outputs: The outputs for x, in float64 where possible.
    """

    def __init__(self, one: One, params: Params, x: Any, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.one, self.params = one, params
        self.x = jax.tree.map(lambda leaf: _inputs(rng, np.asarray(leaf)), x)
        self.outputs = Wide(jax.vmap(one, (None, 0)), params, self.x)

    @property
    def tolerance(self) -> float:
        """The relative change of outputs that rounding explains."""
        return min(max(1e-9, 100 * self.outputs.epsilon), COARSEST)

    def drawn(self, rng: np.random.Generator) -> Params:
        """Random parameters."""
        return jax.tree.map(lambda leaf: _drawn(rng, leaf), self.params)


class Probe:
    """Branches at random parameters: what changes the sum of their outputs there is no symmetry.

    Attributes:
        branch: The branch.
        params: Random parameters of one or several such branches.
        x: Examples [N, ...].
    """

    def __init__(self, branch: Branch, rng: np.random.Generator, count: int = 1, x: Any = None) -> None:
        self.branch, self.x = branch, branch.x if x is None else x
        for _ in range(DRAWS):
            self.params = [branch.drawn(rng) for _ in range(count)]
            self._before = self._sum(self.params)
            self._finite = np.isfinite(self._before)
            if np.any(self._before[self._finite]):
                break

    def _sum(self, params: Sequence[Params]) -> np.ndarray:
        return np.sum([self.branch.outputs(w, self.x) for w in params], axis=0)

    def change(self, params: Sequence[Params]) -> float:
        """The largest change of an output relative to the largest output; infinite where nothing can be compared."""
        if not self._finite.any():
            return np.inf
        away = np.abs(self._sum(params) - self._before)[self._finite].max()
        size = np.abs(self._before[self._finite]).max()
        return float(away / size) if np.isfinite(away) and size > 0 else np.inf


def _drawn(rng: np.random.Generator, leaf: Any) -> np.ndarray:
    """Random numbers for a leaf; positive where all of its are, as variances must be; counters as they are."""
    if not trees.is_parameter(leaf):
        return np.asarray(leaf)
    fan_in = max(1, np.prod(leaf.shape[:-1])) if len(leaf.shape) > 1 else 1
    numbers = rng.normal(size=leaf.shape)
    return np.exp(numbers / 2) if np.all(np.asarray(leaf) > 0) else numbers / np.sqrt(fan_in)


def _inputs(rng: np.random.Generator, x: np.ndarray) -> np.ndarray:
    more = np.resize(x, (RANDOM, *x.shape[1:]))
    return np.concatenate([x, rng.normal(size=more.shape).astype(x.dtype) if trees.is_parameter(x) else more])
