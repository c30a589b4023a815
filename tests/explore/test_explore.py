"""`landscape explore`: other people's networks, every plane, stops at any stage, mistakes in one line."""

import itertools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import own_module
import pytest
import seeds
from flax import nnx

import landscape as ls
from landscape import checkpoints, runs, surfaces
from landscape.__main__ import STOPPED, WRONG, dispatch, exit_code
from landscape.convexity import barrier
from landscape.explore.view import radius, regulariser
from landscape.files import atomic
from landscape.networks import modules

pytestmark = pytest.mark.slow

EDGES = ((1, 2), (1, 3), (2, 3), (4, 5), (4, 6), (5, 6))
MANY = ("--network", "own_module:many", "--data", "own_module:data", "--loss", "own_module:loss")


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without pictures, which take most of the time."""
    monkeypatch.setattr("landscape.explore.draw", lambda path: None)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to run in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def explore(*arguments: str) -> int:
    """Run the command on a small grid."""
    return exit_code(lambda: dispatch(["explore", "--points", "5", *arguments]))


def keep(network: ls.Network | ls.MultiBranch, name: str = "w", count: int = 3) -> list[str]:
    """Checkpoints of random parameters."""
    files = [f"{name}{k}.npz" for k in range(count)]
    for k, file in enumerate(files):
        checkpoints.save(file, network.init(jax.random.key(k)))
    return files


@pytest.mark.parametrize("name", ["factory", "linen", "many", "tree"])
@pytest.mark.usefixtures("undrawn")
def test_every_kind_of_network_equals_its_own_forward_pass(name: str) -> None:
    x, y = own_module.data()
    network = modules.read(getattr(own_module, name), x[:1]).network
    words = ("--network", f"own_module:{name}", *MANY[2:], "--solutions", *keep(network), "--weight-decay", "0.1")
    assert explore(*words, "--out", "out", "--quiet") == 0
    surface = ls.Surface.load("out/surface.nc")
    assert {"accuracy", "regulariser", "risk and regulariser"} <= set(surface.layers)
    for k in range(3):
        outputs = ls.MultiBranch(network, 1) if name == "tree" else network
        w = network.init(jax.random.key(k))
        w = jax.tree.map(lambda t: t[None], w) if name == "tree" else w
        direct = ls.losses.logistic(outputs.apply(w, jnp.asarray(x)), jnp.asarray(y)).mean()
        assert surface.anchor_risk[k] == pytest.approx(float(direct), rel=1e-5)
    measures = json.loads(Path("out/measures.json").read_text())
    assert set(measures["barriers"]) == {"1 – 2", "1 – 3", "2 – 3"}
    assert explore(*words, "--out", "out", "--quiet") == 0


@pytest.mark.usefixtures("undrawn")
def test_pure_functions(capsys: pytest.CaptureFixture[str]) -> None:
    rng = seeds.generator()
    files = [f"p{k}.npz" for k in range(3)]
    for file in files:
        np.savez(file, a=rng.normal(size=(4, 5)).astype("f4"), b=rng.normal(size=(5, 3)).astype("f4"))
    pure = ("--network", "own_module:pure", "--data", "own_module:data", "--loss", "logistic")
    assert explore(*pure, "--solutions", *files, "--out", "one", "--plane", "oblique", "--quiet") == 0
    assert "logistic" in ls.Surface.load("one/surface.nc").metadata["loss"]
    capsys.readouterr()
    assert explore("--network", "own_module:risk", "--solutions", *files, "--out", "two") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("explore: 35 parameters")
    assert lines[1].startswith("plan:")  # before anything else
    assert "25 points x " in lines[1]
    assert "about " in lines[1]
    surface = ls.Surface.load("two/surface.nc")
    w = [checkpoints.load(file)[0] for file in files]
    risks = [float(own_module.risk(p)["risk"]) for p in w]
    np.testing.assert_allclose(surface.anchor_risk, risks, rtol=1e-5)
    assert "a size" in surface.layers
    with np.load("two/explore.npz") as arrays:  # the edges are those of the risk, whatever comes first
        np.testing.assert_allclose(arrays["edge 1 – 2"][[0, -1]], risks[:2], rtol=1e-5)


@pytest.mark.usefixtures("undrawn")
def test_what_a_function_does_not_read_is_no_parameter(capsys: pytest.CaptureFixture[str]) -> None:
    rng = seeds.generator()
    for k in range(3):
        own = {"a": rng.normal(size=(4, 5)).astype("f4"), "b": rng.normal(size=(5, 3)).astype("f4")}
        training = {"moment/a": np.full((4, 5), 1e3 * k, "f4"), "step": np.array(1000 * k), "key": np.ones(2, "u4")}
        np.savez(f"plain{k}.npz", **own)
        np.savez(f"state{k}.npz", **own, **training)
    distances = []
    for kind in ("plain", "state"):
        files = [f"{kind}{k}.npz" for k in range(3)]
        assert explore("--network", "own_module:risk", "--solutions", *files, "--out", kind) == 0
        distances.append(ls.Surface.load(f"{kind}/surface.nc").metadata["gram"])
    np.testing.assert_allclose(*distances, rtol=1e-6)
    said = capsys.readouterr().out
    assert "state0.npz: left out " in said
    for name in ("moment/a", "step", "key"):
        assert name in said
    pure = ("--network", "own_module:pure", "--data", "own_module:data", "--loss", "logistic", "--out", "pure")
    assert explore(*pure, "--solutions", *files, "--quiet") == 0
    assert len(ls.Surface.load("pure/surface.nc").metadata["gram"]) == 2
    np.testing.assert_allclose(ls.Surface.load("pure/surface.nc").metadata["gram"], distances[0], rtol=1e-6)


@pytest.mark.usefixtures("undrawn")
def test_trajectories_of_one_name_in_two_folders() -> None:
    rng, walks = seeds.generator(), {}
    for folder in ("a", "b"):
        Path(folder).mkdir()
        walks[folder] = {"a": rng.normal(size=(6, 4, 5)).astype("f4"), "b": rng.normal(size=(6, 5, 3)).astype("f4")}
        np.savez(f"{folder}/trajectory.npz", **walks[folder])
    np.savez("w.npz", **{name: x[0] for name, x in walks["a"].items()})
    words = ("--network", "own_module:risk", "--solutions", "w.npz", "--plane", "pca", "--quiet", "--out", "out")
    assert explore(*words, "--paths", "a/trajectory.npz", "b/trajectory.npz") == 0
    with np.load("out/explore.npz") as arrays:
        assert {name for name in arrays.files if name.startswith("path")} == {"path a", "path b"}
        assert not np.allclose(arrays["path a"], arrays["path b"])
    assert explore(*words[:-1], "two", "--paths", "a/trajectory.npz", "a/trajectory.npz") == WRONG


@pytest.mark.parametrize("plane", ["random", "gradient", "hessian"])
@pytest.mark.usefixtures("undrawn")
def test_planes_through_one_solution(plane: str) -> None:
    words = (*MANY, "--solutions", *keep(own_module.many(), count=1), "--plane", plane, "--quiet")
    assert explore(*words, "--out", "out", *(["--spectrum"] if plane == "hessian" else [])) == 0
    surface = ls.Surface.load("out/surface.nc")
    assert np.isfinite(surface.risk).all()
    assert "10 times" in surface.metadata["extent"]
    edge = [surface.risk[2, 0], surface.risk[2, -1], surface.risk[0, 2], surface.risk[-1, 2]]
    assert np.mean(edge) == pytest.approx(10 * surface.anchor_risk[0], rel=0.1)
    if plane == "hessian":
        (record,) = json.loads(Path("out/measures.json").read_text())["hessian"]
        assert record["largest"][0] >= record["largest"][1] >= record["smallest"]


@pytest.mark.usefixtures("undrawn")
def test_training_with_trajectories_and_the_plan_before_it(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--batch-size", "20", "--steps", "40", "--record", "10", "--plane", "pca", "--learning-rate", "0.2")
    assert explore(*MANY, *words, "--out", "out") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["explore:", "plan:", "train"]
    assert "GFLOP · about" in lines[1]
    with np.load("out/explore.npz") as arrays:
        assert sorted(name for name in arrays.files if name.startswith("path")) == [f"path seed {k}" for k in (1, 2, 3)]
        path = arrays["path seed 1"]
    assert path.shape == (5, 3)
    assert path[-1] == pytest.approx([0, 0, 0], abs=1e-3)  # the plane is the one through its last point
    found = ls.Solutions.load("out/solutions.npz", "explore", own_module.many().init(jax.random.key(0)))
    assert len(found) == 3
    surface = ls.Surface.load("out/surface.nc")
    assert surface.anchor_risk[-1] == pytest.approx(found.risk[0], rel=1e-4)


@pytest.mark.usefixtures("undrawn")
@pytest.mark.filterwarnings("default:.*It is computed again")
def test_stopped_at_any_stage_and_continued_bit_for_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    words = (*MANY, "--batch-size", "20", "--steps", "40", "--align", "--curvature", "--spectrum", "--quiet")
    words = (*words, "--test-data", "own_module:data")
    assert explore(*words, "--out", "whole") == 0
    codes, calls = [], []

    def check_stop(run: runs.Run) -> None:
        calls.append(run)
        if len(calls) > 9 * (len(codes) + 1):  # each time a little further
            raise atomic.Stopped

    monkeypatch.setattr(runs.Run, "check_stop", check_stop)
    monkeypatch.setattr("landscape.training.SECONDS_A_SAVE", 0.0)
    while not codes or codes[-1] == STOPPED:
        calls.clear()
        codes.append(explore(*words, "--out", "parts"))
        stages = sorted(Path("parts").glob("stage-*plane*.npz"))
        if len(codes) == 3:  # a damaged stage is noticed and computed again
            stages[0].write_bytes(stages[0].read_bytes()[:-100])
    assert len(codes) > 3
    assert codes[-1] == 0
    one, two = (surfaces.load_stack(f"{name}/surface.nc") for name in ("whole", "parts"))
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a.risk, b.risk)
        assert set(a.layers) == set(b.layers) >= {"slope_a", "curvature_max", "test risk", "accuracy"}
        for name in a.layers:
            np.testing.assert_array_equal(a.layers[name], b.layers[name])
    with np.load("whole/explore.npz") as a, np.load("parts/explore.npz") as b:
        assert set(a.files) == set(b.files)
        for name in a.files:
            np.testing.assert_array_equal(a[name], b[name])
    measures = [json.loads(Path(name, "measures.json").read_text()) for name in ("whole", "parts")]
    assert measures[0] == measures[1]
    assert not [*Path("parts").glob("stage-*"), *Path("parts").glob("block-*"), *Path("parts").glob("training*")]


def test_aligned_branches_before_and_after_with_a_spread() -> None:
    w = own_module.many().init(jax.random.key(0))
    files = [f"m{k}.npz" for k in range(6)]
    for k, file in enumerate(files):
        order = np.random.default_rng(k).permutation(4)
        moved = jax.tree.map(lambda x, o=order, k=k: x[o] + 0.01 * jax.random.normal(jax.random.key(k), x.shape), w)
        checkpoints.save(file, moved)
    assert explore(*MANY, "--align", "--solutions", *files, "--out", "out", "--quiet") == 0
    stack = surfaces.load_stack("out/surface.nc")
    assert [(s.metadata["triple"], s.metadata["aligned"]) for s in stack] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    for before, after in (stack[:2], stack[2:]):
        assert np.abs(after.anchors).max() < 0.2 * np.abs(before.anchors).max()
    measures = json.loads(Path("out/measures.json").read_text())
    barriers = measures["barriers"]
    assert set(barriers) == {f"{word}{i} – {j}" for word in ("", "aligned ") for i, j in EDGES}
    for i, j in EDGES:
        assert barriers[f"aligned {i} – {j}"] <= barriers[f"{i} – {j}"] + 1e-6
    assert [(r["triple"], r["aligned"]) for r in measures["records"]] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    for file in ("figure.png", "edges.png", "report.html", "alignment.png"):
        assert Path("out", file).stat().st_size > 10_000
    page = Path("out/report.html").read_text("utf-8")
    assert "95 % bootstrap interval" in page
    assert "triple 2, orthonormal, aligned" in page


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--network", "nowhere:make"], "importing nowhere failed"),
        (["--network", "own_module:nothing", "--data", "own_module:data"], "has no nothing"),
        (["--network", "own_module"], "MODULE:NAME"),
        (["--network", "own_module:factory"], "--data is needed"),
        (["--network", "own_module:linen"], "give --data"),
        (["--network", "own_module:Normed", *MANY[2:]], "--state recompute"),
        (["--network", "own_module:Normed", *MANY[2:], "--branches", "3"], "--state recompute"),
        (["--network", "own_module:Normed", *MANY[2:], "--state", "recompute"], "wants --solutions"),
        (["--network", "own_module:Small", *MANY[2:], "--state", "recompute"], "no statistics"),
        (["--network", "own_module:tree", *MANY[2:], "--state", "recompute"], "no statistics"),
        (["--network", "own_module:risk", "--state", "frozen", "--solutions", "w.npz"], "what becomes of its state"),
        ([*MANY, "--branches", "3"], "leave --branches out"),
        ([*MANY[:4], "--loss", "own_module:mean"], "one value an example"),
        ([*MANY[:4], "--loss", "own_module:drawn_when_traced", "--steps", "1000000000"], "deterministic"),
        ([*MANY[:4], "--loss", "own_module:drawn_when_run", "--steps", "1000000000"], "deterministic"),
        ([*MANY[:4], "--loss", "hings"], "--loss wants"),
        (["--network", "own_module:Linear", *MANY[2:], "--align", "--steps", "1000000000"], "may change places"),
        (["--network", "own_module:risk"], "--solutions"),
        (["--network", "own_module:risk", "--solutions", "missing.npz"], "missing.npz does not exist"),
        (["--network", "own_module:risk", "--solutions", "w.npz", "w.npz", "w.npz"], "same parameters"),
        (["--network", "own_module:risk", "--solutions", "w.npz", "v.npz", "u.npz"], "a [2, 5], wanted [4, 5]"),
        (["--network", "own_module:risk", "--solutions", "w.npz", "t.npz", "u.npz"], "lacks b"),
        (["--network", "own_module:risk", "--solutions", "w.npz"], "wants three solutions"),
        (["--network", "own_module:risk", "--solutions", *["w.npz"] * 4], "or six, nine"),
        ([*MANY, "--triples", "2", "--plane", "random"], "--triples wants"),
        (["--network", "own_module:risk", "--solutions", "w.npz", "u.npz", "--plane", "pca"], "at least 3 points"),
        (["--network", "own_module:vector", "--solutions", "w.npz", "--plane", "random"], "must return a scalar"),
        (["--network", "own_module:wandering", "--solutions", "w.npz", "--plane", "random"], "deterministic"),
        ([*MANY, "--solutions", "w.npz"], "lacks"),
    ],
)
@pytest.mark.usefixtures("undrawn")
def test_mistakes_end_with_a_sentence(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = np.ones((4, 5), "f4"), np.ones((5, 3), "f4")
    np.savez("w.npz", a=a, b=b)
    np.savez("v.npz", a=a[:2], b=b)
    np.savez("u.npz", a=a, b=2 * b)
    np.savez("t.npz", a=a, c=b)
    for work in ("train", "evaluation.evaluate"):  # nothing long may have started
        monkeypatch.setattr(f"landscape.explore.pipeline.{work}", lambda *_, **__: pytest.fail("long work has begun"))
    assert explore(*arguments, "--out", "out") == WRONG
    message = capsys.readouterr().err
    assert words in message
    assert len(message.splitlines()) <= 3


@pytest.mark.usefixtures("undrawn")
def test_statistics_are_an_explicit_choice() -> None:
    words = ("--network", "own_module:Normed", *MANY[2:], "--quiet")
    frozen = ls.from_flax(own_module.Normed, state="frozen")
    held = {"norm": {"mean": jnp.full(5, 0.7), "var": jnp.full(5, 3.0)}}
    files, three = keep(frozen), keep(ls.MultiBranch(frozen, 3), "b")
    for k in range(3):  # a whole checkpoint, statistics included
        w = frozen.init(jax.random.key(k))
        checkpoints.save(f"s{k}.npz", {**w, "norm": {**w["norm"], **held["norm"]}})
    runs = {
        "module": (*files, "--state", "frozen"),
        "checkpoint": (*(f"s{k}.npz" for k in range(3)), "--state", "frozen"),
        "recompute": (*files, "--state", "recompute"),
        "branches": (*three, "--state", "recompute", "--branches", "3"),
    }
    x, y = own_module.data()
    restored = modules.with_statistics(own_module.Normed, x[:1], held)
    recomputed = {n: modules.recomputed_risk(own_module.Normed, ls.Dataset(x, y), own_module.loss, num_branches=n)
                  for n in (None, 3)}  # fmt: skip
    direct = {
        "module": lambda w: own_module.mean(frozen.apply(w, x), y),
        "checkpoint": lambda w: own_module.mean(restored.apply(w, x), y),
        "recompute": lambda w: recomputed[None](w)["risk"],
        "branches": lambda w: recomputed[3](w)["risk"],
    }
    for name, arguments in runs.items():
        assert explore(*words, "--solutions", *arguments, "--out", name) == 0
        surface = ls.Surface.load(f"{name}/surface.nc")
        assert surface.metadata["state"] == arguments[4]
        network = ls.MultiBranch(frozen, 3) if name == "branches" else frozen
        wanted = [float(jax.jit(direct[name])(network.init(jax.random.key(k)))) for k in range(3)]
        np.testing.assert_allclose(surface.anchor_risk, wanted, rtol=1e-4)
        assert "accuracy" in surface.layers


def test_extent_regulariser_and_barrier() -> None:
    plane = ls.Plane(
        {"w": jnp.array([1.0, 0])}, {"w": jnp.array([1.0, 1])}, {"w": jnp.array([0.0, 2])}, np.zeros((1, 2))
    )
    found = radius(lambda p: ((p["w"] - jnp.array([1.0, 0])) ** 2).sum() + 1, plane, 10.0)
    assert found == (pytest.approx(np.sqrt(9 / 3), rel=0.02), "centre")
    assert radius(lambda p: ((p["w"] - jnp.array([1.0, 0])) ** 2).sum(), plane, 10.0)[1] == "least"
    assert radius(lambda p: 0 * p["w"].sum(), plane, 10.0) == (1.0, "")
    grid = ls.Grid(np.linspace(-1, 1, 3), np.linspace(0, 1, 2))
    wanted = [[float((plane.at((a, b))["w"] ** 2).sum()) / 4 for b in grid.b] for a in grid.a]
    np.testing.assert_allclose(regulariser(plane, grid, 0.5), wanted, rtol=1e-5)
    assert barrier(np.array([1.0, 3.0, 2.0])) == 1.5


class Cnn(nnx.Module):
    """A small convolutional branch; with `deep`, blocks in the manner of VGG."""

    def __init__(self, rngs: nnx.Rngs, deep: bool = False) -> None:
        sizes = [3, 4, 6] if deep else [3, 4]
        self.convs = nnx.List([nnx.Conv(n, m, (3, 3), rngs=rngs) for n, m in itertools.pairwise(sizes)])
        self.out = nnx.Linear(sizes[-1], 10, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        for k, conv in enumerate(self.convs):
            x = nnx.relu(conv(x))
            x = nnx.max_pool(x, (2, 2), (2, 2)) if k % 2 else x
        return self.out(x.mean((-3, -2)))


@pytest.mark.parametrize("kind", ["cnn", "recurrent", "vgg"])
def test_images_of_cifar10_through_own_networks(kind: str, request: pytest.FixtureRequest) -> None:
    try:
        data = ls.datasets.cifar10(request.getfixturevalue("data_root"), limit=16)
    except pytest.skip.Exception:
        rng = seeds.generator()
        data = ls.Dataset(rng.normal(size=(16, 32, 32, 3)).astype("f4"), rng.integers(0, 10, 16), name="random images")
    x = data.x.reshape(16, 32, 96 if kind == "recurrent" else 32, -1).squeeze()
    data = ls.Dataset(x, data.y)
    branch, count = {
        "cnn": lambda: (ls.from_flax(Cnn), 1),
        "vgg": lambda: (ls.from_flax(lambda rngs: Cnn(rngs, deep=True)), 2),
        "recurrent": lambda: (ls.networks.recurrent_branch(96, 4, 10), 3),
    }[kind]()
    network = ls.MultiBranch(branch, count)
    problem = ls.Problem(data, network, ls.losses.logistic)
    forward = jax.jit(jax.vmap(branch.apply, (None, 0)) if kind == "recurrent" else branch.apply)
    plane = ls.planes.through_solutions(*(network.init(k) for k in jax.random.split(jax.random.key(0), 3)))
    surface = ls.evaluate(problem, plane, ls.grid_around(plane, (3, 4)), progress=False)
    for i, j in ((0, 1), (2, 3)):
        w = plane.at((surface.grid.a[i], surface.grid.b[j]))
        outputs = sum(forward(jax.tree.map(lambda t, n=n: t[n], w), x) for n in range(count)) / count
        direct = ls.losses.logistic(outputs, jnp.asarray(data.y)).mean()
        assert surface.risk[i, j] == pytest.approx(float(direct), rel=1e-4)
    assert surface.metadata["checks"]["deterministic"]
