"""Calling classes, factories and forward passes of other libraries: random streams, keys, training modes."""

import inspect
from collections.abc import Callable
from typing import Any

import jax

MODES = {
    "train": False,
    "training": False,
    "is_training": False,
    "deterministic": True,
    "inference": True,
    "use_running_average": True,
}
"""Arguments that switch between training and evaluation, by their usual names, with their value in evaluation."""
STREAMS = ("rngs", "rng")
KEYS = ("key", "prng_key", "rng_key")


def parameters(target: Any, skipped: int = 0) -> list[inspect.Parameter]:
    """Parameters of a callable without *args, **kwargs and the first `skipped`; none if it has no signature."""
    try:
        found = list(inspect.signature(target).parameters.values())[skipped:]
    except (TypeError, ValueError):
        return []
    return [p for p in found if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]


def required(given: list[inspect.Parameter]) -> list[inspect.Parameter]:
    """The parameters without a default."""
    return [p for p in given if p.default is p.empty]


def takes_streams(parameter: inspect.Parameter) -> bool:
    """Whether a parameter is for flax's random streams, by its name or annotation."""
    return parameter.name in STREAMS or "Rngs" in str(parameter.annotation)


def passing(target: Callable[..., Any], parameter: inspect.Parameter, value: Any) -> Any:
    """The result of a call with one argument, passed by name if possible."""
    return target(value) if parameter.kind is parameter.POSITIONAL_ONLY else target(**{parameter.name: value})


def of_streams(make: Callable[..., Any]) -> Callable[[Any], Any]:
    """A class or factory as a function of flax's random streams, which it may take by position or name, or not at all.

    Args:
        make: Takes the streams, or a random key, or nothing.
    """
    given = parameters(make.__init__, 1) if isinstance(make, type) else parameters(make)
    streams = next(filter(takes_streams, given), None)
    needed = required(given)
    if streams is not None:
        return lambda rngs: passing(make, streams, rngs)
    if not needed and inspect.isroutine(make) | isinstance(make, type):
        return lambda rngs: make()
    if len(needed) == 1 and needed[0].name in KEYS:
        return lambda rngs: passing(make, needed[0], rngs.params())
    return make


def in_evaluation(forward: Any) -> dict[str, Any]:
    """Arguments by name that a module's forward pass takes besides the examples, so that it runs as for evaluation.

    A required random key or stream is passed; without dropout nothing reads it.

    Args:
        forward: The function behind the module's `__call__`, (self, x, ...).
    """
    given = parameters(forward, skipped=2)
    found = {p.name: MODES[p.name] for p in given if p.name in MODES and p.kind is not p.POSITIONAL_ONLY}
    needed = required([p for p in given if p.kind is not p.POSITIONAL_ONLY])
    return found | {p.name: jax.random.key(0) for p in needed if p.name in KEYS}
