"""The sum of all branches of one kind and its gradient, in two passes over chunks of branches (§2).

The outputs come first; then, from the slope of the loss in them, every chunk's gradient, written in place. Memory is
the parameters, their gradient and one chunk, whatever the number of branches. Between the passes only the values at
which the affine prefix ends are kept (the first layer, nearly all of the arithmetic), and only where they are few
beside the parameters; all else is computed a second time.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from landscape.arrays import trees
from landscape.compiler.staged import Parts, Restriction

Params = Any
Cuts = tuple[Parts, ...]
Kept = list[jax.Array]

KEPT = 0.125
"""The first layer's values are kept where they are no more than this share of the parameters."""


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def of_branches(restriction: Restriction, chunk: int, params: Params, x: jax.Array) -> jax.Array:
    """Σ_i f_i(w_(i); x), outputs [C, n].

    Args:
        restriction: One branch, traced and staged.
        chunk: Branches computed at a time; the last chunk may be smaller.
        params: [I, ...].
        x: Examples [..., n].
    """
    return _forward(restriction, chunk, params, x, [])[0]


def _outputs(restriction: Restriction, chunk: int, params: Params, x: jax.Array) -> tuple[jax.Array, Any]:
    total, kept = _forward(restriction, chunk, params, x, _worth_keeping(restriction, chunk, params, x))
    return total, (params, x, kept)


def _forward(
    restriction: Restriction, chunk: int, params: Params, x: jax.Array, keep: list[int]
) -> tuple[jax.Array, tuple[Kept, Kept]]:
    """The outputs, and of whole chunks and the rest the kept cuts."""

    def part(w: Params) -> tuple[jax.Array, Kept]:
        cuts = restriction.prefix((w,), x)
        return restriction.at(cuts, jnp.zeros(())), [cuts[k][0] for k in keep]

    def add(total: jax.Array, start: jax.Array) -> tuple[jax.Array, Kept]:
        f, kept = part(_slice(params, start, chunk))
        return total + f, kept

    whole, rest = divmod(_count(params), chunk)
    if not whole:
        total, kept = part(params)
        return total, ([], kept)
    zero = jax.tree.map(jnp.zeros_like, jax.eval_shape(part, params)[0])
    total, kept = lax.scan(add, zero, chunk * jnp.arange(whole))
    if not rest:
        return total, (kept, [])
    f, last = part(_slice(params, whole * chunk, rest))
    return total + f, (kept, last)


def _slopes(restriction: Restriction, chunk: int, known: Any, slope: jax.Array) -> tuple[Params, jax.Array]:
    """The second pass: the gradients in params and x, from that in the outputs."""
    params, x, (kept, last) = known
    keep = _worth_keeping(restriction, chunk, params, x)

    def part(w: Params, values: Kept) -> tuple[Params, jax.Array]:
        cuts, back = jax.vjp(lambda w, x: restriction.prefix((w,), x), w, x)
        found = dict(zip(keep, values, strict=True))
        held = tuple((found[k],) if k in found else cut for k, cut in enumerate(cuts))
        _, late = jax.vjp(lambda cuts: restriction.at(cuts, jnp.zeros(())), held)
        return back(late(slope)[0])

    def put(gradient: tuple[Params, jax.Array], start: Any, size: int, values: Kept) -> tuple[Params, jax.Array]:
        of_params, of_x = part(_slice(params, start, size), values)
        whole = jax.tree.map(lambda g, p: lax.dynamic_update_slice_in_dim(g, p, start, 0), gradient[0], of_params)
        return whole, gradient[1] + of_x

    whole, rest = divmod(_count(params), chunk)
    if not whole:
        return part(params, last)
    gradient = jax.tree.map(jnp.zeros_like, params), jnp.zeros_like(x)
    gradient, _ = lax.scan(lambda g, i: (put(g, i[0], chunk, i[1]), None), gradient, (chunk * jnp.arange(whole), kept))
    return put(gradient, whole * chunk, rest, last) if rest else gradient


of_branches.defvjp(_outputs, _slopes)


def _worth_keeping(restriction: Restriction, chunk: int, params: Params, x: jax.Array) -> list[int]:
    """Which cuts are kept between the passes: those with examples, if they are few beside the parameters."""
    if restriction.early:
        return []
    operands = [restriction.equations[i].invars[j] for i, j in restriction.cuts]
    found = [k for k, v in enumerate(operands) if restriction.axes(v).example]
    one = jax.eval_shape(lambda w: [restriction.prefix((w,), x)[k][0] for k in found], _slice(params, 0, 1))
    few = trees.nbytes(one) * _count(params) <= KEPT * trees.nbytes(params)
    return found if few or _count(params) < chunk else []


def _count(params: Params) -> int:
    return jax.tree.leaves(params)[0].shape[0]


def _slice(params: Params, start: Any, size: int) -> Params:
    return jax.tree.map(lambda t: lax.dynamic_slice_in_dim(t, start, size), params)
