"""The grid loop: sums over n of ℓ(f(w(a, b); x_n), y_n) at every point of a grid, in tiles that fit the cache.

Loop order: examples -> branches -> rows -> points, so that the first layer is computed once a chunk of examples and
branches, whatever the grid. A tile has four sizes; all of them change the speed and none the result beyond rounding.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from landscape.arrays import hardware
from landscape.arrays.chunked import chunked_scan, part
from landscape.arrays.trees import Affine
from landscape.compiler import staged
from landscape.compiler.analysis import StagedBranch
from landscape.evaluation import moments
from landscape.losses import Loss
from landscape.networks import MultiBranch, Network

Tree = Any
STEPS_A_TURN = 4
"""Steps in one turn of the innermost loop, so that the sums are read and written, and the loop turned, once for them:
1,000 branches of one unit take 0.8 of the time (2 cores)."""


class Tile(NamedTuple):
    """How much of the grid's work is in hand at a time.

    Attributes:
        examples: n, examples a chunk.
        branches: Branches whose first layer is held at a time.
        step: Branches a step of the innermost loop.
        points: Points of a row a step of the innermost loop.
    """

    examples: int
    branches: int
    step: int
    points: int


def grid_sums(
    network: MultiBranch,
    losses: Sequence[Loss],
    affine: Affine,
    data: tuple[Any, jax.Array, moments.Weights],
    axes: tuple[jax.Array, jax.Array],
    reference: jax.Array,
    tile: Tile,
    like: Tree = None,
    axis: str | None = None,
) -> jax.Array:
    """`moments` over the examples given, at every grid point, for Q losses: [K, A, B].

    Args:
        network: The multi-branch network.
        losses: Q functions (outputs [n, C], y [n]) -> [n].
        affine: (o, u, v), trees [I, ...] like the network's parameters.
        data: (x [N, ...], y [N], weights and groups [N]); N a multiple of `tile.examples`.
        axes: (a [A], b [B]).
        reference: The first loss of every example at the first solution, [N].
        tile: Sizes.
        like: Shapes of the network's parameters where the trees come from `lay_out`, else None.
        axis: The mesh axis that the branches are split over; None where every device has all of them.
    """
    a, b = axes
    example = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), data[0])
    shapes = affine.origin if like is None else like
    branches = staged.stage(network, shapes, example, inference=True)
    groups = [Affine(*trees) for trees in zip(*([w for _, w in network.groups(t)] for t in affine), strict=True)]
    one = staged.outputs_of(branches)
    blocks = -(-len(a) // tile.points)
    columns = jnp.pad(a, (0, blocks * tile.points - len(a)), mode="edge").reshape(blocks, tile.points)

    def chunk(total: jax.Array, start: Any, size: int, _: None) -> tuple[jax.Array, None]:
        x, y, weights, at_first = jax.tree.map(lambda t: lax.dynamic_slice_in_dim(t, start, size), (*data, reference))
        last = jax.tree.map(lambda t: jnp.moveaxis(t, 0, -1), x)
        f = jnp.zeros((len(b), blocks, tile.points, *one.shape, size), one.dtype)
        for branch, group in zip(branches, groups, strict=True):
            loop = _BranchLoop(branch, last, columns, b, tile, prelaid=like is not None)
            f = loop.add_all(f, group)
        f = hardware.summed(f, axis)

        def weighed(before: jax.Array, g: jax.Array) -> jax.Array:
            found = moments.values(losses, network.factor * jnp.moveaxis(g, -1, 0), y)
            return moments.add(before, found, weights, at_first)

        def row(pair: tuple[jax.Array, jax.Array]) -> jax.Array:
            return jax.vmap(weighed)(pair[0], pair[1].reshape(-1, *pair[1].shape[2:]))

        return lax.map(row, (total, f)), None

    start = moments.zeros(len(losses), one.dtype)
    start = jnp.broadcast_to(start, (len(b), blocks * tile.points, *start.shape))
    total, _ = chunked_scan(chunk, start, len(reference), tile.examples)
    return total[:, : len(a)].transpose(2, 1, 0)


class _BranchLoop(NamedTuple):
    """All branches of one kind at all points of the grid, for one chunk of examples.

    Attributes:
        branch: The branch.
        x: The examples [..., n], or a tree of them.
        columns: The points of a row in blocks, [blocks, P].
        b: The rows [B].
        tile: Sizes.
        prelaid: Whether the parameters come from `lay_out`.
    """

    branch: StagedBranch
    x: Any
    columns: jax.Array
    b: jax.Array
    tile: Tile
    prelaid: bool

    def add_all(self, f: jax.Array, affine: Affine) -> jax.Array:
        """Add the outputs of all branches to f [B, blocks, P, C, n], a chunk of branches at a time."""
        count = _count(affine)
        step = min(self.tile.step, count)
        chunk = max(step, min(self.tile.branches, count) // step * step)

        def add(f: jax.Array, start: Any, size: int, _: None) -> tuple[jax.Array, None]:
            own = part(affine, start, size)
            return (self.add_chunk(f, own, step) if size % step == 0 else self.add_all(f, own)), None

        return self.add_chunk(f, affine, step) if count == chunk else chunked_scan(add, f, count, chunk)[0]

    def add_chunk(self, f: jax.Array, affine: Affine, step: int) -> jax.Array:
        """Add the outputs of a chunk, `step` branches at a time; their first layer is held for the whole grid."""
        branch, steps = self.branch, jax.tree.map(lambda t: t.reshape(t.shape[0] // step, step, *t.shape[1:]), affine)

        def precompute(affine: Affine) -> Any:
            return staged.precompute(branch, affine, self.x, self.prelaid)

        single = _count(steps) == 1
        residuals = precompute(jax.tree.map(lambda t: t[0], steps)) if single else jax.vmap(precompute)(steps)

        def row(inputs: tuple[jax.Array, jax.Array]) -> jax.Array:
            before, b_j = inputs
            held = staged.at_row(residuals, b_j)

            def block(inputs: tuple[jax.Array, jax.Array]) -> jax.Array:
                total, a = inputs
                return total + _at_points(branch, held, a) if single else _add_steps(branch, held, a, total)

            return lax.map(block, (before, self.columns))

        return lax.map(row, (f, self.b))


def _add_steps(branch: StagedBranch, held: Any, a: jax.Array, total: jax.Array) -> jax.Array:
    """Add the outputs of all steps, several a turn of the loop, so that the sum is read and written once for them."""
    count = _count(held)

    def add(i: Any, g: jax.Array, several: int = STEPS_A_TURN) -> jax.Array:
        for k in range(several):
            h = jax.tree.map(lambda t, k=k: lax.dynamic_index_in_dim(t, several * i + k, keepdims=False), held)
            g = g + _at_points(branch, h, a)
        return g

    total = lax.fori_loop(0, count // STEPS_A_TURN, add, total)
    rest = count % STEPS_A_TURN
    return lax.fori_loop(count - rest, count, lambda i, g: add(i, g, 1), total) if rest else total


def _at_points(branch: StagedBranch, held: Any, a: jax.Array) -> jax.Array:
    """Outputs [P, C, n] at the points a [P] of one row."""
    if len(a) == 1:
        return staged.at_point(branch, held, a[0])[None]
    return jax.vmap(lambda one: staged.at_point(branch, held, one))(a)


def _count(tree: Tree) -> int:
    return jax.tree.leaves(tree)[0].shape[0]


def lay_out(network: MultiBranch, params: Tree, example: Any) -> Tree:
    """Parameters with the weights of every branch's first layer laid out once, for `grid_sums(..., like=shapes)`."""
    branches = staged.stage(network, params, example, inference=True)
    laid = [staged.lay_out(r, w) for r, (_, w) in zip(branches, network.groups(params), strict=True)]
    return laid[0] if isinstance(network.branch, Network) else tuple(laid)
