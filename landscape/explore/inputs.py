"""The objects named on the command line (network, data, loss and checkpoints) made into a problem."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from landscape import checkpoints, datasets, losses, planes
from landscape.arrays import trees
from landscape.datasets import Dataset
from landscape.explore import layouts, parameters
from landscape.explore.named import data_of, further, loss_of, named, tested
from landscape.networks import MultiBranch, Network, modules, relu_branch
from landscape.problem import Problem

Params = Any
FEW = 64
"""Examples on which a network is tried before anything long starts."""
SAME = 1e-6
"""Two solutions closer than this share of their norm count as equal."""


class About(NamedTuple):
    """A network and its data in words.

    Attributes:
        title: Class and library, such as "CNN (flax nnx)"; empty for functions and our own networks.
        layout: The shape of built-in images, such as "mnist as 28 x 28 x 1"; empty for other data.
        state: "none", "frozen" or "recompute".
        notes: What became of its state and of dropout, in words.
    """

    title: str = ""
    layout: str = ""
    state: str = "none"
    notes: tuple[str, ...] = ()


class Target(NamedTuple):
    """A user's network with its data and loss.

    Attributes:
        risk: A `Problem`, or a function risk(params); `evaluate` takes either.
        problem: The problem; None for a function.
        test: The problem on test data.
        like: The problem or shapes to which a checkpoint must fit; None if any tree will do.
        about: The network and its data in words.
        data: Data sets by name, to be recorded.
    """

    risk: Any
    problem: Problem | None = None
    test: Problem | None = None
    like: Params = None
    about: About = About()
    data: Mapping[str, Dataset] = MappingProxyType({})

    def network_for(self, what: str) -> Problem:
        """The problem, for a purpose that needs one.

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


def resolve(config: Any, root: Path | None, key: jax.Array) -> Target:
    """The target of --network, --branches, --data, --test-data, --loss and --state.

    Raises:
        ValueError: Objects that do not fit together.
    """
    if not config.network:
        if config.layout:
            raise ValueError("--layout is for images of --data with a --network; the example takes vectors.")
        network: Any = MultiBranch(relu_branch(10, summed_over=30), 30, average=False)
        data = data_of(config.data, "--data", root=root, limit=config.limit) if config.data else None
        return _problem(network, data or datasets.synthetic_teacher(key), config, tested(config, root, ""), About())
    module, name = named(config.network, "--network"), f"--network {config.network}"
    data = data_of(config.data, "--data", root=root, limit=config.limit) if config.data else None
    _refuse_missing((*config.solutions, *config.paths))
    (found, state), data, layout = _read(module, data, config, name)
    if found.risk is not None:
        return _function(found.risk, config)
    if data is None:
        raise ValueError("--network names a network, so --data is needed (mnist, cifar10 or MODULE:NAME).")
    laid = f"{config.data} as {' x '.join(map(str, data.x.shape[1:]))}" if layout else ""
    about = About(found.title, laid, state, ("dropout off",) if found.dropout else ())
    if found.network is None:
        return _recomputed(found, data, config, tested(config, root, layout), about)
    network, note = _with_statistics(found, data, config, state)
    about = about._replace(notes=(note, *about.notes) if note else about.notes)
    if config.branches and isinstance(network, MultiBranch):
        raise ValueError(f"{name} is a MultiBranch of its own, {network}; leave --branches out.")
    network = MultiBranch(network, config.branches) if config.branches else network
    return _problem(network, data, config, tested(config, root, layout), about)


def _refuse_missing(paths: Sequence[Path]) -> None:
    for path in paths:
        if not os.path.exists(path):
            raise FileNotFoundError(f"{path} does not exist; a checkpoint was wanted.")


def _read(module: Any, data: Dataset | None, config: Any, name: str) -> tuple[Any, Dataset | None, str]:
    """The network with its state, the data in an accepted layout, and the layout of built-in images."""
    if data is None or config.data not in layouts.SIZES:
        if config.layout:
            raise ValueError(f"--layout {config.layout} is for --data mnist or cifar10; other data come as they are.")
        return _form(module, None if data is None else data.taken(slice(1)).x, config, name), data, ""

    def fits(found: tuple[modules.Form, str], laid: Dataset) -> None:
        form = found[0]
        if form.risk is None:
            network = form.network or modules.frozen(form.make, laid.x[:1])
            network = _with_parameters(network, laid, config)
            shapes = jax.eval_shape(network.init, jax.random.key(0))
            layouts.accepts(network, shapes, laid)
            if config.solutions and not config.branches and modules.is_linen(form.make):
                checkpoints.read(config.solutions[0], shapes)  # its shapes depend on those of the data

    order = (config.layout,) if config.layout else layouts.ORDERS[modules.library(module)]
    return layouts.first_fitting(data, config.data, order, lambda x: _form(module, x, config, name), fits)


def _form(module: Any, example: Any, config: Any, name: str) -> tuple[modules.Form, str]:
    """The network and its state. With "auto", statistics are frozen if the first checkpoint holds them."""
    if config.state != "auto":
        return modules.read(module, example, config.state, name), config.state
    try:
        return modules.read(module, example, "none", name), "none"
    except ValueError:
        if example is None or not config.solutions:
            raise
        found = modules.read(module, example, "frozen", name)
        held = modules.statistics(found.make, example)
        if not held or checkpoints.load_if_there(config.solutions[0], held) is None:
            raise
        return found, "frozen"


def _function(risk: Any, config: Any) -> Target:
    if config.state not in ("none", "auto") or config.branches:
        raise ValueError(
            f"--network {config.network} is a function risk(params): what becomes of its state and branches is in it.\n"
            "  Leave --state and --branches out, or name the module itself."
        )
    if not config.solutions:
        return Target(risk)
    found = parameters.of_function(risk, config.solutions[0])
    return Target(lambda w: risk(found.whole(w)), like=jax.eval_shape(lambda: found.tree))


def _problem(network: Any, data: Dataset, config: Any, test: Dataset | None, about: About) -> Target:
    network = _with_parameters(network, data, config)
    network = MultiBranch(network, 1) if isinstance(network, Network) else network
    problem = Problem(data, network, loss_of(config.loss))
    tested = Problem(test, network, problem.loss) if test else None
    return Target(problem, problem, tested, problem, about, _named_data(data, test))


def _with_parameters(network: Any, data: Dataset, config: Any) -> Any:
    """A pure function with the parameters that the first checkpoint holds; other networks as they are."""
    if not isinstance(network, Network) or network.init is not modules.no_init:
        return network
    if not config.solutions:
        raise ValueError("A pure function of (params, x) has no initial parameters; name its --solutions.")
    apply, one = network.apply, jax.tree.map(jnp.asarray, data.taken(slice(1)).x)
    found = parameters.of_function(lambda w: apply(w, one), config.solutions[0])
    return Network(lambda key: found.tree, lambda w, x: apply(found.whole(w), x))


def _named_data(data: Dataset, test: Dataset | None) -> dict[str, Dataset]:
    return {"data": data, **({"test data": test} if test else {})}


def _with_statistics(found: modules.Form, data: Dataset, config: Any, state: str) -> tuple[Any, str]:
    """The network with the state of the first checkpoint, if it holds one; and a note on it."""
    held = modules.statistics(found.make, data.taken(slice(1)).x) if state == "frozen" else None
    if not held:
        return found.network, ""
    first = config.solutions[0] if config.solutions else None
    stored = checkpoints.load_if_there(first, held) if first else None
    if stored is None:
        return found.network, "BatchNorm frozen as the module is made"
    if config.branches:
        raise ValueError(
            f"{first} holds statistics, and they cannot be frozen for {config.branches} branches alike.\n"
            "  Take --state recompute."
        )
    return modules.with_statistics(found.make, data.taken(slice(1)).x, stored), f"BatchNorm frozen as {first} holds it"


def _recomputed(found: modules.Form, data: Dataset, config: Any, test: Dataset | None, about: About) -> Target:
    if not modules.statistics(found.make, data.taken(slice(1)).x):
        raise ValueError(f"--network {config.network} has no statistics to be recomputed; leave --state out.")
    loss = loss_of(config.loss)
    network = modules.frozen(found.make, data.taken(slice(1)).x)
    if config.branches:
        network = MultiBranch(network, config.branches)
    if not config.solutions:
        raise ValueError("--state recompute wants --solutions: training is left to whoever keeps the statistics.")
    extra = {name: (data, loss) for name, loss in further(data).items()}
    if test:
        extra |= {"test risk": (test, loss), **{f"test {name}": (test, loss) for name, loss in further(test).items()}}
    note = "BatchNorm recomputed over the training data at every point"
    if test and modules.is_linen(found.make):
        extra = {name: part for name, part in extra.items() if not name.startswith("test")}
        note += " (a linen module's serve those only: no test risk)"
    risk = modules.recomputed_risk(found.make, data, loss, num_branches=config.branches, quantities=extra)
    like = jax.eval_shape(network.init, jax.random.key(0))
    about = about._replace(notes=(note, *about.notes))
    return Target(risk, like=like, about=about, data=_named_data(data, test))


def suited(target: Target, params: Params) -> Target:
    """The target with cross-entropy of probabilities if the network's outputs are probabilities.

    Args:
        target: The network with its data and loss.
        params: The first solution, or initial parameters.

    Raises:
        ValueError: The loss wants log-probabilities, and the outputs are none.
    """
    problem, test = target.problem, target.test
    if problem is None or problem.loss not in (losses.logistic, losses.nll):
        return target
    few = jax.tree.map(jnp.asarray, problem.data.taken(slice(FEW)).x)
    f = np.asarray(problem.network.apply(params, few), np.float64)
    if problem.loss is losses.nll:
        total = np.exp(np.logaddexp.reduce(f, -1))
        if np.isfinite(f).all() and not np.allclose(total, 1, atol=1e-2):
            raise ValueError(
                "--loss nll wants log-probabilities, whose exponentials sum to 1; those of the network's outputs sum "
                f"to {total.min():.3g} … {total.max():.3g}.\n  For scores or probabilities take --loss cross_entropy."
            )
    elif f.shape[-1] > 1 and f.min() >= 0 and np.allclose(f.sum(-1), 1, atol=1e-3):
        problem, test = (part and replace(part, loss=losses.log_of_probability) for part in (problem, test))
        about = target.about._replace(notes=(*target.about.notes, "outputs are probabilities"))
        return target._replace(risk=problem, problem=problem, test=test, like=problem, about=about)
    return target


def load_all(config: Any, target: Target) -> Loaded:
    """The checkpoints of --solutions and --paths.

    Raises:
        ValueError: Checkpoints of another network, of different networks, or too few of them.
    """
    files = [(path, checkpoints.read(path, target.like)) for path in (*config.paths, *config.solutions)]
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
    return Loaded([w for _, w in loaded], [name for name, _ in loaded], paths, _remarks(files, target), formats)


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


def _remarks(files: Sequence[tuple[Path, checkpoints.Checkpoint]], target: Target) -> list[str]:
    """Remarks on what was left out of files or cast; equal remarks once, with their first file.

    Statistics that are kept or recomputed make no remark: the network's description says what becomes of them.
    """
    first: dict[str, Path] = {}
    for path, found in files:
        if target.about.state != "none":
            found = found._replace(left_out=tuple(name for name in found.left_out if not _is_statistic(name)))
        first.setdefault(found.remark, path)
    return [f"{path}: {remark}" for remark, path in first.items() if remark]


def _is_statistic(name: str) -> bool:
    words = name.split("/")
    return words[-1] in ("running_mean", "running_var", "num_batches_tracked") or "batch_stats" in words


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
