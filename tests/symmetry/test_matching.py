"""Matching: permuted copies come back bit for bit, and on small networks the match is the best of all."""

from itertools import permutations, product

import jax
import numpy as np
import pytest

from landscape.networks import mlp_branch, one_example
from landscape.symmetry import matching, rescaling
from landscape.symmetry.blocks import Symmetry, permute, random_order
from landscape.symmetry.probes import Branch
from landscape.symmetry.symmetries import find

pytestmark = pytest.mark.slow


def shuffled(found, blocks, rng):
    """Blocks [I, ...] with branches and units in random order."""
    count = len(blocks[0])
    orders = [random_order(rng, count, s.slices(blocks, 1), s.size) for s in found]
    return matching.apply(found, blocks, rng.permutation(count), orders)


def branches(seed, count, widths=(9, 3, 4, 2)):
    """Random deep branches as blocks, and their symmetries."""
    network = mlp_branch(widths)
    keys = jax.random.split(jax.random.key(seed), count)
    params, x = jax.vmap(network.init)(keys), np.random.default_rng(seed).normal(size=(4, widths[0])).astype("f4")
    first = jax.tree.map(lambda t: t[0], params)
    one = one_example(network, first, jax.ShapeDtypeStruct(x.shape[1:], x.dtype))
    symmetries = find(Branch(one, first, x))
    return symmetries.found, [np.asarray(b, float) for b in symmetries.layout.explode(params, 1)]


def test_branches_permuted_outside_and_inside_and_rescaled_come_back(seed):
    found, blocks = branches(seed, 20)
    rng = np.random.default_rng(seed)
    copy = shuffled(found, blocks, rng)
    scales = [rescaling.Rescaling(s, k, (1.0, -1.0)) for k, s in enumerate(found)]
    for r in scales:  # ReLU: a unit's kernel may grow as the next one shrinks
        copy = r.applied(copy, rng.normal(size=(20, 1, r.symmetry.size)))
    blocks, copy = (rescaling.balance(part, scales)[0] for part in (blocks, copy))
    for keep in (1, 5, 20):
        back = matching.apply(found, copy, *matching.match(found, blocks, copy, keep=keep))
        for one, other in zip(back, blocks, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-7)


def value(reference, params):
    return sum(float(np.vdot(r, p)) for r, p in zip(reference, params, strict=True))


def test_scores_are_below_the_best_permutation_and_restarts_reach_it(seed):
    """All permutations of 3 and 4 units, one after the other."""
    found, blocks = branches(seed, 8)
    reference, params = ([b[part] for b in blocks] for part in (slice(0, 4), slice(4, 8)))
    scores = matching.slice_scores(found, reference, params)
    best = np.full((4, 4), -np.inf)
    for one, two in product(permutations(range(3)), permutations(range(4))):
        orders = [np.tile(np.array(order), (4, 1, 1)) for order in (one, two)]
        moved = [p.reshape(4, -1) for p in matching.apply(found, params, np.arange(4), orders)]
        best = np.maximum(best, sum(r.reshape(4, -1) @ p.T for r, p in zip(reference, moved, strict=True)))
    assert (scores <= best + 1e-9).all()
    assert scores.sum() > 0.7 * best.sum()
    for i, j in ((0, 1), (2, 3)):
        pair = [[b[k : k + 1] for b in part] for part, k in ((reference, i), (params, j))]
        moved = matching.apply(found, pair[1], *matching.match(found, *pair, restarts=60))
        assert value(pair[0], moved) == pytest.approx(best[i, j])
    order, orders = matching.match(found, reference, params)
    matched = matching.apply(found, params, order, orders)
    assert value(reference, matched) == pytest.approx(scores[np.arange(4), order].sum())


def test_pruning_chunks_and_restarts(seed, monkeypatch):
    """Keeping every candidate is no pruning; chunks change nothing; restarts never lose."""
    found, blocks = branches(seed, 12)
    reference, params = ([b[part] for b in blocks] for part in (slice(0, 6), slice(6, 12)))
    whole = matching.slice_scores(found, reference, params, keep=6)
    np.testing.assert_array_equal(matching.slice_scores(found, reference, params, keep=100), whole)
    assert (matching.slice_scores(found, reference, params, keep=2) <= whole + 1e-12).all()
    reached = [
        value(reference, matching.apply(found, params, *matching.match(found, reference, params, restarts=k)))
        for k in (0, 5)
    ]
    assert reached[1] >= reached[0]
    monkeypatch.setattr(matching, "NUMBERS", 1)
    np.testing.assert_allclose(matching.slice_scores(found, reference, params, keep=6), whole, rtol=1e-12)


def test_heads_are_matched_by_what_is_inside_them(seed):
    """[heads, inside, 5] with its heads and the units of each in other orders."""
    rng = np.random.default_rng(seed)
    found = (Symmetry(4, ((0, 0), (1, 1))), Symmetry(3, ((0, 1), (1, 0)), (0, 1), 0))
    blocks = [rng.normal(size=(1, 4, 3, 5)), rng.normal(size=(1, 3, 4, 6))]
    copy = shuffled(found, blocks, rng)
    order, orders = matching.match(found, blocks, copy)
    for back, block in zip(matching.apply(found, copy, order, orders), blocks, strict=True):
        np.testing.assert_array_equal(back, block)


def test_an_axis_that_meets_itself(seed):
    """A recurrent matrix [n, n], alone: the assignment is not exact, and never a loss."""
    rng = np.random.default_rng(seed)
    found = (Symmetry(6, ((0, 0), (0, 1), (1, 0))),)
    reference, params = ([rng.normal(size=(1, 6, 6)), rng.normal(size=(1, 6, 2))] for _ in range(2))
    matched = matching.apply(found, params, *matching.match(found, reference, params, restarts=3))
    assert value(reference, matched) >= value(reference, params)
    moved = permute(reference, found[0], random_order(rng, 1, 1, 6))
    back = matching.apply(found, moved, *matching.match(found, reference, moved))
    np.testing.assert_array_equal(back[0], reference[0])
