"""Sums over examples at a grid point, and how well they determine the risk: standard errors and the jackknife.

The risk is a weighted mean R = Σ w ℓ / Σ w over n examples. Its standard error follows from the spread of the losses,
SE² = n / (n − 1) Σ w² (ℓ − R)² / (Σ w)² [Cochran77, 2.11 and 6.4]. Where the examples are n of the N of a data set,
drawn without replacement, and its mean is meant, SE² is (1 − n/N) times that [Cochran77, 2.6].

Two points of one surface share their examples, so their difference is known better than their level: its error is that
of the mean of ℓ(w) − ℓ(w_1), with w_1 the first solution.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from landscape.losses import Loss
from landscape.problem import each

GROUPS = 20
"""Groups of examples of about equal number, each of which is left out once by the jackknife."""


class Weights(NamedTuple):
    """How the examples enter: weights [n], and the group of each, 0 … GROUPS − 1, [n]."""

    weight: Any
    group: Any


class _Second(NamedTuple):
    """Σ w and Σ w²; Σ w² d and Σ w² d² for d = ℓ − centre; Σ w d, Σ w² d and Σ w² d² for d = ℓ − reference.

    ℓ is the first loss; `centre` the mean of the first examples, so that squares lose nothing to rounding.
    """

    centre: Any
    weight: Any
    square: Any
    level: Any
    level_square: Any
    away_mean: Any
    away: Any
    away_square: Any


MOMENTS = len(_Second._fields)


def length(losses: int) -> int:
    """K, the number of sums for Q losses: one each, the first loss's by groups, and its second moments."""
    return losses + GROUPS + MOMENTS


def zeros(losses: int, dtype: Any) -> jax.Array:
    """No examples yet, [K]."""
    return jnp.zeros(length(losses), dtype)


def values(losses: Sequence[Loss], outputs: jax.Array, y: jax.Array) -> jax.Array:
    """Every loss of every example, [Q, n].

    Args:
        losses: Q functions.
        outputs: Outputs of the network, [n, C] or any other shape [n, ...].
        y: Labels [n, ...].
    """
    return jnp.stack([each(loss, outputs, y) for loss in losses])


def add(total: jax.Array, found: jax.Array, weights: Weights, reference: jax.Array) -> jax.Array:
    """The sums [K] with more examples.

    Args:
        total: The sums so far, [K].
        found: Losses [Q, n].
        weights: Of these examples.
        reference: The first loss of these examples at the first solution, [n].
    """
    weight, first = weights.weight, found[0]
    own = weights.group[:, None] == jnp.arange(GROUPS, dtype=weights.group.dtype)[None]
    means, old = (weight[None] * found).sum(1), _Second(*total[-MOMENTS:])
    more, square = weight.sum(), jnp.square(weight)
    centre = jnp.where(old.weight > 0, old.centre, means[0] / jnp.where(more > 0, more, 1))
    level, away = first - centre, first - reference
    terms = (weight, square, square * level, square * jnp.square(level))
    terms += (weight * away, square * away, square * jnp.square(away))
    new = _Second(centre, *(a + t.sum() for a, t in zip(old[1:], terms, strict=True)))
    grouped = first @ jnp.where(own, weight[:, None], 0)
    return jnp.concatenate([total[:-MOMENTS] + jnp.concatenate([means, grouped]), jnp.stack(new)])


def uncentred(sums: np.ndarray) -> np.ndarray:
    """Sums [..., K, P] of one part of the examples, with Σ w² ℓ and Σ w² ℓ² in float64, to be added to other parts'."""
    sums = np.asarray(sums, np.float64)
    part = _Second(*np.moveaxis(sums[..., -MOMENTS:, :], -2, 0))
    level = part.level + part.centre * part.square
    square = part.level_square + 2 * part.centre * part.level + np.square(part.centre) * part.square
    whole = part._replace(centre=np.zeros_like(level), level=level, level_square=square)
    return np.concatenate([sums[..., :-MOMENTS, :], np.stack(whole, -2)], -2)


class Errors(NamedTuple):
    """How well a risk is known at P points, float64.

    Attributes:
        standard: Standard error of the risk, [..., P].
        difference: Standard error of its difference to the first solution, [..., P].
        left_out: The risk without each of G groups of examples, [..., G, P].
    """

    standard: np.ndarray
    difference: np.ndarray
    left_out: np.ndarray


class Total(NamedTuple):
    """The sums over all examples seen so far, and their weights.

    Attributes:
        sums: [..., K, P], of `uncentred`.
        weight: [n]; examples of weight 0 do not count.
        group: Their groups [n].
    """

    sums: np.ndarray
    weight: np.ndarray
    group: np.ndarray

    @property
    def means(self) -> np.ndarray:
        """The means of all losses, [..., Q, P]."""
        return self.sums[..., : -GROUPS - MOMENTS, :] / float(np.sum(self.weight, dtype=float))

    def errors(self, of: int | None = None) -> Errors:
        """Standard errors of the first loss's mean, and the jackknife.

        Args:
            of: N, the number of examples of the data set whose mean is meant; None for the population behind it.
        """
        weight = np.asarray(self.weight, float)
        total, squares, count = weight.sum(), np.square(weight).sum(), np.count_nonzero(weight)
        share = count / max(count - 1, 1) * (1.0 if of is None else max(0.0, 1 - count / of))
        groups = self.sums[..., -GROUPS - MOMENTS : -MOMENTS, :]
        second = _Second(*np.moveaxis(self.sums[..., -MOMENTS:, :], -2, 0))
        risk = self.means[..., 0, :]

        def error(linear: np.ndarray, square: np.ndarray, mean: np.ndarray) -> np.ndarray:
            spread = square - 2 * mean * linear + np.square(mean) * squares
            return np.sqrt(share * np.maximum(spread, 0.0)) / total if count > 1 else np.full_like(linear, np.nan)

        with np.errstate(invalid="ignore"):
            level = error(second.level, second.level_square, risk)
            away = error(second.away, second.away_square, second.away_mean / total)
            held = np.bincount(self.group, weight, GROUPS)
            there = np.flatnonzero((held > 0) & (held < total))
            without = (total * risk[..., None, :] - groups[..., there, :]) / (total - held[there])[:, None]
        return Errors(level, away, without)


def jackknife(values: Sequence[Any]) -> Any:
    """Standard error of a measure from its G values, each without one group: (G − 1)/G Σ (θ_g − mean)² [Efron82, 3].

    Args:
        values: G numbers, or G arrays of one shape.

    >>> x = np.random.default_rng(0).normal(size=400)
    >>> without = [np.delete(x.reshape(20, 20), g, 0).mean() for g in range(20)]
    >>> bool(0.7 < jackknife(without) / (x.std() / 20) < 1.3)
    True
    """
    found = np.asarray(values, float)
    return np.sqrt((len(found) - 1) * found.var(0)) if len(found) > 1 else np.full(found.shape[1:], np.nan)[()]
