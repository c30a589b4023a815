"""Which weights belong to one output unit, read from the trace of their network or function."""

import re
import warnings
from collections.abc import Callable
from typing import Any

import jax

from landscape.compiler import staged
from landscape.compiler.output_axes import Units, output_axes
from landscape.networks import MultiBranch, Network
from landscape.planes import directions
from landscape.problem import Problem

Params = Any
Of = Problem | MultiBranch | Network | Callable[[Params], Any]


def units_of(of: Of | None, w: Params, example: Any = None, stacked: bool = False) -> list[Units]:
    """The output units of every array of w, the branch axis aside; empty where nothing can be traced.

    Arrays of several axes whose output units the trace does not show are named in a warning.

    Args:
        of: A problem, a network, or a function risk(params).
        w: Parameters.
        example: One example of the network's, or its shape and type; a problem's own, or that of a PyTorch module.
        stacked: Whether the arrays of a function's parameters have an axis of branches first.

    Raises:
        ValueError: The parameters are not the network's.
    """
    if of is None:
        return []
    if isinstance(of, Problem):
        of, example = of.network, of.data.example
    if not isinstance(of, MultiBranch | Network):
        leaves = jax.tree.leaves(w)
        found = output_axes(jax.make_jaxpr(lambda params: of(params))(w), len(leaves))
        found = [_of_one(u, x.ndim) for u, x in zip(found, leaves, strict=True)] if stacked else found
    else:
        network = of if isinstance(of, MultiBranch) else MultiBranch(of, 1)
        example = getattr(network.branches[0].apply, "example", None) if example is None else example
        if example is None:
            return []
        if isinstance(of, MultiBranch):
            directions.refuse_counts(of, w)
        shapes = w if isinstance(of, MultiBranch) else jax.tree.map(_one_branch, w)
        counts = [len(jax.tree.leaves(group)) for _, group in network.groups(shapes)]
        traces = staged.traces(network, shapes, jax.tree.map(_shape, example))
        found = [u for closed, n in zip(traces, counts, strict=True) for u in output_axes(closed, n)]
    places = jax.tree_util.tree_leaves_with_path(w)
    found = [_bias(path, u) for (path, _), u in zip(places, found, strict=True)]
    _say(w, found)
    return found


def _bias(path: Any, units: Units) -> Units:
    """The units of an array that only its name tells to be a bias, as one for every unit of every head."""
    last = re.sub(r"\W", "", jax.tree_util.keystr(path[-1:]))
    return Units(None, True) if units.axes is None and last in ("bias", "scale", "in_proj_bias") else units


def _of_one(units: Units, rank: int) -> Units:
    """The units of an array in one branch, from those with the axis of branches."""
    if units.axes is None:
        return Units(None, rank <= 2)
    return Units(frozenset(axis - 1 for axis in units.axes if axis))


def _one_branch(x: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((1, *x.shape), x.dtype)


def _shape(x: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


def _say(w: Params, found: list[Units]) -> None:
    pairs = zip(jax.tree_util.tree_leaves_with_path(w), found, strict=True)
    unclear = [jax.tree_util.keystr(path) for (path, _), u in pairs if u.axes is None and not u.vector]
    if unclear:
        more = f" and {len(unclear) - 3} more" if unclear[3:] else ""
        warnings.warn(
            f"The trace does not show what the output units of {', '.join(unclear[:3])}{more} are: their last axis "
            "counts as the units of a filter.",
            stacklevel=4,
        )
