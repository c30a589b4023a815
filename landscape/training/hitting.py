"""How often SGD hits the global minimum (§5.2, Table 1)."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import ndtri

from landscape.arrays import trees
from landscape.datasets import Dataset
from landscape.files.progress import Bar
from landscape.training.shallow import DEFAULT, TrainingConfig, Weights, train_networks


class Rates(NamedTuple):
    """Table 1: how many networks of each width ended within the tolerance of the global minimum.

    Attributes:
        widths: [K] Hidden units.
        risk: [K, S] Final risks on all the data in float64, loss units.
        hits: [K] Networks with risk <= minimum + tolerance.
        low: [K] Lower end of Wilson's 95 % interval of the rate.
        high: [K] Its upper end.
        minimum: The global minimum.
        tolerance: 1e-5 (§5.2).
    """

    widths: np.ndarray
    risk: np.ndarray
    hits: np.ndarray
    low: np.ndarray
    high: np.ndarray
    minimum: float
    tolerance: float

    def __repr__(self) -> str:
        shown = " ".join(f"{width}:{hits}" for width, hits in zip(self.widths, self.hits, strict=True))
        return f"Rates({shown} of {self.risk.shape[1]} networks each)"


def hitting_rate(
    data: Dataset,
    widths: Sequence[int],
    seeds: Sequence[int] = range(100),
    config: TrainingConfig = DEFAULT,
    *,
    minimum: float = 0.0,
    tolerance: float = 1e-5,
    directory: Path | None = None,
    progress: bool | Bar = True,
    check_stop: Callable[[], None] = lambda: None,
) -> Rates:
    """Train every width from every seed and count how often the global minimum is hit (§5.2).

    Args:
        data: Examples [N, D] and labels [N], of equal weight; those of weight zero are padding and do not count.
        widths: Hidden units of the networks.
        seeds: One initialisation each.
        config: How they are trained.
        minimum: The global minimum of the risk; 0 where the labels come from a smaller network.
        tolerance: A risk up to this above the minimum is a hit, decided in float64 on all the data.
        directory: Where unfinished ensembles are kept, so that the same call continues.
        progress: True for a bar, False for silence, or a bar already open.
        check_stop: Called several times a second; may raise to interrupt, after which the state is on disk.
    """
    networks = [(width, seed) for width in widths for seed in seeds]
    found = train_networks(data, networks, config, directory=directory, progress=progress, check_stop=check_stop)
    risk = final_risk(data, found, config).reshape(len(widths), len(seeds))
    return rates(widths, risk, minimum, tolerance)


def rates(widths: Sequence[int], risk: np.ndarray, minimum: float = 0.0, tolerance: float = 1e-5) -> Rates:
    """Count the hits among final risks [K, S]."""
    hits = (risk <= minimum + tolerance).sum(1)
    return Rates(np.asarray(widths), risk, hits, *wilson(hits, risk.shape[1]), minimum, tolerance)


def wilson(hits: Any, trials: int, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Wilson's score interval of a rate, from hits in trials.

    >>> low, high = wilson(50, 100)
    >>> round(float(low), 4), round(float(high), 4)
    (0.4038, 0.5962)
    """
    z, p = ndtri((1 + level) / 2), np.asarray(hits) / trials
    centre = (p + z**2 / (2 * trials)) / (1 + z**2 / trials)
    half = z / (1 + z**2 / trials) * np.sqrt(p * (1 - p) / trials + z**2 / (4 * trials**2))
    return np.clip(centre - half, 0, 1), np.clip(centre + half, 0, 1)


def final_risk(data: Dataset, networks: Sequence[Weights], config: TrainingConfig) -> np.ndarray:
    """The mean loss of every network on all the data of positive weight, [M], in float64."""
    data = data.support
    x = np.asarray(data.x, np.float64)
    f = np.stack([np.maximum(x @ w.T, 0) @ v for w, v in networks])
    with trees.float64():
        y = jnp.asarray(data.y, jnp.float64)
        return np.asarray(jax.vmap(lambda f: config.of_outputs(f[:, None], y).mean())(jnp.asarray(f)))
