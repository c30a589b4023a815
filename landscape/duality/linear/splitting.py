"""Douglas–Rachford splitting on the dual (5): the prox of ½‖·‖²_d by breakpoints, the spectral ball, the iteration.

Square matrices in coordinates that hold the row and column space of Ỹ; `deep_linear` goes there and back. Enter with
`trees.float64()`.

    Λ dual variable    M primal matrix W_H … W_1 X    Z fixed-point variable    t step
    At the fixed point Λ is the projection of Z on the ball ‖Λ‖ ≤ γ, and M = (Z − Λ)/t.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.lax.linalg import SvdAlgorithm, svd

FAST, STURDY = SvdAlgorithm.DEFAULT, SvdAlgorithm.QR
"""Divide and conquer, which may fail (nan) on a large matrix with many equal singular values; QR, slower, does not."""

ROUNDING = 1e-15
"""Gaps below this share of ½‖Y‖² are rounding."""


class Iterate(NamedTuple):
    """One point of the iteration, with the bracket [dual, primal] it certifies.

    Attributes:
        Z: Fixed-point variable [k, k].
        parts: Its singular value decomposition (u [k, k], z [k], vᵀ [k, k]).
        Lam: Projection of Z on the spectral ball [k, k], feasible for (5).
        primal: Value of (4) at the singular pairs of M.
        dual: Value of (5) at Lam.
        count: Iterations so far.
        history: The brackets so far [iterations + 1, 2], nan where not reached.
    """

    Z: jax.Array
    parts: tuple[jax.Array, jax.Array, jax.Array]
    Lam: jax.Array
    primal: jax.Array
    dual: jax.Array
    count: jax.Array
    history: jax.Array


class Solved(NamedTuple):
    """The end of an iteration: Λ, and M = Σ_j c_j u_j v_jᵀ with at most d terms.

    Attributes:
        Lam: [k, k].
        u: Columns u_j [k, k].
        c: Singular values of M, descending [k].
        v: Columns v_j [k, k].
        iterations: Count.
        history: [iterations + 1, 2] (primal, dual), nan where not reached.
    """

    Lam: jax.Array
    u: jax.Array
    c: jax.Array
    v: jax.Array
    iterations: jax.Array
    history: jax.Array


@jax.jit
def prox_top_squares(z: jax.Array, t: jax.Array | float, d: jax.Array | int) -> jax.Array:
    """argmin_x (t/2)·(sum of the d largest x_i²) + ½‖x − z‖² for z ≥ 0 [Grussler18].

    x_i = z_i/(1+t) where that exceeds s, z_i where z_i ≤ s, else s; 1/s is the root u of the piecewise linear
    Σ_i clip((z_i u − 1)/t, 0, 1) = d. Exact: the sum at the sorted breakpoints 1/z_i and (1+t)/z_i tells the piece.

    Args:
        z: [k], not negative.
        t: Weight, positive.
        d: How many squares are summed; k or more sums all.

    >>> [round(float(x), 5) for x in prox_top_squares(jnp.array([3.0, 2.0, 1.0]), 1.0, 1)]
    [1.66667, 1.66667, 1.0]
    """
    rise, full = 1.0 / z, (1.0 + t) / z
    points = jnp.sort(jnp.concatenate([rise, full]))
    u = points[:, None]
    share = jnp.where(u >= full[None, :], 1.0, jnp.where(u <= rise[None, :], 0.0, (u * z[None, :] - 1.0) / t))
    right = jnp.argmax(share.sum(axis=1) >= d)
    low, high = points[jnp.maximum(right - 1, 0)], points[right]
    above = full <= low
    level = (rise <= low) & (full >= high) & ~above
    total = jnp.where(level, z, 0.0).sum()
    s = jnp.where((total > 0) & (d < z.shape[0]), total / (t * (d - above.sum()) + level.sum()), 0.0)
    return jnp.where(z >= (1.0 + t) * s, z / (1.0 + t), jnp.minimum(z, s))


@partial(jax.jit, static_argnames="how")
def prox_top_singular(A: jax.Array, t: jax.Array | float, d: jax.Array | int, how: SvdAlgorithm = FAST) -> jax.Array:
    """The prox of (t/2)‖·‖²_d at a matrix A [m, n]: `prox_top_squares` of its singular values."""
    u, s, vt = svd(A, full_matrices=False, algorithm=how)
    return (u * prox_top_squares(s, t, d)[None, :]) @ vt


def dual_part(Y: jax.Array, Lam: jax.Array, d: jax.Array | int, how: SvdAlgorithm) -> jax.Array:
    """½‖Ỹ‖² − ½‖Ỹ − Λ‖²_d, summed without cancellation: ½Σ_{i>d} σ_i²(Ỹ−Λ) + ⟨Ỹ−Λ, Λ⟩ + ½‖Λ‖²."""
    squares = svd(Y - Lam, compute_uv=False, algorithm=how) ** 2
    tail = jnp.where(jnp.arange(squares.shape[0]) >= d, squares, 0.0).sum()
    return 0.5 * tail + ((Y - Lam) * Lam).sum() + 0.5 * (Lam**2).sum()


def shrink_top(s: jax.Array, gamma: jax.Array, d: jax.Array | int) -> jax.Array:
    """(s_i − γ)₊ at the d largest entries of s [k], 0 elsewhere: the best coefficients of given singular pairs."""
    position = jnp.argsort(jnp.argsort(-s))
    return jnp.where(position < d, jnp.maximum(s - gamma, 0.0), 0.0)


def _bracket(Y: jax.Array, Z: jax.Array, d: jax.Array, gamma: jax.Array, base: jax.Array, how: SvdAlgorithm) -> tuple:
    """Z's decomposition, Λ, the value of (4) at the singular pairs of M = (Z − Λ)/t with their best coefficients, and
    of (5) at Λ."""
    u, z, vt = svd(Z, full_matrices=False, algorithm=how)
    Lam = (u * jnp.minimum(z, gamma)[None, :]) @ vt
    along = jnp.where(z > gamma, jnp.einsum("ik,ij,kj->k", u, Y, vt), 0.0)
    c = shrink_top(along, gamma, d)
    primal = base + 0.5 * ((Y - (u * c[None, :]) @ vt) ** 2).sum() + gamma * c.sum()
    return (u, z, vt), Lam, primal, base + dual_part(Y, Lam, d, how)


def _finish(Y: jax.Array, end: Iterate, d: jax.Array, gamma: jax.Array, how: SvdAlgorithm) -> Solved:
    """Recover M from the fixed point. Where σ_d(Ỹ) is tied, Z may hold a mixture of optimal M's of higher rank; the
    compression of Ỹ to the span of M's singular vectors then splits it (and changes nothing otherwise)."""
    u, z, vt = end.parts
    kept = (z > gamma).astype(z.dtype)
    left, s, right = svd((kept[:, None] * (u.T @ Y @ vt.T)) * kept[None, :], algorithm=how)
    return Solved(end.Lam, u @ left, shrink_top(s, gamma, d), (right @ vt).T, end.count, end.history)


@partial(jax.jit, static_argnames=("max_iterations", "how"))
@partial(jax.vmap, in_axes=(0, 0, 0, 0, 0, None, None, None))
def solve(
    Y: Any,
    d: Any,
    gamma: Any,
    step: Any,
    base: Any,
    tolerance: jax.Array | float,
    max_iterations: int,
    how: SvdAlgorithm,
) -> Solved:
    """Minimise ½‖Ỹ − Λ‖²_d over ‖Λ‖ ≤ γ from Z = 0 until the certified gap is within `tolerance` of the primal value.

    Batched: every argument but the last three has a leading axis of problems.

    Args:
        Y: Ỹ in square coordinates [problems, k, k]; padding with zeros changes nothing.
        d: d_min [problems].
        gamma: γ [problems].
        step: t [problems].
        base: ½‖Y − Ỹ‖², the part of the risk no weights can reach [problems].
        tolerance: Relative gap at which to stop.
        max_iterations: Give up after so many.
        how: Singular value decomposition, `FAST` or `STURDY`; where it fails the result is nan.
    """
    floor = ROUNDING * (base + 0.5 * (Y**2).sum())

    def open_gap(at: Iterate) -> jax.Array:
        return (at.primal - at.dual > tolerance * at.primal + floor) & (at.count < max_iterations)

    def advance(at: Iterate) -> Iterate:
        reflected = Y - 2.0 * at.Lam + at.Z
        Z = at.Z + Y - prox_top_singular(reflected, step, d, how) - at.Lam
        parts, Lam, primal, dual = _bracket(Y, Z, d, gamma, base, how)
        history = at.history.at[at.count + 1].set(jnp.stack([primal, dual]))
        return Iterate(Z, parts, Lam, primal, dual, at.count + 1, history)

    Z = jnp.zeros_like(Y)
    primal, dual = base + 0.5 * (Y**2).sum(), base + dual_part(Y, Z, d, how)
    history = jnp.full((max_iterations + 1, 2), jnp.nan).at[0].set(jnp.stack([primal, dual]))
    start = Iterate(Z, (Z, jnp.zeros_like(Z[0]), Z), Z, primal, dual, jnp.asarray(0), history)
    return _finish(Y, lax.while_loop(open_gap, advance, start), d, gamma, how)
