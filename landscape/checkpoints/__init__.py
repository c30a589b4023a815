"""Parameters from the files that people keep: npz, safetensors, orbax folders; matched to a network by name."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from landscape.files import atomic

Params = Any


def load(path: Path | str, like: Params | None = None) -> list[Params]:
    """The solutions in one checkpoint: usually one, several where every array has a leading axis of seeds.

    Args:
        path: A .npz or .safetensors file or an orbax folder. Names may be joined by "/" or ".", or be paths as
            `Solutions.save` writes them.
        like: Parameters of the network, or their shapes; without them the names become nested dictionaries.

    Raises:
        FileNotFoundError: No such file or folder.
        ValueError: A format that is not known, a package that is missing, or arrays of another network.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; --solutions wants npz, safetensors or orbax checkpoints.")
    arrays = {key: value for key, value in _read(path).items() if not key[0].startswith("__")}
    if like is None:
        return [_nested(arrays)]
    return _matched(path, arrays, like)


def load_if_there(path: Path | str, like: Params) -> Params | None:
    """Further arrays of a checkpoint, such as running statistics; the first of several; None where it holds none.

    Raises:
        ValueError: It holds some of them, or others.
    """
    names = {words(where) for where, _ in jax.tree_util.tree_leaves_with_path(like)}
    arrays = _read(Path(path)) if Path(path).exists() else {}
    return _matched(Path(path), arrays, like)[0] if names & set(arrays) else None


def save(path: Path | str, params: Params) -> None:
    """Write parameters as npz, names joined by "/"."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    arrays = {"/".join(words(where)): np.asarray(leaf) for where, leaf in leaves}

    def write(pending: Path) -> None:
        with open(pending, "wb") as file:
            np.savez(file, allow_pickle=False, **arrays)

    atomic.write_atomic(Path(path), write)


def _read(path: Path) -> dict[tuple[str, ...], np.ndarray]:
    if path.is_dir():
        return _read_orbax(path)
    if path.suffix == ".npz":
        try:
            with np.load(path) as stored:
                return {_split(name): stored[name] for name in stored.files}
        except Exception as error:  # damage can surface as any of zipfile's and numpy's many errors
            raise ValueError(f"{path} cannot be read as npz ({error}).") from error
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    raise ValueError(f"{path} has no known format; wanted .npz, .safetensors, or an orbax folder.")


def _read_safetensors(path: Path) -> dict[tuple[str, ...], np.ndarray]:
    try:
        from safetensors.numpy import load_file
    except ImportError as error:
        raise ValueError(f"{path} needs the package safetensors; install it, or save as npz.") from error
    try:
        return {_split(name): value for name, value in load_file(path).items()}
    except Exception as error:  # the format's own error class is not an Exception of one kind in all versions
        raise ValueError(f"{path} cannot be read as safetensors ({error}).") from error


def _read_orbax(path: Path) -> dict[tuple[str, ...], np.ndarray]:
    try:
        import orbax.checkpoint as orbax
    except ImportError as error:
        raise ValueError(f"{path} needs the package orbax-checkpoint; install it, or save as npz.") from error
    try:
        with warnings.catch_warnings(action="ignore"):  # about shardings, which do not matter here
            tree = orbax.PyTreeCheckpointer().restore(path.absolute())
    except Exception as error:  # orbax reports a folder that is no checkpoint in many ways
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} cannot be read as an orbax checkpoint ({text}).") from error
    return {words(where): np.asarray(leaf) for where, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _split(name: str) -> tuple[str, ...]:
    """A name's words, however they are joined: "a/b", "a.b", "params['a']['b']", "params[0]['b']"."""
    text = name.removeprefix("params") if name.startswith(("params[", "params.", "params/")) else name
    for mark in "[]'\".":
        text = text.replace(mark, "/")
    return tuple(word for word in text.split("/") if word) or (name,)


def words(where: Iterable[Any]) -> tuple[str, ...]:
    """A path in a tree as words, without the wrappers that flax adds."""
    found = tuple(str(getattr(k, "key", getattr(k, "idx", getattr(k, "name", k)))) for k in where)
    while len(found) > 1 and found[-1] in ("value", "raw_value"):
        found = found[:-1]
    return found[1:] if len(found) > 1 and found[0] == "params" else found


def _nested(arrays: Mapping[tuple[str, ...], np.ndarray]) -> Params:
    found: dict[str, Any] = {}
    for (*path, last), value in arrays.items():
        place = found
        for word in path:
            place = place.setdefault(word, {})
        place[last] = jnp.asarray(value)
    return found


def _matched(path: Path, arrays: Mapping[tuple[str, ...], np.ndarray], like: Params) -> list[Params]:
    leaves, structure = jax.tree_util.tree_flatten_with_path(like)
    names = [words(where) for where, _ in leaves]
    missing = [name for name in names if name not in arrays]
    if missing:
        raise ValueError(
            f"{path} does not hold {_listed(missing)}, which the network has; it holds {_listed(list(arrays))}.\n"
            "  Save the parameters under the network's own names."
        )
    found = [arrays[name] for name in names]
    wanted = [tuple(leaf.shape) for _, leaf in leaves]
    if all(x.shape == shape for x, shape in zip(found, wanted, strict=True)):
        return [jax.tree.unflatten(structure, [jnp.asarray(x) for x in found])]
    if len({x.shape[:1] for x in found}) == 1 and all(x.shape[1:] == s for x, s in zip(found, wanted, strict=True)):
        count = len(found[0])
        return [jax.tree.unflatten(structure, [jnp.asarray(x[k]) for x in found]) for k in range(count)]
    wrong = next(k for k, (x, s) in enumerate(zip(found, wanted, strict=True)) if x.shape != s)
    raise ValueError(
        f"{path} has {_listed([names[wrong]])} of shape {list(found[wrong].shape)}; the network has "
        f"{list(wanted[wrong])}.\n  Is it a checkpoint of another network, or of another number of branches?"
    )


def _listed(names: Sequence[tuple[str, ...]]) -> str:
    return ", ".join("/".join(name) for name in names[:4]) + (" …" if len(names) > 4 else "")
