"""The deep linear network of §3: problem (4), its variational form (6), its dual (5), and their common optimum.

H depth    d_0 … d_H widths, d = d_min the narrowest hidden one    γ regularisation    n examples
X [d_0, n] instances    Y [d_H, n] labels    Q [n, r] orthonormal basis of Row(X)
Ỹ = Y X⁺X = Y Q Qᵀ = Σ σ_i u_i v_iᵀ    Λ dual variable    M = W_H … W_1 X
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from landscape.duality.certified.frontiers import real_array, real_number


class Coordinates(NamedTuple):
    """Row coordinates of a problem: X = left · diag(1/inverse) · Qᵀ on its numerical rank r (at least one column).

    Attributes:
        Q: Orthonormal basis of Row(X) [n, r].
        inverse: Reciprocal singular values of X [r].
        left: Left singular vectors of X [d_0, r].
        labels: Y Q [d_H, r]: Ỹ in row coordinates.
        unreachable: ½‖Y − Ỹ‖².
    """

    Q: np.ndarray
    inverse: np.ndarray
    left: np.ndarray
    labels: np.ndarray
    unreachable: float


@dataclass(frozen=True, eq=False, repr=False)
class DeepLinear:
    """Problem (4): ½‖Y − W_H…W_1 X‖² + (γ/H)(‖W_1 X‖_{S_H}^H + Σ_{i≥2} ‖W_i‖_{S_H}^H).

    Attributes:
        X: Instances [d_0, n], one a column; of any rank, n < d_0 included. A bias is a row of ones: `with_bias`.
        Y: Labels [d_H, n].
        widths: Hidden widths (d_1, …, d_{H−1}); their number sets the depth H = len(widths) + 1.
        gamma: γ ≥ 0, of any size.

    Raises:
        ValueError: Shapes that do not fit, values that are not real or not finite, a width below 1, or γ < 0.

    >>> DeepLinear([[1, 0], [0, 1]], [[3, 0], [0, 2]], widths=(1,), gamma=0.5)
    DeepLinear(depth 2, widths 2-1-2, 2 examples, gamma 0.5)
    """

    X: np.ndarray
    Y: np.ndarray
    widths: tuple[int, ...]
    gamma: float

    def __post_init__(self) -> None:
        X, Y = _matrix("X", self.X), _matrix("Y", self.Y)
        if X.shape[1] != Y.shape[1]:
            raise ValueError(
                f"X and Y must have as many columns as examples; X has shape {X.shape}, Y {Y.shape}.\n"
                "  Transpose the one that holds examples as rows."
            )
        object.__setattr__(self, "X", X)
        object.__setattr__(self, "Y", Y)
        object.__setattr__(self, "widths", _hidden_widths(self.widths))
        object.__setattr__(self, "gamma", real_number("gamma", self.gamma))
        if not (np.isfinite(self.gamma) and self.gamma >= 0):
            raise ValueError(f"gamma must be a finite number, at least 0; got {self.gamma}.")

    @property
    def depth(self) -> int:
        """H, the number of weight matrices."""
        return len(self.widths) + 1

    @property
    def d_min(self) -> int:
        """The narrowest hidden width."""
        return min(self.widths)

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """The shapes (d_i, d_{i−1}) of W_1 … W_H."""
        sizes = (self.X.shape[0], *self.widths, self.Y.shape[0])
        return tuple(zip(sizes[1:], sizes[:-1], strict=True))

    @cached_property
    def coordinates(self) -> Coordinates:
        """Row coordinates, from one singular value decomposition of X."""
        left, s, right = np.linalg.svd(self.X, full_matrices=False)
        rank = int((s > s[0] * rank_tolerance(self.X)).sum())
        if rank == 0:
            left, s, right, rank = np.zeros_like(left), np.full_like(s, np.inf), np.zeros_like(right), 1
        Q = right[:rank].T
        labels = self.Y @ Q
        return Coordinates(Q, 1.0 / s[:rank], left[:, :rank], labels, 0.5 * float(((self.Y - labels @ Q.T) ** 2).sum()))

    def varied(self, *, widths: Sequence[int] | None = None, gamma: float | None = None) -> "DeepLinear":
        """The problem with the same data and other widths or γ, without decomposing X again."""
        made = DeepLinear(
            self.X,
            self.Y,
            self.widths if widths is None else tuple(widths),
            self.gamma if gamma is None else gamma,
        )
        made.__dict__["coordinates"] = self.coordinates
        return made

    def __repr__(self) -> str:
        sizes = "-".join(map(str, (self.X.shape[0], *self.widths, self.Y.shape[0])))
        return f"DeepLinear(depth {self.depth}, widths {sizes}, {self.X.shape[1]} examples, gamma {self.gamma:g})"


def with_bias(X: np.ndarray) -> np.ndarray:
    """X with a row of ones below: the weights' last column is then the bias.

    Raises:
        ValueError: X is not a finite real matrix.
    """
    X = _matrix("X", X)
    return np.vstack([X, np.ones((1, X.shape[1]))])


def rank_tolerance(X: np.ndarray) -> float:
    """Singular values of X below this share of the largest count as zero."""
    return max(X.shape) * float(np.finfo(np.float64).eps)


def objective(problem: DeepLinear, weights: Sequence[np.ndarray]) -> float:
    """Eq. (4) at W_1 … W_H.

    Raises:
        ValueError: The weights do not have the problem's shapes, or are not finite and real.
    """
    first, product = _layers(problem, weights)
    schatten = sum(float((singular_values(W) ** problem.depth).sum()) for W in (first, *weights[1:]))
    return 0.5 * float(((problem.Y - product) ** 2).sum()) + problem.gamma / problem.depth * schatten


def variational(problem: DeepLinear, weights: Sequence[np.ndarray]) -> float:
    """Eq. (6) at W_1 … W_H: ½‖Y − M‖² + γ‖M‖_*, M = W_H…W_1 X; never above (4), equal at balanced factors.

    Raises:
        ValueError: The weights do not have the problem's shapes, or are not finite and real.
    """
    _, product = _layers(problem, weights)
    return 0.5 * float(((problem.Y - product) ** 2).sum()) + problem.gamma * float(singular_values(product).sum())


def dual_value(problem: DeepLinear, Lam: np.ndarray) -> float:
    """Eq. (5) at Λ [d_H, n]: ½‖Y‖² − ½‖Ỹ − Λ‖²_d, a lower bound of (4) wherever ‖Λ‖ ≤ γ and Row(Λ) ⊆ Row(X).

    Summed as ½‖Y−Ỹ‖² + ½Σ_{i>d} σ_i²(Ỹ−Λ) + ⟨Ỹ−Λ, Λ⟩ + ½‖Λ‖², which loses no digits where the optimum is small.

    Raises:
        ValueError: Λ is not a finite real matrix of the shape of Y.
    """
    Lam = _matrix("Lam", Lam)
    if Lam.shape != problem.Y.shape:
        raise ValueError(f"Lam must have the shape of Y, {problem.Y.shape}; got {Lam.shape}.")
    rows = problem.coordinates
    Y, L = rows.labels, Lam @ rows.Q
    tail = float((singular_values(Y - L)[problem.d_min :] ** 2).sum())
    return rows.unreachable + 0.5 * tail + float(((Y - L) * L).sum()) + 0.5 * float((L**2).sum())


def optimum(problem: DeepLinear) -> float:
    """The common optimal value ½‖Y‖² − ½ Σ_{i≤d} (σ_i − γ)₊² of (4) and (5).

    >>> [round(optimum(DeepLinear(np.eye(2), np.diag([3.0, 2.0]), (1, 1), g)), 12) for g in (0, 0.5, 2, 2.5, 3)]
    [2.0, 3.375, 6.0, 6.375, 6.5]
    """
    s, gamma = singular_values(problem.coordinates.labels), problem.gamma
    fitted = (np.arange(len(s)) < problem.d_min) & (s > gamma)
    return problem.coordinates.unreachable + float(np.where(fitted, gamma * (s - gamma / 2), s**2 / 2).sum())


def singular_values(A: np.ndarray) -> np.ndarray:
    """Singular values of A, descending."""
    return np.linalg.svd(A, compute_uv=False)


def _layers(problem: DeepLinear, weights: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(W_1 X, W_H … W_1 X)."""
    weights = [real_array("The weights", W) for W in weights]
    shapes = tuple(W.shape for W in weights)
    if shapes != problem.shapes:
        raise ValueError(f"Weights must have shapes {problem.shapes} (W_1 to W_H); got {shapes}.")
    if not all(np.isfinite(W).all() for W in weights):
        raise ValueError("Weights must be finite; some are nan or infinite.")
    first = product = weights[0] @ problem.X
    for W in weights[1:]:
        product = W @ product
    return first, product


def _matrix(name: str, value: object) -> np.ndarray:
    array = real_array(name, value)
    if array.ndim != 2 or array.size == 0:
        raise ValueError(f"{name} must be a matrix with one column an example; got shape {array.shape}.")
    if not np.isfinite(array).all():
        wrong = int((~np.isfinite(array)).sum())
        raise ValueError(f"{name} has {wrong} values that are nan or infinite; remove those examples first.")
    if not np.isfinite(np.sum(array**2)):
        raise ValueError(f"The squares of {name} exceed the largest float64; divide {name} by its largest value first.")
    return array


def _hidden_widths(widths: Sequence[int]) -> tuple[int, ...]:
    if not isinstance(widths, Sequence | np.ndarray) or len(widths) == 0:
        raise ValueError(f"widths must list the hidden widths d_1 … d_(H-1), at least one; got {widths!r}.")
    found = real_array("widths", widths)
    if found.ndim != 1 or not np.all((found >= 1) & (found == np.floor(found)) & np.isfinite(found)):
        raise ValueError(f"Hidden widths must be whole numbers, at least 1; got {tuple(widths)}.")
    return tuple(int(width) for width in found)
