"""Names and shapes: prefixes, problems, what is missing, unexpected or misshapen, and what is no parameter."""

import importlib
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import own_module
import pytest
import stored

import landscape as ls
from landscape import checkpoints


def kept(path: Path, arrays: dict[str, Any]) -> Path:
    """Arrays as npz."""
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize("prefix", ["module.", "model.", "_orig_mod.", "params.", "module._orig_mod.", "model/params/"])
def test_prefixes_that_every_name_has(prefix: str, tmp_path: Path) -> None:
    params = stored.random()
    arrays = {prefix + name: x for name, x in stored.flat(params).items()}
    stored.same(checkpoints.load(kept(tmp_path / "a.npz", arrays), params)[0], params)
    some = dict(arrays) | {"head.weight": np.ones(3, "f4")}
    stored.refused(kept(tmp_path / "b.npz", some), params, "lacks hidden/", "nearest: ")
    stored.refused(kept(tmp_path / "c.npz", {f"other.{name}": x for name, x in arrays.items()}), params, "lacks")


def test_a_name_that_looks_like_a_prefix_is_not_stripped(tmp_path: Path) -> None:
    params = {"model": {"w": np.ones(3, "f4")}, "module": {"w": np.zeros(3, "f4")}}
    stored.same(checkpoints.load(kept(tmp_path / "a.npz", stored.flat(params)), params)[0], params)
    stored.same(checkpoints.load(tmp_path / "a.npz")[0], params)
    one = {"model": {"w": np.ones(3, "f4")}}
    stored.same(checkpoints.load(kept(tmp_path / "b.npz", stored.flat(one)), one)[0], one)
    stored.same(checkpoints.load(tmp_path / "b.npz")[0], one)


def test_what_is_missing_is_listed_with_the_nearest_names(tmp_path: Path) -> None:
    params = {f"layer{k}": {"kernel": np.ones(2, "f4")} for k in range(9)}
    arrays = {f"layer{k}.kernal": np.ones(2, "f4") for k in range(9)}
    said = stored.refused(kept(tmp_path / "a.npz", arrays), params)
    assert said.splitlines()[0].count("nearest") == 3
    assert "layer0/kernel (nearest: layer0/kernal)" in said
    assert "and 6 more, which the network has" in said
    assert "unexpected layer0/kernal, layer1/kernal, layer2/kernal and 6 more" in said


def test_what_is_misshapen_is_listed(tmp_path: Path) -> None:
    params = stored.random()
    arrays = {name: x.T if x.ndim > 1 else x[:-1] for name, x in stored.flat(params).items()}
    said = stored.refused(kept(tmp_path / "a.npz", arrays), params, "hidden/kernel [5, 4], wanted [4, 5], transposed?")
    assert "hidden/bias [4], wanted [5];" in said
    assert "and 1 more" in said
    kernel = {"w": np.ones((3, 3, 2, 4), "f4")}
    stored.refused(kept(tmp_path / "b.npz", {"w": kernel["w"].transpose(3, 2, 0, 1)}), kernel, "transposed?")
    assert "transposed" not in stored.refused(kept(tmp_path / "c.npz", {"w": np.ones((3, 3, 2, 5), "f4")}), kernel)


def problem(branches: int | None) -> ls.Problem:
    """A problem with that many branches, or with a plain network."""
    x, y = own_module.data()
    network = ls.from_flax(own_module.Small)
    return ls.Problem(ls.Dataset(x, y), ls.MultiBranch(network, branches) if branches else network, ls.losses.logistic)


@pytest.mark.parametrize("branches", [None, 1, 3])
def test_a_problem_stands_for_its_shapes(branches: int | None, tmp_path: Path) -> None:
    asked = problem(branches)
    first, second = (asked.network.init(jax.random.key(k)) for k in (1, 2))
    checkpoints.save(tmp_path / "a.npz", first)
    stored.same(checkpoints.load(tmp_path / "a.npz", asked)[0], first)
    both = jax.tree.map(lambda x, y: np.stack([x, y]), first, second)
    checkpoints.save(tmp_path / "both.npz", both)
    for found, params in zip(checkpoints.load(tmp_path / "both.npz", asked), (first, second), strict=True):
        stored.same(found, params)
    plain = jax.tree.map(lambda x: x[0], first)
    checkpoints.save(tmp_path / "plain.npz", plain)
    checkpoints.save(tmp_path / "plains.npz", jax.tree.map(lambda x: x[:, 0], both))
    if branches == 3:
        stored.refused(tmp_path / "plain.npz", asked, "branches")
        return
    stored.same(checkpoints.load(tmp_path / "plain.npz", asked)[0], first)
    stored.same(checkpoints.load(tmp_path / "plains.npz", asked)[1], second)
    np.testing.assert_allclose(asked.risk(checkpoints.load(tmp_path / "plain.npz", asked)[0]), asked.risk(first))
    checkpoints.save(tmp_path / "wide.npz", jax.tree.map(lambda x: np.ones((*x.shape, 2), "f4"), plain))
    stored.refused(tmp_path / "wide.npz", asked, "wanted [5]")


def test_what_training_keeps_beside_the_parameters(tmp_path: Path) -> None:
    params = stored.random()
    flat = stored.flat(params, "/")
    beside = {
        "step": np.array(7),
        **{f"opt_state/0/mu/{name}": x for name, x in flat.items()},
        "rngs/default/key/value": np.zeros(2, np.uint32),
        "batch_stats/norm/mean": np.ones(3, "f4"),
        "hidden/running_mean": np.ones(3, "f4"),
    }
    for name, arrays in {"flat": flat, "inside": {f"params/{k}": x for k, x in flat.items()}}.items():
        found = checkpoints.read(kept(tmp_path / f"{name}.npz", arrays | beside), params)
        stored.same(found.solutions[0], params)
        assert len(found.left_out) == len(beside)
        assert "step" in found.left_out
        assert "step" in found.remark
        assert not found.unexpected
        whole = checkpoints.load(tmp_path / f"{name}.npz")[0]
        assert not {"step", "opt_state", "rngs", "batch_stats"} & set(whole)


def test_an_unexpected_array_is_named(tmp_path: Path) -> None:
    params = stored.random()
    path = kept(tmp_path / "a.npz", stored.flat(params) | {"head.weight": np.ones((2, 3), "f4")})
    with pytest.warns(UserWarning, match="head/weight"):
        stored.same(checkpoints.load(path, params)[0], params)
    assert checkpoints.read(path, params).unexpected == ("head/weight",)
    shared = stored.flat(params) | {"tied": params["out"]["kernel"]}
    assert not checkpoints.read(kept(tmp_path / "b.npz", shared), params).unexpected


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_whatever_the_types_the_linear_algebra_is_in_float32(dtype: str, tmp_path: Path) -> None:
    params = jax.tree.map(lambda x: jnp.asarray(x, dtype), stored.random())
    checkpoints.save(tmp_path / "a.npz", params)
    for like in (None, params, stored.shapes_of(params)):
        stored.same(checkpoints.load(tmp_path / "a.npz", like)[0], jax.tree.map(lambda x: x.astype("f4"), params))


def test_content_counts_before_the_suffix(tmp_path: Path) -> None:
    params = stored.random()
    for suffix in ("npz", "safetensors"):
        checkpoints.save(tmp_path / f"a.{suffix}", params)
        for other in ("npz", "safetensors", "pt", "msgpack", "ckpt", "anything"):
            renamed = tmp_path / f"from-{suffix}.{other}"
            renamed.write_bytes((tmp_path / f"a.{suffix}").read_bytes())
            if (suffix, other) == ("npz", "safetensors"):
                continue
            stored.same(checkpoints.load(renamed, params)[0], params)


@pytest.mark.parametrize("name", ["a.txt", "a.npz", "a.pt2", "a.h5", "a.safetensors", "a.msgpack", "a"])
def test_files_that_are_no_checkpoints(name: str, tmp_path: Path) -> None:
    for content in (b"", b"hello, world", json.dumps({"w": [1, 2]}).encode(), bytes(1000), b"\x00\xff" * 50):
        (tmp_path / name).write_bytes(content)
        stored.refused(tmp_path / name, {"w": np.ones(3, "f4")})
        stored.refused(tmp_path / name, None)


@pytest.mark.parametrize(("package", "name"), [("torch", "a.pt"), ("tensorstore", "folder")])
def test_a_missing_package_is_named_with_its_extra(
    package: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(wanted: str) -> Any:
        raise ImportError(wanted)

    (tmp_path / "a.pt").write_bytes(b"\x80\x02}.")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "_METADATA").write_text("{}")
    monkeypatch.setattr(importlib, "import_module", missing)
    said = stored.refused(tmp_path / name, {"w": np.ones(3, "f4")}, package, "pip install 'landscape-jax[")
    assert ("[torch]" in said) == (package == "torch")
