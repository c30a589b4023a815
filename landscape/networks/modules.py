"""Other people's networks: what kind of object was given, and BatchNorm statistics recomputed at every point."""

import inspect
from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from landscape.checkpoints import equinox, words
from landscape.datasets import Dataset
from landscape.losses import Loss
from landscape.networks import MultiBranch, Network, from_flax, from_linen, from_torch
from landscape.networks.pytorch import TorchForward, is_module

Params = Any
State = Literal["none", "frozen", "recompute"]


class Form(NamedTuple):
    """A user's network in one of three forms.

    Attributes:
        network: A network, where the object is one; its `init` is `no_init` for a pure function of (params, x).
        risk: A function risk(params), where the object is one.
        make: The flax module or its factory behind it, for what depends on its state.
    """

    network: Network | MultiBranch | None = None
    risk: Callable[[Params], Any] | None = None
    make: Any = None


def read(target: Any, example: Any, state: State = "none", name: str = "the network") -> Form:
    """Read a user's object: a network of this package, a module of any kind or its factory, or a pure function.

    Args:
        target: `Network`, `MultiBranch`; nnx module, its class or a factory of `rngs`; linen module; PyTorch module or
            its class; any other callable that is a pytree of arrays, or a factory of one from a `key`; function of
            (params, x); risk(params); or a function without arguments that returns one of these.
        example: Example inputs, a batch of one, for linen modules; None where there are no data.
        state: "frozen" admits state besides the parameters; with "recompute" only `make` is filled in.
        name: What messages call it.

    Raises:
        ValueError: It is none of these, or has state that `state` does not provide for.
    """
    if isinstance(target, nn.Module) and example is None:
        raise ValueError(f"{name} is a linen module, which needs data to know its shapes; give --data.")
    if isinstance(target, nn.Module | nnx.Module):
        return _flax(target if isinstance(target, nn.Module) else lambda rngs: target, example, state)
    if is_module(target):
        return _torch(target, example, state, name)
    if not isinstance(target, Network | MultiBranch) and not _is_pytree(target):
        wanted = _required(target, name)
        if not wanted:
            made = target()
            return _torch(target, example, state, name) if is_module(made) else read(made, example, state, name)
        if _is_factory(target, wanted):
            return _flax(target, example, state)
        if len(wanted) == 1 and wanted[0].name != "key":
            return Form(risk=target)
    if state == "recompute":
        raise ValueError(
            f"{name} holds no statistics that could be recomputed; that takes a flax module or its factory.\n"
            "  Leave --state out; for a mean over branches of a module name the module, with --branches."
        )
    if isinstance(target, Network | MultiBranch):
        return Form(target)
    if _is_pytree(target) or len(wanted) == 1:
        return Form(from_pytree(target))
    if len(wanted) == 2:
        return Form(Network(no_init, target))
    raise ValueError(f"{name} takes {len(wanted)} arguments; wanted a factory of rngs, or a function of (params, x).")


def _flax(make: Any, example: Any, state: State) -> Form:
    if state == "recompute":
        return Form(make=make)
    if state == "frozen":
        return Form(frozen(make, example), make=make)
    return Form(from_linen(make, _arrays(example)) if is_linen(make) else from_flax(make), make=make)


def _torch(make: Any, example: Any, state: State, name: str) -> Form:
    """A PyTorch module or what makes one: its statistics are frozen or refused."""
    if example is None:
        raise ValueError(f"{name} is a PyTorch module, which is traced on an example; give --data.")
    network = from_torch(make, jax.tree.map(lambda x: np.asarray(x)[0], example))
    forward = network.apply
    held = isinstance(forward, TorchForward) and forward.statistics
    if (held and state == "none") or state == "recompute":
        raise ValueError(
            f"{name} is a PyTorch module{' with running statistics' if held else ''}; they can be kept as the first "
            "checkpoint holds them, not computed anew.\n  Take --state frozen."
        )
    return Form(network, make=network)


def frozen(make: Any, example: Any) -> Network:
    """The network of a flax module or factory, its state kept as it is made."""
    if is_linen(make):
        return from_linen(make, _arrays(example), state="frozen")
    return from_flax(make, state="frozen")


def is_linen(make: Any) -> bool:
    """Whether it is a linen module."""
    return isinstance(make, nn.Module)


def statistics(make: Any, example: Any) -> Params:
    """The running statistics of a module or factory as a dictionary, as checkpoints name them; empty without."""
    if isinstance(make, Network):
        return make.apply.statistics if isinstance(make.apply, TorchForward) else {}
    if is_linen(make):
        return {k: v for k, v in make.init(jax.random.key(0), _arrays(example)).items() if k != "params"}
    return nnx.to_pure_dict(nnx.state(make(nnx.Rngs(0)), nnx.BatchStat)) if callable(make) else {}


def with_statistics(make: Any, example: Any, values: Params) -> Network:
    """The network of a module or factory, its running statistics frozen at `values` (see `statistics`)."""
    if isinstance(make, Network):
        forward = make.apply
        return make._replace(apply=forward.with_statistics(values)) if isinstance(forward, TorchForward) else make
    if is_linen(make):
        return from_linen(make, _arrays(example), state="frozen", values=values)

    def restored(rngs: nnx.Rngs) -> nnx.Module:
        module = make(rngs)
        state = nnx.state(module, nnx.BatchStat)
        nnx.replace_by_pure_dict(state, values)
        nnx.update(module, state)
        return module

    return from_flax(restored, state="frozen")


def from_pytree(make: Any) -> Network:
    """A network from a module that is itself a pytree of arrays, with static fields, in the manner of Equinox.

    Its parameters are the arrays in dictionaries named like the module's fields; what is not an array stays as it is.

    Args:
        make: Such a module, called as module(x) for one example or a batch; or a function of a random key that makes
            one. With a module alone, `init` returns its own arrays for every key.

    Raises:
        ValueError: It holds no arrays of floating-point numbers.

    >>> network = from_pytree(jax.tree_util.Partial(jnp.matmul, jnp.eye(2)))
    >>> network.apply(network.init(jax.random.key(0)), jnp.array([1.0, 2.0])).tolist()
    [1.0, 2.0]
    """
    build = (lambda key: make) if _is_pytree(make) else make if "key" not in _keywords(make) else _by_keyword(make)
    kept = build(jax.random.key(0))
    leaves, structure = jax.tree_util.tree_flatten_with_path(kept)
    free = [n for n, (_, leaf) in enumerate(leaves) if _is_float(leaf)]
    if not free:
        raise ValueError(f"{type(kept).__name__} holds no arrays of floating-point numbers, so it has no parameters.")

    def init(key: jax.Array) -> Params:
        found: dict[str, Any] = {}
        for (where, _), leaf in zip(leaves, jax.tree.leaves(build(key)), strict=True):
            if _is_float(leaf):
                *path, last = words(where)
                place = found
                for word in path:
                    place = place.setdefault(word, {})
                place[last] = jnp.asarray(leaf)
        return found

    def apply(params: Params, x: jax.Array) -> jax.Array:
        values = [leaf for _, leaf in leaves]
        for n in free:
            values[n] = reduce(lambda place, word: place[word], words(leaves[n][0]), params)
        return structure.unflatten(values)(x)

    return Network(init, apply, equinox.order_of(kept))


def _is_float(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and hasattr(leaf, "shape") and jnp.issubdtype(leaf.dtype, jnp.floating)


def _is_pytree(target: Any) -> bool:
    """Whether an object can be called and is a registered container of arrays."""
    inside = not isinstance(target, type) and callable(target) and not jax.tree_util.all_leaves([target])
    return inside and any(map(_is_float, jax.tree.leaves(target)))


def _keywords(make: Any) -> set[str]:
    return {p.name for p in inspect.signature(make).parameters.values() if p.kind is p.KEYWORD_ONLY}


def _by_keyword(make: Any) -> Callable[[jax.Array], Any]:
    return lambda key: make(key=key)


def _required(target: Any, name: str) -> list[inspect.Parameter]:
    if not callable(target):
        raise ValueError(
            f"{name} is {type(target).__name__}; wanted a Network, a MultiBranch, a module of flax or in the manner of "
            "Equinox, its factory of rngs (or of a key), or a function of (params, x)."
        )
    module_class = isinstance(target, type) and issubclass(target, nnx.Module)  # its metaclass hides the signature
    parameters = list(inspect.signature(target.__init__ if module_class else target).parameters.values())
    parameters = parameters[1:] if module_class else parameters
    return [p for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]


def _is_factory(target: Any, wanted: list[inspect.Parameter]) -> bool:
    named = len(wanted) == 1 and (wanted[0].name in ("rngs", "rng") or "Rngs" in str(wanted[0].annotation))
    return named or (isinstance(target, type) and issubclass(target, nnx.Module))


def _arrays(x: Any) -> Any:
    return jax.tree.map(jnp.asarray, x)


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
        average: The mean over branches, or their sum.
        quantities: Further (data, loss) by name under the same statistics; on other data for nnx modules only.

    Returns:
        A function for `evaluate`: {"risk": …, **quantities}.

    Raises:
        ValueError: Other data for a linen module, or one that is not built for training.
    """
    data = data.support  # padding has no part in the statistics
    parts = {"risk": (data, loss), **{name: (other.support, f) for name, (other, f) in (quantities or {}).items()}}
    others = {name: part for name, part in parts.items() if part[0] is not data}
    outputs = _linen_outputs(make, data, others) if is_linen(make) else _nnx_outputs(make, data, others)

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
    """Outputs in training mode for the data; then in evaluation mode with exactly those statistics for the others."""
    graph, shapes, rest = nnx.split(make(nnx.Rngs(0)), nnx.Param, ...)

    def outputs(params: Params) -> dict[str, jax.Array]:
        values, state = jax.tree.map(lambda leaf: leaf, (shapes, rest))
        nnx.replace_by_pure_dict(values, params)
        module: Any = nnx.merge(graph, values, state)
        module.set_attributes(deterministic=True, use_running_average=False, raise_if_not_found=False)
        module.set_attributes(momentum=0.0, raise_if_not_found=False)
        found = {"risk": module(_arrays(data.x))}
        module.eval()
        return found | {name: module(_arrays(d.x)) for name, (d, _) in others.items()}

    return outputs


def _linen_outputs(module: nn.Module, data: Dataset, others: Mapping[str, Any]) -> Callable[[Params], Any]:
    """Outputs in training mode; the running statistics that are updated on the way are dropped."""
    if others:
        raise ValueError(
            f"Statistics of a linen module serve its training data only, not {', '.join(others)}; take an nnx module."
        )
    start = module.init(jax.random.key(0), _arrays(data.taken(slice(1)).x))
    rest = {k: v for k, v in start.items() if k != "params"}

    def outputs(params: Params) -> dict[str, jax.Array]:
        found: Any = module.apply({"params": params, **rest}, _arrays(data.x), mutable=list(rest))
        return {"risk": found[0]}

    _, after = module.apply(start, _arrays(data.taken(slice(8)).x), mutable=list(rest))
    moved = jax.tree.map(lambda x, y: bool(jnp.any(x != y)), rest, {k: after.get(k, v) for k, v in rest.items()})
    if not any(jax.tree.leaves(moved)):
        raise ValueError(
            f"{type(module).__name__} does not compute its statistics from the examples it is given.\n"
            "  Build it for training, with use_running_average=False."
        )
    return outputs
