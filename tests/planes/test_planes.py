"""Planes through three solutions: exact anchors, orthonormal axes, the published picture's oblique axes; refusals."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import seeds

from landscape import planes
from landscape.arrays import trees

SHAPES = {"kernel": (5, 3, 4), "bias": (5, 4)}


def random(rng: np.random.Generator, scale: float = 1.0) -> dict[str, jax.Array]:
    return {name: jnp.asarray(scale * rng.normal(size=shape), jnp.float32) for name, shape in SHAPES.items()}


def flat(tree: Any) -> np.ndarray:
    return np.concatenate([np.asarray(x, float).ravel() for x in jax.tree.leaves(tree)])


@pytest.mark.parametrize("build", [planes.through_solutions, planes.oblique_through_solutions])
@pytest.mark.parametrize("near", [1.0, 1e-2])
def test_the_solutions_are_anchors(build: Callable, near: float) -> None:
    """Also where the solutions are close together, as after training from one start."""
    rng = seeds.generator()
    first = random(rng)
    solutions = [first, *(trees.axpy(near, random(rng), first) for _ in range(2))]
    plane = build(*solutions)
    assert plane.anchors.dtype == np.float64
    for ab, w in zip(plane.anchors, solutions, strict=True):
        np.testing.assert_allclose(flat(plane.at(tuple(ab))), flat(w), atol=1e-5)


def test_orthonormal_axes_measure_distances() -> None:
    rng = seeds.generator()
    w0, w1, w2 = (random(rng, 3.0) for _ in range(3))
    w2 = trees.axpy(2.0, w1, trees.scale(1e-2, w2))  # nearly on the line through the others: rounding shows
    plane = planes.through_solutions(w0, w1, w2)
    u, v = flat(plane.u), flat(plane.v)
    np.testing.assert_allclose([u @ u, v @ v, u @ v], [1, 1, 0], atol=2e-6)
    for (i, p), (j, q) in ((s, t) for s in enumerate((w0, w1, w2)) for t in enumerate((w0, w1, w2))):
        apart = np.linalg.norm(flat(p) - flat(q))
        np.testing.assert_allclose(np.linalg.norm(plane.anchors[i] - plane.anchors[j]), apart, rtol=1e-5, atol=1e-5)
    assert plane.kind == "orthonormal"
    assert (plane.anchors[0] == 0).all()
    assert plane.anchors[1, 1] == 0
    assert plane.anchors[2, 1] > 0


def test_oblique_axes_of_the_published_pictures() -> None:
    rng = seeds.generator()
    w0, w1, w2 = (random(rng) for _ in range(3))
    plane = planes.oblique_through_solutions(w0, w1, w2)
    size = np.linalg.norm(flat(w2))
    np.testing.assert_allclose(flat(plane.origin), (flat(w0) + flat(w1) + flat(w2)) / 3, atol=1e-6)
    for axis, end in ((plane.u, w1), (plane.v, w2)):
        away = flat(end) - flat(w0)
        np.testing.assert_allclose(flat(axis), size * away / np.linalg.norm(away), atol=1e-5)
    np.testing.assert_allclose(plane.anchors.mean(0), 0, atol=1e-12)
    assert plane.kind == "oblique"


def test_a_plane_is_a_tree_and_says_what_it_is_in_one_line() -> None:
    rng = seeds.generator()
    plane = planes.through_solutions(*(random(rng) for _ in range(3)))
    assert repr(plane) == "Plane(orthonormal: 80 parameters, 3 anchors)"
    (o, u, v), (a, b) = map(flat, plane[:3]), rng.normal(size=2)
    np.testing.assert_allclose(flat(jax.jit(plane.at)((a, b))), o + a * u + b * v, atol=1e-5)


def other_names(w: Any) -> Any:
    return {"weights": w["kernel"], "bias": w["bias"]}


def other_shapes(w: Any) -> Any:
    return {**w, "bias": w["bias"][:-1]}


def not_finite(w: Any) -> Any:
    return {**w, "bias": w["bias"].at[3, 2].set(jnp.nan)}


@pytest.mark.parametrize("build", [planes.through_solutions, planes.oblique_through_solutions])
@pytest.mark.parametrize("position", [0, 1, 2])
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (other_names, "same parameters.*weights"),
        (other_shapes, r"same parameters.*bias.*\[4, 4\]"),
        (not_finite, "not finite; train it again"),
        (lambda w: trees.scale(jnp.inf, w), "not finite"),
    ],
)
def test_solutions_that_share_no_plane_are_refused(build, position: int, spoil, message: str) -> None:
    rng = seeds.generator()
    solutions = [random(rng) for _ in range(3)]
    solutions[position] = spoil(solutions[position])
    with pytest.raises(ValueError, match=message):
        build(*solutions)


@pytest.mark.parametrize("build", [planes.through_solutions, planes.oblique_through_solutions])
@pytest.mark.parametrize("order", [(0, 1, 2), (1, 2, 0), (2, 0, 1)])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_solutions_on_one_line_are_refused(build, order: tuple[int, ...], share: float) -> None:
    rng = seeds.generator()
    w0, w1 = random(rng), random(rng)
    line = (w0, w1, trees.axpy(share, trees.subtract(w1, w0), w0))  # the third between them or equal to one
    with pytest.raises(ValueError, match=r"one line(.|\n)*different seeds"):
        build(*(line[i] for i in order))


def test_nothing_to_span() -> None:
    with pytest.raises(ValueError, match="no parameters"):
        planes.through_solutions({}, {}, {})
    w = random(seeds.generator())
    with pytest.raises(ValueError, match="one line"):
        planes.through_solutions(w, w, w)
    with pytest.raises(ValueError, match="norm of the third solution"):
        planes.oblique_through_solutions(w, random(seeds.generator()), jax.tree.map(jnp.zeros_like, w))
