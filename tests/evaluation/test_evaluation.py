"""Surfaces equal an independent float64 loop, whatever the tile, the devices and the interruptions."""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import seeds

import landscape as ls
from landscape import evaluation, networks, planes
from landscape.arrays import hardware, trees
from landscape.evaluation import block, example_layout, sharded
from landscape.evaluation.execution import Execution
from landscape.evaluation.grid_loop import Tile
from landscape.evaluation.moments import Weights
from landscape.files import atomic


def case(rng, outputs=1, branches=7, examples=45, inputs=6, hidden=3, average=False) -> tuple[ls.Problem, ls.Plane]:
    """Two-layer ReLU branches on weighted examples, and a plane through three of their random parameters."""
    x = rng.normal(size=(examples, inputs)).astype("f4")
    y = np.sign(rng.normal(size=examples)).astype("f4") if outputs == 1 else rng.integers(0, outputs, examples)
    network = ls.MultiBranch(networks.relu_branch(inputs, hidden, outputs), branches, average=average)
    loss = ls.losses.hinge if outputs == 1 else ls.losses.multiclass_hinge
    problem = ls.Problem(ls.Dataset(x, y, rng.uniform(0.5, 1.5, examples)), network, loss)
    return problem, plane_of(network, rng)


def plane_of(network: ls.MultiBranch, rng: np.random.Generator) -> ls.Plane:
    init = jax.jit(network.init)
    return planes.through_solutions(*(init(jax.random.key(int(k))) for k in rng.integers(0, 10**6, 3)))


def expected(problem: ls.Problem, plane: ls.Plane, grid: ls.Grid, *forwards: oracles.Branch) -> np.ndarray:
    """The surface by loops over points and branches."""
    x, y, weight = (np.asarray(t) for t in (problem.data.x, problem.data.y, problem.data.weight))
    loss = {ls.losses.hinge: oracles.hinge, ls.losses.squared: oracles.squared}.get(
        problem.loss, oracles.multiclass_hinge
    )

    def risk(w: Any) -> float:
        groups = zip(forwards or [oracles.mlp()], w if forwards else [w], strict=True)
        return oracles.risk(oracles.network(list(groups), x, problem.network.average), y, weight.astype(float), loss)

    return oracles.surface(plane[:3], grid, risk)


def random_tile(rng: np.random.Generator) -> Tile:
    branches = int(rng.integers(1, 9))
    return Tile(int(rng.integers(1, 7)) * 8, branches, int(rng.integers(1, branches + 1)), int(rng.integers(1, 7)))


TILES: dict[str, Callable[[np.random.Generator], Tile | None]] = {
    "chosen": lambda rng: None,
    "whole": lambda rng: Tile(48, 7, 7, 5),
    "ragged": lambda rng: Tile(8, 4, 2, 3),
    "random": random_tile,
}


@pytest.mark.parametrize(("tile", "outputs"), list(itertools.product(TILES, (1, 10))))
def test_surfaces_equal_an_independent_loop(tile: str, outputs: int) -> None:
    seed = seeds.draw()
    rng = np.random.default_rng(seed)
    problem, plane = case(rng, outputs, average=bool(rng.integers(2)))
    grid, sizes = ls.grid_around(plane, (5, 4)), TILES[tile](rng)
    wanted = expected(problem, plane, grid)
    found = ls.evaluate(problem, plane, grid, tile=sizes, progress=False)
    np.testing.assert_allclose(found.risk, wanted, rtol=2e-5, atol=1e-6, err_msg=f"{seed} {sizes}")
    assert found.metadata["checks"]["deterministic"]
    assert found.metadata["checks"]["max_difference"] < 1e-5 * max(1, wanted.max())
    for ab, risk in zip(plane.anchors, found.anchor_risk, strict=True):
        direct = expected(problem, plane, ls.Grid(*ab.reshape(2, 1)))
        np.testing.assert_allclose(risk, direct[0, 0], rtol=2e-5, atol=1e-6, err_msg=f"{seed}")


def test_the_solutions_are_points_of_the_surface() -> None:
    rng = seeds.generator()
    problem, plane = case(rng)
    grid = ls.Grid(np.unique(plane.anchors[:, 0]), np.unique(plane.anchors[:, 1]))
    found = ls.evaluate(problem, plane, grid, progress=False)
    for ab, risk in zip(plane.anchors, found.anchor_risk, strict=True):
        i, j = (int(np.flatnonzero(axis == value)[0]) for axis, value in zip(grid, ab, strict=True))
        np.testing.assert_allclose(found.risk[i, j], risk, rtol=1e-5)


@pytest.mark.parametrize("examples", [45, 3])
def test_one_device_equals_four_and_rows_are_shared_when_examples_are_few(examples: int) -> None:
    problem, plane = case(seeds.generator(), examples=examples)
    grid = ls.grid_around(plane, (5, 6))
    one, four = (
        ls.evaluate(problem, plane, grid, tile=Tile(8, 7, 7, 1), devices=jax.local_devices()[:d], progress=False)
        for d in (1, 4)
    )
    np.testing.assert_allclose(one.risk, four.risk, rtol=1e-6)
    assert four.metadata["device"].startswith("4 x")


@pytest.mark.slow
def test_branches_split_over_devices_are_those_of_one_device() -> None:
    share, rng, devices = 2, seeds.generator(), jax.local_devices()[:4]
    branches = [networks.relu_branch(6, 2, 3, bias=True), networks.mlp_branch((6, 3), bias=True)]
    network = ls.MultiBranch(branches, [8, 4])
    with trees.float64():
        data = ls.Dataset(rng.normal(size=(20, 6)), rng.integers(0, 3, 20), rng.uniform(0.5, 1.5, 20))
        problem, plane = ls.Problem(data, network, ls.losses.multiclass_hinge), plane_of(network, rng)
        grid, tile = ls.grid_around(plane, (3, 4)), Tile(8, 2, 1, 1)
        one = ls.evaluate(problem, plane, grid, tile=tile, devices=devices[:1], progress=False)
        split = planes.through_solutions(*(hardware.at_home(plane.at(tuple(ab)), share) for ab in plane.anchors))
        options = {"tile": tile, "devices": devices, "branch_devices": share, "progress": False}
        found = ls.evaluate(problem, split, grid, **options)
        held = [len(w.sharding.device_set) for w in jax.tree.leaves(split.at((0.5, 0.5)))]
    np.testing.assert_allclose(found.risk, one.risk, rtol=1e-12)
    np.testing.assert_allclose(found.anchor_risk, one.anchor_risk, rtol=1e-12)
    assert found.metadata["checks"]["max_difference"] < 1e-6  # weights are summed in float32
    assert held == [share] * 6


def test_branches_are_split_when_three_solutions_do_not_fit_one_device() -> None:
    network = ls.MultiBranch(networks.mlp_branch((300, 8, 8, 4)), 400)
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    data = ls.Dataset(np.zeros((64, 300), "f4"), np.zeros(64, int))
    problem, plane = ls.Problem(data, network, ls.losses.multiclass_hinge), ls.Plane(*(shapes,) * 3, np.zeros((0, 2)))
    grid, tile = ls.Grid(np.arange(4.0), np.arange(3.0)), Tile(16, 20, 20, 1)
    size, used = 3 * trees.nbytes(shapes), {}
    for share, memory in ((1, 1.5 * size), (2, 0.8 * size), (4, 0.4 * size)):
        plan = evaluation.plan(problem, plane, grid, int(memory), tile)
        assert plan.branch_shards == share
        mesh = hardware.mesh(jax.local_devices()[:4], points=4 // share, examples=1, branches=share)
        kinds = ((64, 300), "f4"), ((64,), "i4"), ((64,), "f4"), ((64,), "i4")
        x, y, weight, group = (jax.ShapeDtypeStruct(*kind) for kind in kinds)
        arguments = trees.Affine(shapes, shapes, shapes), (x, y, Weights(weight, group))
        axes = tuple(jax.ShapeDtypeStruct((n,), "f4") for n in (4, 4))
        options = {"network": network, "losses": (problem.loss,), "tile": tile, "mesh": mesh}
        compiled = block.block_sums.lower(*arguments, axes, weight, **options).compile()
        used[share] = compiled.memory_analysis().argument_size_in_bytes
    assert used[4] * 4 < 1.1 * used[1]
    assert used[2] * 2 < 1.1 * used[1]
    with pytest.raises(ValueError, match=r"branch_devices must divide the 4 devices(.|\n)*one of \[1, 2, 4\]; got 3"):
        ls.evaluate(*case(seeds.generator(), branches=8), branch_devices=3)


def test_groups_of_different_branches() -> None:
    rng = seeds.generator()
    kinds = [networks.relu_branch(6, 2, 1), networks.mlp_branch((6, 3, 2, 1), jnp.tanh, bias=True)]
    network = ls.MultiBranch(kinds, [3, 2])
    x, y = rng.normal(size=(20, 6)).astype("f4"), np.sign(rng.normal(size=20)).astype("f4")
    problem, plane = ls.Problem(ls.Dataset(x, y), network, ls.losses.squared), plane_of(network, rng)
    grid = ls.grid_around(plane, (3, 4))
    found = ls.evaluate(problem, plane, grid, tile=Tile(8, 2, 1, 1), progress=False)
    wanted = expected(problem, plane, grid, oracles.mlp(), oracles.mlp("tanh"))
    np.testing.assert_allclose(found.risk, wanted, rtol=2e-5)


def test_float64_throughout() -> None:
    with trees.float64():
        problem, plane = case(seeds.generator())
        problem = ls.Problem(
            ls.Dataset(problem.data.x.astype(float), problem.data.y, problem.data.weight), problem.network, problem.loss
        )
        plane = planes.through_solutions(
            *(jax.tree.map(lambda t: t.astype(float), plane.at(tuple(ab))) for ab in plane.anchors)
        )
        grid = ls.grid_around(plane, (4, 3))
        found = ls.evaluate(problem, plane, grid, progress=False)
        np.testing.assert_allclose(found.risk, expected(problem, plane, grid), rtol=1e-12)


def test_each_tile_shape_is_traced_once(monkeypatch) -> None:
    monkeypatch.setattr(example_layout, "OPERATIONS_A_BLOCK", {"cpu": 1.0})
    problem, plane = case(seeds.generator(), examples=200)
    calls = []

    def counted(outputs, y):
        calls.append(outputs.shape)
        return ls.losses.hinge(outputs, y)

    grid, tile = ls.grid_around(plane, (5, 4)), Tile(8, 7, 7, 1)
    execution = Execution(tile=tile, devices=tuple(jax.local_devices()[:1]))
    sharded.problem_means(problem, plane, grid, [counted], execution)
    assert len(calls) == 1, calls


def test_a_branch_is_traced_once_a_surface(tmp_path) -> None:
    """The plan, the grid loop, the check at the anchors and the hash of the files share one trace."""
    calls = []

    def forward(w, x):
        calls.append(x.shape)
        return jnp.tanh(x @ w["kernel"])

    def init(key):
        return {"kernel": jax.random.normal(key, (6, 2))}

    rng = seeds.generator()
    data = ls.Dataset(rng.normal(size=(300, 6)).astype("f4"), rng.integers(0, 2, 300))
    problem = ls.Problem(data, ls.MultiBranch(networks.Network(init, forward), 3), ls.losses.multiclass_hinge)
    plane, other = plane_of(problem.network, rng), plane_of(problem.network, rng)
    grid, options = ls.grid_around(plane, (3, 4)), {"directory": tmp_path, "progress": False}
    layers = {"error": lambda f, y: 1.0 * (f.argmax(-1) != y)}
    calls.clear()
    ls.evaluate(problem, plane, grid, layers=layers, **options)
    # Three calls find out whether the branch takes batches, and the evaluator traces it once. What checks the evaluator
    # traces the plain network by itself: its shapes and direct evaluations, and two examples together and alone.
    assert len(calls) <= 3 + 1 + 3 + 4, calls
    calls.clear()
    ls.evaluate(problem, other, ls.grid_around(other, (4, 3)), layers=layers, **options)
    assert len(calls) <= 2, calls


def stopping(at: int) -> Callable[[], None]:
    """A `check_stop` that asks to stop at its n-th call."""
    count = itertools.count(1)

    def check() -> None:
        if next(count) == at:
            raise atomic.Stopped

    return check


def test_interrupted_and_continued_is_the_same_to_the_last_bit(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(example_layout, "OPERATIONS_A_BLOCK", {"cpu": 1.0})
    problem, plane = case(seeds.generator(), examples=200)
    grid = ls.grid_around(plane, (5, 4))
    options = {"tile": Tile(8, 7, 7, 1), "devices": jax.local_devices()[:1], "progress": False}
    whole = ls.evaluate(problem, plane, grid, **options)
    with pytest.raises(atomic.Stopped):
        ls.evaluate(problem, plane, grid, directory=tmp_path, check_stop=stopping(3), **options)
    blocks = sorted(tmp_path.glob("block-*.npz"))
    assert len(blocks) == 3
    blocks[1].write_bytes(blocks[1].read_bytes()[:-7])
    with pytest.warns(UserWarning, match="computed again"):
        again = ls.evaluate(problem, plane, grid, directory=tmp_path, **options)
    assert (again.risk == whole.risk).all()
    times = {block: block.stat().st_mtime_ns for block in tmp_path.glob("block-*.npz")}
    assert (ls.evaluate(problem, plane, grid, directory=tmp_path, **options).risk == whole.risk).all()
    assert times == {block: block.stat().st_mtime_ns for block in tmp_path.glob("block-*.npz")}


def test_functions_are_interrupted_and_continued_as_well(tmp_path) -> None:
    _, plane = case(seeds.generator())
    grid = ls.grid_around(plane, (3, 4))
    whole = ls.evaluate(trees.norm, plane, grid, progress=False)
    with pytest.raises(atomic.Stopped):
        ls.evaluate(trees.norm, plane, grid, directory=tmp_path, check_stop=stopping(2), progress=False)
    assert len(list(tmp_path.glob("block-*.npz"))) == 2
    again = ls.evaluate(trees.norm, plane, grid, directory=tmp_path, progress=False)
    assert (again.risk == whole.risk).all()


def test_blocks_of_another_loss_branch_or_function_are_not_taken_for_ones_own(tmp_path) -> None:
    rng = seeds.generator()
    problem, plane = case(rng)
    grid, one = ls.grid_around(plane, (3, 2)), {"devices": jax.local_devices()[:1], "progress": False}
    branches = [networks.mlp_branch((6, 3, 1), f) for f in (jax.nn.relu, jnp.tanh)]
    losses = [lambda f, y: (f[:, 0] - y) ** 2, lambda f, y: jnp.abs(f[:, 0] - y)]
    made_of = [(branches[0], losses[0]), (branches[0], losses[1]), (branches[1], losses[0])]
    problems = [ls.Problem(problem.data, ls.MultiBranch(branch, 7), loss) for branch, loss in made_of]
    functions = [lambda w: 2 * trees.norm(w), lambda w: 3 * trees.norm(w)]
    for made in (*problems, *functions):
        kept, fresh = (ls.evaluate(made, plane, grid, directory=d, **one) for d in (tmp_path, None))
        np.testing.assert_array_equal(kept.risk, fresh.risk)


def scarce(tiles: list[Tile], values: int, message: str, free: int = 0) -> Callable[..., jax.Array]:
    """The evaluator on a device that fails for tiles above so many examples times branches, after `free` blocks."""
    run, left = block.block_sums, itertools.count(free, -1)

    def run_out(*args, tile: Tile, **options) -> jax.Array:
        tiles.append(tile)
        if tile.examples * tile.branches > values and next(left) <= 0:
            raise jax.errors.JaxRuntimeError(message)
        return run(*args, tile=tile, **options)

    return run_out


FULL = "RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes."


def test_out_of_memory_halves_the_tile_and_says_so(monkeypatch, tmp_path) -> None:
    seed = seeds.draw()
    problem, plane = case(np.random.default_rng(seed), examples=500)
    grid, tiles = ls.grid_around(plane, (3, 2)), []
    monkeypatch.setattr(example_layout, "OPERATIONS_A_BLOCK", {"cpu": 1.0})
    monkeypatch.setattr(block, "block_sums", scarce(tiles, 200, FULL, free=2))
    options = {"tile": Tile(128, 7, 7, 1), "devices": jax.local_devices()[:1], "progress": False}
    with pytest.warns(UserWarning, match="out of memory; going on with half"):
        found = ls.evaluate(problem, plane, grid, directory=tmp_path, **options)
    # Two blocks of the first tile were finished; none of them is counted again.
    assert [(t.examples, t.branches) for t in tiles[:5]] == [(128, 7)] * 3 + [(64, 7), (64, 3)]
    blocks = [block.name.split("-")[1] for block in tmp_path.glob("block-*.npz")]
    assert sorted(map(blocks.count, set(blocks))) == [2, 8]
    np.testing.assert_allclose(found.risk, expected(problem, plane, grid), rtol=2e-5, err_msg=f"{seed}")
    assert found.metadata["tile"] == [64, 3, 3, 1]


def test_out_of_memory_ends_at_the_smallest_tile_and_other_errors_pass(monkeypatch) -> None:
    problem, plane = case(seeds.generator())
    options = {"grid": ls.grid_around(plane, (3, 2)), "tile": Tile(64, 2, 2, 1), "progress": False}
    for message, count in ((FULL, 5), ("INTERNAL: something else", 1)):
        tiles: list[Tile] = []
        with monkeypatch.context() as patch:
            patch.setattr(block, "block_sums", scarce(tiles, 0, message))
            patch.setattr(sharded.warnings, "warn", lambda *args, **options: None)
            with pytest.raises(jax.errors.JaxRuntimeError, match=message.split(":")[0]):
                ls.evaluate(problem, plane, **options)
        assert len(tiles) == count, tiles


def test_products_below_float32_record_their_error_at_the_anchors(monkeypatch) -> None:
    problem, plane = case(seeds.generator())
    grid, run = ls.grid_around(plane, (3, 2)), block.block_sums

    def coarse(*args, **options) -> jax.Array:
        found = run(*args, **options)
        return found * (1 if jax.config.jax_default_matmul_precision == "highest" else 1.01)

    monkeypatch.setattr(block, "block_sums", coarse)
    fine, found = (ls.evaluate(problem, plane, grid, precision=p, progress=False) for p in ("highest", "high"))
    assert "precision_error" not in fine.metadata["checks"]
    wanted = 0.01 * max(problem.risk(plane.at(tuple(ab))) for ab in plane.anchors.tolist())
    np.testing.assert_allclose(found.metadata["checks"]["precision_error"], wanted, rtol=1e-3)


def test_layers_are_evaluated_in_the_same_pass() -> None:
    problem, plane = case(seeds.generator(), outputs=4)
    grid = ls.grid_around(plane, (4, 3))

    def wrong(outputs, y):
        return 1.0 * (outputs.argmax(-1) != y)

    found = ls.evaluate(problem, plane, grid, layers={"error": wrong}, progress=False)
    np.testing.assert_allclose(found.risk, expected(problem, plane, grid), rtol=2e-5)
    x, y = np.asarray(problem.data.x, float), np.asarray(problem.data.y)
    weight = np.asarray(problem.data.weight, float)

    def errors(w) -> float:
        f = oracles.network([(oracles.mlp(), w)], x, problem.network.average)
        return float(weight @ (f.argmax(-1) != y) / weight.sum())

    np.testing.assert_allclose(found.layers["error"], oracles.surface(plane[:3], grid, errors), atol=1e-5)


def test_any_function_of_the_parameters() -> None:
    problem, plane = case(seeds.generator())
    grid = ls.grid_around(plane, (4, 3))
    found = ls.evaluate(lambda w: {"norm": trees.norm(w), "risk": problem.risk(w)}, plane, grid, progress=False)
    np.testing.assert_allclose(found.risk, expected(problem, plane, grid), rtol=2e-5)
    norms = oracles.surface(plane[:3], grid, lambda w: np.sqrt(sum((layer["kernel"] ** 2).sum() for layer in w)))
    assert set(found.layers) == {"norm"}
    np.testing.assert_allclose(found.layers["norm"], norms, rtol=1e-5)
    single = ls.evaluate(trees.norm, plane, grid, progress=False)
    np.testing.assert_allclose(single.risk, norms, rtol=1e-5)
    np.testing.assert_allclose(single.anchor_risk, [trees.norm(plane.at(tuple(ab))) for ab in plane.anchors], rtol=1e-5)
    line = evaluation.profile(problem, plane.origin, plane.at(tuple(plane.anchors[1])), points=3)
    np.testing.assert_allclose(line[[0, 2]], [problem.risk(plane.at(tuple(ab))) for ab in plane.anchors[:2]], rtol=1e-5)


def test_bad_input_is_refused_with_advice() -> None:
    problem, plane = case(seeds.generator())
    spoilt = plane._replace(u=trees.scale(jnp.nan, plane.u))
    with pytest.raises(ValueError, match="not finite"):
        ls.evaluate(problem, spoilt)
    with pytest.raises(ValueError, match="at least 2 finite, strictly increasing"):
        ls.evaluate(problem, plane, ls.Grid([0.0], [0.0, 1.0]))
    with pytest.raises(ValueError, match=r"needs .* GiB are allowed(.|\n)*Raise --memory"):
        ls.evaluate(problem, plane, memory=1000)
    with pytest.raises(ValueError, match="do not belong"):
        ls.evaluate(ls.Problem(problem.data, networks.relu_branch(6), problem.loss), plane)
    count = itertools.count()
    with pytest.raises(ValueError, match=r"deterministic(.|\n)*random keys"):
        ls.evaluate(lambda w: trees.norm(w) + next(count), plane, progress=False)
    for risk in (lambda w: jnp.ones(2), lambda w: {}, lambda w: {"risk": jnp.ones(2)}):
        with pytest.raises(ValueError, match="scalar"):
            ls.evaluate(risk, plane, progress=False)
    with pytest.raises(ValueError, match="at least 2 points"):
        evaluation.profile(problem, plane.origin, plane.origin, points=1)
