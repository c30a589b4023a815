"""What a user names on the command line, made into a problem: network, data, loss and checkpoints."""

import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from landscape import checkpoints, datasets, losses, modules, trees
from landscape.datasets import Dataset
from landscape.losses import Loss
from landscape.networks import MultiBranch, Network, relu_branch
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
        like: Parameters of one checkpoint (shapes); None where they are whatever the file holds.
        lifted: Whether checkpoints get an axis of one branch.
    """

    risk: Any
    problem: Problem | None = None
    test: Problem | None = None
    like: Params = None
    lifted: bool = False


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
        return Dataset(*(np.asarray(part) for part in found), name=text)
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
    """Everything that --network, --data, --test-data, --loss and --state name.

    Raises:
        ValueError: Objects that do not fit together.
    """
    if not config.network:
        network: Any = MultiBranch(relu_branch(10, summed_over=30), 30, average=False)
        data = data_of(config.data, "--data", root=root, limit=config.limit) if config.data else None
        return _problem(network, data or datasets.synthetic_teacher(key), config, root)
    target = named(config.network, "--network")
    if not config.data:
        found = modules.given(target, None, config.state, f"--network {config.network}")
        if found.risk is None:
            raise ValueError("--network names a network, so --data is needed (mnist, cifar10 or MODULE:NAME).")
        return Given(found.risk)
    data = data_of(config.data, "--data", root=root, limit=config.limit)
    found = modules.given(target, data.x[:1], config.state, f"--network {config.network}")
    if found.risk is not None:
        return Given(found.risk)
    if found.network is None:
        return _recomputed(found, target, data, config, root)
    return _problem(found.network, data, config, root)


def _problem(network: Any, data: Dataset, config: Any, root: Path | None) -> Given:
    pure = isinstance(network, Network) and network.init is modules.no_init
    if pure:
        if not config.solutions:
            raise ValueError("A pure function of (params, x) has no initial parameters; name its --solutions.")
        first = checkpoints.load(config.solutions[0])[0]
        network = Network(lambda key: first, network.apply)
    like, plain = jax.eval_shape(network.init, jax.random.key(0)), isinstance(network, Network)
    network = MultiBranch(network, 1) if plain else network
    problem = Problem(data, network, loss_of(config.loss))
    test = test_data(config, root)
    tested = Problem(test, network, problem.loss) if test else None
    return Given(problem, problem, tested, like, plain)


def test_data(config: Any, root: Path | None) -> Dataset | None:
    """The data of the test risk, if there are any."""
    if config.test_data:
        return data_of(config.test_data, "--test-data", split="test", root=root, limit=config.limit)
    if config.data in ("mnist", "cifar10"):
        return data_of(config.data, "--data", split="test", root=root, limit=config.limit)
    return None


def _recomputed(found: modules.Given, target: Any, data: Dataset, config: Any, root: Path | None) -> Given:
    loss, test = loss_of(config.loss), test_data(config, root)
    extra = {"test risk": (test, loss)} if test else {}
    risk = modules.recomputed_risk(found.make, data, loss, quantities=extra)
    network = modules.given(target, data.x[:1], "frozen").network
    like = jax.eval_shape(network.init, jax.random.key(0)) if network else None
    return Given(risk, like=like)


def load(paths: Sequence[Path], to: Given) -> list[Params]:
    """Checkpoints as parameters of the problem.

    Raises:
        ValueError: Checkpoints of another network, of different networks, or two equal ones.
    """
    found = [(path, w) for path in paths for w in checkpoints.load(path, to.like)]
    for path, w in found[1:]:
        if jax.tree.structure(w) != jax.tree.structure(found[0][1]):
            raise ValueError(f"{path} and {found[0][0]} hold parameters of different structure; name one network's.")
    if to.lifted:
        return [jax.tree.map(lambda x: x[None], w) for _, w in found]
    return [w for _, w in found]


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


def further_losses(problem: Problem) -> Mapping[str, Loss]:
    """The accuracy as a further quantity, where the labels are classes or ±1."""
    y = np.asarray(problem.data.y)
    if np.issubdtype(y.dtype, np.integer) and y.ndim == 1 and not np.isin(y, (-1, 1)).all():
        return {"accuracy": accuracy}
    return {"accuracy": sign_accuracy} if y.ndim == 1 and np.isin(y, (-1, 1)).all() else {}


def accuracy(outputs: jax.Array, y: jax.Array) -> jax.Array:
    """1 where the largest output is that of the class, else 0."""
    return (jnp.argmax(outputs, -1) == y).astype(outputs.dtype)


def sign_accuracy(outputs: jax.Array, y: jax.Array) -> jax.Array:
    """1 where the output has the sign of the label, else 0."""
    return (outputs[..., 0] * y > 0).astype(outputs.dtype)
