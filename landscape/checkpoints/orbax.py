"""orbax: folders of arrays in zarr, found and read by tensorstore, so that every version's folders load alike.

What may be named: one item's folder (with `_METADATA`), a step with its items, or a manager's root with its steps.
"""

import json
import os
import stat
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from landscape.checkpoints.contents import SMALL, Contents, Leaf, Name, needed, refuse
from landscape.checkpoints.names import canonical
from landscape.checkpoints.npz import number_type

METADATA = "_METADATA"
UNFINISHED = ".orbax-checkpoint-tmp"
MOST = 1_000_000
"""Files and folders of the largest checkpoint that is looked through for links."""
NO_ARRAYS = ("string", "None")
"""Value types that orbax keeps elsewhere or not at all."""


def contents(path: Path) -> Contents:
    """Names, shapes and types of the arrays of a checkpoint; the last step of a manager's root.

    Raises:
        ValueError: No checkpoint, links that leave the folder, or a package that is missing.
    """
    _refuse_links(path)
    step = path if _items(path) else _last_step(path)
    items = _items(step)
    if not items:
        raise refuse(path, "an orbax checkpoint", "neither it nor a step in it holds an item with _METADATA")
    tensorstore = needed("tensorstore", path, "orbax")
    leaves: dict[Name, Leaf] = {}
    for name, item in items.items():
        prefix = (name,) if len(items) > 1 else ()
        leaves |= {(*prefix, *key): leaf for key, leaf in _leaves(tensorstore, item).items()}
    said = "orbax" if step == path else f"orbax, step {step.name}"
    return Contents(said, leaves, partial(_read, path), nested=True)


def _refuse_links(path: Path) -> None:
    """Every file inside must be a regular one, and every link must stay inside."""
    root, seen = os.path.realpath(path), 0
    for folder, folders, files in os.walk(path):
        for name in (*folders, *files):
            inner = os.path.join(folder, name)
            seen += 1
            if os.path.islink(inner) and not os.path.realpath(inner).startswith(root + os.sep):
                raise ValueError(f"{inner} is a link that leaves {path}; a checkpoint must be whole in its folder.")
            mode = os.stat(inner).st_mode if os.path.exists(inner) else 0
            if seen > MOST or not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise ValueError(f"{inner} is no regular file or folder; wanted an orbax checkpoint.")


def _items(path: Path) -> dict[str, Path]:
    """The items of a step by name, or the folder itself where it is one."""
    if (path / METADATA).is_file():
        return {path.name: path}
    inside = [file.parent for file in sorted(path.glob(f"*/{METADATA}")) if UNFINISHED not in file.parent.name]
    return {item.name: item for item in inside if _number(item) < 0}


def _last_step(path: Path) -> Path:
    steps = sorted((inner for inner in path.iterdir() if inner.is_dir() and _number(inner) >= 0), key=_number)
    finished = [step for step in steps if _items(step)]
    return finished[-1] if finished else path


def _number(step: Path) -> int:
    """The number of a step's folder, `10`, `step_10` or `000010`; −1 for other folders."""
    digits = step.name.rpartition("_")[2]
    return int(digits) if digits.isdecimal() and len(digits) < 19 else -1


def _leaves(tensorstore: Any, item: Path) -> dict[Name, Leaf]:
    wanted = "an orbax checkpoint"
    try:
        about = json.loads((item / METADATA).read_bytes())
        entries = [
            (tuple(str(part["key"]) for part in entry["key_metadata"]), str(entry["value_metadata"]["value_type"]))
            for entry in about["tree_metadata"].values()
        ]
        ocdbt, driver = bool(about.get("use_ocdbt", True)), "zarr3" if about.get("use_zarr3") else "zarr"
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise refuse(item / METADATA, wanted, f"{type(error).__name__}: {error}") from error
    ocdbt = ocdbt and (item / "manifest.ocdbt").exists()
    leaves: dict[Name, Leaf] = {}
    for name, kind in entries:
        if kind in NO_ARRAYS:
            leaves[canonical(name)] = Leaf((), None)
        else:
            leaves[canonical(name)] = _opened(tensorstore, item, driver, ".".join(name), ocdbt)
    return leaves


def _opened(tensorstore: Any, item: Path, driver: str, key: str, ocdbt: bool) -> Leaf:
    """An array's shape and type, without its values."""
    if any(part in ("", ".", "..") for part in key.split("/")):
        raise ValueError(f"{item} names an array {key[:200]!r}, which would lie outside it.")
    base = item.resolve()
    store = {"driver": "ocdbt", "base": f"file://{base}/", "path": f"{key}/"}
    spec = {"driver": driver, "kvstore": store if ocdbt else {"driver": "file", "path": f"{base}/{key}/"}}
    try:
        opened = tensorstore.open(spec, open=True, read=True).result()
        dtype = np.dtype(opened.dtype.numpy_dtype)
    except Exception as error:  # tensorstore names its own errors
        raise refuse(item, "an orbax checkpoint", f"{key}: {error}") from error
    leaf = Leaf(
        tuple(int(n) for n in opened.shape), number_type(np.dtype(dtype)) or SMALL.get(np.dtype(dtype).name), opened
    )
    chunk = opened.chunk_layout.read_chunk.shape
    if chunk and leaf.dtype is not None and any(c > max(n, 1) for c, n in zip(chunk, leaf.shape, strict=True)):
        raise refuse(item, "an orbax checkpoint", f"{key} has chunks {list(chunk)} of an array {list(leaf.shape)}")
    return leaf


def _read(path: Path, leaves: Sequence[Leaf]) -> list[np.ndarray]:
    try:
        pending = [leaf.key.read() for leaf in leaves]
        return [np.asarray(part.result()) for part in pending]
    except Exception as error:
        raise refuse(path, "an orbax checkpoint", error) from error
