"""The metric of the inputs: kernels that read the examples compared by what they compute from them, ⟨X r, X p⟩ / N."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from landscape.arrays import on_disk
from landscape.symmetry.blocks import Blocks
from landscape.symmetry.symmetries import Symmetries

Measure = Callable[[Sequence[np.ndarray]], Blocks]


def of_parameters(blocks: Sequence[np.ndarray]) -> Blocks:
    """The blocks themselves: the plain inner product."""
    return list(blocks)


def of_inputs(symmetries: Symmetries, x: Any) -> Measure:
    """A function of blocks [I, ...] after which ⟨·, p⟩ is the inner product in the metric of the inputs.

    Kernels w [D, n] of dense layers that read the examples X [N, D] become Xᵀ X w / N; other blocks stay.

    Args:
        symmetries: What is known of the network.
        x: Examples [N, ...].
    """
    if not symmetries.readers:
        return of_parameters
    (leaf,) = jax.tree.leaves(x)
    size = int(np.prod(leaf.shape[1:]))
    moment = np.zeros((size, size))
    for part in on_disk.blocks(leaf):
        flat = np.asarray(part, np.float64).reshape(-1, size)
        moment += flat.T @ flat / len(leaf)

    def measured(blocks: Sequence[np.ndarray]) -> Blocks:
        found = list(blocks)
        for b, first in symmetries.readers:
            axes = range(first + 1, first + leaf.ndim)
            moved = np.moveaxis(found[b], axes, range(-len(axes), 0))
            product = (moved.reshape(-1, size) @ moment).reshape(moved.shape)
            found[b] = np.moveaxis(product, range(-len(axes), 0), axes)
        return found

    return measured
