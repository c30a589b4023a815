"""Parameters from the files that people keep, one module a format; the arrays are matched to a network by name.

Known are npz, safetensors (also shards with an index), orbax folders, flax's msgpack, Equinox's .eqx, PyTorch's .pt,
.pth and .pt2, Lightning's .ckpt and Keras's .weights.h5. Whatever a file claims is checked against the network's names
and shapes before it is read; nothing is unpickled beyond tensors, and no link that leaves a folder is followed.
"""

import os
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from landscape.checkpoints import equinox, keras, matching, msgpack, names, npz, orbax, pt2, safetensors, torch
from landscape.checkpoints.contents import Contents, refuse, regular
from landscape.checkpoints.matching import Checkpoint
from landscape.checkpoints.names import listed, words
from landscape.files import atomic

__all__ = ["Checkpoint", "load", "load_if_there", "read", "save", "words"]

Params = Any
BEGINNINGS = {b"PK\x03\x04": "zip", b"PK\x05\x06": "zip", b"\x89HDF": "h5", b"\x93NUM": "eqx"}
SUFFIXES = {".eqx": "eqx", ".msgpack": "msgpack", ".pt": "pt", ".pth": "pt", ".bin": "pt", ".ckpt": "pt"}
KNOWN = ".npz, .safetensors, .msgpack, .eqx, .pt, .pth, .ckpt, .pt2, .weights.h5, or an orbax folder"


def load(path: Path | str, like: Any = None) -> list[Params]:
    """The solutions in one checkpoint: usually one, several where every array has a leading axis of seeds.

    Args:
        path: A file or folder of any known format. Names may be joined by "/" or ".", or be paths such as
            params['a']['b'].
        like: Parameters of the network, their shapes, a module that is a pytree, or a `Problem`, which stands for its
            shapes, axis of branches included; without it the names become nested dictionaries.

    Returns:
        Parameters in float32 at least, whatever the file's type.

    Raises:
        FileNotFoundError: No such file or folder.
        ValueError: A format that is not known, a damaged file, a package that is missing, or arrays of another network.
    """
    found = read(path, like)
    if found.unexpected:
        left = listed([(name,) for name in found.unexpected])
        warnings.warn(f"{path} also holds {left}, which the network does not have; left out.", stacklevel=2)
    return found.solutions


def read(path: Path | str, like: Any = None, *, everything: bool = False) -> Checkpoint:
    """As `load`, with the format and what was left out; without `like`, `everything` keeps counters too."""
    path = Path(path)
    contents = _contents(path, like)
    if like is None:
        return matching.whole(path, contents, everything)
    lifted = hasattr(like, "network") and hasattr(like, "shapes")
    return matching.matched(path, contents, like.shapes if lifted else like, lifted and like.network.total == 1)


def load_if_there(path: Path | str, like: Params) -> Params | None:
    """Further arrays of a checkpoint, such as running statistics; the first of several; None where it holds none.

    Raises:
        ValueError: It holds some of them, or others.
    """
    if not os.path.exists(path):
        return None
    contents = _contents(Path(path), like)
    wanted = {name for name, _ in names.of_tree(like)}
    leaves = names.chosen(contents, wanted)
    return matching.matched(Path(path), contents, like).solutions[0] if wanted & set(leaves) else None


def save(path: Path | str, params: Params) -> None:
    """Write parameters as npz, names joined by "/"; as safetensors, names joined by ".", if the suffix says so."""
    path = Path(path)
    tensors = path.suffix == ".safetensors"
    leaves = jax.tree_util.tree_leaves_with_path(params)
    arrays = {("." if tensors else "/").join(words(where)): np.asarray(leaf) for where, leaf in leaves}

    def write(pending: Path) -> None:
        with open(pending, "wb") as file:
            (safetensors if tensors else npz).write(file, arrays)

    atomic.write_atomic(path, write)


def _contents(path: Path, like: Any) -> Contents:
    """The contents in whichever format the file's beginning, or else its suffix, tells."""
    if os.path.isdir(path):  # a name that is too long is no folder, and no error yet
        tensors = [*sorted(path.glob(f"*{safetensors.INDEX}")), *sorted(path.glob("*.safetensors"))]
        return safetensors.contents(regular(tensors[0])) if tensors else orbax.contents(path)
    kind = _kind(regular(path))
    if kind == "eqx":
        return equinox.contents(path, _order(like))
    modules = {"npz": npz, "safetensors": safetensors, "h5": keras, "msgpack": msgpack, "pt": torch, "pt2": pt2}
    if kind not in modules:
        raise ValueError(f"{path} has no known format; wanted {KNOWN}.")
    return modules[kind].contents(path)


def _kind(path: Path) -> str:
    with open(path, "rb") as file:
        begin = file.read(16)
    kind = BEGINNINGS.get(begin[:4], "")
    if kind == "zip":
        return _zip_kind(path)
    if path.name.endswith(safetensors.INDEX) or path.suffix == ".safetensors" or begin[8:9] == b"{":
        return "safetensors"
    if kind or path.suffix in (".h5", ".hdf5"):
        return kind or "h5"
    if path.suffix in (".npz", ".pt2"):
        raise refuse(path, path.suffix[1:], "it is empty" if not begin else "it is no zip file")
    if path.suffix in SUFFIXES:
        return SUFFIXES[path.suffix]
    return "msgpack" if begin[:1] and (0x81 <= begin[0] <= 0x8F or begin[0] in (0xDE, 0xDF)) else ""


def _zip_kind(path: Path) -> str:
    """Which program's zip file it is: PyTorch's has a pickle, an export a format or version, npz arrays only."""
    try:
        with zipfile.ZipFile(path) as archive:
            found = {name.rpartition("/")[2] for name in archive.namelist()}
    except Exception as error:  # damage can surface as any of zipfile's many errors
        wanted = "npz" if path.suffix == ".npz" else "PyTorch's zip" if path.suffix in SUFFIXES else "a zip file"
        raise refuse(path, wanted, error, "Is it truncated?") from error
    if "archive_format" in found or "serialized_state_dict.pt" in found:
        return "pt2"
    if "data.pkl" in found:
        return "pt"
    if "model.weights.h5" in found:
        raise ValueError(f"{path} is a whole Keras model; save its weights: model.save_weights('a.weights.h5').")
    return "npz" if path.suffix == ".npz" or any(name.endswith(".npy") for name in found) else ""


def _order(like: Any) -> tuple[str, ...]:
    """The names of a module's arrays in its own order, if `like` knows them."""
    branch = getattr(getattr(like, "network", like), "branch", like)
    order = getattr(branch, "order", ())
    plain = like is None or isinstance(like, Mapping) or order
    return tuple(order) if plain else equinox.order_of(like)
