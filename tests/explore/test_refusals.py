"""Wrong inputs through the command line: exit code 2, at most three lines, before long work; nothing left behind."""

import json
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import own_module
import pytest
import seeds

from landscape import checkpoints, datasets
from landscape.__main__ import WRONG, dispatch, exit_code

SMALL = ("--network", "own_module:Small", "--data", "own_module:data", "--loss", "cross_entropy")
GOOD = ("--solutions", "a.npz", "b.npz", "c.npz")


def small(*files: str) -> tuple[str, ...]:
    """The small network with these solutions; missing ones are good files."""
    return (*SMALL, "--solutions", *files, *GOOD[1 + len(files) :])


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with three good checkpoints and many bad ones; nothing long may start in it."""
    monkeypatch.chdir(tmp_path)
    noise = datasets.random_images("mnist", 20, jax.random.key(int(seeds.generator().integers(2**31))))
    monkeypatch.setattr(datasets, "mnist", lambda root, split, limit: noise)
    for work in ("train", "evaluation.surface_on"):
        monkeypatch.setattr(f"landscape.explore.pipeline.{work}", lambda *_, **__: pytest.fail("long work has begun"))
    w = own_module.data()[0][:8].reshape(4, 8)
    for k, name in enumerate("abc"):
        tree = {
            "hidden": {"kernel": w[:, :5] + k, "bias": w[0, :5]},
            "out": {"kernel": w[:3, :5].T + k, "bias": w[0, :3]},
        }
        checkpoints.save(f"{name}.npz", tree)
    return tmp_path


def truncated(name: str, source: str = "a.npz") -> None:
    """Half of a file."""
    Path(name).write_bytes(Path(source).read_bytes()[: Path(source).stat().st_size // 2])


def shards() -> None:
    """A folder of safetensors with an index, one shard of which is cut short."""
    Path("shards").mkdir()
    tree = checkpoints.load("a.npz")[0]
    checkpoints.save("shards/model-00001-of-00002.safetensors", {"hidden": tree["hidden"]})
    checkpoints.save("shards/whole.safetensors", {"out": tree["out"]})
    truncated("shards/model-00002-of-00002.safetensors", "shards/whole.safetensors")
    Path("shards/whole.safetensors").unlink()
    names = {f"{layer}.{leaf}": f"model-0000{k}-of-00002.safetensors" for k, layer in ((1, "hidden"), (2, "out"))
             for leaf in ("kernel", "bias")}  # fmt: skip
    Path("shards/model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))


def lacking() -> None:
    """A shard that the index names and nobody saved."""
    shards()
    Path("shards/model-00002-of-00002.safetensors").unlink()


def pickled() -> None:
    """What `torch.save(model)` writes, in its outline: a zip with a pickle that asks for a class."""
    with zipfile.ZipFile("m.pt", "w") as archive:
        archive.writestr("m/data.pkl", b"\x80\x02cbuiltins\nprint\nq\x00X\x02\x00\x00\x00hiq\x01\x85q\x02Rq\x03.")
        archive.writestr("m/version", "3\n")


def npz(**arrays: np.ndarray) -> None:
    """A file w.npz."""
    np.savez("w.npz", **arrays)


def edited(**changes: object) -> None:
    """A good checkpoint with some arrays changed or, where None, left out."""
    with np.load("a.npz") as file:
        arrays = {**file, **{k.replace("__", "/"): v for k, v in changes.items()}}
    np.savez("w.npz", **{k: v for k, v in arrays.items() if v is not None})


MODULE = """
import flax.linen as nn
import jax, jax.numpy as jnp
from flax import nnx

class Wide(nnx.Module):
    def __init__(self, features, *, rngs):
        self.out = nnx.Linear(784, features, rngs=rngs)
    def __call__(self, x):
        return self.out(x)

class Odd(nnx.Module):
    def __init__(self, *, rngs):
        self.out = nnx.Linear(11, 10, rngs=rngs)
    def __call__(self, x):
        return self.out(x)

class Image(nnx.Module):
    def __init__(self, *, rngs):
        self.conv, self.out = nnx.Conv(1, 2, (3, 3), rngs=rngs), nnx.Linear(2, 10, rngs=rngs)
    def __call__(self, x):
        return self.out(self.conv(x).mean((-3, -2)))

class Fields(nn.Module):
    width: int
    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.width)(x)

class Map(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Conv(3, (3, 3))(x) if x.ndim > 2 else nn.Dense(3)(x)[..., None] * jnp.ones(2)

def broken(rngs):
    raise RuntimeError("out of luck")

def three(params, x, y):
    return x

number = 3
pair = ([1, 2], [1, 2, 3])
empty = ([], [])
nan = ([[float("nan")] * 4] * 3, [0, 1, 2])
classes = ([[1.0] * 4] * 3, [0, 1, 7])
"""
NAMED = ("--data", "own_module:data", "--loss", "cross_entropy")
MNIST = ("--data", "mnist", "--loss", "cross_entropy")

WRONG_INPUTS: dict[str, tuple[Callable[[], object] | None, tuple[str, ...], str]] = {
    "no such file": (None, small("nowhere.npz"), "nowhere.npz does not exist"),
    "no such orbax folder": (None, small("nowhere"), "nowhere does not exist"),
    "an empty folder": (lambda: Path("e").mkdir(), small("e"), "e cannot be read as an orbax checkpoint"),
    "an empty file": (lambda: Path("w.npz").touch(), small("w.npz"), "w.npz cannot be read as npz"),
    "text": (lambda: Path("w.txt").write_text("hello"), small("w.txt"), "no known format"),
    "truncated npz": (lambda: truncated("w.npz"), small("w.npz"), "truncated?"),
    "a text that is called npz": (lambda: Path("w.npz").write_text("hello"), small("w.npz"), "no zip file"),
    "a text that is called safetensors": (lambda: Path("w.safetensors").write_text("hi"), small("w.safetensors"), "w."),
    "a text that is called weights.h5": (lambda: Path("w.weights.h5").write_text("hi"), small("w.weights.h5"), "HDF5"),
    "a text that is called msgpack": (lambda: Path("w.msgpack").write_text("hi"), small("w.msgpack"), "w.msgpack"),
    "a text that is called eqx": (lambda: Path("w.eqx").write_text("hi"), small("w.eqx"), "w.eqx"),
    "a truncated shard": (shards, small("shards"), "model-00002-of-00002.safetensors"),
    "a shard that is missing": (lacking, small("shards"), "model-00002-of-00002.safetensors"),
    "a pickled model": (pickled, small("m.pt"), "m.pt"),
    "pickled objects in npz": (lambda: npz(a=np.array([{}], dtype=object)), small("w.npz"), "w.npz"),
    "whole numbers": (lambda: edited(out__bias=np.arange(3)), small("w.npz"), "int64"),
    "complex numbers": (lambda: edited(out__bias=np.ones(3, complex)), small("w.npz"), "complex"),
    "a transposed kernel": (lambda: edited(out__kernel=np.ones((3, 5), "f4")), small("w.npz"), "transposed?"),
    "another width": (lambda: edited(hidden__bias=np.ones(6, "f4")), small("w.npz"), "hidden/bias [6], wanted [5]"),
    "a missing array": (lambda: edited(out__bias=None), small("w.npz"), "lacks out/bias"),
    "another network's file": (lambda: npz(x=np.ones(3, "f4")), small("w.npz"), "it has unexpected x"),
    "one file three times": (None, small("a.npz", "a.npz", "a.npz"), "same parameters"),
    "two files": (None, (*SMALL, "--solutions", "a.npz", "b.npz"), "wants three solutions"),
    "four files": (None, (*SMALL, *GOOD, "a.npz"), "or six, nine"),
    "no such module": (None, ("--network", "nowhere:Net", *NAMED, *GOOD), "importing nowhere failed"),
    "no such class": (None, ("--network", "own_module:Net", *NAMED, *GOOD), "has no Net"),
    "no colon": (None, ("--network", "own_module", *NAMED, *GOOD), "MODULE:NAME"),
    "a number": (None, ("--network", "strange:number", *NAMED, *GOOD), "is int; wanted"),
    "a class with other arguments": (None, ("--network", "strange:Wide", *NAMED, *GOOD), "also takes features"),
    "a class with fields": (None, ("--network", "strange:Fields", *NAMED, *GOOD), "the fields width"),
    "a function of three arguments": (None, ("--network", "strange:three", *NAMED, *GOOD), "takes 3 arguments"),
    "a factory that fails": (None, ("--network", "strange:broken", *MNIST, *GOOD), "out of luck"),
    "no data": (None, (*SMALL[:2], *GOOD), "--data is needed"),
    "no such data": (None, (*SMALL[:2], "--data", "mnits", *GOOD), "MODULE:NAME"),
    "lengths that differ": (None, (*SMALL[:2], "--data", "strange:pair", *GOOD), "A data set needs"),
    "no examples": (None, (*SMALL[:2], "--data", "strange:empty", *GOOD), "A data set needs"),
    "values that are not finite": (None, (*SMALL[:2], "--data", "strange:nan", *GOOD), "not finite"),
    "too many classes": (None, (*SMALL[:2], "--data", "strange:classes", *SMALL[4:], *GOOD), "takes classes 0 … 2"),
    "no layout fits": (None, ("--network", "strange:Odd", *MNIST, *GOOD), "mnist as 28 x 28 x 1, 1 x 28 x 28, 784"),
    "a layout that does not fit": (None, ("--network", "strange:Image", *MNIST, "--layout", "nchw", *GOOD), "1 x 28"),
    "a layout of own data": (None, (*SMALL, "--layout", "nhwc", *GOOD), "--layout nhwc is for"),
    "outputs that are a map": (None, ("--network", "strange:Map", *MNIST), "one vector of outputs each"),
    "a loss misspelt": (None, (*SMALL[:4], "--loss", "hings", *GOOD), "--loss wants"),
    "nll of scores": (None, (*SMALL[:4], "--loss", "nll", *GOOD), "wants log-probabilities"),
    "bce of classes": (None, (*SMALL[:4], "--loss", "bce", *GOOD), "cross_entropy"),
    "an option misspelt": (None, (*SMALL, *GOOD, "--sate", "frozen"), "--sate"),
    "statistics of a network that has none": (None, (*SMALL, *GOOD, "--state", "recompute"), "no statistics"),
    "statistics that no file holds": (
        None,
        ("--network", "own_module:Normed", *NAMED, *GOOD, "--state", "none"),
        "--state frozen",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG_INPUTS)
def test_wrong_inputs(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make, arguments, words = WRONG_INPUTS[name]
    Path("strange.py").write_text(MODULE)
    if make:
        make()
    before = sorted(folder.rglob("*"))
    assert exit_code(lambda: dispatch(["explore", "--points", "5", *arguments, "--steps", "1000000000"])) == WRONG
    captured = capsys.readouterr().err
    assert words in captured
    assert len(captured.splitlines()) <= 3
    assert "Traceback" not in captured
    assert [p for p in sorted(folder.rglob("*")) if "__pycache__" not in p.parts] == before


def test_without_torch(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    pickled()
    assert exit_code(lambda: dispatch(["explore", *small("m.pt")])) == WRONG
    assert "torch" in capsys.readouterr().err
    assert not Path("runs").exists()
