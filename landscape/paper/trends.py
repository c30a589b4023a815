"""Does non-convexity fall as branches are added? The same measures on independent triples of solutions, with intervals.

For each number of branches I, 3 R solutions are trained at once to one stated criterion and grouped into R triples. A
triple spans a plane; a margin around its triangle gives the grid; the surface on the grid is measured, and the barriers
between the solutions are evaluated exactly. A measure is reported as its mean over the triples with a bootstrap
interval. Its trend over I is Spearman's rank correlation of all (I, value) pairs, with a p-value from permutations.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

from landscape import alignment, evaluation
from landscape.convexity import Report, edge_barriers, numbers, report
from landscape.planes import Plane, through_solutions
from landscape.planes.grids import Grid, grid_around
from landscape.plots import summary
from landscape.problem import Problem
from landscape.surfaces import Provenance, Surface

Params = Any


class Measured(NamedTuple):
    """The surface of one triple of solutions and its measures.

    Attributes:
        surface: The surface on the triple's plane.
        report: Its measures; the barriers are exact.
        test_barriers: [3] Barriers of the test risk, in loss units; nan without test data.
    """

    surface: Surface
    report: Report
    test_barriers: np.ndarray


class Trend(NamedTuple):
    """A measure against the number of branches.

    Attributes:
        branches: [K] I, increasing.
        values: [K, R] The measure on every triple.
        mean: [K] Means over the triples.
        low: [K] Lower end of the bootstrap interval of the mean; nan for one triple.
        high: [K] Its upper end.
        spearman: Rank correlation of all (I, value) pairs: −1 falls with I, 1 rises.
        p_value: Two-sided, by permutation of the values; no smaller than 1e-4.
    """

    branches: np.ndarray
    values: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    spearman: float
    p_value: float


def measure(
    problem: Problem,
    solutions: Iterable[Params],
    *,
    align: bool = False,
    test: Problem | None = None,
    plane: Callable[[Params, Params, Params], Plane] = through_solutions,
    grid: Callable[[Plane], Grid] = grid_around,
    edge_points: int = 51,
    evaluate: Callable[[Problem, Sequence[Plane], Sequence[Grid]], list[Surface]] = evaluation.evaluate_stack,
) -> list[Measured]:
    """Surface and report of every triple of consecutive solutions.

    One compiled program evaluates all surfaces, another one all edges. The assignment of branches and the measures of
    finished surfaces run on the host, triple by triple.

    Args:
        problem: The risk that is drawn.
        solutions: 3 R of them, for example what `train` returns for 3 R keys.
        align: Balance the solutions of a triple and align them to each other.
        test: The same network on test data, for the barriers of the test risk.
        plane: Builder of a plane through three solutions.
        grid: The extent rule, the same for all; it gives all grids the same numbers of points.
        edge_points: Points on each edge for the barriers.
        evaluate: Evaluates R surfaces, with other options than the default ones.

    Raises:
        ValueError: The number of solutions is not a positive multiple of three.
    """
    found = list(solutions)
    if not found or len(found) % 3:
        raise ValueError(f"A protocol of R triples needs 3 R solutions; got {len(found)}.")
    triples = [found[k : k + 3] for k in range(0, len(found), 3)]
    triples = [aligned(problem, triple) for triple in triples] if align else triples
    through = [plane(*triple) for triple in triples]
    surfaces = evaluate(problem, through, [grid(p) for p in through])
    edges = [pair for triple in triples for pair in combinations(triple, 2)]
    train = edge_barriers(problem, edges, points=edge_points).reshape(-1, 3)
    tested = np.full_like(train, np.nan) if test is None else edge_barriers(test, edges, points=edge_points)
    measured = []
    for k, (surface, train_k, test_k) in enumerate(zip(surfaces, train, tested.reshape(-1, 3), strict=True)):
        known = Provenance(branches=problem.network.total, triple=k, plane=through[k].kind, aligned=align)
        surface = surface.noting(known)
        measured.append(Measured(surface, report(surface, barriers=train_k), test_k))
    return measured


def aligned(problem: Problem, triple: Sequence[Params]) -> list[Params]:
    """A triple balanced, where that keeps the outputs, and aligned to each other."""
    return alignment.align_all(problem, triple)


def record(measured: Measured) -> dict[str, Any]:
    """A measured triple as one flat record: branches, triple, plane, aligned, every number by name."""
    known = {key: measured.surface.metadata[key] for key in ("branches", "triple", "plane", "aligned")}
    test = float(measured.test_barriers.max())
    return known | numbers(measured.report) | ({"test_barrier": test} if np.isfinite(test) else {})


def trend(branches: Sequence[int], values: Any, *, level: float = 0.95) -> Trend:
    """Mean and bootstrap interval of a measure for each I, and Spearman's trend over I.

    Args:
        branches: [K] Numbers of branches.
        values: [K, R] The measure; values that are not finite are left out.
        level: Level of the intervals.

    Raises:
        ValueError: The shapes do not fit, or fewer than three finite values or two different I remain.

    >>> found = trend([10, 100, 1000], [[3.0, 2.9], [2.0, 2.2], [1.0, 1.5]])
    >>> round(found.spearman, 2), found.p_value < 0.1
    (-0.96, True)
    """
    order = np.argsort(branches)
    size, table = np.asarray(branches)[order], np.asarray(values, float)
    if table.ndim != 2 or len(table) != len(size):
        raise ValueError(f"values must be [K, R] for K = {len(size)} numbers of branches; got shape {table.shape}.")
    table = table[order]
    rows = [row[np.isfinite(row)] for row in table]
    pairs = np.concatenate([np.stack([np.full(len(row), n), row]) for n, row in zip(size, rows, strict=True)], 1)
    if pairs.shape[1] < 3 or len(np.unique(pairs[0])) < 2:
        raise ValueError("A trend needs at least three finite values, at two numbers of branches or more.")
    rng = np.random.default_rng(0)
    mean, low, high = np.array([summary.interval(row, level=level, rng=rng) for row in rows]).T
    return Trend(size, table, mean, low, high, *_spearman(pairs[0], pairs[1], rng))


def _spearman(x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    """Spearman's correlation and its permutation p-value; 0 and 1 where all values are equal."""
    from scipy import stats  # takes half a second to load

    a, b = (stats.rankdata(side) - (len(side) + 1) / 2 for side in (x, y))
    scale = np.sqrt((a @ a) * (b @ b))
    if scale == 0:
        return 0.0, 1.0
    found = a @ b / scale
    drawn = rng.permuted(np.tile(b, (summary.RESAMPLES, 1)), axis=1) @ a / scale
    return float(found), float((1 + np.sum(np.abs(drawn) >= abs(found) - 1e-12)) / (1 + summary.RESAMPLES))
