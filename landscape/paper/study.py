"""Surfaces against the number of branches: the recipe shared by Figures 1 and 4, stage by stage on disk (§5.1).

For every number of branches I: 3 R solutions trained at once, grouped into R triples; for every triple the plane, the
surface and its measures in three views: orthonormal axes, the published pictures' oblique axes, and orthonormal axes
after the branches of the second and third solution are aligned to the first.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from landscape import evaluation, planes, plots, report, surfaces
from landscape.arrays import hardware
from landscape.evaluation.checks import disagreement
from landscape.files import atomic
from landscape.files.tables import text_table
from landscape.paper import trends
from landscape.planes import Plane
from landscape.planes.grids import grid_around
from landscape.problem import Problem
from landscape.runs import Run, estimate
from landscape.training import train
from landscape.training.solutions import Solutions

VIEWS: dict[str, tuple[Callable[..., Plane], bool]] = {
    "orthonormal": (planes.through_solutions, False),
    "oblique": (planes.oblique_through_solutions, False),
    "aligned": (planes.through_solutions, True),
}
"""Views by name: the builder of the plane, and whether branches are aligned first."""

PRINTED = ("env_max_loss", "barrier", "minima")
SOONEST = 8
"""Records after which a fast training meets the criterion; used only for the announced time."""


@dataclass(frozen=True)
class Studied:
    """One network of the study.

    Attributes:
        problem: Its risk on the training data.
        test: The same network on test data, for the barriers of the test risk.
        learning_rate: Step length of SGD; the recipe's when None.
    """

    problem: Problem
    test: Problem | None = None
    learning_rate: float | None = None

    @property
    def branches(self) -> int:
        """I."""
        return self.problem.network.total


@dataclass(frozen=True)
class Recipe:
    """How every network is trained and drawn.

    Attributes:
        triples: R, independent triples of solutions for each I.
        steps: Most steps of SGD.
        batch_size: Examples a step.
        learning_rate: Step of the sum network; constant.
        tolerance: Training stops when no solution's lowest risk has fallen by more than this over 5 records of the
            history; None to take all steps.
        points: Grid points along each axis.
        margin: Share of the triangle's extent added on every side.
        record: Steps between two records; 1/20 of all when None.
    """

    triples: int
    steps: int
    batch_size: int
    learning_rate: float
    tolerance: float | None
    points: int
    margin: float = 0.3
    record: int | None = None


def run(networks: Sequence[Studied], recipe: Recipe, run: Run, *, drawn: str) -> None:
    """Train, evaluate and measure every network; writes surface.nc, solutions-*.npz and measures.json.

    Args:
        networks: The networks.
        recipe: How they are trained and drawn.
        run: The run directory.
        drawn: The view whose measures are printed and whose surfaces are drawn.
    """
    _announce(networks, recipe, run)
    done = sum(_file(run, network).exists() for network in networks)
    if done:
        run.say("resuming:", f"{done} of {len(networks)} networks done")
    records: list[dict[str, Any]] = []
    for network in networks:
        found = _measured(network, recipe, run)
        records += [_record(m) for m in found]
    if not run.leader:
        return
    stacks = [s for network in networks for s in surfaces.load_stack(_file(run, network))]
    _report_checks(stacks, run)
    _report_training(stacks, recipe, run)
    surfaces.save_stack(run.file("surface.nc"), stacks)
    run.measures({"drawn": drawn, "records": records, "trends": _trends(records)})
    run.say("", _table(records, drawn, recipe.triples))
    for network in networks:
        _file(run, network).unlink()


def _record(measured: trends.Measured) -> dict[str, Any]:
    """The record of a measured triple, with its view and the end of its training."""
    ended = {"steps": measured.surface.metadata["training"]["steps"], "solution_risk": _worst(measured.surface)}
    return trends.record(measured) | {"view": view_of(measured.surface.metadata)} | ended


def _worst(surface: surfaces.Surface) -> float:
    return float(np.max(np.asarray(surface.anchor_risk)))


def _file(run: Run, network: Studied) -> Path:
    return run.file(f"surfaces-I{network.branches}.nc")


def _announce(networks: Sequence[Studied], recipe: Recipe, run: Run) -> None:
    """Announce devices, memory, operations and time before anything long starts.

    Raises:
        ValueError: A surface does not fit the memory.
    """
    seeds, most, budget = 3 * recipe.triples, recipe.steps, run.options.memory_bytes
    least = most if recipe.tolerance is None else min(most, SOONEST * (recipe.record or max(1, most // 20)))
    soonest, latest = ([_forecast(network, recipe, steps, budget) for network in networks] for steps in (least, most))
    sizes = " … ".join(f"{n:,}" for n in dict.fromkeys((networks[0].branches, networks[-1].branches)))
    data = networks[0].problem.data
    shape = "x".join(map(str, data.x.shape[1:]))
    run.say(
        f"{run.name}:",
        f"{len(networks)} networks ({sizes} branches) · {len(data):,} examples in R^{shape} · {seeds} solutions each · "
        f"{recipe.points} x {recipe.points} points",
    )
    optimizer = optax.sgd(recipe.learning_rate)
    memory = max(estimate.peak(c.problem, optimizer, seeds, recipe.points, budget) for c in networks) / hardware.GIB
    words = list(dict.fromkeys(estimate.duration(sum(w.seconds for w in of)) for of in (soonest, latest)))
    time = f"about {words[0]}" if len(words) == 1 else f"{words[0]} or more, at most {words[1]}: until it converges"
    run.plan(f"{memory:.2f} GiB", estimate.operations(sum(w.operations for w in soonest)), time)


def _forecast(network: Studied, recipe: Recipe, steps: int, memory: int | None) -> estimate.Forecast:
    trained = 3 * recipe.triples * steps * recipe.batch_size
    amount = estimate.Amount(recipe.points, surfaces=recipe.triples * len(VIEWS), trained=trained)
    return estimate.of_problem(network.problem, amount, memory)


def _measured(network: Studied, recipe: Recipe, run: Run) -> list[trends.Measured]:
    """Solutions and surfaces of one network; what is on disk is not computed again."""
    file = _file(run, network)
    if file.exists():
        return [_remembered(s) for s in surfaces.load_stack(file)]
    solutions = _solutions(network, recipe, run)
    total = recipe.points**2 * recipe.triples * len(VIEWS)
    with run.bar(f"surface  I={network.branches:,}", total, "points") as bar:
        evaluate = partial(evaluation.evaluate_stack, execution=run.execution(bar))
        found = [m for view in VIEWS for m in _view(view, network, solutions, recipe, evaluate)]
        bar.note(f"{total:,} points, {total / max(bar.seconds, 1e-9):,.0f} points/s")
    found = [_annotated(m, solutions) for m in found]
    if run.leader:
        surfaces.save_stack(file, [m.surface for m in found], left_out=True)
        atomic.remove(run.path, "block-*.npz")
    run.check_stop()
    return found


def _view(
    view: str, network: Studied, solutions: Solutions, recipe: Recipe, evaluate: Callable[..., list[surfaces.Surface]]
) -> list[trends.Measured]:
    plane, align = VIEWS[view]
    return trends.measure(
        network.problem,
        solutions,
        align=align,
        test=network.test,
        plane=plane,
        grid=lambda p: grid_around(p, recipe.points, recipe.margin),
        evaluate=evaluate,
    )


def _solutions(network: Studied, recipe: Recipe, run: Run) -> Solutions:
    file = run.file(f"solutions-I{network.branches}.npz")
    key = f"{run.name} I={network.branches} seed {run.options.seed}"
    if file.exists():
        return Solutions.load(file, key, network.problem.shapes)
    keys = jax.random.split(jax.random.fold_in(jax.random.key(run.options.seed), network.branches), 3 * recipe.triples)
    with run.bar(f"train    I={network.branches:,}", recipe.steps, "steps") as bar:
        solutions = train(
            network.problem,
            keys,
            optax.sgd(network.learning_rate or recipe.learning_rate),
            steps=recipe.steps,
            batch_size=recipe.batch_size,
            record=recipe.record,
            tolerance=recipe.tolerance,
            memory=run.options.memory_bytes,
            directory=run.path,
            progress=bar,
            check_stop=run.check_stop,
        )
        bar.note(f"risk {np.median(solutions.risk):.3g} (median of {len(solutions)})")
    if run.leader:
        solutions.save(file, key)
        run.file("training.npz").unlink(missing_ok=True)
    run.check_stop()
    return solutions


def _annotated(measured: trends.Measured, solutions: Solutions) -> trends.Measured:
    """The triple with its exact barriers and the end of its training noted on the surface."""
    surface = measured.surface
    first = 3 * surface.metadata["triple"]
    ended = {"steps": int(solutions.steps[-1]), "converged": bool(solutions.converged[first : first + 3].all())}
    barriers = {"train": measured.report.barriers.tolist(), "test": measured.test_barriers.tolist()}
    known = surfaces.Provenance(barriers=barriers, training=ended)
    return measured._replace(surface=surface.noting(known))


def _remembered(surface: surfaces.Surface) -> trends.Measured:
    barriers = surface.metadata["barriers"]
    measured = trends.report(surface, barriers=np.array(barriers["train"], float))
    return trends.Measured(surface, measured, np.array(barriers["test"], float))


def view_of(metadata: Any) -> str:
    """The view that a surface or record belongs to."""
    return "aligned" if metadata["aligned"] else metadata["plane"]


def _report_checks(stacks: Sequence[surfaces.Surface], run: Run) -> None:
    """Say whether the evaluator agrees with direct evaluation.

    Raises:
        ArithmeticError: It does not, or the loss is not deterministic.
    """
    found = [s.metadata["checks"] for s in stacks]
    wrong = next(filter(None, map(disagreement, found)), "")
    if wrong:
        raise ArithmeticError(f"The self-check failed: {wrong}.\n  Try --precision highest.")
    worst = max(c["relative_difference"] for c in found)
    run.say("check", f"anchors equal direct evaluation (max difference {worst:.0e}) · loss deterministic")


def _report_training(stacks: Sequence[surfaces.Surface], recipe: Recipe, run: Run) -> None:
    """Say how many trainings met the criterion."""
    if recipe.tolerance is None:
        run.say("note", f"training took {recipe.steps:,} steps; no criterion of convergence was set (--tolerance)")
        return
    ended = [s.metadata["training"] for s in stacks if view_of(s.metadata) == "orthonormal"]
    met = sum(e["converged"] for e in ended)
    run.say(
        "note",
        f"{met} of {len(ended)} triples converged: no lowest risk fell by more than {recipe.tolerance:g} at the end",
    )


def _trends(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Spearman's correlation of every measure with I, in each view."""
    branches = sorted({r["branches"] for r in records})
    if len(branches) < 3:
        return {}
    found: dict[str, Any] = {}
    for view in VIEWS:
        for key in (*PRINTED, "env_max", "env_mean_loss"):
            values = [[r[key] for r in records if r["view"] == view and r["branches"] == n] for n in branches]
            trend = trends.trend(branches, values)
            found[f"{view} {key}"] = {"spearman": trend.spearman, "p_value": trend.p_value, "mean": trend.mean.tolist()}
    return found


def _table(records: Sequence[dict[str, Any]], drawn: str, triples: int) -> str:
    """The printed table: envelope and barrier in loss units, minima; barrier after alignment, the solutions' risk."""
    spread = f"mean of {triples} triples ± standard error" if triples > 1 else "1 triple: use --triples 5 for a spread"
    rows = [["I", "envelope", "barrier", "minima", "aligned barrier", "risk"]]
    for n in sorted({r["branches"] for r in records}):
        of = [r for r in records if r["branches"] == n]
        cells = [_cell([r[key] for r in of if r["view"] == drawn]) for key in PRINTED]
        cells.append(_cell([r["barrier"] for r in of if r["view"] == "aligned"]))
        worst = max(r["solution_risk"] for r in of)
        rows.append([f"{n:,}", *cells, f"{worst:.2g}"])
    head, *lines = text_table(rows)
    return "\n".join([f"{head}   (loss units; {spread})", *lines])


def _cell(values: Sequence[float]) -> str:
    mean = np.mean(values)
    if float(mean).is_integer() and len(values) == 1:
        return f"{mean:.0f}"
    error = np.std(values, ddof=1) / math.sqrt(len(values)) if len(values) > 1 else None
    return f"{mean:.3g}" if error is None else f"{mean:.2g} ± {error:.1g}"


def draw(path: Path, title: str) -> None:
    """figure.png, measures.png, both as PDF, and report.html of a run directory, from its files."""
    measures = json.loads(path.joinpath("measures.json").read_text())
    drawn, records = measures["drawn"], measures["records"]
    stack = surfaces.load_stack(path / "surface.nc")
    by_view = {view: [s for s in stack if view_of(s.metadata) == view] for view in VIEWS}
    if len({r["branches"] for r in records}) > 1:
        views = {view: [r for r in records if r["view"] == view] for view in VIEWS}
        pictures = {"figure": plots.row(by_view[drawn], measures=views[drawn]), "measures": plots.trend(views)}
    else:  # a single network gives no curve over I
        first = by_view["orthonormal" if drawn == "aligned" else drawn][0]
        titles = [f"I = {first.metadata['branches']:,}, as trained", "branches aligned"]
        pictures = {"figure": plots.row([first, by_view["aligned"][0]], titles=titles)}
    for name, figure in pictures.items():
        plots.save(figure, path / name)
    report.write(path / "report.html", stack, title=title, measures=records)
