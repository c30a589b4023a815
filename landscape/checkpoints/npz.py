"""npz: a zip of NumPy arrays. Shapes come from the arrays' heads; only what is asked for is inflated."""

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from landscape.checkpoints.contents import SMALL, Contents, Leaf, collected, refuse
from landscape.checkpoints.names import split

HIDDEN = "__"
"""Beginning of names that are the file's own business, such as its checksum."""


def contents(path: Path) -> Contents:
    """Names, shapes and types of the members.

    Raises:
        ValueError: The file is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = [m for m in archive.infolist() if m.filename.endswith(".npy")]
            found = [(m.filename.removesuffix(".npy"), _head(archive, m)) for m in members]
    except Exception as error:  # damage can surface as any of zipfile's and numpy's many errors
        raise refuse(path, "npz", error) from error
    if not found:
        raise refuse(path, "npz", "it holds no arrays")
    named = [(split(name) if name else (), leaf) for name, leaf in found if not name.startswith(HIDDEN)]
    return Contents("npz", collected(path, named), lambda leaves: _read(path, leaves))


def _head(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Leaf:
    with archive.open(member) as stream:
        return head(stream, member.filename, member.file_size)


def head(stream: Any, name: str, size: int) -> Leaf:
    """The entry that an array's head declares.

    Args:
        stream: A file that begins with it; it is left behind the head.
        name: What the entry's key is.
        size: Bytes of head and array together, as far as the container knows.

    Raises:
        ValueError: No array of this size.
    """
    version = np.lib.format.read_magic(stream)
    if version > (3, 0):
        raise ValueError(f"array format {version[0]}.{version[1]} is newer than this program")
    if version == (3, 0):
        raise ValueError(f"{name} is a structured array with names; wanted plain numbers")
    parse = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = parse(stream)
    dtype = number_type(dtype)
    leaf = Leaf(tuple(shape), dtype, (name, fortran))
    if dtype is not None and all(n >= 0 for n in shape) and leaf.nbytes > size:
        raise ValueError(f"{name} declares {leaf.nbytes:,} bytes and has {size:,}")
    return leaf


def number_type(dtype: np.dtype) -> np.dtype | None:
    """A type of numbers; bfloat16 for the two bytes without a name that NumPy makes of it; None for all others."""
    if dtype.kind == "V" and dtype.names is None and dtype.subdtype is None and dtype.itemsize == 2:
        return SMALL["bfloat16"]
    return dtype.newbyteorder("=") if dtype.kind in "fiubc" else None


def _read(path: Path, leaves: Sequence[Leaf]) -> list[np.ndarray]:
    try:
        with zipfile.ZipFile(path) as archive:
            return [_member(archive, leaf) for leaf in leaves]
    except Exception as error:
        raise refuse(path, "npz", error) from error


def _member(archive: zipfile.ZipFile, leaf: Leaf) -> np.ndarray:
    with archive.open(leaf.key[0]) as stream:
        return array(stream, leaf)


def array(stream: Any, leaf: Leaf) -> np.ndarray:
    """The array that a stream holds, once its head declares the shape and type of `leaf`; nothing is unpickled.

    Raises:
        ValueError: It holds fewer bytes.
    """
    data = np.lib.format.read_array(stream, allow_pickle=False)
    if data.shape != leaf.shape:
        raise ValueError(f"an array changed from {leaf.shape} to {data.shape}")
    if data.dtype.kind == "V":
        return data.view(ml_dtypes.bfloat16)
    return data.astype(data.dtype.newbyteorder("="), copy=False)


def write(file: Any, arrays: dict[str, np.ndarray]) -> None:
    """Write arrays by name; whatever their names, which `np.savez` takes for its own arguments."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, value in arrays.items():
            stream = io.BytesIO()
            np.lib.format.write_array(stream, np.asanyarray(value), allow_pickle=False)
            archive.writestr(f"{name}.npy", stream.getbuffer())
