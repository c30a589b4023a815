"""The loss of every example at the solutions themselves, by plain forward passes at w(a, b)."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from landscape.arrays import hardware
from landscape.arrays.chunked import chunked_scan
from landscape.arrays.trees import Affine
from landscape.compiler import staged
from landscape.evaluation import block
from landscape.losses import Loss
from landscape.planes import Plane
from landscape.problem import EXAMPLES_AT_A_TIME, Problem, each, outputs

BRANCHES_AT_A_TIME = 512
"""Where the network does not say: activations of so many branches exist at a time."""

Forward = Callable[..., jax.Array]
"""(network, params, x, axis of the mesh or None) -> outputs."""


def plainly(network: Any, params: Any, x: jax.Array, axis: str | None) -> jax.Array:
    """The network's own `apply`, summed over the devices that the branches are split over."""
    return hardware.summed(network.apply(params, x), axis)


def compiled(problem: Problem, plane: Plane) -> Forward:
    """The fast forward pass; `apply` itself in half precision, whose rounding depends on the order of operations."""
    coarsest = staged.rounding(problem.network, plane.origin, block.example_of(problem, plane))
    return outputs if coarsest.itemsize >= 4 else plainly


def losses_at(forward: Forward, problem: Problem, plane: Plane, points: np.ndarray, x: Any, y: Any) -> np.ndarray:
    """The loss of every example at points w(a, b) of a plane, [M, n].

    Args:
        forward: The forward pass.
        problem: Network and loss; the network runs a chunk of branches at a time.
        plane: The plane; where its branches are split over devices, they stay so.
        points: (a, b), [M, 2].
        x: Examples [n, ...].
        y: Labels [n, ...].
    """
    if len(points) == 0:
        return np.zeros((0, len(y)))
    network = replace(problem.network, branch_chunk=problem.network.branch_chunk or BRANCHES_AT_A_TIME)
    mesh = hardware.home_of(plane.origin)
    found = _losses(forward, network, problem.loss, plane.affine, points.astype(plane.float_type), (x, y), mesh)
    return np.asarray(found, float)


def risks_at(forward: Forward, problem: Problem, plane: Plane, points: np.ndarray) -> np.ndarray:
    """The risk at points w(a, b) of a plane, [M]; arguments as in `losses_at`."""
    weight = np.asarray(problem.data.weight, float)
    return losses_at(forward, problem, plane, points, problem.data.x, problem.data.y) @ weight / weight.sum()


@partial(jax.jit, static_argnums=(0, 1, 2, 6))
def _losses(
    forward: Forward, network: Any, loss: Loss, affine: Affine, points: Any, data: Any, mesh: Mesh | None
) -> jax.Array:
    """The losses [M, n], with branches that may be split over a mesh ("branches",)."""
    axis = mesh and "branches"

    def run(affine: Affine, data: Any) -> jax.Array:
        def at(ab: jax.Array) -> jax.Array:
            w = affine.at(ab)

            def chunk(_: None, start: Any, size: int, __: None) -> tuple[None, jax.Array]:
                x, y = jax.tree.map(lambda t: lax.dynamic_slice_in_dim(t, start, size), data)
                return None, each(loss, forward(network, w, x, axis), y)

            _, (whole, rest) = chunked_scan(chunk, None, len(data[1]), EXAMPLES_AT_A_TIME)
            return jnp.concatenate([part.reshape(-1) for part in (whole, rest) if part is not None])

        return lax.map(at, points)

    if mesh is None:
        return run(affine, data)
    return jax.shard_map(run, mesh=mesh, in_specs=(P("branches"), P()), out_specs=P(), check_vma=False)(affine, data)
