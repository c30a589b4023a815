"""The outputs of branches on the data, in float64: what they must still be after the parameters were aligned."""

from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from landscape.arrays import on_disk, trees
from landscape.arrays.chunked import chunked_map, chunked_sum
from landscape.arrays.trees import Signature
from landscape.compiler.flatten import jaxpr_hash
from landscape.networks import MultiBranch, one_example
from landscape.problem import BRANCHES_AT_A_TIME, EXAMPLES_AT_A_TIME
from landscape.symmetry.probes import Wide

Params = Any
Array = np.ndarray
WORK = 2e11
"""Parameters times examples: beyond, so many examples are compared, evenly spread over the data."""


class Outputs:
    """What branches of one kind compute on the data, to be compared with the same for other parameters.

    Raises:
        ValueError: The outputs are not finite, or differ between two calls or two traces.
    """

    def __init__(self, name: str, network: MultiBranch, params: Params, x: Any) -> None:
        self.name, self.params = name, params
        total = len(jax.tree.leaves(x)[0])
        self.count = int(min(total, max(EXAMPLES_AT_A_TIME, WORK // trees.size(params))))
        some = np.linspace(0, total - 1, self.count).astype(int)
        self.x = x if self.count == total else jax.tree.map(lambda leaf: on_disk.rows(leaf, some), x)
        self._sums = _sums(network, Signature.of(params), Signature.of(_part(self.x, 0, EXAMPLES_AT_A_TIME)))
        self.values, size = self.of(params)
        self.tolerance = np.sqrt(self._sums.epsilon) * size.max(initial=0)
        self._refuse_unknown()
        traced = [jaxpr_hash(lambda w, x: network.apply(w, x), params, _part(self.x, 0, 1)) for _ in range(2)]
        again, _ = self.of(params, EXAMPLES_AT_A_TIME)
        if traced[0] != traced[1] or not (np.abs(again - self.values[: len(again)]) <= self.tolerance).all():
            raise ValueError(
                f"The outputs of {name} are not the same when they are computed twice; aligning needs a deterministic "
                "network.\n  Fix its random keys, switch dropout and augmentation off."
            )

    def _refuse_unknown(self) -> None:
        unknown = np.count_nonzero(~np.isfinite(self.values).all(1))
        if unknown:
            raise ValueError(
                f"The outputs of {self.name} are not finite on {unknown:,} of {self.count:,} examples; nothing can be "
                "compared there.\n  Align solutions whose training did not diverge."
            )

    def of(self, params: Params, count: int | None = None) -> tuple[Array, Array]:
        """Σ_i f_i and Σ_i |f_i| on all or the first examples, [N, C] each.

        Args:
            params: [I, ...], in any floating-point type.
            count: Number of examples.
        """
        x = _part(self.x, 0, count or self.count)
        return chunked_map(partial(self._sums, params), EXAMPLES_AT_A_TIME, x)

    def change(self, params: Params) -> str:
        """How the outputs change with these parameters, in words; none where it is by rounding only.

        What cancels inside the branches is unknown, so half the digits of the largest Σ_i |f_i| are allowed to change.
        """
        away = np.abs(self.of(params)[0] - self.values)
        changed = ~(away <= self.tolerance).all(1)  # nan counts as changed
        if not changed.any():
            return ""
        worst, largest = (float(np.max(t)) for t in (away[changed], np.abs(self.values)))
        return (
            f"changes its outputs on {changed.sum():,} of {self.count:,} examples, by up to {worst:.3g}, where the "
            f"largest is {largest:.3g} and rounding explains {self.tolerance:.1g}"
        )


@lru_cache(32)
def _sums(network: MultiBranch, of: Signature, examples: Signature) -> Wide:
    """Σ_i f_i and Σ_i |f_i| as a function of parameters [I, ...] and examples [N, ...]."""
    params, x = of.tree(), examples.tree()
    one = one_example(network.branches[0], _one(params), _one(x))

    def sums(params: Params, x: Any) -> Any:
        def part(w: Params) -> Any:
            f = jax.vmap(jax.vmap(one, (None, 0)), (0, None))(w, x)
            f = f.reshape(*f.shape[:2], -1)
            return f.sum(0), jnp.abs(f).sum(0)

        found = chunked_sum(part, params, network.branch_chunk or BRANCHES_AT_A_TIME)
        return jax.tree.map(lambda f: network.factor * f, found)

    return Wide(sums, params, x)


def _one(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), tree)


def _part(x: Any, start: int, stop: int) -> Any:
    return jax.tree.map(lambda leaf: on_disk.rows(leaf, slice(start, stop)), x)
