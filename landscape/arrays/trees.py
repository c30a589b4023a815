"""Linear algebra on pytrees of arrays: the parameters of a network as one vector, and the working precision."""

import importlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Tree = Any

PACKED = 2**20
"""Most scalars of a leaf that is packed into one vector with others."""


def float64(wide: bool = True) -> AbstractContextManager:
    """The context in which JAX computes in float64 (or not); the switch's name moved between jax 0.7 and 0.10."""
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(wide)
    return importlib.import_module("jax.experimental").enable_x64(wide)


def is_parameter(leaf: Any) -> bool:
    """Whether a leaf holds floating-point numbers; counters and random keys are no parameters."""
    return jnp.issubdtype(jnp.result_type(leaf), jnp.floating)


def widened(a: Tree) -> Tree:
    """The tree with its half-precision leaves in float32, so that sums keep their digits and do not overflow."""
    return jax.tree.map(_wide, a)


def _wide(x: Any) -> Any:
    return jnp.asarray(x, jnp.float32) if is_parameter(x) and jnp.result_type(x).itemsize < 4 else x


def _map(f: Callable[..., Any], *several: Tree) -> Tree:
    """Apply f leaf by leaf; leaves that are no parameters are copied from the last tree."""
    return jax.tree.map(lambda *leaves: f(*leaves) if is_parameter(leaves[0]) else leaves[-1], *several)


def vdot(a: Tree, b: Tree) -> jax.Array:
    """Inner product ⟨a, b⟩ over all leaves of floating-point numbers, in float32 at least."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return reduce(jnp.add, [jnp.vdot(_wide(x), _wide(y)) for x, y in pairs if is_parameter(x)])


def norm(a: Tree) -> jax.Array:
    """Euclidean norm ‖a‖ over all leaves.

    >>> float(norm({"w": jnp.array([3.0, 0.0]), "b": jnp.array(4.0)}))
    5.0
    """
    return jnp.sqrt(vdot(a, a))


def scale(s: jax.Array | float, a: Tree) -> Tree:
    """s·a, leaf by leaf."""
    return _map(lambda x: s * x, a)


def axpy(s: jax.Array | float, a: Tree, b: Tree) -> Tree:
    """s·a + b, leaf by leaf."""
    return _map(lambda x, y: s * x + y, a, b)


def subtract(a: Tree, b: Tree) -> Tree:
    """a − b, leaf by leaf."""
    return _map(jnp.subtract, a, b)


def stack(several: Sequence[Tree]) -> Tree:
    """Trees of one structure as one, with a new first axis [R, ...]."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *several)


def size(a: Tree) -> int:
    """Number of scalars in the tree."""
    return sum(x.size for x in jax.tree.leaves(a))


def nbytes(a: Tree) -> int:
    """Bytes of the tree's arrays (shapes suffice)."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(a))


class Affine(NamedTuple):
    """A plane of trees, w(a, b) = o + a u + b v.

    Attributes:
        origin: o, a tree of arrays.
        u: First axis, a tree like the origin.
        v: Second axis.
    """

    origin: Tree
    u: Tree
    v: Tree

    def at(self, ab: Any) -> Tree:
        """The tree w(a, b); leaves that are no parameters are those of the origin."""
        return _map(lambda u, v, o: o + ab[0] * u + ab[1] * v, self.u, self.v, self.origin)


class Signature(NamedTuple):
    """Structure, shapes and types of a tree, hashable; a compiled program depends on these."""

    structure: Any
    shapes: tuple[jax.ShapeDtypeStruct, ...]

    @classmethod
    def of(cls, tree: Any) -> "Signature":
        """The signature of a tree of arrays."""
        leaves, structure = jax.tree.flatten(tree)
        return cls(structure, tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in leaves))

    def tree(self) -> Any:
        """The tree of shapes."""
        return self.structure.unflatten(self.shapes)


class Packing(NamedTuple):
    """Small leaves of a tree as one vector, so that a program over many of them compiles in a third of the time.

    Attributes:
        signature: Of the tree.
        small: For each leaf whether it is packed.
    """

    signature: Signature
    small: tuple[bool, ...]

    @classmethod
    def of(cls, tree: Tree) -> "Packing":
        """Leaves that lie whole on one device, of the first leaf's type, are packed; the rest stay by themselves."""
        leaves = jax.tree.leaves(tree)

        def small(x: Any) -> bool:
            alone = not isinstance(x, jax.Array) or len(x.sharding.device_set) == 1
            return alone and x.size <= PACKED and x.dtype == leaves[0].dtype

        return cls(Signature.of(tree), tuple(map(small, leaves)))

    def packed(self, tree: Tree) -> Tree:
        """The vector, and a list of the other leaves."""
        pairs = list(zip(jax.tree.leaves(tree), self.small, strict=True))
        together = [x.reshape(-1) for x, small in pairs if small]
        return [jnp.concatenate(together)] if together else [], [x for x, small in pairs if not small]

    def unpacked(self, packed: Tree) -> Tree:
        """The tree that was packed."""
        vector, others = packed
        rest, start, leaves = iter(others), 0, []
        for shape, small in zip(self.signature.shapes, self.small, strict=True):
            leaves.append(vector[0][start : start + shape.size].reshape(shape.shape) if small else next(rest))
            start += shape.size * small
        return self.signature.structure.unflatten(leaves)
