"""What a surface costs in operations and bytes, counted before anything runs, and the tile that follows from it."""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import jax
from jax.extend import core as jcore

from landscape.arrays import trees
from landscape.arrays.hardware import GIB, cache_bytes
from landscape.compiler import staged
from landscape.evaluation.grid_loop import Tile
from landscape.networks import MultiBranch
from landscape.problem import stage

Tree = Any

VALUES_A_STEP = 800
"""Hidden values of one example that a step of the grid loop should hold on a CPU: enough to keep its product busy."""
UNITS_A_CHUNK = 1024
"""Most branches of one unit whose first layer is held at a time on a CPU: more are no faster and only cost memory."""
ROW_BYTES, ROW_EXAMPLES = 6_600, 32
"""Sums of a row of points, where each branch is one unit: from about 8,000 bytes on XLA splits each step over threads
of the CPU, and it takes more than twice as long. So many examples at least, and several parts of a row instead."""
LANES_ON_CPU = (64, 1024)
"""Smallest and largest number of examples in a chunk on a CPU."""


class Cost(NamedTuple):
    """Costs of one kind of branch, each for one branch and one example; what all examples share is not counted.

    Attributes:
        count: Branches of this kind.
        once: Operations before the grid, first layer included.
        point: Operations at each grid point.
        held: Values kept for the whole grid, to be multiplied by three on a plane.
        late: Largest intermediate value at a point.
        weights: Parameters kept laid out for the later layers, per branch only.
        parameters: All parameters of a branch.
        reduction: Hidden values that the last product sums over.
    """

    count: int
    once: int
    point: int
    held: int
    late: int
    weights: int
    parameters: int
    reduction: int


class Plan(NamedTuple):
    """A tile with its price.

    Attributes:
        tile: The sizes.
        operations: Floating-point operations of the whole surface.
        nbytes: Bytes on each device, the three trees of parameters included.
        temporary: Bytes on each device beside the parameters.
        share: Devices that the branches of every solution are split over.
    """

    tile: Tile
    operations: float
    nbytes: int
    temporary: int
    share: int = 1


def costs(network: MultiBranch, params: Tree, example: Any) -> list[Cost]:
    """The costs of every kind of branch, from shapes alone."""
    return list(_counted(network, trees.Signature.of(params), example)[0])


@lru_cache(64)
def _counted(network: MultiBranch, signature: trees.Signature, example: Any) -> tuple[tuple[Cost, ...], int]:
    """Costs and C, traced once a network and not once a surface."""
    params = signature.tree()
    branches = stage(network, params, example, values_only=True)
    groups = zip(branches, network.counts, network.groups(params), strict=True)
    found = tuple(_cost(r, n, w) for r, n, (_, w) in groups)
    one = jax.ShapeDtypeStruct((1, *example.shape), example.dtype)
    return found, jax.eval_shape(network.apply, params, one).shape[-1]


def _cost(restriction: staged.Restriction, count: int, params: Tree) -> Cost:
    late = set(restriction.late)
    operations = [_operations(e) * restriction.axes(e.outvars[0]).example for e in restriction.equations]
    affine = [restriction.facts[e.outvars[0]].stage == staged.AFFINE for e in restriction.equations]
    operands = [restriction.equations[i].invars[j] for i, j in restriction.cuts]
    cut = {v for v in operands if not isinstance(v, jcore.Literal)}
    kept, held = sum(map(_size, cut)), sum(_size(v) for v in cut if restriction.axes(v).example)
    last = [restriction.equations[i] for i in late if i in restriction.products and restriction.products[i].folds]
    return Cost(
        count,
        sum(n * (3 if a else 1) for i, (n, a) in enumerate(zip(operations, affine, strict=True)) if i not in late),
        sum(operations[i] for i in late) + 2 * held,
        held,
        max((_size(v) for i in late for v in restriction.equations[i].outvars), default=1),
        kept - held,
        trees.size(params) // count,
        _contracted(last[-1]) if last else 0,
    )


def _size(variable: Any) -> int:
    return math.prod(variable.aval.shape)


def _contracted(e: Any) -> int:
    (left, _), _ = e.params["dimension_numbers"]
    return math.prod(e.invars[0].aval.shape[d] for d in left)


def _operations(e: Any) -> int:
    size = sum(map(_size, e.outvars))
    if e.primitive.name == "dot_general":
        return 2 * size * _contracted(e)
    if e.primitive.name == "conv_general_dilated":
        kernel = e.invars[1].aval
        return 2 * size * kernel.size // kernel.shape[e.params["dimension_numbers"].rhs_spec[0]]
    if e.primitive.name == "scan":
        return e.params["length"] * sum(_operations(inner) for inner in e.params["jaxpr"].jaxpr.eqns)
    return size


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
        example: Shape and type of one example.
        examples: N.
        points: (A, B).
        memory: Bytes allowed on each device.
        devices: Devices that share the examples.
        platform: "cpu", "gpu" or "tpu".

    Raises:
        ValueError: Even the smallest tile does not fit the memory.
    """
    found, outputs = _counted(network, trees.Signature.of(params), example)
    share = -(-examples // devices)
    sizes = (outputs, points, math.prod(example.shape), example.dtype.itemsize)
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
    operations = examples * sum(c.count * (c.once + c.point * grid) for c in found)
    return Plan(tile, operations, temporary + fixed, temporary)


def smaller(tile: Tile) -> Tile:
    """The next smaller tile: half the examples, or half the branches when there are few examples."""
    if tile.examples > 64 or tile.branches == 1:
        return tile._replace(examples=max(8, tile.examples // 2))
    branches = max(1, tile.branches // 2)
    return tile._replace(branches=branches, step=min(tile.step, branches))


def _bytes(tile: Tile, found: Sequence[Cost], sizes: tuple[int, tuple[int, int], int, int]) -> int:
    outputs, (a, b), inputs, item = sizes
    n, padded = tile.examples, -(-a // tile.points) * tile.points
    sliced = len(found) > 1 or any(c.count > tile.branches for c in found)
    grid = (1 + sliced) * padded * b * outputs * n
    branch = max(
        # triples and rows of the values with examples (held once more where a step takes several branches, measured),
        # weights of the chunk three times laid out, values at the points
        min(tile.branches, c.count) * ((4 + (tile.step > 1)) * c.held * n + 5 * c.weights + 4 * sliced * c.parameters)
        + tile.points * min(tile.step, c.count) * (2 * c.late * n + c.weights)
        for c in found
    )
    return item * (grid + branch + 3 * inputs * n + 4 * a * b)


def _cpu_tile(found: Sequence[Cost], share: int, sizes: tuple[int, tuple[int, int], int, int], memory: int) -> Tile:
    outputs, (a, _), _, item = sizes
    values = max(max(c.held, c.late) for c in found)
    branches = max(c.count for c in found)
    if outputs == 1 and all(c.reduction == 1 for c in found):
        # One unit a branch: a step takes one branch and as much of a row of points as can be.
        points = math.ceil(a / math.ceil(a * item * ROW_EXAMPLES / ROW_BYTES))
        n = _even(share, max(ROW_EXAMPLES, ROW_BYTES // (item * points) // 16 * 16))
        most = min(UNITS_A_CHUNK, max(1, memory // (8 * 5 * item * values * n)))
        return Tile(n, math.ceil(branches / math.ceil(branches / most)), 1, points)
    step = min(branches, max(1, VALUES_A_STEP // values))
    n = cache_bytes() // (5 * item * step * values)
    return Tile(_even(share, min(max(n, LANES_ON_CPU[0]), LANES_ON_CPU[1])), step, step, 1)


def _accelerator_tile(
    found: Sequence[Cost], share: int, sizes: tuple[int, tuple[int, int], int, int], memory: int
) -> Tile:
    outputs, (a, b), _, item = sizes
    values = max(max(c.held, c.late) for c in found)
    n = _even(share, max(128, memory // (16 * item * a * b * outputs)))
    step = min(max(c.count for c in found), max(1, memory // (8 * item * 5 * values * n)))
    points = min(a, max(1, 2**26 // (item * step * values * n)))
    return Tile(n, step, step, points)


def _even(share: int, most: int) -> int:
    """At most about `most` examples, a multiple of 16, that divides the share with little padding."""
    each = math.ceil(share / math.ceil(share / most))
    return 16 * math.ceil(each / 16)
