"""safetensors: the library's files, ours read by the library, shards with an index, and damaged headers."""

import json
import struct
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import stored

from landscape import checkpoints


def raw(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """A file from its header and data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def test_the_library_and_this_package_read_each_other(tmp_path: Path) -> None:
    numpy = pytest.importorskip("safetensors.numpy")
    params = stored.random()
    for joined in "./":
        numpy.save_file(stored.flat(params, joined), tmp_path / "theirs.safetensors", {"format": "pt"})
        for like in (None, params):
            stored.same(checkpoints.load(tmp_path / "theirs.safetensors", like)[0], params)
    checkpoints.save(tmp_path / "ours.safetensors", params)
    found = numpy.load_file(tmp_path / "ours.safetensors")
    assert found.keys() == stored.flat(params).keys()
    jax.tree.map(np.testing.assert_array_equal, found, stored.flat(params))
    stored.same(checkpoints.load(tmp_path / "ours.safetensors", params)[0], params)


@pytest.mark.parametrize("name", ["bfloat16", "float16", "float64", "float8_e4m3fn"])
def test_other_precisions(name: str, tmp_path: Path) -> None:
    params = jax.tree.map(lambda x: x.astype(jnp.dtype(name)), stored.random())
    checkpoints.save(tmp_path / "a.safetensors", params)
    found = checkpoints.read(tmp_path / "a.safetensors", params)
    stored.same(found.solutions[0], jax.tree.map(lambda x: x.astype("f4"), params))
    assert found.cast == (name,)


def test_a_torch_state_dict(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    theirs = pytest.importorskip("safetensors.torch")
    module = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3))
    theirs.save_file(module.state_dict(), tmp_path / "model.safetensors")
    like = {k: {"weight": np.ones(s, "f4"), "bias": np.ones(s[0], "f4")} for k, s in {"0": (5, 4), "2": (3, 5)}.items()}
    (found,) = checkpoints.load(tmp_path / "model.safetensors", like)
    np.testing.assert_array_equal(found["2"]["weight"], module[2].weight.detach().numpy())
    (found,) = checkpoints.load(tmp_path, like)  # the folder of a Hugging Face model
    np.testing.assert_array_equal(found["0"]["bias"], module[0].bias.detach().numpy())


def shards(folder: Path, params: Any) -> Path:
    """Two shards and their index."""
    names = [f"model-0000{k}-of-00002.safetensors" for k in (1, 2)]
    where = {}
    for name, key in zip(names, ("hidden", "out"), strict=True):
        part = {f"model.{key}.{inner}": x for inner, x in stored.flat(params[key]).items()}
        checkpoints.save(folder / name, part)
        where |= dict.fromkeys(part, name)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": where}))
    return index


def test_shards_with_an_index(tmp_path: Path) -> None:
    params = stored.random()
    index = shards(tmp_path, params)
    for path in (index, tmp_path):
        found = checkpoints.read(path, params)
        stored.same(found.solutions[0], params)
        assert found.format == "safetensors shards"
    part = tmp_path / "model-00002-of-00002.safetensors"
    part.write_bytes(part.read_bytes()[:-4])
    with pytest.raises(ValueError, match=part.name):
        checkpoints.load(index, params)
    part.unlink()
    stored.refused(index, params, "is not beside it")


@pytest.mark.parametrize(
    "name", ["../a.safetensors", "/etc/passwd", "..", "", "sub/a.safetensors", "a\\b", "C:a", "a\0b", 3, None, ["a"]]
)
def test_an_index_that_names_other_places(name: Any, tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    checkpoints.save(tmp_path / "a.safetensors", {"w": np.ones(3, "f4")})
    index = tmp_path / "inner" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"w": name}}))
    stored.refused(index, {"w": np.ones(3, "f4")})


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": 3}', '{"weight_map": []}', "[" * 20_000, "\xff"])
def test_a_damaged_index(text: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_bytes(text.encode("latin-1"))
    stored.refused(tmp_path / "model.safetensors.index.json", {"w": np.ones(3, "f4")})


def entry(**changed: Any) -> dict[str, Any]:
    """The header of one array w [3], changed."""
    return {"w": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12], **changed}}


WRONG = {
    "header longer than the file": raw(entry(), bytes(12), 10**6),
    "absurd header": raw(entry(), bytes(12), 2**63),
    "no header": b"\x00" * 7,
    "empty": b"",
    "header is no JSON": raw(b"{]", bytes(12)),
    "header is a list": raw([], bytes(12)),
    "deep header": raw(b"[" * 20_000, bytes(12)),
    "header is not UTF-8": raw(b'{"\xff": 1}', bytes(12)),
    "entry is a number": raw({"w": 3}, bytes(12)),
    "no offsets": raw({"w": {"dtype": "F32", "shape": [3]}}, bytes(12)),
    "truncated": raw(entry(), bytes(11)),
    "offsets outside": raw(entry(data_offsets=[10**12, 10**12 + 12]), bytes(12)),
    "negative offsets": raw(entry(data_offsets=[-12, 0]), bytes(12)),
    "offsets turned": raw(entry(data_offsets=[12, 0]), bytes(12)),
    "offsets are text": raw(entry(data_offsets=["0", "12"]), bytes(12)),
    "fewer bytes than the shape": raw(entry(data_offsets=[0, 8]), bytes(12)),
    "huge shape": raw(entry(shape=[2**62, 4]), bytes(12)),
    "negative shape": raw(entry(shape=[-3]), bytes(12)),
    "float shape": raw(entry(shape=[3.0]), bytes(12)),
    "unknown type": raw(entry(dtype="F4_NEW"), bytes(12)),
    "complex": raw(entry(dtype="C64", data_offsets=[0, 24]), bytes(24)),
    "integers": raw(entry(dtype="I32"), bytes(12)),
}


@pytest.mark.parametrize("kind", WRONG)
def test_damaged_files(kind: str, tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(WRONG[kind])
    stored.refused(tmp_path / "a.safetensors", {"w": np.ones(3, "f4")})
    stored.refused(tmp_path / "a.safetensors", None)
