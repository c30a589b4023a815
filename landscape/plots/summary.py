"""Measures of many surfaces in brief: their names, the ones to show, their mean with an interval."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

NAMES = {
    "env_max_loss": "largest distance to the convex envelope (loss units)",
    "env_mean_loss": "mean distance to the convex envelope (loss units)",
    "barrier": "highest barrier between solutions (loss units)",
    "test_barrier": "highest barrier on test data (loss units)",
    "minima": "minima",
    "env_max": "largest distance to the convex envelope (of the range)",
    "env_mean": "mean distance to the convex envelope (of the range)",
    "curvature_negative_share": "negative share of curvature",
    "midpoint_mean": "mean midpoint violation (of the range)",
    "midpoint_mean_loss": "mean midpoint violation (loss units)",
    "midpoint_mean_error": "standard error of the mean midpoint violation (of the range)",
    "midpoint_mean_error_loss": "standard error of the mean midpoint violation (loss units)",
    "persistence": "persistence of the minima (of the range)",
    "persistence_loss": "persistence of the minima (loss units)",
    "range": "range of the loss (loss units)",
    "resolution": "differences that are rounding (loss units)",
}
"""Names of measures in words; measures on the triangle of solutions have the prefix "triangle_"."""

SHOWN = tuple(NAMES)[:9]
"""The measures shown by default, those in loss units first."""

KINDS = {
    "trajectory_pca": "principal-direction",
    "top_hessian": "top Hessian eigenvector",
    "gradient_curvature": "gradient and negative-curvature",
    "random_filter": "random filter-normalised",
    "random_layer": "random layer-normalised",
}
"""Kinds of plane in words, if their name does not say it."""

IDENTITY = ("branches", "triple", "seed", "surface", "run", "plane", "aligned")
"""Keys that say which surface a record belongs to."""

RESAMPLES = 9_999
"""Bootstrap resamples of an interval."""


def name(key: str) -> str:
    """The measure in words.

    >>> name("triangle_minima")
    'minima, on the triangle'
    """
    if key.startswith("triangle_"):
        return f"{name(key.removeprefix('triangle_'))}, on the triangle"
    return NAMES.get(key, key.replace("_", " "))


def keys_of(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """The measures to show: the known ones with a finite value in a record, or else every such number."""
    numbers = (int, float, np.integer, np.floating)
    found: dict[str, None] = {}
    for record in records:
        held = {k: v for k, v in record.items() if isinstance(v, numbers) and not isinstance(v, bool)}
        found.update({key: None for key, value in held.items() if np.isfinite(value)})
    return [k for k in SHOWN if k in found] or [k for k in found if k not in IDENTITY]


def kind(known: Mapping[str, Any]) -> str:
    """The kind of plane in words, from a record or the metadata of a surface; empty where it is not stated.

    >>> kind({"plane": "orthonormal", "aligned": True}), kind({})
    ('orthonormal, aligned', '')
    """
    name = str(known.get("plane", ""))
    parts = [KINDS.get(name, name.replace("_", " ")), "aligned" if known.get("aligned") else ""]
    return ", ".join(part for part in parts if part)


def interval(
    samples: Sequence[float], *, level: float = 0.95, rng: np.random.Generator | None = None
) -> tuple[float, float, float]:
    """Mean and bootstrap percentile interval of the finite samples; the interval of one sample is nan.

    Args:
        samples: Independent values of one quantity.
        level: Probability that the interval holds the mean.
        rng: Draws the resamples; seeded with 0 when None.

    >>> interval([1.0, 1.0, 1.0])
    (1.0, 1.0, 1.0)
    """
    finite = np.array([s for s in samples if np.isfinite(s)], float)
    if finite.size == 0:
        return np.nan, np.nan, np.nan
    if finite.size == 1:
        return float(finite[0]), np.nan, np.nan
    draws = (rng or np.random.default_rng(0)).choice(finite, (RESAMPLES, finite.size)).mean(1)
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return float(finite.mean()), float(low), float(high)


def finite(records: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    """The finite values of a measure among the records."""
    found = [float(r[key]) for r in records if r.get(key) is not None]
    return [value for value in found if np.isfinite(value)]


def several(mean: float, low: float, high: float, count: int) -> str:
    """A mean with its interval as text; a single value has no interval.

    >>> several(0.5, 0.4, 0.6, 5), several(0.5, float("nan"), float("nan"), 1)
    ('0.5 (0.4 … 0.6)', '0.5')
    """
    if not np.isfinite(mean):
        return "–"
    return f"{mean:.3g} ({low:.3g} … {high:.3g})" if count > 1 else f"{mean:.3g}"
