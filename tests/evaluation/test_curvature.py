"""Slopes and curvatures inside a plane against closed forms and the full Hessian; reasons not to show them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import seeds

import landscape as ls
from landscape.evaluation import curvature
from landscape.networks import mlp_branch


def problem_of(loss: object, activation: object, seed: int) -> ls.Problem:
    """A small network on random data with labels ±1."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(30, 3)).astype("f4")
    data = ls.Dataset(x, np.sign(rng.normal(size=30)).astype("f4"))
    return ls.Problem(data, ls.MultiBranch(mlp_branch((3, 4, 1), activation), 3), loss)


def plane_of(problem: ls.Problem, seed: int) -> ls.Plane:
    return ls.planes.through_solutions(*(problem.network.init(k) for k in jax.random.split(jax.random.key(seed), 3)))


def test_a_quadratic_has_its_own_derivatives() -> None:
    matrix = jnp.asarray([[3.0, 1.0], [1.0, -2.0]])
    plane = ls.Plane({"w": jnp.zeros(2)}, {"w": jnp.array([1.0, 0])}, {"w": jnp.array([0.0, 1])}, np.zeros((1, 2)))
    grid = ls.Grid(np.linspace(-1, 2, 5), np.linspace(0, 1, 3))
    found = curvature.in_plane(lambda p: p["w"] @ matrix @ p["w"] / 2, plane, grid)
    points = np.stack(np.meshgrid(*grid, indexing="ij"), -1)
    np.testing.assert_allclose(found.gradient, points @ np.asarray(matrix), atol=1e-5)
    np.testing.assert_allclose(found.hessian, np.broadcast_to(matrix, (5, 3, 2, 2)), atol=1e-5)
    np.testing.assert_allclose(found.eigenvalues[1, 1], np.linalg.eigvalsh(matrix), atol=1e-5)
    assert found.reason == ""
    assert found.unexplained_fraction < 1e-5
    assert set(found.layers()) >= {"curvature_min", "curvature_max", "hessian_ab", "slope_a"}


def test_the_plane_sees_the_full_hessian() -> None:
    seed = int(seeds.generator().integers(2**31))
    problem = problem_of(ls.losses.squared, jnp.tanh, seed)
    plane = plane_of(problem, seed)
    found = curvature.in_plane(problem, plane, ls.grid_around(plane, (9, 7), 0.1))
    grid = ls.grid_around(plane, (9, 7), 0.1)
    w = plane.at((grid.a[2], grid.b[4]))
    for k, axis in enumerate((plane.u, plane.v)):
        bent = problem.hessian_vector_product(w, axis)
        row = [float(ls.planes.trees.vdot(bent, other)) for other in (plane.u, plane.v)]
        np.testing.assert_allclose(found.hessian[2, 4, k], row, rtol=2e-3, atol=2e-4), seed
    assert found.reason == "", (seed, found.unexplained_fraction)


@pytest.mark.parametrize("loss", [ls.losses.hinge, ls.losses.tau_hinge(tau=2.0)])
def test_piecewise_linear_losses_say_why(loss: object) -> None:
    problem = problem_of(loss, jnp.tanh, 1)
    plane = plane_of(problem, 1)
    found = curvature.in_plane(problem, plane, ls.grid_around(plane, (5, 4)))
    assert "piecewise linear" in found.reason
    assert "curvature_min" not in found.layers()
    assert not curvature.piecewise_linear(problem_of(ls.losses.logistic, jnp.tanh, 1))


def test_kinks_of_any_function_are_noticed() -> None:
    plane = ls.Plane({"w": jnp.zeros(2)}, {"w": jnp.array([1.0, 0])}, {"w": jnp.array([0.0, 1])}, np.zeros((1, 2)))
    found = curvature.in_plane(
        lambda p: jnp.abs(p["w"] - 0.1).sum() + 0.01 * (p["w"] ** 2).sum(),
        plane,
        ls.Grid(np.linspace(-1, 1, 8), np.linspace(-1, 1, 8)),
    )
    assert found.unexplained_fraction > 0.9
    assert "kinks" in found.reason
