"""Arrays that stay on disk, memory maps and what is sliced like them (HDF5, zarr): rows are read as they are needed."""

import hashlib
import mmap
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

Tree = Any

BLOCK = 16 * 2**20
"""Bytes read at a time where everything is looked at once."""


def stays(values: Any) -> bool:
    """Whether values stay on disk: a memory map, or what has a shape, a type and slices without being an array."""
    if isinstance(values, np.memmap):
        return getattr(values, "_mmap", None) is not None
    sliced = isinstance(getattr(values, "dtype", None), np.dtype) and hasattr(values, "shape")
    return sliced and hasattr(values, "__getitem__") and not isinstance(values, np.ndarray | np.generic | jax.Array)


def rows(array: Any, which: Any) -> Any:
    """Entries of the first axis, in memory; of an array that is there already, what its own indexing gives.

    Args:
        array: An array, on disk or not, [N, ...].
        which: A slice, or positions of any shape.
    """
    if not stays(array):
        return array[which]
    if isinstance(which, slice):
        found = np.array(array[which])
    else:
        order, back = np.unique(np.asarray(which), return_inverse=True)
        found = _increasing(array, order)[back.reshape(np.shape(which))]
    _release(array)
    return found


def blocks(array: Any) -> Iterator[np.ndarray]:
    """The rows of an array in order, BLOCK bytes at a time where it stays on disk, else all at once."""
    if not stays(array):
        yield np.asarray(array)
        return
    size = max(1, BLOCK // max(1, int(np.prod(array.shape[1:])) * array.dtype.itemsize))
    for start in range(0, array.shape[0], size):
        yield rows(array, slice(start, start + size))


def not_finite(array: Any) -> int:
    """Number of values that are not finite, told by smallest and largest value where there are none."""
    if 0 in array.shape or not np.issubdtype(array.dtype, np.inexact):
        return 0
    return sum(0 if np.isfinite([x.min(), x.max()]).all() else int((~np.isfinite(x)).sum()) for x in blocks(array))


def chosen(tree: Tree, which: np.ndarray) -> Tree:
    """The rows of every array at positions [M]; those of arrays on disk stay there."""
    return jax.tree.map(lambda t: Rows(t, which) if stays(t) else t[which], tree)


class Rows:
    """Some rows of an array on disk, themselves on disk.

    Args:
        array: [N, ...].
        which: Positions [M].
    """

    def __init__(self, array: Any, which: np.ndarray) -> None:
        self.array, self.which = array, which
        self.shape, self.dtype = (len(which), *array.shape[1:]), array.dtype
        self.ndim = len(self.shape)

    def __getitem__(self, which: Any) -> np.ndarray:
        return rows(self.array, self.which[which])

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        del copy
        return np.asarray(self[:], dtype)


@jax.tree_util.register_pytree_node_class
class Streamed:
    """An array on disk inside a compiled program, which calls back for its rows: a node of a tree without leaves.

    Args:
        array: [N, ...].
    """

    def __init__(self, array: Any) -> None:
        self.array = array

    def tree_flatten(self) -> tuple[tuple[()], "Streamed"]:
        """No leaves: the array is part of the program, not of its arguments."""
        return (), self

    @classmethod
    def tree_unflatten(cls, streamed: "Streamed", _: tuple[()]) -> "Streamed":
        """The same node."""
        return streamed

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Streamed) and other.array is self.array

    def __hash__(self) -> int:
        return id(self.array)

    def __call__(self, which: Any) -> np.ndarray:
        """Rows at positions of any shape, in the type that JAX gives such an array."""
        return np.asarray(rows(self.array, np.asarray(which)), jax.dtypes.canonicalize_dtype(self.array.dtype))

    def __repr__(self) -> str:
        """With a hash of the numbers: programs that read other numbers are other programs."""
        digest = hashlib.sha256(f"{self.array.dtype}{tuple(self.array.shape)}".encode())
        for part in blocks(self.array):
            digest.update(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)
        return f"Streamed({digest.hexdigest()})"


def streamed(tree: Tree) -> Tree:
    """A tree with its arrays on disk as nodes that a compiled program reads."""
    return jax.tree.map(lambda leaf: Streamed(leaf) if stays(leaf) else leaf, tree)


def any_streamed(tree: Tree) -> bool:
    """Whether an array of a tree inside a compiled program is on disk."""
    return any(isinstance(leaf, Streamed) for leaf in jax.tree.leaves(tree, is_leaf=_is_streamed))


def read(tree: Tree, which: jax.Array) -> Tree:
    """Within a compiled program: a tree whose arrays on disk are replaced by their rows at positions; others stay."""
    return jax.tree.map(lambda leaf: _called(leaf, which) if _is_streamed(leaf) else leaf, tree, is_leaf=_is_streamed)


def at(tree: Tree, which: jax.Array) -> Tree:
    """Within a compiled program: the rows of every array at positions."""
    return jax.tree.map(
        lambda leaf: _called(leaf, which) if _is_streamed(leaf) else leaf[which], tree, is_leaf=_is_streamed
    )


def _called(leaf: Streamed, which: jax.Array) -> jax.Array:
    dtype = jax.dtypes.canonicalize_dtype(leaf.array.dtype)
    shape = jax.ShapeDtypeStruct((*which.shape, *leaf.array.shape[1:]), dtype)
    return jax.pure_callback(leaf, shape, which, vmap_method="expand_dims")


def _is_streamed(leaf: Any) -> bool:
    return isinstance(leaf, Streamed)


def _increasing(array: Any, order: np.ndarray) -> np.ndarray:
    """Rows at increasing positions; what knows slices only is asked for runs of neighbours."""
    if isinstance(array, np.memmap | Rows):
        return np.array(array[order])
    if hasattr(array, "oindex"):  # zarr: one look at every chunk
        return np.asarray(array.oindex[order])
    runs = np.split(order, np.flatnonzero(np.diff(order) != 1) + 1)
    parts = [np.asarray(array[int(run[0]) : int(run[-1]) + 1]) for run in runs if len(run)]
    return np.concatenate(parts) if parts else np.zeros((0, *array.shape[1:]), array.dtype)


def _release(array: Any) -> None:
    """Give back the memory of a map's pages; changes that exist only there (mode "c") are kept."""
    held = getattr(array, "_mmap", None)
    if held is not None and getattr(array, "mode", "c") != "c" and hasattr(mmap, "MADV_DONTNEED"):
        held.madvise(mmap.MADV_DONTNEED)
