"""What a surface is said to cost: against what is compiled, and how it grows."""

import jax
import jax.numpy as jnp
import pytest
import seeds

import landscape as ls
from landscape import networks
from landscape.arrays import trees
from landscape.evaluation import cost_model
from landscape.evaluation.block import block_sums
from landscape.evaluation.grid_loop import Tile
from landscape.evaluation.moments import Weights
from landscape.networks import MultiBranch

GIB = 2**30


def shapes(network: MultiBranch):
    return jax.eval_shape(network.init, jax.random.key(0))


def plan(network: MultiBranch, inputs: int, examples: int, points=(25, 20), memory=GIB, **options):
    example = jax.ShapeDtypeStruct((inputs,), jnp.float32)
    sizes = {"examples": examples, "points": points, "memory": memory}
    return cost_model.plan(network, shapes(network), example, **sizes, **options)


def lowered(network: MultiBranch, inputs: int, outputs: int, examples: int, tile: Tile, points=(25, 20)):
    """The evaluator for one device, not yet compiled."""
    label = jnp.float32 if outputs == 1 else jnp.int32
    count = -(-examples // tile.examples) * tile.examples
    kinds = ((count, inputs), jnp.float32), ((count,), label), ((count,), jnp.float32), ((count,), jnp.int32)
    x, y, weight, group = (jax.ShapeDtypeStruct(*kind) for kind in kinds)
    data = x, y, Weights(weight, group)
    axes = tuple(jax.ShapeDtypeStruct((n,), jnp.float32) for n in points)
    auto = (jax.sharding.AxisType.Auto,) * 2
    mesh = jax.make_mesh((1, 1), ("points", "examples"), axis_types=auto, devices=jax.local_devices()[:1])
    loss = ls.losses.hinge if outputs == 1 else ls.losses.multiclass_hinge
    options = {"network": network, "losses": (loss,), "tile": tile, "mesh": mesh}
    return block_sums.lower(trees.Affine(*(shapes(network),) * 3), data, axes, weight, **options)


def temporary(*args, **options) -> int:
    return lowered(*args, **options).compile().memory_analysis().temp_size_in_bytes


CASES = {
    "units": (MultiBranch(networks.relu_branch(10), 1000, average=False), 10, 1, 1000),
    "8": (MultiBranch(networks.relu_branch(784, 8, 10), 100), 784, 10, 2000),
    "8-8-8": (MultiBranch(networks.mlp_branch((784, 8, 8, 8, 10)), 300), 784, 10, 500),
}


@pytest.mark.parametrize("name", CASES)
def test_the_bytes_planned_are_those_compiled(name: str) -> None:
    points = (51, 51)
    network, inputs, _, examples = CASES[name]
    planned = plan(network, inputs, examples, points)
    weights = 3 * trees.nbytes(shapes(CASES[name][0]))
    assert planned.nbytes == planned.temporary + weights
    assert 0.8 <= planned.nbytes / (temporary(*CASES[name], planned.tile, points) + weights) <= 1.2


@pytest.mark.parametrize("units", [False, True])
def test_memory_stays_flat_in_branches_and_examples(units: bool) -> None:
    branch = networks.relu_branch(10) if units else networks.mlp_branch((10, 8, 8, 3))
    outputs = 1 if units else 3
    tile = plan(MultiBranch(branch, 2000), 10, 4096).tile
    assert plan(MultiBranch(branch, 16000), 10, 4096).tile == tile
    assert plan(MultiBranch(branch, 2000), 10, 65536).tile.examples <= 1.5 * tile.examples
    sizes = [(2000, 4096), (16000, 4096), (2000, 65536), (tile.branches, 4096)]
    base, *others = (temporary(MultiBranch(branch, i), 10, outputs, n, tile) for i, n in sizes)
    assert all(t <= 1.02 * base + 4096 for t in others), (base, others)


def test_a_thousand_branches_need_less_than_one_solution_and_a_chunk() -> None:
    network, tile = MultiBranch(networks.mlp_branch((784, 8, 8, 8, 10)), 1000), Tile(64, 50, 50, 1)
    chunk = 64 * (5 * 50 * 8 + 2 * 5 * 4 * 10) * 4 + 50 * 4 * trees.nbytes(shapes(network)) // 1000
    assert temporary(network, 784, 10, 128, tile, points=(5, 4)) < chunk < trees.nbytes(shapes(network))
    small = MultiBranch(networks.relu_branch(10), 1000, average=False)
    chunk = 64 * (5 * 50 + 2 * 5 * 4) * 4 + 50 * 4 * 11 * 4
    assert temporary(small, 10, 1, 128, tile, points=(5, 4)) < trees.nbytes(shapes(small)) + chunk


def test_the_number_of_operations_does_not_grow() -> None:
    def lines(branches: int, examples: int, points: tuple[int, int]) -> int:
        network = MultiBranch(networks.mlp_branch((10, 4, 4, 3), bias=True), branches)
        return len(lowered(network, 10, 3, examples, Tile(64, 50, 50, 1), points).as_text().splitlines())

    assert len({lines(*s) for s in [(1000, 128, (5, 4)), (4000, 128, (5, 4)), (1000, 1024, (25, 24))]}) == 1


def test_a_grid_point_costs_the_same_whatever_the_inputs() -> None:
    small, large = (
        cost_model.costs(network, shapes(network), jax.ShapeDtypeStruct((d,), jnp.float32))[0]
        for d in (784, 3072)
        for network in [MultiBranch(networks.mlp_branch((d, 8, 8, 8, 10), bias=True), 10)]
    )
    assert (small.point, small.held, small.late, small.weights) == (large.point, large.held, large.late, large.weights)
    assert 48 <= (large.once - small.once) / (3072 - 784) < 52  # three products of 8 units, and moving the example
    assert small.held == 8
    assert small.point >= 2 * (8 * 8 + 8 * 8 + 8 * 10)


def test_operations_are_linear_in_branches_examples_and_points() -> None:
    network = MultiBranch(networks.relu_branch(10, 8, 10), 100)
    base = plan(network, 10, 2000).operations
    assert plan(network, 10, 6000).operations == 3 * base
    assert plan(MultiBranch(network.branch, 300), 10, 2000).operations == 3 * base
    one, two, three = (plan(network, 10, 2000, points=(k * 10, 10)).operations for k in (1, 2, 3))
    assert three - two == two - one > 0


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
def test_less_memory_gives_smaller_tiles_until_nothing_fits(platform: str) -> None:
    network = MultiBranch(networks.mlp_branch((784, 8, 8, 8, 10)), 300)
    tiles = []
    for memory in (2**26, 2**28, 2**31, 2**35):
        found = plan(network, 784, 60_000, memory=memory, platform=platform)
        assert found.nbytes <= memory
        assert min(found.tile) >= 1
        assert found.tile.step <= found.tile.branches <= 300
        tiles.append(found.tile.examples * found.tile.branches)
    assert tiles == sorted(tiles)
    with pytest.raises(ValueError, match=r"needs 0\.0\d GiB.*0\.01 GiB are allowed(.|\n)*Raise --memory"):
        plan(network, 784, 60_000, memory=2**23, platform=platform)


def test_devices_share_the_examples_with_little_padding() -> None:
    network = MultiBranch(networks.relu_branch(784, 8, 10), 100)
    for examples in seeds.generator().integers(1, 5000, 20).tolist():
        for devices in (1, 2, 4):
            tile = plan(network, 784, examples, devices=devices).tile
            share = -(-examples // devices)
            padded = -(-share // tile.examples) * tile.examples
            assert padded - share < 16 * -(-share // tile.examples) + 1


def test_halving_ends_at_the_smallest_tile() -> None:
    tile = Tile(1000, 300, 80, 25)
    for _ in range(30):
        less = cost_model.smaller(tile)
        assert all(a <= b for a, b in zip(less, tile, strict=True))
        assert less.step <= less.branches
        tile = less
    assert (tile.examples, tile.branches, tile.step) == (8, 1, 1)


def test_the_largest_cell_of_figure_4_has_a_plan_and_is_refused_where_it_does_not_fit() -> None:
    network = MultiBranch(networks.mlp_branch((3072, 8, 8, 8, 10), summed_over=50_000), 50_000, average=False)
    assert round(trees.size(shapes(network)) / 1e9, 2) == 1.24
    found = plan(network, 3072, 50_000, (51, 51), 40 * GIB)
    assert 3 * trees.nbytes(shapes(network)) < found.nbytes < 40 * GIB
    assert found.temporary < trees.nbytes(shapes(network))
    with pytest.raises(ValueError, match=r"needs 1[3-9]\.\d+ GiB.*8\.00 GiB are allowed"):
        plan(network, 3072, 50_000, (51, 51), 8 * GIB)
