"""The entries of a checkpoint that are parameters of a function: the floating-point arrays that it reads."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax

from landscape import checkpoints
from landscape.planes.parameters import read_by

Params = Any


class Parameters(NamedTuple):
    """The parameters of a function of a checkpoint's tree.

    Attributes:
        tree: Those of the checkpoint, as nested dictionaries.
        whole: Maps parameters to the tree that the function takes; other entries are the checkpoint's.
    """

    tree: Params
    whole: Callable[[Params], Params]


def of_function(f: Callable[[Params], Any], path: Path) -> Parameters:
    """The parameters of a function, by its trace at a checkpoint.

    Counters, random keys and unread moments must not become coordinates of a plane.

    Args:
        f: A function of the tree that the checkpoint holds.
        path: The checkpoint.

    Raises:
        ValueError: The checkpoint cannot be read.
    """
    plain = checkpoints.load(path)[0]
    try:
        every = checkpoints.read(path, everything=True).solutions[0]
        leaves, structure = jax.tree_util.tree_flatten_with_path(every)
        free = [n for n, read in enumerate(read_by(f, every)) if read]
    except Exception:  # whatever a stranger's function raises where it does not take this tree
        _refuse_misfit(f, plain, path)
        return Parameters(plain, lambda w: w)
    if not free or len(free) == len(leaves):
        return Parameters(plain, lambda w: w)

    def whole(params: Params) -> Params:
        given = {jax.tree_util.keystr(where): w for where, w in jax.tree_util.tree_leaves_with_path(params)}
        return structure.unflatten([given.get(jax.tree_util.keystr(where), leaf) for where, leaf in leaves])

    return Parameters(_pruned(every, {jax.tree_util.keystr(leaves[n][0]) for n in free}), whole)


def _refuse_misfit(f: Callable[[Params], Any], tree: Params, path: Path) -> None:
    """Refuse a checkpoint that a function cannot be called with.

    Raises:
        ValueError: The function raises something.
    """
    try:
        jax.eval_shape(f, tree)
    except Exception as error:
        names = [jax.tree_util.keystr(where) for where, _ in jax.tree_util.tree_leaves_with_path(tree)]
        more = f" and {len(names) - 4} more" if names[4:] else ""
        text = (str(error).strip().splitlines() or [""])[0][:200]
        raise ValueError(
            f"The function cannot be called with what {path} holds, {', '.join(names[:4])}{more} "
            f"({type(error).__name__}: {text}).\n  Of a training state it is given the parameters alone."
        ) from error


def _pruned(tree: Any, kept: set[str], where: tuple[Any, ...] = ()) -> Any:
    """Nested dictionaries with the named leaves only."""
    found = {}
    for key, inner in tree.items():
        place = (*where, jax.tree_util.DictKey(key))
        part = _pruned(inner, kept, place) if isinstance(inner, dict) else inner
        if part if isinstance(inner, dict) else jax.tree_util.keystr(place) in kept:
            found[key] = part
    return found
