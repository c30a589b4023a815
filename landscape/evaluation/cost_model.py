"""What a surface costs in operations and bytes, counted before anything runs, and the tile that follows from it."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from landscape.arrays import trees
from landscape.arrays.hardware import GIB, cache_bytes
from landscape.compiler import staged
from landscape.compiler.analysis import Cost
from landscape.evaluation.grid_loop import Tile
from landscape.networks import MultiBranch

Tree = Any
Kinds = Sequence[tuple[int, Cost]]
"""Number of branches of every kind, and the cost of one."""

VALUES_A_STEP = 800
"""Hidden values of one example that a step of the grid loop should hold on a CPU: enough to keep its product busy."""
UNITS_A_CHUNK = 1024
"""Most branches of one unit whose first layer is held at a time on a CPU: more are no faster and only cost memory."""
ROW_BYTES, ROW_EXAMPLES = 6_600, 32
"""Sums of a row of points, where each branch is one unit: from about 8,000 bytes on XLA splits each step over threads
of the CPU, and it takes more than twice as long. So many examples at least, and several parts of a row instead."""
LANES_ON_CPU = (64, 1024)
"""Smallest and largest number of examples in a chunk on a CPU."""


class Plan(NamedTuple):
    """A tile with its price.

    Attributes:
        tile: The sizes.
        operations: Floating-point operations of the whole surface.
        nbytes: Bytes on each device, the three trees of parameters included.
        temporary: Bytes on each device beside the parameters.
        branch_shards: Devices that the branches of every solution are split over.
    """

    tile: Tile
    operations: float
    nbytes: int
    temporary: int
    branch_shards: int = 1


def costs(network: MultiBranch, params: Tree, example: Any) -> list[Cost]:
    """The cost of one branch of every kind, from shapes alone."""
    return [branch.cost for branch in staged.stage(network, params, example, inference=True)]


def forward_operations(network: MultiBranch, params: Tree, example: Any) -> int:
    """Operations of the whole network on one example."""
    return sum(n * cost.forward for n, cost in zip(network.counts, costs(network, params, example), strict=True))


def plan(
    network: MultiBranch,
    params: Tree,
    example: Any,
    *,
    examples: int,
    points: tuple[int, int],
    memory: int,
    devices: int = 1,
    platform: str = "cpu",
) -> Plan:
    """Choose a tile: on a CPU it fills the second-level cache, elsewhere a quarter of the memory.

    Args:
        network: The network.
        params: Its parameters [I, ...], or their shapes.
        example: Shape and type of one example, or a tree of them.
        examples: N.
        points: (A, B).
        memory: Bytes allowed on each device.
        devices: Devices that share the examples.
        platform: "cpu", "gpu" or "tpu".

    Raises:
        ValueError: Even the smallest tile does not fit the memory.
    """
    branches = staged.stage(network, params, example, inference=True)
    found = [(n, branch.cost) for n, branch in zip(network.counts, branches, strict=True)]
    outputs = math.prod(staged.outputs_of(branches).shape)
    share = -(-examples // devices)
    sizes = (outputs, points, trees.size(example), staged.outputs_of(branches).dtype.itemsize)
    choose = _cpu_tile if platform == "cpu" else _accelerator_tile
    tile = choose(found, share, sizes, memory)
    fixed = 3 * trees.nbytes(params)
    while (temporary := _bytes(tile, found, sizes)) + fixed > memory and (tile.examples > 8 or tile.branches > 1):
        tile = smaller(tile)
    if temporary + fixed > memory:
        raise ValueError(
            f"This surface needs {(temporary + fixed) / GIB:.2f} GiB on each device ({fixed / GIB:.2f} GiB for three "
            f"sets of parameters); {memory / GIB:.2f} GiB are allowed.\n"
            "  Raise --memory, or take fewer points or branches."
        )
    grid = math.prod(points)
    operations = examples * sum(n * (c.once + c.point * grid) for n, c in found)
    return Plan(tile, operations, temporary + fixed, temporary)


def smaller(tile: Tile) -> Tile:
    """The next smaller tile: half the examples, or half the branches when there are few examples."""
    if tile.examples > 64 or tile.branches == 1:
        return tile._replace(examples=max(8, tile.examples // 2))
    branches = max(1, tile.branches // 2)
    return tile._replace(branches=branches, step=min(tile.step, branches))


def _bytes(tile: Tile, found: Kinds, sizes: tuple[int, tuple[int, int], int, int]) -> int:
    outputs, (a, b), inputs, item = sizes
    n, padded = tile.examples, -(-a // tile.points) * tile.points
    sliced = len(found) > 1 or any(count > tile.branches for count, _ in found)
    grid = (1 + sliced) * padded * b * outputs * n
    branch = max(
        # triples and rows of the values with examples (held once more where a step takes several branches, measured),
        # weights of the chunk three times laid out, values at the points
        min(tile.branches, count) * ((4 + (tile.step > 1)) * c.held * n + 5 * c.weights + 4 * sliced * c.parameters)
        + tile.points * min(tile.step, count) * (2 * c.late * n + c.weights)
        for count, c in found
    )
    return item * (grid + branch + 3 * inputs * n + 4 * a * b)


def _cpu_tile(found: Kinds, share: int, sizes: tuple[int, tuple[int, int], int, int], memory: int) -> Tile:
    outputs, (a, _), _, item = sizes
    values = max(max(c.held, c.late) for _, c in found)
    branches = max(count for count, _ in found)
    if outputs == 1 and all(c.reduction == 1 for _, c in found):
        # One unit a branch: a step takes one branch and as much of a row of points as can be.
        points = math.ceil(a / math.ceil(a * item * ROW_EXAMPLES / ROW_BYTES))
        n = _even(share, max(ROW_EXAMPLES, ROW_BYTES // (item * points) // 16 * 16))
        most = min(UNITS_A_CHUNK, max(1, memory // (8 * 5 * item * values * n)))
        return Tile(n, math.ceil(branches / math.ceil(branches / most)), 1, points)
    step = min(branches, max(1, VALUES_A_STEP // values))
    n = cache_bytes() // (5 * item * step * values)
    return Tile(_even(share, min(max(n, LANES_ON_CPU[0]), LANES_ON_CPU[1])), step, step, 1)


def _accelerator_tile(found: Kinds, share: int, sizes: tuple[int, tuple[int, int], int, int], memory: int) -> Tile:
    outputs, (a, b), _, item = sizes
    values = max(max(c.held, c.late) for _, c in found)
    n = _even(share, max(128, memory // (16 * item * a * b * outputs)))
    step = min(max(count for count, _ in found), max(1, memory // (8 * item * 5 * values * n)))
    points = min(a, max(1, 2**26 // (item * step * values * n)))
    return Tile(n, step, step, points)


def _even(share: int, most: int) -> int:
    """At most about `most` examples, a multiple of 16, that divides the share with little padding."""
    each = math.ceil(share / math.ceil(share / most))
    return 16 * math.ceil(each / 16)
