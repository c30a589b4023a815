"""Directions and Hessians: norms per filter and branch, NumPy's principal components, dense eigendecompositions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import seeds
from flax import nnx
from jax.flatten_util import ravel_pytree

import landscape as ls
from landscape import planes
from landscape.arrays import trees
from landscape.networks import conv_branch, mlp_branch, relu_branch
from landscape.planes import directions, spectrum

pytestmark = pytest.mark.slow


@pytest.fixture
def seed() -> int:
    """A new seed each run, shown when a test fails."""
    value = int(seeds.generator().integers(2**31))
    print("seed", value)
    return value


def smooth_problem(seed: int, branches: int = 3) -> ls.Problem:
    """A small tanh network with squared loss."""
    rng = np.random.default_rng(seed)
    data = ls.Dataset(rng.normal(size=(40, 3)).astype("f4"), rng.normal(size=(40, 2)).astype("f4"))
    return ls.Problem(data, ls.MultiBranch(mlp_branch((3, 4, 2), jnp.tanh, bias=True), branches), ls.losses.squared)


def test_filters_have_the_norms_of_the_weights_in_every_branch(seed: int) -> None:
    network = ls.MultiBranch([conv_branch((4, 4, 2), (3, 5), 2, bias=True), relu_branch(32, 3, 2)], [4, 2])
    w = network.init(jax.random.key(seed))
    plane = ls.planes.random_filter_normalized(jax.random.key(seed + 1), w, network=network, vectors=True)
    for axis in (plane.u, plane.v):
        for x, d in zip(jax.tree.leaves(w), jax.tree.leaves(axis), strict=True):
            for i in range(len(x)):
                filters = [(x[i], d[i])] if x.ndim == 2 else [(x[i][..., k], d[i][..., k]) for k in range(x.shape[-1])]
                for mine, theirs in filters:
                    assert np.linalg.norm(theirs) == pytest.approx(np.linalg.norm(mine), rel=1e-5)
                    assert not np.allclose(mine, theirs)
    assert np.abs(trees.vdot(plane.u, plane.v)) < 0.9 * trees.norm(plane.u) * trees.norm(plane.v)


def filter_norms(w: object, branch_axis: bool) -> list[np.ndarray]:
    """Norms of the filters by plain NumPy."""
    return [
        np.linalg.norm(np.reshape(x, (len(x), -1, x.shape[-1]) if branch_axis else (-1, x.shape[-1])), axis=-2)
        for x in map(np.asarray, jax.tree.leaves(w))
    ]


@pytest.mark.parametrize("branch_axis", [True, False])
@pytest.mark.parametrize(
    "shapes", [[(4, 3, 5), (4, 7, 2)], [(4, 3, 5), (4, 7, 1)], [(6, 2, 3)], [(3, 3, 2, 4), (3, 5, 3)]]
)
def test_the_branch_axis_is_stated_and_never_read_from_equal_sizes(
    seed: int, shapes: list[tuple[int, ...]], branch_axis: bool
) -> None:
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    w = {f"w{i}": jax.random.normal(k, shape) for i, (k, shape) in enumerate(zip(keys, shapes, strict=True))}
    u = ls.planes.random_filter_normalized(jax.random.key(seed), w, branch_axis=branch_axis).u
    for found, wanted in zip(filter_norms(u, branch_axis), filter_norms(w, branch_axis), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5)
    with pytest.raises(ValueError, match=r"network=, the .* or branch_axis="):
        ls.planes.random_filter_normalized(jax.random.key(seed), w)
    ls.planes.random_filter_normalized(jax.random.key(seed), w, "none")


def test_a_convolution_and_a_dense_layer_of_equal_first_axes_are_one_network(seed: int) -> None:
    key = jax.random.key(seed)
    w = {"conv": jax.random.normal(key, (4, 3, 5)), "dense": jax.random.normal(key, (4, 7))}
    plain = ls.Network(lambda key: w, lambda params, x: x)
    u = ls.planes.random_filter_normalized(key, w, network=plain).u
    for found, wanted in zip(filter_norms(u, False), filter_norms(w, False), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5)
    kinds = (  # four branches of one kind and three of another
        {"a": jnp.ones((4, 3, 2)), "b": jnp.ones((4, 2))},
        {"a": jnp.ones((3, 5, 2))},
    )
    for doubtful in (w, kinds):
        with pytest.raises(ValueError, match=r"network=, the .* or branch_axis="):
            ls.planes.random_filter_normalized(key, doubtful)
    with pytest.raises(ValueError, match="first axis of every array"):
        ls.planes.random_filter_normalized(key, {"a": jnp.ones((3, 2)), "b": jnp.ones(2)}, branch_axis=True)


def test_a_network_or_its_problem_says_whether_there_is_a_branch_axis(seed: int) -> None:
    problem = smooth_problem(seed, 5)
    w, key = problem.network.init(jax.random.key(seed)), jax.random.key(seed)
    for per in ("filter", "layer"):
        told = ls.planes.random_filter_normalized(key, w, per, network=problem.network)
        for other in ({"network": problem}, {"branch_axis": True}):
            jax.tree.map(
                np.testing.assert_array_equal, told.u, ls.planes.random_filter_normalized(key, w, per, **other).u
            )
    one = jax.tree.map(lambda x: x[0], w)  # kernels and biases of different first axes: no doubt
    plain = ls.planes.random_filter_normalized(key, one)
    assert jnp.linalg.norm(plain.u[0]["kernel"], axis=0) == pytest.approx(
        np.linalg.norm(one[0]["kernel"], axis=0), rel=1e-5
    )


def test_layers_and_plain_gaussians(seed: int) -> None:
    w = ls.MultiBranch(mlp_branch((3, 4, 2)), 5).init(jax.random.key(seed))
    layer = ls.planes.random_filter_normalized(jax.random.key(seed), w, "layer", branch_axis=True)
    plain = ls.planes.random_filter_normalized(jax.random.key(seed), w, per="none")
    assert layer.kind == "random_layer"
    for x, d, raw in zip(*map(jax.tree.leaves, (w, layer.u, plain.u)), strict=True):
        wanted, found = (np.linalg.norm(np.reshape(t, (5, -1)), axis=1) for t in (x, d))
        np.testing.assert_allclose(found, wanted, rtol=1e-5)
        assert 0.2 < np.std(raw) < 2


def test_wrong_normalisation() -> None:
    w = {"kernel": jnp.ones((2, 3))}
    with pytest.raises(ValueError, match='"filter", "layer" or "none"'):
        directions.random_normalized(jax.random.key(0), w, "neuron")
    network = ls.MultiBranch(relu_branch(3), 4)
    with pytest.raises(ValueError, match=r"parameters \[4, \.\.\.\]"):
        ls.planes.random_filter_normalized(jax.random.key(0), w, network=network)


def test_principal_directions_equal_numpys(seed: int) -> None:
    rng = np.random.default_rng(seed)
    steps = np.cumsum(rng.normal(size=(9, 14)), 0).astype("f4")
    ws = [{"a": jnp.asarray(x[:6].reshape(2, 3)), "b": jnp.asarray(x[6:])} for x in steps]
    plane = ls.planes.trajectory_pca(ws)
    exact = steps.astype(float)
    _, s, vt = np.linalg.svd(exact - exact.mean(0))
    for axis, wanted in zip((plane.u, plane.v), vt, strict=False):
        found = ravel_pytree(axis)[0]
        assert abs(found @ wanted) == pytest.approx(1, abs=1e-6)
    _, _, shares = directions.principal(ws)
    np.testing.assert_allclose(shares[:8], s[:8] ** 2 / np.sum(s**2), atol=1e-10)
    np.testing.assert_allclose(plane.anchors[-1], 0, atol=1e-6)
    wanted = (exact - exact[-1]) @ np.stack([ravel_pytree(t)[0] for t in (plane.u, plane.v)]).T
    np.testing.assert_allclose(plane.anchors, wanted, atol=1e-4)


def test_degenerate_trajectories() -> None:
    w = {"a": jnp.arange(3.0)}
    with pytest.raises(ValueError, match="at least 3 points"):
        ls.planes.trajectory_pca([w, w])
    with pytest.raises(ValueError, match="on one line"):
        ls.planes.trajectory_pca([{"a": t * w["a"]} for t in (1.0, 2.0, 4.0)])
    with pytest.raises(ValueError, match="same parameters"):
        ls.planes.trajectory_pca([w, w, {"a": jnp.zeros(4)}])


def test_projection_on_an_oblique_plane(seed: int) -> None:
    rng = np.random.default_rng(seed)
    ws = [{"a": jnp.asarray(rng.normal(size=5).astype("f4"))} for _ in range(4)]
    plane = planes.oblique_through_solutions(*ws[:3])
    found = planes.project(plane, ws)
    np.testing.assert_allclose(found[:3, :2], plane.anchors, atol=1e-5)
    np.testing.assert_allclose(found[:3, 2], 0, atol=1e-5)
    gram = planes.gram_of(plane)
    flat = np.array(ws[3]["a"] - plane.origin["a"], float)
    inside = found[3, :2] @ gram @ found[3, :2]
    assert found[3, 2] ** 2 + inside == pytest.approx(flat @ flat, rel=1e-5)


def dense_hessian(problem: ls.Problem, w: object) -> np.ndarray:
    """The whole Hessian by two derivatives of the flat function, in float64."""
    with trees.float64():
        flat, unravel = ravel_pytree(jax.tree.map(lambda x: jnp.asarray(np.asarray(x), "float64"), w))
        data = problem.data
        wide = ls.Dataset(*(jnp.asarray(np.asarray(t), "float64") for t in (data.x, data.y, data.weight)))

        def risk(p: jax.Array) -> jax.Array:
            return (problem.loss(problem.network.apply(unravel(p), wide.x), wide.y)).mean()

        return np.asarray(jax.hessian(risk)(flat))


@pytest.mark.parametrize("branches", [1, 3, 9])
def test_eigenvalues_and_vectors_equal_a_dense_decomposition(seed: int, branches: int) -> None:
    problem = smooth_problem(seed, branches)
    w = problem.network.init(jax.random.key(seed))
    hessian = dense_hessian(problem, w)
    wanted = np.linalg.eigvalsh(hessian)
    found = spectrum.eigenpairs(problem, w, jax.random.key(seed), largest=2, smallest=2)
    scale = np.abs(wanted).max()
    np.testing.assert_allclose(found.values, [*wanted[::-1][:2], *wanted[:2]], atol=1e-4 * scale, rtol=1e-4)
    for value, vector in zip(found.values, found.vectors, strict=True):
        flat = np.asarray(ravel_pytree(vector)[0], float)
        assert np.linalg.norm(hessian @ flat - value * flat) < 1e-3 * scale
    plane = ls.planes.top_hessian(problem, w, jax.random.key(seed))
    np.testing.assert_allclose(planes.gram_of(plane), np.eye(2), atol=1e-5)
    flat = np.asarray(ravel_pytree(plane.u)[0], float)
    assert flat @ hessian @ flat == pytest.approx(wanted[-1], rel=1e-4)


def test_a_pure_function_and_repeated_eigenvalues() -> None:
    curvatures = jnp.asarray([5.0, 5.0, -2.0, 0.0, 0.0, 1.0])
    found = spectrum.eigenpairs(
        lambda w: {"risk": (curvatures * w["x"] ** 2).sum() / 2}, {"x": jnp.ones(6)}, jax.random.key(3), smallest=1
    )
    np.testing.assert_allclose(found.values, [5, 5, -2], atol=1e-4)
    assert abs(trees.vdot(found.vectors[0], found.vectors[1])) < 1e-4


def test_gradient_and_negative_curvature(seed: int) -> None:
    problem = smooth_problem(seed)
    w = problem.network.init(jax.random.key(seed))
    plane = ls.planes.gradient_curvature(problem, w, jax.random.key(0))
    np.testing.assert_allclose(planes.gram_of(plane), np.eye(2), atol=1e-5)
    slope = problem.gradient(w)
    assert trees.vdot(slope, plane.u) == pytest.approx(float(trees.norm(slope)), rel=1e-5)
    with pytest.raises(ValueError, match="gradient has norm 0"):
        ls.planes.gradient_curvature(lambda p: (p["x"] ** 2).sum(), {"x": jnp.zeros(3)}, jax.random.key(0))


def test_trace_and_density(seed: int) -> None:
    problem = smooth_problem(seed)
    w = problem.network.init(jax.random.key(seed))
    values = np.linalg.eigvalsh(dense_hessian(problem, w))
    found = spectrum.trace(problem, w, jax.random.key(seed), probes=200)
    assert abs(found.mean - values.sum()) < 5 * found.error + 1e-4
    density = spectrum.density(problem, w, jax.random.key(seed), probes=30, steps=40)
    np.testing.assert_allclose(density.weights.sum(1), 1, atol=1e-6)
    spread = np.abs(values).max()
    mean = (density.weights * density.nodes).sum() / 30
    assert mean == pytest.approx(values.mean(), abs=0.15 * spread)
    x, smooth = density.smooth()
    assert np.trapezoid(smooth, x) == pytest.approx(1)
    assert density.nodes.max() <= values.max() + 1e-3 * spread
    with pytest.raises(ValueError, match="at least 2 probes"):
        spectrum.trace(problem, w, jax.random.key(0), probes=1)


def test_a_smoothed_density_integrates_to_one_and_keeps_its_mean(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(100):
        probes, steps = rng.integers(1, 9), rng.integers(1, 60)
        nodes = rng.normal(size=(probes, steps)) * 10 ** rng.uniform(-6, 6) + rng.choice([0, -3, 1e4])
        nodes = nodes if rng.random() < 0.8 else np.full((probes, steps), nodes[0, 0])
        found = spectrum.Density(nodes, rng.dirichlet(np.full(steps, 0.3), probes))
        points, width = int(rng.integers(2, 400)), 10 ** rng.uniform(-5, 1)
        x, y = found.smooth(points, width)
        assert np.trapezoid(y, x) == pytest.approx(1, abs=1e-9), (points, width)
        assert y.min() >= 0
        cell, mean = x[1] - x[0], (found.weights * nodes).sum() / probes
        assert abs(np.trapezoid(x * y, x) - mean) <= cell, (points, width)
    with pytest.raises(ValueError, match="at least 2 points and a positive width"):
        found.smooth(1)
    with pytest.raises(ValueError, match="positive width"):
        found.smooth(width=0)


def test_a_wide_smoothed_density_is_the_mixture_of_gaussians(seed: int) -> None:
    rng = np.random.default_rng(seed)
    found = spectrum.Density(rng.normal(size=(3, 7)), rng.dirichlet(np.ones(7), 3))
    x, y = found.smooth(2001, 0.1)
    sigma = 0.1 * np.ptp(found.nodes)
    bells = [
        w * np.exp(-(((x - m) / sigma) ** 2) / 2) for m, w in zip(found.nodes.flat, found.weights.flat, strict=True)
    ]
    wanted = np.sum(bells, 0) / (3 * sigma * np.sqrt(2 * np.pi))
    np.testing.assert_allclose(
        y[1:-1], wanted[1:-1], atol=1e-4 * wanted.max()
    )  # the ends hold the tails beyond 4 sigma


def test_flax_modules_have_their_filters_last(seed: int) -> None:
    network = ls.from_flax(lambda rngs: nnx.Conv(2, 7, (3, 3), rngs=rngs))
    w = network.init(jax.random.key(seed))
    u = ls.planes.random_filter_normalized(jax.random.key(seed), w, network=network).u
    for k in range(7):
        assert np.linalg.norm(u["kernel"][..., k]) == pytest.approx(np.linalg.norm(w["kernel"][..., k]), rel=1e-5)
