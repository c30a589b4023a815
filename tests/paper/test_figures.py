"""figure1 and figure4: refusals before any work, other losses, and real images."""

import jax
import numpy as np
import pytest
import xarray

from landscape import datasets
from landscape.__main__ import dispatch, exit_code
from landscape.datasets import downloads
from landscape.paper import figure4
from landscape.runs import Run
from landscape.runs.options import Options
from landscape.surfaces import load_stack

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["figure1", "--branches", "0"], "at least 1"),
        (["figure1", "--branches", "10", "10"], "different"),
        (["figure1", "--tau", "-1"], "tau must be positive"),
        (["figure1", "--points", "1"], "at least 2"),
        (["figure1", "--batch-size", "5000"], "at most the 1,000"),
        (["figure1", "--learning-rate", "0"], "positive"),
        (["figure1", "--memory", "1KiB"], "GiB are allowed"),
        (["figure1", "--colour", "red"], "colour"),
        (["figure4", "--hidden", "0"], "hidden"),
        (["figure4", "--limit", "0"], "limit"),
        (["figure4", "--tolerance", "-1"], "tolerance"),
        (["figure4", "--branches", "3", "3"], "different"),
        (["figure4", "--data-root", "nowhere"], "nowhere"),
    ],
)
def test_wrong_use_ends_with_2_before_any_work(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert exit_code(lambda: dispatch([*arguments, "--quiet"])) == 2
    assert words in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.npz"))


def test_sizes_of_figure4_follow_from_its_layers_and_steps_from_its_images():
    shallow, deep = figure4.Config(dataset="cifar10"), figure4.Config(dataset="cifar10", hidden=(8, 8, 8))
    assert (shallow.sizes, shallow.examples) == ((1, 3, 10, 30, 100), 2_000)
    assert (deep.sizes, deep.examples) == ((1, 10, 100, 1000), 500)
    assert shallow.step(1) == shallow.step(100) == deep.step(1) == deep.step(100) / 10 < figure4.Config().step(1)
    assert [round(shallow.step(n) / shallow.step(1), 6) for n in (1_000, 10_000)] == [1, 0.1]
    assert deep.step(4_000) == deep.step(1_000) / 4
    chosen = figure4.Config(hidden=(4, 4), branches=(2,), limit="all", learning_rate=0.5)
    assert (chosen.sizes, chosen.examples, chosen.step(4)) == ((2,), None, 1.0)


@pytest.mark.parametrize(
    ("options", "loss"),
    [
        (["--tau", "0.5"], lambda f, y: np.maximum(0, 1 - y * f / 0.5)),
        (["--loss", "squared"], lambda f, y: (f - y) ** 2),
        (["--loss", "logistic"], lambda f, y: np.log1p(np.exp(-y * f))),
    ],
)
def test_other_losses_are_trained_drawn_and_measured(options, loss, tmp_path):
    """Their solutions' risk, by a loop in NumPy over the stored parameters."""
    small = ["--branches", "3", "--points", "5", "--steps", "40", "--quiet", "--out", str(tmp_path)]
    assert exit_code(lambda: dispatch(["figure1", *options, *small])) == 0
    first, last = (np.load(tmp_path / "solutions-I3.npz")[f"params[{k}]['kernel']"].astype(float) for k in (0, 1))
    data = datasets.synthetic_teacher(jax.random.key(1))
    x, y = np.asarray(data.x, float), np.asarray(data.y, float)
    units = [zip(*layers, strict=True) for layers in zip(first, last, strict=True)]
    outputs = [sum(np.maximum(x @ w, 0) @ v for w, v in solution)[:, 0] for solution in units]
    wanted = [loss(f, y).mean() for f in outputs]
    for surface in load_stack(tmp_path / "surface.nc"):
        np.testing.assert_allclose(surface.anchor_risk, wanted, rtol=1e-4)
    assert [f.name for f in sorted(tmp_path.glob("*.png"))] == ["figure.png"]  # nothing against I for one I


def test_a_truncated_image_file_is_refused(tmp_path, monkeypatch, capsys, data_root):
    monkeypatch.chdir(tmp_path)
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for file in (data_root / "MNIST" / "raw").iterdir():
        content = file.read_bytes()
        (raw / file.name).write_bytes(content[:-100] if "train-images" in file.name else content)
    assert exit_code(lambda: dispatch(["figure4", "--smoke", "--quiet", "--data-root", str(tmp_path)])) == 2
    assert "wanted" in capsys.readouterr().err


def test_smoke_downloads_nothing_and_says_what_it_uses(tmp_path, monkeypatch, capsys):
    def fetch(*_, **__):
        raise ConnectionError("no network here")

    monkeypatch.setattr(downloads, "fetch", fetch)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("LANDSCAPE_DATA", raising=False)
    config = figure4.Config(**figure4.SMOKE, dataset="cifar10")
    data, test = figure4.images(config, Run("figure4", tmp_path, Options(smoke=True)))
    assert "RANDOM NUMBERS in the shape of cifar10" in capsys.readouterr().out
    assert data.name == "random numbers in the shape of cifar10"
    assert data.x.shape == (500, 3072)
    assert test is not None
    assert not np.array_equal(data.x[:9], test.x[:9])
    with pytest.raises(FileNotFoundError, match="no network here"):
        figure4.images(config, Run("figure4", tmp_path))


def test_what_is_at_hand_needs_no_download(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("LANDSCAPE_DATA", raising=False)
    assert not datasets.at_hand("mnist")
    assert datasets.at_hand("mnist", tmp_path)
    files = [tmp_path / "landscape" / file.path for file in downloads.SOURCES["mnist"].files]
    files[0].parent.mkdir(parents=True)
    for file in files:
        assert not datasets.at_hand("mnist")
        file.touch()
    assert datasets.at_hand("mnist")
    assert not datasets.at_hand("cifar10")
    monkeypatch.setenv("LANDSCAPE_DATA", str(tmp_path))
    assert datasets.at_hand("cifar10")


@pytest.mark.parametrize("dataset", ["mnist", "cifar10"])
def test_figure4_on_the_real_files(dataset, tmp_path, monkeypatch, capsys, data_root):
    monkeypatch.chdir(tmp_path)
    options = ["--smoke", "--branches", "2", "--points", "5", "--data-root", str(data_root)]
    hidden = ["--hidden", "8", "8", "8"] if dataset == "cifar10" else []
    assert exit_code(lambda: dispatch(["figure4", "--dataset", dataset, *hidden, *options])) == 0
    out = capsys.readouterr().out
    assert "anchors equal direct evaluation" in out
    assert "done:" in out
    surfaces = load_stack(tmp_path / "runs/figure4/surface.nc")
    assert {s.metadata["dataset"].split()[0].lower()[:5] for s in surfaces} == {dataset[:5]}
    with xarray.open_dataset(tmp_path / "runs/figure4/surface.nc") as file:
        assert file["risk"].dims == ("surface", "point_a", "point_b")
    assert exit_code(lambda: dispatch(["figure4", "--dataset", dataset, *hidden, *options])) == 0
    assert "done already" in capsys.readouterr().out
