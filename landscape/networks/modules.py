"""Networks of other libraries: recognising the kind of an object, and its running statistics."""

import inspect
import sys
from collections.abc import Callable
from functools import reduce
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from landscape.checkpoints import equinox, words
from landscape.networks import (
    MultiBranch,
    Network,
    calling,
    from_flax,
    from_linen,
    from_torch,
    keras_modules,
    torch_state,
)
from landscape.networks.pytorch import TorchForward, is_module
from landscape.networks.recomputed import recomputed_risk

__all__ = ["Form", "State", "from_pytree", "frozen", "is_linen", "no_init", "read", "recomputed_risk", "statistics",
           "with_statistics"]  # fmt: skip

Params = Any
State = Literal["none", "frozen", "recompute"]


class Form(NamedTuple):
    """A user's network in one of three forms.

    Attributes:
        network: A network, where the object is one; its `init` is `no_init` for a pure function of (params, x).
        risk: A function risk(params), where the object is one.
        make: The module or its factory, needed for its state.
        title: Class and library of the module, such as "CNN (flax nnx)"; empty for functions and our own networks.
        dropout: Whether the module has dropout, which is off.
    """

    network: Network | MultiBranch | None = None
    risk: Callable[[Params], Any] | None = None
    make: Any = None
    title: str = ""
    dropout: bool = False


def read(target: Any, example: Any, state: State = "none", name: str = "the network") -> Form:
    """Read a user's object: a network of this package, a module of any kind or its factory, or a pure function.

    Args:
        target: `Network`, `MultiBranch`; nnx module, its class or a factory of `rngs`; linen module or its class;
            PyTorch module or its class; Keras model; any other callable that is a pytree of arrays, or a factory of one
            from a `key`; function of (params, x); risk(params); or a function without arguments, or of `rngs` or a
            `key`, that returns one of these.
        example: Example inputs, a batch of one, for linen modules; None where there are no data.
        state: "frozen" admits state besides the parameters; with "recompute" only `make` is filled in.
        name: What messages call it.

    Raises:
        ValueError: It is none of these, or has state that `state` does not provide for.
    """
    if isinstance(target, type) and issubclass(target, nn.Module):
        target = _instance(target, name)
    if isinstance(target, nn.Module):
        return _linen(target, example, state, name)
    if isinstance(target, nnx.Module):
        return _nnx(lambda rngs: target, state)
    if is_module(target):
        return _torch(target, example, state, name)
    if keras_modules.is_model(target):
        return _keras(target, state, name)
    if isinstance(target, Network | MultiBranch) or _is_pytree(target):
        _refuse_recompute(state, name)
        return Form(target) if isinstance(target, Network | MultiBranch) else _pytree(target)
    return _called(target, example, state, name)


def _called(target: Any, example: Any, state: State, name: str) -> Form:
    """The form of a class or function: the network that it makes, or a pure function of parameters."""
    if not callable(target):
        raise ValueError(
            f"{name} is {type(target).__name__}; wanted a Network, a MultiBranch, a module of flax, PyTorch or Keras, "
            "or in the manner of Equinox, its factory of rngs (or of a key), or a function of (params, x)."
        )
    is_class = isinstance(target, type)
    given = calling.parameters(target.__init__, 1) if is_class else calling.parameters(target)
    wanted = calling.required(given)
    streams = any(map(calling.takes_streams, given))
    others = [p.name for p in wanted if not calling.takes_streams(p)]
    if (is_class and issubclass(target, nnx.Module)) or streams:
        if others if streams else others[1:]:
            raise ValueError(
                f"{name} also takes {', '.join(others)}, which the command cannot know.\n"
                "  Name a function without arguments, or of rngs, that makes the network."
            )
        return _nnx(target, state)
    if not wanted or (len(wanted) == 1 and wanted[0].name in calling.KEYS):
        made = calling.passing(target, wanted[0], jax.random.key(0)) if wanted else target()
        if isinstance(made, nnx.Module):
            return _nnx(target, state)
        if is_module(made):
            return _torch(target if not wanted else made, example, state, name)
        if wanted and _is_pytree(made) and not isinstance(made, nn.Module):
            _refuse_recompute(state, name)
            return _pytree(target)
        return read(made, example, state, name)
    if len(wanted) == 1:
        return Form(risk=target)
    _refuse_recompute(state, name)
    if len(wanted) == 2 and not is_class:
        apply: Any = target
        return Form(Network(no_init, apply))
    raise ValueError(
        f"{name} takes {len(wanted)} arguments ({', '.join(p.name for p in wanted[:3])} …); wanted a factory of rngs, "
        "of a key or of nothing, or a function of (params, x)."
    )


def library(target: Any) -> str:
    """Where a network comes from, flax, PyTorch, Keras or Equinox; empty for functions and our own networks.

    Args:
        target: An object as for `read`; a factory without arguments or of a key is called, one of streams is flax's.
    """
    known = {"flax": "flax", "torch": "PyTorch", "keras": "Keras", "equinox": "Equinox"}
    for kind in (target if isinstance(target, type) else type(target)).__mro__:
        if kind.__module__.split(".")[0] in known:
            return known[kind.__module__.split(".")[0]]
    if isinstance(target, type | Network | MultiBranch) or not inspect.isroutine(target):
        return ""
    wanted = calling.required(calling.parameters(target))
    if any(map(calling.takes_streams, calling.parameters(target))):
        return "flax"
    if not wanted:
        return library(target())
    is_key = len(wanted) == 1 and wanted[0].name in calling.KEYS
    return library(calling.passing(target, wanted[0], jax.random.key(0))) if is_key else ""


def _refuse_recompute(state: State, name: str) -> None:
    if state == "recompute":
        raise ValueError(
            f"{name} holds no statistics that could be recomputed; that takes a flax module or its factory.\n"
            "  Leave --state out; for a mean over branches of a module name the module, with --branches."
        )


def _instance(kind: type[nn.Module], name: str) -> nn.Module:
    """A linen module made from its class, for evaluation if it has a field for that."""
    given = calling.parameters(kind)
    others = [p.name for p in calling.required(given) if p.name not in calling.MODES]
    if others:
        raise ValueError(
            f"{name} is a class with the fields {', '.join(others)}, which the command cannot know.\n"
            "  Name a module, or a function without arguments that returns one."
        )
    return kind(**{p.name: calling.MODES[p.name] for p in given if p.name in calling.MODES})


def _linen(module: nn.Module, example: Any, state: State, name: str) -> Form:
    if example is None:
        raise ValueError(f"{name} is a linen module, which needs data to know its shapes; give --data.")
    seen: set[type] = set()

    def note(forward: Any, given: Any, keywords: Any, context: Any) -> Any:
        seen.add(type(context.module))
        return forward(*given, **keywords)

    title = f"{type(module).__name__} (flax linen)"
    if state == "recompute":
        return Form(make=module, title=title)
    with nn.intercept_methods(note):
        network = from_linen(module, _arrays(example), state="frozen" if state == "frozen" else None)
    return Form(network, make=module, title=title, dropout=nn.Dropout in seen)


def _nnx(target: Any, state: State) -> Form:
    make = calling.of_streams(target)
    module = nnx.eval_shape(lambda: make(nnx.Rngs(0))) if state == "none" else make(nnx.Rngs(0))
    parts = {type(part) for _, part in nnx.iter_graph(module)}
    about = Form(make=make, title=f"{type(module).__name__} (flax nnx)", dropout=nnx.Dropout in parts)
    if state == "recompute":
        return about
    return about._replace(network=from_flax(make, state="frozen" if state == "frozen" else None))


def _pytree(target: Any) -> Form:
    made = target if _is_pytree(target) else calling.passing(target, _key_of(target), jax.random.key(0))
    of_equinox = any(kind.__module__.split(".")[0] == "equinox" for kind in type(made).__mro__)
    parts = jax.tree.leaves(made, is_leaf=lambda part: type(part).__name__ == "Dropout")
    dropout = any(type(part).__name__ == "Dropout" for part in parts)
    title = f"{type(made).__name__} ({'Equinox' if of_equinox else 'a pytree'})"
    return Form(from_pytree(target), title=title, dropout=dropout)


def _torch(make: Any, example: Any, state: State, name: str) -> Form:
    """The form of a PyTorch module or its factory; its statistics are frozen or refused."""
    if example is None:
        raise ValueError(f"{name} is a PyTorch module, which is traced on an example; give --data.")
    module = make if is_module(make) else make()
    held = any(buffer.split(".")[-1] in torch_state.STATISTICS for buffer, _ in module.named_buffers())
    if (held and state == "none") or state == "recompute":
        raise _kept_only(name, "PyTorch module", held)
    network = from_torch(make, jax.tree.map(lambda x: np.asarray(x)[0], example))
    dropout = any("Dropout" in type(part).__name__ for part in module.modules())
    return Form(network, make=network, title=f"{type(module).__name__} (PyTorch)", dropout=dropout)


def _keras(model: Any, state: State, name: str) -> Form:
    """The form of a Keras model; its statistics are frozen or refused."""
    network = keras_modules.from_keras(model)
    held = bool(keras_modules.statistics(model))
    if (held and state == "none") or state == "recompute":
        raise _kept_only(name, "Keras model", held)
    return Form(network, make=model, title=f"{type(model).__name__} (Keras)", dropout=keras_modules.has_dropout(model))


def _kept_only(name: str, kind: str, held: bool) -> ValueError:
    return ValueError(
        f"{name} is a {kind}{' with running statistics' if held else ''}; they can be kept as the first checkpoint "
        "holds them, not computed anew.\n  Take --state frozen."
    )


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
    if keras_modules.is_model(make):
        return keras_modules.statistics(make)
    if isinstance(make, Network):
        return make.apply.statistics if isinstance(make.apply, TorchForward) else {}
    if is_linen(make):
        given = calling.in_evaluation(type(make).__call__)
        start = make.init(jax.random.key(0), _arrays(example), **given)
        return {k: v for k, v in start.items() if k != "params"}
    return nnx.to_pure_dict(nnx.state(calling.of_streams(make)(nnx.Rngs(0)), nnx.BatchStat)) if callable(make) else {}


def with_statistics(make: Any, example: Any, values: Params) -> Network:
    """The network of a module or factory, its running statistics frozen at `values` (see `statistics`)."""
    if keras_modules.is_model(make):
        return keras_modules.from_keras(make, values)
    if isinstance(make, Network):
        forward = make.apply
        return make._replace(apply=forward.with_statistics(values)) if isinstance(forward, TorchForward) else make
    if is_linen(make):
        return from_linen(make, _arrays(example), state="frozen", values=values)

    def restored(rngs: nnx.Rngs) -> nnx.Module:
        module = calling.of_streams(make)(rngs)
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
    build = (lambda key: make) if _is_pytree(make) else lambda key: calling.passing(make, _key_of(make), key)
    kept = _inferring(build(jax.random.key(0)))
    arguments = calling.in_evaluation(type(kept).__call__)
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
        return structure.unflatten(values)(x, **arguments)

    return Network(init, apply, equinox.order_of(kept))


def _is_float(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and hasattr(leaf, "shape") and jnp.issubdtype(leaf.dtype, jnp.floating)


def _is_pytree(target: Any) -> bool:
    """Whether an object can be called and is a registered container of arrays."""
    inside = not isinstance(target, type) and callable(target) and not jax.tree_util.all_leaves([target])
    return inside and any(map(_is_float, jax.tree.leaves(target)))


def _key_of(make: Any) -> inspect.Parameter:
    """The parameter of a factory that takes the random key."""
    return (calling.required(calling.parameters(make)) or calling.parameters(make))[0]


def _inferring(module: Any) -> Any:
    """An Equinox module in inference mode, without dropout."""
    equinox_library = sys.modules.get("equinox")
    return equinox_library.nn.inference_mode(module) if equinox_library else module


def _arrays(x: Any) -> Any:
    return jax.tree.map(jnp.asarray, x)


def no_init(key: jax.Array) -> Params:
    """The missing `init` of a pure function; raises a ValueError."""
    raise ValueError("A pure function of (params, x) has no initial parameters; name its --solutions.")
