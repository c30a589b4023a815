"""BatchNorm statistics computed anew at every point: a risk(params) of flax modules over all of the training data."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from landscape.datasets import Dataset
from landscape.losses import Loss
from landscape.networks import calling

Params = Any


def recomputed_risk(
    make: Any,
    data: Dataset,
    loss: Loss,
    *,
    num_branches: int | None = None,
    average: bool = True,
    quantities: Mapping[str, tuple[Dataset, Loss]] | None = None,
) -> Callable[[Params], dict[str, jax.Array]]:
    """risk(params) with BatchNorm's statistics computed anew, at these parameters, over all of the training data.

    The data pass as one batch, so that every layer sees the statistics of all examples: memory grows with N.

    Args:
        make: nnx module factory of `rngs`, or a linen module built with `use_running_average=False`.
        data: The training data.
        loss: Loss per example.
        num_branches: I for parameters [I, ...] of a multi-branch network, each branch with its own statistics; None
            for a plain network.
        average: Whether branches are averaged or summed.
        quantities: Further (data, loss) by name under the same statistics; on other data for nnx modules only.

    Returns:
        A function for `evaluate`: {"risk": …, **quantities}.

    Raises:
        ValueError: Other data for a linen module, or one that is not built for training.
    """
    data = data.support  # padding has no part in the statistics
    parts = {"risk": (data, loss), **{name: (other.support, f) for name, (other, f) in (quantities or {}).items()}}
    others = {name: part for name, part in parts.items() if part[0] is not data}
    outputs = _linen_outputs(make, data, others) if isinstance(make, nn.Module) else _nnx_outputs(make, data, others)

    def risk(params: Params) -> dict[str, jax.Array]:
        found = jax.vmap(outputs)(params) if num_branches else outputs(params)
        if num_branches:
            found = jax.tree.map(lambda f: (jnp.mean if average else jnp.sum)(f, 0), found)
        return {name: _mean(found.get(name, found["risk"]), *part) for name, part in parts.items()}

    return risk


def _mean(outputs: jax.Array, data: Dataset, loss: Loss) -> jax.Array:
    values = loss(outputs, jnp.asarray(data.y))
    if values.shape != (len(data),):
        raise ValueError(
            f"A loss must return one value an example, shape ({len(data)},); this one returns {values.shape} for "
            f"outputs {outputs.shape} and labels {data.y.shape}."
        )
    return (data.weight * values).sum() / data.weight.sum()


def _nnx_outputs(
    make: Callable[[nnx.Rngs], nnx.Module], data: Dataset, others: Mapping[str, tuple[Dataset, Loss]]
) -> Callable[[Params], dict[str, jax.Array]]:
    """Outputs in training mode for the data, then for the other data in evaluation mode with these statistics."""
    graph, shapes, rest = nnx.split(calling.of_streams(make)(nnx.Rngs(0)), nnx.Param, ...)

    def outputs(params: Params) -> dict[str, jax.Array]:
        values, state = jax.tree.map(lambda leaf: leaf, (shapes, rest))
        nnx.replace_by_pure_dict(values, params)
        module: Any = nnx.merge(graph, values, state)
        module.set_attributes(deterministic=True, use_running_average=False, raise_if_not_found=False)
        module.set_attributes(momentum=0.0, raise_if_not_found=False)
        found = {"risk": module(jnp.asarray(data.x))}
        module.eval()
        return found | {name: module(jnp.asarray(d.x)) for name, (d, _) in others.items()}

    return outputs


def _linen_outputs(module: nn.Module, data: Dataset, others: Mapping[str, Any]) -> Callable[[Params], Any]:
    """Outputs in training mode; the running statistics that are updated on the way are dropped."""
    if others:
        raise ValueError(
            f"Statistics of a linen module serve its training data only, not {', '.join(others)}; take an nnx module."
        )
    start = module.init(jax.random.key(0), jnp.asarray(data.x[:1]))
    rest = {k: v for k, v in start.items() if k != "params"}

    def outputs(params: Params) -> dict[str, jax.Array]:
        found: Any = module.apply({"params": params, **rest}, jnp.asarray(data.x), mutable=list(rest))
        return {"risk": found[0]}

    _, after = module.apply(start, jnp.asarray(data.x[:8]), mutable=list(rest))
    moved = jax.tree.map(lambda x, y: bool(jnp.any(x != y)), rest, {k: after.get(k, v) for k, v in rest.items()})
    if not any(jax.tree.leaves(moved)):
        raise ValueError(
            f"{type(module).__name__} does not compute its statistics from the examples it is given.\n"
            "  Build it for training, with use_running_average=False."
        )
    return outputs
