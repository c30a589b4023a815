"""Names of arrays: split into words however they are joined, stripped of containers, matched to a network's."""

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from landscape.checkpoints.contents import Contents, Leaf, Name

CONTAINERS = (
    *("params", "state_dict", "model_state_dict", "model", "module", "_orig_mod", "model_weights", "target"),
    *("state", "train_state", "net", "network", "weights", "variables", "default"),
)
"""First words that may wrap all the parameters; the rest of a file is then no part of the network."""
SURE = ("params", "state_dict", "model_state_dict")
"""Those that are taken off without a network to compare with."""
BESIDE = (
    *("opt_state", "opt", "opts", "optimizer", "optimizers", "optimizer_state", "optimizer_states", "tx", "optim"),
    *("optimizer_state_dict", "step", "epoch", "global_step", "iteration", "batch_stats", "rng", "rngs", "key", "keys"),
    *("lr_schedulers", "lr_scheduler", "scheduler", "scheduler_state_dict", "loops", "callbacks", "hyper_parameters"),
    *("scaler", "loss", "metrics", "dropout", "best_acc", "args", "config", "hparams"),
)
"""First words of what training keeps beside the parameters."""
MANY = 5_000
"""Names among which the nearest one is looked for."""
STATISTICS = (
    *("running_mean", "running_var", "num_batches_tracked", "moving_mean", "moving_variance", "mean", "var", "count"),
)
"""Last words of running statistics, which are loaded apart (`load_if_there`)."""


def words(where: Iterable[Any]) -> Name:
    """A path in a tree as words, without the wrappers that flax adds."""
    found = tuple(str(getattr(k, "key", getattr(k, "idx", getattr(k, "name", k)))) for k in where)
    while len(found) > 1 and found[-1] in ("value", "raw_value"):
        found = found[:-1]
    return found[1:] if len(found) > 1 and found[0] == "params" else found


def split(name: str) -> Name:
    """A name's words, however they are joined: "a/b", "a.b", "params['a']['b']", "params[0]['b']".

    >>> split("params['a'][0].b")
    ('params', 'a', '0', 'b')
    """
    text = name
    for mark in "[]'\".":
        text = text.replace(mark, "/")
    return tuple(word for word in text.split("/") if word) or (name,)


def canonical(name: Iterable[str]) -> Name:
    """Words that themselves hold "." or "/" are split too, so that both sides of a comparison are alike."""
    found = tuple(part for word in name for part in split(word))
    while len(found) > 1 and found[-1] in ("value", "raw_value"):
        found = found[:-1]
    return found


def is_parameter(name: Name, leaf: Leaf) -> bool:
    """Whether an entry may be a parameter: floating-point, neither a statistic nor part of an optimiser's state.

    A scalar in float64 is a setting that was a Python number, such as the rate of a dropout.
    """
    number = leaf.shape == () and leaf.dtype == np.float64
    return leaf.is_float and not number and name[-1] not in STATISTICS and not set(name) & set(BESIDE)


def chosen(contents: Contents, wanted: Iterable[Name]) -> dict[Name, Leaf]:
    """The part of a file that holds the most of a network's names; the outermost of equal ones."""
    wanted = set(wanted)
    return max(_parts(contents.leaves, contents.nested), key=lambda part: len(wanted & set(part)))


def _parts(leaves: Mapping[Name, Leaf], nested: bool) -> Iterator[dict[Name, Leaf]]:
    """The whole, and what is inside each container, from the outermost inwards."""
    yield dict(leaves)
    for first in sorted({name[0] for name in leaves if len(name) > 1} & set(CONTAINERS), key=CONTAINERS.index):
        inside = {name[1:]: leaf for name, leaf in leaves.items() if name[0] == first and len(name) > 1}
        outside = [item for item in leaves.items() if item[0][0] != first]
        if nested or not any(is_parameter(*item) for item in outside):
            yield from _parts(inside, nested)


def parameters(contents: Contents, everything: bool = False) -> dict[Name, Leaf]:
    """What is taken for parameters without a network: the inside of "params" and the like, floating-point only.

    Args:
        contents: What the file holds.
        everything: Numbers of every kind, an optimiser's state included.
    """
    leaves = dict(contents.leaves)
    while True:
        first = next((w for w in SURE if any(name[0] == w and len(name) > 1 for name in leaves)), None)
        outside = [item for item in leaves.items() if item[0][0] != first]
        if first is None or (not contents.nested and any(is_parameter(*item) for item in outside)):
            break
        leaves = {name[1:]: leaf for name, leaf in leaves.items() if name[0] == first and len(name) > 1}
    if everything:
        return {name: leaf for name, leaf in leaves.items() if leaf.dtype is not None}
    own = {name: leaf for name, leaf in leaves.items() if leaf.is_float or _is_complex(leaf)}
    return {name: leaf for name, leaf in own.items() if name[0] not in BESIDE} or own


def _is_complex(leaf: Leaf) -> bool:
    return leaf.dtype is not None and leaf.dtype.kind == "c"


def nested(path: Path, arrays: Mapping[Name, Any]) -> Any:
    """Arrays as nested dictionaries.

    Raises:
        ValueError: One name is an array and a folder of arrays.
    """
    found: dict[str, Any] = {}
    for name, value in arrays.items():
        place = found
        for word in name[:-1]:
            place = place.setdefault(word, {})
            if not isinstance(place, dict):
                break
        if not isinstance(place, dict) or name[-1] in place:
            raise ValueError(f"{path} holds an array {listed([name])} and others inside that name; wanted one of them.")
        place[name[-1]] = value
    return found


def shown(name: Name) -> str:
    """A name in a message: on one line, of a length that can be read."""
    return "".join(c if c.isprintable() else "?" for c in "/".join(name)[:80])


def listed(names: Sequence[Name]) -> str:
    """Three names at most, and how many more there are."""
    text = ", ".join(map(shown, names[:3]))
    return f"{text} and {len(names) - 3} more" if len(names) > 3 else text or "nothing"


def lacking(path: Path, missing: Sequence[Name], there: Mapping[Name, Leaf]) -> ValueError:
    """The error about arrays that the network has and the file has not, with the nearest names of those it has."""
    spare = ["/".join(name) for name in list(there)[:MANY]]
    said = []
    for name in missing[:3]:
        near = difflib.get_close_matches("/".join(name), spare, 1, 0.5)
        said.append(shown(name) + (f" (nearest: {shown((near[0],))})" if near else ""))
    more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
    return ValueError(
        f"{path} lacks {', '.join(said)}{more}, which the network has; it has unexpected {listed(list(there))}.\n"
        "  Is it a checkpoint of another network? Save the parameters under the network's own names."
    )


def misshapen(path: Path, wrong: Sequence[tuple[Name, Leaf, tuple[int, ...]]]) -> ValueError:
    """The error about arrays of another shape: name, what the file has, the network's shape."""
    said = []
    for name, leaf, shape in wrong[:3]:
        turned = len(shape) > 1 and leaf.shape != shape and _is_transposed(leaf.shape, shape)
        said.append(f"{shown(name)} {list(leaf.shape)}, wanted {list(shape)}" + ", transposed?" * turned)
    more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
    return ValueError(
        f"{path} has arrays of another shape than the network's: {'; '.join(said)}{more}.\n"
        "  Is it a checkpoint of another network, of another layout, or of another number of branches?"
    )


def _is_transposed(came: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Whether a permutation of axes makes one the other; [O, I, H, W] and [H, W, I, O] for convolutions."""
    return len(came) == len(wanted) and sorted(came) == sorted(wanted)


def of_tree(tree: Any) -> list[tuple[Name, Any]]:
    """Names and leaves of a tree, in its own order; () is the name of a tree that is one array."""
    return [(canonical(words(where)), leaf) for where, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def is_array(leaf: Any) -> bool:
    """Whether a leaf of a network's tree is an array or its shape."""
    return hasattr(leaf, "shape") and hasattr(leaf, "dtype") and not isinstance(leaf, np.generic)
