"""Operations that read or write at positions, and those that order values."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from landscape.networks.torch_rules.elementwise import aligned

Rule = Callable[..., Any]


def _where(indices: Sequence[jax.Array | None]) -> tuple[Any, ...]:
    """Index arrays of one rank; whole axes where there is none."""
    arrays = iter(aligned(*[k for k in indices if k is not None]))
    return tuple(slice(None) if k is None else next(arrays) for k in indices)


def _index(x: jax.Array, indices: Sequence[jax.Array | None]) -> jax.Array:
    return x[_where(indices)]


def _index_put(
    x: jax.Array, indices: Sequence[jax.Array | None], values: jax.Array, accumulate: bool = False
) -> jax.Array:
    where = _where(indices)
    values = jnp.broadcast_to(values, jax.eval_shape(lambda t: t[where], x).shape).astype(x.dtype)
    return x.at[where].add(values) if accumulate else x.at[where].set(values)


def _gather(x: jax.Array, dim: int, index: jax.Array, *, sparse_grad: bool = False) -> jax.Array:
    dim = dim % x.ndim
    part = tuple(slice(None) if d == dim else slice(n) for d, n in enumerate(index.shape))
    return jnp.take_along_axis(x[part], index, dim)


def _positions(index: jax.Array, dim: int) -> tuple[jax.Array, ...]:
    """Where `scatter` writes: the index along one axis, the own position along the others."""
    own = [lax.broadcasted_iota(index.dtype, index.shape, d) for d in range(index.ndim)]
    own[dim % index.ndim] = index
    return tuple(own)


def _scatter(x: jax.Array, dim: int, index: jax.Array, source: Any) -> jax.Array:
    values = source[tuple(map(slice, index.shape))] if jnp.ndim(source) else source
    return x.at[_positions(index, dim)].set(values)


def _scatter_add(x: jax.Array, dim: int, index: jax.Array, source: jax.Array) -> jax.Array:
    return x.at[_positions(index, dim)].add(source[tuple(map(slice, index.shape))])


def _sort(x: jax.Array, dim: int = -1, descending: bool = False) -> tuple[jax.Array, jax.Array]:
    order = jnp.argsort(x, dim, stable=True, descending=descending)
    return jnp.take_along_axis(x, order, dim), order


def _topk(x: jax.Array, k: int, dim: int = -1, largest: bool = True, ordered: bool = True) -> Any:
    values, order = _sort(x, dim, largest)
    return tuple(lax.slice_in_dim(t, 0, k, 1, dim) for t in (values, order))


def _kth(x: jax.Array, k: int, dim: int = -1, keepdim: bool = False) -> Any:
    """The k-th smallest value along an axis, and where it is."""
    found = [lax.slice_in_dim(t, k - 1, k, 1, dim) for t in _sort(x, dim)]
    return tuple(found if keepdim else [jnp.squeeze(t, dim) for t in found])


def _embedding_bag(
    weight: jax.Array,
    index: jax.Array,
    offsets: jax.Array,
    scaled: bool = False,
    mode: int = 0,
    sparse: bool = False,
    factors: jax.Array | None = None,
    include_last: bool = False,
    padding: int = -1,
) -> Any:
    """Sum (mode 0), mean (1) or maximum (2) of the rows of each bag; bags begin at the offsets."""
    count = len(offsets) - include_last
    bag = jnp.searchsorted(offsets[:count], jnp.arange(len(index)), side="right") - 1
    counted = (index != padding)[:, None]
    rows = jnp.take(weight, index, 0) * (1 if factors is None else factors[:, None])
    if mode == 2:
        found = jax.ops.segment_max(jnp.where(counted, rows, -jnp.inf), bag, count)
        return jnp.where(jnp.isfinite(found), found, 0), None, None, None
    total = jax.ops.segment_sum(jnp.where(counted, rows, 0), bag, count)
    size = jax.ops.segment_sum(counted.astype(rows.dtype), bag, count)
    return total / jnp.maximum(size, 1) if mode else total, None, None, None


def _one_hot(index: jax.Array, classes: int = -1) -> jax.Array:
    if classes < 0:
        raise ValueError("one_hot without a number of classes depends on the data; name num_classes.")
    return jax.nn.one_hot(index, classes, dtype=index.dtype)


RULES: dict[str, Rule] = {
    "_embedding_bag.default": _embedding_bag,
    "embedding.default": lambda weight, index, padding=-1, scaled=False, sparse=False: jnp.take(weight, index, 0),
    "gather.default": _gather,
    "index.Tensor": _index,
    "index_put.default": _index_put,
    "index_select.default": lambda x, dim, index: jnp.take(x, index, dim),
    "kthvalue.default": _kth,
    "median.dim": lambda x, dim, keepdim=False: _kth(x, (x.shape[dim] + 1) // 2, dim, keepdim),
    "one_hot.default": _one_hot,
    "scatter.src": _scatter,
    "scatter.value": _scatter,
    "scatter_add.default": _scatter_add,
    "sort.default": _sort,
    "sort.stable": lambda x, *, stable, dim=-1, descending=False: _sort(x, dim, descending),
    "topk.default": _topk,
}
