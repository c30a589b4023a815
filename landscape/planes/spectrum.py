"""The Hessian at a point through its products with vectors: extreme eigenvalues, trace, density of the spectrum.

Lanczos' method with full reorthogonalisation (Golub and Van Loan, Matrix Computations, §10.1), jitted; Hutchinson's
estimate of the trace; stochastic Lanczos quadrature of the density (Ubaru, Chen, Saad, SIAM J. Matrix Anal. 38, 2017).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.flatten_util import ravel_pytree
from scipy.special import ndtr

from landscape.losses import Loss
from landscape.networks import MultiBranch
from landscape.problem import Problem, streamed_risk

Params = Any
Risk = Callable[[Params], Any]

EXACT = 200
"""Up to this number of parameters Lanczos takes one step a parameter and finds every eigenvalue."""
MOST_STEPS = 300
STEPS_A_CALL = 20
SAME = 1e-6
"""Eigenvalues whose spread is below this share of the largest cannot be told apart in float32."""


@dataclass(frozen=True)
class RiskOf:
    """R(data, params) of a problem. Equal networks and losses give equal objects, so that it compiles once."""

    network: MultiBranch
    loss: Loss

    def __call__(self, data: Any, params: Params) -> jax.Array:
        """The risk."""
        return streamed_risk(self.network.apply, self.loss, params, data)


@dataclass(frozen=True)
class FunctionOf:
    """risk(params) in the form R(data, params). Of a dict of quantities it takes "risk", or else the first."""

    risk: Risk

    def __call__(self, data: Any, params: Params) -> jax.Array:
        """The risk."""
        del data
        out = self.risk(params)
        return out.get("risk", next(iter(out.values()))) if isinstance(out, dict) else out


Objective = Callable[[Any, Params], jax.Array]


def objective(problem: Problem | Risk) -> tuple[Objective, Any]:
    """R(data, params) as a hashable function, and its data."""
    if isinstance(problem, Problem):
        return RiskOf(problem.network, problem.loss), problem.data.support
    return FunctionOf(problem), None


class NotFinite(ValueError):
    """The Hessian at some parameters is not finite."""


class Eigenpairs(NamedTuple):
    """Eigenvalues with their unit eigenvectors.

    Attributes:
        values: [k].
        vectors: A list of k trees of parameters.
        residuals: ‖H x − λ x‖ as Lanczos' method estimates it, [k].
        steps: Hessian-vector products taken.
    """

    values: np.ndarray
    vectors: list[Params]
    residuals: np.ndarray
    steps: int


class Krylov(NamedTuple):
    """Lanczos' three-term recurrence: H Q = Q T + β q eᵀ, rows of `basis` orthonormal."""

    basis: jax.Array
    alpha: jax.Array
    beta: jax.Array
    key: jax.Array


def _product(of: Objective, data: Any, w: Params, flat: jax.Array) -> jax.Array:
    """∇²R(w) times a flat vector."""
    _, unravel = ravel_pytree(w)
    return ravel_pytree(jax.jvp(lambda p: jax.grad(of, 1)(data, p), (w,), (unravel(flat),))[1])[0]


@partial(jax.jit, static_argnums=0)
def _advance(of: Objective, data: Any, w: Params, krylov: Krylov, start: jax.Array, stop: jax.Array) -> Krylov:
    """Steps start … stop − 1; every new vector is made orthogonal to all earlier ones, twice."""

    def apart(basis: jax.Array, r: jax.Array) -> jax.Array:
        for _ in range(2):
            r = r - basis.T @ (basis @ r)
        return r

    def step(j: jax.Array, s: Krylov) -> Krylov:
        q = s.basis[j]
        product = _product(of, data, w, q)
        r = apart(s.basis, product)
        size = jnp.linalg.norm(r)
        ended = size <= 10 * jnp.finfo(r.dtype).eps * jnp.linalg.norm(product)
        fresh = apart(s.basis, jax.random.normal(jax.random.fold_in(s.key, j), r.shape, r.dtype))
        r = jnp.where(ended, fresh, r)
        r = apart(s.basis, r / jnp.maximum(jnp.linalg.norm(r), jnp.finfo(r.dtype).tiny))
        basis = s.basis.at[j + 1].set(r / jnp.linalg.norm(r), mode="drop")
        beta = s.beta.at[j].set(jnp.where(ended, 0, size))
        return Krylov(basis, s.alpha.at[j].set(q @ product), beta, s.key)

    return lax.fori_loop(start, stop, step, krylov)


@partial(jax.jit, static_argnums=1)
def _begin(start: jax.Array, steps: int, key: jax.Array) -> Krylov:
    basis = jnp.zeros((steps, start.size), start.dtype).at[0].set(start / jnp.linalg.norm(start))
    return Krylov(basis, jnp.zeros(steps, start.dtype), jnp.zeros(steps, start.dtype), key)


def _ritz(krylov: Krylov, steps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Eigenvalues, eigenvectors and residuals of the tridiagonal matrix of the first steps, in float64.

    Raises:
        NotFinite: The Hessian is not finite.
    """
    alpha, beta = (np.asarray(x, np.float64)[:steps] for x in (krylov.alpha, krylov.beta))
    if not (np.isfinite(alpha).all() and np.isfinite(beta).all()):
        raise NotFinite("The Hessian is not finite at these parameters; choose a point where the loss is finite.")
    values, vectors = np.linalg.eigh(np.diag(alpha) + np.diag(beta[:-1], 1) + np.diag(beta[:-1], -1))
    return values, vectors, np.abs(beta[-1] * vectors[-1])


def eigenpairs(
    problem: Problem | Risk,
    w: Params,
    key: jax.Array,
    *,
    largest: int = 2,
    smallest: int = 0,
    tolerance: float = 1e-5,
    steps: int | None = None,
) -> Eigenpairs:
    """The algebraically largest (first) and smallest eigenvalues of ∇²R(w) and their eigenvectors.

    Args:
        problem: A `Problem`, or a pure function risk(params).
        w: Parameters, a tree.
        key: Random key of the start vector.
        largest: How many of the largest, in decreasing order.
        smallest: How many of the smallest, in increasing order, after those.
        tolerance: Steps end when every residual is below this times the largest |λ|.
        steps: Most steps; all where there are at most 200 parameters, else 300. The basis holds so many vectors like w.

    Raises:
        ValueError: More eigenvalues than parameters, or a Hessian that is not finite.
    """
    flat, unravel = ravel_pytree(w)
    size, wanted = flat.size, largest + smallest
    if not 1 <= wanted <= size:
        raise ValueError(f"Between 1 and {size} eigenvalues can be asked for; got {wanted}.")
    most = min(size, max(wanted, steps or (size if size <= EXACT else MOST_STEPS)))
    of, data = objective(problem)
    krylov = _begin(jax.random.normal(key, flat.shape, flat.dtype), most, jax.random.fold_in(key, 1))
    done, chosen = 0, np.zeros(0, int)
    values = vectors = residuals = np.zeros(0)
    while done < most:
        until = min(most, done + STEPS_A_CALL)
        krylov, done = _advance(of, data, w, krylov, done, until), until
        values, vectors, residuals = _ritz(krylov, done)
        chosen = np.r_[np.arange(done)[::-1][:largest], np.arange(done)[:smallest]]
        if size > EXACT and done > wanted and (residuals[chosen] <= tolerance * np.abs(values).max()).all():
            break
    combined = jnp.asarray(vectors[:, chosen].T, flat.dtype) @ krylov.basis[:done]
    units = [unravel(x / jnp.linalg.norm(x)) for x in combined]
    return Eigenpairs(values[chosen], units, residuals[chosen], done)


class Estimate(NamedTuple):
    """A mean over random probes with its standard error."""

    mean: float
    error: float


def trace(problem: Problem | Risk, w: Params, key: jax.Array, *, probes: int = 32) -> Estimate:
    """Hutchinson's estimate of tr ∇²R(w): the mean of zᵀ H z over vectors z of random signs.

    Raises:
        ValueError: Fewer than two probes.
    """
    if probes < 2:
        raise ValueError(f"An estimate with a standard error needs at least 2 probes; got {probes}.")
    of, data = objective(problem)
    found = np.asarray(_quadratic_forms(of, data, w, jax.random.split(key, probes)), np.float64)
    return Estimate(float(found.mean()), float(found.std(ddof=1) / np.sqrt(probes)))


@partial(jax.jit, static_argnums=0)
def _quadratic_forms(of: Objective, data: Any, w: Params, keys: jax.Array) -> jax.Array:
    size = ravel_pytree(w)[0]

    def form(key: jax.Array) -> jax.Array:
        z = jax.random.rademacher(key, size.shape, size.dtype)
        return z @ _product(of, data, w, z)

    return lax.map(form, keys)


class Density(NamedTuple):
    """A quadrature of the spectrum for every probe: nodes λ_k, each with a share weight_k of all eigenvalues.

    Attributes:
        nodes: [probes, steps].
        weights: [probes, steps], each row summing to 1.
    """

    nodes: np.ndarray
    weights: np.ndarray

    def smooth(self, points: int = 201, width: float = 0.01) -> tuple[np.ndarray, np.ndarray]:
        """The density on a grid: Gaussians of `width` times the range of the spectrum around the nodes.

        Each value is the mean density over the cell around its grid point, tails with the outer cells, so that the
        trapezoid rule gives 1 however narrow the Gaussians are beside the grid.

        Raises:
            ValueError: Fewer than two points, or a width that is not positive.
        """
        if points < 2 or not 0 < width < np.inf:
            raise ValueError(f"A density needs at least 2 points and a positive width; got {points} and {width:g}.")
        low, high = float(self.nodes.min()), float(self.nodes.max())
        sigma = width * (max(high - low, SAME * max(abs(low), abs(high))) or 1.0)
        x = np.linspace(low - 4 * sigma, high + 4 * sigma, points)
        borders = np.concatenate([[-np.inf], (x[1:] + x[:-1]) / 2, [np.inf]])
        shares = np.diff(ndtr((borders[:, None] - self.nodes.reshape(1, -1)) / sigma), axis=0)
        return x, shares @ self.weights.ravel() / len(self.nodes) / np.convolve(np.diff(x), [0.5, 0.5])


def density(problem: Problem | Risk, w: Params, key: jax.Array, *, probes: int = 8, steps: int = 60) -> Density:
    """The density of the eigenvalues of ∇²R(w) by stochastic Lanczos quadrature.

    Args:
        problem: A `Problem`, or a pure function risk(params).
        w: Parameters.
        key: Random key.
        probes: Random start vectors.
        steps: Hessian-vector products a probe (at most the number of parameters).

    Raises:
        ValueError: No probes or steps, or a Hessian that is not finite.
    """
    if probes < 1 or steps < 1:
        raise ValueError(f"probes and steps must be at least 1; got {probes} and {steps}.")
    flat, _ = ravel_pytree(w)
    steps = min(steps, flat.size)
    of, data = objective(problem)
    nodes, weights = [], []
    for probe in jax.random.split(key, probes):
        start = jax.random.rademacher(probe, flat.shape, flat.dtype)
        krylov = _advance(of, data, w, _begin(start, steps, probe), 0, steps)
        values, vectors, _ = _ritz(krylov, steps)
        nodes.append(values)
        weights.append(vectors[0] ** 2)
    return Density(np.stack(nodes), np.stack(weights))
