"""Branches are exchangeable: permute one solution's branches, and rescale its ReLU units, to match another's.

A sum over branches does not change when they change places, so two solutions that are equal up to a permutation look
as if a barrier lay between them. Aligning first removes that part of the non-convexity [Ainsworth23].
"""

from functools import partial
from itertools import permutations
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import linear_sum_assignment

from landscape.arrays import on_disk
from landscape.arrays.chunked import chunked_map, chunked_sum
from landscape.compiler.flatten import jaxpr_hash
from landscape.networks import MultiBranch, one_example
from landscape.problem import BRANCHES_AT_A_TIME, EXAMPLES_AT_A_TIME, Problem

Params = Any
By = Literal["auto", "units", "parameters", "outputs"]

MOST = 20_000
PROBES = 8
ROUNDING = 2.0
"""Two networks that are equal but for rounding differ by at most so many √n ε: see `_Outputs._tolerance`."""


class Changed(ValueError):
    """Rescaling the units of a network would change its outputs on the data."""


class _Roles(NamedTuple):
    """Which leaf is which in a branch W_2 [W_1 x + b_1]_+ + b_2; -1 where there is no bias."""

    first: int
    last: int
    first_bias: int
    last_bias: int


def align(problem: Problem, reference: Params, params: Params, *, by: By = "auto", examples: int = 1024) -> Params:
    """The same network with its branches permuted (and its ReLU units rescaled) to match the reference.

    One optimal assignment a group of branches, maximising Σ_i ⟨r_i, p_π(i)⟩. Where a branch is one hidden layer of
    ReLU units, all units of all branches are exchangeable: they are matched one by one, on their weights balanced to
    ‖w‖ = |v|, and each takes the ratio ‖w‖ / |v| of its match.

    Outputs stay the same up to rounding, which is checked on all the data. Units whose activation is a ReLU on some
    inputs only (ReLU6, say) do not stand rescaling: "auto" then permutes whole branches, "units" refuses.

    Args:
        problem: Its network names the branches; the outputs on its data must not change.
        reference: Parameters that stay as they are; see `balance`.
        params: Parameters to align; not changed.
        by: "units" as above; "parameters" or "outputs" permute whole branches by inner products of those; "auto"
            takes "units" where it applies and "parameters" elsewhere.
        examples: At most this many examples are used for `by="outputs"`.

    Raises:
        Changed: `by="units"` and rescaling the units changes the outputs on the data.
        ValueError: The parameters do not fit the network, `by` is unknown or does not apply, the outputs are not finite
            or not deterministic, or a group has more than 20,000 branches or units, beyond which the matrix of inner
            products no longer fits.
    """
    if by not in ("auto", "units", "parameters", "outputs"):
        raise ValueError(f'by must be "auto", "units", "parameters" or "outputs"; got {by!r}.')
    wanted = problem.shapes
    for name, given in (("reference", reference), ("params", params)):
        _check(name, wanted, given)
    pairs = zip(problem.network.groups(reference), _outputs(problem, params, "params"), strict=True)
    aligned = [_align_group(r, outputs, examples, by) for (_, r), outputs in pairs]
    return problem.network.join(aligned)


def balance(problem: Problem, params: Params) -> Params:
    """The same network, every ReLU unit of one-hidden-layer branches rescaled so that ‖w‖ = |v|; others as they are.

    [w·x]_+ v = [c w·x]_+ v / c for c > 0; with ‖w‖ = |v| the norm is least.

    Raises:
        Changed: The units are ReLU on some inputs only, and the outputs on the problem's data would change.
        ValueError: The parameters do not fit the network; the outputs are not finite or not deterministic.
    """
    _check("params", problem.shapes, params)
    balanced = []
    for before in _outputs(problem, params, "params"):
        roles, w = _one_hidden_layer(before), before.params
        if roles is not None:
            w = _joined(w, roles, *_balanced(*_units(w, roles)))
            if words := before.change(w, roles):
                raise Changed(f"{words}\n  Leave the network as it is; align permutes its branches without rescaling.")
        balanced.append(w)
    return problem.network.join(balanced)


def _align_group(reference: Params, before: "_Outputs", examples: int, by: By) -> Params:
    branch, params, x = before.network.branches[0], before.params, _part(before.x, 0, examples)
    roles = _one_hidden_layer(before) if by in ("auto", "units") else None
    if roles is not None:
        aligned = _align_units(reference, params, roles)
        words = before.change(aligned, roles)
        if not words:
            return aligned
        if by == "units":
            raise Changed(f'{words}\n  Use by="parameters" or by="outputs", which permute whole branches.')
    if by == "units":
        raise ValueError(
            'by="units" needs branches with one hidden layer of ReLU units; this one is something else.\n'
            '  Use by="parameters" or by="outputs".'
        )
    if by == "outputs":
        outputs = jax.jit(jax.vmap(jax.vmap(one_example(branch, _first(params), _first(x)), (None, 0)), (0, None)))
        features = [np.asarray(outputs(w, x), np.float64) for w in (reference, params)]
    else:
        features = [np.concatenate([_rows(leaf) for leaf in jax.tree.leaves(w)], 1) for w in (reference, params)]
    order = _assign(*(f.reshape(len(f), -1) for f in features))
    aligned = jax.tree.map(lambda leaf: leaf[order], params)
    if words := before.change(aligned):
        raise ValueError(f"{words}\n  The sum of branches must not depend on their order.")
    return aligned


def _outputs(problem: Problem, params: Params, name: str) -> list["_Outputs"]:
    """The outputs of every group of branches on the data that count."""
    network, found = problem.network, []
    for k, (branch, w) in enumerate(network.groups(params)):
        alone = MultiBranch(branch, network.counts[k], network.average, network.branch_chunk or BRANCHES_AT_A_TIME)
        found.append(_Outputs(f"{name}, group {k + 1}" if len(network.counts) > 1 else name, alone, w, problem))
    return found


class _Outputs:
    """What a group of branches computes on the data, to be compared with the same for other parameters.

    Raises:
        ValueError: The outputs are not finite, or differ between two calls or two traces.
    """

    def __init__(self, name: str, network: MultiBranch, params: Params, problem: Problem) -> None:
        self.name, self.network, self.params, self.x = name, network, params, problem.data.support.x
        self.count = len(problem.data.support)
        self.values, self.size = self.of(params)
        unknown = np.count_nonzero(~np.isfinite(self.values).all(1))
        if unknown:
            raise ValueError(
                f"The outputs of {name} are not finite on {unknown:,} of {self.count:,} examples; nothing can be "
                "compared there.\n  Align solutions whose training did not diverge."
            )
        traced = [jaxpr_hash(lambda w, x: network.apply(w, x), params, _part(self.x, 0, 1)) for _ in range(2)]
        again, _ = self.of(params, EXAMPLES_AT_A_TIME)
        away, allowed = np.abs(again - self.values[: len(again)]), self._tolerance(self.size[: len(again)])
        if traced[0] != traced[1] or not (away <= allowed).all():
            raise ValueError(
                f"The outputs of {name} are not the same when they are computed twice; aligning needs a deterministic "
                "network.\n  Fix its random keys, switch dropout and augmentation off."
            )

    def of(self, params: Params, count: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Σ_i f_i and Σ_i |f_i| on all or the first examples, [N, C] each."""
        x = _part(self.x, 0, count or self.count)
        with jax.default_matmul_precision("highest"):
            total, size = chunked_map(partial(_sums, self.network, params), EXAMPLES_AT_A_TIME, x)
        return total.astype(np.float64), size.astype(np.float64)

    def change(self, params: Params, roles: "_Roles | None" = None) -> str:
        """How the outputs change with these parameters, in words; none where it is by rounding only."""
        values, size = self.of(params)
        away, allowed = np.abs(values - self.values), self._tolerance(np.maximum(self.size, size), roles)
        changed = ~(away <= allowed).all(1)  # nan counts as changed
        if not changed.any():
            return ""
        what, why = f"Permuting the branches of {self.name}", ""
        if roles:
            paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(self.params)]
            what = f"Rescaling the units of {self.name} (leaves {paths[roles.first]} and {paths[roles.last]})"
            why = "; its activation is no ReLU there"
        worst, largest, rounding = (float(np.max(t)) for t in (away[changed], np.abs(self.values), allowed[changed]))
        return (
            f"{what} changes its outputs on {changed.sum():,} of {self.count:,} examples, by up to {worst:.3g}, where "
            f"the largest is {largest:.3g} and rounding explains {rounding:.1g}{why}."
        )

    def _tolerance(self, size: np.ndarray, roles: "_Roles | None" = None) -> np.ndarray:
        """The difference that rounding explains, [N, C], from size = Σ_i |f_i| and the coarsest float type's ε.

        Of ReLU units it is ROUNDING √n ε (Σ_i |f_i| + ‖(x, 1)‖ Σ_u ‖w_u‖ |v_u|): the bracket bounds the sum of the
        absolute values of all n terms of an output, whatever cancels, and n roundings add up like a random walk. What
        cancels inside other branches is unknown; half the digits of the largest Σ_i |f_i| on the data are allowed.
        """
        leaves = jax.tree.leaves(self.params)
        types = [leaf.dtype for leaf in leaves] + [
            jax.eval_shape(self.network.apply, self.params, _part(self.x, 0, 1)).dtype
        ]
        epsilon = max(float(jnp.finfo(t).eps) for t in types if jnp.issubdtype(t, jnp.floating))
        if roles is None:
            return np.full_like(size, np.sqrt(epsilon) * size.max())
        incoming, outgoing = _units(self.params, roles)
        reach = np.linalg.norm(np.asarray(self.x, np.float64).reshape(self.count, -1), axis=1) + 1
        weight = np.linalg.norm(incoming, axis=1) @ np.abs(outgoing)
        terms = incoming.shape[1] + len(incoming)
        return ROUNDING * np.sqrt(terms) * epsilon * (size + self.network.factor * reach[:, None] * weight[None])


@partial(jax.jit, static_argnums=0)
def _sums(network: MultiBranch, params: Params, x: Any) -> Any:
    one = one_example(network.branches[0], _first(params), _first(x))
    of = jax.vmap(jax.vmap(one, (None, 0)), (0, None))

    def part(w: Params) -> Any:
        f = of(w, x)
        f = f.reshape(*f.shape[:2], -1)
        return f.sum(0), jnp.abs(f).sum(0)

    found = chunked_sum(part, params, network.branch_chunk or BRANCHES_AT_A_TIME)
    return jax.tree.map(lambda f: network.factor * f, found)


def _align_units(reference: Params, params: Params, roles: _Roles) -> Params:
    mine, theirs = _units(params, roles), _units(reference, roles)
    order = _assign(*(np.concatenate(_balanced(*units), 1) for units in (theirs, mine)))
    incoming, outgoing = _balanced(*(part[order] for part in mine))
    size, weight = (np.linalg.norm(part, axis=1) for part in theirs)
    stretch = np.sqrt(np.where(size * weight > 0, size, 1.0) / np.where(size * weight > 0, weight, 1.0))[:, None]
    return _joined(params, roles, incoming * stretch, outgoing / stretch)


def _assign(reference: np.ndarray, params: np.ndarray) -> np.ndarray:
    """order[i]: the row of params that belongs to row i of the reference."""
    if len(reference) > MOST:
        raise ValueError(
            f"Aligning takes at most {MOST:,} branches or units; got {len(reference):,}, whose inner products fill "
            f"{8 * len(reference) ** 2 / 2**30:.0f} GiB."
        )
    return linear_sum_assignment(reference @ params.T, maximize=True)[1]


def _check(name: str, wanted: Params, given: Params) -> None:
    shapes = [jax.tree.map(lambda leaf: tuple(leaf.shape), tree) for tree in (wanted, given)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"{name} must have the shapes of the problem's network, {shapes[0]}; got {shapes[1]}.\n"
            "  Align one solution at a time, without an axis of seeds."
        )
    if not all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(given)):
        raise ValueError(f"{name} holds values that are not finite.\n  Align solutions whose training did not diverge.")


def _part(x: Any, start: int, stop: int) -> Any:
    return jax.tree.map(lambda leaf: on_disk.rows(leaf, slice(start, stop)), x)


def _first(params: Params) -> Params:
    return jax.tree.map(lambda leaf: leaf[0], params)


def _rows(leaf: Any) -> np.ndarray:
    return np.asarray(leaf, np.float64).reshape(len(leaf), -1)


def _one_hidden_layer(given: _Outputs) -> _Roles | None:
    """The roles of the leaves if the branch computes W_2 [W_1 x + b_1]_+ + b_2 on random probes, else None."""
    branch, one, x = given.network.branches[0], _first(given.params), given.x
    leaves, structure = jax.tree.flatten(one)
    candidates = [roles for roles in _assignments([leaf.shape for leaf in leaves]) if len(leaves) <= 4]
    if not candidates or not hasattr(x, "dtype") or not jnp.issubdtype(x.dtype, jnp.floating):
        return None
    rng = np.random.default_rng(0)
    probe = [np.asarray(rng.normal(size=leaf.shape), leaf.dtype) for leaf in leaves]
    inputs = np.asarray(rng.normal(size=(PROBES, *x.shape[1:])), x.dtype)
    apply = jax.vmap(one_example(branch, one, jnp.asarray(inputs[0])), (None, 0))
    found = np.asarray(apply(jax.tree.unflatten(structure, probe), jnp.asarray(inputs)), np.float64)
    flat = inputs.reshape(PROBES, -1).astype(np.float64)
    for roles in candidates:
        if flat.shape[1] != probe[roles.first].shape[0]:
            continue
        expected = _formula(probe, roles, flat)
        if expected.shape == found.shape and np.allclose(expected, found, rtol=1e-3, atol=1e-3 * np.abs(found).max()):
            return roles
    return None


def _assignments(shapes: list[tuple[int, ...]]) -> list[_Roles]:
    """All ways to read the leaves as two kernels (inputs first, as flax has them) and up to two biases."""
    found = []
    for first, last in permutations([k for k, shape in enumerate(shapes) if len(shape) == 2], 2):
        hidden, outputs = shapes[last]
        rest = [k for k in range(len(shapes)) if k not in (first, last)]
        for pair in permutations([*rest, -1, -1], 2):
            sizes = [shapes[k] if k >= 0 else size for k, size in zip(pair, ((hidden,), (outputs,)), strict=True)]
            if shapes[first][1] == hidden and sizes == [(hidden,), (outputs,)] and set(rest) <= set(pair):
                found.append(_Roles(first, last, *pair))
    return list(dict.fromkeys(found))


def _formula(leaves: list[np.ndarray], roles: _Roles, x: np.ndarray) -> np.ndarray:
    first, last = leaves[roles.first].astype(np.float64), leaves[roles.last].astype(np.float64)
    hidden = x @ first + (leaves[roles.first_bias][None] if roles.first_bias >= 0 else 0.0)
    return np.maximum(hidden, 0) @ last + (leaves[roles.last_bias][None] if roles.last_bias >= 0 else 0.0)


def _units(params: Params, roles: _Roles) -> tuple[np.ndarray, np.ndarray]:
    """Incoming weights with the bias [I·h, D (+1)] and outgoing weights [I·h, C] of every unit."""
    leaves = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(params)]
    incoming = np.swapaxes(leaves[roles.first], 1, 2).reshape(-1, leaves[roles.first].shape[1])
    if roles.first_bias >= 0:
        incoming = np.column_stack([incoming, leaves[roles.first_bias].ravel()])
    return incoming, leaves[roles.last].reshape(-1, leaves[roles.last].shape[2])


def _balanced(incoming: np.ndarray, outgoing: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """c w and v / c with c = √(|v| / ‖w‖); units with w = 0 or v = 0 stay as they are."""
    size, weight = np.linalg.norm(incoming, axis=1), np.linalg.norm(outgoing, axis=1)
    alive = size * weight > 0
    c = np.sqrt(np.where(alive, weight, 1.0) / np.where(alive, size, 1.0))[:, None]
    return incoming * c, outgoing / c


def _joined(params: Params, roles: _Roles, incoming: np.ndarray, outgoing: np.ndarray) -> Params:
    """The parameters again, made of these units; the last layer's biases, which only add up, stay in place."""
    leaves, structure = jax.tree.flatten(params)
    count, inputs, hidden = leaves[roles.first].shape
    made: dict[int, np.ndarray] = {
        roles.first: np.swapaxes(incoming[:, :inputs].reshape(count, hidden, inputs), 1, 2),
        roles.last: outgoing.reshape(count, hidden, -1),
    }
    if roles.first_bias >= 0:
        made |= {roles.first_bias: incoming[:, inputs].reshape(count, hidden)}
    for k, value in made.items():
        leaves[k] = jnp.asarray(value.astype(leaves[k].dtype))
    return jax.tree.unflatten(structure, leaves)
