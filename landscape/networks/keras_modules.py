"""Networks from Keras models on the JAX backend: parameters by the names that `.weights.h5` has for them."""

import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from landscape.networks.multi_branch import Network

Params = Any
Name = tuple[str, ...]


def is_model(target: Any) -> bool:
    """Whether an object is a Keras model, told without loading Keras: whoever made it has done so."""
    keras = sys.modules.get("keras")
    return keras is not None and isinstance(target, keras.Model)


def from_keras(model: Any, values: Params | None = None) -> Network:
    """A network from a Keras model on the JAX backend, in inference mode.

    Its parameters are the trainable variables, nested dictionaries named as in a file of `model.save_weights`:
    layers/conv2d/vars/0. The other variables stay fixed. `init` returns the model's own values for every key.

    Args:
        model: A built `keras.Model`.
        values: Values for variables that are not trained, as `statistics` names them; the model's own when None.

    Raises:
        ValueError: It is no Keras model, Keras runs on another backend, or the model is not built.
    """
    if not is_model(model):
        raise ValueError(f"from_keras wants a keras.Model; got {type(model).__name__}.")
    backend = sys.modules["keras"].config.backend()
    if backend != "jax":
        raise ValueError(
            f"{model.name} is a Keras model on the {backend} backend; landscape computes with JAX.\n"
            "  Set KERAS_BACKEND=jax before the command; weights saved on another backend load as they are."
        )
    if not model.built:
        raise ValueError(f"{model.name} is not built, so it has no variables; give it an Input or call model.build.")
    names = _names(model)
    trained = [names[v.path] for v in model.trainable_variables]
    start = nested({name: jnp.asarray(v.value) for name, v in zip(trained, model.trainable_variables, strict=True)})
    fixed = [_fixed(names.get(v.path, ()), v, values) for v in model.non_trainable_variables]

    def apply(params: Params, x: jax.Array) -> jax.Array:
        outputs, _ = model.stateless_call([_at(params, name) for name in trained], fixed, x, training=False)
        return outputs

    return Network(lambda key: start, apply)


def statistics(model: Any) -> Params:
    """The floating-point variables that are not trained, such as BatchNorm's moving averages; empty without."""
    names = _names(model)
    held = {names[v.path]: v.value for v in model.non_trainable_variables if _is_float(v)}
    return nested({name: jnp.asarray(value) for name, value in held.items()})


def has_dropout(model: Any) -> bool:
    """Whether a layer drops out."""
    return any("Dropout" in type(layer).__name__ for layer in model._flatten_layers())


def nested(arrays: Mapping[Name, Any]) -> Params:
    """Nested dictionaries from names in parts."""
    found: dict[str, Any] = {}
    for (*path, last), value in arrays.items():
        place = found
        for word in path:
            place = place.setdefault(word, {})
        place[last] = value
    return found


def _fixed(name: Name, variable: Any, values: Params | None) -> Any:
    return jnp.asarray(_at(values, name) if values and name else variable.value)


def _is_float(variable: Any) -> bool:
    return jnp.issubdtype(jnp.dtype(variable.dtype), jnp.floating)


def _at(tree: Params, name: Name) -> Any:
    for word in name:
        tree = tree[word]
    return tree


def _names(model: Any) -> dict[str, Name]:
    """The name in `.weights.h5` of each floating-point variable, by the variable's own path.

    Keras derives the names from its tree of layers, in ways that differ from version to version: so it writes the
    variables once, each filled with its number. Seeds of dropout are no part of the file.
    """
    import h5py

    variables = [v for v in model.variables if _is_float(v)]
    before = [np.asarray(v.value) for v in variables]
    try:
        for number, variable in enumerate(variables, 1):
            variable.assign(np.full(variable.shape, number, np.float32))
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "numbered.weights.h5")
            model.save_weights(file)
            with h5py.File(file, "r") as content:
                found = _numbered(content)
    finally:
        for variable, value in zip(variables, before, strict=True):
            variable.assign(value)
    return {variable.path: found[number] for number, variable in enumerate(variables, 1)}


def _numbered(content: Any) -> dict[int, Name]:
    """The names of the arrays of an HDF5 file, by the number that fills them."""
    found: dict[int, Name] = {}

    def visit(name: str, item: Any) -> None:
        if getattr(item, "size", 0):
            found.setdefault(int(item[()].flat[0]), tuple(name.split("/")))

    content.visititems(visit)
    return found
