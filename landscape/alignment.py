"""Branches are exchangeable: permute one solution's branches, and rescale its ReLU units, to match another's.

A sum over branches does not change when they change places, so two solutions that are equal up to a permutation look
as if a barrier lay between them. Aligning first removes that part of the non-convexity [Ainsworth23].
"""

from itertools import permutations
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import linear_sum_assignment

from landscape.networks import Network, one_example
from landscape.problem import Problem

Params = Any
By = Literal["auto", "units", "parameters", "outputs"]

MOST = 20_000
PROBES = 8


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
    ‖w‖ = |v|, and each takes the ratio ‖w‖ / |v| of its match. Outputs stay the same up to rounding.

    Args:
        problem: Its network names the branches; its data serve `by="outputs"`.
        reference: Parameters that stay as they are; see `balance`.
        params: Parameters to align; not changed.
        by: "units" as above; "parameters" or "outputs" permute whole branches by inner products of those; "auto"
            takes "units" where it applies and "parameters" elsewhere.
        examples: At most this many examples are used for `by="outputs"`.

    Raises:
        ValueError: The parameters do not fit the network, `by` is unknown or does not apply, or a group has more than
            20,000 branches or units, beyond which the matrix of inner products no longer fits.
    """
    if by not in ("auto", "units", "parameters", "outputs"):
        raise ValueError(f'by must be "auto", "units", "parameters" or "outputs"; got {by!r}.')
    wanted = problem.shapes
    for name, given in (("reference", reference), ("params", params)):
        _check_shapes(name, wanted, given)
    x, groups = problem.data.x[:examples], problem.network.groups
    pairs = zip(groups(reference), groups(params), strict=True)
    aligned = [_align_group(branch, r, p, x, by) for (branch, r), (_, p) in pairs]
    return aligned[0] if isinstance(problem.network.branch, Network) else tuple(aligned)


def balance(problem: Problem, params: Params) -> Params:
    """The same network, every ReLU unit of one-hidden-layer branches rescaled so that ‖w‖ = |v|; others as they are.

    [w·x]_+ v = [c w·x]_+ v / c for c > 0; with ‖w‖ = |v| the norm is least.
    """
    network = problem.network
    balanced = []
    for branch, w in network.groups(params):
        roles = _one_hidden_layer(branch, w, problem.data.x)
        balanced.append(w if roles is None else _joined(w, roles, *_balanced(*_units(w, roles))))
    return balanced[0] if isinstance(network.branch, Network) else tuple(balanced)


def _align_group(branch: Network, reference: Params, params: Params, x: Any, by: By) -> Params:
    roles = _one_hidden_layer(branch, params, x) if by in ("auto", "units") else None
    if roles is not None:
        return _align_units(reference, params, roles)
    if by == "units":
        raise ValueError(
            'by="units" needs branches with one hidden layer of ReLU units; this one is something else.\n'
            '  Use by="parameters" or by="outputs".'
        )
    if by == "outputs":
        outputs = jax.jit(jax.vmap(jax.vmap(one_example(branch, _first(params), x[0]), (None, 0)), (0, None)))
        features = [np.asarray(outputs(w, x), np.float64) for w in (reference, params)]
    else:
        features = [np.concatenate([_rows(leaf) for leaf in jax.tree.leaves(w)], 1) for w in (reference, params)]
    order = _assign(*(f.reshape(len(f), -1) for f in features))
    return jax.tree.map(lambda leaf: leaf[order], params)


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


def _check_shapes(name: str, wanted: Params, given: Params) -> None:
    shapes = [jax.tree.map(lambda leaf: tuple(leaf.shape), tree) for tree in (wanted, given)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"{name} must have the shapes of the problem's network, {shapes[0]}; got {shapes[1]}.\n"
            "  Align one solution at a time, without an axis of seeds."
        )


def _first(params: Params) -> Params:
    return jax.tree.map(lambda leaf: leaf[0], params)


def _rows(leaf: Any) -> np.ndarray:
    return np.asarray(leaf, np.float64).reshape(len(leaf), -1)


def _one_hidden_layer(branch: Network, params: Params, x: Any) -> _Roles | None:
    """The roles of the leaves if the branch computes W_2 [W_1 x + b_1]_+ + b_2 on random probes, else None."""
    one = _first(params)
    leaves, structure = jax.tree.flatten(one)
    candidates = [roles for roles in _assignments([leaf.shape for leaf in leaves]) if len(leaves) <= 4]
    if not candidates:
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
