"""figure1 and figure4: refusals before any work, real images, and the same bits after being killed at any moment."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import xarray

from landscape.__main__ import dispatch, exit_code
from landscape.surfaces import load_stack

SMALL = ["figure1", "--smoke", "--branches", "4", "--points", "7", "--steps", "60"]


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
        (["figure4", "--data-root", "nowhere"], "nowhere"),
    ],
)
def test_wrong_use_ends_with_2_before_any_work(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert exit_code(lambda: dispatch([*arguments, "--quiet"])) == 2
    assert words in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.npz"))


def test_a_truncated_image_file_is_refused(tmp_path, monkeypatch, capsys, data_root):
    monkeypatch.chdir(tmp_path)
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for file in (data_root / "MNIST" / "raw").iterdir():
        content = file.read_bytes()
        (raw / file.name).write_bytes(content[:-100] if "train-images" in file.name else content)
    assert exit_code(lambda: dispatch(["figure4", "--smoke", "--quiet", "--data-root", str(tmp_path)])) == 2
    assert "wanted" in capsys.readouterr().err


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


def start(folder):
    command = [sys.executable, "-m", "landscape", *SMALL, "--quiet", "--out", str(folder)]
    return subprocess.Popen(command, env={**os.environ, "LANDSCAPE_DEBUG": "1"}, stderr=subprocess.PIPE)


def test_killed_at_any_moment_it_ends_with_the_same_bits(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    begun = time.monotonic()
    assert start(whole).wait(300) == 0
    duration = time.monotonic() - begun
    moments = [random.uniform(0.2, 1.0) * duration for _ in range(2)]
    for moment in moments:
        process = start(killed)
        time.sleep(moment)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    last = start(killed)
    _, errors = last.communicate(timeout=300)
    assert last.returncode == 0, (moments, errors)
    for a, b in zip(load_stack(whole / "surface.nc"), load_stack(killed / "surface.nc"), strict=True):
        assert (a.risk == b.risk).all(), moments
        assert (a.anchors == b.anchors).all(), moments
    one, other = (json.loads((folder / "measures.json").read_text()) for folder in (whole, killed))
    np.testing.assert_equal(one, other, err_msg=str(moments))
    assert not list(killed.glob("block-*")) + list(killed.glob("*.pending*")) + list(killed.glob("training.npz"))
