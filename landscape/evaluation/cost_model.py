"""What a surface costs in operations and bytes, counted before anything runs, and the tile that follows from it."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

from landscape.arrays import trees
from landscape.arrays.hardware import GIB, cache_bytes
from landscape.compiler import staged
from landscape.compiler.costs import Cost
from landscape.evaluation import moments
from landscape.evaluation.grid_loop import Tile
from landscape.networks import MultiBranch

Tree = Any
Kinds = Sequence[tuple[int, Cost]]
"""Number of branches of every kind, and the cost of one."""

SUMS = moments.length(1)
"""Sums over examples held at a grid point."""
VALUES_A_STEP = 800
"""Hidden values of one example that a step of the grid loop should hold on a CPU: enough to keep its product busy."""
UNITS_A_CHUNK = 1024
"""Most branches of one unit whose first layer is held at a time on a CPU: more are no faster and only cost memory."""
ROW_BYTES, ROW_EXAMPLES = 6_600, 32
"""Sums of a row of points, where each branch is one unit: from about 8,000 bytes on XLA splits each step over threads
of the CPU, and it takes more than twice as long. So many examples at least, and several parts of a row instead."""
LANES_ON_CPU = (64, 1024)
"""Smallest and largest number of examples in a chunk on a CPU."""
USES = 256
"""How often a chunk should use every weight that it loads, on the direct route: n examples times the uses in each."""
DIRECT_ON_CPU = (8, 1024)
"""Smallest and largest number of examples in a chunk of the direct route on a CPU."""
SMALL = 100_000
"""Operations of one branch on one example below which branches and examples are worth computing side by side."""
WORTH_STAGING = 0.1
"""Share of a forward pass from which on the direct route computes the first layer once a chunk."""
ROUTES = ("lanes", "direct")


class Route(NamedTuple):
    """Which loop computes a surface.

    Attributes:
        name: "lanes", all branches and examples side by side behind a first layer that is paid once
            (`grid_loop.grid_sums`), or "direct", the forward pass as written (`direct.point_sums`).
        prefix: Whether the direct route computes the first layer once a chunk.
        why: In words.
    """

    name: str
    prefix: bool
    why: str

    def __str__(self) -> str:
        return f"{self.name}: {self.why}"


LANES = Route("lanes", False, "")


class Plan(NamedTuple):
    """A tile with its price.

    Attributes:
        tile: The sizes.
        operations: Floating-point operations of the whole surface.
        nbytes: Bytes on each device, the three trees of parameters included.
        temporary: Bytes on each device beside the parameters.
        route: Which loop.
        branch_shards: Devices that the branches of every solution are split over.
    """

    tile: Tile
    operations: float
    nbytes: int
    temporary: int
    route: Route
    branch_shards: int = 1


def costs(network: MultiBranch, params: Tree, example: Any) -> list[Cost]:
    """The cost of one branch of every kind, from shapes alone."""
    return [branch.cost for branch in staged.stage(network, params, example, inference=True)]


def forward_operations(network: MultiBranch, params: Tree, example: Any) -> int:
    """Operations of the whole network on one example."""
    return sum(n * cost.forward for n, cost in zip(network.counts, costs(network, params, example), strict=True))


def choose_route(found: Kinds, asked: str | None = None) -> Route:
    """Lanes where the first layer is most of the work or branches are small, the forward pass as written elsewhere.

    Convolutions behind the first layer go the direct way: with an axis of branches they become slow grouped ones.

    Args:
        found: The kinds of branches.
        asked: The route, if it is not to be chosen.

    Raises:
        ValueError: There is no such route.
    """
    if asked not in (None, *ROUTES):
        raise ValueError(f'route must be "lanes", "direct" or None; got {asked!r}.')
    all_of_it = sum(n * c.forward for n, c in found)
    late = sum(n * c.forward * c.late_share for n, c in found) / max(all_of_it, 1)
    convolves, largest = any(c.convolves for _, c in found), max(c.forward for _, c in found)
    direct = convolves or (late > 0.5 and largest > SMALL)
    name = asked or ROUTES[direct]
    prefix = name == "direct" and all(n == 1 for n, _ in found) and late <= 1 - WORTH_STAGING
    if asked and asked != ROUTES[direct]:
        why = "as asked"
    elif direct:
        why = f"{late:.0%} of a forward pass lies behind the first layer"
        why += ", which is computed once a chunk of examples" if prefix else ""
    elif late > 0.5:
        why = f"branches of {largest:,} operations run side by side"
    else:
        why = f"the first layer, {1 - late:.0%} of a forward pass, is computed once for all points"
    return Route(name, prefix, why)


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
    route: str | None = None,
    threads: int = 1,
) -> Plan:
    """Choose a route and a tile: on a CPU it fills the second-level cache, elsewhere a quarter of the memory.

    Args:
        network: The network.
        params: Its parameters [I, ...], or their shapes.
        example: Shape and type of one example, or a tree of them.
        examples: N.
        points: (A, B).
        memory: Bytes allowed on each device.
        devices: Devices that share the examples.
        platform: "cpu", "gpu" or "tpu".
        route: "lanes" or "direct"; chosen when None.
        threads: Threads that share the examples of each device, with temporary memory of their own.

    Raises:
        ValueError: Even the smallest tile does not fit the memory, or there is no such route.
    """
    branches = staged.stage(network, params, example, inference=True)
    found = [(n, branch.cost) for n, branch in zip(network.counts, branches, strict=True)]
    outputs = math.prod(staged.outputs_of(branches).shape)
    share = -(-examples // (devices * threads))
    sizes = (outputs, points, trees.size(example), staged.outputs_of(branches).dtype.itemsize)
    way = choose_route(found, route)
    needed = partial(_direct_bytes, prefix=way.prefix) if way.name == "direct" else _bytes
    choose = _direct_tile if way.name == "direct" else _cpu_tile if platform == "cpu" else _accelerator_tile
    tile = choose(found, share, sizes, memory if platform != "cpu" or way.name == "lanes" else 0)
    fixed = 3 * trees.nbytes(params)
    while (temporary := threads * needed(tile, found, sizes)) + fixed > memory and smaller(tile) != tile:
        tile = smaller(tile)
    if temporary + fixed > memory:
        raise ValueError(
            f"This surface needs {(temporary + fixed) / GIB:.2f} GiB on each device ({fixed / GIB:.2f} GiB for three "
            f"sets of parameters); {memory / GIB:.2f} GiB are allowed.\n"
            "  Raise --memory, or take fewer points or branches."
        )
    grid = math.prod(points)
    once = way.name == "lanes" or way.prefix
    operations = examples * sum(n * (c.once + c.point * grid if once else c.forward * grid) for n, c in found)
    return Plan(tile, operations, temporary + fixed, temporary, way)


def smaller(tile: Tile) -> Tile:
    """The next smaller tile: half the examples, or half the branches when there are few examples."""
    if tile.examples > 64 or tile.branches == 1:
        return tile._replace(examples=max(min(8, tile.examples), tile.examples // 2))
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
    return item * (grid + branch + 3 * inputs * n + SUMS * a * b)


def _direct_bytes(tile: Tile, found: Kinds, sizes: tuple[int, tuple[int, int], int, int], prefix: bool) -> int:
    """Live values of a chunk, and either w(a, b) or the triples of the first layer and the later weights."""
    _, (a, b), inputs, item = sizes
    held = sum(c.weights + 3 * c.held * tile.examples if prefix else n * c.parameters for n, c in found)
    live = max(c.live for _, c in found) * tile.examples
    return item * (tile.points * (held + live) + 2 * inputs * tile.examples + SUMS * a * b)


def _direct_tile(found: Kinds, share: int, sizes: tuple[int, tuple[int, int], int, int], memory: int) -> Tile:
    """Examples that fill the cache, or as many as make it worth loading the weights; on an accelerator (where `memory`
    is given) as many as fit, and several points where that leaves it idle."""
    item, live = sizes[-1], max(c.live for _, c in found)
    least, most = DIRECT_ON_CPU
    uses = max(math.ceil(USES * 2 * c.parameters / max(c.forward, 1)) for _, c in found)
    if not memory:
        n = max(least, min(most, max(cache_bytes() // (item * live), uses)))
        return Tile(math.ceil(share / math.ceil(share / n)), 1, 1, 1)
    n = min(share, max(uses, memory // (8 * item * live)))
    idle = 2**26 // (item * live * n) if not any(c.convolves for _, c in found) else 1
    return Tile(n, 1, 1, max(1, min(math.prod(sizes[1]), idle)))


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
    if item * step * max(c.weights for _, c in found) > cache_bytes() // 2:
        n = max(n, USES)  # The weights come from farther away.
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
