"""npz: written by NumPy and by `save`; bfloat16; and what strangers may put into one."""

import io
import os
import tracemalloc
import zipfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import stored

from landscape import checkpoints


def test_numpy_writes_and_reads_what_is_saved(tmp_path: Path) -> None:
    params = stored.random()
    np.savez(tmp_path / "dotted.npz", **stored.flat(params))
    np.savez_compressed(tmp_path / "slashed.npz", **stored.flat(params, "/"))
    checkpoints.save(tmp_path / "saved.npz", params)
    for name in ("dotted", "slashed", "saved"):
        for like in (None, params, stored.shapes_of(params)):
            (found,) = checkpoints.load(tmp_path / f"{name}.npz", like)
            stored.same(found, params)
    with np.load(tmp_path / "saved.npz") as arrays:
        assert sorted(arrays.files) == sorted(stored.flat(params, "/"))


def test_names_that_are_arguments_of_numpy(tmp_path: Path) -> None:
    params = {"file": np.ones(2, "f4"), "allow_pickle": np.zeros(3, "f4"), "args": {"kwds": np.ones(1, "f4")}}
    checkpoints.save(tmp_path / "a.npz", params)
    stored.same(checkpoints.load(tmp_path / "a.npz", params)[0], params)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float16, np.dtype(">f4"), np.float64, np.longdouble])
def test_every_float_becomes_float32(dtype: np.dtype, tmp_path: Path) -> None:
    params = stored.random()
    kept = {name: np.asfortranarray(x.astype(dtype)) for name, x in stored.flat(params).items()}
    np.savez(tmp_path / "a.npz", **kept)
    found = checkpoints.read(tmp_path / "a.npz", params)
    stored.same(stored.flat(found.solutions[0]), {name: x.astype("f4") for name, x in kept.items()})
    assert bool(found.cast) == (np.dtype(dtype).itemsize != 4)


def test_a_tree_that_is_one_array(tmp_path: Path) -> None:
    w = np.random.default_rng().normal(size=7).astype("f4")
    checkpoints.save(tmp_path / "a.npz", w)
    np.savez(tmp_path / "b.npz", w)
    for name in "ab":
        np.testing.assert_array_equal(checkpoints.load(tmp_path / f"{name}.npz", w)[0], w)


STRANGE = {
    "text": np.array(["a", "b", "c", "d", "e"]),
    "dates": np.arange(5).astype("M8[s]"),
    "structured": np.zeros(5, [("x", "f4"), ("y", "i4")]),
    "objects": np.array([{}, 1, "a", None, ()], dtype=object),
    "integers": np.arange(5),
    "complex": np.zeros(5, "c8"),
    "raw": np.zeros(5, "V7"),
}


@pytest.mark.parametrize("kind", STRANGE)
def test_members_that_are_no_parameters(kind: str, tmp_path: Path) -> None:
    params = stored.random()
    np.savez(tmp_path / "needed.npz", **{**stored.flat(params), "hidden.bias": STRANGE[kind]})
    stored.refused(tmp_path / "needed.npz", params, "hidden/bias")
    np.savez(tmp_path / "beside.npz", **stored.flat(params), extra=STRANGE[kind])
    found = checkpoints.read(tmp_path / "beside.npz", params)
    stored.same(found.solutions[0], params)
    assert found.left_out == ("extra",)
    assert not found.unexpected
    if kind != "complex":
        stored.same(checkpoints.load(tmp_path / "beside.npz")[0], params)
    np.savez(tmp_path / "alone.npz", w=STRANGE[kind])
    stored.refused(tmp_path / "alone.npz", None, "complex" if kind == "complex" else "floating-point")


def test_an_array_and_a_folder_of_one_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **{"w": np.ones(2, "f4"), "w/x": np.ones(2, "f4")})
    stored.refused(tmp_path / "a.npz", None, "an array", "inside that name")
    np.savez(tmp_path / "b.npz", **{"w/x": np.ones(2, "f4"), "w.x": np.ones(2, "f4")})
    stored.refused(tmp_path / "b.npz", None, "two arrays named 'w/x'")


def bomb(path: Path, shape: tuple[int, ...], **others: np.ndarray) -> None:
    """A compressed npz whose member "w" declares zeros of a large shape."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("w.npy", "w", force_zip64=True) as stream:
            np.lib.format.write_array_header_1_0(stream, {"descr": "<f4", "fortran_order": False, "shape": shape})
            for _ in range(int(np.prod(shape)) * 4 // 2**20):
                stream.write(bytes(2**20))
        for name, value in others.items():
            inner = io.BytesIO()
            np.save(inner, value)
            archive.writestr(f"{name}.npy", inner.getvalue())


def test_large_zeros_are_not_inflated(tmp_path: Path) -> None:
    bomb(tmp_path / "a.npz", (2**26,), v=np.ones(3, "f4"))
    tracemalloc.start()
    stored.refused(tmp_path / "a.npz", {"w": np.ones(3, "f4")}, "67108864", "wanted [3]")
    stored.refused(tmp_path / "a.npz", None, "declares arrays of")
    stored.refused(tmp_path / "a.npz", {"w": np.ones((), "f4")}, "declares arrays of")  # as an axis of seeds
    np.testing.assert_array_equal(checkpoints.read(tmp_path / "a.npz", {"v": np.ones(3)}).solutions[0]["v"], np.ones(3))
    assert tracemalloc.get_traced_memory()[1] < 2**25
    tracemalloc.stop()


def test_a_head_that_declares_more_than_there_is(tmp_path: Path) -> None:
    for name, shape in {"large": (10**12,), "negative": (-3,), "huge": (2**70, 2**70)}.items():
        stream = io.BytesIO()
        np.lib.format.write_array_header_1_0(stream, {"descr": "<f4", "fortran_order": False, "shape": shape})
        with zipfile.ZipFile(tmp_path / f"{name}.npz", "w") as archive:
            archive.writestr("w.npy", stream.getvalue() + bytes(12))
        stored.refused(tmp_path / f"{name}.npz", {"w": np.ones(3, "f4")})
        stored.refused(tmp_path / f"{name}.npz", None)


def test_damage(tmp_path: Path) -> None:
    params = stored.random()
    checkpoints.save(tmp_path / "whole.npz", params)
    whole = (tmp_path / "whole.npz").read_bytes()
    cut = tmp_path / "cut.npz"
    for length in (0, 1, 4, 100, len(whole) // 2, len(whole) - 1):
        cut.write_bytes(whole[:length])
        stored.refused(cut, params)
    heads = {"9.0": b"\x93NUMPY\x09\x00", "eval": b"\x93NUMPY\x01\x00\x3c\x00" + b"(" * 60}
    for head in heads.values():
        with zipfile.ZipFile(cut, "w") as archive:
            archive.writestr("w.npy", head + bytes(100))
        stored.refused(cut, {"w": np.ones(3, "f4")})
    flipped = bytearray(whole)
    flipped[whole.index(params["out"]["kernel"].tobytes()) + 5] ^= 1
    cut.write_bytes(flipped)
    stored.refused(cut, params, "CRC")


def test_only_regular_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.npz")
    stored.refused(tmp_path / "pipe.npz", None, "not a regular file")
    (tmp_path / "zero.npz").symlink_to("/dev/zero")
    stored.refused(tmp_path / "zero.npz", None, "not a regular file")
    (tmp_path / "loop.npz").symlink_to(tmp_path / "loop.npz")
    with pytest.raises((ValueError, FileNotFoundError)):
        checkpoints.load(tmp_path / "loop.npz")
    with pytest.raises(FileNotFoundError, match=r"nothing\.npz"):
        checkpoints.load(tmp_path / "nothing.npz")
    with pytest.raises(ValueError, match="aaa"):
        checkpoints.load(tmp_path / ("a" * 400))
