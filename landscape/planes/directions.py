"""Directions in parameter space: random ones scaled like the weights [Li18], principal ones of a trajectory."""

from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from landscape.arrays import trees
from landscape.compiler.output_axes import Units
from landscape.networks import MultiBranch, Network

Params = Any
Per = Literal["filter", "layer", "none"]

FLAT = 1e-6
"""A principal direction counts only where its spread is larger than this share of the first one's."""


def random_normalized(
    key: jax.Array,
    w: Params,
    per: Per,
    network: MultiBranch | Network | None = None,
    branch_axis: bool | None = None,
    units: Sequence[Units] = (),
    vectors: bool = False,
) -> Params:
    """A Gaussian direction like w, scaled so that each part has the norm of the same part of w [Li18].

    Args:
        key: Random key.
        w: Parameters, [I, ...] for a multi-branch network.
        per: "filter" scales the weights into each output unit, "layer" each array, both in every branch by itself;
            "none" leaves the Gaussian as it is.
        network: The network of w, which says whether w has a branch axis.
        branch_axis: The same where there is no network: whether the first axis of every array counts branches.
        units: For every array of one branch which axes count output units; the last one of each where not given.
        vectors: Whether biases and norm scales, arrays of one axis, move too; they are 0 in [Li18].

    Raises:
        ValueError: Another word for `per`, parameters that do not fit the network, or parameters that may or may not
            have a branch axis, without a word on it.
    """
    if per not in ("filter", "layer", "none"):
        raise ValueError(f'per must be "filter", "layer" or "none"; got {per!r}.')
    leaves, structure = jax.tree.flatten(w)
    keys = jax.random.split(key, len(leaves))
    pairs = zip(keys, leaves, strict=True)
    drawn = [jax.random.normal(k, x.shape, x.dtype) if trees.is_parameter(x) else x for k, x in pairs]
    if per == "none":
        return structure.unflatten(drawn)
    if isinstance(network, MultiBranch):
        refuse_counts(network, w)
    stacked = isinstance(network, MultiBranch) or (network is None and _stacked(w, branch_axis))
    known = units or [Units(vector=x.ndim - stacked <= 1) for x in leaves]
    fixed = [u.vector and not vectors for u in known]
    if all(f for f, x in zip(fixed, leaves, strict=True) if trees.is_parameter(x)):
        fixed = [False] * len(leaves)  # vectors alone are the weights themselves
    parts = zip(drawn, leaves, known, fixed, strict=True)
    return structure.unflatten([_scaled(d, x, u.axes if per == "filter" else frozenset(), stacked, f)
                                for d, x, u, f in parts])  # fmt: skip


def _scaled(d: jax.Array, w: jax.Array, units: frozenset[int] | None, stacked: bool, fixed: bool) -> jax.Array:
    """The direction of one array with the norms of its weights, unit by unit and branch by branch; 0 if fixed."""
    if not trees.is_parameter(w):
        return w
    if fixed:
        return jnp.zeros_like(d)
    last = frozenset({w.ndim - 1 - stacked}) if w.ndim - stacked > 1 else frozenset()
    kept = {*range(stacked), *(axis + stacked for axis in (last if units is None else units))}
    summed = tuple(axis for axis in range(w.ndim) if axis not in kept)
    own, wanted = (jnp.sqrt(jnp.sum(t**2, axis=summed, keepdims=True)) for t in (d, w))
    return d * wanted / jnp.where(own > 0, own, 1)


def _stacked(w: Params, branch_axis: bool | None) -> bool:
    """Whether w has a branch axis, as stated; unstated only where its shapes leave no doubt that it has none."""
    arrays = jax.tree.leaves(w)
    if branch_axis and not _shares_first(arrays):
        first = sorted({x.shape[:1] for x in arrays})
        raise ValueError(f"A branch axis is the first axis of every array, of one length; got leading axes {first}.")
    if branch_axis is None and may_be_stacked(w):
        raise ValueError(
            "These parameters may be those of several branches, stacked along the first axis, or those of one network "
            "whose arrays happen to have equal first axes; the norms of the filters differ.\n  Pass network=, the "
            "MultiBranch or Network they belong to, or branch_axis=True or False."
        )
    return bool(branch_axis)


def refuse_counts(network: MultiBranch, w: Params) -> None:
    """Refuse parameters that do not have the network's branches on their first axes.

    Raises:
        ValueError: They do not.
    """
    several = not isinstance(network.branch, Network)
    if several and (not isinstance(w, tuple) or len(w) != len(network.counts)):
        raise ValueError(f"{network} wants a tuple of {len(network.counts)} trees, one a kind of branches.")
    for (_, group), count in zip(network.groups(w), network.counts, strict=True):
        lengths = {x.shape[:1] for x in jax.tree.leaves(group)}
        if lengths != {(count,)}:
            raise ValueError(f"{network} wants parameters [{count}, ...]; got leading axes {sorted(lengths)}.")


def may_be_stacked(w: Params) -> bool:
    """Whether the shapes of parameters allow a branch axis: all arrays, or all of each tree in a tuple, share one.

    A matrix alone in its tree of a tuple is taken for a layer.

    >>> may_be_stacked({"convolution": jnp.ones([4, 3, 5]), "dense": jnp.ones([4, 7])})
    True
    >>> may_be_stacked({"kernel": jnp.ones([3, 2]), "bias": jnp.ones([2])})
    False
    """
    parts = [jax.tree.leaves(part) for part in w] if isinstance(w, tuple) else []
    kinds = len(parts) > 1 and all(len(part) > 1 or (part and part[0].ndim > 2) for part in parts)
    return _shares_first(jax.tree.leaves(w)) or (kinds and all(map(_shares_first, parts)))


def _shares_first(arrays: Sequence[jax.Array]) -> bool:
    first = {x.shape[:1] for x in arrays}
    return len(first) == 1 and () not in first


def principal(ws: Sequence[Params]) -> tuple[Params, Params, np.ndarray]:
    """The first two principal directions of points, and the share of the variance along each direction.

    The covariance is centred on the mean of the points and formed in float64 from their inner products, [T, T], so
    that no more than T numbers a parameter are ever held. The first point has positive coordinates.

    Args:
        ws: T ≥ 3 trees of parameters.

    Returns:
        Unit vectors u and v like the points, and the shares [T].

    Raises:
        ValueError: Fewer than three points, or points on one line.
    """
    if len(ws) < 3:
        raise ValueError(f"A plane of principal directions needs at least 3 points of a trajectory; got {len(ws)}.")
    leaves = [np.stack(x).astype(np.float64).reshape(len(ws), -1) for x in zip(*map(jax.tree.leaves, ws), strict=True)]
    centred = [x - x.mean(0) for x in leaves]
    gram = sum(x @ x.T for x in centred)
    values, vectors = np.linalg.eigh(np.asarray(gram))
    values, vectors = values[::-1].clip(0), vectors[:, ::-1]
    if not values[1] > FLAT**2 * values[0]:
        raise ValueError("The points of the trajectory lie on one line (or coincide), so they span no plane.")
    found = []
    for k in (0, 1):
        weights = vectors[:, k] / np.sqrt(values[k]) * (1 if vectors[0, k] >= 0 else -1)
        flat = [weights @ x for x in centred]
        found.append(_like(ws[0], flat))
    return found[0], found[1], values / values.sum()


def _like(w: Params, flat: Sequence[np.ndarray]) -> Params:
    leaves, structure = jax.tree.flatten(w)
    shaped = [jnp.asarray(f.reshape(x.shape), x.dtype) for f, x in zip(flat, leaves, strict=True)]
    return jax.tree.unflatten(structure, shaped)


def unit(d: Params, what: str) -> Params:
    """d / ‖d‖.

    Raises:
        ValueError: d is zero or not finite.
    """
    length = float(trees.norm(d))
    if not 0 < length < np.inf:
        raise ValueError(f"{what} has norm {length:g}, so it gives no direction; take another plane.")
    return trees.scale(1 / length, d)
