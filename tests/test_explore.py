"""`landscape explore`: other people's networks, checkpoints in every format, every plane, mistakes in one line."""

import itertools
import json
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import landscape as ls
from landscape import checkpoints, given, modules, surfaces
from landscape.__main__ import dispatch, exit_code
from landscape.extent import radius, regulariser
from landscape.probes import barrier

SOURCE = """
import jax, jax.numpy as jnp, numpy as np, landscape as ls
from flax import nnx
import flax.linen as nn

class Small(nnx.Module):
    def __init__(self, rngs):
        self.hidden, self.out = nnx.Linear(4, 5, rngs=rngs), nnx.Linear(5, 3, rngs=rngs)
    def __call__(self, x):
        return self.out(nnx.tanh(self.hidden(x)))

class Normed(nnx.Module):
    def __init__(self, rngs):
        self.hidden, self.norm = nnx.Linear(4, 5, rngs=rngs), nnx.BatchNorm(5, rngs=rngs)
        self.out = nnx.Linear(5, 3, rngs=rngs)
    def __call__(self, x):
        return self.out(nnx.tanh(self.norm(self.hidden(x))))

class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.tanh(nn.Dense(5)(x)))

def factory(rngs): return Small(rngs)
linen = Linen()
def many(): return ls.MultiBranch(ls.from_flax(Small), 4)
def pure(params, x): return jnp.tanh(x @ params["a"]) @ params["b"]
def risk(params): return {"risk": (params["a"] ** 2).sum() + params["b"].sum() ** 2, "size": jnp.abs(params["b"]).sum()}
def vector(params): return params["a"].sum(0)
def data():
    rng = np.random.default_rng(0)
    return rng.normal(size=(60, 4)).astype("f4"), rng.integers(0, 3, 60)
def loss(f, y): return ls.losses.logistic(f, y)
def two(f, y): return ls.losses.logistic(f, y).mean()
counter = np.zeros(1)
def wandering(params):
    def draw():
        counter[0] += 1
        return np.float32(counter[0])
    return (params["a"] ** 2).sum() + jax.pure_callback(draw, jax.ShapeDtypeStruct((), "float32"))
"""


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without pictures, which take most of the time."""
    monkeypatch.setattr("landscape.explore.draw", lambda path: None)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the user's module in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("own_module", None)
    (tmp_path / "own_module.py").write_text(SOURCE)
    return tmp_path


def explore(*arguments: str) -> int:
    """Run the command on a small grid."""
    return exit_code(lambda: dispatch(["explore", "--quiet", "--points", "5", *arguments]))


def keep(network: object, names: str, folder: Path, count: int = 3) -> list[str]:
    """Checkpoints of random parameters."""
    out = []
    for k in range(count):
        out.append(str(folder / f"{names}{k}.npz"))
        checkpoints.save(out[-1], network.init(jax.random.key(k)))
    return out


@pytest.mark.parametrize("name", ["factory", "Small", "linen", "many"])
@pytest.mark.usefixtures("undrawn")
def test_every_kind_of_network_equals_its_own_forward_pass(name: str, folder: Path) -> None:
    target = given.named(f"own_module:{name}", "--network")
    x, y = given.named("own_module:data", "--data")()
    network = modules.given(target, x[:1]).network
    files = keep(network, "w", folder)
    common = ("--network", f"own_module:{name}", "--data", "own_module:data", "--loss", "own_module:loss")
    assert explore(*common, "--solutions", *files, "--weight-decay", "0.1", "--out", "out") == 0
    surface = ls.Surface.load("out/surface.nc")
    assert {"accuracy", "regulariser", "risk and regulariser"} <= set(surface.layers)
    for k in range(3):
        w = network.init(jax.random.key(k))
        direct = ls.losses.logistic(network.apply(w, jnp.asarray(x)), jnp.asarray(y)).mean()
        assert surface.anchor_risk[k] == pytest.approx(float(direct), rel=1e-5)
    measures = json.loads(Path("out/measures.json").read_text())
    assert set(measures["barriers"]) == {"1 – 2", "1 – 3", "2 – 3"}
    assert explore(*common, "--solutions", *files, "--weight-decay", "0.1", "--out", "out") == 0


@pytest.mark.usefixtures("undrawn")
def test_pure_functions(folder: Path) -> None:
    rng = np.random.default_rng()
    files = []
    for k in range(3):
        files.append(str(folder / f"p{k}.npz"))
        np.savez(files[-1], a=rng.normal(size=(4, 5)).astype("f4"), b=rng.normal(size=(5, 3)).astype("f4"))
    common = ("--network", "own_module:pure", "--data", "own_module:data", "--loss", "logistic")
    assert explore(*common, "--solutions", *files, "--out", "one", "--plane", "oblique") == 0
    assert explore("--network", "own_module:risk", "--solutions", *files, "--out", "two") == 0
    surface = ls.Surface.load("two/surface.nc")
    w = checkpoints.load(files[1])[0]
    assert surface.anchor_risk[1] == pytest.approx(float((w["a"] ** 2).sum() + w["b"].sum() ** 2), rel=1e-5)
    assert "size" in surface.layers
    assert "logistic" in ls.Surface.load("one/surface.nc").metadata["loss"]


@pytest.mark.parametrize("plane", ["random", "pca", "gradient"])
@pytest.mark.usefixtures("undrawn")
def test_other_planes_of_trained_solutions(plane: str) -> None:
    words = ("--network", "own_module:many", "--data", "own_module:data", "--loss", "logistic", "--batch-size", "20")
    assert explore(*words, "--plane", plane, "--steps", "40", "--out", "out", *(["--spectrum"] * (plane == "pca"))) == 0
    surface = ls.Surface.load("out/surface.nc")
    assert np.isfinite(surface.risk).all()
    with np.load("out/explore.npz") as arrays:
        path = arrays["path seed 1"]
        assert path.shape[1] == 3
        assert path[-1, 2] == pytest.approx(0, abs=1e-3)
    if plane != "pca":
        assert "10 times" in surface.metadata["extent"]


def test_aligned_branches_before_and_after(folder: Path) -> None:
    network = given.named("own_module:many", "--network")()
    w = network.init(jax.random.key(0))
    files = []
    for k in range(3):
        order = np.random.default_rng(k).permutation(4)
        moved = jax.tree.map(lambda x, o=order, k=k: x[o] + 0.01 * jax.random.normal(jax.random.key(k), x.shape), w)
        files.append(str(folder / f"m{k}.npz"))
        checkpoints.save(files[-1], moved)
    words = (
        "--network",
        "own_module:many",
        "--data",
        "own_module:data",
        "--loss",
        "logistic",
        "--align",
        "--curvature",
    )
    assert explore(*words, "--solutions", *files, "--out", "out") == 0
    before, after = surfaces.load_stack("out/surface.nc")
    assert np.abs(after.anchors).max() < 0.2 * np.abs(before.anchors).max()
    assert "slope_a" in after.layers
    barriers = json.loads(Path("out/measures.json").read_text())["barriers"]
    for file in ("figure.png", "edges.png", "report.html", "alignment.png", "curvature.png"):
        assert Path("out", file).stat().st_size > 10_000
    assert barriers["aligned 1 – 2"] <= barriers["1 – 2"] + 1e-6


def test_checkpoints_in_every_format(folder: Path) -> None:
    network = ls.from_flax(given.named("own_module:factory", "--network"))
    w = network.init(jax.random.key(1))
    like = jax.eval_shape(network.init, jax.random.key(0))
    checkpoints.save("a.npz", w)
    np.savez("b.npz", **{f"params{jax.tree_util.keystr(k)}": v for k, v in jax.tree_util.tree_leaves_with_path(w)})
    flat = {".".join(str(p.key) for p in k): np.asarray(v) for k, v in jax.tree_util.tree_leaves_with_path(w)}
    names = ["a.npz", "b.npz"]
    if pytest.importorskip("safetensors"):
        from safetensors.numpy import save_file

        save_file(flat, "c.safetensors")
        names.append("c.safetensors")
    for name in names:
        (found,) = checkpoints.load(name, like)
        jax.tree.map(np.testing.assert_array_equal, found, w)
    np.savez("many.npz", **{k: np.stack([v, 2 * v]) for k, v in flat.items()})
    assert len(checkpoints.load("many.npz", like)) == 2


def test_orbax_folders(folder: Path) -> None:
    orbax = pytest.importorskip("orbax.checkpoint")
    network = ls.from_flax(given.named("own_module:factory", "--network"))
    w = network.init(jax.random.key(1))
    orbax.PyTreeCheckpointer().save(folder / "kept", w)
    (found,) = checkpoints.load("kept", jax.eval_shape(network.init, jax.random.key(0)))
    jax.tree.map(np.testing.assert_array_equal, found, w)
    Path("empty").mkdir()
    with pytest.raises(ValueError, match="orbax"):
        checkpoints.load("empty")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--network", "nowhere:make"], "importing nowhere failed"),
        (["--network", "own_module:nothing", "--data", "own_module:data"], "has no nothing"),
        (["--network", "own_module"], "MODULE:NAME"),
        (["--network", "own_module:factory"], "--data is needed"),
        (["--network", "own_module:Normed", "--data", "own_module:data"], "BatchStat"),
        (
            ["--network", "own_module:many", "--data", "own_module:data", "--loss", "own_module:two"],
            "one value an example",
        ),
        (["--network", "own_module:many", "--data", "own_module:data", "--loss", "hings"], "--loss wants"),
        (["--network", "own_module:risk", "--solutions", "missing.npz"], "missing.npz does not exist"),
        (["--network", "own_module:risk", "--solutions", "w.npz", "w.npz", "w.npz"], "same parameters"),
        (["--network", "own_module:risk", "--solutions", "w.npz", "v.npz", "u.npz"], "same parameters; number 1"),
        (["--network", "own_module:risk", "--solutions", "w.npz", "t.npz", "u.npz"], "number 1 has"),
        (["--network", "own_module:risk", "--solutions", "w.npz"], "wants three solutions"),
        (["--network", "own_module:vector", "--solutions", "w.npz", "--plane", "random"], "must return a scalar"),
        (["--network", "own_module:wandering", "--solutions", "w.npz", "--plane", "random"], "deterministic"),
        (
            ["--network", "own_module:many", "--data", "own_module:data", "--loss", "logistic", "--solutions", "w.npz"],
            "does not hold",
        ),
    ],
)
@pytest.mark.usefixtures("undrawn")
def test_mistakes_end_with_a_sentence(
    arguments: list[str], words: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = np.ones((4, 5), "f4"), np.ones((5, 3), "f4")
    np.savez("w.npz", a=a, b=b)
    np.savez("v.npz", a=a[:2], b=b)
    np.savez("u.npz", a=a, b=2 * b)
    np.savez("t.npz", a=a, c=b)
    assert explore(*arguments, "--out", "out") == 2
    message = capsys.readouterr().err
    assert words in message
    assert len(message.splitlines()) <= 3


@pytest.mark.usefixtures("undrawn")
def test_batch_statistics_are_an_explicit_choice(folder: Path) -> None:
    x, y = given.named("own_module:data", "--data")()
    data, loss = ls.Dataset(x, y), ls.losses.logistic
    normed = given.named("own_module:Normed", "--network")
    frozen = ls.from_flax(normed, state="frozen")
    w = frozen.init(jax.random.key(0))
    w = jax.tree.map(lambda t: t + 0.1 * jax.random.normal(jax.random.key(5), t.shape), w)
    hidden = x @ w["hidden"]["kernel"] + w["hidden"]["bias"][None]

    def direct(mean: object, variance: object) -> float:
        h = (hidden - mean) / np.sqrt(variance + 1e-5) * w["norm"]["scale"][None] + w["norm"]["bias"][None]
        return float(loss(jnp.tanh(h) @ w["out"]["kernel"] + w["out"]["bias"][None], jnp.asarray(y)).mean())

    kept = ls.Problem(data, ls.MultiBranch(frozen, 1), loss).risk(jax.tree.map(lambda t: t[None], w))
    assert float(kept) == pytest.approx(direct(0, 1), rel=1e-5)
    risk = modules.recomputed_risk(normed, data, loss, quantities={"same": (data, loss)})
    found = jax.jit(risk)(w)
    wanted = direct(hidden.mean(0)[None], hidden.var(0)[None])
    assert float(found["risk"]) == pytest.approx(wanted, rel=1e-4)
    assert float(found["same"]) == pytest.approx(wanted, rel=1e-4)
    files = keep(frozen, "n", folder)
    words = ("--network", "own_module:Normed", "--data", "own_module:data", "--loss", "logistic", "--solutions", *files)
    risks = []
    for state in ("frozen", "recompute"):
        assert explore(*words, "--state", state, "--out", state) == 0
        risks.append(ls.Surface.load(f"{state}/surface.nc"))
        assert risks[-1].metadata["state"] == state
    assert not np.allclose(risks[0].risk, risks[1].risk)


def test_linen_statistics() -> None:
    class Net(nn.Module):
        running: bool

        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            return nn.Dense(3)(nn.BatchNorm(use_running_average=self.running)(x))

    x, y = given.named("own_module:data", "--data")()
    data = ls.Dataset(3 * x + 1, y)
    network = ls.from_linen(Net(True), jnp.asarray(x[:1]), state="frozen")
    w = network.init(jax.random.key(0))
    same = ls.Dataset(x, y)
    found = [modules.recomputed_risk(Net(False), d, ls.losses.logistic)(w)["risk"] for d in (data, same)]
    assert float(found[0]) == pytest.approx(float(found[1]), rel=1e-3)
    with pytest.raises(ValueError, match="batch_stats"):
        ls.from_linen(Net(True), jnp.asarray(x[:1]))


def test_extent_regulariser_and_barrier() -> None:
    plane = ls.Plane(
        {"w": jnp.array([1.0, 0])}, {"w": jnp.array([1.0, 1])}, {"w": jnp.array([0.0, 2])}, np.zeros((1, 2))
    )
    found = radius(lambda p: ((p["w"] - jnp.array([1.0, 0])) ** 2).sum() + 1, plane, 10.0)
    assert found == (pytest.approx(np.sqrt(9 / 3), rel=0.02), "centre")
    grid = ls.Grid(np.linspace(-1, 1, 3), np.linspace(0, 1, 2))
    wanted = [[float((plane.at((a, b))["w"] ** 2).sum()) / 4 for b in grid.b] for a in grid.a]
    np.testing.assert_allclose(regulariser(plane, grid, 0.5), wanted, rtol=1e-5)
    assert barrier(np.array([1.0, 3.0, 2.0])) == 1.5


class Cnn(nnx.Module):
    """A small convolutional branch; with `deep`, two blocks in the manner of VGG."""

    def __init__(self, rngs: nnx.Rngs, deep: bool = False) -> None:
        sizes = [3, 4, 4, 6] if deep else [3, 4]
        self.convs = nnx.List([nnx.Conv(n, m, (3, 3), rngs=rngs) for n, m in itertools.pairwise(sizes)])
        self.out = nnx.Linear(sizes[-1], 3, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        for k, conv in enumerate(self.convs):
            x = nnx.relu(conv(x))
            x = nnx.max_pool(x, (2, 2), (2, 2)) if k % 2 else x
        return self.out(x.mean((-3, -2)))


@pytest.mark.parametrize("kind", ["cnn", "recurrent", "vgg"])
def test_a_walk_through_with_own_networks(kind: str) -> None:
    rng = np.random.default_rng()
    shape = (8, 8, 3)
    x = rng.normal(size=(24, *shape)).astype("f4")
    x = x.reshape(24, 8, 24) if kind == "recurrent" else x
    data = ls.Dataset(x, rng.integers(0, 3, 24))
    branch = {
        "cnn": lambda: (ls.from_flax(lambda rngs: Cnn(rngs)), 1),
        "vgg": lambda: (ls.from_flax(lambda rngs: Cnn(rngs, deep=True)), 2),
        "recurrent": lambda: (ls.networks.recurrent_branch(24, 4, 3), 3),
    }[kind]()
    problem = ls.Problem(data, ls.MultiBranch(*branch), ls.losses.logistic)
    keys = jax.random.split(jax.random.key(int(rng.integers(1000))), 3)
    found = ls.train(problem, keys, optax.sgd(0.05), steps=10, batch_size=8, progress=False)
    plane = ls.planes.through_solutions(*found)
    surface = ls.evaluate(problem, plane, ls.grid_around(plane, 4), progress=False)
    points = [(i, j) for i in (0, 3) for j in (1, 2)]
    for i, j in points:
        direct = problem.risk(plane.at((surface.grid.a[i], surface.grid.b[j])))
        assert surface.risk[i, j] == pytest.approx(float(direct), rel=1e-4)
    assert surface.metadata["checks"]["deterministic"]
