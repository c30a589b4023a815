"""SGD against closed forms, its order of examples, resuming to the last bit, one seed alone and among others."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import seeds

import landscape as ls
from landscape import networks, training
from landscape.arrays import trees
from landscape.files import atomic
from landscape.training import sgd


def small(rng: np.random.Generator, examples: int = 40, loss: Callable = ls.losses.hinge) -> ls.Problem:
    x = rng.normal(size=(examples, 4)).astype("f4")
    network = ls.MultiBranch(networks.relu_branch(4, 2), 5)
    return ls.Problem(ls.Dataset(x, np.sign(x[:, 0] - 0.3)), network, loss)


def keys(count: int, rng: np.random.Generator) -> jax.Array:
    return jax.random.split(jax.random.key(int(rng.integers(10**6))), count)


def unit_vectors(size: int) -> tuple[ls.Problem, Any]:
    """A linear network on unit vectors, from 0: after some steps the weights count how often each example was seen."""
    data = ls.Dataset(np.eye(size, dtype="f4"), np.ones(size, "f4"))
    problem = ls.Problem(data, networks.mlp_branch((size, 1)), lambda f, y: -f[:, 0] * y)
    shapes = jax.eval_shape(problem.network.init, jax.random.key(0))
    return problem, jax.tree.map(lambda s: jnp.zeros((2, *s.shape)), shapes)


def test_minibatches_are_drawn_without_replacement_in_an_order_of_each_seed_and_epoch() -> None:
    size, batch = 13, 3  # one example is left out of every epoch
    problem, start = unit_vectors(size)
    made = keys(2, seeds.generator())
    found = ls.train(
        problem,
        made,
        optax.sgd(3.0),
        steps=12,
        batch_size=batch,
        record=1,
        trajectory=True,
        start=start,
        progress=False,
    )
    counts = np.asarray(jax.tree.leaves(found.trajectory)[0]).reshape(2, 13, size)
    seen = np.diff(counts, axis=1)  # [seed, step, example]
    assert (np.abs(seen - np.round(seen)) < 1e-5).all()
    assert (np.round(seen).sum(-1) == batch).all()
    epochs = np.round(seen).reshape(2, 3, 4, size)
    assert (epochs.sum(2) <= 1).all()
    assert (epochs.sum((2, 3)) == 12).all()
    orders = {epochs[s, e].tobytes() for s in range(2) for e in range(3)}
    assert len(orders) == 6  # two equal ones: once in 10^7 runs


def test_full_batches_follow_gradient_descent_with_momentum() -> None:
    rng = seeds.generator()
    x, y = rng.normal(size=(9, 3)).astype("f4"), rng.normal(size=(9, 2)).astype("f4")
    weight = rng.uniform(0.5, 2, 9).astype("f4")
    problem = ls.Problem(ls.Dataset(x, y, weight), networks.mlp_branch((3, 2)), ls.losses.squared)
    found = ls.train(
        problem, keys(3, rng), optax.sgd(0.02, 0.8), steps=30, batch_size=9, record=10, trajectory=True, progress=False
    )
    path = np.asarray(found.trajectory[0]["kernel"], float)[:, :, 0]  # [seed, record, 3, 2]
    for seed in range(3):
        w, speed = path[seed, 0], np.zeros((3, 2))
        for step in range(30):
            speed = 0.8 * speed + x.T @ (weight[:, None] * 2 * (x @ w - y)) / weight.sum()
            w = w - 0.02 * speed
            if step % 10 == 9:
                np.testing.assert_allclose(path[seed, step // 10 + 1], w, rtol=1e-4, atol=1e-5)
        risk = (weight * ((x @ w - y) ** 2).sum(-1)).sum() / weight.sum()
        np.testing.assert_allclose([found.risk[seed], found.history[seed, -1]], risk, rtol=1e-4)


def test_shapes_of_what_is_recorded_and_iteration() -> None:
    rng = seeds.generator()
    problem = small(rng)
    found = ls.train(
        problem, keys(3, rng), optax.adam(0.01), steps=23, batch_size=8, record=5, trajectory=True, progress=False
    )
    assert found.steps.tolist() == [0, 5, 10, 15, 20, 23]
    assert found.history.shape == (3, 6)
    assert not found.converged.any()
    assert [t.shape[:3] for t in jax.tree.leaves(found.trajectory)] == [(3, 6, 5)] * 2
    assert [t.shape[:2] for t in jax.tree.leaves(found.params)] == [(3, 5)] * 2
    assert len(found) == len(list(found)) == 3
    for seed, w in enumerate(found):
        np.testing.assert_allclose(problem.risk(w), found.risk[seed], rtol=1e-5)
        last = jax.tree.map(lambda t, seed=seed: t[seed, -1], found.trajectory)
        for a, b, c in zip(*map(jax.tree.leaves, (w, last, found[seed - 3])), strict=True):
            assert (np.asarray(a) == b).all()
            assert (np.asarray(a) == c).all()
    with pytest.raises(IndexError):
        found[3]
    assert "3 seeds, 23 steps" in repr(found)
    assert len(repr(found)) < 100


def test_one_seed_alone_is_the_same_seed_among_others() -> None:
    rng = seeds.generator()
    with trees.float64():
        problem, made = small(rng), keys(3, rng)
        data = ls.Dataset(problem.data.x.astype(float), problem.data.y)
        problem = ls.Problem(data, problem.network, ls.losses.squared)
        start = jax.tree.map(lambda w: w.astype(float), jax.vmap(problem.network.init)(made))
        options = {"steps": 1000, "batch_size": 8, "record": 500, "progress": False}
        among = ls.train(problem, made, optax.sgd(0.1), start=start, **options)
        alone = ls.train(problem, made[2:3], optax.sgd(0.1), start=jax.tree.map(lambda w: w[2:3], start), **options)
        for a, b in zip(jax.tree.leaves(alone[0]), jax.tree.leaves(among[2]), strict=True):
            assert a.dtype == np.float64
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)
    different = np.asarray(jax.tree.leaves(among.params)[0])
    assert len(np.unique(different.reshape(3, -1), axis=0)) == 3


def wide(rng: np.random.Generator, **options: Any) -> ls.Problem:
    """Two kinds of branches, both numbers divisible by four."""
    x, y = rng.normal(size=(24, 5)), rng.integers(0, 3, 24)
    kinds = [networks.relu_branch(5, 2, 3, bias=True), networks.mlp_branch((5, 2, 3), jnp.tanh)]
    return ls.Problem(ls.Dataset(x, y), ls.MultiBranch(kinds, [8, 4], **options), ls.losses.multiclass_hinge)


@pytest.mark.slow
def test_branches_split_over_devices_and_seeds_that_take_turns_train_alike() -> None:
    seed = int(seeds.generator().integers(10**6))
    optimizer = optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(0.05, 0.9))
    options = {"steps": 7, "batch_size": 6, "record": 3, "trajectory": True, "progress": False}
    with trees.float64():
        problem, made = wide(np.random.default_rng(seed), branch_chunk=3), keys(3, np.random.default_rng(seed))
        least = sgd.seed_layout(problem, optimizer, 1, 2**30, 4).nbytes
        plans = [sgd.seed_layout(problem, optimizer, 3, m, d) for m, d in ((2**30, 1), (2**30, 2), (least, None))]
        assert [(p.seeds, p.shards, len(p.devices)) for p in plans] == [(3, 1, 3), (4, 2, 4), (1, 4, 4)]
        ways = {"branch_devices": 1}, {"branch_devices": 2}, {"memory": least}
        one, *others = (ls.train(problem, made, optimizer, **way, **options) for way in ways)
        for found in others:
            for a, b in zip(*(jax.tree.leaves((s.params, s.trajectory, s[1])) for s in (one, found)), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12, err_msg=f"{seed}")
            np.testing.assert_allclose(one.history, found.history, rtol=1e-12)
        assert [len(w.sharding.device_set) for w in jax.tree.leaves(others[0][0])] == [2] * 6
    with pytest.raises(ValueError, match=r"one of \[1, 2, 4\]; got 3"):
        ls.train(problem, made, optimizer, branch_devices=3, **options)
    with pytest.raises(ValueError, match=r"Training needs(.|\n)*Raise --memory"):
        ls.train(problem, made, optimizer, memory=1000, **options)


def test_a_step_takes_parameters_gradient_and_a_chunk_on_as_many_devices_as_share_them() -> None:
    network = ls.MultiBranch(networks.mlp_branch((300, 8, 8, 4)), 400, branch_chunk=20)
    data = ls.Dataset(np.zeros((64, 300), "f4"), np.zeros(64, int))
    problem, optimizer = ls.Problem(data, network, ls.losses.multiclass_hinge), optax.sgd(0.1, 0.9)
    solution = trees.nbytes(jax.eval_shape(network.init, jax.random.key(0)))
    for share in (1, 4):
        plan = sgd.seed_layout(problem, optimizer, 2, 2**40, share)
        static = sgd.Static(network, problem.loss, optimizer, 8, plan.mesh)
        made = jax.eval_shape(partial(jax.random.split, num=plan.seeds), jax.random.key(0))
        state = jax.eval_shape(lambda k, static=static: sgd.begin(static, k, 64, None), made)
        split = [jax.sharding.NamedSharding(plan.mesh, jax.sharding.PartitionSpec(*axes)) for axes in (["seeds"], [])]
        shapes = zip((made, data), split, strict=True)
        made, placed = (
            jax.tree.map(lambda x, s=s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), t) for t, s in shapes
        )
        where = sgd.shardings(static, state)
        state = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, where)
        used = sgd.advance.lower(static, state, made, placed, 0, 1).compile().memory_analysis()
        seeds = plan.seeds // plan.mesh.shape["seeds"]
        assert used.alias_size_in_bytes >= seeds * 2 * solution // share
        assert used.temp_size_in_bytes < seeds * 1.15 * solution / share + 2**18
        taken = used.argument_size_in_bytes + used.temp_size_in_bytes
        assert 0.8 < taken / plan.nbytes < 1.2, (share, taken, plan)


@pytest.mark.usefixtures("saved_at_once")
def test_seeds_that_take_turns_are_continued_to_the_last_bit(tmp_path, monkeypatch) -> None:
    moved: list[int] = []
    begin = training._Seeds.__init__

    def as_on_a_gpu(self: Any, *args: Any) -> None:
        begin(self, *args)
        self.swapped = True
        self.states = [self._away(state) for state in self.states]
        moved.append(len(self.states))

    monkeypatch.setattr(training._Seeds, "__init__", as_on_a_gpu)
    rng = seeds.generator()
    problem, made = small(rng), keys(3, rng)
    options = {"steps": 12, "batch_size": 8, "record": 5, "memory": 6000, "progress": False}
    whole = ls.train(problem, made, optax.sgd(0.1, 0.9), **options)
    monkeypatch.setattr(training, "SECONDS_A_SAVE", 1e9)  # what is written is written because of the request to stop
    with pytest.raises(atomic.Stopped):
        ls.train(problem, made, optax.sgd(0.1, 0.9), directory=tmp_path, check_stop=stopping(3), **options)
    assert np.load(tmp_path / "training.npz")["done"] == 7
    assert moved == [3, 3]
    again = ls.train(problem, made, optax.sgd(0.1, 0.9), directory=tmp_path, **options)
    assert all(
        (np.asarray(a) == b).all() for a, b in zip(*map(jax.tree.leaves, (whole.params, again.params)), strict=True)
    )
    assert (whole.history == again.history).all()


def test_training_goes_on_from_given_parameters() -> None:
    rng = seeds.generator()
    problem, made = small(rng), keys(2, rng)
    options = {"batch_size": 8, "progress": False}
    first = ls.train(problem, made, optax.sgd(0.1), steps=5, **options)
    still = ls.train(problem, made, optax.sgd(0.0), steps=5, start=first.params, **options)
    np.testing.assert_allclose(still.history[:, 0], first.risk, rtol=1e-6)
    np.testing.assert_allclose(still.risk, first.risk, rtol=1e-6)


@pytest.fixture
def saved_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call to the device is short and ends on the disk."""
    monkeypatch.setattr(training, "SECONDS_A_SAVE", 0.0)
    monkeypatch.setattr(training, "SECONDS_A_CALL", 0.0)


def stopping(calls: int) -> Callable[[], None]:
    """A `check_stop` that asks to stop at its n-th call."""
    left: Iterator[int] = iter(range(calls - 1, -1, -1))

    def check() -> None:
        if next(left, 1) == 0:
            raise atomic.Stopped

    return check


@pytest.mark.usefixtures("saved_at_once")
def test_interrupted_and_continued_is_the_same_to_the_last_bit(tmp_path) -> None:
    rng = seeds.generator()
    problem, made = small(rng), keys(3, rng)
    schedule = optax.exponential_decay(0.01, 10, 0.5)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))
    options = {"steps": 23, "batch_size": 8, "record": 5, "trajectory": True, "progress": False}
    whole = ls.train(problem, made, optimizer, **options)
    for calls in (1, 4, 5):
        with pytest.raises(atomic.Stopped):
            ls.train(problem, made, optimizer, directory=tmp_path, check_stop=stopping(calls), **options)
    again = ls.train(problem, made, optimizer, directory=tmp_path, **options)
    pairs = zip(*(jax.tree.leaves((s.params, s.trajectory)) for s in (whole, again)), strict=True)
    assert all((np.asarray(a) == np.asarray(b)).all() for a, b in pairs)
    assert (whole.history == again.history).all()
    assert (whole.risk == again.risk).all()


@pytest.mark.usefixtures("saved_at_once")
def test_a_state_of_other_inputs_is_refused(tmp_path) -> None:
    rng = seeds.generator()
    problem, made = small(rng), keys(2, rng)
    options = {"steps": 6, "batch_size": 8, "progress": False}
    ls.train(problem, made, optax.sgd(0.1), directory=tmp_path, **options)
    wide = ls.Problem(problem.data, ls.MultiBranch(networks.mlp_branch((4, 2, 1), jnp.tanh), 5), problem.loss)
    unnamed = [ls.Problem(problem.data, problem.network, f) for f in (lambda f, y: f[:, 0], lambda f, y: -f[:, 0])]
    for change in (
        lambda o: ls.train(problem, made, optax.sgd(0.2), **o),
        lambda o: ls.train(wide, made, optax.sgd(0.1), **o),
        lambda o: ls.train(problem, made, optax.sgd(0.1), **{**o, "batch_size": 7}),
    ):
        with pytest.raises(ValueError, match="other inputs"):
            change({**options, "directory": tmp_path})
    (tmp_path / "training.npz").write_bytes((tmp_path / "training.npz").read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"cannot be read(.|\n)*Delete it"):
        ls.train(problem, made, optax.sgd(0.1), directory=tmp_path, **options)
    ls.train(unnamed[0], made, optax.sgd(0.1), directory=tmp_path / "other", **options)
    with pytest.raises(ValueError, match="other inputs"):
        ls.train(unnamed[1], made, optax.sgd(0.1), directory=tmp_path / "other", **options)


@pytest.mark.slow
def test_training_stops_once_no_seed_improves() -> None:
    rng = seeds.generator()
    problem, made = small(rng), keys(2, rng)
    options = {"steps": 1000, "batch_size": 8, "record": 10, "progress": False}
    for patience in (2, 5):
        found = ls.train(problem, made, optax.sgd(0.0), tolerance=1e-6, patience=patience, **options)
        assert found.converged.all()
        assert found.steps[-1] == 10 * patience
    data, start = unit_vectors(13)
    falling = ls.train(
        data, made, optax.sgd(1.0), steps=60, batch_size=3, tolerance=1e-6, record=10, start=start, progress=False
    )
    assert falling.steps[-1] == 60  # its risk falls for ever
    assert not falling.converged.any()


def test_a_noisy_plateau_is_no_improvement() -> None:
    """Entries that are high by chance do not make later ones an improvement; a new lowest one is."""
    noise = seeds.generator().uniform(0.2, 0.5, 6)
    plateau, falling = np.array([1.0, *noise, 0.2, 0.2 + noise.max(), *(0.2 + noise[:3])]), np.linspace(1, 0.5, 12)
    history = list(np.stack([plateau, falling], 1))
    history[0][0] = 0.2
    assert training._settled(history, 0.01, 4).tolist() == [True, False]
    assert training._settled([*history, np.array([0.0, 0.4])], 0.01, 4).tolist() == [False, False]
    assert not training._settled(history[:4], 10.0, 4).any()


def test_training_that_diverges_says_so() -> None:
    problem = small(seeds.generator())
    start = jax.vmap(problem.network.init)(keys(2, seeds.generator()))
    spoilt = jax.tree.map(lambda w: w.at[1].set(np.inf), start)
    options = {"steps": 5, "batch_size": 8, "record": 1, "progress": False}
    with pytest.raises(ArithmeticError, match=r"diverged: the risks are \S+ nan(.|\n)*smaller step"):
        ls.train(problem, keys(2, seeds.generator()), optax.sgd(0.1), start=spoilt, **options)


def test_solutions_on_disk(tmp_path) -> None:
    rng = seeds.generator()
    found = ls.train(small(rng), keys(2, rng), optax.sgd(0.1), steps=3, batch_size=8, progress=False)
    found.save(tmp_path / "solutions.npz", "key")
    loaded = ls.Solutions.load(tmp_path / "solutions.npz", "key", found[0])
    for name in ("risk", "history", "steps", "converged"):
        assert (getattr(loaded, name) == getattr(found, name)).all()
    for a, b in zip(jax.tree.leaves(loaded.params), jax.tree.leaves(found.params), strict=True):
        assert (np.asarray(a) == np.asarray(b)).all()
    with pytest.raises(atomic.Corrupted, match="other inputs"):
        ls.Solutions.load(tmp_path / "solutions.npz", "another", found[0])
    with pytest.raises(atomic.Corrupted, match="another network"):
        ls.Solutions.load(tmp_path / "solutions.npz", "key", {"kernel": jnp.zeros(3)})
    with pytest.raises(FileNotFoundError):
        ls.Solutions.load(tmp_path / "none.npz", "key", found[0])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": 0}, "at least 1"),
        ({"record": 0}, "at least 1"),
        ({"batch_size": 0}, "between 1 and the 40"),
        ({"batch_size": 41}, "between 1 and the 40"),
        ({"keys": jax.random.key(0)}, r"several random keys.*split"),
        ({"keys": jax.random.PRNGKey(0)}, "several random keys"),
        ({"keys": jax.random.split(jax.random.key(0), 2)[:0]}, "several random keys"),
        ({"start": {"w": jnp.zeros((3, 5))}}, "one set of parameters a key, 2"),
    ],
    ids=str,
)
def test_wrong_use_is_refused_before_anything_runs(wrong: dict[str, Any], message: str) -> None:
    rng = seeds.generator()
    options = {"keys": keys(2, rng), "steps": 5, "batch_size": 8, "progress": False} | wrong
    with pytest.raises(ValueError, match=message):
        ls.train(small(rng), options.pop("keys"), optax.sgd(0.1), **options)
