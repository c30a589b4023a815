"""Surfaces equal an independent float64 loop, whatever the tile, the devices and the interruptions."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import export

import landscape as ls
from landscape import evaluators, networks, planes, storage, surfaces, trees
from landscape.evaluators import Settings, block_sums
from landscape.tiles import Tile


def oracle(w, x, y, average):
    """Risk of one-hidden-layer ReLU branches by loops over branches in NumPy, float64."""
    first, last = (np.asarray(layer["kernel"], float) for layer in w)
    f = sum(np.maximum(x @ first[i], 0) @ last[i] for i in range(len(first)))
    f = f / len(first) if average else f
    if f.shape[1] == 1:
        return np.maximum(0, 1 - y * f[:, 0]).mean()
    margins = 1 + f - f[np.arange(len(y)), y][:, None]
    return (np.maximum(margins, 0).sum(1) - 1).mean()


def case(rng, outputs=1, branches=7, examples=45, inputs=6, hidden=3, average=False):
    x = rng.normal(size=(examples, inputs)).astype("f4")
    y = np.sign(rng.normal(size=examples)).astype("f4") if outputs == 1 else rng.integers(0, outputs, examples)
    network = ls.MultiBranch(networks.relu_branch(inputs, hidden, outputs), branches, average=average)
    loss = ls.losses.hinge if outputs == 1 else ls.losses.multiclass_hinge
    problem = ls.Problem(ls.Dataset(x, y), network, loss)
    solutions = [network.init(jax.random.key(int(k))) for k in rng.integers(0, 10**6, 3)]
    return problem, planes.through_solutions(*solutions)


def expected(problem, plane, grid):
    x, y = np.asarray(problem.data.x, float), np.asarray(problem.data.y)
    o, u, v = (jax.tree.map(lambda t: np.asarray(t, float), part) for part in (plane.origin, plane.u, plane.v))
    values = np.zeros((len(grid.a), len(grid.b)))
    for i, j in np.ndindex(values.shape):
        w = jax.tree.map(lambda p, q, r, i=i, j=j: p + grid.a[i] * q + grid.b[j] * r, o, u, v)
        values[i, j] = oracle(w, x, y, problem.network.average)
    return values


TILES = [None, Tile(16, 7, 7, 1), Tile(8, 4, 2, 3), Tile(48, 3, 1, 9), Tile(16, 1, 1, 2)]


@pytest.mark.parametrize(("tile", "outputs"), list(itertools.product(TILES, (1, 4))), ids=str)
def test_surfaces_equal_an_independent_loop(tile, outputs):
    seed = np.random.SeedSequence().entropy
    rng = np.random.default_rng(seed)
    problem, plane = case(rng, outputs, average=bool(rng.integers(2)))
    grid = ls.grid_around(plane, (5, 4))
    wanted = expected(problem, plane, grid)
    found = ls.evaluate(problem, plane, grid, tile=tile, progress=False)
    np.testing.assert_allclose(found.risk, wanted, rtol=2e-5, atol=2e-5 * wanted.max(), err_msg=str(seed))
    assert found.metadata["checks"]["deterministic"]
    assert found.metadata["checks"]["max_difference"] < 1e-5 * max(1, wanted.max())
    direct = [problem.risk(plane.at(tuple(ab))) for ab in plane.anchors]
    np.testing.assert_allclose(found.anchor_risk, direct, rtol=1e-5, atol=1e-6)


def test_one_device_equals_four_and_rows_are_shared_when_examples_are_few():
    rng = np.random.default_rng()
    for examples in (45, 3):
        problem, plane = case(rng, examples=examples)
        grid = ls.grid_around(plane, (5, 6))
        tile = Tile(8, 7, 7, 1)
        one, four = (
            ls.evaluate(problem, plane, grid, tile=tile, devices=jax.local_devices()[:d], progress=False)
            for d in (1, 4)
        )
        np.testing.assert_allclose(one.risk, four.risk, rtol=1e-6)


def test_groups_of_different_branches():
    rng = np.random.default_rng()
    kinds = [networks.relu_branch(6, 2, 1), networks.mlp_branch((6, 3, 2, 1), jnp.tanh, bias=True)]
    network = ls.MultiBranch(kinds, [3, 2])
    x, y = rng.normal(size=(20, 6)).astype("f4"), np.sign(rng.normal(size=20)).astype("f4")
    problem = ls.Problem(ls.Dataset(x, y), network, ls.losses.squared)
    plane = planes.through_solutions(*(network.init(jax.random.key(k)) for k in range(3)))
    grid = ls.grid_around(plane, (3, 4))
    found = ls.evaluate(problem, plane, grid, tile=Tile(8, 2, 1, 1), progress=False)
    wanted = [[problem.risk(plane.at((a, b))) for b in grid.b] for a in grid.a]
    np.testing.assert_allclose(found.risk, wanted, rtol=1e-5)


def test_float64_throughout():
    with trees.float64():
        rng = np.random.default_rng()
        problem, plane = case(rng)
        problem = ls.Problem(ls.Dataset(problem.data.x.astype(float), problem.data.y), problem.network, problem.loss)
        plane = planes.through_solutions(
            *(jax.tree.map(lambda t: t.astype(float), plane.at(tuple(ab))) for ab in plane.anchors)
        )
        grid = ls.grid_around(plane, (4, 3))
        found = ls.evaluate(problem, plane, grid, progress=False)
        np.testing.assert_allclose(found.risk, expected(problem, plane, grid), rtol=1e-12)


def test_each_tile_shape_is_traced_once(monkeypatch):
    monkeypatch.setattr(evaluators, "OPERATIONS_A_BLOCK", {"cpu": 1.0})
    problem, plane = case(np.random.default_rng(), examples=200)
    calls = []

    def counted(outputs, y):
        calls.append(outputs.shape)
        return ls.losses.hinge(outputs, y)

    grid, tile = ls.grid_around(plane, (5, 4)), Tile(8, 7, 7, 1)
    settings = Settings("highest", None, tile, tuple(jax.local_devices()[:1]), None, False, lambda: None)
    evaluators.problem_means(problem, plane, grid, [counted], settings)
    assert len(calls) == 1, calls


def test_interrupted_and_continued_is_the_same_to_the_last_bit(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluators, "OPERATIONS_A_BLOCK", {"cpu": 1.0})
    problem, plane = case(np.random.default_rng(), examples=200)
    grid, tile = ls.grid_around(plane, (5, 4)), Tile(8, 7, 7, 1)
    options = {"tile": tile, "devices": jax.local_devices()[:1], "progress": False}
    whole = ls.evaluate(problem, plane, grid, **options)
    stops = iter([None, None, storage.Stopped(), *[None] * 100])

    def stop():
        if error := next(stops):
            raise error

    with pytest.raises(storage.Stopped):
        ls.evaluate(problem, plane, grid, directory=tmp_path, check_stop=stop, **options)
    blocks = sorted(tmp_path.glob("block-*.npz"))
    assert len(blocks) == 3
    blocks[1].write_bytes(blocks[1].read_bytes()[:-7])
    with pytest.warns(UserWarning, match="computed again"):
        again = ls.evaluate(problem, plane, grid, directory=tmp_path, **options)
    assert (again.risk == whole.risk).all()


def compiled(branches, examples, points=(5, 4), tile=None):
    network = ls.MultiBranch(networks.relu_branch(10), branches, average=False)
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    tile = tile or Tile(64, 50, 50, 1)
    data = tuple(jax.ShapeDtypeStruct(s, jnp.float32) for s in ((examples, 10), (examples,), (examples,)))
    axes = tuple(jax.ShapeDtypeStruct((p,), jnp.float32) for p in points)
    mesh = jax.make_mesh(
        (1, 1), ("points", "examples"), axis_types=(jax.sharding.AxisType.Auto,) * 2, devices=jax.local_devices()[:1]
    )
    lowered = block_sums.lower(
        (shapes,) * 3, data, axes, network=network, losses=(ls.losses.hinge,), tile=tile, mesh=mesh
    )
    return lowered, trees.nbytes(shapes)


def test_temporary_memory_is_flat_in_branches_and_examples():
    sizes = [(1000, 128), (8000, 128), (1000, 1024)]
    found = [
        (lowered.compile().memory_analysis().temp_size_in_bytes, size)
        for lowered, size in (compiled(*s) for s in sizes)
    ]
    (base, weights), *others = found
    assert all(temporary <= base * 1.05 + 4096 for temporary, _ in others), found
    chunk = 8 * 64 * (3 * 50 + 2 * 5 * 4) * 4  # triples and outputs of a tile, with room
    assert base < weights + chunk, (base, weights, chunk)


def test_the_number_of_operations_does_not_grow():
    counts = {
        len(compiled(*s)[0].as_text().splitlines())
        for s in [(1000, 128, (5, 4)), (4000, 128, (5, 4)), (1000, 1024, (5, 4)), (1000, 128, (25, 24))]
    }
    assert len(counts) == 1, counts


def test_layers_plain_functions_and_files(tmp_path):
    problem, plane = case(np.random.default_rng(), outputs=4)
    grid = ls.grid_around(plane, (4, 3))

    def wrong(outputs, y):
        return 1.0 * (outputs.argmax(-1) != y)

    surface = ls.evaluate(problem, plane, grid, layers={"error": wrong}, progress=False)
    other = ls.evaluate(lambda w: {"risk": problem.risk(w), "norm": trees.norm(w)}, plane, grid, progress=False)
    np.testing.assert_allclose(surface.risk, other.risk, rtol=1e-5)
    assert set(other.layers) == {"norm"}
    assert ((surface.layers["error"] >= 0) & (surface.layers["error"] <= 1)).all()
    surface.save(tmp_path / "surface.nc")
    back = ls.Surface.load(tmp_path / "surface.nc")
    assert (back.risk == surface.risk).all()
    assert (back.layers["error"] == surface.layers["error"]).all()
    assert dict(back.metadata) == dict(surface.metadata)
    surfaces.save_stack(tmp_path / "stack.nc", [surface, surface])
    assert len(surfaces.load_stack(tmp_path / "stack.nc")) == 2
    with pytest.raises(ValueError, match="holds 2 surfaces"):
        ls.Surface.load(tmp_path / "stack.nc")
    line = ls.evaluation.profile(problem, plane.origin, plane.at(tuple(plane.anchors[1])), points=3)
    np.testing.assert_allclose(line[[0, 2]], surface.anchor_risk[:2], rtol=1e-5)


def test_bad_input_is_refused_with_advice():
    problem, plane = case(np.random.default_rng())
    w = plane.origin
    with pytest.raises(ValueError, match="at least 2 points"):
        ls.grid_around(plane, 1)
    with pytest.raises(ValueError, match="one line"):
        planes.through_solutions(w, trees.scale(2.0, w), trees.scale(3.0, w))
    with pytest.raises(ValueError, match="same parameters"):
        planes.through_solutions(w, w[0], w)
    with pytest.raises(ValueError, match="not finite"):
        planes.through_solutions(w, trees.scale(jnp.nan, w), w)
    with pytest.raises(ValueError, match="at least 1"):
        ls.MultiBranch(networks.relu_branch(3), 0)
    with pytest.raises(ValueError, match="GiB are allowed"):
        ls.evaluate(problem, plane, memory=1000)
    with pytest.raises(ValueError, match="do not belong"):
        ls.evaluate(ls.Problem(problem.data, networks.relu_branch(6), problem.loss), plane)
    count = itertools.count()
    with pytest.raises(ValueError, match="deterministic"):
        ls.evaluate(lambda w: trees.norm(w) + next(count), plane, progress=False)
    with pytest.raises(ValueError, match="scalar"):
        ls.evaluate(lambda w: jnp.ones(2), plane, progress=False)


def test_planes_have_the_solutions_as_anchors():
    rng = np.random.default_rng()
    solutions = [
        {"w": jnp.asarray(rng.normal(size=(3, 4)), jnp.float32), "b": jnp.asarray(rng.normal(size=3), jnp.float32)}
        for _ in range(3)
    ]
    straight, oblique = planes.through_solutions(*solutions), planes.oblique_through_solutions(*solutions)
    for plane in (straight, oblique):
        for ab, w in zip(plane.anchors, solutions, strict=True):
            for x, y in zip(jax.tree.leaves(plane.at(tuple(ab))), jax.tree.leaves(w), strict=True):
                np.testing.assert_allclose(x, y, atol=2e-5)
    gram = [[trees.vdot(p, q) for q in straight[1:3]] for p in straight[1:3]]
    np.testing.assert_allclose(gram, np.eye(2), atol=1e-5)
    np.testing.assert_allclose(trees.norm(oblique.u), trees.norm(solutions[2]), rtol=1e-5)
    np.testing.assert_allclose(oblique.anchors.mean(0), 0, atol=1e-6)


def test_training_resumes_to_the_last_bit_and_seeds_are_independent(tmp_path, monkeypatch):
    from landscape import training

    monkeypatch.setattr(training, "SECONDS_A_SAVE", 0.0)
    monkeypatch.setattr(training, "SECONDS_A_CALL", 0.0)
    problem, _ = case(np.random.default_rng(), examples=40)
    keys = jax.random.split(jax.random.key(5), 3)
    options = {"steps": 23, "batch_size": 8, "record": 5, "progress": False}
    whole = ls.train(problem, keys, optax.adam(0.01), trajectory=True, **options)
    stops = iter([None] * 4 + [storage.Stopped()] + [None] * 100)

    def stop():
        if error := next(stops):
            raise error

    with pytest.raises(storage.Stopped):
        ls.train(problem, keys, optax.adam(0.01), trajectory=True, directory=tmp_path, check_stop=stop, **options)
    again = ls.train(problem, keys, optax.adam(0.01), trajectory=True, directory=tmp_path, **options)
    for x, y in zip(
        jax.tree.leaves((whole.params, whole.trajectory)),
        jax.tree.leaves((again.params, again.trajectory)),
        strict=True,
    ):
        assert (np.asarray(x) == np.asarray(y)).all()
    assert (whole.history == again.history).all()
    assert whole.history.shape == (3, 6)
    assert jax.tree.leaves(whole.trajectory)[0].shape[:2] == (3, 6)
    assert len(list(whole)) == 3
    alone = ls.train(problem, keys[1:2], optax.adam(0.01), **options)
    for x, y in zip(jax.tree.leaves(alone[0]), jax.tree.leaves(whole[1]), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)
    whole.save(tmp_path / "solutions.npz", "key")
    loaded = training.Solutions.load(tmp_path / "solutions.npz", "key", whole[0])
    assert (loaded.risk == whole.risk).all()
    with pytest.raises(storage.Corrupted, match="other inputs"):
        training.Solutions.load(tmp_path / "solutions.npz", "another", whole[0])


def test_minibatches_are_drawn_without_replacement():
    """A linear network on unit vectors: after one epoch every weight has moved by the same amount, once."""
    size = 12
    branch = networks.mlp_branch((size, 1))
    problem = ls.Problem(ls.Dataset(np.eye(size, dtype="f4"), np.ones(size, "f4")), branch, lambda f, y: f[:, 0] * y)
    start = jax.tree.map(lambda s: jnp.zeros((2, *s.shape)), jax.eval_shape(problem.network.init, jax.random.key(0)))
    keys = jax.random.split(jax.random.key(0), 2)
    steps = {4: ls.train(problem, keys, optax.sgd(1.0), steps=4, batch_size=3, start=start, progress=False)}
    steps[1] = ls.train(problem, keys, optax.sgd(1.0), steps=1, batch_size=3, start=start, progress=False)
    moved = np.asarray(jax.tree.leaves(steps[4].params)[0]).reshape(2, -1)
    np.testing.assert_allclose(moved, -1 / 3, rtol=1e-6)
    first = np.asarray(jax.tree.leaves(steps[1].params)[0]).reshape(2, -1) != 0
    assert first.sum(1).tolist() == [3, 3]


def test_training_stops_by_its_criterion_and_refuses_nonsense():
    problem, _ = case(np.random.default_rng(), examples=40)
    keys = jax.random.split(jax.random.key(5), 2)
    found = ls.train(problem, keys, optax.sgd(0.0), steps=1000, batch_size=8, tolerance=1e-6, record=10, progress=False)
    assert found.converged.all()
    assert found.steps[-1] == 50
    for wrong, message in (
        ({"steps": 0}, "at least 1"),
        ({"batch_size": 41}, "between 1 and"),
        ({"keys": keys[0]}, "several"),
    ):
        options = {"keys": keys, "steps": 5, "batch_size": 8} | wrong
        with pytest.raises(ValueError, match=message):
            ls.train(problem, options.pop("keys"), optax.sgd(0.1), progress=False, **options)


def test_the_evaluator_and_the_trainer_export_for_cpu_cuda_and_tpu():
    from landscape import training

    platforms = ("cpu", "cuda", "tpu")
    problem, _ = case(np.random.default_rng(), outputs=4, examples=32)
    tile = Tile(16, 4, 2, 3)
    mesh = jax.make_mesh(
        (1, 1), ("points", "examples"), axis_types=(jax.sharding.AxisType.Auto,) * 2, devices=jax.local_devices()[:1]
    )
    shapes = jax.eval_shape(problem.network.init, jax.random.key(0))
    data = tuple(jax.ShapeDtypeStruct(s, d) for s, d in (((32, 6), "f4"), ((32,), "i4"), ((32,), "f4")))
    axes = tuple(jax.ShapeDtypeStruct((n,), "f4") for n in (5, 4))
    run = jax.jit(
        lambda t, d, x: block_sums(t, d, x, network=problem.network, losses=(problem.loss,), tile=tile, mesh=mesh)
    )
    exported = export.export(run, platforms=platforms)((shapes,) * 3, data, axes)
    assert exported.platforms == platforms
    static = training._Static(problem.network, problem.loss, optax.sgd(0.1), 8)
    state = jax.eval_shape(
        lambda k: training._begin(static, k, problem.data, None), jax.random.split(jax.random.key(0), 2)
    )
    step = jax.jit(lambda s, k, d: training._advance(static, s, k, d, 0, 3))
    assert (
        export.export(step, platforms=platforms)(state, jax.random.split(jax.random.key(0), 2), problem.data).platforms
        == platforms
    )


def test_the_largest_cell_of_figure_4_has_a_plan_and_is_refused_where_it_does_not_fit():
    network = ls.MultiBranch(networks.mlp_branch((3072, 8, 8, 8, 10), summed_over=50_000), 50_000, average=False)
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    assert round(trees.size(shapes) / 1e9, 2) == 1.24
    example = jax.ShapeDtypeStruct((3072,), jnp.float32)
    options = {"outputs": 10, "examples": 50_000, "points": (51, 51)}
    plan = ls.evaluation.costs.plan(network, shapes, example, memory=40 * 2**30, **options)
    assert 3 * trees.nbytes(shapes) < plan.nbytes < 40 * 2**30
    assert plan.temporary < trees.nbytes(shapes)
    with pytest.raises(ValueError, match=r"needs 1[3-9]\.\d+ GiB"):
        ls.evaluation.costs.plan(network, shapes, example, memory=8 * 2**30, **options)
