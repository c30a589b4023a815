"""The layout of built-in images, flat or with height, width and channels, that a network accepts."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax

from landscape.datasets import Dataset
from landscape.networks import MultiBranch, Network

T = TypeVar("T")

SIZES = {"mnist": (1, 28, 28), "cifar10": (3, 32, 32)}
"""Channels, height and width of the built-in images."""
ORDERS = {
    "PyTorch": ("nchw", "flat", "nhwc", "hw"),
    "Equinox": ("nchw", "nhwc", "hw", "flat"),
    "flax": ("nhwc", "nchw", "flat", "hw"),
    "Keras": ("nhwc", "nchw", "flat", "hw"),
    "": ("flat", "nhwc", "nchw", "hw"),
}
"""In which order layouts are tried, by the library of the network: images come first where its own examples have them,
since what flattens its input itself takes every layout."""


def shape(name: str, layout: str) -> tuple[int, ...]:
    """The shape of one example of `mnist` or `cifar10` in a layout; () if the layout cannot hold it.

    >>> shape("cifar10", "nhwc")
    (32, 32, 3)
    """
    channels, height, width = SIZES[name]
    shapes = {
        "flat": (channels * height * width,),
        "nchw": (channels, height, width),
        "nhwc": (height, width, channels),
    }
    return shapes.get(layout, (height, width) if channels == 1 else ())


def arranged(data: Dataset, name: str, layout: str) -> Dataset:
    """A flat data set, channels first, brought into a layout."""
    x = data.x
    if layout == "nhwc":
        x = x.reshape(len(data), *shape(name, "nchw")).transpose(0, 2, 3, 1)
    return Dataset(x.reshape(len(data), *shape(name, layout)), data.y, data.weight, data.name, data.teacher)


def first_fitting(
    data: Dataset, name: str, layouts: tuple[str, ...], read: Callable[[Any], T], fits: Callable[[T, Dataset], None]
) -> tuple[T, Dataset, str]:
    """The network read with the first layout of the data that it accepts; the data in it; the layout.

    Args:
        data: Flat.
        name: "mnist" or "cifar10".
        layouts: To be tried, in order.
        read: Reads the network, given examples; raises where it does not take them.
        fits: Raises unless what was read accepts the data.

    Raises:
        ValueError: None is accepted: the error of the first.
    """
    refused: list[tuple[str, Exception]] = []
    for layout in layouts:
        size = shape(name, layout)
        if not size:
            continue
        laid = arranged(data, name, layout)
        try:
            found = read(laid.x[:1])
            fits(found, laid)
        except Exception as error:  # other code raises anything for another shape
            refused.append((" x ".join(map(str, size)), error))
        else:
            return found, laid, layout
    raise _none(name, refused)


def _none(name: str, refused: list[tuple[str, Exception]]) -> ValueError:
    """The error of the first layout, with those that were tried."""
    first = refused[0][1]
    same = len({str(error) for _, error in refused}) == 1
    if isinstance(first, ValueError) and same and (refused[1:] or "\n" in str(first)):
        return first  # it has nothing to do with the layout
    text = str(first).strip().splitlines() or [""]
    kind = "" if isinstance(first, ValueError) else f"{type(first).__name__}: "
    tried = [size for size, _ in refused]
    words = f"{', '.join(tried[:-1])} and {tried[-1]}" if tried[1:] else tried[0]
    hint = "; --layout forces one of them" if tried[1:] else ""
    return ValueError(f"{kind}{text[0][:300]}\n  The network was given {name} as {words}{hint}.")


def accepts(network: Network | MultiBranch, params: Any, data: Dataset) -> None:
    """Check that the network maps each example to one vector of outputs.

    Args:
        network: The network.
        params: Its parameters or their shapes; those of one branch.
        data: Examples [N, ...].

    Raises:
        ValueError: It does not.
    """
    several = network if isinstance(network, MultiBranch) else MultiBranch(network, 1)
    if isinstance(network, Network):
        params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape), leaf.dtype), params)
    outputs = jax.eval_shape(several.apply, params, data.x[:2]).shape
    if len(outputs) != 2 or outputs[0] != len(data.x[:2]):
        raise ValueError(
            f"A network must map examples to one vector of outputs each; this one maps {data.x[:2].shape} to {outputs}."
        )
