"""Files are whole or absent, damage is found, and fingerprints tell inputs apart."""

import errno
import json
import os
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import seeds

from landscape.files import atomic


@pytest.fixture
def rng() -> np.random.Generator:
    seed = seeds.draw()
    print(f"seed {seed}")
    return np.random.default_rng(seed)


def test_failed_write_leaves_the_earlier_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "measures.json"
    atomic.write_json(path, {"risk": 0.5})
    before = path.read_bytes()

    def half(pending: Path) -> None:
        pending.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        atomic.write_atomic(path, half)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_json_is_strict_and_keeps_its_letters(tmp_path: Path) -> None:
    path = tmp_path / "measures.json"
    atomic.write_json(path, {"τ": [0.5, float("nan"), np.float64("inf"), (1, None)], 3: True})
    assert json.loads(path.read_text("utf-8"), parse_constant=pytest.fail) == {
        "τ": [0.5, None, None, [1, None]],
        "3": True,
    }
    assert "τ" in path.read_text("utf-8")


def test_no_reader_sees_a_file_before_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "values.bin"

    def write(pending: Path) -> None:
        pending.write_bytes(b"first")
        assert not path.exists()
        assert pending.parent == path.parent
        assert pending.suffix == path.suffix

    atomic.write_atomic(path, write)
    assert path.read_bytes() == b"first"
    assert path.stat().st_mode & 0o777 == 0o644


def test_fingerprint_tells_apart_values_types_shapes_structures(rng: np.random.Generator) -> None:
    x = rng.normal(size=(3, 4))
    nearly = x.copy()
    nearly[rng.integers(3), rng.integers(4)] += 2.0**-50
    arrays = [x, nearly, x.T, x.reshape(4, 3), x.astype(np.float32), x.ravel(), np.zeros((0, 2)), np.zeros((2, 0))]
    trees = [[x], {"x": x}, {"y": x}, (x, x), [x[:2], x[2:]], [], None]
    different = [*arrays, *trees, 1, 1.0, True, "1", np.float64(1.0), np.array(1), jnp.bfloat16(1)]
    marks = [atomic.fingerprint(part) for part in different]
    assert len(set(marks)) == len(different)
    assert atomic.fingerprint(x, 1) != atomic.fingerprint(1, x)


def test_fingerprint_ignores_where_an_array_lives(rng: np.random.Generator) -> None:
    x = rng.normal(size=(5, 6)).astype(np.float32)
    assert atomic.fingerprint(x) == atomic.fingerprint(jnp.asarray(x)) == atomic.fingerprint(np.asfortranarray(x))


def test_arrays_come_back_bit_for_bit(tmp_path: Path, rng: np.random.Generator) -> None:
    arrays = {
        "risk": rng.normal(size=(3, 5)),
        "steps": rng.integers(9, size=4),
        "none": np.zeros((0, 2), np.float32),
        "one": jnp.float32(3),
    }
    atomic.save_arrays(tmp_path / "tile.npz", arrays, "key")
    back = atomic.load_arrays(tmp_path / "tile.npz", "key")
    assert back is not None
    assert back.keys() == arrays.keys()
    for name, array in arrays.items():
        expected = np.asarray(array)
        assert (back[name].dtype, back[name].shape) == (expected.dtype, expected.shape)
        assert back[name].tobytes() == expected.tobytes()


def test_equal_arrays_give_equal_bytes(tmp_path: Path, rng: np.random.Generator) -> None:
    arrays = {"risk": rng.normal(size=(3, 5)), "steps": rng.integers(9, size=4)}
    atomic.save_arrays(tmp_path / "one.npz", arrays, "key")
    time.sleep(2.1)  # dates in an archive go by two seconds
    atomic.save_arrays(tmp_path / "two.npz", arrays, "key")
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()


def test_objects_are_not_stored(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="wants arrays, numbers and strings"):
        atomic.save_arrays(tmp_path / "tile.npz", {"risk": np.array([None, {}])}, "key")
    assert not list(tmp_path.iterdir())


def test_a_missing_file_is_none_and_another_key_is_refused(tmp_path: Path) -> None:
    assert atomic.load_arrays(tmp_path / "tile.npz", "key") is None
    atomic.save_arrays(tmp_path / "tile.npz", {"risk": np.ones(3)}, "key")
    with pytest.raises(atomic.Corrupted, match="other inputs"):
        atomic.load_arrays(tmp_path / "tile.npz", "another key")


def test_damage_is_found_or_harmless(tmp_path: Path, rng: np.random.Generator) -> None:
    path, arrays = tmp_path / "tile.npz", {"risk": rng.normal(size=200)}
    atomic.save_arrays(path, arrays, "key")
    whole, found = path.read_bytes(), 0
    for _ in range(500):
        damaged = bytearray(whole)
        damaged[rng.integers(len(whole))] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        try:
            back = atomic.load_arrays(path, "key")
            assert back is not None
            assert back["risk"].tobytes() == arrays["risk"].tobytes()
        except atomic.Corrupted:
            found += 1
    assert found > 300  # 1,600 of the bytes are the numbers; the rest are names and dates of the archive


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_truncated_file_is_found(tmp_path: Path, share: float) -> None:
    path = tmp_path / "tile.npz"
    atomic.save_arrays(path, {"risk": np.arange(1000.0)}, "key")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(atomic.Corrupted, match=r"tile\.npz"):
        atomic.load_arrays(path, "key")


def test_replaced_numbers_with_valid_archive_sums_are_found(tmp_path: Path) -> None:
    path = tmp_path / "tile.npz"
    atomic.save_arrays(path, {"risk": np.arange(4.0)}, "key")
    with np.load(path) as stored:
        content = dict(stored)
    content["risk"] = content["risk"] + 1
    with open(path, "wb") as file:
        np.savez(file, **content)
    with pytest.raises(atomic.Corrupted, match="checksum"):
        atomic.load_arrays(path, "key")


def test_a_folder_is_held_by_one_at_a_time(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "figure1"
    with atomic.locked(folder):
        with pytest.raises(ValueError, match=rf"in use by process {os.getpid()}\b"), atomic.locked(folder):
            pytest.fail("two hold the folder")
        with atomic.locked(tmp_path / "runs" / "figure3"):
            pass
    with atomic.locked(folder):
        pass


def test_errors_inside_a_held_folder_pass_through(tmp_path: Path) -> None:
    with pytest.raises(BlockingIOError), atomic.locked(tmp_path):
        raise BlockingIOError("from within")


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cannot be written.*\n.*--out"), atomic.locked(tmp_path / "file" / "run"):
        pytest.fail("a folder below a file")
