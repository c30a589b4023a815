"""What a checkpoint holds before anything is read: names, shapes and types, checked as a stranger's file must be."""

import importlib
import math
import os
import stat
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

Name = tuple[str, ...]
SLACK = 64 * 2**20
RATIO = 50
"""A file may declare SLACK bytes, and RATIO times its own size, beyond what a network asks for."""


class Leaf(NamedTuple):
    """One entry of a checkpoint.

    Attributes:
        shape: Its shape.
        dtype: Its NumPy type; None where it is no array of numbers, such as text.
        key: Where the format keeps it.
    """

    shape: tuple[int, ...]
    dtype: np.dtype | None
    key: Any = None

    @property
    def nbytes(self) -> int:
        """Bytes that it takes once it is read."""
        return math.prod(self.shape) * (self.dtype.itemsize if self.dtype else 0)

    @property
    def is_float(self) -> bool:
        """Whether it holds real floating-point numbers, half precision included."""
        return self.dtype is not None and (self.dtype.kind == "f" or self.dtype.name in SMALL)

    @property
    def says(self) -> str:
        """Its type and shape in words."""
        return f"{self.dtype or 'no array'} {list(self.shape)}"


class Contents(NamedTuple):
    """A checkpoint whose arrays are not read yet.

    Attributes:
        format: What messages call the format.
        leaves: Entries by name.
        read: Reads chosen entries, in their order.
        nested: Whether the first words of the names are the file's own containers, as in a training state, and not
            parts of flat names.
    """

    format: str
    leaves: Mapping[Name, Leaf]
    read: Callable[[Sequence[Leaf]], list[np.ndarray]]
    nested: bool = False


SMALL = {
    name: np.dtype(getattr(ml_dtypes, name))
    for name in ("bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz")
}
"""Floating-point types that NumPy does not have by itself."""


def refuse(path: Path | str, wanted: str, came: object, remedy: str = "") -> ValueError:
    """The error about a stranger's file: its name, what was wanted, what came, what to do."""
    text = str(came).strip().splitlines()[0] if str(came).strip() else type(came).__name__
    text = "".join(c if c.isprintable() else "?" for c in text)
    text = text if len(text) <= 200 else f"{text[:200]}…"
    return ValueError(f"{path} cannot be read as {wanted} ({text.rstrip('.')})." + (f"\n  {remedy}" if remedy else ""))


def regular(path: Path) -> Path:
    """The path of a regular file; pipes, devices and sockets would be read for ever.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is something else.
    """
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist; a checkpoint was wanted.") from None
    except (OSError, ValueError) as error:  # a loop of links, a name too long, a zero byte
        raise ValueError(f"{str(path)[:200]!r} cannot be opened ({error}).") from error
    if not stat.S_ISREG(mode):
        raise ValueError(f"{path} is not a regular file; wanted a checkpoint.")
    return path


def needed(package: str, path: Path, extra: str) -> Any:
    """An optional package, imported on first use.

    Raises:
        ValueError: It is not installed.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ValueError(
            f"{path} needs the package {package.split('.')[0]}: pip install 'landscape-jax[{extra}]'\n"
            "  (or save the parameters as npz or safetensors)."
        ) from error


def collected(path: Path, found: Sequence[tuple[Name, Leaf]]) -> dict[Name, Leaf]:
    """Entries by name.

    Raises:
        ValueError: Two entries have one name, or a shape is none.
    """
    leaves: dict[Name, Leaf] = {}
    for name, leaf in found:
        if name in leaves:
            raise ValueError(f"{path} holds two arrays named {'/'.join(name)[:80]!r}; wanted one of each name.")
        if not all(isinstance(n, int) and n >= 0 for n in leaf.shape):
            raise refuse(path, "a checkpoint", f"{'/'.join(name)!r} has shape {list(leaf.shape)}")
        leaves[name] = leaf
    return leaves


def bounded(path: Path, wanted: int, leaves: Sequence[Leaf]) -> None:
    """Refuse a file that would grow far beyond its size, or beyond what the network asks for.

    Args:
        path: The file or folder.
        wanted: Bytes that the network's own shapes take; 0 without a network.
        leaves: The entries that are about to be read.

    Raises:
        ValueError: It would.
    """
    declared = sum(leaf.nbytes for leaf in leaves)
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    on_disk = sum(file.stat().st_size for file in files)
    if declared > max(wanted, SLACK + RATIO * on_disk):
        raise ValueError(
            f"{path} has {on_disk:,} bytes and declares arrays of {declared:,}; that is not read.\n"
            "  Name the network, so that sizes can be checked, or save it without compression."
        )
