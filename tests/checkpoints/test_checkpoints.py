"""Checkpoints: every format, names however they are joined, several solutions in a file, further arrays."""

from pathlib import Path

import jax
import numpy as np
import own_module
import pytest

import landscape as ls
from landscape import checkpoints


@pytest.fixture
def params() -> dict:
    return ls.from_flax(own_module.Small).init(jax.random.key(int(np.random.default_rng().integers(1000))))


def flat(params: dict) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {".".join(str(part.key) for part in where): np.asarray(leaf) for where, leaf in leaves}


def test_every_way_to_join_names(params: dict, tmp_path: Path) -> None:
    checkpoints.save(tmp_path / "a.npz", params)
    leaves = jax.tree_util.tree_leaves_with_path(params)
    np.savez(tmp_path / "b.npz", **{f"params{jax.tree_util.keystr(where)}": leaf for where, leaf in leaves})
    np.savez(tmp_path / "c.npz", **flat(params))
    for name in "abc":
        (found,) = checkpoints.load(tmp_path / f"{name}.npz", jax.eval_shape(lambda: params))
        jax.tree.map(np.testing.assert_array_equal, found, params)
    (found,) = checkpoints.load(tmp_path / "c.npz")
    jax.tree.map(np.testing.assert_array_equal, found, params)


def test_several_solutions_in_one_file(params: dict, tmp_path: Path) -> None:
    np.savez(tmp_path / "many.npz", **{name: np.stack([x, 2 * x]) for name, x in flat(params).items()})
    first, second = checkpoints.load(tmp_path / "many.npz", params)
    jax.tree.map(lambda x, y, z: (np.testing.assert_array_equal(x, z), np.testing.assert_array_equal(y, 2 * z)),
                 first, second, params)  # fmt: skip


def test_safetensors(params: dict, tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    from safetensors.numpy import save_file

    save_file(flat(params), tmp_path / "c.safetensors")
    (found,) = checkpoints.load(tmp_path / "c.safetensors", params)
    jax.tree.map(np.testing.assert_array_equal, found, params)


def test_orbax_folders(params: dict, tmp_path: Path) -> None:
    orbax = pytest.importorskip("orbax.checkpoint")
    orbax.PyTreeCheckpointer().save(tmp_path / "kept", params)
    (found,) = checkpoints.load(tmp_path / "kept", params)
    jax.tree.map(np.testing.assert_array_equal, found, params)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="orbax"):
        checkpoints.load(tmp_path / "empty")


def test_further_arrays_are_found_or_not_there(params: dict, tmp_path: Path) -> None:
    mean = {"norm": {"mean": np.arange(3.0)}}
    checkpoints.save(tmp_path / "without.npz", params)
    checkpoints.save(tmp_path / "with.npz", {**params, **mean})
    checkpoints.save(tmp_path / "half.npz", {**params, **mean})
    assert checkpoints.load_if_there(tmp_path / "without.npz", mean) is None
    found = checkpoints.load_if_there(tmp_path / "with.npz", mean)
    np.testing.assert_array_equal(found["norm"]["mean"], mean["norm"]["mean"])
    with pytest.raises(ValueError, match="norm/var"):
        checkpoints.load_if_there(tmp_path / "half.npz", {"norm": {"mean": np.zeros(3), "var": np.zeros(3)}})
