"""Files of every format with random damage: loaded, or refused in a sentence that names the file."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import stored
from flax import serialization

from landscape import checkpoints


def keras(path: Path, params: Any) -> None:
    """Groups and data sets."""
    with h5py.File(path, "w") as file:
        for name, value in stored.flat(params, "/").items():
            file[name] = value


def torch(path: Path, params: Any) -> None:
    """A state dict."""
    module = pytest.importorskip("torch", reason="torch is not installed")
    module.save({name: module.tensor(x) for name, x in stored.flat(params).items()}, path)


def orbax(path: Path, params: Any) -> None:
    """A folder."""
    module = pytest.importorskip("orbax.checkpoint", reason="orbax-checkpoint is not installed")
    module.PyTreeCheckpointer().save(path, jax.tree.map(jnp.asarray, params))


WRITERS: dict[str, Callable[[Path, Any], Any]] = {
    "a.npz": checkpoints.save,
    "a.safetensors": checkpoints.save,
    "a.msgpack": lambda path, params: path.write_bytes(serialization.to_bytes(params)),
    "a.weights.h5": keras,
    "a.pt": torch,
    "folder": orbax,
}


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """Bytes changed, lost or inserted."""
    place, found = int(rng.integers(len(data) or 1)), bytearray(data)
    kind = rng.integers(3)
    if kind == 0:
        return data[:place]
    if kind == 1:
        return data[:place] + rng.bytes(int(rng.integers(1, 50))) + data[place:]
    for n in rng.integers(len(data) or 1, size=rng.integers(1, 10)):
        found[n : n + 1] = rng.bytes(1)
    return bytes(found)


def complaint(path: Path, like: Any) -> str | None:
    """The error of a file that is refused; None if it loads."""
    with warnings.catch_warnings(action="ignore"):
        try:
            checkpoints.load(path, like)
        except ValueError as error:
            return str(error)
    return None


@pytest.mark.parametrize("name", WRITERS)
def test_random_damage(name: str, tmp_path: Path) -> None:
    seed = int(np.random.default_rng().integers(2**31))
    rng, params, path = np.random.default_rng(seed), stored.random(), tmp_path / name
    WRITERS[name](path, params)
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    whole = {file: file.read_bytes() for file in files}
    for _ in range(60):
        file = files[rng.integers(len(files))]
        file.write_bytes(damaged(whole[file], rng))
        for like in (params, None):
            said = complaint(path, like)
            assert said is None or name in said, f"seed {seed}: {said}"
            assert len((said or "").splitlines()) <= 3, f"seed {seed}: {said}"
        file.write_bytes(whole[file])
    stored.same(checkpoints.load(path, params)[0], params)
