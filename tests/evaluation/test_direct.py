"""The direct route gives the surfaces of an independent loop and of the lanes, in one program, however it is run."""

import re
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import seeds

import landscape as ls
from landscape.arrays import trees
from landscape.evaluation import cost_model, direct, example_layout, sharded, surface_on
from landscape.evaluation.execution import Execution
from landscape.evaluation.grid_loop import Tile
from landscape.evaluation.moments import Weights
from landscape.files import atomic
from landscape.networks import Network

N, SIDE, CLASSES = 21, 6, 3
ONE = tuple(jax.local_devices()[:1])


def init(key: jax.Array) -> dict[str, jax.Array]:
    shapes = {"k": (3, 3, 3, 5), "b": (5,), "m": (3, 3, 5, 4), "o": (4, CLASSES)}
    keys = jax.random.split(key, len(shapes))
    return {name: 0.5 * jax.random.normal(k, shape) for k, (name, shape) in zip(keys, shapes.items(), strict=True)}


def apply(w: Any, x: jax.Array) -> jax.Array:
    convolve = partial(jax.lax.conv_general_dilated, padding="SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    h = jax.nn.relu(convolve(x, w["k"], (1, 1)) + w["b"][None, None, None])
    return jnp.tanh(convolve(h, w["m"], (2, 2))).mean((1, 2)) @ w["o"]


def forward(w: Any, x: np.ndarray) -> np.ndarray:
    h = np.maximum(oracles.convolution({"kernel": w["k"], "bias": w["b"]}, x), 0)
    h = oracles.convolution({"kernel": w["m"], "bias": np.zeros(4)}, h, 2)
    return np.tanh(h).mean((1, 2)) @ w["o"]


class Deep:
    """A convolutional network of I branches on random images, with a plane and a grid."""

    def __init__(self, branches: int) -> None:
        rng = seeds.generator()
        x, y = rng.normal(size=(N, SIDE, SIDE, 3)).astype("f4"), rng.integers(0, CLASSES, N)
        data = ls.Dataset(x, y, rng.uniform(0.5, 1.5, N))
        network = ls.MultiBranch(Network(init, apply), branches)
        self.problem = ls.Problem(data, network, ls.losses.multiclass_hinge)
        self.plane = ls.planes.through_solutions(*(network.init(jax.random.key(seeds.draw())) for _ in range(3)))
        self.grid = ls.grid_around(self.plane, (3, 4))

    def surface(self, **options: Any) -> ls.Surface:
        wrong = {"error": lambda f, y: 1.0 * (f.argmax(-1) != y)}
        return surface_on(self.problem, self.plane, self.grid, Execution(**options), wrong)

    def risk(self, w: Any) -> float:
        data, branches = self.problem.data, self.problem.network.total
        f = np.mean([forward({k: t[i] for k, t in w.items()}, np.asarray(data.x, float)) for i in range(branches)], 0)
        return oracles.risk(f, np.asarray(data.y), np.asarray(data.weight, float), oracles.multiclass_hinge)


@pytest.fixture(scope="module", params=[1, 2])
def deep(request: pytest.FixtureRequest) -> Deep:
    return Deep(request.param)


@pytest.fixture(scope="module")
def found(deep: Deep) -> ls.Surface:
    return deep.surface(devices=ONE, tile=Tile(8, 1, 1, 1))


def test_it_is_chosen_and_equals_an_independent_loop(deep: Deep, found: ls.Surface) -> None:
    words = "direct: [0-9]+% of a forward pass lies behind the first layer"
    once = ", which is computed once a chunk of examples" if deep.problem.network.total == 1 else ""
    assert re.fullmatch(words + once, found.metadata["route"])
    np.testing.assert_allclose(found.risk, oracles.surface(deep.plane[:3], deep.grid, deep.risk), rtol=2e-5)
    at_anchors = [deep.risk(oracles.float64(deep.plane.at(tuple(ab)))) for ab in deep.plane.anchors]
    np.testing.assert_allclose(found.anchor_risk, at_anchors, rtol=2e-5)
    assert found.metadata["checks"]["relative_difference"] < 1e-5


def test_the_lanes_agree(deep: Deep, found: ls.Surface) -> None:
    lanes = deep.surface(devices=ONE, route="lanes")
    assert lanes.metadata["route"] == "lanes: as asked"
    np.testing.assert_allclose(found.risk, lanes.risk, rtol=1e-5)
    np.testing.assert_allclose(found.layers["error"], lanes.layers["error"], atol=1e-5)
    np.testing.assert_allclose(found.anchor_risk, lanes.anchor_risk, rtol=1e-5)


@pytest.mark.parametrize(("devices", "threads"), [(4, None), (1, 2), (1, 3)])
@pytest.mark.parametrize("examples", [2, 4, 32])
def test_devices_and_threads_share_examples_or_points(
    deep: Deep, found: ls.Surface, devices: int, threads: int | None, examples: int
) -> None:
    """Of 21 examples: eleven chunks, six, or one, so that the points are shared."""
    options = {"devices": tuple(jax.local_devices()[:devices]), "threads": threads, "tile": Tile(examples, 1, 1, 2)}
    shared = deep.surface(**options)
    np.testing.assert_allclose(shared.risk, found.risk, rtol=1e-5)
    np.testing.assert_allclose(shared.anchor_risk, found.anchor_risk, rtol=1e-5)
    np.testing.assert_array_equal(shared.risk, deep.surface(**options).risk)


def test_interrupted_and_continued_is_the_same_to_the_last_bit(deep: Deep, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(example_layout, "OPERATIONS_A_BLOCK", {"cpu": 1.0})
    options: dict[str, Any] = {"devices": ONE, "threads": 2, "tile": Tile(3, 1, 1, 1)}
    whole, left = deep.surface(**options), iter(range(2))

    def stop() -> None:
        if next(left, None) is None:
            raise atomic.Stopped

    with pytest.raises(atomic.Stopped):
        deep.surface(directory=tmp_path, check_stop=stop, **options)
    assert len(list(tmp_path.glob("block-*.npz"))) == 3
    again = deep.surface(directory=tmp_path, **options)
    np.testing.assert_array_equal(again.risk, whole.risk)
    np.testing.assert_array_equal(again.anchor_risk, whole.anchor_risk)
    lanes = deep.surface(directory=tmp_path, **options | {"route": "lanes", "tile": None})
    np.testing.assert_allclose(lanes.risk, whole.risk, rtol=1e-5)


def test_grid_anchors_and_checks_are_one_program() -> None:
    deep, traced = Deep(1), []

    def loss(f: jax.Array, y: jax.Array) -> jax.Array:
        traced.append(f.shape)
        return ls.losses.multiclass_hinge(f, y)

    problem = ls.Problem(deep.problem.data, deep.problem.network, loss)
    surface_on(problem, deep.plane, deep.grid, Execution(devices=ONE, tile=Tile(5, 1, 1, 1)))
    assert traced.count((5, CLASSES)) == 1, traced


def test_branches_split_over_devices() -> None:
    deep, devices = Deep(4), tuple(jax.local_devices()[:4])
    one = deep.surface(devices=ONE)
    split = deep.surface(devices=devices, branch_shards=2, tile=Tile(4, 1, 1, 1))
    np.testing.assert_allclose(split.risk, one.risk, rtol=1e-5)
    assert split.metadata["route"].startswith("direct")


@pytest.mark.parametrize(
    ("branch", "branches", "route"),
    [
        (ls.networks.relu_branch(10), 1000, "lanes"),
        (ls.networks.mlp_branch((784, 8, 10)), 100, "lanes"),
        (ls.networks.mlp_branch((3072, 8, 8, 8, 10)), 100, "lanes"),
        (ls.networks.mlp_branch((3072, 512, 512, 10)), 1, "lanes"),
        (ls.networks.mlp_branch((100, 300, 300, 300, 10)), 1, "direct"),
        (ls.networks.mlp_branch((100, 300, 300, 300, 10)), 20, "direct"),
        (ls.networks.mlp_branch((10, 16, 16, 16, 3)), 20, "lanes"),
    ],
)
def test_the_cost_model_chooses(branch: Network, branches: int, route: str) -> None:
    network = ls.MultiBranch(branch, branches)
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    size = jax.tree.leaves(shapes)[0].shape[1]
    found = cost_model.plan(
        network, shapes, jax.ShapeDtypeStruct((size,), "f4"), examples=100, points=(9, 9), memory=2**33
    )
    assert found.route.name == route
    assert found.route.why


def test_an_unknown_route_is_refused(deep: Deep) -> None:
    with pytest.raises(ValueError, match='route must be "lanes", "direct" or None; got \'fast\''):
        ls.evaluate(deep.problem, deep.plane, deep.grid, route="fast", progress=False)


@pytest.mark.parametrize("branch", ["convolutions", "products"])
def test_the_bytes_planned_are_those_compiled(branch: str) -> None:
    deep = Deep(1)
    network = deep.problem.network if branch == "convolutions" else None
    network = network or ls.MultiBranch(ls.networks.mlp_branch((108, 700, 700, 700, 10)), 1)
    x = deep.problem.data.x if branch == "convolutions" else np.zeros((N, 108), "f4")
    problem = ls.Problem(
        ls.Dataset(np.tile(x, (20, *[1] * (x.ndim - 1))), np.zeros(20 * N, int)), network, deep.problem.loss
    )
    plane = ls.Plane(*(problem.shapes,) * 3, np.zeros((0, 2)))
    plan = sharded.plan_for(problem, plane, ls.Grid(np.arange(9.0), np.arange(9.0)), Execution(devices=ONE))
    n = plan.tile.examples
    data = jax.tree.map(lambda t: jax.ShapeDtypeStruct((4 * n, *t.shape[1:]), t.dtype), problem.data)
    weights = Weights(data.weight, jax.ShapeDtypeStruct((4 * n,), "i4"))
    inputs = (data.x, data.y, weights, jax.ShapeDtypeStruct((1,), "i4"))
    points = jax.ShapeDtypeStruct((81, 2), "f4"), jax.ShapeDtypeStruct((1,), "i4")
    run = jax.jit(lambda *args: direct.point_sums(network, [problem.loss], *args, plan.tile, plan.route.prefix)).lower(
        plane.affine, inputs, points
    )
    used = run.compile().memory_analysis().temp_size_in_bytes
    least = 0.8 if branch == "products" else 0.4  # XLA holds copies of its own around convolutions
    assert least * used < plan.temporary < 1.2 * used + 2**16, (used, plan)


def test_kinds_with_outputs_of_different_shapes() -> None:
    """[C] and [1]: broadcast, as the lanes do."""

    def shape(*of: int) -> Network:
        return Network(
            lambda key: {"w": jax.random.normal(key, (4, *of))}, lambda w, x: jnp.tensordot(x, w["w"], 1) ** 2
        )

    rng, kinds = seeds.generator(), [shape(3), shape(1)]
    network = ls.MultiBranch(kinds, [2, 3])
    data = ls.Dataset(rng.normal(size=(9, 4)).astype("f4"), rng.normal(size=(9, 3)).astype("f4"))
    problem = ls.Problem(data, network, lambda f, y: ((f - y) ** 2).mean(1))
    plane = ls.planes.through_solutions(*(network.init(jax.random.key(seeds.draw())) for _ in range(3)))
    grid = ls.grid_around(plane, (3, 2))
    one, other = (ls.evaluate(problem, plane, grid, route=route, progress=False).risk for route in cost_model.ROUTES)
    np.testing.assert_allclose(one, other, rtol=1e-5)


def test_float64() -> None:
    deep = Deep(1)
    with trees.float64():
        data, plane = deep.problem.data, deep.plane
        problem = ls.Problem(
            ls.Dataset(np.asarray(data.x, float), data.y, data.weight), deep.problem.network, deep.problem.loss
        )
        plane = ls.Plane(*(jax.tree.map(lambda t: jnp.asarray(t, float), t) for t in plane[:3]), plane.anchors)
        found = surface_on(problem, plane, deep.grid, Execution(devices=ONE, threads=2))
    np.testing.assert_allclose(found.risk, oracles.surface(plane[:3], deep.grid, deep.risk), rtol=1e-12)
