"""The sum of all branches of one kind and its gradient, in two passes over chunks of branches (§2).

The first pass computes the outputs, the second the gradient of every chunk, written in place. Memory holds the
parameters, their gradient and one chunk, whatever the number of branches. Between the passes only residuals are kept,
the results of the first layer and of nearly all the arithmetic, and only if they are small compared with the
parameters. All other values are computed a second time.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from landscape.arrays import trees
from landscape.arrays.chunked import chunked_scan, part
from landscape.compiler import staged
from landscape.compiler.analysis import StagedBranch

Params = Any

KEPT = 0.125
"""Residuals are kept between the passes if their bytes are at most this share of the parameters'."""


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def sum_of_branches(branch: StagedBranch, chunk: int, params: Params, x: Any) -> jax.Array:
    """Σ_i f_i(w_(i); x), outputs [C, n].

    Args:
        branch: One branch, traced and staged.
        chunk: Branches computed at a time; the last chunk may be smaller.
        params: [I, ...].
        x: Examples [..., n], or a tree of them; whole numbers have no gradient.
    """
    return _outputs(branch, chunk, params, x, [])[0]


def _first_pass(branch: StagedBranch, chunk: int, params: Params, x: Any) -> tuple[jax.Array, Any]:
    total, kept = _outputs(branch, chunk, params, x, _worth_keeping(branch, chunk, params, x))
    return total, (params, x, kept)


def _outputs(branch: StagedBranch, chunk: int, params: Params, x: Any, keep: list[int]) -> tuple[jax.Array, Any]:
    """The outputs, and the chosen residuals of every chunk."""

    def add(total: jax.Array | None, start: Any, size: int, _: None) -> tuple[jax.Array, Any]:
        residuals = staged.precompute(branch, (part(params, start, size),), x)
        f = staged.at_point(branch, residuals, jnp.zeros(()))
        return f if total is None else total + f, [residuals[k][0] for k in keep]

    count = _count(params)
    if count < chunk:
        return chunked_scan(add, None, count, chunk)
    zero = jax.eval_shape(lambda: add(None, 0, chunk, None)[0])
    return chunked_scan(add, jnp.zeros(zero.shape, zero.dtype), count, chunk)


def _second_pass(branch: StagedBranch, chunk: int, known: Any, slope: jax.Array) -> tuple[Params, Any]:
    """Gradients with respect to params and x, from the gradient with respect to the outputs."""
    params, x, kept = known
    keep = _worth_keeping(branch, chunk, params, x)

    def of_part(w: Params, values: Any) -> tuple[Params, Any]:
        residuals, back = jax.vjp(lambda w, x: staged.precompute(branch, (w,), x), w, x)
        found = dict(zip(keep, values, strict=True))
        held = tuple((found[k],) if k in found else parts for k, parts in enumerate(residuals))
        _, late = jax.vjp(lambda parts: staged.at_point(branch, parts, jnp.zeros(())), held)
        return back(late(slope)[0])

    def put(gradient: tuple[Params, Any], start: Any, size: int, values: Any) -> tuple[Any, None]:
        of_params, of_x = of_part(part(params, start, size), values)
        whole = jax.tree.map(lambda g, p: lax.dynamic_update_slice_in_dim(g, p, start, 0), gradient[0], of_params)
        return (whole, jax.tree.map(lambda g, t: g + t if t.dtype == g.dtype else g, gradient[1], of_x)), None

    if _count(params) < chunk:
        return of_part(params, kept[1])
    of_params, of_x = chunked_scan(put, jax.tree.map(jnp.zeros_like, (params, x)), _count(params), chunk, kept)[0]
    return of_params, jax.tree.map(_slope, of_x)


def _slope(x: jax.Array) -> Any:
    """The gradient of one input; for integers in the type that JAX requires."""
    return x if jnp.issubdtype(x.dtype, jnp.floating) else np.zeros(x.shape, jax.dtypes.float0)


sum_of_branches.defvjp(_first_pass, _second_pass)


def _worth_keeping(branch: StagedBranch, chunk: int, params: Params, x: Any) -> list[int]:
    """Indices of the residuals kept between the passes: those of the examples, if they are small (see `KEPT`)."""
    if branch.affine:
        return []
    found = [k for k, r in enumerate(branch.residuals) if branch.axes(r).example]
    one = jax.eval_shape(lambda w: [staged.precompute(branch, (w,), x)[k][0] for k in found], part(params, 0, 1))
    few = trees.nbytes(one) * _count(params) <= KEPT * trees.nbytes(params)
    return found if few or _count(params) < chunk else []


def _count(params: Params) -> int:
    return jax.tree.leaves(params)[0].shape[0]
