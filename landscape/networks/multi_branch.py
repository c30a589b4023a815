"""A network as a pair of pure functions, and the multi-branch network of §2, f(w; x) = 1/I Σ_i f_i(w_(i); x)."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer

from landscape.arrays import trees
from landscape.arrays.chunked import chunked_sum
from landscape.arrays.trees import Signature

Params = Any

ONE_BY_ONE = 4
"""Most branches that are initialised operation by operation: a deep network as one program takes 20 s to compile."""


class Network(NamedTuple):
    """A network: `init(key) -> params` and `apply(params, x [N, ...]) -> outputs [N, C]`.

    Several inputs are a tree of arrays x, and outputs may have any shape [N, ...]. `apply` may instead be written for
    one example, x [...] -> outputs [C], where it does not take batches.
    `order` names the arrays and numbers of the module behind it in the module's own order, for files without names.
    """

    init: Callable[[jax.Array], Params]
    apply: Callable[[Params, jax.Array], jax.Array]
    order: tuple[str, ...] = ()


@dataclass(frozen=True)
class InOwnTypes:
    """A forward pass that takes parameters in float32 and runs with those of half precision in their own types.

    Attributes:
        apply: (params, x) -> outputs.
        types: Names of the types of the parameters' arrays, in their order.
    """

    apply: Callable[[Params, Any], jax.Array]
    types: tuple[str, ...]

    def __call__(self, params: Params, x: Any) -> jax.Array:
        """Outputs."""
        leaves, structure = jax.tree.flatten(params)
        pairs = zip(leaves, self.types, strict=True)
        cast = [w.astype(kind) if _is_half(kind) else w for w, kind in pairs]
        return self.apply(structure.unflatten(cast), x)


def in_own_types(branch: Network, shapes: Params) -> Network:
    """The branch itself, or, where it has parameters in half precision, one that rounds others to their types.

    Args:
        branch: The branch.
        shapes: Shapes and types of its parameters.
    """
    types = [leaf.dtype for leaf in jax.tree.leaves(shapes)]
    again = isinstance(branch.apply, InOwnTypes) or not any(map(_is_half, map(str, types)))
    return branch if again else branch._replace(apply=InOwnTypes(branch.apply, tuple(map(str, types))))


def _is_half(kind: str) -> bool:
    return kind in ("float16", "bfloat16") or kind.startswith("float8")


def one_example(network: Network, params: Params, example: Any) -> Callable[[Params, Any], jax.Array]:
    """The network on one example: params, x [...] -> outputs [C], or of any other shape for a network of batches.

    If the network maps batches x [N, ...] to [N, ...], this form is used. Otherwise it is taken to be written for one
    example, x [...] -> outputs [C].

    Args:
        network: The network.
        params: Parameters, or their shapes.
        example: One example, or its shape and type; a tree of these where the network takes several inputs.

    Raises:
        ValueError: Its outputs are neither [N, ...] for a batch nor [C] for one example.
    """
    shape = _outputs_of_batches(network, Signature.of(params), Signature.of(example))
    if shape is None:
        return lambda w, x: network.apply(w, x).reshape(-1)
    return lambda w, x: network.apply(w, jax.tree.map(lambda t: t[None], x)).reshape(shape)


def as_written(network: Network, params: Params, example: Any) -> Callable[[Params, Any], jax.Array]:
    """The network on a batch, params, x [N, ...] -> outputs [N, ...], each example's as `one_example` gives them.

    It is the author's own forward pass; one that was written for one example is mapped over the batch.

    Args:
        network: The network.
        params: Parameters, or their shapes.
        example: One example, or its shape and type, or a tree of these.

    Raises:
        ValueError: As in `one_example`.
    """
    shape = _outputs_of_batches(network, Signature.of(params), Signature.of(example))
    if shape is None:
        return jax.vmap(one_example(network, params, example), (None, 0))
    return lambda w, x: network.apply(w, x).reshape(-1, *shape)


@lru_cache(64)
def _outputs_of_batches(network: Network, params: Signature, example: Signature) -> tuple[int, ...] | None:
    """Shape of the outputs for one example of a network that takes batches; None where it takes one example."""
    found = [_shape(network, params.tree(), _batch_of(n, example.tree())) for n in (1, 2)]
    one, two = (shape if isinstance(shape, tuple) else None for shape in found)
    if one and two and one[:1] == (1,) and two[:1] == (2,) and one[1:] == two[1:]:
        return one[1:] or (1,)
    alone = _shape(network, params.tree(), example.tree())
    if isinstance(alone, Exception):
        raise next(error for error in (*found, alone) if isinstance(error, Exception))
    if math.prod(alone) != max((*alone, 1)):
        raise ValueError(
            f"A network must map a batch [N, ...] to outputs [N, ...], or one example to a vector; this one maps a "
            f"batch of two to {two} and one example to one vector of outputs each of shape {alone}.\n"
            "  Let it keep the axis of examples first."
        )
    return None


def _batch_of(n: int, example: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((n, *x.shape), x.dtype), example)


def _shape(network: Network, params: Params, x: Any) -> tuple[int, ...] | Exception:
    """Shape of the outputs, or the exception that the network raises for this input."""
    try:
        return jax.eval_shape(network.apply, params, x).shape
    except Exception as error:  # networks refuse other shapes each in its own way
        return error


@dataclass(frozen=True)
class MultiBranch:
    """The multi-branch network of §2: f(w; x) = 1/I Σ_i f_i(w_(i); x), all branches run as one fused computation.

    Its parameters are the branch's own tree with a leading branch axis [I, ...]; with several groups of different
    branches, a tuple of such trees.

    Attributes:
        branch: The sub-network, or a sequence of different ones.
        num_branches: I, or how many of each.
        average: True for the mean 1/I Σ of §2, False for the plain sum of §5.1.
        branch_chunk: Branches computed at a time by `apply`; all at once when None. The last chunk may be smaller.

    Raises:
        ValueError: No branches, or different numbers of branches and counts.

    >>> from landscape.networks import relu_branch
    >>> unit = relu_branch(2)
    >>> network = MultiBranch(unit, 3)
    >>> w = network.init(jax.random.key(0))
    >>> network.apply(w, jnp.ones([5, 2])).shape
    (5, 1)
    """

    branch: Network | Sequence[Network]
    num_branches: int | Sequence[int]
    average: bool = True
    branch_chunk: int | None = None

    def __post_init__(self) -> None:
        for name in ("branch", "num_branches"):  # hashable: networks are static in compiled programs
            value = getattr(self, name)
            object.__setattr__(self, name, tuple(value) if isinstance(value, list) else value)
        if len(self.branches) != len(self.counts):
            raise ValueError(f"{len(self.branches)} kinds of branches were given, but {len(self.counts)} counts.")
        if not self.counts or any(n != int(n) or n < 1 for n in self.counts):
            raise ValueError(f"num_branches must be at least 1 (of each kind); got {self.num_branches}.")
        if self.branch_chunk is not None and self.branch_chunk < 1:
            raise ValueError(f"branch_chunk must be at least 1, or None for all at once; got {self.branch_chunk}.")

    @property
    def branches(self) -> tuple[Network, ...]:
        """The kinds of branches."""
        return (self.branch,) if isinstance(self.branch, Network) else tuple(self.branch)

    @property
    def counts(self) -> tuple[int, ...]:
        """How many of each kind."""
        return (self.num_branches,) if isinstance(self.num_branches, int) else tuple(self.num_branches)

    @property
    def total(self) -> int:
        """I, the number of branches of all kinds."""
        return sum(self.counts)

    @property
    def factor(self) -> float:
        """Factor of the sum over branches: 1/I, or 1 for the plain sum."""
        return 1 / self.total if self.average else 1.0

    def groups(self, params: Params) -> tuple[tuple[Network, Params], ...]:
        """The kinds of branches, each with its parameters [I_k, ...]."""
        parts = (params,) if isinstance(self.branch, Network) else params
        return tuple(zip(self.branches, parts, strict=True))

    def join(self, parts: Sequence[Params]) -> Params:
        """Parameters of all kinds of branches as the network takes them: one tree, or a tuple of them."""
        return parts[0] if isinstance(self.branch, Network) else tuple(parts)

    def init(self, key: jax.Array) -> Params:
        """Independent initial parameters for every branch, [I, ...]."""
        if self.total <= ONE_BY_ONE and not isinstance(key, Tracer):
            return self._init(key, lambda f, keys: trees.stack([f(k) for k in keys]))
        return self._compiled_init(key)

    @partial(jax.jit, static_argnums=0)
    def _compiled_init(self, key: jax.Array) -> Params:
        # One after the other: random numbers for all branches at once take twice as long to compile.
        return self._init(key, lax.map)

    def _init(self, key: jax.Array, each: Callable[[Callable[[jax.Array], Params], jax.Array], Params]) -> Params:
        keys = jax.random.split(key, len(self.counts))
        kinds = zip(self.branches, self.counts, keys, strict=True)
        return self.join([each(branch.init, jax.random.split(k, n)) for branch, n, k in kinds])

    def apply(self, params: Params, x: Any) -> jax.Array:
        """Outputs [N, C], or of another shape [N, ...], for examples x [N, ...]."""
        total = jnp.zeros(())
        for branch, w in self.groups(params):
            one = one_example(branch, _first(w), _first(x))
            outputs = jax.vmap(jax.vmap(one, (None, 0)), (0, None))
            length = jax.tree.leaves(w)[0].shape[0]
            total = total + chunked_sum(lambda p, f=outputs: f(p, x).sum(0), w, self.branch_chunk or length)
        return self.factor * total

    def __repr__(self) -> str:
        kind = "mean" if self.average else "sum"
        return f"MultiBranch({' + '.join(map(str, self.counts))} branches, {kind})"


def _first(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[0], tree)
