"""Keras: `.weights.h5`, whose names are the paths of its groups, such as layers/dense/vars/0."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from landscape.checkpoints.contents import Contents, Leaf, Name, collected, refuse
from landscape.checkpoints.names import split
from landscape.checkpoints.npz import number_type


def contents(path: Path) -> Contents:
    """Names, shapes and types of the data sets; links to elsewhere are not followed.

    Raises:
        ValueError: It is not HDF5, or holds no arrays of its own.
    """
    import h5py

    found: list[tuple[Name, Leaf]] = []

    def visit(name: str, item: object) -> None:
        if isinstance(item, h5py.Dataset) and item.shape is not None:
            own = item.external is None and not item.is_virtual
            found.append((split(name), Leaf(item.shape, number_type(item.dtype) if own else None, name)))

    try:
        with h5py.File(path, "r") as file:
            file.visititems(visit)
    except Exception as error:  # h5py raises whatever the damage leads to
        raise refuse(path, "HDF5 as Keras writes it", error) from error
    if not found:
        raise refuse(path, "HDF5 as Keras writes it", "it holds no arrays", "Save with model.save_weights.")
    return Contents("Keras weights", collected(path, found), lambda leaves: _read(path, leaves), nested=True)


def _read(path: Path, leaves: Sequence[Leaf]) -> list[np.ndarray]:
    import h5py

    try:
        with h5py.File(path, "r") as file:
            return [np.asarray(file[leaf.key]).view(leaf.dtype or np.uint8) for leaf in leaves]
    except Exception as error:
        raise refuse(path, "HDF5 as Keras writes it", error) from error
