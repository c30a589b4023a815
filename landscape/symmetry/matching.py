"""Weight matching over any symmetries: coordinate descent, one optimal assignment at a time [Ainsworth23].

Slices that hold units of their own, such as branches or attention heads, are matched by the best match of their units.
"""

from collections.abc import Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment

from landscape.symmetry.blocks import Blocks, Symmetry, permute, random_order
from landscape.symmetry.pairs import Found, Pairs, crossed, paired, roles_of

Array = np.ndarray

SWEEPS = 50
KEEP = 20
"""Candidates for a branch whose inner units are matched until nothing improves; the others are matched once."""
NUMBERS = 2**24
"""Numbers that a chunk of pairs holds at a time: 128 MiB."""
GAIN = 1e-12
"""Improvements of the inner product below this share are rounding."""


def match(
    found: Found, reference: Blocks, params: Blocks, *, keep: int = KEEP, restarts: int = 0, seed: int = 0
) -> tuple[Array, list[Array]]:
    """The permutations of branches and of their units that bring parameters closest to the reference's.

    Maximises Σ_i ⟨r_i, p_π(i)⟩, where every branch is permuted inside as suits its partner best.

    Args:
        found: Symmetries of one branch.
        reference: Blocks [I, ...] of the branches.
        params: Blocks [I, ...].
        keep: Candidates a branch that are refined, by their first match.
        restarts: Further descents of every matched pair from random permutations; the best counts.
        seed: Of these.

    Returns:
        The order [I] of the branches, and for every symmetry the orders [I, S, n] of the units: see `apply`.
    """
    order = np.arange(len(params[0]))
    if len(order) > 1:
        order = assign(slice_scores(found, reference, params, keep))
    pairs = _best(paired(found, reference, [p[order] for p in params]), restarts, np.random.default_rng(seed))
    return order, [pairs.orders[g] for g in range(len(found))]


def apply(found: Found, blocks: Blocks, order: Array, orders: Sequence[Array]) -> Blocks:
    """Blocks [I, ...] with branches and units in the orders that `match` returned."""
    blocks = [block[order] for block in blocks]
    for symmetry, inner in zip(found, orders, strict=True):
        blocks = permute(blocks, symmetry, inner)
    return blocks


def assign(scores: Array) -> Array:
    """The order [..., n] that maximises Σ_u scores[..., u, order[u]] of every matrix [..., n, n]."""
    best = scores.argmax(-1)
    contested = np.any(np.sort(best, -1) != np.arange(best.shape[-1]), -1)
    for k in map(tuple, np.argwhere(contested)):
        best[k] = linear_sum_assignment(scores[k], maximize=True)[1]
    return best


def slice_scores(found: Found, reference: Blocks, params: Blocks, keep: int = KEEP) -> Array:
    """The inner product of slice i of the reference and slice j with its units permuted to match, [I, J].

    Args:
        found: Symmetries of one slice.
        reference: Blocks [I, ...].
        params: Blocks [J, ...].
        keep: Candidates a row whose units are matched until nothing improves.
    """
    moving = roles_of(found, len(params)).moving
    size = 1 + sum(s.size**2 * s.slices(params, 1) for s in found) + 2 * sum(params[b][0].size for b in moving)
    chunk, scores = max(1, NUMBERS // (len(params[0]) * size)), []
    for start in range(0, len(reference[0]), chunk):
        pairs = _begun(crossed(found, [r[start : start + chunk] for r in reference], params))
        values = pairs.value()
        first = values.reshape(-1, len(params[0]))
        best = np.argpartition(-first, min(keep, first.shape[1]) - 1)[:, :keep]
        kept = (best + first.shape[1] * np.arange(len(first))[:, None]).ravel()
        values[kept] = _descended(pairs.some(kept)).value()
        scores.append(values.reshape(first.shape))
    return np.concatenate(scores)


def _best(pairs: Pairs, restarts: int, rng: np.random.Generator) -> Pairs:
    """The best of a descent and of some from random permutations, for every pair."""
    first = _begun(pairs)
    lost = np.nonzero(first.value() < pairs.value())[0]
    first.put(lost, pairs.some(lost))
    best = _descended(first)
    for _ in range(restarts):
        start = {g: random_order(rng, *order.shape) for g, order in pairs.orders.items()}
        other = _descended(pairs.permuted(start))
        better = np.nonzero(other.value() > best.value())[0]
        best.put(better, other.some(better))
    return best


def _begun(pairs: Pairs) -> Pairs:
    """Every symmetry matched once, on blocks in which nothing else is unknown; first the one of which most is known."""
    found, roles = pairs.found, pairs.roles
    touching = [[g for g, s in enumerate(found) for k, _ in s.members if k == b] for b in range(len(pairs.sizes))]
    known: set[int] = set()
    todo, pairs = {g for g, s in enumerate(found) if s.outer < 0}, pairs.some(np.arange(len(pairs.constant)))
    while todo:
        usable = {g: [b for b in _blocks(found[g]) if _is_known(touching[b], g, known, roles.children)] for g in todo}
        share = {g: _total(pairs, usable[g]) / (_total(pairs, _blocks(found[g])) or 1.0) for g in todo}
        g = max(sorted(todo), key=lambda g: share[g])
        pairs = pairs.permuted(_moves(pairs, g, usable[g]))
        known |= {g, *roles.children[g]}
        todo.remove(g)
    return pairs


def _blocks(symmetry: Symmetry) -> list[int]:
    return list(dict.fromkeys(b for b, _ in symmetry.members))


def _is_known(touching: list[int], g: int, known: set[int], children: list[list[int]]) -> bool:
    """Whether all other symmetries of a block are known, and it has one axis of this one."""
    return touching.count(g) == 1 and set(touching) <= known | {g, *children[g]}


def _total(pairs: Pairs, blocks: Sequence[int]) -> float:
    return sum(pairs.sizes[b] for b in blocks)


def _descended(pairs: Pairs) -> Pairs:
    """Every symmetry matched in turn until no pair improves."""
    pairs, active = pairs.some(np.arange(len(pairs.constant))), np.arange(len(pairs.constant))
    top = [g for g, s in enumerate(pairs.found) if s.outer < 0]
    if len(top) == 1 and not pairs.params:
        return pairs  # one optimal assignment
    for _ in range(SWEEPS):
        some, changed = pairs.some(active), np.zeros(len(active), bool)
        for g in top:
            some, moved = _improved(some, g)
            changed |= moved
        pairs.put(active, some)
        active = active[changed]
        if not len(active):
            break
    return pairs


def _improved(pairs: Pairs, g: int) -> tuple[Pairs, Array]:
    """The pairs after one assignment, where it raises the inner product, and which these are.

    Where an axis meets itself in a block, or units are matched inside, the assignment need not be an improvement.
    """
    moves = _moves(pairs, g, pairs.roles.moving)
    trial, before = pairs.permuted(moves), pairs.value()
    better = trial.value() > before + GAIN * np.abs(before)
    if better.all():
        return trial, better
    kept = {h: np.where(better[:, None, None], order, np.arange(order.shape[-1])) for h, order in moves.items()}
    return (pairs.permuted(kept) if better.any() else pairs), better


def _moves(pairs: Pairs, g: int, usable: Sequence[int]) -> dict[int, Array]:
    """The best orders of one symmetry, and of those within its slices, while all others stay."""
    if pairs.roles.children[g]:
        return _nested(pairs, g, [b for b in _blocks(pairs.found[g]) if b in usable])
    scores = pairs.scores(g, usable)
    return {} if scores is None else {g: assign(scores)}


def _nested(pairs: Pairs, g: int, usable: Sequence[int]) -> dict[int, Array]:
    """Slices matched with the units inside them, pair by pair."""
    axes = dict(pairs.found[g].members)
    usable = [b for b in usable if [k for k, _ in pairs.found[g].members].count(b) == 1]
    if not usable:
        return {}
    inside, places = _inside(pairs.found, g, {b: axes[b] for b in usable})
    several: dict[int, list[Array]] = {h: [] for h in (g, *places)}
    for k in range(len(pairs.constant)):
        r, p = ([np.moveaxis(x[b][k], axes[b], 0) for b in usable] for x in (pairs.reference, pairs.params))
        order, orders = match(inside, r, p)
        several[g].append(order[None])
        for h, inner in zip(places, orders, strict=True):
            several[h].append(inner.reshape(-1, inner.shape[-1]))
    return {h: np.stack(found) for h, found in several.items()}


def _inside(found: Found, g: int, axes: dict[int, int]) -> tuple[list[Symmetry], list[int]]:
    """The symmetries within one slice, their blocks without the axis of slices, and their places in `found`."""
    blocks, local, places = list(axes), [], []
    for h, s in enumerate(found):
        members = tuple((blocks.index(b), a - (axes[b] < a)) for b, a in s.members if b in axes)
        if s.outer == g and members:
            local.append(Symmetry(s.size, members))
            places.append(h)
    return local, places
