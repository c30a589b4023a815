"""A checkpoint's arrays as a network's parameters: every name there, of its shape, real, in float32 at least."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from landscape.checkpoints import names
from landscape.checkpoints.contents import Contents, Leaf, Name, bounded
from landscape.checkpoints.names import listed, shown, words

Params = Any


class Checkpoint(NamedTuple):
    """What was read from one file or folder.

    Attributes:
        solutions: Parameters: usually of one network, of several where every array has a leading axis of seeds.
        format: The format that was found, in words.
        left_out: Names of everything else in it: counters, random keys, optimiser's moments, statistics, text.
        unexpected: Those of `left_out` that might be parameters of another network.
        cast: Types that became float32, such as bfloat16.
    """

    solutions: list[Params]
    format: str
    left_out: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    cast: tuple[str, ...] = ()

    @property
    def remark(self) -> str:
        """What deserves to be said of it; empty where there is nothing."""
        left = f"left out {listed([(name,) for name in self.left_out])}" if self.left_out else ""
        cast = f"{', '.join(self.cast)} as float32" if self.cast else ""
        return " · ".join(part for part in (left, cast) if part)


class Layout(NamedTuple):
    """How a file's arrays become a network's: axes before the network's own shape.

    Attributes:
        seeds: Number of solutions on the first axis; None without one.
        lifted: Whether the axis of the one branch is missing.
    """

    seeds: int | None = None
    lifted: bool = False

    def of(self, array: np.ndarray, seed: int) -> np.ndarray:
        """The array of one solution, in the network's shape."""
        found = array if self.seeds is None else array[seed]
        return found[None] if self.lifted else found


def whole(path: Path, contents: Contents, everything: bool = False) -> Checkpoint:
    """Everything that a file holds in floating point, or every number, without a network to compare with.

    Raises:
        ValueError: It holds nothing of the kind, complex numbers, or far more than its size.
    """
    leaves = names.parameters(contents, everything)
    if not leaves:
        raise ValueError(f"{path} holds no arrays of floating-point numbers; it holds {listed(list(contents.leaves))}.")
    found = list(leaves.values())
    for name, leaf in leaves.items():
        _refuse_complex(path, name, leaf)
    bounded(path, 0, found)
    arrays = [_widened(x) for x in contents.read(found)]
    tree = names.nested(path, dict(zip(leaves, arrays, strict=True))) if list(leaves) != [()] else arrays[0]
    return Checkpoint([tree], contents.format, _joined(_left(contents, found)), (), _cast(found, arrays))


def matched(path: Path, contents: Contents, like: Params, one_branch: bool = False) -> Checkpoint:
    """The arrays of a network: all there, of its shapes or with an axis of seeds before them.

    Args:
        path: For messages.
        contents: What the file holds.
        like: The network's tree of arrays or shapes; leaves that are neither stay as they are.
        one_branch: Whether the first axis of `like`, that of one branch, may be missing in the file.

    Raises:
        ValueError: Arrays are missing, of another shape, or of another kind.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(like)
    places = [n for n, (_, leaf) in enumerate(leaves) if names.is_array(leaf)]
    likes = [leaves[n][1] for n in places]
    wanted, found = _found(path, contents, [names.canonical(words(leaves[n][0])) for n in places])
    for name, leaf, model in zip(wanted, found, likes, strict=True):
        _refuse_kind(path, name, leaf, model)
    shapes = [_stored_shape(model) for model in likes]
    layout = _layout(path, wanted, found, shapes, one_branch)
    bounded(path, 8 * sum(map(math.prod, shapes)), found)
    arrays = contents.read(found)
    solutions = []
    for seed in range(layout.seeds or 1):
        values = [leaf for _, leaf in leaves]
        for n, array in zip(places, arrays, strict=True):
            values[n] = _restored(layout.of(array, seed), leaves[n][1])
        solutions.append(structure.unflatten(values))
    left = _left(contents, found)
    odd = {name: leaf for name, leaf in left.items() if names.is_parameter(name, leaf)}
    odd = {name: leaf for name, leaf in odd.items() if not _is_copy(contents, leaf, found, arrays)}
    some = [x for x in jax.tree.leaves(solutions[0]) if names.is_array(x)]
    return Checkpoint(solutions, contents.format, _joined(left), _joined(odd), _cast(found, some))


def _found(path: Path, contents: Contents, wanted: list[Name]) -> tuple[list[Name], list[Leaf]]:
    """The entries of the names that are wanted; a single array without a name takes the file's only one."""
    there = names.chosen(contents, wanted)
    if wanted == [()] and len(there) == 1:
        wanted = list(there)
    missing = [name for name in wanted if name not in there]
    if missing:
        spare = {name: leaf for name, leaf in there.items() if name not in wanted}
        own = {name: leaf for name, leaf in spare.items() if names.is_parameter(name, leaf)}
        raise names.lacking(path, missing, own or spare)
    return wanted, [there[name] for name in wanted]


def _layout(
    path: Path, wanted: Sequence[Name], found: Sequence[Leaf], shapes: Sequence[tuple[int, ...]], one_branch: bool
) -> Layout:
    """The first layout that fits every array.

    Raises:
        ValueError: None does.
    """
    first = found[0].shape[:1] if found else ()
    counts: list[int | None] = [None, *(n for n in first if n)]
    tried = [Layout(seeds, lifted) for seeds in counts for lifted in (False, True)[: 1 + one_branch]]
    for layout in tried:
        before = () if layout.seeds is None else (layout.seeds,)
        if all(x.shape == (*before, *shape[layout.lifted :]) for x, shape in zip(found, shapes, strict=True)):
            return layout
    own = [shape[one_branch:] for shape in shapes]  # what a message compares with
    triples = [(n, x, s) for n, x, s in zip(wanted, found, own, strict=True) if x.shape != s]
    raise names.misshapen(path, triples)


def _refuse_kind(path: Path, name: Name, leaf: Leaf, model: Any) -> None:
    _refuse_complex(path, name, leaf)
    is_key = jnp.issubdtype(model.dtype, jax.dtypes.prng_key)
    wants_float = not is_key and jnp.issubdtype(model.dtype, jnp.floating)
    if leaf.dtype is None or leaf.is_float != wants_float:
        raise ValueError(
            f"{path} has {shown(name)} as {leaf.dtype or 'something that is no plain array of numbers'}; "
            f"the network has {model.dtype}.\n  Save the parameters as floating-point arrays."
        )


def _refuse_complex(path: Path, name: Name, leaf: Leaf) -> None:
    if leaf.dtype is not None and leaf.dtype.kind == "c":
        raise ValueError(
            f"{path} has {shown(name)} as {leaf.dtype}; complex parameters are not supported.\n"
            "  Keep real and imaginary parts as two arrays."
        )


def _stored_shape(model: Any) -> tuple[int, ...]:
    """The shape in which a file holds such an array; random keys are kept as their data."""
    if jnp.issubdtype(model.dtype, jax.dtypes.prng_key):
        return tuple(jax.eval_shape(jax.random.key_data, model).shape)
    return tuple(model.shape)


def _restored(array: np.ndarray, model: Any) -> Any:
    if jnp.issubdtype(model.dtype, jax.dtypes.prng_key):
        impl = jax.random.key_impl(model) if isinstance(model, jax.Array) else None
        return jax.random.wrap_key_data(jnp.asarray(array), impl=impl)
    return _widened(array)


def _widened(array: np.ndarray) -> jax.Array:
    """Floating-point numbers in float32 at least, which linear algebra on parameters needs."""
    if jnp.issubdtype(array.dtype, jnp.floating) and array.dtype.itemsize < 4:
        array = array.astype(np.float32)
    return jnp.asarray(array if array.dtype.itemsize <= 8 else array.astype(np.float64))


def _cast(leaves: Sequence[Leaf], arrays: Sequence[Any]) -> tuple[str, ...]:
    """Names of the types that became float32."""
    pairs = zip(leaves, arrays, strict=True)
    changed = {str(leaf.dtype) for leaf, x in pairs if leaf.is_float and leaf.dtype != x.dtype}
    return tuple(sorted(changed))


def _left(contents: Contents, found: Sequence[Leaf]) -> dict[Name, Leaf]:
    taken = {id(leaf) for leaf in found}
    return {name: leaf for name, leaf in contents.leaves.items() if id(leaf) not in taken}


def _joined(found: Any) -> tuple[str, ...]:
    return tuple("/".join(name) for name in found)


def _is_copy(contents: Contents, leaf: Leaf, found: Sequence[Leaf], arrays: Sequence[np.ndarray]) -> bool:
    """Whether an array is one of the network's under a second name, as weights are that two layers share."""
    same = [n for n, other in enumerate(found) if other.shape == leaf.shape and other.dtype == leaf.dtype]
    return any(np.array_equal(arrays[n], contents.read([leaf])[0]) for n in same)
