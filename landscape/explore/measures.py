"""Measures of `landscape explore` besides the surface: edges with barriers, curvature in the plane, Hessians."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import combinations
from typing import Any

import jax
import numpy as np

from landscape import evaluation
from landscape.evaluation import curvature
from landscape.explore.inputs import Target
from landscape.planes import Plane, spectrum
from landscape.runs import Run
from landscape.surfaces import Provenance, Surface

Params = Any
Keep = Callable[..., dict[str, np.ndarray]]
ON_AN_EDGE = 51
"""Points on the line between two solutions."""
LANCZOS, SIGNS, PROBES, NODES = 100, 32, 4, 40
"""Most steps for the extreme eigenvalues; probes of the trace; probes and steps of the density."""
PRODUCTS = LANCZOS + SIGNS + PROBES * NODES
"""Products with the Hessian at one solution."""


def edges(
    target: Target, solutions: Sequence[Params], prefix: str, keep: Keep, *, first: int = 0
) -> dict[str, np.ndarray]:
    """The loss along the lines between solutions numbered from first + 1, on training and test data, by name."""
    found: dict[str, np.ndarray] = {}
    risks = {name: risk for name, risk in {"": target.risk, "test ": target.test}.items() if risk}
    for name, risk in risks.items():
        for k, i in combinations(range(len(solutions)), 2):
            ends = solutions[k], solutions[i]
            edge = f"{prefix}{name}{first + k + 1} – {first + i + 1}"
            file = f"edge-{edge}".replace(" – ", "-").replace(" ", "-")
            kept = keep(file, ends, partial(_profile, risk, *ends))
            found[edge] = kept["line"]
    return found


def _profile(risk: Any, start: Params, end: Params) -> dict[str, np.ndarray]:
    return {"line": evaluation.profile(risk, start, end, points=ON_AN_EDGE)}


def add_curvature(target: Target, plane: Plane, surface: Surface, run: Run) -> Surface:
    """The surface with slopes and curvatures as further layers."""
    with run.bar("curvature", surface.risk.size, "points") as bar:
        found = curvature.in_plane(
            target.risk, plane, surface.grid, directory=run.path, progress=bar, check_stop=run.check_stop
        )
    words = found.reason or f"second derivatives explain {1 - found.unexplained_fraction:.0%} of how the slope changes"
    run.say("note" if found.reason else "check", words)
    layers = {**surface.layers, **found.layers()}
    known = Provenance(curvature=found.reason or "shown", unexplained_fraction=found.unexplained_fraction)
    return replace(surface, layers=layers).noting(known)


def spectra(
    target: Target, solutions: Sequence[Params], key: jax.Array, run: Run, keep: Keep
) -> tuple[dict[str, np.ndarray], list[dict[str, Any]]]:
    """Extreme eigenvalues, trace and density of the Hessian at each solution: arrays to draw, records to print."""
    found, records = {}, []
    for k, w in enumerate(solutions, 1):
        keys = jax.random.split(jax.random.fold_in(key, k), 3)
        ends = keep(f"eigenvalues-{k}", w, lambda w=w, keys=keys: _ends(target.risk, w, keys[0]))["values"]
        trace = keep(
            f"trace-{k}", w, lambda w=w, keys=keys: spectrum.trace(target.risk, w, keys[1], probes=SIGNS)._asdict()
        )
        mean, error = float(trace["mean"]), float(trace["error"])
        records.append({"largest": ends[:2].tolist(), "smallest": float(ends[2]), "trace": mean, "trace_error": error})
        if not np.isfinite([*ends, mean]).all():
            run.say("hessian", f"solution {k}: not finite")
            continue
        density = keep(
            f"density-{k}",
            w,
            lambda w=w, keys=keys: spectrum.density(target.risk, w, keys[2], probes=PROBES, steps=NODES)._asdict(),
        )
        found |= {f"nodes {k}": density["nodes"], f"weights {k}": density["weights"]}
        run.say("hessian", f"solution {k}: {ends[2]:.3g} … {ends[0]:.3g}, trace {mean:.3g} ± {error:.2g}")
    return found, records


def _ends(risk: Any, w: Params, key: jax.Array) -> dict[str, np.ndarray]:
    """The two largest eigenvalues and the smallest; nan where the Hessian is not finite."""
    try:
        found = spectrum.eigenpairs(risk, w, key, largest=2, smallest=1, tolerance=1e-4, steps=LANCZOS)
    except spectrum.NotFinite:
        return {"values": np.full(3, np.nan)}
    return {"values": found.values}
