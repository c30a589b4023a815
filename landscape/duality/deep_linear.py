"""Theorem 2: deep linear networks have no duality gap. Solutions of problem (4) and of its dual (5), with certificates.

    min (4) = max (5) = ½‖Y‖² − ½ Σ_{i≤d} (σ_i − γ)₊²,   M* = Σ_{i≤d} (σ_i − γ)₊ u_i v_iᵀ,   Λ* = Σ min(σ_i, γ) u_i v_iᵀ

with the symbols of `linear_problem`. Strong duality holds for every γ ≥ 0: the theorem's γ < σ_min(Ỹ) is sufficient,
not necessary. Where the printed statement differs: W_H is d_H × d_{H−1}; the layers are i ∈ [H]; σ_min after the
theorem is that of Ỹ; (6) comes from a minimum over factors with a fixed product; and recovering the weights from
svd_d(Ỹ − Λ*) fails for a maximiser Λ* whose Ỹ − Λ* has tied singular values, so they are recovered here from M.
All in float64.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from landscape.arrays import trees
from landscape.duality.linear import splitting
from landscape.duality.linear.problem import (
    DeepLinear,
    dual_value,
    objective,
    optimum,
    rank_tolerance,
    singular_values,
    variational,
    with_bias,
)

__all__ = [
    "Certificate",
    "DeepLinear",
    "Verification",
    "closed_form",
    "douglas_rachford",
    "douglas_rachford_batch",
    "dual_value",
    "objective",
    "optimum",
    "recover",
    "variational",
    "verify",
    "with_bias",
]

ACCEPTED = 1e-9
"""Relative size of gap and residuals up to which `verify` accepts a certificate."""


@dataclass(frozen=True, eq=False, repr=False)
class Certificate:
    """A solution of (4) and one of (5) whose values meet.

    Attributes:
        weights: W_1 [d_1, d_0], …, W_H [d_H, d_{H−1}].
        primal: Value of (4) at `weights`.
        dual: Value of (5) at `Lam`.
        Lam: Λ [d_H, n].
        iterations: Of Douglas–Rachford; 0 for the closed form.
        spectral_residual: max(‖Λ‖ − γ, 0).
        row_residual: ‖Λ − Λ X⁺X‖.
        gap: primal − dual: `weights` are within this of the optimum.
        history: Brackets (primal, dual) by iteration [iterations + 1, 2].
        problem: What was solved.
    """

    weights: tuple[np.ndarray, ...]
    primal: float
    dual: float
    Lam: np.ndarray
    iterations: int
    spectral_residual: float
    row_residual: float
    gap: float
    history: np.ndarray
    problem: DeepLinear

    def __repr__(self) -> str:
        found = f"primal {self.primal:.12g}, gap {self.gap:.1e}, {self.iterations} iterations"
        return f"Certificate({found}, {self.problem})"


class Verification(NamedTuple):
    """What `verify` found; true where the certificate holds.

    Attributes:
        primal: Value of (4) at the weights.
        variational: Value of (6) at the weights, at most `primal`.
        dual: Value of (5) at Λ.
        gap: primal − dual.
        spectral_residual: max(‖Λ‖ − γ, 0).
        row_residual: ‖Λ − Λ X⁺X‖.
        holds: Gap and residuals are within `ACCEPTED` of the problem's scale.
    """

    primal: float
    variational: float
    dual: float
    gap: float
    spectral_residual: float
    row_residual: float
    holds: bool

    def __bool__(self) -> bool:
        return self.holds


def closed_form(problem: DeepLinear) -> Certificate:
    """The solution M* = Σ_{i≤d} (σ_i − γ)₊ u_i v_iᵀ, Λ* = Σ min(σ_i, γ) u_i v_iᵀ, from one decomposition of Ỹ."""
    u, s, vt = np.linalg.svd(problem.coordinates.labels, full_matrices=False)
    c = np.where(np.arange(len(s)) < problem.d_min, np.maximum(s - problem.gamma, 0.0), 0.0)
    Lam = (u * np.minimum(s, problem.gamma)) @ vt
    return _certify(problem, recover(problem, u, c, vt.T), Lam, 0, np.empty((0, 2)))


def recover(problem: DeepLinear, u: np.ndarray, c: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, ...]:
    """Balanced weights with W_H…W_1 X = Σ_j c_j u_j (Q v_j)ᵀ, c^{1/H} in every layer, padded by zeros.

    Args:
        problem: Gives widths, depth and X⁺.
        u: Orthonormal columns [d_H, m].
        c: Coefficients [m]; at most d_min are not zero.
        v: Orthonormal columns in row coordinates [r, m].
    """
    order = np.argsort(-c)[: problem.d_min]
    root = c[order] ** (1.0 / problem.depth)
    rows = problem.coordinates
    first = root[:, None] * ((v[:, order].T * rows.inverse) @ rows.left.T)
    inner = [np.diag(root)] * (problem.depth - 2)
    blocks = [first, *inner, u[:, order] * root]
    return tuple(_padded(block, shape) for block, shape in zip(blocks, problem.shapes, strict=True))


def douglas_rachford(problem: DeepLinear, *, tolerance: float = 1e-12, max_iterations: int = 200) -> Certificate:
    """Solve (5) by Douglas–Rachford splitting until the certified gap closes, and (4) from its fixed point.

    Args:
        problem: What to solve.
        tolerance: Relative gap at which to stop.
        max_iterations: Stop there at the latest; the certificate then carries the gap that is left.
    """
    return douglas_rachford_batch([problem], tolerance=tolerance, max_iterations=max_iterations)[0]


def douglas_rachford_batch(
    problems: Sequence[DeepLinear], *, tolerance: float = 1e-12, max_iterations: int = 200
) -> list[Certificate]:
    """`douglas_rachford` on many problems of any shapes and depths at once, by vmap over zero-padded Ỹ.

    Raises:
        ValueError: No problem, a tolerance that is not positive, or max_iterations below 1.
    """
    if not problems or not tolerance > 0 or max_iterations < 1:
        raise ValueError(
            "Wanted at least one problem, tolerance > 0 and max_iterations >= 1; "
            f"got {len(problems)}, {tolerance} and {max_iterations}."
        )
    reduced = [_square(problem.coordinates.labels) for problem in problems]
    size = max(Y.shape[0] for _, Y, _ in reduced)
    inputs = (
        np.stack([_padded(Y, (size, size)) for _, Y, _ in reduced]),
        np.array([problem.d_min for problem in problems]),
        np.array([problem.gamma for problem in problems]),
        np.array([2.0 * max(1.0, Y.shape[0] / p.d_min) for p, (_, Y, _) in zip(problems, reduced, strict=True)]),
        np.array([problem.coordinates.unreachable for problem in problems]),
    )
    solved = _solved(inputs, tolerance, max_iterations)
    return [
        _from_square(problem, left, right, splitting.Solved(*(part[i] for part in solved)))
        for i, (problem, (left, _, right)) in enumerate(zip(problems, reduced, strict=True))
    ]


def _solved(inputs: tuple[np.ndarray, ...], tolerance: float, max_iterations: int) -> tuple[np.ndarray, ...]:
    """The fields of `splitting.Solved` for all problems; those on which the fast decomposition fails are done again."""
    with trees.float64():
        solved = splitting.solve(*inputs, tolerance, max_iterations, splitting.FAST)
        found = tuple(np.asarray(part) for part in solved)
        failed = np.flatnonzero(~np.isfinite(found[1]).all(axis=(1, 2)))
        if not len(failed):
            return found
        again = splitting.solve(*(part[failed] for part in inputs), tolerance, max_iterations, splitting.STURDY)
    whole = tuple(np.array(part) for part in found)
    for part, new in zip(whole, again, strict=True):
        part[failed] = np.asarray(new)
    return whole


def verify(certificate: Certificate) -> Verification:
    """Recompute every number of a certificate from its weights and Λ, by the printed formulas and NumPy alone."""
    problem = certificate.problem
    X, Y, Lam = problem.X, problem.Y, certificate.Lam
    both = np.vstack([Y, Lam])
    projected = (X.T @ np.linalg.lstsq(X.T, both.T, rcond=rank_tolerance(X))[0]).T  # (·) X⁺X by least squares
    top = singular_values(projected[: len(Y)] - Lam)[: problem.d_min]
    primal = objective(problem, certificate.weights)
    dual = 0.5 * float((Y**2).sum()) - 0.5 * float((top**2).sum())
    spectral = max(float(singular_values(Lam)[0]) - problem.gamma, 0.0)
    row = float(np.linalg.norm(Lam - projected[len(Y) :]))
    size = float(np.linalg.norm(Y))
    holds = abs(primal - dual) <= ACCEPTED * max(primal, 1e-3 * size**2)
    holds = holds and all(residual <= ACCEPTED * size for residual in (spectral, row))  # false where one is nan
    return Verification(
        primal, variational(problem, certificate.weights), dual, primal - dual, spectral, row, bool(holds)
    )


def _from_square(problem: DeepLinear, left: np.ndarray, right: np.ndarray, solved: splitting.Solved) -> Certificate:
    k = left.shape[1]
    u, v, c = left @ solved.u[:k], right @ solved.v[:k], np.asarray(solved.c)
    Lam, count = left @ solved.Lam[:k, :k] @ right.T, int(solved.iterations)
    return _certify(problem, recover(problem, u, c, v), Lam, count, np.asarray(solved.history)[: count + 1])


def _certify(
    problem: DeepLinear, weights: tuple[np.ndarray, ...], rows: np.ndarray, iterations: int, history: np.ndarray
) -> Certificate:
    """Values and residuals of weights and a Λ given in row coordinates [d_H, r]."""
    Q = problem.coordinates.Q
    Lam = rows @ Q.T
    primal, dual = objective(problem, weights), dual_value(problem, Lam)
    spectral = max(float(singular_values(rows)[0]) - problem.gamma, 0.0)
    row = float(np.linalg.norm(Lam - (Lam @ Q) @ Q.T))
    return Certificate(weights, primal, dual, Lam, iterations, spectral, row, primal - dual, history, problem)


def _square(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(left [m, k], A [k, k], right [n, k]) with labels = left A rightᵀ and k = min(m, n)."""
    if labels.shape[0] == labels.shape[1]:
        return np.eye(len(labels)), labels, np.eye(len(labels))
    if labels.shape[0] < labels.shape[1]:
        right, triangle = np.linalg.qr(labels.T)
        return np.eye(labels.shape[0]), triangle.T, right
    left, triangle = np.linalg.qr(labels)
    return left, triangle, np.eye(labels.shape[1])


def _padded(block: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    if block.shape == shape:
        return block
    whole = np.zeros(shape)
    whole[: block.shape[0], : block.shape[1]] = block
    return whole
