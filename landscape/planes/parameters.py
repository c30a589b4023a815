"""Which leaves of a tree are parameters: floating-point numbers that the function reads and no optimiser keeps."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from landscape.arrays import trees
from landscape.compiler import flatten

Params = Any


def read_by(f: Callable[[Params], Any], tree: Params) -> list[bool]:
    """For every leaf whether it holds floating-point numbers that appear in the equations of f.

    Args:
        f: A function of the tree.
        tree: Its argument.
    """
    leaves, structure = jax.tree.flatten(tree)
    floats = [n for n, leaf in enumerate(leaves) if trees.is_parameter(leaf)]

    def g(*values: jax.Array) -> Any:
        filled = list(leaves)
        for n, value in zip(floats, values, strict=True):
            filled[n] = value
        return f(structure.unflatten(filled))

    jaxpr = flatten.flat(jax.make_jaxpr(g)(*(leaves[n] for n in floats))).jaxpr
    read = {id(v) for equation in jaxpr.eqns for v in equation.invars} | {id(v) for v in jaxpr.outvars}
    found = {n for n, variable in zip(floats, jaxpr.invars, strict=True) if id(variable) in read}
    return [n in found for n in range(len(leaves))]


def alike(of: Callable[[Params], Any] | None, ws: Sequence[Params]) -> list[Params]:
    """The trees, with what is no parameter as the first has it; such leaves of floating-point numbers are named.

    Args:
        of: A function of such a tree: what it does not read is no parameter. None where it is not known; the state of
            an optax optimiser is none in any case.
        ws: Trees of one structure.
    """
    structure = jax.tree.structure(ws[0])
    if any(jax.tree.structure(w) != structure for w in ws):
        return list(ws)  # refused elsewhere, with their names
    floats = [trees.is_parameter(leaf) for leaf in jax.tree.leaves(ws[0])]
    read = read_by(of, ws[0]) if of is not None else [True] * len(floats)
    kept = [f and r and not o for f, r, o in zip(floats, read, _of_optimiser(ws[0]), strict=True)]
    if kept == floats or not any(kept):
        return list(ws)
    _say(ws[0], [f and not k for f, k in zip(floats, kept, strict=True)])
    first = jax.tree.leaves(ws[0])
    rows = [[x if k else y for k, x, y in zip(kept, jax.tree.leaves(w), first, strict=True)] for w in ws]
    return [structure.unflatten(row) for row in rows]


def moving(of: Callable[[Params], Any], affine: trees.Affine) -> list[bool]:
    """For every leaf whether a plane moves it although the function does not read it."""
    still = [not read for read in read_by(of, affine.origin)]
    pairs = zip(still, *map(jax.tree.leaves, (affine.u, affine.v)), strict=True)
    found = [s and trees.is_parameter(u) and bool(jnp.any(u != 0) | jnp.any(v != 0)) for s, u, v in pairs]
    if any(found):
        _say(affine.origin, found)
    return found


def _of_optimiser(tree: Params) -> list[bool]:
    """For every leaf whether it lies in the state of an optax optimiser."""

    def is_state(node: Any) -> bool:
        return type(node).__module__.split(".")[0] == "optax"

    parts = jax.tree.leaves(tree, is_leaf=is_state)
    return [is_state(part) for part in parts for _ in jax.tree.leaves(part)]


def _say(tree: Params, out: Sequence[bool]) -> None:
    places = jax.tree_util.tree_leaves_with_path(tree)
    names = [jax.tree_util.keystr(path) for (path, _), o in zip(places, out, strict=True) if o]
    more = f" and {len(names) - 6} more" if names[6:] else ""
    warnings.warn(
        f"{', '.join(names[:6])}{more} are no parameters of the loss: they stay out of the plane, as the first "
        "solution has them.",
        stacklevel=4,
    )
