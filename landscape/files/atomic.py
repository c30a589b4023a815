"""Files that are whole or absent: temporary name, fsync, rename; arrays with a checksum; fingerprints of inputs.

JAX is imported on first use, so that the command line can answer without it.
"""

import dataclasses
import fcntl
import hashlib
import json
import math
import os
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


class Stopped(Exception):
    """Raised between two units of work after a request to stop; everything finished so far is on disk."""


class Corrupted(ValueError):
    """A stored file does not match its own checksum."""


def write_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, flush it to the disk, then rename it: never half a file.

    Raises:
        OSError: The folder cannot be written or the disk is full; the earlier file, if any, is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=f".pending{path.suffix}", dir=path.parent)
    os.close(handle)
    try:
        write(Path(name))
        with open(name, "rb") as written:
            os.fsync(written.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_json(path: Path, content: Any) -> None:
    """Write `content` as indented JSON, atomically; numbers that are not finite become null."""
    text = json.dumps(plain(content), indent=2, ensure_ascii=False, allow_nan=False)
    write_atomic(path, lambda pending: pending.write_text(text + "\n", encoding="utf-8"))


def plain(value: Any) -> Any:
    """A value in the types of JSON: records and mappings become dicts, arrays and tuples lists, other objects text.

    >>> plain({"gap": (np.float32(0.5), float("nan")), "at": Path("runs")})
    {'gap': [0.5, None], 'at': 'runs'}
    """
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, str | bool | int):
        return value
    return plain(np.asarray(value).tolist()) if hasattr(value, "__array__") else str(value)


def fingerprint(*parts: Any) -> str:
    """sha256 (hex) of trees of arrays, numbers and strings, including shapes, types and structure.

    >>> fingerprint({"a": np.arange(3)}) == fingerprint({"a": np.arange(3)})
    True
    >>> fingerprint(np.arange(3)) == fingerprint(np.arange(3.0))
    False

    Raises:
        TypeError: A part is something else.
    """
    import jax

    from landscape.arrays import on_disk

    digest = hashlib.sha256()
    leaves, structure = jax.tree.flatten(parts)
    digest.update(str(structure).encode())
    for leaf in leaves:
        if isinstance(leaf, str | bool | int | float):
            digest.update(repr(leaf).encode())
            continue
        array = leaf if on_disk.stays(leaf) else np.ascontiguousarray(leaf)
        if array.dtype.hasobject:
            raise TypeError(f"a fingerprint wants arrays, numbers and strings; got {type(leaf).__name__}.")
        digest.update(f"{array.dtype}{tuple(array.shape)}".encode())
        for part in on_disk.blocks(array):
            digest.update(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def save_arrays(path: Path, arrays: Mapping[str, Any], key: str) -> None:
    """Write named arrays as npz, with the `key` of the inputs they belong to and their own checksum.

    Equal content gives equal bytes: the archive carries no dates.
    """
    content = {name: np.asarray(array) for name, array in arrays.items()}
    sealed = {**content, "__key__": np.asarray(key), "__seal__": np.asarray(fingerprint(key, content))}

    def write(pending: Path) -> None:
        with zipfile.ZipFile(pending, "w") as archive:
            for name, array in sealed.items():
                with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)

    write_atomic(path, write)


def load_arrays(path: Path, key: str) -> dict[str, np.ndarray] | None:
    """Read arrays written by `save_arrays`; None where there is no such file.

    Raises:
        Corrupted: The file is damaged, or belongs to other inputs than `key`; it must not be used.
    """
    if not path.exists():
        return None
    try:
        with open(path, "rb") as file, np.load(file) as stored:
            arrays = {name: stored[name] for name in stored.files}
    except Exception as error:  # damage can surface as any of zipfile's and numpy's many errors
        raise Corrupted(f"{path} cannot be read ({error}).\n  Delete it and run the command again.") from error
    found, seal = str(arrays.pop("__key__", "")), str(arrays.pop("__seal__", ""))
    if seal != fingerprint(found, arrays):
        raise Corrupted(f"{path} does not match its checksum.\n  Delete it and run the command again.")
    if found != key:
        raise Corrupted(f"{path} belongs to other inputs.\n  Delete it, or choose another folder.")
    return arrays


def recovered(path: Path, key: str) -> dict[str, np.ndarray] | None:
    """`load_arrays` for results that can be computed again: a damaged or foreign file gives None and a warning."""
    try:
        return load_arrays(path, key)
    except Corrupted as error:
        warnings.warn(f"{error.args[0].splitlines()[0]} It is computed again.", stacklevel=2)
        return None


class Blocks(NamedTuple):
    """The finished blocks of one computation, as numbered files in a folder; without a folder nothing is kept.

    Attributes:
        folder: The folder, or None.
        key: Fingerprint of all that the computation depends on.
    """

    folder: Path | None
    key: str

    def load(self, i: int) -> dict[str, np.ndarray] | None:
        """Read block i; None if it is absent or damaged."""
        return recovered(self._file(self.folder, i), self.key) if self.folder else None

    def save(self, i: int, arrays: Mapping[str, Any]) -> None:
        """Write block i."""
        if self.folder:
            save_arrays(self._file(self.folder, i), arrays, self.key)

    def _file(self, folder: Path, i: int) -> Path:
        return folder / f"block-{self.key[:8]}-{i:04}.npz"


def remove(folder: Path, *patterns: str) -> None:
    """Remove the files of a folder that match patterns such as "block-*.npz"."""
    for pattern in patterns:
        for file in folder.glob(pattern):
            file.unlink(missing_ok=True)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Create the folder if needed and hold it for this process alone.

    Raises:
        ValueError: Another process holds it, or it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise ValueError(f"{folder} cannot be written ({error.strerror}).\n  Choose another --out.") from error
    try:
        take(handle, folder)
        yield
    finally:
        os.close(handle)


def take(handle: int, folder: Path) -> None:
    """Lock an open file of `folder` for this process and write its number there.

    Raises:
        ValueError: Another process holds it.
    """
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.read(handle, 100).decode() or "unknown"
        raise ValueError(f"{folder} is in use by process {holder}.\n  Wait for it, or choose another --out.") from error
    os.ftruncate(handle, 0)
    os.write(handle, f"{os.getpid()} on {os.uname().nodename}".encode())
