"""The expected margin loss g(w) = E[1 − y f(w; x)/τ]: over a sample, or over a distribution with a quadrature error."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from landscape.duality.branches import Branch
from landscape.duality.certified.frontiers import real_array, real_number
from landscape.duality.certified.interval_rules import Bounds
from landscape.duality.certified.intervals import Enclosure, bounds, enclose


class Quadrature(NamedTuple):
    """A distribution cut into patches: E[f] = Σ_m weight_m (mean of f on patch m), labels constant on each.

    Attributes:
        x: Centroid of each patch, [M, D].
        y: Label of each patch, ±1, [M].
        weight: Probability of each patch, [M].
        lo: Lower corner of a box around each patch and its centroid, [M, D].
        hi: Upper corner, [M, D].
    """

    x: np.ndarray
    y: np.ndarray
    weight: np.ndarray
    lo: np.ndarray
    hi: np.ndarray


def circle(patches: int, direction: Any = (1.0, 0.0)) -> Quadrature:
    """x uniform on the unit circle, y = sgn⟨direction, x⟩, cut into equal arcs that respect the labels.

    Args:
        patches: Arcs, an even number.
        direction: u, [2].

    Raises:
        ValueError: Fewer than two arcs, or an odd number.
    """
    if patches < 2 or patches % 2:
        raise ValueError(f"The circle needs an even number of arcs, at least 2; got {patches}.")
    u = np.asarray(direction, np.float64)
    start, width = math.atan2(u[1], u[0]) - math.pi / 2, 2 * math.pi / patches
    ends = start + width * np.arange(patches + 1)
    middle = (ends[:-1] + ends[1:]) / 2
    x = np.stack([np.cos(middle), np.sin(middle)], 1) * (math.sin(width / 2) / (width / 2))
    corners = np.stack([np.cos(ends), np.sin(ends)], 1)
    sagitta = 1 - math.cos(width / 2) + 1e-15
    lo, hi = np.minimum(corners[:-1], corners[1:]) - sagitta, np.maximum(corners[:-1], corners[1:]) + sagitta
    y = np.where(np.arange(patches) < patches // 2, 1.0, -1.0)
    return Quadrature(x, y, np.full(patches, 1 / patches), lo, hi)


def sphere(bands: int, sectors: int, direction: Any = (0.0, 0.0, 1.0)) -> Quadrature:
    """x uniform on the unit sphere in R³, y = sgn⟨direction, x⟩, cut into bands × sectors of equal area.

    Args:
        bands: Bands of equal height along `direction`, an even number.
        sectors: Sectors around it, at least 3.
        direction: u, [3].

    Raises:
        ValueError: An odd number of bands, or too few of either.
    """
    if bands < 2 or bands % 2 or sectors < 3:
        raise ValueError(f"The sphere needs an even number of bands and at least 3 sectors; got {bands}, {sectors}.")
    z, phi = np.linspace(-1, 1, bands + 1), np.linspace(0, 2 * math.pi, sectors + 1)
    area = 0.5 * (z * np.sqrt(np.maximum(1 - z**2, 0)) + np.arcsin(np.clip(z, -1, 1)))
    radius = np.diff(area) / np.diff(z)
    half = math.pi / sectors
    middle = phi[:-1] + half
    ring = np.stack([np.cos(middle), np.sin(middle)], 1) * (math.sin(half) / half)
    heights = (z[:-1] + z[1:]) / 2
    x = np.concatenate([radius[:, None, None] * ring, np.broadcast_to(heights[:, None, None], (bands, sectors, 1))], -1)
    rho = np.sqrt(np.maximum(1 - z**2, 0))
    widest = np.where((z[:-1] < 0) & (z[1:] > 0), 1.0, np.maximum(rho[:-1], rho[1:]))
    narrowest = np.minimum(rho[:-1], rho[1:])
    around = np.stack([np.cos(phi), np.sin(phi)], 1)
    sagitta = 1 - math.cos(half)
    low, high = np.minimum(around[:-1], around[1:]) - sagitta, np.maximum(around[:-1], around[1:]) + sagitta
    ends = [r[:, None, None] * edge[None] for r in (narrowest, widest) for edge in (low, high)]
    levels = [np.broadcast_to(level[:, None, None], (bands, sectors, 1)) for level in (z[:-1], z[1:])]
    lo = np.concatenate([np.minimum.reduce(ends), levels[0]], -1).reshape(-1, 3)
    hi = np.concatenate([np.maximum.reduce(ends), levels[1]], -1).reshape(-1, 3)
    frame = _frame(np.asarray(direction, np.float64))
    centre, extent = (lo + hi) / 2 @ frame, (hi - lo) / 2 @ np.abs(frame) + 1e-15
    y = np.repeat(np.sign(heights), sectors)
    weight = np.full(bands * sectors, 1 / (bands * sectors))
    return Quadrature(x.reshape(-1, 3) @ frame, y, weight, centre - extent, centre + extent)


def _frame(u: np.ndarray) -> np.ndarray:
    """An orthonormal frame, rows, whose last is u/‖u‖."""
    basis, _ = np.linalg.qr(np.stack([u, *np.eye(3)], 1))
    frame = np.roll(basis.T[:3], -1, axis=0)
    return frame * np.where(np.arange(3) == 2, np.sign(frame[2] @ u), 1.0)[:, None]


class Sample(NamedTuple):
    """Examples x [N, ...], labels ±1 [N], weights summing to 1 [N], and the patches' boxes for a quadrature."""

    x: np.ndarray
    y: np.ndarray
    weight: np.ndarray
    boxes: tuple[np.ndarray, np.ndarray] | None


def sample(data: Any) -> Sample:
    """Data in float64: a `Dataset`, a `Quadrature`, or anything with x, y and weight; a pair (x, y) too.

    Raises:
        ValueError: Values that are not finite (Assumption 1 needs bounded data) or not real, labels other than ±1,
            shapes that do not fit, no weight.
    """
    parts = [getattr(data, name) for name in ("x", "y", "weight")] if hasattr(data, "x") else [*data, None]
    x, y = (np.atleast_1d(real_array(name, part)) for name, part in zip(("x", "y"), parts, strict=False))
    weight = np.ones(len(y)) if parts[2] is None else real_array("weight", parts[2])
    boxes = (np.asarray(data.lo), np.asarray(data.hi)) if isinstance(data, Quadrature) else None
    if not all(np.isfinite(part).all() for part in (x, weight, *(boxes or ()))):
        raise ValueError("The data must be finite: Assumption 1 fails for inputs that are not bounded.")
    if len(x) != len(y) or not np.isin(y, (-1.0, 1.0)).all():
        raise ValueError(f"Labels must be −1 or +1, one for each of {len(x)} examples; got {np.unique(y)[:5]}.")
    if weight.shape != y.shape or y.ndim != 1:
        raise ValueError(f"y and weight must both be [N]; got shapes {y.shape} and {weight.shape}.")
    if weight.min() < 0 or not weight.sum() > 0:
        raise ValueError("The weights must not be negative, and not all zero.")
    return Sample(x, y, weight / weight.sum(), boxes)


def margin_loss(branch: Branch, data: Sample, tau: float) -> Callable[[jax.Array], jax.Array]:
    """g(w) = Σ_n weight_n (1 − y_n f(w; x_n)/τ), at the centroids for a quadrature.

    Raises:
        ValueError: τ is not positive.
    """
    tau = real_number("τ", tau)
    if not (tau > 0 and math.isfinite(tau)):
        raise ValueError(f"τ must be positive; got {tau}.")
    x, factor = jnp.asarray(data.x), jnp.asarray(data.weight * data.y / tau)
    return lambda w: 1.0 - jnp.dot(factor, jax.vmap(branch, (None, 0))(w, x))


def quadrature_error(branch: Branch, data: Sample, tau: float) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """How far the expected loss may lie from `margin_loss` while w ranges over a box (lo, hi).

    The centroid is each patch's mean, so the linear part of f integrates exactly; what is left is at most the
    half-width of ∂f/∂x on the patch times the patch's extent, coordinate by coordinate.
    """
    if data.boxes is None:
        return lambda lo, hi: jnp.zeros((), lo.dtype)
    low, high = (jnp.asarray(end) for end in data.boxes)
    x, scale = jnp.asarray(data.x), jnp.asarray(data.weight / tau)
    extent = jnp.maximum(high - x, x - low)

    def error(lo: jax.Array, hi: jax.Array) -> jax.Array:
        slope = bounds(jax.vmap(jax.grad(branch, 1), (None, 0)), Bounds(lo, hi), Bounds(low, high))
        off = jnp.sum(scale * jnp.sum((slope.hi - slope.lo) / 2 * extent, 1))
        return jnp.where(jnp.isnan(off), jnp.inf, off)

    return error


def enclosed_loss(
    branch: Branch, data: Sample, tau: float, lipschitz: float | None = None
) -> Callable[[jax.Array, jax.Array], Enclosure]:
    """Bounds of g on a box (lo, hi): by intervals, or from a Lipschitz constant of g in the Euclidean norm.

    Args:
        branch: f(w, x) for one example.
        data: The sample.
        tau: τ.
        lipschitz: Taken on trust where it is given.
    """
    loss, error = margin_loss(branch, data, tau), quadrature_error(branch, data, tau)

    def by_intervals(lo: jax.Array, hi: jax.Array) -> Enclosure:
        found = enclose(loss, lo, hi)
        if data.boxes is None:
            return found
        off = error(lo, hi)
        return found._replace(
            lo=found.lo - off, hi=found.hi + off, centre_lo=found.centre_lo - off, centre_hi=found.centre_hi + off
        )

    if lipschitz is None:
        return by_intervals
    constant = float(lipschitz)

    def by_constant(lo: jax.Array, hi: jax.Array) -> Enclosure:
        value = loss((lo + hi) / 2)
        far = constant * jnp.sqrt(jnp.sum(((hi - lo) / 2) ** 2))
        slope = jnp.full_like(lo, constant)
        tiny = 1e-13 * (1 + jnp.abs(value))
        return Enclosure(value - far - tiny, value + far + tiny, value - tiny, value + tiny, -slope, slope)

    return by_constant
