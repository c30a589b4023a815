"""flax's msgpack: nested dictionaries of arrays, as `flax.serialization.to_bytes` writes them."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from landscape.checkpoints.contents import SMALL, Contents, Leaf, Name, collected, refuse
from landscape.checkpoints.names import canonical
from landscape.checkpoints.npz import number_type

ARRAY, COMPLEX, SCALAR = 1, 2, 3
"""flax's extension types."""
CHUNKED = "__msgpack_chunked_array__"


def contents(path: Path) -> Contents:
    """The arrays of a file; its bytes are read once, and not copied before they are asked for.

    Raises:
        ValueError: It is not msgpack, or not flax's.
    """
    import msgpack

    try:
        tree = msgpack.unpackb(path.read_bytes(), ext_hook=_extension, raw=False, strict_map_key=False)
        found = [(canonical(name), _leaf(value)) for name, value in _walk((), tree)]
    except Exception as error:  # msgpack has a dozen errors for damage
        raise refuse(path, "flax's msgpack", error) from error
    if not any(leaf.dtype is not None for _, leaf in found):
        raise refuse(path, "flax's msgpack", "it holds no arrays")
    return Contents("msgpack", collected(path, found), _read, nested=True)


def _extension(code: int, data: bytes) -> Any:
    import msgpack

    if code not in (ARRAY, SCALAR):
        return None if code == COMPLEX else msgpack.ExtType(code, data)
    shape, name, buffer = msgpack.unpackb(data, raw=True)
    dtype = SMALL.get(name.decode()) or number_type(np.dtype(name.decode()))
    if dtype is None:
        return None
    return np.frombuffer(buffer, dtype).reshape(shape)


def _walk(where: Name, value: Any) -> Iterator[tuple[Name, Any]]:
    """Leaves with their names; an array in chunks is one leaf."""
    if isinstance(value, Mapping) and CHUNKED not in value:
        for key, inner in value.items():
            yield from _walk((*where, str(key)), inner)
    elif isinstance(value, list | tuple):
        for key, inner in enumerate(value):
            yield from _walk((*where, str(key)), inner)
    else:
        yield where, value


def _leaf(value: Any) -> Leaf:
    if isinstance(value, Mapping):
        shape = tuple(value["shape"][str(n)] for n in range(len(value["shape"])))
        chunks = [value["chunks"][str(n)] for n in range(len(value["chunks"]))]
        if sum(chunk.size for chunk in chunks) != math.prod(shape):
            raise ValueError(f"chunks that do not make an array {list(shape)}")
        return Leaf(shape, chunks[0].dtype, chunks)
    if isinstance(value, np.ndarray):
        return Leaf(value.shape, value.dtype, [value])
    return Leaf((), None)


def _read(leaves: Sequence[Leaf]) -> list[np.ndarray]:
    return [np.concatenate([chunk.reshape(-1) for chunk in leaf.key]).reshape(leaf.shape) for leaf in leaves]
