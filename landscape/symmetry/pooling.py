"""Units of all branches as one population: where a branch is a sum over its units, these change places across branches.

Branches of one hidden layer are the case. Their one symmetry then covers every parameter but biases of the last layer,
which only add up.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from landscape.symmetry.blocks import Blocks, Symmetry, generators
from landscape.symmetry.probes import Probe, Wide, inputs
from landscape.symmetry.symmetries import One, Symmetries

Params = Any
Array = np.ndarray


def pools(one: One, params: Params, x: Any, symmetries: Symmetries, *, seed: int = 0) -> bool:
    """Whether the sum of two branches stays as it is when units change places between them, on random numbers.

    Args:
        one: A branch on one example.
        params: Its parameters.
        x: A few examples [N, ...].
        symmetries: Those of one branch.
        seed: Of the random numbers.
    """
    blocks = [block for block, _ in symmetries.found[0].members] if symmetries.found else []
    if len(symmetries.found) != 1 or symmetries.found[0].within or len(set(blocks)) < len(blocks):
        return False
    rng, (symmetry,) = np.random.default_rng(seed), symmetries.found
    two, x = jax.tree.map(lambda leaf: np.stack([leaf] * 2), params), inputs(x, rng)
    total = Wide(lambda w, x: jax.vmap(jax.vmap(one, (None, 0)), (0, None))(w, x).sum(0), two, x)
    probe = Probe(total, two, x, rng)
    exploded = symmetries.layout.explode(probe.params, 1)
    units = pooled(exploded, symmetry)
    for order in generators(rng, 2 * symmetry.size):
        moved = apart([unit[order] for unit in units], exploded, symmetry)
        if probe.change(symmetries.layout.assemble(moved, 1)) > probe.tolerance:
            return False
    return True


def pooled(blocks: Sequence[Array], symmetry: Symmetry) -> Blocks:
    """The parameters of every unit of every branch: [I·n, ...] for every member."""
    moved = [np.moveaxis(blocks[b], axis + 1, 1) for b, axis in symmetry.members]
    return [unit.reshape(-1, *unit.shape[2:]) for unit in moved]


def apart(units: Sequence[Array], blocks: Sequence[Array], symmetry: Symmetry) -> Blocks:
    """Blocks [I, ...] made of these units, in order; what belongs to no unit stays as `blocks` have it."""
    made = list(blocks)
    for (b, axis), unit in zip(symmetry.members, units, strict=True):
        made[b] = np.moveaxis(unit.reshape(-1, symmetry.size, *unit.shape[1:]), 1, axis + 1)
    return made
