"""Minima of a sampled surface by sublevel persistence [Edelsbrunner10, VII.1], with none that the grid alone makes.

A narrow valley that runs aslant through the grid passes between its points, so that on the 8 neighbours of each point
even a convex function has many minima. So straight segments from each minimum to the nearest lower ones are links too.
The surface on them is the lower convex envelope E of the samples in the cells that they cross, plus the samples'
distances to E interpolated, which is convex wherever these samples are.

The bound: let the samples be a convex function up to errors |e| ≤ ε. Then E ≤ max(f_p, f_q) on a segment from p to q,
since p and q are samples, and no sample lies more than 2 ε above E. So every minimum but the lowest meets a lower one
at most 2 ε above itself, whatever the grid: a persistence above 2 ε is no artefact of the sampling. Conversely, two
minima are told apart as far as the samples between them rise above the convex envelope of the samples around them.
"""

import numpy as np

from landscape.convexity.envelope import Samples, envelope_of, interpolate, spans

NEAREST, SEGMENTS = 3, 2_000
"""Segments from each minimum at most, and of all together where that leaves one each, which the bound needs."""

Merge = tuple[int, int, float]


def persistences(samples: Samples, floor: float) -> np.ndarray:
    """Persistences above `floor` of all minima but the lowest.

    Args:
        samples: The surface.
        floor: Smaller persistences are not sought, in the units of the values.
    """
    f = samples.f.ravel()
    lowest, links, levels = _basins(f, *_neighbours(samples))
    merges = _merge(f, links, levels)
    deep = {young for young, _, level in merges if level - f[young] > floor}
    alive = set(lowest.tolist()) - {young for young, _, _ in merges}
    candidates = np.array(sorted(deep | alive, key=lambda i: (f[i], i)))
    if len(candidates) == 1:
        return np.zeros(0)
    bends = [m for m in merges if m[2] > f[m[0]]] + _segments(samples, candidates, floor)
    final = _merge(f, np.array([m[:2] for m in bends]), np.array([m[2] for m in bends]))
    lost = np.array([level - f[young] for young, _, level in final])
    return lost[lost > floor]


def _merge(f: np.ndarray, links: np.ndarray, levels: np.ndarray) -> list[Merge]:
    """(ended, older, level) of every merge. If two components meet, the one with the higher minimum ends."""
    order = np.argsort(levels, kind="stable")
    parent, merges, values = {}, [], f.tolist()

    def root(i: int) -> int:
        while (up := parent.get(i, i)) != i:
            parent[i] = i = parent.get(up, up)
        return i

    for (i, j), level in zip(links[order].tolist(), levels[order].tolist(), strict=True):
        (_, old), (_, young) = sorted((values[k], k) for k in (root(i), root(j)))
        if old != young:
            parent[young] = old
            merges.append((young, old, level))
    return merges


def _basins(f: np.ndarray, links: np.ndarray, levels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The lowest points of the basins of steepest descent, and the links between basins, as pairs of these points.

    A point joins the lowest point of its basin at its own value, so a link inside a basin ends no minimum.
    """
    order = np.argsort(f, kind="stable")
    rank = np.empty(f.size, int)
    rank[order] = np.arange(f.size)
    down = np.arange(f.size)  # the rank of the lowest neighbour, or the point's own
    low, high = np.sort(rank[links], 1).T
    np.minimum.at(down, high, low)
    while not np.array_equal(further := down[down], down):
        down = further
    ends = order[down[rank[links]]]
    apart = ends[:, 0] != ends[:, 1]
    return np.unique(order[down[rank[np.isfinite(f)]]]), ends[apart], levels[apart]


def _neighbours(samples: Samples) -> tuple[np.ndarray, np.ndarray]:
    """Pairs [L, 2] among the 8 neighbours, and the level at which each is joined: its higher value."""
    index = np.arange(samples.f.size).reshape(samples.f.shape)
    pairs = [(index[1:], index[:-1]), (index[:, 1:], index[:, :-1]), (index[1:, 1:], index[:-1, :-1])]
    pairs.append((index[1:, :-1], index[:-1, 1:]))
    links = np.concatenate([np.stack([p.ravel(), q.ravel()], 1) for p, q in pairs])
    levels = samples.f.ravel()[links].max(1)
    return links[np.isfinite(levels)], levels[np.isfinite(levels)]


def _segments(samples: Samples, minima: np.ndarray, floor: float) -> list[Merge]:
    """Links from each minimum, sorted by value, to the nearest lower ones until one of them ends it below the floor."""
    nodes, f = samples.nodes, samples.f.ravel()
    places = nodes[minima] / (np.ptp(samples.a), np.ptp(samples.b))
    gaps = np.full(samples.f.shape, np.nan)
    nearest = max(1, min(NEAREST, SEGMENTS // len(minima)))
    found = []
    for k, p in enumerate(minima.tolist()):
        for near in np.argsort(((places[:k] - places[k : k + 1]) ** 2).sum(1), kind="stable")[:nearest]:
            level = _height(samples, nodes, gaps, minima[[k, near]])
            found.append((p, int(minima[near]), level))
            if level - f[p] <= floor:
                break
    return found


def _height(samples: Samples, nodes: np.ndarray, gaps: np.ndarray, pair: np.ndarray) -> float:
    """The highest value on the segment between two grid points; unknown samples are taken to lie on the envelope."""
    f = samples.f.ravel()
    t, corners = _corridor(samples, nodes[pair])
    known = corners[np.isfinite(f[corners])]
    if not spans(nodes[known]):
        return float(f[known].max())  # all known samples lie on the segment
    points = (1 - t[:, None]) * nodes[pair[:1]] + t[:, None] * nodes[pair[1:]]
    hull = envelope_of(np.column_stack([nodes[known], f[known]]))
    gaps.ravel()[known] = hull.gap
    heights = hull.at(points) + np.nan_to_num(interpolate(samples, gaps, points))
    gaps.ravel()[known] = np.nan
    return float(max(heights.max() - hull.error, *f[pair]))


def _corridor(samples: Samples, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The t in [0, 1] at which a segment crosses grid lines, and the flat indices of its cells' corners."""
    (low, high), step = np.sort(ends, 0), ends[1] - ends[0]
    crossed = [np.array([0.0, 1.0])]
    for k, axis in enumerate((samples.a, samples.b)):
        first, last = np.searchsorted(axis, low[k], "right"), np.searchsorted(axis, high[k], "left")
        if last > first:
            crossed.append((axis[first:last] - ends[0, k]) / step[k])
    t = np.unique(np.concatenate(crossed))
    inside = ends[:1] + (t[1:, None] + t[:-1, None]) / 2 * step[None]
    rows, columns = (_beside(axis, x) for axis, x in zip((samples.a, samples.b), inside.T, strict=True))
    return t, np.unique(rows[:, None] * len(samples.b) + columns[None])


def _beside(axis: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Indices of the grid lines beside each x, [2, P]; [3, P] where all x lie on one."""
    last = len(axis) - 1
    k = np.searchsorted(axis, x, "right")
    if axis[k[0] - 1] == x[0] == x[-1]:
        return np.clip(np.stack([k - 2, k - 1, k]), 0, last)
    return np.clip(np.stack([k - 1, k]), 0, last)
