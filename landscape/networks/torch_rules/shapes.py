"""Operations that move, join, cut or pad arrays, and those that make new ones."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Rule = Callable[..., Any]

PAD_MODES = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}
"""PyTorch's words for what lies outside of an array, and NumPy's."""


def axes_of(dims: Any, rank: int) -> tuple[int, ...]:
    """Axes counted from the front; all of them where none are named."""
    if dims is None or (isinstance(dims, Sequence) and not dims):
        return tuple(range(rank))
    return tuple(d % max(rank, 1) for d in (dims if isinstance(dims, Sequence) else (dims,)))


def _squeeze(x: jax.Array, dims: Any = None) -> jax.Array:
    return jnp.squeeze(x, tuple(d for d in axes_of(dims, x.ndim) if x.ndim and x.shape[d] == 1))


def _flatten(x: jax.Array, start: int = 0, end: int = -1) -> jax.Array:
    if x.ndim == 0:
        return x.reshape(1)
    return x.reshape(*x.shape[: start % x.ndim], -1, *x.shape[end % x.ndim + 1 :])


def _expand(x: jax.Array, size: Sequence[int], *, implicit: bool = False) -> jax.Array:
    new = len(size) - x.ndim
    return jnp.broadcast_to(x, [x.shape[k - new] if n == -1 else n for k, n in enumerate(size)])


def _select(x: jax.Array, dim: int, index: int) -> jax.Array:
    return lax.index_in_dim(x, index, dim, keepdims=False)


def _slice(x: jax.Array, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1) -> jax.Array:
    first, last, _ = slice(start, end).indices(x.shape[dim])
    return lax.slice_in_dim(x, first, max(first, last), step, dim)


def _slice_scatter(
    x: jax.Array, source: jax.Array, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> jax.Array:
    where = [slice(None)] * x.ndim
    where[dim] = slice(*slice(start, end, step).indices(x.shape[dim]))
    return x.at[tuple(where)].set(source)


def _select_scatter(x: jax.Array, source: jax.Array, dim: int, index: int) -> jax.Array:
    where: list[Any] = [slice(None)] * x.ndim
    where[dim] = index
    return x.at[tuple(where)].set(source)


def _cat(arrays: Sequence[jax.Array], dim: int = 0) -> jax.Array:
    return jnp.concatenate([x for x in arrays if x.shape != (0,)], dim)  # PyTorch skips empty vectors


def _split(x: jax.Array, size: int, dim: int = 0) -> list[jax.Array]:
    return jnp.split(x, list(range(size, x.shape[dim], size)), dim)


def _split_with_sizes(x: jax.Array, sizes: Sequence[int], dim: int = 0) -> list[jax.Array]:
    return jnp.split(x, np.cumsum(sizes)[:-1].tolist(), dim)


def _chunk(x: jax.Array, chunks: int, dim: int = 0) -> list[jax.Array]:
    return _split(x, max(1, -(-x.shape[dim] // chunks)), dim)


def _unbind(x: jax.Array, dim: int = 0) -> list[jax.Array]:
    return [_select(x, dim, k) for k in range(x.shape[dim])]


def _roll(x: jax.Array, shifts: Sequence[int], dims: Sequence[int] = ()) -> jax.Array:
    return jnp.roll(x, tuple(shifts), tuple(dims)) if dims else jnp.roll(x, shifts[0])


def _repeat(x: jax.Array, repeats: Sequence[int]) -> jax.Array:
    return jnp.tile(x, tuple(repeats))


def _pad(x: jax.Array, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> jax.Array:
    """Pairs of lengths, the last axis first; negative lengths cut."""
    widths = [(0, 0)] * (x.ndim - len(pad) // 2) + list(zip(pad[-2::-2], pad[::-2], strict=True))
    cut = [slice(max(0, -a), n - max(0, -b)) for (a, b), n in zip(widths, x.shape, strict=True)]
    widths = [(max(0, a), max(0, b)) for a, b in widths]
    more = {"constant_values": value or 0} if mode == "constant" else {}
    return jnp.pad(x[tuple(cut)], widths, PAD_MODES[mode], **more)


def _unfold(x: jax.Array, dim: int, size: int, step: int) -> jax.Array:
    starts = np.arange(0, x.shape[dim] - size + 1, step)
    windows = jnp.take(x, starts[:, None] + np.arange(size)[None], axis=dim)
    return jnp.moveaxis(windows, dim % x.ndim + 1, -1)


def _arange(start: Any, end: Any, step: Any = 1, *, dtype: Any = None) -> jax.Array:
    return jnp.arange(start, end, step, dtype)


def _full(size: Sequence[int], value: Any, *, dtype: Any = None) -> jax.Array:
    return jnp.full(size, value, dtype)


def _full_like(x: jax.Array, value: Any, *, dtype: Any = None, memory_format: Any = None) -> jax.Array:
    return jnp.full(x.shape, value, dtype or x.dtype)


def _new_full(x: jax.Array, size: Sequence[int], value: Any, *, dtype: Any = None) -> jax.Array:
    return jnp.full(size, value, dtype or x.dtype)


def _constant(value: int) -> dict[str, Rule]:
    """zeros, ones and their kin."""
    word = {0: "zeros", 1: "ones"}[value]
    return {
        f"{word}.default": lambda size, *, dtype=None: jnp.full(size, value, dtype or jnp.float32),
        f"{word}_like.default": lambda x, *, dtype=None, memory_format=None: _full_like(x, value, dtype=dtype),
        f"new_{word}.default": lambda x, size, *, dtype=None: _new_full(x, size, value, dtype=dtype),
    }


RULES: dict[str, Rule] = {
    **dict.fromkeys(("_unsafe_view.default", "reshape.default", "view.default"), jnp.reshape),
    **dict.fromkeys(("squeeze.default", "squeeze.dim", "squeeze.dims"), _squeeze),
    **dict.fromkeys(("split.Tensor", "unsafe_split.Tensor"), _split),
    **_constant(0),
    **_constant(1),
    "arange.default": lambda end, *, dtype=None: _arange(0, end, dtype=dtype),
    "arange.start": _arange,
    "arange.start_step": _arange,
    "cat.default": _cat,
    "chunk.default": _chunk,
    "constant_pad_nd.default": lambda x, pad, value=0: _pad(x, pad, "constant", value),
    "diagonal.default": jnp.diagonal,
    "empty.memory_format": lambda size, *, dtype=None, memory_format=None: jnp.zeros(size, dtype),
    "expand.default": _expand,
    "eye.default": lambda n, *, dtype=None: jnp.eye(n, dtype=dtype),
    "eye.m": lambda n, m, *, dtype=None: jnp.eye(n, m, dtype=dtype),
    "flatten.using_ints": _flatten,
    "flip.default": jnp.flip,
    "full.default": _full,
    "full_like.default": _full_like,
    "new_full.default": _new_full,
    "pad.default": _pad,
    "permute.default": lambda x, dims: jnp.transpose(x, axes_of(dims, x.ndim)),
    "repeat.default": _repeat,
    "roll.default": _roll,
    "scalar_tensor.default": lambda value, *, dtype=None: jnp.asarray(value, dtype or jnp.float32),
    "select.int": _select,
    "select_scatter.default": _select_scatter,
    "slice.Tensor": _slice,
    "slice_scatter.default": _slice_scatter,
    "split_with_sizes.default": _split_with_sizes,
    "stack.default": lambda arrays, dim=0: jnp.stack(arrays, dim),
    "t.default": jnp.transpose,
    "transpose.int": jnp.swapaxes,
    "tril.default": jnp.tril,
    "triu.default": jnp.triu,
    "unbind.int": _unbind,
    "unfold.default": _unfold,
    "unsqueeze.default": jnp.expand_dims,
}
