"""What a user names on the command line, made into a problem: network, data, loss and checkpoints."""

import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from landscape import checkpoints, datasets, losses, planes
from landscape.arrays import trees
from landscape.datasets import Dataset
from landscape.explore import parameters
from landscape.losses import Loss
from landscape.networks import MultiBranch, Network, modules, relu_branch
from landscape.problem import Problem

Params = Any
SAME = 1e-6
"""Two solutions closer than this share of their norm count as equal."""


class Given(NamedTuple):
    """A user's network with its data and loss.

    Attributes:
        risk: What `evaluate` takes: a `Problem`, or risk(params).
        problem: The problem, where there is one.
        test: The same on test data.
        like: What a checkpoint is compared with: the problem, or shapes; None if it is whatever the file holds.
        note: What is said of the network's state; empty where it has none.
        data: Data sets by name, to be recorded.
    """

    risk: Any
    problem: Problem | None = None
    test: Problem | None = None
    like: Params = None
    note: str = ""
    data: Mapping[str, Dataset] = MappingProxyType({})

    def network_for(self, what: str) -> Problem:
        """The problem, for what needs one.

        Raises:
            ValueError: There is only a function of the parameters.
        """
        if self.problem is None:
            raise ValueError(f"{what} wants a network with data (--network, --data), not a function risk(params).")
        return self.problem


class Loaded(NamedTuple):
    """Solutions, if any exist, with the names of their files; trajectories by name; remarks on the files; formats."""

    solutions: list[Params]
    names: list[str]
    paths: dict[str, list[Params]]
    remarks: list[str]
    formats: str


def named(text: str, option: str) -> Any:
    """The object MODULE:NAME, modules of the current folder included.

    Raises:
        ValueError: There is no such module or name, or the module fails on import.
    """
    module, _, name = text.partition(":")
    if not module or not name:
        raise ValueError(f"{option} wants MODULE:NAME, such as my_module:make; got {text!r}.")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found = importlib.import_module(module)
    except Exception as error:  # whatever the user's module does on import
        raise ValueError(f"{option} {text}: importing {module} failed ({type(error).__name__}: {error}).") from error
    for part in name.split("."):
        if not hasattr(found, part):
            raise ValueError(f"{option} {text}: {module} has no {name}.")
        found = getattr(found, part)
    return found


def data_of(text: str, option: str, *, split: str = "train", root: Path | None = None, limit: int | None = None) -> Any:
    """The data set behind --data: mnist, cifar10, or MODULE:NAME of a Dataset, of (x, y) or of their function.

    Raises:
        ValueError: It is none of these.
    """
    if text in ("mnist", "cifar10"):
        return getattr(datasets, text)(root, split, limit)
    found = named(text, option)
    if callable(found) and not isinstance(found, Dataset):
        found = found()
    if isinstance(found, Dataset):
        return found
    if isinstance(found, tuple | list) and len(found) in (2, 3):
        return Dataset(*found, name=text)
    raise ValueError(f"{option} {text} is {type(found).__name__}; wanted a Dataset, (x, y) or (x, y, weight).")


def loss_of(text: str) -> Loss:
    """The loss of a name, or MODULE:NAME.

    Raises:
        ValueError: There is no such loss.
    """
    if text in losses.BY_NAME:
        return losses.BY_NAME[text]
    if ":" not in text:
        raise ValueError(f"--loss wants {', '.join(losses.BY_NAME)} or MODULE:NAME; got {text}.")
    return named(text, "--loss")


def of(config: Any, root: Path | None, key: jax.Array) -> Given:
    """Everything that --network, --branches, --data, --test-data, --loss and --state name.

    Raises:
        ValueError: Objects that do not fit together.
    """
    if not config.network:
        network: Any = MultiBranch(relu_branch(10, summed_over=30), 30, average=False)
        data = data_of(config.data, "--data", root=root, limit=config.limit) if config.data else None
        return _problem(network, data or datasets.synthetic_teacher(key), config, root)
    target, name = named(config.network, "--network"), f"--network {config.network}"
    data = data_of(config.data, "--data", root=root, limit=config.limit) if config.data else None
    found = modules.read(target, None if data is None else data.taken(slice(1)).x, config.state, name)
    if found.risk is not None:
        return _function(found.risk, config)
    if data is None:
        raise ValueError("--network names a network, so --data is needed (mnist, cifar10 or MODULE:NAME).")
    if found.network is None:
        return _recomputed(found, data, config, root)
    network, note = _with_statistics(found, data, config)
    if config.branches and isinstance(network, MultiBranch):
        raise ValueError(f"{name} is a MultiBranch of its own, {network}; leave --branches out.")
    return _problem(MultiBranch(network, config.branches) if config.branches else network, data, config, root, note)


def _function(risk: Any, config: Any) -> Given:
    if config.state != "none" or config.branches:
        raise ValueError(
            f"--network {config.network} is a function risk(params): what becomes of its state and branches is in it.\n"
            "  Leave --state and --branches out, or name the module itself."
        )
    if not config.solutions:
        return Given(risk)
    found = parameters.of_function(risk, config.solutions[0])
    return Given(lambda w: risk(found.whole(w)), like=jax.eval_shape(lambda: found.tree))


def _problem(network: Any, data: Dataset, config: Any, root: Path | None, note: str = "") -> Given:
    pure = isinstance(network, Network) and network.init is modules.no_init
    if pure:
        if not config.solutions:
            raise ValueError("A pure function of (params, x) has no initial parameters; name its --solutions.")
        apply, one = network.apply, data.taken(slice(1)).x
        found = parameters.of_function(lambda w: apply(w, jax.tree.map(jnp.asarray, one)), config.solutions[0])
        network = Network(lambda key: found.tree, lambda w, x: apply(found.whole(w), x))
    network = MultiBranch(network, 1) if isinstance(network, Network) else network
    problem = Problem(data, network, loss_of(config.loss))
    test = test_data(config, root)
    tested = Problem(test, network, problem.loss) if test else None
    return Given(problem, problem, tested, problem, note, _named_data(data, test))


def _named_data(data: Dataset, test: Dataset | None) -> dict[str, Dataset]:
    return {"data": data, **({"test data": test} if test else {})}


def _with_statistics(found: modules.Form, data: Dataset, config: Any) -> tuple[Any, str]:
    """The network with the state of the first checkpoint where it holds one; and what is said of it."""
    held = modules.statistics(found.make, data.taken(slice(1)).x) if config.state == "frozen" else None
    if not held:
        return found.network, ""
    first = config.solutions[0] if config.solutions else None
    stored = checkpoints.load_if_there(first, held) if first else None
    if stored is None:
        return found.network, " · state frozen as the module is made"
    if config.branches:
        raise ValueError(
            f"{first} holds statistics, and they cannot be frozen for {config.branches} branches alike.\n"
            "  Take --state recompute."
        )
    return modules.with_statistics(found.make, data.taken(slice(1)).x, stored), f" · state frozen as {first} holds it"


def test_data(config: Any, root: Path | None) -> Dataset | None:
    """The data of the test risk, if there are any."""
    if config.test_data:
        return data_of(config.test_data, "--test-data", split="test", root=root, limit=config.limit)
    if config.data in ("mnist", "cifar10"):
        return data_of(config.data, "--data", split="test", root=root, limit=config.limit)
    return None


def _recomputed(found: modules.Form, data: Dataset, config: Any, root: Path | None) -> Given:
    if not modules.statistics(found.make, data.taken(slice(1)).x):
        raise ValueError(f"--network {config.network} has no statistics to be recomputed; leave --state out.")
    loss, test = loss_of(config.loss), test_data(config, root)
    network = modules.frozen(found.make, data.taken(slice(1)).x)
    if config.branches:
        network = MultiBranch(network, config.branches)
    if not config.solutions:
        raise ValueError("--state recompute wants --solutions: training is left to whoever keeps the statistics.")
    extra = {name: (data, loss) for name, loss in further(data).items()}
    if test:
        extra |= {"test risk": (test, loss), **{f"test {name}": (test, loss) for name, loss in further(test).items()}}
    note = " · state recomputed over the training data at every point"
    if test and modules.is_linen(found.make):
        extra = {name: part for name, part in extra.items() if not name.startswith("test")}
        note += " (a linen module's serve those only: no test risk)"
    risk = modules.recomputed_risk(found.make, data, loss, num_branches=config.branches, quantities=extra)
    like = jax.eval_shape(network.init, jax.random.key(0))
    return Given(risk, like=like, note=note, data=_named_data(data, test))


def load_all(config: Any, to: Given) -> Loaded:
    """The checkpoints of --solutions and --paths.

    Raises:
        ValueError: Checkpoints of another network, of different networks, or too few of them.
    """
    files = [(path, checkpoints.read(path, to.like)) for path in (*config.paths, *config.solutions)]
    _refuse_structures([(path, w) for path, found in files for w in found.solutions])
    count = len(config.paths)
    paths = {name: found.solutions for name, (_, found) in zip(labels(config.paths), files[:count], strict=True)}
    loaded = [(str(path), w) for path, found in files[count:] for w in found.solutions]
    if loaded and config.plane in ("solutions", "oblique") and len(loaded) < 3:
        raise ValueError(
            f"--plane {config.plane} wants three solutions; the files hold {len(loaded)}.\n"
            "  With one or two, take --plane random."
        )
    if loaded and config.plane in ("solutions", "oblique") and len(loaded) % 3:
        raise ValueError(
            f"--plane {config.plane} wants three solutions, or six, nine … for a spread; got {len(loaded)}."
        )
    formats = ", ".join(sorted({found.format for _, found in files[count:]}))
    everything = [w for _, w in loaded] + [w for path in paths.values() for w in path]
    if everything:
        planes.check_solutions(*everything)
    return Loaded([w for _, w in loaded], [name for name, _ in loaded], paths, _remarks(files), formats)


def labels(paths: Sequence[Path]) -> list[str]:
    """Names of files: their stems, or what differs in their paths if stems are equal.

    Raises:
        ValueError: A file is named twice.

    >>> labels([Path("run/a/walk.npz"), Path("run/b/walk.npz")])
    ['a', 'b']
    """
    stems = [path.stem for path in paths]
    if len(set(stems)) == len(stems):
        return stems
    parts = [path.parts if len({p.with_suffix("") for p in paths}) < len(paths) else path.with_suffix("").parts
             for path in paths]  # fmt: skip
    if len(set(parts)) < len(parts):
        raise ValueError(f"--paths names {max(paths, key=paths.count)} twice; every trajectory is drawn once.")
    while len({part[0] for part in parts}) == 1:
        parts = [part[1:] for part in parts]
    while len({part[-1:] for part in parts}) == 1 and min(map(len, parts)) > 1:
        parts = [part[:-1] for part in parts]
    return ["/".join(part) for part in parts]


def _refuse_structures(found: Sequence[tuple[Path, Params]]) -> None:
    for path, w in found[1:]:
        if jax.tree.structure(w) != jax.tree.structure(found[0][1]):
            raise ValueError(f"{path} and {found[0][0]} hold parameters of different structure; name one network's.")


def _remarks(files: Sequence[tuple[Path, checkpoints.Checkpoint]]) -> list[str]:
    """What was left out of files and cast; equal remarks once, with the first file they are about."""
    first: dict[str, Path] = {}
    for path, found in files:
        first.setdefault(found.remark, path)
    return [f"{path}: {remark}" for remark, path in first.items() if remark]


def refuse_equal(solutions: Sequence[Params], names: Sequence[str]) -> None:
    """Refuse two equal solutions.

    Raises:
        ValueError: There are two.
    """
    for i, w in enumerate(solutions):
        for k in range(i):
            if float(trees.norm(trees.subtract(w, solutions[k]))) <= SAME * float(trees.norm(w)):
                raise ValueError(
                    f"{names[k]} and {names[i]} hold the same parameters, so they span no plane.\n"
                    "  Name checkpoints of different trainings, or take --plane random with one of them."
                )


def further(data: Dataset) -> Mapping[str, Loss]:
    """The accuracy as a further quantity, where the labels are classes (of examples or of their tokens) or ±1.

    Examples without a label that counts have no part in the mean.
    """
    y = np.asarray(data.y)
    if y.ndim == 1 and np.isin(y, (-1, 1)).all():
        return {"accuracy": sign_accuracy}
    weight = np.asarray(data.weight, np.float64)
    counted = weight[(y != losses.IGNORED).reshape(len(y), -1).any(1)].sum()
    if not np.issubdtype(y.dtype, np.integer) or not counted:
        return {}
    scale = float(weight.sum() / counted)
    return {"accuracy": accuracy if scale == 1 else lambda outputs, y: scale * accuracy(outputs, y)}


def accuracy(outputs: jax.Array, y: jax.Array) -> jax.Array:
    """1 where the largest output is that of the class, else 0; of several labels an example their mean.

    Args:
        outputs: [N, ..., C].
        y: Classes [N, ...]; those equal to `losses.IGNORED` have no part in the mean, which is 0 where all are.
    """
    return losses.mean_of_labels((jnp.argmax(outputs, -1) == y).astype(outputs.dtype), y)


def sign_accuracy(outputs: jax.Array, y: jax.Array) -> jax.Array:
    """1 where the output has the sign of the label, else 0."""
    return (outputs[..., 0] * y > 0).astype(outputs.dtype)
