"""Other people's networks: what kind of object was given, and BatchNorm statistics recomputed at every point."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from landscape.datasets import Dataset
from landscape.losses import Loss
from landscape.networks import MultiBranch, Network, from_flax, from_linen

Params = Any
State = Literal["none", "frozen", "recompute"]


class Given(NamedTuple):
    """A user's network in one of three forms.

    Attributes:
        network: A network, where the object is one; its `init` is None for a pure function of (params, x).
        risk: A function risk(params), where the object is one.
        make: The module factory or linen module behind it, for `recomputed_risk`.
    """

    network: Network | MultiBranch | None = None
    risk: Callable[[Params], Any] | None = None
    make: Any = None


def given(target: Any, example: Any, state: State = "none", name: str = "the network") -> Given:
    """Read a user's object: a network of this package, an nnx factory or class, a linen module, or a pure function.

    Args:
        target: `Network`, `MultiBranch`; nnx module, its class or a factory of `rngs`; linen module; function of
            (params, x); risk(params); or a function without arguments that returns one of these.
        example: Example inputs, a batch of one, for linen modules.
        state: "frozen" admits state besides the parameters; with "recompute" only `make` is filled in.
        name: What messages call it.

    Raises:
        ValueError: It is none of these, or has state that `state` does not provide for.
    """
    if isinstance(target, Network | MultiBranch):
        return Given(target)
    held = "frozen" if state == "frozen" else None
    if isinstance(target, nn.Module):
        network = None if state == "recompute" else from_linen(target, jnp.asarray(example), state=held)
        return Given(network, make=target)
    if isinstance(target, nnx.Module):
        return given(lambda rngs: target, example, state, name)
    wanted = _required(target, name)
    if not wanted:
        return given(target(), example, state, name)
    if _is_factory(target, wanted):
        return Given(None if state == "recompute" else from_flax(target, state=held), make=target)
    if len(wanted) == 1:
        return Given(risk=target)
    if len(wanted) == 2:
        return Given(Network(no_init, target))
    raise ValueError(f"{name} takes {len(wanted)} arguments; wanted a factory of rngs, or a function of (params, x).")


def _required(target: Any, name: str) -> list[inspect.Parameter]:
    if not callable(target):
        raise ValueError(
            f"{name} is {type(target).__name__}; wanted a Network, a MultiBranch, a flax module, its factory of rngs, "
            "or a function of (params, x)."
        )
    module_class = isinstance(target, type) and issubclass(target, nnx.Module)  # its metaclass hides the signature
    parameters = list(inspect.signature(target.__init__ if module_class else target).parameters.values())
    parameters = parameters[1:] if module_class else parameters
    return [p for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]


def _is_factory(target: Any, wanted: list[inspect.Parameter]) -> bool:
    named = len(wanted) == 1 and (wanted[0].name in ("rngs", "rng") or "Rngs" in str(wanted[0].annotation))
    return named or (isinstance(target, type) and issubclass(target, nnx.Module))


def no_init(key: jax.Array) -> Params:
    """The missing `init` of a pure function.

    Raises:
        ValueError: Always.
    """
    raise ValueError("A pure function of (params, x) has no initial parameters; name its --solutions.")


def recomputed_risk(
    make: Any,
    data: Dataset,
    loss: Loss,
    *,
    num_branches: int | None = None,
    quantities: Mapping[str, tuple[Dataset, Loss]] | None = None,
) -> Callable[[Params], dict[str, jax.Array]]:
    """risk(params) with BatchNorm's statistics computed anew, at these parameters, over all of the training data.

    The data pass as one batch, so that every layer sees the statistics of all examples: memory grows with N.

    Args:
        make: nnx module factory of `rngs`, or a linen module built with `use_running_average=False`.
        data: The training data.
        loss: Loss per example.
        num_branches: I for parameters [I, ...] of a mean over branches; None for a plain network.
        quantities: Further (data, loss) by name under the same statistics, for nnx modules.

    Returns:
        A function for `evaluate`: {"risk": …, **quantities}.

    Raises:
        ValueError: Further quantities of a linen module.
    """
    more = dict(quantities or {})
    if isinstance(make, nn.Module) and more:
        raise ValueError("Recomputed statistics serve further quantities only for nnx modules; this is a linen module.")
    outputs = _linen_outputs(make, data) if isinstance(make, nn.Module) else _nnx_outputs(make, data, more)

    def risk(params: Params) -> dict[str, jax.Array]:
        found = outputs(params)
        if num_branches:
            found = jax.tree.map(lambda f: f.mean(0), jax.vmap(outputs)(params))
        parts = {"risk": (data, loss), **more}
        return {k: (d.weight * of(found[k], jnp.asarray(d.y))).sum() / d.weight.sum() for k, (d, of) in parts.items()}

    return risk


def _nnx_outputs(
    make: Callable[[nnx.Rngs], nnx.Module], data: Dataset, more: Mapping[str, tuple[Dataset, Loss]]
) -> Callable[[Params], dict[str, jax.Array]]:
    """Outputs in training mode for the data; then in evaluation mode with exactly those statistics for the others."""
    graph, shapes, rest = nnx.split(make(nnx.Rngs(0)), nnx.Param, ...)

    def outputs(params: Params) -> dict[str, jax.Array]:
        values, state = jax.tree.map(lambda leaf: leaf, (shapes, rest))
        nnx.replace_by_pure_dict(values, params)
        module: Any = nnx.merge(graph, values, state)
        module.set_attributes(deterministic=True, use_running_average=False, raise_if_not_found=False)
        module.set_attributes(momentum=0.0, raise_if_not_found=False)
        found = {"risk": module(jnp.asarray(data.x))}
        module.eval()
        return found | {name: module(jnp.asarray(d.x)) for name, (d, _) in more.items()}

    return outputs


def _linen_outputs(module: nn.Module, data: Dataset) -> Callable[[Params], dict[str, jax.Array]]:
    """Outputs in training mode; the running statistics that are updated on the way are dropped."""
    start = module.init(jax.random.key(0), jnp.asarray(data.x[:1]))
    rest = {k: v for k, v in start.items() if k != "params"}

    def outputs(params: Params) -> dict[str, jax.Array]:
        found: Any = module.apply({"params": params, **rest}, jnp.asarray(data.x), mutable=list(rest))
        return {"risk": found[0]}

    return outputs
