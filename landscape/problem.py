"""Data, network and loss: the risk R(w) = Σ_n weight_n ℓ(f(w; x_n), y_n) / Σ_n weight_n and its derivatives."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from landscape.arrays import hardware, on_disk
from landscape.arrays.chunked import chunked_sum
from landscape.compiler import flatten, gradient, staged
from landscape.datasets import Dataset
from landscape.files import atomic
from landscape.losses import Loss
from landscape.networks import MultiBranch, Network, as_written, in_own_types, one_example

Params = Any

EXAMPLES_AT_A_TIME = 1024
LOOKED_AT = 64
"""Number of examples among which `refuse_mixing` looks for two that differ."""
BRANCHES_AT_A_TIME = 1024
"""Branches computed at a time if the network does not state `branch_chunk`."""


@dataclass(frozen=True, eq=False)
class Problem:
    """The risk of a multi-branch network on a data set.

    Attributes:
        data: Examples, labels and weights.
        network: A `MultiBranch`; a plain `Network` is taken as its one branch. Parameters whose own type is half
            precision may come in float32, as on planes: they are rounded to it wherever the network runs.
        loss: (outputs [N, C], y [N]) -> loss per example [N]. Outputs of any shape [N, ...] will do, with labels as
            the loss takes them.

    Raises:
        ValueError: The network does not accept the examples, or the loss does not return one value an example.
    """

    data: Dataset
    network: MultiBranch
    loss: Loss

    def __post_init__(self) -> None:
        if isinstance(self.network, Network):
            object.__setattr__(self, "network", MultiBranch(self.network, 1))
        own = [in_own_types(branch, w) for branch, w in self.network.groups(self.shapes)]
        if any(x is not y for x, y in zip(own, self.network.branches, strict=True)):
            one = isinstance(self.network.branch, Network)
            object.__setattr__(self, "network", replace(self.network, branch=own[0] if one else own))
        y: Any = np.asarray(self.data.y)[np.asarray(self.data.weight) > 0]
        outputs = jax.eval_shape(self.network.apply, self.shapes, _batch(len(y), self.data.example))
        values = jax.eval_shape(lambda f: self.loss(f, y), outputs)  # y stays known, so that the loss can refuse labels
        if values.shape != (len(y),):
            raise ValueError(
                f"A loss must return one value an example, shape ({len(y)},) for {len(y)} examples; this one returns "
                f"{values.shape} for outputs {outputs.shape} and labels {y.shape}."
                + ("\n  Let it take the mean over all axes but the first." if values.shape[:1] == (len(y),) else "")
            )

    @cached_property
    def shapes(self) -> Params:
        """Shapes and types of the network's parameters."""
        return jax.eval_shape(self.network.init, jax.random.key(0))

    @cached_property
    def on_support(self) -> "Problem":
        """The same problem without examples of weight zero."""
        data = self.data.support
        return self if data is self.data else replace(self, data=data)

    @cached_property
    def risk(self) -> Callable[[Params], jax.Array]:
        """risk(params): the mean loss, streamed over examples and branches."""
        return partial(jax.jit(self._risk), self.data.support)

    @cached_property
    def gradient(self) -> Callable[[Params], Params]:
        """gradient(params): ∇R, a tree like params."""
        return partial(jax.jit(jax.grad(self._risk, argnums=1)), self.data.support)

    @cached_property
    def hessian_vector_product(self) -> Callable[[Params, Params], Params]:
        """hessian_vector_product(params, direction): ∇²R · direction, by forward over reverse mode."""

        def product(data: Dataset, params: Params, direction: Params) -> Params:
            return jax.jvp(lambda w: jax.grad(self._risk, argnums=1)(data, w), (params,), (direction,))[1]

        return partial(jax.jit(product), self.data.support)

    def _risk(self, data: Dataset, params: Params) -> jax.Array:
        """The risk with the data as an argument; as constants of the program they would take seconds to compile."""
        return streamed_risk(self.network.apply, self.loss, params, data)

    def __repr__(self) -> str:
        return f"Problem({self.data}, {self.network}, {getattr(self.loss, '__name__', self.loss)})"


def fingerprint(problem: Problem, losses: Sequence[Loss]) -> str:
    """Hash of the data and of the traced network and losses; it identifies results on disk.

    Args:
        problem: Data and network.
        losses: Functions (outputs [N, C], y [N]) -> [N].
    """
    network, params, example = problem.network, problem.shapes, problem.data.example
    one = staged.outputs_of(staged.stage(network, params, example, inference=True))
    outputs, y = (jax.ShapeDtypeStruct((1, *t.shape), t.dtype) for t in (one, problem.data.y[0]))
    computed = [*staged.hashes(network, params, example), *(flatten.jaxpr_hash(f, outputs, y) for f in losses)]
    return atomic.fingerprint(problem.data.fingerprint, repr(network), str(network.branch_chunk), computed)


def _batch(n: int, example: Any) -> Any:
    """Shapes and types of n examples."""
    return jax.tree.map(lambda t: jax.ShapeDtypeStruct((n, *t.shape), t.dtype), example)


def refuse_mixing(network: MultiBranch, params: Params, x: Any, in_pairs: bool = False) -> None:
    """Compare two examples in one batch with each of them alone, in the first branch of every kind.

    Args:
        network: The network.
        params: Its parameters [I, ...].
        x: Examples [N, ...], of which the first and another that differs from it are taken.
        in_pairs: Whether an example is alone in a batch of two copies of it, by the program of `outputs_in_pairs`,
            which compiles in a third of the time.

    Raises:
        ValueError: The outputs for one example depend on the other examples of its batch.
    """
    head = [np.asarray(on_disk.rows(leaf, slice(LOOKED_AT))) for leaf in jax.tree.leaves(x)]
    differs = np.any([(t != t[:1]).reshape(len(t), -1).any(1) for t in head], axis=0)
    leaves = jax.tree.leaves(params)
    if not differs.any() or not all(getattr(leaf, "is_fully_addressable", True) for leaf in leaves):
        return
    two = jax.tree.unflatten(jax.tree.structure(x), [t[[0, int(differs.argmax())]] for t in head])
    for branch, w in network.groups(params):
        first = jax.tree.map(lambda leaf: leaf[0], w)
        with jax.default_matmul_precision("highest"):
            found = _in_pairs(branch, first, two) if in_pairs else _two_ways(branch, first, two)
            together, again, alone = (np.asarray(f, np.float64) for f in found)
        if not np.array_equal(together, again, equal_nan=True):
            continue  # random numbers of its own, which are refused elsewhere
        away, largest = np.nan_to_num(np.abs(together - alone)).max(), np.nan_to_num(np.abs(together)).max()
        example = jax.tree.map(lambda t: t[0], two)
        epsilon = float(jnp.finfo(staged.rounding(network, params, example)).eps)
        if away > np.sqrt(epsilon) * largest:
            raise ValueError(
                "The outputs for one example depend on the other examples of its batch (BatchNorm in training mode, a "
                f"mean or a softmax over the first axis, ...): they differ by {away:.2g} of {largest:.2g} between a "
                "batch of two and each alone.\n  Switch the module to evaluation; a function apply(w, x) of one "
                "example is given as jax.vmap(apply, (None, 0))."
            )


@partial(jax.jit, static_argnums=0)
def _two_ways(branch: Network, params: Params, two: Any) -> tuple[jax.Array, ...]:
    """The outputs of two examples: in a batch, twice, and one by one."""
    one = one_example(branch, params, jax.tree.map(lambda t: t[0], two))
    alone = jnp.stack([one(params, jax.tree.map(lambda t, k=k: t[k], two)) for k in range(2)])
    try:
        together, again = (branch.apply(params, two).reshape(alone.shape) for _ in range(2))
    except Exception:  # a function of one example
        return alone, alone, alone
    return together, again, alone


def _in_pairs(branch: Network, params: Params, two: Any) -> tuple[Any, ...]:
    """The outputs of two examples: in a batch, twice, and each beside a copy of itself."""
    together, again = (_pair(branch, params, two) for _ in range(2))
    alone = [_pair(branch, params, jax.tree.map(lambda t, k=k: t[[k, k]], two))[0] for k in range(2)]
    return together, again, np.stack(alone)


@partial(jax.jit, static_argnums=0)
def _pair(branch: Network, params: Params, two: Any) -> jax.Array:
    """The outputs of a batch of two, as written."""
    return as_written(branch, params, jax.tree.map(lambda t: t[0], two))(params, two)


def outputs_in_pairs(network: MultiBranch, params: Params, x: Any) -> np.ndarray:
    """Outputs of examples [N, ...], N even, by the plain forward pass of two at a time: slow, and soon compiled.

    Args:
        network: The network.
        params: [I, ...].
        x: Examples.
    """
    count = len(jax.tree.leaves(x)[0])
    found: Any = 0.0
    for branch, w in network.groups(params):
        for i in range(len(jax.tree.leaves(w)[0])):
            one = jax.tree.map(lambda leaf, i=i: leaf[i], w)
            pairs = [_pair(branch, one, jax.tree.map(lambda t, k=k: t[k : k + 2], x)) for k in range(0, count, 2)]
            found = found + np.concatenate(pairs)
    return network.factor * found


def each(loss: Loss, outputs: jax.Array, y: jax.Array) -> jax.Array:
    """The loss of every example, [N]; nan if an output is not finite (a compiled max(0, ·) may turn nan into 0).

    Args:
        loss: Loss per example.
        outputs: [N, C], or any other shape [N, ...].
        y: Labels [N].
    """
    finite = jnp.isfinite(outputs).all(range(1, outputs.ndim))
    return jnp.where(finite, loss(outputs, y), jnp.nan)


def outputs(network: MultiBranch, params: Params, x: Any, axis: str | None = None) -> jax.Array:
    """Outputs [N, C] for examples x [N, ...] or a tree of these, by the staged branches in chunks.

    Args:
        network: The multi-branch network.
        params: [I, ...]; on every device its part of the branches where they are split.
        x: Examples [N, ...].
        axis: The mesh axis that the branches are split over; None where every device has all of them.
    """
    branches = staged.stage(network, params, jax.tree.map(lambda t: jax.ShapeDtypeStruct(t.shape[1:], t.dtype), x))
    x = jax.tree.map(lambda t: jnp.moveaxis(t, 0, -1), x)
    pairs = zip(branches, network.groups(params), strict=True)
    chunk = network.branch_chunk or BRANCHES_AT_A_TIME
    total = reduce(jnp.add, [gradient.sum_of_branches(branch, chunk, w, x) for branch, (_, w) in pairs])
    return network.factor * jnp.moveaxis(hardware.summed(total, axis), -1, 0)


def minibatch_risk(
    network: MultiBranch,
    loss: Loss,
    params: Params,
    x: Any,
    y: jax.Array,
    weight: jax.Array,
    axis: str | None = None,
) -> jax.Array:
    """Σ_B weight ℓ / Σ_B weight over a minibatch B; SGD follows its gradient.

    This weighted mean does not depend on the unit of the weights. With equal weights it is an unbiased estimate of the
    risk; otherwise its bias falls as 1/B. Over all the data it is the risk.

    Args:
        network: The multi-branch network.
        loss: Loss per example.
        params: [I, ...].
        x: Examples [B, ...].
        y: Labels [B].
        weight: Weights [B]; if all are zero, value and gradient are zero.
        axis: As in `outputs`.
    """
    values = each(loss, outputs(network, params, x, axis), y)
    weight = weight.astype(jnp.result_type(weight, values))
    total = weight.sum()
    # The shares come first: those of equal weights are 1/B to the last bit.
    return (weight / jnp.where(total > 0, total, 1) * values).sum()


def streamed_risk(forward: Callable[[Params, Any], jax.Array], loss: Loss, params: Params, data: Dataset) -> jax.Array:
    """Σ weight ℓ / Σ weight over all the data, in chunks of examples.

    Args:
        forward: Params, x [N, ...] -> outputs [N, C]: a network's plain `apply`, or `outputs`.
        loss: Loss per example.
        params: [I, ...].
        data: Examples [N, ...].
    """

    def part(batch: Any) -> jax.Array:
        x, y, weight, *where = batch
        return (weight * each(loss, forward(params, on_disk.read(x, *where) if where else x), y)).sum()

    x = on_disk.streamed(data.x)
    where = [jnp.arange(len(data))] if on_disk.any_streamed(x) else []
    total = chunked_sum(part, (x, data.y, data.weight, *where), EXAMPLES_AT_A_TIME)
    return total / jnp.sum(data.weight, dtype=total.dtype)
