"""The work of `landscape explore`: plane, grid, surface with its layers, edges, paths, curvature and spectrum."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from landscape import alignment, curvature, evaluation, evaluators, given, planes, report, spectrum, surfaces, trees
from landscape.given import Given
from landscape.grids import Grid, grid_around
from landscape.planes import Plane
from landscape.runs import Run
from landscape.surfaces import Surface
from landscape.training import train

Params = Any
LEAST = 0.01
"""A loss below this at the centre counts as this, where an extent is chosen."""
AGREES = 1e-4


def run(config: Any, run: Run) -> None:
    """Compute everything that `explored.draw` draws: surface.nc, explore.npz, measures.json."""
    keys = jax.random.split(jax.random.key(run.options.seed), 4)
    to = given.of(config, run.options.data_root, keys[0])
    if to.problem:
        run.data(to.problem.data)
    solutions, paths, names = _solutions(config, to, run, keys[1])
    run.say(
        "explore:",
        f"{trees.size(solutions[0]):,} parameters · {len(solutions)} solutions · {to.problem or 'risk(params)'}",
    )
    run.plan(f"{config.points} x {config.points} points", f"plane {config.plane}")
    if to.problem is None:
        evaluators.check_function(to.risk, Plane(solutions[0], solutions[0], solutions[0], np.zeros((0, 2))))
    if config.plane in ("solutions", "oblique"):
        given.refuse_equal(solutions[:3], names)
    found, arrays, measures = [], {}, {"barriers": {}}
    for aligned in [False, True] if config.align else [False]:
        chosen = _aligned(to, solutions) if aligned else solutions
        plane = plane_of(config, to, chosen, paths, keys[2])
        surface = _surface(config, to, plane, run, aligned)
        found.append(_with_curvature(to, plane, surface, run) if config.curvature else surface)
        if not aligned:  # the recorded steps are those of the networks as they were trained
            arrays |= {f"path {k}": planes.project(plane, path) for k, path in paths.items()}
        arrays |= _edges(to, chosen[:3], "aligned " if aligned else "", measures)
    if config.spectrum:
        arrays |= _spectra(to, solutions[:3], keys[3], run, measures)
    surfaces.save_stack(run.file("surface.nc"), found)
    np.savez(run.file("explore.npz"), allow_pickle=False, **arrays)
    records = [r | {"aligned": bool(s.metadata["aligned"])} for r, s in zip(report.records(found), found, strict=False)]
    run.measures({"records": records, "checks": found[-1].metadata["checks"], **measures})
    _say(run, found, measures)
    for block in [*run.path.glob("block-*.npz"), run.file("training.npz")]:
        block.unlink(missing_ok=True)


def _solutions(
    config: Any, to: Given, run: Run, key: jax.Array
) -> tuple[list[Params], dict[str, list[Params]], list[str]]:
    """Solutions, trajectories and names of the solutions, loaded or trained."""
    paths = {path.stem: given.load([path], to) for path in config.paths}
    if config.solutions:
        loaded = [(str(path), w) for path in config.solutions for w in given.load([path], to)]
        if config.plane in ("solutions", "oblique") and len(loaded) < 3:
            raise ValueError(
                f"--plane {config.plane} wants three solutions; the files hold {len(loaded)}.\n"
                "  With one or two, take --plane random."
            )
        planes.check_solutions(*(w for _, w in loaded))
        return [w for _, w in loaded], paths, [name for name, _ in loaded]
    if to.problem is None:
        raise ValueError("Without a network and data nothing can be trained: name the checkpoints with --solutions.")
    with run.bar("train", config.steps, "steps") as bar:
        trained = train(
            to.problem,
            jax.random.split(key, 3),
            optax.sgd(config.learning_rate),
            steps=config.steps,
            batch_size=min(config.batch_size, len(to.problem.data)),
            trajectory=True,
            directory=run.path,
            progress=bar,
            check_stop=run.check_stop,
        )
    trained.save(run.file("solutions.npz"), run.name)
    for k in range(0 if paths else len(trained)):
        steps = range(len(trained.steps))
        paths[f"seed {k + 1}"] = [jax.tree.map(lambda x, k=k, t=t: x[k, t], trained.trajectory) for t in steps]
    return list(trained), paths, [f"solution {k + 1}" for k in range(len(trained))]


def _aligned(to: Given, solutions: Sequence[Params]) -> list[Params]:
    if to.problem is None or to.problem.network.total < 2:
        raise ValueError("--align wants a multi-branch network: what is exchanged are its branches.")
    problem = to.problem
    first = alignment.balance(problem, solutions[0])
    return [first, *(alignment.align(problem, first, w) for w in solutions[1:])]


def plane_of(
    config: Any, to: Given, solutions: Sequence[Params], paths: dict[str, list[Params]], key: jax.Array
) -> Plane:
    """The plane that --plane names."""
    if config.plane == "solutions":
        return planes.through_solutions(*solutions[:3])
    if config.plane == "oblique":
        return planes.oblique_through_solutions(*solutions[:3])
    if config.plane == "random":
        network = to.problem.network if to.problem else None
        return planes.random_filter_normalized(key, solutions[0], config.normalize, network=network)
    if config.plane == "pca":
        return planes.trajectory_pca(next(iter(paths.values())) if paths else solutions)
    build = planes.top_hessian if config.plane == "hessian" else planes.gradient_curvature
    return build(to.risk, solutions[0], key)


def grid_of(config: Any, to: Given, plane: Plane) -> tuple[Grid, str]:
    """The grid, and in words how its extent was chosen."""
    if len(plane.anchors) > 1:
        return grid_around(plane, config.points, config.margin), f"the solutions and {config.margin:.0%} around them"
    size = radius(to.risk, plane, config.rise)
    axis = np.linspace(-size, size, config.points)
    return Grid(axis, axis), f"radius {size:.3g}, where the loss is {config.rise:g} times that of the centre"


def radius(risk: Any, plane: Plane, rise: float) -> float:
    """The radius r at which the mean loss at ±r on both axes is `rise` times that of the centre (at least 0.01).

    Args:
        risk: A `Problem`, or a pure function risk(params).
        plane: A plane; its origin is the centre.
        rise: Factor, more than 1.

    Returns:
        r in the coordinates of the plane, to one per cent; 1 where the loss never rises so far.
    """
    of, data = spectrum.objective(risk)
    value = jax.jit(lambda data, plane, a, b: of(data, plane.at((a, b))))
    trio = plane._replace(anchors=jnp.zeros((0, 2)), kind=None)  # what is left is a tree of arrays

    def mean(r: float) -> float:
        points = [(r, 0.0), (-r, 0.0), (0.0, r), (0.0, -r)]
        return float(np.mean([float(value(data, trio, a, b)) for a, b in points]))

    target = rise * max(float(value(data, trio, 0.0, 0.0)), LEAST)
    low, high = 0.0, 1e-3
    while not mean(high) >= target and np.isfinite(mean(high)):
        low, high = high, 2 * high
        if high > 1e6:
            return 1.0
    while high - low > 0.01 * high:
        middle = (low + high) / 2
        inside = mean(middle)
        low, high = (middle, high) if inside < target else (low, middle)
    return high


def _surface(config: Any, to: Given, plane: Plane, run: Run, aligned: bool) -> Surface:
    grid, extent = grid_of(config, to, plane)
    shared: dict[str, Any] = {
        "precision": run.options.precision,
        "memory": run.options.memory_bytes,
        "directory": run.path,
        "check_stop": run.check_stop,
    }
    layers = given.further_losses(to.problem) if to.problem else None
    with run.bar("surface", grid.a.size * grid.b.size, "points") as bar:
        found = evaluation.evaluate(to.risk, plane, grid, layers=layers, progress=bar, **shared)
    _refuse_disagreement(found)
    more = dict(found.layers)
    if to.test:
        tested = evaluation.evaluate(to.test, plane, grid, layers=layers, progress=False, **shared)
        more |= {"test risk": tested.risk, **{f"test {k}": v for k, v in tested.layers.items()}}
    if config.weight_decay:
        more["regulariser"] = regulariser(plane, grid, config.weight_decay)
        more["risk and regulariser"] = found.risk + more["regulariser"]
    about = {"aligned": aligned, "extent": extent, "state": config.state, "gram": planes.gram_of(plane).tolist()}
    about |= {"not_finite": int(np.count_nonzero(~np.isfinite(found.risk)))}
    return Surface(found.grid, found.risk, found.anchors, found.anchor_risk, more, {**found.metadata, **about})


def regulariser(plane: Plane, grid: Grid, weight: float) -> np.ndarray:
    """λ/2 ‖o + a u + b v‖² at every point, [A, B], from six inner products."""
    trio = [plane.origin, plane.u, plane.v]
    products = np.array([[float(trees.vdot(x, y)) for x in trio] for y in trio])
    one = np.stack([np.ones((len(grid.a), len(grid.b))), *np.meshgrid(grid.a, grid.b, indexing="ij")], -1)
    return weight / 2 * np.einsum("abi,ij,abj->ab", one, products, one)


def _refuse_disagreement(surface: Surface) -> None:
    checks = surface.metadata["checks"]
    scale = max(1.0, float(np.nanmax(np.abs(np.asarray(surface.anchor_risk)), initial=0.0)))
    if not checks["deterministic"] or checks["max_difference"] > AGREES * scale:
        raise ValueError(
            f"The loss differs by {checks['max_difference']:.2g} between two evaluations at the same parameters; a "
            "surface needs a deterministic function.\n  Fix its random keys, switch dropout and augmentation off."
        )


def _edges(to: Given, solutions: Sequence[Params], prefix: str, measures: dict[str, Any]) -> dict[str, np.ndarray]:
    """The loss along the lines between solutions, and their barriers in loss units."""
    found: dict[str, np.ndarray] = {}
    risks = {"": to.risk, "test ": to.test} if to.test else {"": to.risk}
    for name, risk in risks.items():
        for i in range(len(solutions)):
            for k in range(i):
                line = evaluation.profile(risk, solutions[k], solutions[i], points=51)
                found[f"edge {prefix}{name}{k + 1} – {i + 1}"] = line
    measures["barriers"] |= {name.removeprefix("edge "): barrier(line) for name, line in found.items()}
    return found


def barrier(line: np.ndarray) -> float:
    """The largest height of a profile over the straight line between its ends, loss units."""
    return float(np.max(line - np.linspace(line[0], line[-1], len(line))))


def _with_curvature(to: Given, plane: Plane, surface: Surface, run: Run) -> Surface:
    with run.bar("curvature", surface.risk.size, "points") as bar:
        bent = curvature.in_plane(to.risk, plane, surface.grid, progress=bar, check_stop=run.check_stop)
    run.say(
        "note" if bent.reason else "check", bent.reason or f"curvature explains {1 - bent.unseen:.0%} of the slopes"
    )
    layers = {**surface.layers, **bent.layers()}
    about = {**surface.metadata, "curvature": bent.reason or "shown", "unseen": bent.unseen}
    return Surface(surface.grid, surface.risk, surface.anchors, surface.anchor_risk, layers, about)


def _spectra(
    to: Given, solutions: Sequence[Params], key: jax.Array, run: Run, measures: dict[str, Any]
) -> dict[str, np.ndarray]:
    """Extreme eigenvalues, trace and density of the Hessian at each solution."""
    found, measures["hessian"] = {}, []
    for k, w in enumerate(solutions, 1):
        keys = jax.random.split(jax.random.fold_in(key, k), 3)
        ends = spectrum.eigenpairs(to.risk, w, keys[0], largest=2, smallest=1, tolerance=1e-4, steps=100).values
        trace = spectrum.trace(to.risk, w, keys[1])
        density = spectrum.density(to.risk, w, keys[2], probes=4, steps=40)
        found[f"nodes {k}"], found[f"weights {k}"] = density.nodes, density.weights
        record = {"largest": ends[:2].tolist(), "smallest": float(ends[2])}
        measures["hessian"].append(record | {"trace": trace.mean, "trace_error": trace.error})
        run.say("hessian", f"solution {k}: {ends[2]:.3g} … {ends[0]:.3g}, trace {trace.mean:.3g} ± {trace.error:.2g}")
        run.check_stop()
    return found


def _say(run: Run, found: Sequence[Surface], measures: dict[str, Any]) -> None:
    checks = found[-1].metadata["checks"]
    run.say(
        "check", f"anchors equal direct evaluation (max difference {checks['max_difference']:.0e}) · loss deterministic"
    )
    missing = found[-1].metadata["not_finite"]
    if missing:
        run.say("note", f"{missing:,} of {found[-1].risk.size:,} points are not finite; they are masked in pictures")
    run.say("extent", found[-1].metadata["extent"])
    if measures["barriers"]:
        words = " · ".join(f"{name} {height:.3g}" for name, height in measures["barriers"].items())
        run.say("barrier", f"{words} (loss units)")
