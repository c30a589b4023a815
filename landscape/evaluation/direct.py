"""The direct route: sums over n of ℓ(f(w(a, b); x_n), y_n) with the forward pass as its author wrote it.

For every point the parameters w(a, b) are formed once, then chunks of examples pass through the branches, one branch
after the other; only the sums of the losses are kept. No layout is changed: whatever JAX can run, runs, and a
convolution keeps the form in which XLA is fast. Where the affine prefix of a single network is worth it, it is computed
once a chunk of examples instead; chunks are then the outer loop and points the inner one.

One program serves every list of points and every number of examples up to the sizes for which it was compiled: a grid,
its anchors, and a block that is not full.
"""

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core as jcore

from landscape.arrays import hardware
from landscape.arrays.trees import Affine
from landscape.compiler import staged
from landscape.compiler.analysis import StagedBranch
from landscape.evaluation import moments
from landscape.evaluation.grid_loop import Tile
from landscape.losses import Loss
from landscape.networks import MultiBranch

Tree = Any


def point_sums(
    network: MultiBranch,
    losses: Sequence[Loss],
    affine: Affine,
    data: tuple[Any, jax.Array, moments.Weights, jax.Array],
    points: tuple[jax.Array, jax.Array],
    tile: Tile,
    prefix: bool = False,
    axis: str | None = None,
) -> jax.Array:
    """`moments` over the examples given, at a list of points, for Q losses: [K, P].

    The losses at the first point are the reference of the others.

    Args:
        network: The multi-branch network.
        losses: Q functions (outputs [n, C], y [n]) -> [n].
        affine: (o, u, v), trees [I, ...] like the network's parameters.
        data: (x [N, ...], y [N], weights and groups [N], chunks [1]); N a multiple of `tile.examples`, of which the
            first `chunks` · `tile.examples` are evaluated.
        points: (ab [P, 2], count [1]); P a multiple of `tile.points`. From point `count` on the sums are zero.
        tile: Sizes.
        prefix: Whether the affine prefix is computed once a chunk; for one branch of every kind.
        axis: The mesh axis that the branches are split over; None where every device has all of them.
    """
    *examples, chunks = data
    forward = _Forward.of(network, affine.origin, examples[0], tile.examples)
    ab, count = points
    groups = ab.reshape(-1, tile.points, 2)
    turns = (count[0] + tile.points - 1) // tile.points

    def chunk_of(i: Any) -> Any:
        return jax.tree.map(lambda t: lax.dynamic_slice_in_dim(t, i * tile.examples, tile.examples), examples)

    def losses_of(f: jax.Array, y: jax.Array) -> jax.Array:
        return moments.values(losses, network.factor * hardware.summed(f, axis), y)

    def together(f: Callable[[Any], Any], points: Any) -> Any:
        """f at `tile.points` points, without an axis inside f where that is one."""
        if tile.points > 1:
            return jax.vmap(f)(points)
        return jax.tree.map(lambda t: t[None], f(jax.tree.map(lambda t: t[0], points)))

    def added(sums: jax.Array, k: Any, found: jax.Array, weights: Any, reference: jax.Array) -> jax.Array:
        more = jax.vmap(lambda total, of: moments.add(total, of, weights, reference))(sums[k], found)
        return sums.at[k].set(more)

    def point(k: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        """Parameters once, all chunks."""
        w = together(affine.at, groups[k])

        def chunk(i: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            sums, first = carry
            x, y, weights = chunk_of(i)
            found = together(lambda w: losses_of(forward.outputs(w, x), y), w)
            at_first = jnp.where(k == 0, found[0, 0], lax.dynamic_slice_in_dim(first, i * tile.examples, tile.examples))
            first = lax.dynamic_update_slice_in_dim(first, at_first, i * tile.examples, 0)
            return added(sums, k, found, weights, at_first), first

        return lax.fori_loop(0, chunks[0], chunk, carry)

    def chunk_at_all_points(i: jax.Array, sums: jax.Array) -> jax.Array:
        """The prefix once, all points."""
        x, y, weights = chunk_of(i)
        before = forward.prefix(affine, x)

        def add(k: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            sums, first = carry
            found = together(lambda ab: losses_of(forward.rest(before, ab), y), groups[k])
            first = jnp.where(k == 0, found[0, 0], first)
            return added(sums, k, found, weights, first), first

        return lax.fori_loop(0, turns, add, (sums, jnp.zeros(tile.examples, forward.dtype)))[0]

    start = moments.zeros(len(losses), forward.dtype)
    start = jnp.broadcast_to(start, (*groups.shape[:2], *start.shape))
    if prefix:
        sums = lax.fori_loop(0, chunks[0], chunk_at_all_points, start)
    else:
        sums, _ = lax.fori_loop(0, turns, point, (start, jnp.zeros(len(data[2].weight), forward.dtype)))
    return sums.reshape(-1, start.shape[-1]).T


class _Forward(NamedTuple):
    """Σ over all branches of their outputs for n examples.

    Attributes:
        network: The network.
        kinds: Every kind of branch on a batch of n.
        shape: Of the outputs, [n, ...].
        dtype: Their type.
    """

    network: MultiBranch
    kinds: list[StagedBranch]
    shape: tuple[int, ...]
    dtype: Any

    @classmethod
    def of(cls, network: MultiBranch, params: Tree, x: Any, n: int) -> "_Forward":
        """The forward pass for examples like x [N, ...], n at a time."""
        example = jax.tree.map(lambda t: jax.ShapeDtypeStruct(t.shape[1:], t.dtype), x)
        kinds = staged.whole(network, params, example, n, rows=jax.default_backend() == "cpu")
        outs = [kind.closed.out_avals[0] for kind in kinds]
        shape = (n, *map(int, jnp.broadcast_shapes(*(out.shape[1:] for out in outs))))
        return cls(network, kinds, shape, jnp.result_type(jnp.zeros(()), *(out.dtype for out in outs)))

    def outputs(self, params: Tree, x: Any) -> jax.Array:
        """The sum at given parameters [I, ...], [n, ...]."""
        groups = [jax.tree.leaves(w) for _, w in self.network.groups(params)]
        inputs = jax.tree.leaves(x)

        def add(kind: StagedBranch, total: jax.Array, branch: list[jax.Array]) -> jax.Array:
            return total + jcore.jaxpr_as_fun(kind.closed)(*branch, *inputs)[0].astype(self.dtype)

        def add_all(total: jax.Array, pair: tuple[StagedBranch, list[jax.Array]]) -> jax.Array:
            kind, branches = pair
            if len(branches[0]) == 1:
                return add(kind, total, [w[0] for w in branches])
            return lax.scan(lambda t, branch: (add(kind, t, branch), None), total, branches)[0]

        return reduce(add_all, zip(self.kinds, groups, strict=True), jnp.zeros(self.shape, self.dtype))

    def prefix(self, affine: Affine, x: Any) -> list[Any]:
        """What is known of every kind's single branch before the point: triples (o, u, v) of residuals."""
        groups = zip(*([w for _, w in self.network.groups(tree)] for tree in affine), strict=True)
        single = [[jax.tree.map(lambda t: t[0], tree) for tree in of_kind] for of_kind in groups]
        return [staged.precompute(kind, triple, x) for kind, triple in zip(self.kinds, single, strict=True)]

    def rest(self, residuals: list[Any], ab: jax.Array) -> jax.Array:
        """The sum at (a, b), [n, ...]."""
        found = [
            staged.at_point(kind, staged.at_row(held, ab[1]), ab[0]).astype(self.dtype)
            for kind, held in zip(self.kinds, residuals, strict=True)
        ]
        return reduce(jnp.add, found)
