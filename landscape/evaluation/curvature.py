"""Exact slopes and curvatures inside a plane, at every grid point, by forward differentiation.

For f(a, b) = R(o + a u + b v): ∇f and ∇²f, 2 and 2×2 numbers a point. A piecewise linear loss has no curvature to show
between its kinks, and at a kink no derivative sees it; `in_plane` says so instead of showing zeros.
"""

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from landscape.arrays.trees import Affine
from landscape.compiler.flatten import jaxpr_hash
from landscape.files import atomic
from landscape.files.progress import Bar, showing
from landscape.planes import Plane, spectrum
from landscape.planes.grids import Grid, checked
from landscape.problem import Problem, fingerprint

UNEXPLAINED = 0.25
"""Where more than this share of the change of slope along the grid is not in the second derivatives, they mislead."""
PROBES = 64


class Curvature(NamedTuple):
    """Derivatives in the coordinates of a plane.

    Attributes:
        gradient: (∂f/∂a, ∂f/∂b), [A, B, 2], float64.
        hessian: [A, B, 2, 2].
        unexplained_fraction: Share of the change of slope from grid point to grid point that the second derivatives
            do not explain: kinks, and a grid too coarse for the function.
        reason: Why the curvature should not be shown; empty where it may be.
    """

    gradient: np.ndarray
    hessian: np.ndarray
    unexplained_fraction: float
    reason: str

    @property
    def eigenvalues(self) -> np.ndarray:
        """The smaller and the larger principal curvature, [A, B, 2]; on orthonormal axes per distance squared."""
        finite = np.isfinite(self.hessian).all((-2, -1), keepdims=True)
        return np.where(np.squeeze(finite, -1), np.linalg.eigvalsh(np.where(finite, self.hessian, 0)), np.nan)

    def layers(self) -> dict[str, np.ndarray]:
        """Named quantities [A, B] for a `Surface`; the slope only where there is a reason not to show curvature."""
        found = {"slope_a": self.gradient[..., 0], "slope_b": self.gradient[..., 1]}
        if self.reason:
            return found
        low, high = np.moveaxis(self.eigenvalues, -1, 0)
        h = self.hessian
        second = {"hessian_aa": h[..., 0, 0], "hessian_ab": h[..., 0, 1], "hessian_bb": h[..., 1, 1]}
        return {**found, **second, "curvature_min": low, "curvature_max": high}


@partial(jax.jit, static_argnums=0)
def _row(of: spectrum.Objective, data: Any, affine: Affine, axis: jax.Array, b: jax.Array) -> tuple[Any, Any]:
    """Gradient and Hessian at the points (a_i, b); nan where the loss is not finite."""

    def f(ab: Any) -> jax.Array:
        return of(data, affine.at(ab))

    def at(a: jax.Array) -> tuple[jax.Array, jax.Array]:
        ab = jnp.stack([a, b])
        known = jnp.where(jnp.isfinite(f(ab)), 1, jnp.nan)
        return known * jax.jacfwd(f)(ab), known * jax.jacfwd(jax.jacfwd(f))(ab)

    return lax.map(at, axis)


def in_plane(
    problem: Problem | spectrum.Risk,
    plane: Plane,
    grid: Grid,
    *,
    directory: Path | str | None = None,
    progress: bool | Bar = False,
    check_stop: Any = None,
) -> Curvature:
    """The exact gradient and Hessian of the risk inside the plane, at every point of a grid.

    Args:
        problem: A `Problem`, or a pure function risk(params) of differentiable operations.
        plane: The plane.
        grid: The points.
        directory: Where finished rows are kept, so that the same call continues an interrupted one.
        progress: Whether to show a bar.
        check_stop: Called after every row; may raise to interrupt.

    Raises:
        ValueError: A grid that is not increasing.
    """
    grid = checked(grid)
    of, data = spectrum.objective(problem)
    dtype = plane.float_type
    axis, rows = jnp.asarray(grid.a, dtype), []
    kept = atomic.Blocks(Path(directory), _key(problem, plane, grid)) if directory else atomic.Blocks(None, "")
    with showing(progress, "curvature", len(grid.a) * len(grid.b), "points") as bar:
        for j, b in enumerate(grid.b):
            found = kept.load(j)
            if found is None:
                row = _row(of, data, plane.affine, axis, jnp.asarray(b, dtype))
                found = {str(n): np.asarray(x, np.float64) for n, x in enumerate(row)}
                kept.save(j, found)
            rows.append((found["0"], found["1"]))
            bar.update(len(grid.a))
            if check_stop:
                check_stop()
    gradient, hessian = (np.stack(x, 1) for x in zip(*rows, strict=True))
    share, known = unexplained_fraction(grid, gradient, hessian), np.isfinite(gradient).any()
    nowhere = "Curvature is not shown: the loss has no finite slope at any point of this grid."
    return Curvature(gradient, hessian, share, reason(problem, share) if known else nowhere)


def _key(problem: Problem | spectrum.Risk, plane: Plane, grid: Grid) -> str:
    risk = isinstance(problem, Problem)
    computed = fingerprint(problem, [problem.loss]) if risk else jaxpr_hash(problem, plane.origin)
    return atomic.fingerprint("curvature", computed, tuple(plane.affine), tuple(grid))


def unexplained_fraction(grid: Grid, gradient: np.ndarray, hessian: np.ndarray) -> float:
    """Σ |Δ slope − ∫ second derivative| / Σ |Δ slope| over the steps of the grid, integrals by the trapezoid rule.

    >>> a = np.linspace(-1, 1, 5)
    >>> gradient, hessian = np.zeros((5, 2, 2)), np.zeros((5, 2, 2, 2))
    >>> gradient[..., 0], hessian[..., 0, 0] = 2 * a[:, None], 2
    >>> unexplained_fraction(Grid(a, np.arange(2.0)), gradient, hessian)
    0.0
    """
    missed = moved = 0.0
    for k, axis in enumerate(grid):
        width = np.diff(axis).reshape((-1, 1) if k == 0 else (1, -1))
        slope, bend = gradient[..., k], hessian[..., k, k]
        change = np.diff(slope, axis=k)
        ends = np.delete(bend, -1, k), np.delete(bend, 0, k)
        missed += np.nansum(np.abs(change - width * (ends[0] + ends[1]) / 2))
        moved += np.nansum(np.abs(change))
    return float(missed / moved) if moved > 0 else 0.0


def reason(problem: Problem | spectrum.Risk, share: float) -> str:
    """Why curvature is not shown, in a sentence; empty where it may be."""
    if isinstance(problem, Problem) and piecewise_linear(problem):
        name = getattr(problem.loss, "__name__", "loss")
        return (
            f"Curvature is not shown: the {name} loss is piecewise linear in the outputs, so its second derivative is "
            "zero between the kinks, and the kinks, which bend the surface, have none."
        )
    if share > UNEXPLAINED:
        return (
            f"Curvature is not shown: second derivatives explain only {max(0.0, 1 - share):.0%} of how the slope "
            "changes over this grid; the rest is in kinks (ReLU, hinge, max) or between the grid points."
        )
    return ""


def piecewise_linear(problem: Problem) -> bool:
    """Whether the loss per example has second derivative zero at random outputs, tried at outputs of several sizes."""
    y = jnp.asarray(np.asarray(problem.data.y)[:PROBES])
    outputs = jax.eval_shape(problem.network.apply, problem.shapes, problem.data.taken(slice(len(y))).x)
    scales = 10.0 ** jnp.linspace(-1, 1, len(y)).reshape(-1, *[1] * (len(outputs.shape) - 1))
    f, d = (jax.random.normal(k, outputs.shape, outputs.dtype) for k in jax.random.split(jax.random.key(0)))

    def slope(f: jax.Array) -> jax.Array:
        return jax.grad(lambda g: problem.loss(g, y).sum())(f)

    bend = jax.jvp(slope, (f * scales.astype(f.dtype),), (d,))[1]
    return not bool(jnp.any(jnp.abs(bend) > 1e-6))
