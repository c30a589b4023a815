"""Names, parameters and buffers of a PyTorch module, as nested dictionaries of arrays."""

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from landscape.networks import torch_graph

Params = Any

STATISTICS = ("running_mean", "running_var")
"""Buffers that training changes, by the last part of their names."""


def copied(module: Any) -> Any:
    """A module of its own, so that the caller's is never changed.

    Raises:
        ValueError: It cannot be copied.
    """
    try:
        return copy.deepcopy(module)
    except Exception as error:  # a module may hold anything, such as open files
        raise ValueError(
            f"{type(module).__name__} cannot be copied ({torch_graph.first_line(error)}).\n"
            "  Hand over a function that makes it."
        ) from error


def evaluating(module: Any) -> Any:
    """The module itself, in evaluation mode on the CPU, with float32 for float64.

    Raises:
        ValueError: It has complex parameters, or BatchNorm without running statistics.
    """
    for where, part in module.named_modules():
        if "BatchNorm" in type(part).__name__ and getattr(part, "running_mean", 0) is None:
            raise ValueError(
                f"{type(module).__name__} has BatchNorm without running statistics ({where}), so examples of a batch "
                "influence each other.\n  Train it with track_running_stats=True, or use GroupNorm or LayerNorm."
            )
    module.cpu().eval()._apply(lambda t: t.float() if str(t.dtype) == "torch.float64" else t)
    complex_ones = [k for k, p in module.named_parameters() if p.is_complex()]
    if complex_ones:
        raise ValueError(
            f"{type(module).__name__} has complex parameters ({complex_ones[0]}); a plane needs real ones.\n"
            "  Keep real and imaginary parts as two parameters."
        )
    return module


def set_buffers(module: Any, values: Mapping[str, Any]) -> None:
    """Fixed values for the buffers that a state dict holds."""
    own = {k: v for k, v in module.state_dict().items() if k in dict(module.named_buffers(remove_duplicate=False))}
    values = flat(values)
    missing = [k for k in own if k not in values and k.split(".")[-1] in STATISTICS]
    wrong = [k for k in own if k in values and tuple(np.shape(values[k])) != tuple(own[k].shape)]
    if missing or wrong:
        words = f"lack {', '.join(missing[:3])}" if missing else f"have another shape for {', '.join(wrong[:3])}"
        raise ValueError(
            f"The buffers for {type(module).__name__} {words}{' …' if (missing or wrong)[3:] else ''}.\n"
            "  Take them from a state dict of the same module."
        )
    for name, tensor in own.items():
        if name in values:
            tensor.copy_(tensor.new_tensor(np.array(values[name])))


def nested(named: Mapping[str, Any]) -> Params:
    """Nested dictionaries from names joined by ".".

    >>> nested({"conv.weight": 1, "conv.bias": 2})
    {'conv': {'weight': 1, 'bias': 2}}
    """
    found: dict[str, Any] = {}
    for name, value in named.items():
        *path, last = name.split(".")
        place = found
        for word in path:
            place = place.setdefault(word, {})
        place[last] = value
    return found


def at(tree: Params, name: str) -> Any:
    """The leaf of nested dictionaries under a name joined by "."."""
    for word in name.split("."):
        tree = tree[word]
    return tree


def parameters(module: Any, names: Iterable[str]) -> Params:
    """The module's parameters of these names as nested dictionaries of float32 arrays."""
    held = dict(module.named_parameters(remove_duplicate=False))
    return nested({name: torch_graph.to_numpy(held[name]).astype(np.float32) for name in names})


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Names joined by "." from nested dictionaries or a state dict."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        inner = f"{prefix}{name}"
        found |= flat(value, f"{inner}.") if isinstance(value, Mapping) else {inner: _array(value)}
    return found


def _array(value: Any) -> Any:
    if isinstance(value, jax.Array):  # inside a compiled program it has no numbers yet
        return value
    return torch_graph.to_numpy(value) if hasattr(value, "detach") else np.asarray(value)


def reset(module: Any) -> Any:
    """The module itself, every part's own parameters drawn again if the part knows how.

    Inner parts come first, as an outer one may overwrite them; of parts that share a parameter the first one draws it
    last, since its parameter is the one that the constructor of a tied module keeps.
    """
    for part in reversed(list(module.modules())):
        for name in ("reset_parameters", "_reset_parameters"):
            if hasattr(part, name):
                getattr(part, name)()
                break
    return module
