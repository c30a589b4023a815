"""The work of `landscape explore`: solutions, plane, surface with its layers, and further measures."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from landscape import alignment, convexity, evaluation, planes, report, surfaces
from landscape.arrays import trees
from landscape.compiler.flatten import jaxpr_hash
from landscape.evaluation import pointwise
from landscape.explore import inputs, measures, named, view
from landscape.explore.inputs import Target
from landscape.files import atomic
from landscape.paper import trends
from landscape.planes import Plane
from landscape.plots import caption
from landscape.runs import Run, estimate
from landscape.surfaces import Surface
from landscape.training import train

Params = Any
RADIUS_POINTS = 100
"""Approximate number of evaluations to choose the extent of a plane through one solution."""


class Found(NamedTuple):
    """Solutions with their names, and trajectories."""

    solutions: list[Params]
    names: list[str]
    paths: dict[str, list[Params]]


class View(NamedTuple):
    """The solutions shown together on one plane.

    Attributes:
        triple: Index of the triple.
        part: Slice of its solutions among all.
        aligned: Whether the solutions are aligned to each other.
    """

    triple: int
    part: slice
    aligned: bool

    @property
    def prefix(self) -> str:
        """Prefix of names."""
        return "aligned " if self.aligned else ""


def _views(config: Any, solutions: Sequence[Params]) -> list[View]:
    """Every triple of solutions, or all of them for other planes; each before and after alignment."""
    through = config.plane in ("solutions", "oblique")
    parts = [slice(k, k + 3) for k in range(0, len(solutions), 3)] if through else [slice(0, len(solutions))]
    return [View(k, part, aligned) for k, part in enumerate(parts) for aligned in (False, True)[: 1 + config.align]]


class Line(NamedTuple):
    """One run: configuration, target, run directory, and the fingerprint of the functions."""

    config: Any
    target: Target
    run: Run
    key: str

    def keep(self, name: str, of: Any, compute: Callable[[], Mapping[str, Any]], word: str = "") -> dict[str, Any]:
        """A stage that depends on the functions, the configuration and `of`."""
        return self.run.stage(name, (self.key, of), compute, word)


def run(config: Any, run: Run) -> None:
    """Compute surface.nc, explore.npz and measures.json, from which `figures.draw` draws."""
    keys = jax.random.split(jax.random.key(run.options.seed), 4)
    target = inputs.resolve(config, run.options.data_root, keys[0])
    for name, data in target.data.items():
        run.data(data, name)
    loaded = inputs.load_all(config, target)
    _refuse(config, target, loaded)
    example = loaded.solutions[0] if loaded.solutions else target.network_for("Training").network.init(keys[1])
    target = inputs.suited(target, example)
    key, compiled = _fingerprint(target, example, run)
    line = Line(config, target, run, key)
    _announce(line, loaded, example, compiled)
    found = Found(*loaded[:3]) if loaded.solutions else _trained(line, keys[1], loaded.paths)
    drawn, arrays, barriers = [], {}, {}
    for shown in _views(config, found.solutions):
        chosen = found.solutions[shown.part]
        chosen = trends.aligned(target.network_for("--align"), chosen) if shown.aligned else chosen
        plane, surface = _surface(line, chosen, found.paths, keys[2], shown)
        edges = measures.edges(target, chosen[:3], shown.prefix, line.keep, first=shown.part.start)
        heights = {name: convexity.barrier(values) for name, values in edges.items()}
        surface = replace(surface, metadata={**surface.metadata, "barriers": _by_data(heights)})
        drawn.append(measures.add_curvature(target, plane, surface, run) if config.curvature else surface)
        if not drawn[1:]:  # the recorded steps belong to the solutions before alignment
            arrays |= {f"path {k}": planes.project(plane, path) for k, path in found.paths.items()}
        arrays |= {f"edge {name}": values for name, values in edges.items()}
        barriers |= heights
    beside: dict[str, Any] = {"barriers": barriers}
    if config.spectrum:
        more, beside["hessian"] = measures.spectra(target, found.solutions[:3], keys[3], run, line.keep)
        arrays |= more
    _write(run, drawn, arrays, beside)


def _by_data(heights: Mapping[str, float]) -> dict[str, list[float]]:
    """Barriers of training and test data by edge, in the form of a surface's metadata."""
    found: dict[str, list[float]] = {}
    for name, height in heights.items():
        found.setdefault("test" if "test " in name else "train", []).append(height)
    return found


def _write(run: Run, drawn: Sequence[Surface], arrays: Mapping[str, np.ndarray], beside: dict[str, Any]) -> None:
    """Write the result files and print the end."""
    surfaces.save_stack(run.file("surface.nc"), drawn)
    atomic.save_arrays(run.file("explore.npz"), arrays, run.name)
    records = [r | {"aligned": bool(s.metadata["aligned"])} for s in drawn for r in report.records([s])]
    run.measures({"records": records, "checks": drawn[-1].metadata["checks"], **beside})
    _say(run, drawn, beside["barriers"])
    run.clear()


def _refuse(config: Any, target: Target, loaded: inputs.Loaded) -> None:
    """Refuse wrong use before anything long starts.

    Raises:
        ValueError: What cannot be aligned, trained or drawn; equal solutions; a loss that is not deterministic.
    """
    if config.align and not alignment.symmetries(target.network_for("--align")).found:
        raise ValueError("--align wants branches or units that may change places; this network has none.")
    if config.tolerance and target.problem is None:
        raise ValueError(
            f"--tolerance is for a mean over examples; {config.network} is a function of the parameters alone."
        )
    if not loaded.solutions and target.problem is None:
        raise ValueError("Without a network and data nothing can be trained: name the checkpoints with --solutions.")
    if config.plane in ("solutions", "oblique"):
        inputs.refuse_equal(loaded.solutions, loaded.names)
    points = len(next(iter(loaded.paths.values()), loaded.solutions))
    if config.plane == "pca" and loaded.solutions and points < 3:
        raise ValueError(f"--plane pca wants at least 3 points, of --paths or of --solutions; got {points}.")


def _fingerprint(target: Target, example: Params, run: Run) -> tuple[str, Any]:
    """Fingerprint of the functions and data, on which all stages depend; and a compiled function risk(params).

    Raises:
        ValueError: The functions are not the same when they are traced, or called, a second time; no scalars.
    """
    if target.problem is None:
        _, risk = pointwise.quantities(target.risk, Plane(example, example, example, np.zeros((0, 2))))
        traced = [jaxpr_hash(lambda w: risk(w), example) for _ in range(2)]
        compiled = jax.jit(risk).lower(example).compile()
        _refuse_wandering(traced, [np.asarray(compiled(example)) for _ in range(2)])
        return atomic.fingerprint(traced[0], run.options.precision), compiled
    network, loss, data = target.problem.network, target.problem.loss, target.problem.data
    some = np.flatnonzero(np.asarray(data.weight))[: inputs.FEW]
    few = data.taken(some)
    traced = [jaxpr_hash(lambda w, x, y: loss(network.apply(w, x), y), example, few.x, few.y) for _ in range(2)]
    risk = replace(target.problem, data=few).risk
    _refuse_wandering(traced, [np.asarray(risk(example)) for _ in range(2)])
    return atomic.fingerprint(traced[0], data.fingerprint, run.options.precision), None


def _refuse_wandering(traced: Sequence[str], values: Sequence[np.ndarray]) -> None:
    once, twice = (value.tolist() for value in values)
    words = "" if np.array_equal(*values, equal_nan=True) else f" gave {once} and then {twice} at the same parameters"
    words = words or ("" if traced[0] == traced[1] else " draws other random numbers whenever it is traced")
    if words:
        raise ValueError(
            f"The loss{words}; a surface needs a deterministic function.\n"
            "  Fix its random keys, switch dropout and augmentation off."
        )


def _announce(line: Line, loaded: inputs.Loaded, example: Params, compiled: Any) -> None:
    """Announce the target and the plan: devices, memory, operations or points, time."""
    config, target, run = line.config, line.target, line.run
    count = len(loaded.solutions) or 3 * config.triples
    views = len(_views(config, range(count)))
    source = f"({loaded.formats})" if loaded.solutions else "to train"
    title = f"{target.about.title}, " if target.about.title else ""
    known = [f"{title}{trees.size(example):,} parameters · {count} solutions {source}", *target.about.notes]
    known.insert(1, target.about.layout or _what(target))
    more = [_what(target)] * bool(target.about.layout) + [config.loss] * bool(target.data) + [f"plane {config.plane}"]
    run.say("explore:", " · ".join(known) + ("\n" if target.about.layout else " · ") + " · ".join(more))
    pairs = min(count, 3) * (min(count, 3) - 1) // 2
    examples = len(target.problem.data) if target.problem else 0
    share = len(target.test.data) / examples if target.test else 0.0
    single = RADIUS_POINTS if config.plane in ("random", "hessian", "gradient") else 0
    amount = estimate.Amount(
        points=config.points,
        surfaces=views * (1 + share),
        evaluations=round(views * (pairs * measures.ON_AN_EDGE * (1 + share) + single)),
        hvp_calls=measures.PRODUCTS * min(count, 3) * config.spectrum + 100 * (config.plane in ("hessian", "gradient")),
        curvature_points=views * config.points**2 * config.curvature,
        trained=0 if loaded.solutions else count * config.steps * min(config.batch_size, examples),
    )
    if target.problem:
        plan = estimate.of_problem(target.problem, amount, run.options.memory_bytes)
    else:
        plan = estimate.of_function(compiled, example, amount)
    run.plan(f"{config.points} x {config.points} points", *plan.words())
    if plan.route:
        run.say("route", plan.route)
    for remark in loaded.remarks:
        run.say("note", remark)


def _what(target: Target) -> str:
    """The function that is shown, in words."""
    if target.problem is None:
        return "risk(params)" + "".join(f" of {data.name}" for name, data in target.data.items() if name == "data")
    data, network = target.problem.data, target.problem.network
    branches = f"{network} · " if network.total > 1 else ""
    shape = " and ".join("x".join(map(str, x.shape)) or "1" for x in jax.tree.leaves(data.example))
    return f"{branches}{len(data):,} examples in R^{shape} ({data.name})"


def _trained(line: Line, key: jax.Array, paths: dict[str, list[Params]]) -> Found:
    """Three solutions, and their trajectories unless others are given."""
    config, run, problem = line.config, line.run, line.target.network_for("Training")

    def compute() -> dict[str, Any]:
        with run.bar("train", config.steps, "steps") as bar:
            trained = train(
                problem,
                jax.random.split(key, 3 * config.triples),
                optax.sgd(config.learning_rate),
                steps=config.steps,
                batch_size=min(config.batch_size, len(problem.data.support)),
                record=config.record,
                trajectory=True,
                memory=run.options.memory_bytes,
                directory=run.path,
                progress=bar,
                check_stop=run.check_stop,
            )
        trained.save(run.file("solutions.npz"), run.name)
        return {str(n): x for n, x in enumerate(jax.tree.leaves(trained.trajectory))}

    stored = line.keep("training", jax.random.key_data(key), compute, "the trained solutions")
    structure = jax.tree.structure(problem.shapes)
    steps = jax.tree.unflatten(structure, [stored[str(n)] for n in range(structure.num_leaves)])  # [S, T, I, ...]
    seeds, length = jax.tree.leaves(steps)[0].shape[:2]
    walks = [
        [jax.tree.map(lambda x, k=k, t=t: jnp.asarray(x[k, t]), steps) for t in range(length)] for k in range(seeds)
    ]
    own = {f"seed {k + 1}": walk for k, walk in enumerate(walks[:3])}
    return Found([walk[-1] for walk in walks], [f"solution {k + 1}" for k in range(seeds)], paths or own)


def _surface(
    line: Line, solutions: Sequence[Params], paths: Mapping[str, list[Params]], key: jax.Array, shown: View
) -> tuple[Plane, Surface]:
    """The plane, and the surface on it with its layers."""
    config, target, run = line.config, line.target, line.run

    def compute() -> dict[str, Any]:
        plane = view.plane_of(config, target, solutions, paths, key)
        return view.to_arrays(plane, *view.grid_of(config, target.risk, plane))

    depends = (list(solutions), paths if config.plane == "pca" else {})
    stored = line.keep("plane", depends, compute)
    plane, grid, words = view.from_arrays(stored, solutions[0])
    layers = named.further(target.problem.data) if target.problem else None
    with run.bar(f"{shown.prefix}surface", grid.a.size * grid.b.size, "points") as bar:
        execution = replace(run.execution(bar), tolerance=config.tolerance or None)
        found = evaluation.surface_on(target.risk, plane, grid, execution, layers)
    more = dict(found.layers)
    if target.test:
        tested = evaluation.surface_on(target.test, plane, grid, replace(execution, progress=False), layers)
        more |= {"test risk": tested.risk, **{f"test {k}": v for k, v in tested.layers.items()}}
    if config.weight_decay:
        more["regulariser"] = view.regulariser(plane, grid, config.weight_decay)
        more["risk and regulariser"] = found.risk + more["regulariser"]
    about = surfaces.Provenance(
        aligned=shown.aligned,
        triple=shown.triple,
        extent=words,
        state=target.about.state,
        network=target.about.title or None,
        layout=target.about.layout or None,
        notes=" · ".join(target.about.notes) or None,
        files=", ".join(map(str, config.solutions)) or None,
        gram=planes.gram_of(plane).tolist(),
        not_finite=int(np.count_nonzero(~np.isfinite(found.risk))),
    )
    return plane, replace(found, layers=more).noting(about)


def _say(run: Run, drawn: Sequence[Surface], barriers: Mapping[str, float]) -> None:
    last = drawn[-1]
    difference = max(surface.metadata["checks"]["max_difference"] for surface in drawn)
    types = {surface.metadata["checks"].get("rounding", "float32") for surface in drawn} - {"float32", "float64"}
    words = "".join(f", rounding of {name}" for name in sorted(types))
    run.say("check", f"anchors equal direct evaluation (max difference {difference:.0e}{words}) · loss deterministic")
    if last.metadata["not_finite"]:
        missing = last.metadata["not_finite"]
        run.say("note", f"{missing:,} of {last.risk.size:,} points are not finite; they are masked in pictures")
    if words := caption.sampling(drawn):
        run.say("sampling", words)
    run.say("extent", last.metadata["extent"])
    if barriers:
        run.say(
            "barrier",
            " · ".join(
                f"{name} " + (f"{height:.3g}" if np.isfinite(height) else "not finite")
                for name, height in barriers.items()
            )
            + " (loss units)",
        )
