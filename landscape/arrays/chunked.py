"""Loops over chunks of bounded memory: sums and scans in one program, and calls on the host."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def chunked_sum(f: Callable[[Any], Any], xs: Any, chunk: int) -> Any:
    """Σ_c f(xs[c]) over consecutive chunks of the leading axis; only one chunk's intermediate values exist at a time.

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


def chunked_scan(
    step: Callable[[Any, Any, int, Any], tuple[Any, Any]],
    carry: Any,
    length: int,
    chunk: int,
    given: Any = (None, None),
) -> tuple[Any, tuple[Any, Any]]:
    """`lax.scan` over consecutive chunks of an axis, the last of which may be ragged.

    Args:
        step: (carry, start, size, given) -> (carry, kept); takes its own slice, so that nothing is copied beforehand.
        carry: Passed from step to step.
        length: L, the length of the axis.
        chunk: Entries taken at a time; values above L take all at once.
        given: Values that an earlier scan over the same chunks kept.

    Returns:
        The last carry; the values kept by whole chunks, stacked, and by the ragged one (None without such chunks).
    """
    whole, rest = divmod(length, chunk)
    kept, last = None, None
    if whole:
        starts = chunk * jnp.arange(whole)
        carry, kept = lax.scan(lambda total, x: step(total, x[0], chunk, x[1]), carry, (starts, given[0]))
    if rest:
        carry, last = step(carry, whole * chunk, rest, given[1])
    return carry, (kept, last)


def part(xs: Any, start: Any, size: int) -> Any:
    """Entries start … start + size − 1 of the leading axis of every array. The whole arrays are not copied."""
    whole = isinstance(start, int) and size == jax.tree.leaves(xs)[0].shape[0]
    return xs if whole else jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, start, size), xs)


def chunked_map(f: Callable[..., Any], chunk: int, *arrays: Any, pad: bool = False) -> Any:
    """The rows of f(*arrays), which is called with `chunk` rows at a time; NumPy arrays.

    Args:
        f: Maps trees of arrays [n, ...] to a tree of arrays [n, ...], each row by itself.
        chunk: Rows of a call.
        *arrays: Arrays [N, ...] or trees of them, N ≥ 1.
        pad: Whether the last chunk is filled with copies of the last row, so that a compiled f is compiled once.

    >>> chunked_map(lambda x: 2 * x, 2, np.arange(3.0)).tolist()
    [0.0, 2.0, 4.0]
    """

    def rows(x: Any, start: int) -> Any:
        missing = max(0, start + chunk - len(x)) if pad else 0
        part = x[start : start + chunk]
        return np.concatenate([part, np.repeat(part[-1:], missing, 0)]) if missing else part

    total, parts = len(jax.tree.leaves(arrays)[0]), []
    for start in range(0, total, chunk):
        found = f(*jax.tree.map(lambda x, start=start: rows(x, start), arrays))
        parts.append(jax.tree.map(lambda v, count=total - start: np.asarray(v)[:count], found))
    return jax.tree.map(lambda *vs: np.concatenate(vs), *parts)
