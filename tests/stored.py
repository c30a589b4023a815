"""What every test of checkpoints needs: random parameters, equality, and an error of at most three lines."""

import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from landscape import checkpoints

SHAPES = {"hidden": {"kernel": (4, 5), "bias": (5,)}, "out": {"kernel": (5, 3), "bias": (3,)}}


def random(shapes: Any = None) -> Any:
    """Random float32 arrays of the shapes of a small network, or of other shapes."""
    rng = np.random.default_rng()
    shapes = SHAPES if shapes is None else shapes
    return jax.tree.map(lambda s: rng.normal(size=s).astype("f4"), shapes, is_leaf=lambda s: isinstance(s, tuple))


def shapes_of(params: Any) -> Any:
    """Shapes and types."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)


def flat(params: Any, joined: str = ".") -> dict[str, np.ndarray]:
    """Arrays by joined names."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {joined.join(str(part.key) for part in where): np.asarray(leaf) for where, leaf in leaves}


def same(found: Any, params: Any) -> None:
    """Bit for bit, in float32."""
    jax.tree.map(np.testing.assert_array_equal, found, params)
    assert {str(x.dtype) for x in jax.tree.leaves(found)} == {"float32"}


def refused(path: Path, like: Any, *said: str) -> str:
    """The error of a checkpoint that cannot be loaded: a ValueError of three lines at most that names the file."""
    with pytest.raises(ValueError, match=re.escape(path.name)) as caught:
        checkpoints.load(path, like)
    text = str(caught.value)
    assert len(text.splitlines()) <= 3
    assert len(text) < 900
    for part in said:
        assert part in text, f"{part!r} is not in {text!r}"
    return text
