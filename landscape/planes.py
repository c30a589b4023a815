"""Planes in parameter space, w(a, b) = o + a u + b v, and their builders (§5.1)."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from landscape import trees

Params = Any

ON_A_LINE = 1e-4
"""Smallest distance of the third solution from the line through the other two, relative to the distances among them."""


class Plane(NamedTuple):
    """A plane in parameter space with marked points.

    Attributes:
        origin: o, a tree of parameters.
        u: First axis, a tree like the origin.
        v: Second axis.
        anchors: Coordinates (a, b) of the marked points, [M, 2], float64.
        kind: "orthonormal" (coordinates are distances) or what else the axes are.
    """

    origin: Params
    u: Params
    v: Params
    anchors: np.ndarray
    kind: str = "orthonormal"

    def at(self, ab: Sequence[float]) -> Params:
        """The parameters w(a, b)."""
        return jax.tree.map(lambda o, u, v: o + ab[0] * u + ab[1] * v, self.origin, self.u, self.v)

    def __repr__(self) -> str:
        return f"Plane({self.kind}: {trees.size(self.origin):,} parameters, {len(self.anchors)} anchors)"


def through_solutions(w0: Params, w1: Params, w2: Params) -> Plane:
    """The plane spanned by three solutions (§5.1), with orthonormal axes: u along w1 − w0, the origin at w0.

    Args:
        w0: A tree of parameters.
        w1: Another one.
        w2: A third one, not on the line through the two.

    Raises:
        ValueError: Trees of different structure or shapes, values that are not finite, or solutions on one line.

    >>> plane = through_solutions({"w": jnp.zeros(3)}, {"w": jnp.array([2.0, 0, 0])}, {"w": jnp.array([1.0, 1, 0])})
    >>> plane.anchors.tolist()
    [[0.0, 0.0], [2.0, 0.0], [1.0, 1.0]]
    """
    check_solutions(w0, w1, w2)
    first, second = trees.subtract(w1, w0), trees.subtract(w2, w0)
    length = trees.norm(first)
    u = trees.scale(1 / length, first)
    along = trees.vdot(second, u)
    across = trees.axpy(-along, u, second)
    across = trees.axpy(-trees.vdot(across, u), u, across)  # once more: rounding in the first projection
    height = trees.norm(across)
    _refuse_line(float(height), float(length), float(trees.norm(second)))
    anchors = np.array([[0, 0], [length, 0], [trees.vdot(second, u), height]], float)
    return Plane(w0, u, trees.scale(1 / height, across), anchors)


def oblique_through_solutions(w0: Params, w1: Params, w2: Params) -> Plane:
    """The plane of the paper's published pictures: origin at the mean of the solutions, oblique axes scaled to ‖w2‖.

    u points along w1 − w0 and v along w2 − w0, both of length ‖w2‖, at whatever angle they make: shapes are sheared,
    and equal distances on the plot are not equal in parameter space.

    Args:
        w0: A tree of parameters.
        w1: Another one.
        w2: A third one, not on the line through the two.

    Raises:
        ValueError: As in `through_solutions`, or w2 = 0.
    """
    straight = through_solutions(w0, w1, w2)
    size = float(trees.norm(w2))
    if size == 0:
        raise ValueError("The axes are scaled to the norm of the third solution, which is 0; take through_solutions.")
    first, second = trees.subtract(w1, w0), trees.subtract(w2, w0)
    lengths = np.array([straight.anchors[1, 0], np.hypot(*straight.anchors[2])]) / size
    mean = jax.tree.map(lambda x, y, z: (x + y + z) / 3, w0, w1, w2)
    anchors = (np.array([[0, 0], [1, 0], [0, 1]]) - 1 / 3) * lengths
    u, v = trees.scale(1 / lengths[0], first), trees.scale(1 / lengths[1], second)
    return Plane(mean, u, v, anchors, "oblique")


def check_solutions(*solutions: Params) -> None:
    """Refuse trees that do not belong on one plane.

    Raises:
        ValueError: Different structures or shapes, no parameters, values that are not finite, or equal solutions.
    """
    reference = jax.tree.structure(solutions[0])
    shapes = [x.shape for x in jax.tree.leaves(solutions[0])]
    for i, w in enumerate(solutions):
        if jax.tree.structure(w) != reference or [x.shape for x in jax.tree.leaves(w)] != shapes:
            raise ValueError(
                f"All solutions must have the same parameters; number {i} has {_outline(w)}, the first "
                f"{_outline(solutions[0])}."
            )
        if not all(jnp.isfinite(x).all() for x in jax.tree.leaves(w)):
            raise ValueError(f"Solution {i} has parameters that are not finite; train it again, with a smaller step.")
    if not shapes:
        raise ValueError("The solutions hold no parameters.")


def _outline(tree: Params) -> str:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return ", ".join(f"{jax.tree_util.keystr(path)} {list(x.shape)}" for path, x in leaves[:6]) or "none"


def _refuse_line(height: float, first: float, second: float) -> None:
    if not height > ON_A_LINE * max(first, second):
        raise ValueError(
            "Three solutions must not lie on one line (or coincide): the distances from the first are "
            f"{first:.3g} and {second:.3g}, and the third is {height:.1e} away from the line through the first two.\n"
            "  Start the trainings from different seeds, or evaluate the segment between two of them."
        )
