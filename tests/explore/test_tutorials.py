"""The first five minutes: each framework's own tutorial, trained and saved as it does, then one command."""

import html
import importlib.util
import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import numpy as np
import pytest
import seeds

import landscape as ls
from landscape import datasets
from landscape.__main__ import dispatch, exit_code

pytestmark = pytest.mark.slow

STEPS, LIMIT = 6, 200
EVERY = {
    "nnx": ("flax_nnx_cnn", "CNN", "main", "cross_entropy", "orbax", "CNN (flax nnx)", "28 x 28 x 1"),
    "linen": ("flax_linen_cnn", "CNN", "main", "cross_entropy", "orbax", "CNN (flax linen)", "28 x 28 x 1"),
    "msgpack": ("flax_linen_cnn", "CNN", "main_msgpack", "cross_entropy", "flax", "CNN (flax linen)", "28 x 28 x 1"),
    "equinox": ("equinox_cnn", "CNN", "main", "nll", "equinox", "CNN (Equinox)", "1 x 28 x 28"),
    "pytorch": ("pytorch_mnist", "Net", "main", "nll", "torch", "Net (PyTorch)", "1 x 28 x 28"),
    "hugging": (
        "hugging_face",
        "DigitsForImageClassification",
        "main",
        "cross_entropy",
        "torch",
        "DigitsForImageClassification (PyTorch)",
        "1 x 28 x 28",
    ),
}
"""Module, what --network names, its training, the loss, the package that must be there, title and layout."""
PACKAGES = {"orbax": "orbax.checkpoint"}
DROPPING = ("nnx", "pytorch", "hugging")


@pytest.fixture
def digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ls.Dataset:
    """MNIST where it is at hand, else random images under its name; a folder to run in."""
    monkeypatch.chdir(tmp_path)
    if not os.environ.get("LANDSCAPE_DATA"):
        noise = datasets.random_images("mnist", LIMIT, jax.random.key(int(seeds.generator().integers(2**31))))
        monkeypatch.setattr(datasets, "mnist", lambda root, split, limit: noise)
        return noise
    return datasets.mnist(limit=LIMIT)


def explore(*arguments: str) -> int:
    """Run the command on a small grid."""
    return exit_code(
        lambda: dispatch(["explore", "--points", "5", "--data", "mnist", "--limit", str(LIMIT), *arguments])
    )


def risk(name: str, f: np.ndarray, y: np.ndarray) -> float:
    """Mean loss of outputs in float64."""
    f = np.asarray(f, np.float64)
    own = f[np.arange(len(y)), y]
    return float(np.mean({"cross_entropy": np.logaddexp.reduce(f, -1) - own, "nll": -own}[name]))


@pytest.mark.parametrize("name", EVERY)
def test_a_tutorial_and_one_command(
    name: str, digits: ls.Dataset, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module, target, train, loss, package, title, layout = EVERY[name]
    pytest.importorskip(PACKAGES.get(package, package), reason=f"{package} is not installed")
    tutorial = importlib.import_module(f"tutorials.{module}")
    images, labels = np.asarray(digits.x).reshape(-1, 28, 28), np.asarray(digits.y)
    files = getattr(tutorial, train)(images, labels, Path.cwd(), STEPS)
    pictures = "landscape.explore.draw" if name != "nnx" else "landscape.plots.save"
    monkeypatch.setattr(pictures, lambda *_: None)  # they take most of the time
    words = ("--network", f"tutorials.{module}:{target}", "--loss", loss, "--solutions", *files, "--out", "out")
    assert explore(*words) == 0
    lines = capsys.readouterr().out.splitlines()
    surface = ls.Surface.load("out/surface.nc")
    found = re.fullmatch(
        rf"explore: {re.escape(title)}, ([\d,]+) parameters · 3 solutions \(\w[^)]*\) · mnist as {layout}(.*)", lines[0]
    )
    assert found, lines[0]
    assert int(found[1].replace(",", "")) == surface.metadata["parameters"]
    assert (" · dropout off" in found[2]) == (name in DROPPING)
    assert (f" · BatchNorm frozen as {files[0]} holds it" in found[2]) == (name == "nnx")
    wanted = [
        risk(loss, tutorial.outputs(Path(file).resolve(), images, Path(files[0]).resolve()), labels) for file in files
    ]
    np.testing.assert_allclose(surface.anchor_risk, wanted, rtol=2e-5)
    assert len(set(np.round(surface.anchor_risk, 6))) == 3
    if name == "nnx":
        page = html.unescape(Path("out/report.html").read_text("utf-8"))
        for said in ("CNN (flax nnx)", "ck0, ck1, ck2", "mnist as 28 x 28 x 1", "BatchNorm frozen as ck0 holds it"):
            assert said in page


KERAS = """
    import json, os, sys
    from pathlib import Path
    import jax, numpy as np
    from landscape import datasets
    from landscape.__main__ import dispatch, exit_code
    from landscape.networks import modules
    import tutorials.keras_convnet as tutorial

    if not os.environ.get("LANDSCAPE_DATA"):
        noise = datasets.random_images("mnist", 200, jax.random.key(0))
        datasets.mnist = lambda root, split, limit: noise
    digits = datasets.mnist(None, "train", 200)
    images, labels = np.asarray(digits.x).reshape(-1, 28, 28), np.asarray(digits.y)
    files = tutorial.main(images, labels, Path.cwd(), 6)
    import landscape.explore
    landscape.explore.draw = lambda path: None
    words = ["explore", "--points", "5", "--data", "mnist", "--limit", "200", "--loss", "cross_entropy", "--out", "out"]
    words += ["--network", "tutorials.keras_convnet:model", "--solutions", *files]
    code = exit_code(lambda: dispatch(words))
    if code:
        sys.exit(code)
    one, other = (modules.read(made, digits.x[:1], "frozen").network for made in (tutorial.model, tutorial.build_model))
    w = jax.tree.map(lambda leaf: leaf + 0.1, one.init(jax.random.key(0)))
    np.testing.assert_allclose(*(network.apply(w, images[:5, ..., None]) for network in (one, other)), rtol=1e-5)
    risks = []
    for file in files:
        f = tutorial.outputs(file, images, files[0])
        risks.append(float(-np.log(f[np.arange(len(labels)), labels].astype(float)).mean()))
    Path("risks.json").write_text(json.dumps(risks))
"""


def test_the_tutorial_of_keras(tmp_path: Path) -> None:
    if importlib.util.find_spec("keras") is None:  # importing it here would choose a backend for this process
        pytest.skip("keras is not installed")
    # A process of its own: keras chooses its backend from the environment, and changes JAX's settings.
    places = os.pathsep.join([str(Path(ls.__file__).parents[1]), str(Path(__file__).parents[1])])
    environment = {**os.environ, "KERAS_BACKEND": "jax", "PYTHONPATH": places}
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(KERAS)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    surface = ls.Surface.load(tmp_path / "out" / "surface.nc")
    np.testing.assert_allclose(surface.anchor_risk, json.loads((tmp_path / "risks.json").read_text()), rtol=2e-5)
    said = (
        "Sequential (Keras), 2,354 parameters · 3 solutions (Keras weights) · mnist as 28 x 28 x 1 · BatchNorm frozen"
    )
    assert said in done.stdout
    assert "dropout off · outputs are probabilities" in done.stdout
