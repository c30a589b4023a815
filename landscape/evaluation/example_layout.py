"""How the examples of a surface are shared out: over blocks, devices and threads, in which order, in which groups."""

import math
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from landscape.arrays import hardware, trees
from landscape.evaluation import cost_model, moments
from landscape.evaluation.execution import Execution
from landscape.problem import Problem

OPERATIONS_A_BLOCK = {"cpu": 1e11, "gpu": 2e13, "tpu": 2e13}
"""Aim for one block of work on one device: a second or a few; how much is lost by an interruption."""
ORDER_SEED = 0
"""Seed of the random order of the examples, recorded with every surface that stops at a tolerance."""
BLOCKS_AT_LEAST = 50
"""Blocks that the examples are divided into at least, where there are as many chunks, to stop at a tolerance."""
WORTH_THREADS = 1e9
"""Operations below which one thread is as fast as one a core."""
SHARE_OF_EXAMPLES = 8
"""A block of examples takes at most the memory divided by this."""


class ExampleLayout(NamedTuple):
    """How the examples are split into blocks, and each block over the devices or threads that share the examples.

    Attributes:
        mesh: Axes "points", "examples" and "branches".
        blocks: Number of blocks.
        block: Examples of a block; the last block is padded.
        threads: Threads of a single device that share the examples, and the points.
        group: The group of every example in the order in which they are taken, [N].
        order: Their positions in that order, [N]; their own order when None.
    """

    mesh: Mesh
    blocks: int
    block: int
    threads: tuple[int, int]
    group: np.ndarray
    order: np.ndarray | None

    def over(self, axis: str) -> NamedSharding:
        """Values whose first axis is split along an axis of the mesh."""
        return NamedSharding(self.mesh, P(axis))

    @property
    def sharing_examples(self) -> int:
        """Devices and threads that share the examples."""
        return self.mesh.shape["examples"] * self.threads[0]

    @property
    def sharing_points(self) -> int:
        """Devices and threads that share the points."""
        return self.mesh.shape["points"] * self.threads[1]


def layout_for(
    problem: Problem, plan: cost_model.Plan, execution: Execution, planes: int, whole: bool = False
) -> ExampleLayout:
    """The layout of the examples for R planes at a time.

    Args:
        problem: The data.
        plan: Of one of the surfaces.
        execution: How to run.
        planes: R.
        whole: Take all examples as one block.
    """
    operations = max(planes * plan.operations / plan.branch_shards, 1)
    threaded = operations >= WORTH_THREADS or execution.threads
    workers = (execution.workers if threaded else len(execution.devices)) // plan.branch_shards
    chunks = -(-len(problem.data) // plan.tile.examples)
    sharing = max(d for d in range(1, workers + 1) if workers % d == 0 and d <= chunks)
    both = sharing, workers // sharing
    on_devices, in_threads = (both, (1, 1)) if len(execution.devices) > 1 else ((1, 1), both)
    mesh = hardware.mesh(execution.devices, points=on_devices[1], examples=on_devices[0], branches=plan.branch_shards)
    aim = math.inf if whole else OPERATIONS_A_BLOCK.get(execution.platform, 1e11) * chunks / operations
    if not whole:
        one = SHARE_OF_EXAMPLES * trees.nbytes(problem.data.example) * plan.tile.examples * sharing
        aim = max(1, min(aim, execution.budget // one))
    if execution.tolerance is not None:
        aim = min(aim, max(1, len(problem.data) // (BLOCKS_AT_LEAST * sharing * plan.tile.examples)))
    blocks = -(-chunks // (sharing * max(1, int(min(aim, chunks)))))
    each = -(-chunks // (sharing * blocks))
    order = None if execution.tolerance is None else random_order(len(problem.data))
    group = groups(order, len(problem.data))
    return ExampleLayout(mesh, blocks, each * sharing * plan.tile.examples, in_threads, group, order)


def random_order(examples: int) -> np.ndarray:
    """A fixed random order of N examples, [N]."""
    return np.random.default_rng(ORDER_SEED).permutation(examples)


def groups(order: np.ndarray | None, examples: int) -> np.ndarray:
    """The group of every example in a random order or their own, [N]: groups of equal size, drawn at random."""
    if order is not None:
        return np.arange(examples, dtype=np.int32) % moments.GROUPS
    return (random_order(examples) % moments.GROUPS).astype(np.int32)
