"""Numbers for "less non-convex": how far a sampled surface is from a convex one, over its range and in loss units.

Every measure is 0 on convex samples (one minimum), on any grid. Those over the range depend on the plot's extent, so
they are also given in units of the loss and on the triangle of the solutions. Second differences along the two axes
are blind to a pure product a·b, and one plane never shows all of a risk.

Tolerance. Samples that are a convex function up to errors |e| <= ε lie at most 2 ε above their convex envelope E, since
E lies at most ε below the function. Between the grid points the surface is E plus the samples' distances to E,
interpolated, so no grid adds to this: violations at midpoints and along segments and persistences of minima
(`persistence`) are at most 2 ε, second differences on steps h and h' at least −2 ε (1/h + 1/h'). Smaller ones count as
0. 2 ε is the `resolution`: 2e-6 of the largest |f| (17 units in the last place) where the values fit float32, 1e-12 of
it (4,500 units) in float64, 2 units in narrower types, and what rounding does to the envelope's planes, as found on it.

Stated behaviour: cells that are not finite are unknown, and nothing is counted that only they could hide; a constant
or flat surface measures 0 with one minimum; a 2 x 2 grid has no interior and measures 0.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from landscape.convexity.envelope import (
    Envelope,
    Samples,
    between,
    clean,
    envelope,
    rounding,
    spans,
    within,
)
from landscape.convexity.persistence import persistences
from landscape.evaluation import profiles
from landscape.evaluation.moments import jackknife

if TYPE_CHECKING:
    from landscape.surfaces import Surface

PAIRS, FEW_PAIRS = 8192, 512
"""Random pairs of points, each drawn along both axes; fewer where a measure is repeated for its standard error."""


class Report(NamedTuple):
    """How non-convex a surface is; 0 (one minimum) on convex samples.

    Attributes:
        env_max: Largest distance to the lower convex envelope, over the range.
        env_mean: Its mean over the area (trapezoid rule), over the range.
        midpoint_mean: Mean of [f((p+q)/2) − (f(p)+f(q))/2]₊ over random pairs of points, over the range.
        midpoint_mean_error: Its standard error, from the sampling of the pairs.
        curvature_negative_share: Negative mass of the second differences along both axes over their total mass.
        minima: Minima whose sublevel persistence exceeds the threshold times the range and the resolution, and the
            lowest [Edelsbrunner10, VII.1].
        persistence: Sum of the persistences of these minima but the lowest, over the range.
        barriers: [edges] For each pair of solutions, max over the segment of loss minus linear interpolation, in loss
            units; nan where a segment leaves the finite samples. Pairs in the order (0, 1), (0, 2), (1, 2).
        range: Largest minus smallest value, in loss units.
        env_max_loss: `env_max` in loss units.
        env_mean_loss: `env_mean` in loss units.
        midpoint_mean_loss: `midpoint_mean` in loss units.
        midpoint_mean_error_loss: `midpoint_mean_error` in loss units.
        persistence_loss: `persistence` in loss units.
        resolution: Differences up to this are rounding and count as 0, in loss units.
        standard_errors: Standard error of each number above by name, from leaving out one group of examples after the
            other; "barriers" has as many as there are edges. None where the surface does not carry `left_out`. Those of
            `env_max`, a largest value, and of `minima` are rough.
        triangle: The same on the grid points of the triangle of the solutions; None without three solutions, or where
            fewer than three grid points that are not on one line lie inside.
    """

    env_max: float
    env_mean: float
    midpoint_mean: float
    midpoint_mean_error: float
    curvature_negative_share: float
    minima: int
    persistence: float
    barriers: np.ndarray
    range: float
    env_max_loss: float
    env_mean_loss: float
    midpoint_mean_loss: float
    midpoint_mean_error_loss: float
    persistence_loss: float
    resolution: float
    standard_errors: Mapping[str, Any] | None = None
    triangle: "Report | None" = None

    def __repr__(self) -> str:
        barriers = " ".join(f"{b:.3g}" for b in self.barriers)
        known = "" if self.standard_errors is None else f" ± {self.standard_errors['env_max_loss']:.1g}"
        return (
            f"Report(env_max={self.env_max:.3g} [{self.env_max_loss:.3g}{known} in loss units], "
            f"env_mean={self.env_mean:.3g}, "
            f"midpoint_mean={self.midpoint_mean:.3g} ± {self.midpoint_mean_error:.1g}, "
            f"curvature_negative_share={self.curvature_negative_share:.3g}, minima={self.minima}, "
            f"persistence={self.persistence:.3g}, barriers=[{barriers}])"
        )


def report(
    surface: "Surface",
    *,
    layer: str | None = None,
    barriers: np.ndarray | None = None,
    threshold: float = 1e-3,
    resolution: float | None = None,
) -> Report:
    """Measure a surface, over its range, in loss units, and on the triangle of its solutions.

    Args:
        surface: Grid and risk suffice; barriers and triangle need its anchors.
        layer: A further quantity of the surface to measure instead of its risk, for example the test risk.
        barriers: [edges] Barriers along the edges computed exactly by `barriers`; when None those that the surface
            carries in its metadata, as those of a run do; only without any are they interpolated from the samples.
        threshold: Share of the range that a minimum's persistence must exceed.
        resolution: Differences that count as rounding, in loss units; read from the type of the values by default.
            To be given where the values are less exact than their type: computed in float32 and stored in float64.

    Raises:
        ValueError: The samples do not fit the grid, or fewer than three finite ones that are not on one line exist.

    >>> from landscape.surfaces import Grid, Surface
    >>> a, b = np.linspace(-1, 1, 41), np.linspace(-1, 1, 31)
    >>> saddle = report(Surface(Grid(a, b), a[:, None] ** 2 - b[None] ** 2))
    >>> round(saddle.env_max, 9), round(saddle.env_mean, 2), round(saddle.curvature_negative_share, 2), saddle.minima
    (0.5, 0.33, 0.5, 2)
    """
    values = surface.risk if layer is None else surface.layers[layer]
    edges = known_barriers(surface, layer) if barriers is None else barriers
    found = _measured(surface, values, edges, threshold, resolution)
    if surface.left_out is None or layer is not None:
        return found
    known = surface.metadata
    part = known.get("examples", 0) / known["examples_available"] if known.get("examples_available") else 0.0
    without = [_measured(surface, f, None, threshold, resolution, FEW_PAIRS) for f in surface.left_out]
    return _with_errors(found, without, max(0.0, 1 - part) ** 0.5)


def _measured(
    surface: "Surface",
    values: np.ndarray,
    barriers: np.ndarray | None,
    threshold: float,
    resolution: float | None,
    pairs: int = PAIRS,
) -> Report:
    """The report on values [A, B] of a surface's grid; barriers are interpolated when None."""
    whole = _samples(surface, values, resolution)
    corner = np.array([[surface.grid.a[0], surface.grid.b[0]]], float)
    anchors = np.asarray(surface.anchors, float).reshape(-1, 2) - corner
    if not spans(whole.known):
        raise ValueError(
            f"A surface needs at least three finite samples that are not on one line; {np.isfinite(whole.f).sum()} of "
            f"{whole.f.size} are finite here.\n  Evaluate it on a smaller extent, or find out where the loss overflows."
        )
    whole, hull = _with_envelope(whole)
    if barriers is None:
        barriers = np.array([_interpolated_barrier(whole, hull, *ends) for ends in combinations(anchors, 2)])
    edges = np.asarray(barriers, float)
    inside = within(whole, anchors) if len(anchors) == 3 else None
    part = None
    if inside is not None and spans(inside.known):
        part = _measure(*_with_envelope(inside), threshold, edges, None, pairs)
    return _measure(whole, hull, threshold, edges, part, pairs)


def _with_errors(found: Report, without: Sequence[Report], factor: float) -> Report:
    """A report with the jackknife's standard errors, from the reports without each group of examples.

    Args:
        found: The report on all examples that were taken.
        without: G reports.
        factor: The finite-population correction, 1 for the population behind the data.
    """
    names = [name for name in Report._fields if name not in ("standard_errors", "triangle")]
    errors = {name: factor * jackknife([getattr(other, name) for other in without]) for name in names}
    if found.triangle is None or any(other.triangle is None for other in without):
        return found._replace(standard_errors=errors)
    inner = _with_errors(found.triangle, [other.triangle for other in without if other.triangle is not None], factor)
    return found._replace(standard_errors=errors, triangle=inner)


def numbers(measured: Report) -> dict[str, float]:
    """A report as one flat dictionary; `barrier` is the largest of the edges', the triangle's names start with it."""
    known = measured._asdict()
    flat = {name: float(known[name]) for name in known if name not in ("barriers", "standard_errors", "triangle")}
    flat["barrier"] = float(np.max(measured.barriers)) if len(measured.barriers) else float("nan")
    for name, error in (measured.standard_errors or {}).items():
        if name in flat and "error" not in name and name not in ("minima", "resolution"):
            flat[f"{name}_standard_error"] = float(error)
    if measured.triangle is None:
        return flat
    inner = numbers(measured.triangle)
    return flat | {f"triangle_{name}": value for name, value in inner.items() if name != "barrier"}


def barriers(problem: Any, solutions: Iterable[Any], *, points: int = 51) -> Any:
    """max_t R(w_t) − (1−t) R(w_0) − t R(w_1) along the segment between every two solutions, evaluated exactly.

    Args:
        problem: A Problem, or any pure function risk(params) -> scalar or dict of scalars (train and test, say).
        solutions: Parameters; M of them have M(M−1)/2 edges, in the order (0, 1), (0, 2) … (1, 2) ….
        points: Points on each segment, ends included.

    Returns:
        [edges] in loss units, or a dict of them.
    """
    pairs = list(combinations(list(solutions), 2))
    if not pairs:
        raise ValueError("A barrier lies between two solutions; fewer were given.")
    return edge_barriers(problem, pairs, points=points)


def edge_barriers(problem: Any, edges: Sequence[tuple[Any, Any]], *, points: int = 51) -> Any:
    """`barriers` along given edges, pairs (start, end) of parameters, all of them in one compiled computation.

    Raises:
        ValueError: Fewer than three points, which leave nothing between the ends.
    """
    if points < 3:
        raise ValueError(f"An edge needs at least 3 points, its ends included; got {points}.")
    lines = profiles(problem, edges, points=points)
    return jax.tree.map(lambda of_all: np.array([barrier(line) for line in of_all]), lines)


def known_barriers(surface: "Surface", layer: str | None = None) -> np.ndarray | None:
    """The exact barriers [edges] that a surface carries, of its risk or of the layer "test risk"; None without them."""
    held = surface.metadata.get("barriers", {})
    found = held.get({None: "train", "test risk": "test"}.get(layer, ""))
    return None if found is None else np.asarray(found, float)


def barrier(values: np.ndarray) -> float:
    """The largest height of a profile [T] above the straight line between its ends, loss units; nan if it is unknown.

    Heights within the rounding of the values count as 0.

    >>> barrier(np.array([1.0, 3.0, 2.0]))
    1.5
    """
    values = values.astype(float) if values.dtype == np.float64 else values.astype(np.float32).astype(float)
    above = values - np.linspace(values[0], values[-1], len(values))
    return float(clean(above.max(), rounding(values))) if np.isfinite(values).all() else float("nan")


def _samples(surface: "Surface", values: Any, resolution: float | None) -> Samples:
    a, b = (np.asarray(side, float) - float(side[0]) for side in surface.grid)  # far from 0 points between would round
    f = np.array(values, float)
    floor = rounding(np.asarray(values)) if resolution is None else resolution
    if f.shape != (len(a), len(b)) or min(f.shape) < 2:
        raise ValueError(f"Samples must be [A, B], at least 2 x 2, for a grid of {len(a)} x {len(b)}; got {f.shape}.")
    if min(np.diff(a).min(), np.diff(b).min()) <= 0:
        raise ValueError("The grid's coordinates must increase strictly.\n  Sort a and b, and risk with them.")
    f[~np.isfinite(f)] = np.nan
    return Samples(a, b, f, floor)


def _with_envelope(samples: Samples) -> tuple[Samples, Envelope]:
    """The envelope, and the samples with the envelope's error added to their resolution."""
    hull = envelope(samples.a, samples.b, samples.f)
    return samples._replace(resolution=samples.resolution + hull.error), hull


def _measure(
    samples: Samples, hull: Envelope, threshold: float, edges: np.ndarray, triangle: Report | None, pairs: int
) -> Report:
    floor, spread = samples.resolution, float(np.nanmax(samples.f) - np.nanmin(samples.f))
    gap, weights = clean(hull.gap, floor), samples.weights
    lost = persistences(samples, max(threshold * spread, floor))
    middle, error = _midpoint_mean(samples, hull, pairs)
    in_loss = (float(gap.max()), float((gap * weights).sum() / weights.sum()), middle, error, float(lost.sum()))
    unit = spread if spread > floor else 1.0  # all gaps are below the floor
    env_max, env_mean, midpoint, midpoint_error, persistence = (value / unit for value in in_loss)
    return Report(
        *(env_max, env_mean, midpoint, midpoint_error, _curvature_negative_share(samples)),
        *(1 + len(lost), persistence, edges, spread, *in_loss, floor),
        triangle=triangle,
    )


def _interpolated_barrier(samples: Samples, hull: Envelope, p: np.ndarray, q: np.ndarray) -> float:
    t = np.linspace(0, 1, 4 * max(samples.f.shape) + 1)[:, None]
    values = between(samples, hull, (1 - t) * p[None] + t * q[None])
    if not np.isfinite(values).all():
        return float("nan")
    return float(clean((values - (1 - t[:, 0]) * values[0] - t[:, 0] * values[-1]).max(), samples.resolution))


def _midpoint_mean(samples: Samples, hull: Envelope, pairs: int) -> tuple[float, float]:
    """Mean violation at the midpoints of random pairs of samples, and its standard error.

    The same random numbers are used with the samples row by row and column by column, so that exchanging the axes
    changes nothing.
    """
    drawn = np.random.default_rng(0).random((2, pairs))
    index = np.arange(samples.f.size).reshape(samples.f.shape)
    f, nodes, weights = samples.f.ravel(), samples.nodes, samples.weights.ravel()
    p, q = (np.stack([_draw(weights, order.ravel(), u) for order in (index, index.T)]) for u in drawn)
    middle = between(samples, hull, (nodes[p.ravel()] + nodes[q.ravel()]) / 2).reshape(p.shape)
    violation = middle - (f[p] + f[q]) / 2
    known = np.isfinite(violation)
    means = np.where(known, clean(violation, samples.resolution), 0.0).sum(0) / np.maximum(known.sum(0), 1)
    means = means[known.any(0)]
    return (float(means.mean()), float(means.std(ddof=1) / len(means) ** 0.5)) if len(means) > 1 else (0.0, 0.0)


def _draw(weights: np.ndarray, order: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Samples [P] with probabilities in proportion to their weights, from u in [0, 1), [P]."""
    mass = np.cumsum(weights[order])
    return order[np.minimum(np.searchsorted(mass, u * mass[-1], "right"), len(order) - 1)]


def _curvature_negative_share(samples: Samples) -> float:
    negative = total = 0.0
    for f, x, y in ((samples.f, samples.a, samples.b), (samples.f.T, samples.b, samples.a)):
        inverse = 1 / np.diff(x)[:, None]
        bend = np.diff(np.diff(f, axis=0) * inverse, axis=0)
        bend = np.where(np.abs(bend) > samples.resolution * (inverse[1:] + inverse[:-1]), bend, 0.0)
        mass = bend * np.convolve(np.diff(y), [0.5, 0.5])[None]
        negative, total = negative - mass[mass < 0].sum(), total + np.abs(mass).sum()
    return float(negative / total) if total > 0 else 0.0
