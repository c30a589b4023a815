"""Any branch on a plane: traced on one example, run for all branches and examples in three stages.

A grid pays for each stage as rarely as possible:

    precompute  once a chunk of examples and branches: the residuals, triples (o, u, v) at which the affine prefix ends;
                most of the arithmetic
    at_row      once a grid row b: o + b v
    at_point    once a grid point a: (o + b v) + a u, and the rest of the network

With plain parameters instead of triples the stages are the forward pass, in the same layout. The sum over branches is
folded into the last product.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core as jcore

from landscape.arrays import trees
from landscape.compiler import batch_rules, flatten
from landscape.compiler.analysis import OUTPUTS, Residual, StagedBranch, Step, analyse, is_moved, varies
from landscape.compiler.batch_rules import Axes
from landscape.compiler.interpreter import interpret, read
from landscape.networks import MultiBranch, Network, as_written, one_example

Tree = Any
Parts = tuple[jax.Array, ...]
"""A triple (o, u, v), its two parts (o + b v, u) in a row, or one value that does not depend on the plane."""


def stage(network: MultiBranch, params: Tree, example: Any, inference: bool = False) -> list[StagedBranch]:
    """Every kind of branch of a network, staged. A branch is traced once, whatever is then computed with it.

    Args:
        network: The network.
        params: Its parameters [I, ...], or their shapes.
        example: One example, or its shape and type.
        inference: Whether the result is faster but not to be differentiated.
    """
    of = trees.Signature.of(example)
    return [_staged(branch, _one(w), of, inference, *_context()) for branch, w in network.groups(params)]


def whole(network: MultiBranch, params: Tree, example: Any, n: int, rows: bool) -> list[StagedBranch]:
    """Every kind of branch on a batch, as its author wrote it: leaves of params, leaves of x [n, ...] -> [n, ...].

    `closed` is that forward pass. It can be run in stages too, on parameters without a branch axis.

    Args:
        network: The network.
        params: Its parameters [I, ...], or their shapes.
        example: One example, or its shape and type.
        n: Examples of the batch.
        rows: Whether convolutions of few channels are written as products, which are faster on a CPU.
    """
    of = trees.Signature.of(example)
    return [_whole(branch, _one(w), of, n, rows, *_context()) for branch, w in network.groups(params)]


def outputs_of(branches: Sequence[StagedBranch]) -> jax.ShapeDtypeStruct:
    """Shape [C] (or any other) and type of the sum of all branches, for one example."""
    found = [branch.closed.jaxpr.outvars[0].aval for branch in branches]
    shape = jnp.broadcast_shapes(*(aval.shape for aval in found))
    return jax.ShapeDtypeStruct(shape, jnp.result_type(jnp.zeros(()), *(aval.dtype for aval in found)))


def hashes(network: MultiBranch, params: Tree, example: Any) -> list[str]:
    """What every kind of branch computes, as hashes of the traces that `stage` uses."""
    return list(map(flatten.closed_hash, traces(network, params, example)))


def rounding(network: MultiBranch, params: Tree, example: Any) -> Any:
    """The floating-point type in which the network rounds most.

    Args:
        network: The network.
        params: Its parameters [I, ...], or their shapes.
        example: One example, or its shapes and types.
    """
    found = map(flatten.coarsest, traces(network, params, example))
    return max(found, key=lambda dtype: float(jnp.finfo(dtype).eps))


def traces(network: MultiBranch, params: Tree, example: Any) -> list[jcore.ClosedJaxpr]:
    """Every kind of branch of a network on one example, as `jax.make_jaxpr` gives it: params, x [...] -> outputs [C].

    Args:
        network: The network.
        params: Its parameters [I, ...], or their shapes.
        example: One example, or its shape and type.
    """
    of = trees.Signature.of(example)
    return [_traced(branch, _one(w), of, *_context()) for branch, w in network.groups(params)]


def _context() -> tuple[Any, ...]:
    """The settings of JAX that a trace depends on."""
    config: Any = jax.config
    return config.jax_enable_x64, config.jax_default_matmul_precision


def _one(params: Tree) -> trees.Signature:
    """The shapes of one branch's parameters."""
    return trees.Signature.of(jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), params))


@lru_cache(32)
def _traced(branch: Network, one: trees.Signature, of: trees.Signature, *_context: Any) -> jcore.ClosedJaxpr:
    params, example = one.tree(), of.tree()
    with _no_mesh():
        return jax.make_jaxpr(one_example(branch, params, example))(params, example)


@lru_cache(64)
def _staged(branch: Network, one: trees.Signature, of: trees.Signature, inference: bool, *context: Any) -> StagedBranch:
    with _no_mesh():
        return staged(_traced(branch, one, of, *context), inference, len(of.shapes))


@lru_cache(64)
def _whole(
    branch: Network, one: trees.Signature, of: trees.Signature, n: int, rows: bool, *_context: Any
) -> StagedBranch:
    params, example = one.tree(), of.tree()
    batch = jax.tree.map(lambda t: jax.ShapeDtypeStruct((n, *t.shape), t.dtype), example)
    with _no_mesh():
        traced = jax.make_jaxpr(as_written(branch, params, example))(params, batch)
        flat = flatten.flat(traced, flatten.How(inference=True, rows=rows))
    return analyse(flat, inference=True, inputs=len(of.shapes), batched=True)


def _no_mesh() -> Any:
    """A kept trace belongs to no mesh: it is used on several."""
    return jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ()))


def staged(closed: jcore.ClosedJaxpr, inference: bool = False, inputs: int = 1) -> StagedBranch:
    """A traced branch, flattened and analysed.

    Args:
        closed: One branch on one example, by `jax.make_jaxpr`: params, x [...] -> outputs [C].
        inference: Whether the result is faster but not to be differentiated.
        inputs: Number of arrays of an example.
    """
    how = flatten.How(inference, patches=not inference and jax.default_backend() == "cpu")
    found = flatten.flat(closed, how)
    if not varies(found, inputs):  # One zero of the example gives the outputs its axis.
        f, shapes = jcore.jaxpr_as_fun(closed), [v.aval for v in closed.jaxpr.invars]
        found = flatten.flat(jax.make_jaxpr(lambda *xs: f(*xs)[0] + 0 * xs[-1].reshape(-1)[:1])(*shapes), how)
    return analyse(found, inference, inputs)


def lay_out(branch: StagedBranch, params: Tree) -> Tree:
    """Parameters [I, ...] with every weight of the first layer laid out, for `precompute(..., prelaid=True)`."""
    leaves, structure = jax.tree.flatten(params)
    pairs = zip(branch.closed.jaxpr.invars, leaves, strict=False)
    return structure.unflatten([branch.weights[v].lay_out(x) if v in branch.weights else x for v, x in pairs])


def precompute(branch: StagedBranch, params: Sequence[Tree], x: Any, prelaid: bool = False) -> tuple[Parts, ...]:
    """The first stage: the residuals.

    Args:
        branch: The branch.
        params: The triple (o, u, v) of trees [I, ...], or a tuple of one tree.
        x: Examples, last axis n, or a tree of them.
        prelaid: Whether the trees come from `lay_out`.
    """
    jaxpr, count = branch.closed.jaxpr, jax.tree.leaves(params[0])[0].shape[0]
    pairs = zip(jaxpr.invars, zip(*map(jax.tree.leaves, params), strict=True), strict=False)
    leaves = [parts if is_moved(v) else parts[:1] for v, parts in pairs]
    env: dict[Any, Parts] = dict(zip(jaxpr.invars, [*leaves, *((t,) for t in jax.tree.leaves(x))], strict=True))
    env |= {v: (jnp.asarray(c),) for v, c in zip(jaxpr.constvars, branch.closed.consts, strict=True)}

    def operand(step: Step, j: int, parts: Parts) -> Parts:
        ready = prelaid and not isinstance(step.invars[j], jcore.Literal) and step.invars[j] in branch.weights
        return parts if ready else tuple(_prepared(step, j, p, count) for p in parts)

    def rule(step: Step, operands: list[Parts]) -> list[Parts]:
        ready = [operand(step, j, parts) for j, parts in enumerate(operands)]
        columns = [_of_part(step, ready, k) for k in range(max(map(len, ready), default=1))]
        return list(zip(*(_run(step, values, count) for values in columns), strict=True))

    interpret(branch.prefix, env, rule, _one_part)
    chosen = ((branch.steps[r.step], r.operand) for r in branch.residuals)
    return tuple(operand(step, j, read(env, step.invars[j], _one_part)) for step, j in chosen)


def at_row(residuals: tuple[Parts, ...], b: jax.Array) -> tuple[Parts, ...]:
    """The second stage: every triple at b, as (o + b v, u)."""
    return tuple((p[0] + b * p[2], p[1]) if len(p) == 3 else p for p in residuals)


def at_point(branch: StagedBranch, row: tuple[Parts, ...], a: jax.Array) -> jax.Array:
    """The third stage: outputs [C, n] at (a, b), summed over branches."""
    values = [p[0] + a * p[1] if len(p) == 2 else p[0] for p in row]

    def rule(step: Step, operands: list[jax.Array]) -> list[jax.Array]:
        pairs = enumerate(zip(step.invars, operands, strict=True))
        return _run(step, [v if isinstance(k, Residual) else _prepared(step, j, v, 0) for j, (k, v) in pairs], 0)

    env = interpret(branch.nonlinear, dict(zip(branch.residuals, values, strict=True)), rule, _literal)
    return env[OUTPUTS]


def _of_part(step: Step, operands: list[Parts], k: int) -> list[jax.Array]:
    """The operands of part k of a triple: a constant summand belongs to the origin, a constant factor to all three."""
    found = []
    for parts, adds in zip(operands, step.joint, strict=True):
        known = k < len(parts)
        found.append(parts[k] if known else jnp.zeros_like(parts[0]) if adds else parts[0])
    return found


def _prepared(step: Step, j: int, value: jax.Array, count: int) -> jax.Array:
    """An operand as `_run` takes it: a product's weight laid out, a summand of the outputs summed over branches."""
    if step.product:
        return step.product.lay_out(value) if j == step.product.swap else value
    return _total(value, step.axes[j], count) if step.sums[j] else value


def _run(step: Step, values: list[jax.Array], count: int) -> list[jax.Array]:
    """One equation on prepared operands."""
    e, both = step.equation, batch_rules.union(step.axes)
    if e is None:
        return values
    if step.moves:
        return batch_rules.run(e, values, [a._replace(branch=False) for a in step.axes])
    if step.product:
        outs = [step.product.multiply(*(reversed(values) if step.product.swap else values))]
        if step.product.folds:
            return outs
    elif step.clips:
        outs = [_rectified(*(values if isinstance(e.invars[1], jcore.Literal) else values[::-1]))]
    else:
        outs = batch_rules.run(e, values, step.axes)
    return [_total(out, both, count) for out in outs] if step.summed else outs


def _rectified(value: jax.Array, least: jax.Array) -> jax.Array:
    """max(value, least), nan for nan. On CPUs it is faster than XLA's maximum, but it must not be differentiated."""
    return jnp.where(value < least, least, value)


def _literal(atom: Any) -> jax.Array:
    return jnp.asarray(atom.val, atom.aval.dtype)


def _one_part(atom: jcore.Literal) -> Parts:
    return (_literal(atom),)


def _total(value: jax.Array, axes: Axes, count: int) -> jax.Array:
    """Σ over the `count` branches of a value, which may be the same for all of them."""
    return value.sum(0) if axes.branch else count * value
