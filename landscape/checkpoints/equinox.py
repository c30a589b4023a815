"""Equinox: `.eqx`, arrays one after the other without names; these come from the module's own order."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from landscape.checkpoints.contents import Contents, Leaf, Name, collected, refuse
from landscape.checkpoints.names import canonical, is_array, words
from landscape.checkpoints.npz import array, head

MAGIC = b"\x93NUMPY"


def order_of(module: Any) -> tuple[str, ...]:
    """Names of the arrays and numbers of a module, in the order in which `tree_serialise_leaves` writes them."""
    leaves = jax.tree_util.tree_leaves_with_path(module)
    return tuple("/".join(words(where)) for where, leaf in leaves if is_array(leaf) or isinstance(leaf, NUMBERS))


NUMBERS = (bool, int, float, complex, np.generic)


def contents(path: Path, order: Sequence[str]) -> Contents:
    """The arrays of a file, named by the module.

    Args:
        path: The file; a first line of JSON, as Equinox's documentation writes it, is skipped.
        order: As `order_of` gives it.

    Raises:
        ValueError: There is no order, the file is damaged, or it holds another number of arrays.
    """
    if not order:
        raise ValueError(
            f"{path} is Equinox's format, which holds no names: they come from the module.\n"
            "  Give the module itself as `like`, or name it with --network."
        )
    try:
        found = _scan(path)
    except Exception as error:  # damage can surface as any of numpy's many errors
        raise refuse(path, "arrays as Equinox writes them", error) from error
    if len(found) != len(order):
        raise ValueError(
            f"{path} holds {len(found)} arrays; the module has {len(order)} arrays and numbers.\n"
            "  Is it a checkpoint of another module?"
        )
    named: list[tuple[Name, Leaf]] = [(canonical((n,)), leaf) for n, leaf in zip(order, found, strict=True)]
    return Contents("Equinox", collected(path, named), lambda leaves: _read(path, leaves))


def _scan(path: Path) -> list[Leaf]:
    size, found = path.stat().st_size, []
    with open(path, "rb") as stream:
        if stream.read(len(MAGIC)) != MAGIC:
            stream.seek(0)
            json.loads(stream.readline(2**20))
        else:
            stream.seek(0)
        while stream.tell() < size:
            start = stream.tell()
            leaf = head(stream, f"array {len(found) + 1}", size - start)
            if leaf.dtype is None:
                raise ValueError(f"array {len(found) + 1} holds no numbers")
            stream.seek(leaf.nbytes, 1)
            if stream.tell() > size:
                raise ValueError(f"array {len(found) + 1} ends behind the file's end; is it truncated?")
            found.append(leaf._replace(key=start))
    return found


def _read(path: Path, leaves: Sequence[Leaf]) -> list[np.ndarray]:
    found = []
    with open(path, "rb") as stream:
        for leaf in leaves:
            stream.seek(leaf.key)
            found.append(array(stream, leaf))
    return found
