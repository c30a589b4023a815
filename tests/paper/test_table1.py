"""Table 1's trainer: networks do not notice their neighbours, a plain loop agrees, an interrupted run ends the same."""

import dataclasses
import json
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import seeds
from scipy.stats import binomtest

from landscape import datasets
from landscape.__main__ import dispatch, exit_code
from landscape.datasets import Dataset
from landscape.files import atomic
from landscape.paper import table1
from landscape.training import hitting, shallow
from landscape.training.hitting import hitting_rate
from landscape.training.shallow import TrainingConfig, train_networks

QUICK = TrainingConfig(steps=300, batch_size=50)


@pytest.fixture
def seed():
    seed = seeds.draw()
    print("seed", seed)
    return seed


@pytest.fixture
def data(seed):
    return datasets.synthetic_teacher(jax.random.key(seed), 200, 5, 4)


def equal(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def test_one_seed_alone_equals_itself_inside_the_batch(seed):
    data = datasets.synthetic_teacher(jax.random.key(seed))
    config = TrainingConfig(steps=1000, float64=True)
    networks = [(width, k) for width in (12, 21) for k in range(8)]
    together = train_networks(data, networks, config, ensemble=16, progress=False)
    for index in (3, 12):
        (alone,) = train_networks(data, [networks[index]], config, progress=False)
        for one, other in zip(alone, together[index], strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("loss", "tau", "batch"), [("hinge", 1.0, 20), ("hinge", 0.5, 200), ("squared", 1.0, 30)])
def test_training_equals_a_plain_loop(data, seed, loss, tau, batch):
    """Sixty steps of one network in NumPy, gradients by hand; the last epoch is not a whole one."""
    config = TrainingConfig(60, batch, 0.05, loss=loss, tau=tau, seed=seed % 100, float64=True)
    (found,) = train_networks(data, [(3, seed)], config, progress=False)
    w, v = (np.asarray(part[0], float) for part in shallow.start([(3, seed)], 5, config))
    x, y, each = np.asarray(data.x, float), np.asarray(data.y, float), 200 // batch
    for step in range(60):
        epoch, k = divmod(step, each)
        order = np.random.default_rng([config.seed, epoch]).permutation(200) if batch < 200 else np.arange(200)
        part = order[k * batch : (k + 1) * batch]
        z = x[part] @ w.T
        f = np.maximum(z, 0) @ v
        slope = -y[part] / tau * (y[part] * f / tau < 1) if loss == "hinge" else 2 * (f - y[part])
        inner = slope[:, None] * v[None] * (z > 0)
        w, v = w - 0.05 * inner.T @ x[part] / batch, v - 0.05 * slope @ np.maximum(z, 0) / batch
    np.testing.assert_allclose(found.w, w, atol=1e-10)
    np.testing.assert_allclose(found.v, v, atol=1e-10)


def test_blocks_change_nothing_but_rounding(data):
    networks = [(3, k) for k in range(4)]
    config = dataclasses.replace(QUICK, float64=True)
    whole, parts = (train_networks(data, networks, config, ensemble=block, progress=False) for block in (4, 2))
    for one, other in zip(parts, whole, strict=True):
        np.testing.assert_allclose(one.w, other.w, atol=1e-11)


def test_padding_stays_zero(data, monkeypatch):
    """On an accelerator all widths share one block."""
    networks = [(5, 0), (2, 7), (3, 1)]
    apart = train_networks(data, networks, QUICK, progress=False)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert shallow.ensembles_of(networks, QUICK) == [networks]
    start = shallow.start(networks, 5, QUICK)
    assert start.w.shape == (3, 5, 5)
    assert not start.w[1, 2:].any()
    assert not start.v[2, 3:].any()
    x, y = jnp.asarray(data.x.T), jnp.asarray(data.y)
    orders = np.random.default_rng(0).permuted(np.tile(np.arange(200), (5, 1)), axis=1)
    end = shallow.advance(QUICK.of_outputs, 50, jax.tree.map(jnp.asarray, start), (x, y), 0.05, orders, 20)
    assert not np.asarray(end.w)[1, 2:].any()
    assert not np.asarray(end.v)[2, 3:].any()
    together = train_networks(data, networks, QUICK, progress=False)
    for one, other, (width, _) in zip(together, apart, networks, strict=True):
        assert one.w.shape == (width, 5)
        np.testing.assert_allclose(one.w, other.w, atol=1e-4)


@pytest.mark.parametrize("batch", [20, 200])
def test_interrupted_and_continued_is_the_same_bit_for_bit(data, tmp_path, monkeypatch, batch):
    networks = [(3, k) for k in range(4)]
    config = TrainingConfig(steps=400, batch_size=batch)
    monkeypatch.setattr(shallow, "SECONDS_A_LOOK", 0.0)
    monkeypatch.setattr(shallow, "STEPS_A_CALL", 30)
    whole = train_networks(data, networks, config, progress=False)

    calls, advance = [], shallow.advance

    def slowly(*arguments):
        calls.append(None)
        time.sleep(0.02)
        return advance(*arguments)

    monkeypatch.setattr(shallow, "advance", slowly)
    done = [0]
    for limit in (3, 15, 30):

        def stop(limit=limit):
            if len(calls) >= limit:
                raise atomic.Stopped

        with pytest.raises(atomic.Stopped):
            train_networks(data, networks, config, directory=tmp_path, progress=False, check_stop=stop)
        done.append(sum(int(np.load(path)["done"]) for path in tmp_path.glob("*.npz")))
    assert 0 < done[1] < done[2] < done[3] < 4 * 400
    found = train_networks(data, networks, config, directory=tmp_path, progress=False)
    assert equal(found, whole)


def test_a_state_of_other_inputs_is_not_taken_up(data, tmp_path):
    train_networks(data, [(3, 0)], QUICK, directory=tmp_path, progress=False)
    faster = dataclasses.replace(QUICK, learning_rate=0.1)
    found = train_networks(data, [(3, 0)], faster, directory=tmp_path, progress=False)
    assert equal(found, train_networks(data, [(3, 0)], faster, progress=False))
    assert not equal(found, train_networks(data, [(3, 0)], QUICK, progress=False))


def test_compiled_once_for_all_ensembles_of_a_width(data):
    before = shallow.advance._cache_size()
    config = TrainingConfig(steps=30, batch_size=40, learning_rate=0.01)
    train_networks(data, [(4, k) for k in range(12)], config, ensemble=3, progress=False)
    places = len({id(device) for device in jax.local_devices()})
    assert shallow.advance._cache_size() - before <= places


def test_hits_are_decided_in_float64_on_all_the_data(data, seed):
    rates = hitting_rate(data, [2, 5], range(3), QUICK, progress=False)
    networks = train_networks(data, [(w, s) for w in (2, 5) for s in range(3)], QUICK, progress=False)
    x, y = np.asarray(data.x, float), np.asarray(data.y, float)
    risks = [np.maximum(1 - y * (np.maximum(x @ n.w.T, 0) @ n.v), 0).mean() for n in networks]
    np.testing.assert_allclose(rates.risk.ravel(), risks, rtol=1e-12)
    assert rates.risk.dtype == np.float64
    edge = hitting.rates([2], np.array([[1e-5, 1.0000001e-5, 0.0]]))
    assert edge.hits.tolist() == [2]


def test_the_teacher_itself_hits_the_minimum():
    config = table1.Config()
    for loss in ("hinge", "squared"):
        data, training = table1.problem(dataclasses.replace(config, loss=loss))
        teacher = datasets.synthetic_teacher(jax.random.key(0)).teacher
        w, v = (np.asarray(layer["kernel"], np.float64) for layer in teacher)
        f = np.maximum(np.asarray(data.x, np.float64) @ w[:, :, 0].T, 0) @ v[:, 0, 0]
        scale = 1.0 if loss == "hinge" else 1 / f.std()
        assert hitting.final_risk(data, [shallow.Weights(w[:, :, 0], scale * v[:, 0, 0])], training)[0] <= 1e-12


def test_an_easy_problem_is_hit_and_wider_is_no_worse():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(100, 5)).astype("f4")
    x[:, 0] = np.where(rng.random(100) < 0.5, 1, -1) * (1 + np.abs(x[:, 0]))
    data = Dataset(x, np.sign(x[:, 0]))
    rates = hitting_rate(
        data, [1, 12], range(20), TrainingConfig(steps=3000, batch_size=10, learning_rate=0.1), progress=False
    )
    assert rates.hits[1] == 20
    assert rates.hits[0] < 20  # one unit is 0 on half of the space
    assert rates.high[0] < rates.low[1]


def test_wilson_equals_scipy(seed):
    rng = np.random.default_rng(seed)
    for trials in (1, 7, 100):
        for hits in {0, trials, int(rng.integers(trials + 1))}:
            exact = binomtest(hits, trials).proportion_ci(method="wilson")
            np.testing.assert_allclose(hitting.wilson(hits, trials), exact, atol=1e-12)


def test_starts_are_within_the_fan_in():
    config = TrainingConfig()
    start = shallow.start([(20, k) for k in range(50)], 10, config)
    assert np.abs(start.w).max() <= 10**-0.5
    assert np.abs(start.v).max() <= 20**-0.5
    assert np.var(start.w) == pytest.approx(1 / 30, rel=0.05)
    normal = shallow.start([(20, k) for k in range(50)], 10, TrainingConfig(initialisation="normal"))
    assert np.var(normal.w) == pytest.approx(1 / 10, rel=0.05)


def test_wrong_use_is_refused(data):
    for change in ({"steps": 0}, {"learning_rate": -1.0}, {"loss": "logistic"}, {"initialisation": "zero"}):
        with pytest.raises(ValueError, match="must be"):
            TrainingConfig(**change)
    with pytest.raises(ValueError, match="at least 1"):
        train_networks(data, [], QUICK)
    with pytest.raises(ValueError, match="at most the 200 examples"):
        train_networks(data, [(2, 0)], TrainingConfig(batch_size=201))
    with pytest.raises(ValueError, match="equal weight"):
        train_networks(Dataset(data.x, data.y, np.arange(200)), [(2, 0)], QUICK)


def test_the_command_makes_the_table_with_its_protocol(tmp_path, capsys):
    out = tmp_path / "run"
    arguments = ("table1", "--smoke", "--steps", "100", "--seeds", "3", "--out", str(out))
    assert exit_code(lambda: dispatch(arguments)) == 0
    text = capsys.readouterr().out
    for word in ("minibatch 100", "step 0.015", "±1/√fan-in", "95 % interval", "paper", "median risk"):
        assert word in text
    measures = json.loads((out / "measures.json").read_text())
    assert measures["table"]["width"] == [12, 21]
    assert measures["protocol"]["learning_rate"] == 0.015
    import xarray

    with xarray.open_dataset(out / "table1.nc") as table:
        assert table.risk.shape == (2, 3)
        assert table.printed.values.tolist() == [0.21, 0.75]
        np.testing.assert_allclose(table.median_risk, np.median(table.risk, 1))
    assert (out / "figure.png").stat().st_size > 10_000
    assert exit_code(lambda: dispatch(arguments)) == 0
    assert "done already" in capsys.readouterr().out


def test_the_markdown_table_has_every_cell(tmp_path):
    """However many hits: 0/9, 100/100 and 1000/1000 stand in a column of their own."""
    hits, networks = [0, 9, 100, 1000], [9, 9, 100, 1000]
    columns = {"width": [8, 12, 21, 1000], "hits": hits, "networks": networks}
    columns |= {name: [0.0, 0.5, 1.0, 1.0] for name in ("rate", "low", "high", "median_risk", "least_risk")}
    measures = {"protocol": dataclasses.asdict(table1.Config()), "table": columns, "study": {"teacher 1": columns}}
    (tmp_path / "measures.json").write_text(json.dumps(measures))
    table1.draw(tmp_path)
    text = (tmp_path / "table1.md").read_text()
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 2 * (2 + len(hits))
    assert {len(row) for row in rows} == {6}
    assert [row[1].strip() for row in rows[2:6]] == ["0/9", "9/9", "100/100", "1000/1000"]


@pytest.mark.parametrize(
    "bad", [["--widths", "0"], ["--widths", "12", "12"], ["--batch-size", "2000"], ["--tau", "-1"]]
)
def test_impossible_options_are_refused_before_any_work(bad, tmp_path):
    assert exit_code(lambda: dispatch(["table1", *bad, "--out", str(tmp_path / "x")])) == 2
    assert not (tmp_path / "x").exists()


def test_the_study_changes_one_thing_at_a_time():
    cells = table1._studied(table1.Config(seeds=4))
    assert "teacher 0" not in cells
    for cell in cells.values():
        assert cell.widths == (12, 21)
        assert cell.seeds == 4


def test_float64_stays_inside(data):
    (found,) = train_networks(data, [(2, 0)], dataclasses.replace(QUICK, float64=True), progress=False)
    assert not np.array_equal(found.w, found.w.astype("f4"))
    assert jnp.ones(1).dtype == jnp.float32
