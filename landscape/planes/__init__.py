"""Planes in parameter space, w(a, b) = o + a u + b v, and their builders (§5.1)."""

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from landscape.arrays import trees
from landscape.networks import MultiBranch, Network
from landscape.planes import directions, filters, parameters, spectrum
from landscape.problem import Problem

Params = Any
Risk = Callable[[Params], Any]

ON_A_LINE = 1e-4
"""Smallest height of the triangle of the three solutions, relative to its longest side."""


class Plane(NamedTuple):
    """A plane in parameter space with marked points.

    Attributes:
        origin: o, a tree of parameters.
        u: First axis, a tree like the origin.
        v: Second axis.
        anchors: Coordinates (a, b) of the marked points, [M, 2], float64.
        kind: Kind of the axes, such as "orthonormal", whose coordinates are distances.
    """

    origin: Params
    u: Params
    v: Params
    anchors: np.ndarray
    kind: str = "orthonormal"

    def at(self, ab: Sequence[Any]) -> Params:
        """The parameters w(a, b)."""
        return self.affine.at(ab)

    @property
    def affine(self) -> trees.Affine:
        """Origin and axes without the rest, as compiled programs take them."""
        return trees.Affine(self.origin, self.u, self.v)

    @property
    def float_type(self) -> Any:
        """The floating-point type of the parameters."""
        return jnp.result_type(*filter(trees.is_parameter, jax.tree.leaves(self.origin)))

    def __repr__(self) -> str:
        return f"Plane({self.kind}: {trees.size(self.origin):,} parameters, {len(self.anchors)} anchors)"


def through_solutions(w0: Params, w1: Params, w2: Params, *, of: Risk | None = None) -> Plane:
    """The plane spanned by three solutions (§5.1), with orthonormal axes: u along w1 − w0, the origin at w0.

    Args:
        w0: A tree of parameters.
        w1: Another one.
        w2: A third one, not on the line through the two.
        of: The function risk(params) that is to be shown: leaves that it does not read, such as an optimiser's
            moments, stay out of the plane.

    Raises:
        ValueError: Trees of different structure or shapes, values that are not finite, or solutions on one line.

    >>> plane = through_solutions({"w": jnp.zeros(3)}, {"w": jnp.array([2.0, 0, 0])}, {"w": jnp.array([1.0, 1, 0])})
    >>> plane.anchors.tolist()
    [[0.0, 0.0], [2.0, 0.0], [1.0, 1.0]]
    """
    check_solutions(w0, w1, w2)
    w0, w1, w2 = map(trees.widened, parameters.alike(of, (w0, w1, w2)))
    packing = trees.Packing.of(w0)
    u, v, sizes = _orthonormal(packing, w0, w1, w2)
    length, along, height, second = (float(x) for x in sizes)
    _refuse_line(height, length, second)
    return Plane(w0, u, v, np.array([[0, 0], [length, 0], [along, height]]))


@partial(jax.jit, static_argnums=0)
def _orthonormal(
    packing: trees.Packing, w0: Params, w1: Params, w2: Params
) -> tuple[Params, Params, tuple[jax.Array, ...]]:
    """Both axes, ‖w1 − w0‖, the coordinates of w2, and ‖w2 − w0‖."""
    w0, w1, w2 = map(packing.packed, (w0, w1, w2))
    first, second = trees.subtract(w1, w0), trees.subtract(w2, w0)
    length = trees.norm(first)
    u = trees.scale(1 / length, first)
    across = trees.axpy(-trees.vdot(second, u), u, second)
    across = trees.axpy(-trees.vdot(across, u), u, across)  # twice, against rounding in the first projection
    height = trees.norm(across)
    v = trees.scale(1 / height, across)
    return packing.unpacked(u), packing.unpacked(v), (length, trees.vdot(second, u), height, trees.norm(second))


def oblique_through_solutions(w0: Params, w1: Params, w2: Params, *, of: Risk | None = None) -> Plane:
    """The plane of the paper's published pictures: origin at the mean of the solutions, oblique axes scaled to ‖w2‖.

    u points along w1 − w0 and v along w2 − w0, both of length ‖w2‖, at whatever angle they make: shapes are sheared,
    and equal distances on the plot are not equal in parameter space.

    Args:
        w0: A tree of parameters.
        w1: Another one.
        w2: A third one, not on the line through the two.
        of: As in `through_solutions`.

    Raises:
        ValueError: As in `through_solutions`, or w2 = 0.
    """
    check_solutions(w0, w1, w2)
    w0, w1, w2 = map(trees.widened, parameters.alike(of, (w0, w1, w2)))
    straight = through_solutions(w0, w1, w2)
    size = float(trees.norm(w2))
    if size == 0:
        raise ValueError("The axes are scaled to the norm of the third solution, which is 0; take through_solutions.")
    first, second = trees.subtract(w1, w0), trees.subtract(w2, w0)
    lengths = np.array([straight.anchors[1, 0], np.hypot(*straight.anchors[2])]) / size
    mean = jax.tree.map(lambda x, y, z: (x + y + z) / 3 if trees.is_parameter(x) else x, w0, w1, w2)
    anchors = (np.array([[0, 0], [1, 0], [0, 1]]) - 1 / 3) * lengths
    u, v = trees.scale(1 / lengths[0], first), trees.scale(1 / lengths[1], second)
    return Plane(mean, u, v, anchors, "oblique")


def random_filter_normalized(
    key: jax.Array,
    w: Params,
    per: directions.Per = "filter",
    *,
    network: filters.Of | None = None,
    branch_axis: bool | None = None,
    example: Any = None,
    vectors: bool = False,
) -> Plane:
    """The plane through w along two Gaussian directions with the norms of the weights, filter by filter [Li18].

    Every branch of a multi-branch network is scaled by itself. A filter is the weights into one output unit: the free
    axis of a matrix product, the feature axis of a convolution, as the trace of the network shows; where nothing can
    be traced, or the trace does not show it, the last axis of an array counts its units.

    Args:
        key: Random key.
        w: Parameters, [I, ...] for a multi-branch network.
        per: "filter", "layer" (an array) or "none".
        network: The problem or network of w, which says whether w has a branch axis; or a function risk(params).
        branch_axis: The same where there is no network: whether the first axis of every array counts branches.
        example: One example (or its shape and type) by which a network is traced; a problem has its own.
        vectors: Whether biases and norm scales, arrays of one axis, move too; as in [Li18] they do not. With
            per="none" everything moves.

    Raises:
        ValueError: Another word for `per`; parameters that are not finite or do not fit the network, or that may or
            may not have a branch axis, without a network or a word on it.

    >>> w = {"kernel": jnp.arange(24.0).reshape(2, 3, 4)}
    >>> plane = random_filter_normalized(jax.random.key(0), w, branch_axis=True)
    >>> bool(jnp.allclose(jnp.linalg.norm(plane.u["kernel"], axis=1), jnp.linalg.norm(w["kernel"], axis=1)))
    True
    """
    check_solutions(w)
    w = trees.widened(w)
    units = filters.units_of(network, w, example, bool(branch_axis)) if per == "filter" else []
    of = network.network if isinstance(network, Problem) else network
    of = of if isinstance(of, MultiBranch | Network) else None
    stacked = False if network is not None and branch_axis is None else branch_axis
    u, v = (directions.random_normalized(k, w, per, of, stacked, units, vectors) for k in jax.random.split(key))
    return Plane(w, u, v, np.zeros((1, 2)), f"random_{per}" if per != "none" else "random")


def trajectory_pca(ws: Sequence[Params], *, of: Risk | None = None) -> Plane:
    """The plane of the first two principal directions of a trajectory, through its last point [Li18].

    Args:
        ws: Parameters along the way, T ≥ 3 trees; the projections of all are the anchors.
        of: As in `through_solutions`.

    Raises:
        ValueError: Fewer than three, different or infinite parameters, or points on one line.
    """
    if ws:
        check_solutions(*ws)
        ws = list(map(trees.widened, parameters.alike(of, ws)))
    u, v, _ = directions.principal(ws)
    plane = Plane(ws[-1], u, v, np.zeros((0, 2)), "trajectory_pca")
    return plane._replace(anchors=project(plane, ws)[:, :2])


def top_hessian(problem: Problem | spectrum.Risk, w: Params, key: jax.Array) -> Plane:
    """The plane through w along the eigenvectors of the two largest eigenvalues of the Hessian ∇²R(w).

    Args:
        problem: A `Problem`, or a pure function risk(params).
        w: Parameters.
        key: Random key of Lanczos' start vector.

    Raises:
        ValueError: Fewer than two parameters, or a Hessian that is not finite.
    """
    check_solutions(w)
    w = trees.widened(w)
    u, v = spectrum.eigenpairs(problem, w, key, largest=2).vectors
    return Plane(w, u, v, np.zeros((1, 2)), "top_hessian")


def gradient_curvature(problem: Problem | spectrum.Risk, w: Params, key: jax.Array) -> Plane:
    """The plane through w along the gradient and, orthogonal to it, the direction of most negative curvature.

    Args:
        problem: A `Problem`, or a pure function risk(params).
        w: Parameters.
        key: Random key of Lanczos' start vector.

    Raises:
        ValueError: The gradient is zero, the Hessian not finite, or both directions are the same.
    """
    check_solutions(w)
    w = trees.widened(w)
    of, data = spectrum.objective(problem)
    u = directions.unit(jax.jit(jax.grad(of, 1))(data, w), "The gradient")
    (bent,) = spectrum.eigenpairs(problem, w, key, largest=0, smallest=1).vectors
    v = directions.unit(trees.axpy(-trees.vdot(bent, u), u, bent), "The part of negative curvature off the gradient")
    return Plane(w, u, v, np.zeros((1, 2)), "gradient_curvature")


def of_read(risk: Risk, plane: Plane, *, rebuild: bool = True) -> Plane:
    """The plane without the leaves that a function does not read; the plane itself where it moves none.

    Args:
        risk: A function risk(params).
        plane: Any plane.
        rebuild: Whether one through three solutions gets new axes, so that coordinates are distances again; its
            coordinates stay as they are otherwise, and count as oblique.
    """
    still = parameters.moving(risk, plane.affine)
    if not any(still):
        return plane
    structure = jax.tree.structure(plane.origin)

    def fixed(tree: Params) -> Params:
        pairs = zip(still, jax.tree.leaves(tree), strict=True)
        return structure.unflatten([jnp.zeros_like(x) if s else x for s, x in pairs])

    found = plane._replace(u=fixed(plane.u), v=fixed(plane.v))
    if plane.kind != "orthonormal":
        return found
    if rebuild and len(plane.anchors) == 3:
        return through_solutions(*map(found.at, plane.anchors))
    return found._replace(kind="oblique")


def project(plane: Plane, ws: Sequence[Params]) -> np.ndarray:
    """Coordinates of points on a plane and their distance out of it, rows (a, b, distance), [T, 3] float64.

    Args:
        plane: Any plane; oblique axes are allowed.
        ws: T trees of parameters.
    """
    if not ws:
        return np.zeros((0, 3))
    rows = [_flat64(tree) for tree in (plane.u, plane.v)]
    axes = np.stack(rows)
    gram, origin, found = axes @ axes.T, _flat64(plane.origin), []
    for w in ws:
        away = _flat64(w) - origin
        ab = np.linalg.solve(gram, axes @ away)
        found.append([*ab, np.linalg.norm(away - ab @ axes)])
    return np.array(found)


def gram_of(plane: Plane) -> np.ndarray:
    """Inner products of the axes, [2, 2]: distances on the plane in the metric of the parameters."""
    axes = np.stack([_flat64(plane.u), _flat64(plane.v)])
    return axes @ axes.T


def _flat64(tree: Params) -> np.ndarray:
    return np.concatenate([np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(tree) if trees.is_parameter(x)])


def check_solutions(*solutions: Params) -> None:
    """Refuse trees that do not belong on one plane, and name leaves that stay out of it: those of whole numbers.

    Raises:
        ValueError: Different structures or shapes, no parameters, complex ones, or values that are not finite.
    """
    reference = jax.tree.structure(solutions[0])
    shapes = [x.shape for x in jax.tree.leaves(solutions[0])]
    for path, x in jax.tree_util.tree_leaves_with_path(solutions[0]):
        if jnp.issubdtype(jnp.result_type(x), jnp.complexfloating):
            raise ValueError(
                f"The parameter {jax.tree_util.keystr(path)} is complex; a plane has real coordinates.\n"
                "  Give its real and imaginary part as two parameters."
            )
    for i, w in enumerate(solutions):
        if jax.tree.structure(w) != reference or [x.shape for x in jax.tree.leaves(w)] != shapes:
            raise ValueError(
                f"All solutions must have the same parameters; number {i} has {_outline(w)}, the first "
                f"{_outline(solutions[0])}."
            )
        if not _finite(w):
            raise ValueError(f"Solution {i} has parameters that are not finite; train it again, with a smaller step.")
    leaves = jax.tree_util.tree_leaves_with_path(solutions[0])
    others = [jax.tree_util.keystr(path) for path, x in leaves if not trees.is_parameter(x)]
    if len(others) == len(shapes):
        raise ValueError("The solutions hold no parameters.")
    if others:
        warnings.warn(
            f"{', '.join(others[:6])} hold no floating-point numbers: they stay out of the plane, as the first "
            "solution has them.",
            stacklevel=3,
        )


@jax.jit
def _finite(tree: Params) -> jax.Array:
    return jnp.array([jnp.isfinite(x).all() for x in jax.tree.leaves(tree) if trees.is_parameter(x)]).all()


def _outline(tree: Params) -> str:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return ", ".join(f"{jax.tree_util.keystr(path)} {list(x.shape)}" for path, x in leaves[:6]) or "none"


def _refuse_line(height: float, first: float, second: float) -> None:
    smallest, longest = first * height / max(first, second, 1e-300), max(first, second)
    if not smallest > ON_A_LINE * longest:  # of the triangle's heights: any two of the solutions may coincide
        raise ValueError(
            "Three solutions must not lie on one line (or coincide): the distances from the first are "
            f"{first:.3g} and {second:.3g}, and the third is {height:.1e} away from the line through the first two.\n"
            "  Start the trainings from different seeds, or evaluate the segment between two of them."
        )
