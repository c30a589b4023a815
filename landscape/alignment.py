"""Solutions that differ only in the order and scale of their units are the same network: match one to another.

The outputs do not change when hidden units, channels, attention heads or whole branches change places, so a barrier
seems to lie between a network and its permuted copy. Aligning first removes that part of the non-convexity
[Ainsworth23]. Which units may change places is read from the network itself: see `symmetries`.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from landscape.arrays import on_disk, trees
from landscape.networks import MultiBranch, Network, one_example
from landscape.problem import BRANCHES_AT_A_TIME, Problem
from landscape.symmetry import cycles, matching, pooling, rescaling
from landscape.symmetry import metric as metrics
from landscape.symmetry.blocks import Blocks, permute
from landscape.symmetry.kinds import Kind, kinds_of
from landscape.symmetry.metric import Measure
from landscape.symmetry.outputs import Outputs

Params = Any
By = Literal["auto", "units", "parameters", "outputs"]
Metric = Literal["parameters", "inputs"]

MOST = 20_000


class Changed(ValueError):
    """Aligning or balancing would change the outputs on the data."""


class Table(NamedTuple):
    """The symmetries of a network; printed, a table of its units."""

    kinds: tuple[Kind, ...]

    @property
    def found(self) -> bool:
        """Whether anything may change places."""
        return any(kind.count > 1 or max((s.size for s in kind.symmetries.found), default=1) > 1 for kind in self.kinds)

    def __str__(self) -> str:
        return "\n\n".join(map(str, self.kinds))


def symmetries(target: Problem | MultiBranch | Network, params: Params = None, x: Any = None) -> Table:
    """Which units of a network may change places, and be rescaled, without any change of its outputs.

    Read from the trace of the network, so nothing need be said about it, and verified on random numbers.

    Args:
        target: A problem, or a network.
        params: Parameters of the network; initial ones when None.
        x: A few examples [N, ...], for a network.

    Raises:
        ValueError: A network without examples.

    >>> from landscape.networks import mlp_branch
    >>> print(symmetries(mlp_branch((5, 8, 2), bias=True), x=np.ones((1, 5), np.float32)))
    8 units                 0.bias, 0.kernel, 1.kernel
        rescaled            0.bias, 0.kernel against 1.kernel
    in their order          1.bias
    """
    network = target.network if isinstance(target, Problem) else target
    x = target.data.support.x if isinstance(target, Problem) else x
    if x is None:
        raise ValueError("The symmetries of a network are read from its trace, which needs examples; name x [N, ...].")
    network = MultiBranch(network, 1) if isinstance(network, Network) else network
    one = isinstance(target, Network) and params is not None
    params = jax.tree.map(lambda leaf: leaf[None], params) if one else params
    return Table(tuple(kinds_of(network, network.init(jax.random.key(0)) if params is None else params, x)))


def align(
    problem: Problem,
    reference: Params,
    params: Params,
    *,
    by: By = "auto",
    examples: int = 1024,
    keep: int = matching.KEEP,
    restarts: int = 0,
    metric: Metric = "parameters",
) -> Params:
    """The same network with its branches and units permuted, and rescaled, to match the reference.

    Maximises Σ_i ⟨r_i, p_π(i)⟩ over permutations of branches and of the units in every branch, both networks taken at
    their least norm; the result has the reference's scales. Where a branch is a sum over its units, as with one hidden
    layer, these are matched one by one across branches.

    The outputs on the data stay the same up to rounding, which is checked in float64 (on all the data, or as many
    examples as 2e11 / parameters). Rescalings that do not stand the check are left out.

    Args:
        problem: Its network names the branches; the outputs on its data must not change.
        reference: Parameters that stay as they are; see `balance`.
        params: Parameters to align; not changed.
        by: "units" as above; "parameters" or "outputs" permute whole branches by inner products of those; "auto"
            takes "units" where there are some and "parameters" elsewhere.
        examples: At most this many examples are used for `by="outputs"`.
        keep: For every branch so many candidates are compared with their units matched until nothing improves.
        restarts: Further descents from random permutations, of which the best counts.
        metric: "inputs" compares kernels of dense layers that read the examples by ⟨X r, X p⟩ / N.

    Raises:
        Changed: The outputs on the data would change.
        ValueError: The parameters do not fit the network, `by` is unknown or does not apply, the outputs are not finite
            or not deterministic, or a kind has more than 20,000 branches or units, beyond which the matrix of inner
            products no longer fits.
    """
    if by not in get_args(By):
        raise ValueError(f'by must be "auto", "units", "parameters" or "outputs"; got {by!r}.')
    for name, given in (("reference", reference), ("params", params)):
        _check(name, problem.shapes, given)
    befores, kinds = _outputs(problem, params), kinds_of(problem.network, params, problem.data.support.x)
    aligned = []
    for before, kind, (branch, r) in zip(befores, kinds, problem.network.groups(reference), strict=True):
        if by == "units" and not kind.symmetries.found:
            raise ValueError(
                'by="units" needs units that may change places; this network has none: see alignment.symmetries.\n'
                '  Use by="parameters" or by="outputs", which permute whole branches.'
            )
        if by in ("parameters", "outputs"):
            kind = kind._replace(symmetries=kind.symmetries._replace(found=()), rescalings=(), pools=False)
        order = _by_outputs(branch, r, before, examples) if by == "outputs" else None
        given = _Options(keep, restarts, _measure(problem, kind, metric))
        aligned.append(_aligned(kind, before, r, given, order))
    return problem.network.join(aligned)


def align_all(
    problem: Problem,
    solutions: Sequence[Params],
    *,
    keep: int = matching.KEEP,
    restarts: int = 0,
    metric: Metric = "parameters",
) -> list[Params]:
    """Several solutions, balanced, with all of them permuted to match each other.

    Each is aligned to the mean of those before it and then, in rounds, to the mean of all others, until the sum of
    inner products of all pairs hardly grows. So any two are as comparable as the first and another, and going from one
    to the next around a cycle leads back to the same order.

    Args:
        problem: As for `align`.
        solutions: Their parameters; the first keeps its order.
        keep: As for `align`.
        restarts: As for `align`.
        metric: As for `align`.

    Raises:
        Changed: The outputs on the data would change.
        ValueError: As for `align`.
    """
    for k, given in enumerate(solutions):
        _check(f"solution {k + 1}", problem.shapes, given)
    kinds = kinds_of(problem.network, solutions[0], problem.data.support.x)
    befores = zip(*(_outputs(problem, w, f"solution {k + 1}") for k, w in enumerate(solutions)), strict=True)
    aligned = []
    for kind, several in zip(kinds, befores, strict=True):
        given = _Options(keep, restarts, _measure(problem, kind, metric))
        aligned.append(_aligned_together(kind, several, given))
    return [problem.network.join(parts) for parts in zip(*aligned, strict=True)]


def balance(problem: Problem, params: Params) -> Params:
    """The same network with every unit that may be rescaled at its least norm; others as they are.

    [w·x]_+ v = [c w·x]_+ v / c for c > 0; the norm is least where ‖w‖ = |v|.

    Raises:
        Changed: The units stand rescaling on random inputs, but the outputs on the problem's data would change.
        ValueError: The parameters do not fit the network; the outputs are not finite or not deterministic.
    """
    _check("params", problem.shapes, params)
    kinds = kinds_of(problem.network, params, problem.data.support.x)
    balanced = []
    for kind, before in zip(kinds, _outputs(problem, params), strict=True):
        layout = kind.symmetries.layout
        blocks, _ = rescaling.balance(_wide(kind, before.params), kind.rescalings)
        balanced.append(_verified(kind, before, layout.assemble(blocks, 1)) if kind.rescalings else before.params)
    return problem.network.join(balanced)


class _Options(NamedTuple):
    """How branches and units are compared."""

    keep: int
    restarts: int
    measure: Measure


def _measure(problem: Problem, kind: Kind, name: Metric) -> Measure:
    if name not in get_args(Metric):
        raise ValueError(f'metric must be "parameters" or "inputs"; got {name!r}.')
    return metrics.of_inputs(kind.symmetries, problem.data.support.x) if name == "inputs" else metrics.of_parameters


def _aligned(kind: Kind, before: Outputs, reference: Params, given: _Options, order: np.ndarray | None) -> Params:
    """One kind of branches matched to the reference's, at its scales; the order of branches may be given."""
    _refuse_many(kind)
    theirs, logs = rescaling.balance(_wide(kind, reference), kind.rescalings)
    mine, _ = rescaling.balance(_wide(kind, before.params), kind.rescalings)
    moved = (
        [block[order] for block in mine]
        if order is not None
        else _matching(kind, given.measure(theirs), mine, given)(mine)
    )
    for r, log in zip(kind.rescalings, logs, strict=True):
        moved = r.applied(moved, -log)
    aligned = kind.symmetries.layout.assemble(moved, 1)
    if kind.rescalings and before.change(aligned):
        return _aligned(kind._replace(rescalings=()), before, reference, given, order)
    return _verified(kind, before, aligned)


def _matching(kind: Kind, reference: Blocks, blocks: Blocks, given: _Options) -> Callable[[Blocks], Blocks]:
    """Branches with their units, or all units one by one, put in the order that brings `blocks` to the reference."""
    found = kind.symmetries.found
    if kind.pools:
        units, _ = matching.match((), pooling.pooled(reference, found[0]), pooling.pooled(blocks, found[0]))
        return lambda x: pooling.apart([unit[units] for unit in pooling.pooled(x, found[0])], x, found[0])
    order, orders = matching.match(found, reference, blocks, keep=given.keep, restarts=given.restarts)
    return lambda x: matching.apply(found, x, order, orders)


def _aligned_together(kind: Kind, befores: Sequence[Outputs], given: _Options) -> list[Params]:
    """One kind of branches of several solutions, matched to each other at their least norms."""
    _refuse_many(kind)
    layout = kind.symmetries.layout
    several = [rescaling.balance(_wide(kind, before.params), kind.rescalings)[0] for before in befores]
    if any(before.change(layout.assemble(blocks, 1)) for before, blocks in zip(befores, several, strict=True)):
        kind = kind._replace(rescalings=())
        several = [_wide(kind, before.params) for before in befores]
    several = cycles.together(several, given.measure, lambda r, p: _matching(kind, r, p, given))
    return [
        _verified(kind, before, layout.assemble(blocks, 1)) for before, blocks in zip(befores, several, strict=True)
    ]


def _verified(kind: Kind, before: Outputs, params: Params) -> Params:
    """Parameters in their own types, if the outputs are what they were.

    Raises:
        Changed: They are not; the message names the leaves.
    """
    words = before.change(params)
    if words:
        raise Changed(f"{_culprit(kind, before)} {words}.\n  Leave these networks as they are.")
    return jax.tree.map(lambda w, like: jnp.asarray(np.asarray(w, like.dtype)), params, before.params)


def _culprit(kind: Kind, before: Outputs) -> str:
    """What changes the outputs, and in which leaves: every symmetry and rescaling is tried alone."""
    layout, blocks = kind.symmetries.layout, _wide(kind, before.params)
    for r in kind.rescalings:
        log = np.ones(r.sums(blocks).shape[1:])
        if before.change(layout.assemble(r.applied(blocks, log), 1)):
            return f"Rescaling the units of {before.name} (leaves {', '.join(kind.symmetries.leaves(r.symmetry))})"
    for s in kind.symmetries.found:
        order = np.tile(np.arange(s.size)[::-1], (len(blocks[0]), s.slices(blocks, 1), 1))
        if before.change(layout.assemble(permute(blocks, s, order), 1)):
            return f"Permuting the units of {before.name} (leaves {', '.join(kind.symmetries.leaves(s))})"
    return f"Permuting the branches of {before.name} (leaves {', '.join(layout.names)})"


def _by_outputs(branch: Network, reference: Params, before: Outputs, examples: int) -> np.ndarray:
    """The order of branches that maximises the inner products of their outputs."""
    x = jax.tree.map(lambda leaf: on_disk.rows(leaf, slice(examples)), before.x)
    first = [jax.tree.map(lambda leaf: leaf[0], tree) for tree in (reference, x)]
    outputs = jax.jit(jax.vmap(jax.vmap(one_example(branch, *first), (None, 0)), (0, None)))
    theirs, mine = (np.asarray(outputs(w, x), np.float64) for w in (reference, before.params))
    return matching.assign(theirs.reshape(len(theirs), -1) @ mine.reshape(len(mine), -1).T)


def _outputs(problem: Problem, params: Params, name: str = "params") -> list[Outputs]:
    """The outputs of every kind of branches on the data that count."""
    network, found = problem.network, []
    for k, (branch, w) in enumerate(network.groups(params)):
        alone = MultiBranch(branch, network.counts[k], network.average, network.branch_chunk or BRANCHES_AT_A_TIME)
        title = f"{name}, group {k + 1}" if len(network.counts) > 1 else name
        found.append(Outputs(title, alone, w, problem.data.support.x))
    return found


def _wide(kind: Kind, params: Params) -> Blocks:
    """The blocks [I, ...] of one kind of branches in float64."""
    blocks = kind.symmetries.layout.explode(params, 1)
    return [block.astype(np.float64) if trees.is_parameter(block) else block for block in blocks]


def _refuse_many(kind: Kind) -> None:
    size = kind.symmetries.found[0].size if kind.pools else 1
    count = max(kind.count * size, *(s.size for s in kind.symmetries.found), 1)
    if count > MOST:
        raise ValueError(
            f"Aligning takes at most {MOST:,} branches or units; got {count:,}, whose inner products fill "
            f"{8 * count**2 / 2**30:.0f} GiB."
        )


def _check(name: str, wanted: Params, given: Params) -> None:
    shapes = [jax.tree.map(lambda leaf: tuple(leaf.shape), tree) for tree in (wanted, given)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"{name} must have the shapes of the problem's network, {shapes[0]}; got {shapes[1]}.\n"
            "  Align one solution at a time, without an axis of seeds."
        )
    if not all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(given)):
        raise ValueError(f"{name} holds values that are not finite.\n  Align solutions whose training did not diverge.")
