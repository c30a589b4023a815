"""safetensors: a JSON header and the raw arrays behind it; one file, or shards with an index as Hugging Face has.

The format is small enough to be read and written here, every size and offset checked; the package is not needed.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from landscape.checkpoints.contents import SMALL, Contents, Leaf, Name, collected, refuse, regular
from landscape.checkpoints.names import split

INDEX = ".safetensors.index.json"
LONGEST = 100 * 2**20
"""Bytes of the longest header that the format allows."""
TYPES: dict[str, np.dtype] = {
    **{f"F{8 * n}": np.dtype(f"<f{n}") for n in (2, 4, 8)},
    **{f"I{8 * n}": np.dtype(f"<i{n}") for n in (1, 2, 4, 8)},
    **{f"U{8 * n}": np.dtype(f"<u{n}") for n in (1, 2, 4, 8)},
    "BOOL": np.dtype(bool),
    "C64": np.dtype("<c8"),
    "BF16": SMALL["bfloat16"],
    "F8_E4M3": SMALL["float8_e4m3fn"],
    "F8_E5M2": SMALL["float8_e5m2"],
}


def contents(path: Path) -> Contents:
    """Names, shapes and types of the arrays in a file, or in the shards that an index names.

    Raises:
        ValueError: A header or index that is damaged, names files outside its folder, or lacks a shard.
    """
    if path.name.endswith(INDEX):
        found = [item for shard in _shards(path) for item in _entries(shard)]
        return Contents("safetensors shards", collected(path, found), read)
    return Contents("safetensors", collected(path, _entries(path)), read)


def read(leaves: Sequence[Leaf]) -> list[np.ndarray]:
    """The arrays of entries, each from its file at its offset.

    Raises:
        ValueError: A file has become shorter.
    """
    return [_array(leaf, *leaf.key) for leaf in leaves]


def _array(leaf: Leaf, file: Path, start: int) -> np.ndarray:
    with open(file, "rb") as stream:
        stream.seek(start)
        data = np.fromfile(stream, leaf.dtype or np.uint8, math.prod(leaf.shape))
    if data.size != math.prod(leaf.shape):
        raise refuse(file, "safetensors", "it is shorter than its header says")
    return data.reshape(leaf.shape)


def _shards(index: Path) -> list[Path]:
    try:
        found = json.loads(regular(index).read_bytes())["weight_map"]
        names = sorted({str(shard) for shard in found.values()})
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise refuse(index, "an index of safetensors shards", f"{type(error).__name__}: {error}") from error
    for name in names:
        if name in ("", ".", "..") or Path(name).name != name or "\\" in name or ":" in name or "\0" in name:
            raise ValueError(f"{index} names {name[:200]!r}, which lies outside its folder; wanted files beside it.")
        if not (index.parent / name).exists():
            raise ValueError(f"{index} names the shard {name[:200]}, which is not beside it; fetch all shards.")
    return [regular(index.parent / name) for name in names]


def _entries(path: Path) -> list[tuple[Name, Leaf]]:
    size = regular(path).stat().st_size
    with open(path, "rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > min(LONGEST, size - 8):
            raise refuse(path, "safetensors", f"a header of {length:,} bytes in a file of {size:,}")
        text = stream.read(length)
    try:
        header = json.loads(text)
        return [
            (split(name), _leaf(path, name, entry, 8 + length, size))
            for name, entry in header.items()
            if name != "__metadata__"
        ]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise refuse(path, "safetensors", error) from error


def _leaf(path: Path, name: str, entry: Mapping[str, Any], data: int, size: int) -> Leaf:
    """The entry that the header describes; types without a NumPy type stay unread."""
    start, end = entry["data_offsets"]
    shape = tuple(entry["shape"])
    if not all(type(n) is int and n >= 0 for n in (*shape, start, end)) or start > end:
        raise ValueError(f"{name} has shape {list(shape)} and offsets {start}, {end}")
    if data + end > size:
        raise ValueError(f"{name} ends at byte {data + end:,} of a file of {size:,}; is it truncated?")
    leaf = Leaf(shape, TYPES.get(str(entry["dtype"])), (path, data + start))
    if leaf.dtype is not None and leaf.nbytes != end - start:
        raise ValueError(f"{name} has {end - start:,} bytes; its shape {list(shape)} wants {leaf.nbytes:,}")
    return leaf


def write(file: Any, arrays: dict[str, np.ndarray]) -> None:
    """Write arrays by name.

    Raises:
        ValueError: A type that the format does not have.
    """
    codes = {dtype: code for code, dtype in TYPES.items()}
    header, offset = {}, 0
    arrays = {name: np.asarray(value, order="C") for name, value in arrays.items()}
    arrays = dict(sorted(arrays.items(), key=lambda item: -item[1].dtype.itemsize))  # keeps every array aligned
    for name, value in arrays.items():
        if value.dtype not in codes:
            raise ValueError(f"{name} is of type {value.dtype}, which safetensors does not have.")
        ends = [offset, offset + value.nbytes]
        header[name] = {"dtype": codes[value.dtype], "shape": list(value.shape), "data_offsets": ends}
        offset = ends[1]
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for value in arrays.values():
        file.write(value.tobytes())
