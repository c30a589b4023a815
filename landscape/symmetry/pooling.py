"""Units of all branches as one population: where a branch is a sum over its units, these change places across branches.

Branches of one hidden layer are the case. Their one symmetry then covers every parameter but biases of the last layer,
which only add up.
"""

from collections.abc import Sequence

import numpy as np

from landscape.symmetry.blocks import Blocks, Symmetry, generators
from landscape.symmetry.probes import Branch, Probe
from landscape.symmetry.symmetries import Symmetries

Array = np.ndarray


def pools(branch: Branch, symmetries: Symmetries, *, seed: int = 0) -> bool:
    """Whether the sum of two branches stays as it is when units change places between them, on random numbers.

    Args:
        branch: The branch.
        symmetries: Those of one branch.
        seed: Of the random numbers.
    """
    blocks = [block for block, _ in symmetries.found[0].members] if symmetries.found else []
    if len(symmetries.found) != 1 or symmetries.found[0].within or len(set(blocks)) < len(blocks):
        return False
    rng, (symmetry,), layout = np.random.default_rng(seed), symmetries.found, symmetries.layout
    probe = Probe(branch, rng, count=2)
    both = [np.stack(pair) for pair in zip(*map(layout.explode, probe.params), strict=True)]
    units = pooled(both, symmetry)
    for order in generators(rng, 2 * symmetry.size):
        moved = apart([unit[order] for unit in units], both, symmetry)
        if probe.change([layout.assemble([b[k] for b in moved]) for k in range(2)]) > branch.tolerance:
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
