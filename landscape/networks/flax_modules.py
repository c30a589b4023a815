"""Networks from flax modules, nnx and linen: their parameters as a tree, their other state frozen or refused."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import jax

from landscape.networks import calling
from landscape.networks.multi_branch import Network

if TYPE_CHECKING:  # flax takes long to load
    from flax import linen, nnx

Params = Any


def from_flax(make: "Callable[[nnx.Rngs], nnx.Module]", *, state: Literal["frozen"] | None = None) -> Network:
    """A network from a flax nnx module in evaluation mode, given as a function of its random streams.

    Dropout is off, and its random streams are not among the parameters.

    Args:
        make: For example `lambda rngs: nnx.Linear(784, 10, rngs=rngs)`; or a class. It may take `rngs` by position or
            by name, a random key, or nothing.
        state: "frozen" admits state besides the parameters and keeps it everywhere as `make` returns it, in evaluation
            mode: restore BatchNorm's statistics inside `make`. For statistics computed anew at every point of a
            surface see `modules.recomputed_risk`.

    Raises:
        ValueError: `state` is None and the module has some besides random streams, such as BatchNorm's statistics.
    """
    from flax import nnx

    _check_state(state)
    make = calling.of_streams(make)
    module = nnx.eval_shape(lambda: make(nnx.Rngs(0))) if state is None else make(nnx.Rngs(0))
    arguments = calling.in_evaluation(type(module).__call__)
    if state is None:
        graph, shapes, streams, rest = nnx.split(evaluating(module), nnx.Param, nnx.RngState, ...)
        _refuse_state({type(variable).__name__ for _, variable in nnx.to_flat_state(rest)})
        module = make(nnx.Rngs(0)) if jax.tree.leaves(streams) else module
    graph, shapes, rest = nnx.split(evaluating(module), nnx.Param, ...)

    def apply(params: Params, x: jax.Array) -> jax.Array:
        # Fresh copies: a module may advance its own counters, as recurrent cells do, and must not touch ours.
        values, kept = (jax.tree.map(lambda leaf: leaf, part) for part in (shapes, rest))
        nnx.replace_by_pure_dict(values, params)
        return nnx.merge(graph, values, kept)(x, **arguments)

    return Network(lambda key: nnx.to_pure_dict(nnx.state(make(nnx.Rngs(key)), nnx.Param)), apply)


def evaluating(module: "nnx.Module") -> "nnx.Module":
    """The module itself, switched to evaluation: no dropout, BatchNorm with its running statistics."""
    module.eval()
    return module


def from_linen(
    module: "linen.Module",
    example_input: jax.Array,
    *,
    state: Literal["frozen"] | None = None,
    values: Mapping[str, Any] | None = None,
) -> Network:
    """A network from a flax linen module and an example of its input (one example or a batch).

    Args:
        module: Built for evaluation (`use_running_average=True`, `deterministic=True`), or with a forward pass that
            takes such an argument (also `train`, `training`), which is then given.
        example_input: One example or a batch.
        state: "frozen" admits collections besides "params" and keeps them as `values`.
        values: Those collections, for example {"batch_stats": …}; as initialised when None.

    Raises:
        ValueError: The module has collections besides "params" (BatchNorm statistics) and `state` is None.
    """
    from flax import errors

    _check_state(state)
    arguments = calling.in_evaluation(type(module).__call__)

    def start(key: jax.Array) -> Any:
        return module.init(key, example_input, **arguments)

    collections = jax.eval_shape(start, jax.random.key(0))
    if state is None:
        _refuse_state(set(collections) - {"params"})
    elif values is None:
        values = {k: v for k, v in start(jax.random.key(0)).items() if k != "params"}

    def apply(params: Params, x: jax.Array) -> Any:
        try:
            return module.apply({"params": params, **(values or {})}, x, **arguments)
        except errors.FlaxError as error:
            raise ValueError(str(error).partition(" (https:")[0]) from error

    return Network(lambda key: start(key)["params"], apply)


def _check_state(state: str | None) -> None:
    if state not in (None, "frozen"):
        raise ValueError(
            f'state must be None or "frozen"; got {state!r}.\n'
            "  For statistics computed anew at every point, evaluate landscape.networks.modules.recomputed_risk."
        )


def _refuse_state(kinds: set[str]) -> None:
    if kinds:
        raise ValueError(
            f"A branch may hold parameters only; this one also has {', '.join(sorted(kinds))}.\n"
            '  Choose: state="frozen" (--state frozen) keeps it fixed, modules.recomputed_risk (--state recompute) '
            "makes it anew at every point.\n"
            "  LayerNorm and GroupNorm have none."
        )
