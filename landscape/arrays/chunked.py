"""One loop for every large sum: over branches (§2) and over examples (a risk), in chunks of bounded memory."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def chunked_sum(f: Callable[[Any], Any], xs: Any, chunk: int) -> Any:
    """Σ_c f(xs[c]) over consecutive chunks of the leading axis, with only one chunk's intermediate values alive.

    The last chunk may be ragged. Reverse-mode differentiation computes each chunk a second time instead of storing it:
    first all outputs, then chunk by chunk the forward again and its gradient.

    Args:
        f: Maps a tree of arrays [n, ...] to a tree of arrays; must itself sum over the leading axis.
        xs: Tree of arrays [L, ...] with a common leading axis.
        chunk: Entries taken at a time; values above L take all at once.

    >>> float(chunked_sum(jnp.sum, jnp.arange(7.0), 3))
    21.0
    """
    length = jax.tree.leaves(xs)[0].shape[0]
    count, rest = divmod(length, chunk)
    part = jax.checkpoint(f)
    if count == 0:
        return part(xs)
    if length == chunk:
        return f(xs)
    whole = jax.tree.map(lambda x: x[: count * chunk].reshape(count, chunk, *x.shape[1:]), xs)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(f, jax.tree.map(lambda x: x[0], whole)))
    total, _ = lax.scan(lambda total, x: (jax.tree.map(jnp.add, total, part(x)), None), zeros, whole)
    if rest:
        total = jax.tree.map(jnp.add, total, part(jax.tree.map(lambda x: x[count * chunk :], xs)))
    return total
