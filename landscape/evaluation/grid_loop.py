"""The grid loop: Σ_n weight_n ℓ(f(w(a, b); x_n), y_n) at every point of a grid, in tiles that fit the cache.

Loop order: examples -> branches -> rows -> points, so that the first layer is computed once a chunk of examples and
branches, whatever the grid. A tile has four sizes; all of them change the speed and none the result beyond rounding.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from landscape.arrays import hardware
from landscape.compiler import staged
from landscape.losses import Loss
from landscape.networks import MultiBranch, Network
from landscape.problem import each, stage

Tree = Any
Staged = tuple[staged.Restriction, Callable[..., Any]]
"""A branch and the first of its stages, for parameters as they come."""
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
    triple: tuple[Tree, Tree, Tree],
    data: tuple[jax.Array, jax.Array, jax.Array],
    axes: tuple[jax.Array, jax.Array],
    tile: Tile,
    like: Tree = None,
    axis: str | None = None,
) -> jax.Array:
    """Σ weight ℓ over the examples given, at every grid point, for every loss: [Q, A, B].

    Args:
        network: The multi-branch network.
        losses: Q functions (outputs [n, C], y [n]) -> [n].
        triple: (o, u, v), trees [I, ...] like the network's parameters.
        data: (x [N, ...], y [N], weight [N]); N a multiple of `tile.examples`.
        axes: (a [A], b [B]).
        tile: Sizes.
        like: Shapes of the network's parameters where the triple comes from `lay_out`, else None.
        axis: The mesh axis that the branches are split over; None where every device has all of them.
    """
    x, y, weight = data
    a, b = axes
    shapes, laid_out = triple[0] if like is None else like, like is not None
    restrictions = stage(network, shapes, jax.ShapeDtypeStruct(x.shape[1:], x.dtype), values_only=True)
    groups = list(zip(*([w for _, w in network.groups(t)] for t in triple), strict=True))
    one = jax.eval_shape(network.apply, shapes, jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype))
    prefixes = [partial(r.prefix, laid_out=laid_out) for r in restrictions]
    blocks = -(-len(a) // tile.points)
    columns = jnp.pad(a, (0, blocks * tile.points - len(a)), mode="edge").reshape(blocks, tile.points)

    def chunk(total: jax.Array, i: jax.Array) -> tuple[jax.Array, None]:
        part = [lax.dynamic_slice_in_dim(t, i * tile.examples, tile.examples) for t in (x, y, weight)]
        f = jnp.zeros((len(b), blocks, tile.points, one.shape[-1], tile.examples), one.dtype)
        for restriction, prefix, w in zip(restrictions, prefixes, groups, strict=True):
            f = _add_branches((restriction, prefix), w, jnp.moveaxis(part[0], 0, -1), f, (columns, b), tile)

        f = hardware.summed(f, axis)

        def weighed(g: jax.Array) -> jax.Array:
            outputs = network.factor * g.T
            return jnp.stack([(part[2] * each(loss, outputs, part[1])).sum() for loss in losses], -1)

        return total + lax.map(lambda row: jax.vmap(weighed)(row.reshape(-1, *row.shape[2:])), f), None

    start = jnp.zeros((len(b), blocks * tile.points, len(losses)), one.dtype)
    total, _ = lax.scan(chunk, start, jnp.arange(x.shape[0] // tile.examples))
    return total[:, : len(a)].transpose(2, 1, 0)


def _add_branches(
    branch: Staged, triple: Any, x: jax.Array, f: jax.Array, axes: tuple[Any, Any], tile: Tile
) -> jax.Array:
    """Add the outputs of all branches of one kind to f [B, blocks, P, C, n], a chunk of branches at a time."""
    count = jax.tree.leaves(triple)[0].shape[0]
    step = min(tile.step, count)
    chunk = max(step, min(tile.branches, count) // step * step)
    whole, rest = divmod(count, chunk)

    def add(f: jax.Array, i: jax.Array) -> tuple[jax.Array, None]:
        part = jax.tree.map(lambda t: lax.dynamic_slice_in_dim(t, i * chunk, chunk), triple)
        return _add_chunk(branch, part, x, f, axes, step), None

    f = _add_chunk(branch, triple, x, f, axes, step) if count == chunk else lax.scan(add, f, jnp.arange(whole))[0]
    if not rest:
        return f
    part = jax.tree.map(lambda t: t[whole * chunk :], triple)
    return _add_branches(branch, part, x, f, axes, tile)


def _add_chunk(branch: Staged, triple: Any, x: jax.Array, f: jax.Array, axes: tuple[Any, Any], step: int) -> jax.Array:
    (restriction, prefix), (columns, b) = branch, axes
    steps = jax.tree.map(lambda t: t.reshape(-1, step, *t.shape[1:]), triple)
    single = jax.tree.leaves(steps)[0].shape[0] == 1
    cuts = prefix(jax.tree.map(lambda t: t[0], steps), x) if single else jax.vmap(prefix, (0, None))(steps, x)

    def row(inputs: tuple[jax.Array, jax.Array]) -> jax.Array:
        before, b_j = inputs
        held = restriction.row(cuts, b_j)

        def block(inputs: tuple[jax.Array, jax.Array]) -> jax.Array:
            total, a = inputs
            return total + _points(restriction, held, a) if single else _add_steps(restriction, held, a, total)

        return lax.map(block, (before, columns))

    return lax.map(row, (f, b))


def _add_steps(restriction: staged.Restriction, held: Any, a: jax.Array, total: jax.Array) -> jax.Array:
    """Add the outputs of all steps, several a turn of the loop, so that the sum is read and written once for them."""
    count = jax.tree.leaves(held)[0].shape[0]

    def add(i: Any, g: jax.Array, several: int = STEPS_A_TURN) -> jax.Array:
        for k in range(several):
            h = jax.tree.map(lambda t, k=k: lax.dynamic_index_in_dim(t, several * i + k, keepdims=False), held)
            g = g + _points(restriction, h, a)
        return g

    total = lax.fori_loop(0, count // STEPS_A_TURN, add, total)
    rest = count % STEPS_A_TURN
    return lax.fori_loop(count - rest, count, lambda i, g: add(i, g, 1), total) if rest else total


def _points(restriction: staged.Restriction, held: Any, a: jax.Array) -> jax.Array:
    """Outputs [P, C, n] at the points a [P] of one row."""
    if len(a) == 1:
        return restriction.at(held, a[0])[None]
    return jax.vmap(lambda one: restriction.at(held, one))(a)


def lay_out(network: MultiBranch, params: Tree, example: Any) -> Tree:
    """Parameters with the weights of every branch's first layer laid out once, for `grid_sums(..., like=shapes)`."""
    groups = network.groups(params)
    laid = [r.lay_out(w) for r, (_, w) in zip(stage(network, params, example, values_only=True), groups, strict=True)]
    return laid[0] if isinstance(network.branch, Network) else tuple(laid)
