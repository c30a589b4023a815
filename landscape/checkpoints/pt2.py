"""PyTorch's exported programs, `.pt2`: their weights, read from the archive without running or unpickling anything."""

import io
import json
import math
import zipfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from landscape.checkpoints import torch
from landscape.checkpoints.contents import SMALL, Contents, Leaf, collected, refuse
from landscape.checkpoints.names import split

WANTED = "PyTorch's exported program"
NEWEST = 0
"""The newest version of the archive's layout that is known."""
CONFIG = "data/weights/model_weights_config.json"
OLD = "serialized_state_dict.pt"
"""Where torch 2.6 kept the weights."""
TYPES = {
    **dict(enumerate(map(np.dtype, ("u1", "i1", "<i2", "<i4", "<i8", "<f2", "<f4", "<f8")), 1)),
    10: np.dtype("<c8"),
    11: np.dtype("<c16"),
    12: np.dtype(bool),
    13: SMALL["bfloat16"],
}
"""Types by the archive's numbers."""


def contents(path: Path) -> Contents:
    """Names, shapes and types of an exported program's weights.

    Raises:
        ValueError: A damaged archive, a newer version, or one without weights.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = {_inside(name): archive.getinfo(name) for name in archive.namelist()}
            _refuse_newer(archive, names)
            inner = [names[n] for n in names if n == OLD or (n.startswith("data/weights/") and n.endswith(".pt"))]
            state = archive.read(_few(inner[0])) if CONFIG not in names and inner else None
            config = {} if state else json.loads(archive.read(_few(names[CONFIG])))["config"]
            found = [(split(name), _leaf(names, name, entry)) for name, entry in config.items()]
    except Exception as error:  # damage can surface as any of zipfile's errors, or as keys that are not there
        raise refuse(path, WANTED, error) from error
    if state:
        return torch.part(path, io.BytesIO(state))._replace(format="PyTorch export")
    return Contents("PyTorch export", collected(path, found), partial(_read, path))


def _refuse_newer(archive: zipfile.ZipFile, names: Mapping[str, zipfile.ZipInfo]) -> None:
    member = names.get("archive_version")
    version = archive.read(_few(member)).strip().decode() if member else str(NEWEST)
    if not version.isdecimal() or int(version[:9]) > NEWEST:
        raise ValueError(f"it is of archive version {version[:20]!r}; known are versions up to {NEWEST}")


def _inside(name: str) -> str:
    """A member's name below the archive's own folder; torch 2.6 has none."""
    first, _, rest = name.partition("/")
    return rest if rest and first not in ("data", "models", "extra") else name


def _few(member: zipfile.ZipInfo) -> zipfile.ZipInfo:
    """A member that may be read whole, as torch stores it."""
    if member.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{member.filename} is compressed, which torch never does")
    return member


def _leaf(names: Mapping[str, zipfile.ZipInfo], name: str, entry: Mapping[str, Any]) -> Leaf:
    about = entry["tensor_meta"]
    shape, strides = (tuple(int(n["as_int"]) for n in about[key]) for key in ("sizes", "strides"))
    start, dtype = int(about["storage_offset"]["as_int"]), TYPES.get(about["dtype"])
    member = names[f"data/weights/{entry['path_name']}"]
    if dtype is None or entry["use_pickle"]:
        return Leaf(shape, None)
    reach = sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    last = start + reach if math.prod(shape) else start - 1
    if min((start, *shape, *strides)) < 0 or (last + 1) * dtype.itemsize > member.file_size:
        raise ValueError(f"{name} ends behind its {member.file_size:,} bytes")
    return Leaf(shape, dtype, (member.filename, start, strides))


def _read(path: Path, leaves: Sequence[Leaf]) -> list[np.ndarray]:
    try:
        with zipfile.ZipFile(path) as archive:
            return [_array(archive, leaf, *leaf.key) for leaf in leaves]
    except Exception as error:
        raise refuse(path, WANTED, error) from error


def _array(archive: zipfile.ZipFile, leaf: Leaf, name: str, start: int, strides: Sequence[int]) -> np.ndarray:
    data = np.frombuffer(archive.read(_few(archive.getinfo(name))), leaf.dtype or np.uint8)[start:]
    steps = [step * data.itemsize for step in strides]
    return np.lib.stride_tricks.as_strided(data, leaf.shape, steps, writeable=False)
