"""Rescalings of units that leave the outputs unchanged: exponents e with f(c^e w) = f(w) for every c > 0.

They are null vectors of the derivatives by log c, ⟨w_m, ∂f/∂w_m⟩ of every unit's members m, so no rule for any
primitive is needed: ReLU gives (1, 1, −1) for kernel, bias and next kernel, an attention head (1, −1) for q and k.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from landscape.arrays import trees
from landscape.symmetry.blocks import Blocks, Layout, Symmetry, rows
from landscape.symmetry.probes import Branch, Probe, Wide
from landscape.symmetry.symmetries import Symmetries

Params = Any
Array = np.ndarray

FAR = 40.0
"""log c beyond which there is no least norm: such a rescaling is left out."""
POWER = 4
"""Largest exponent."""
SWEEPS = 200
CONVERGED = 1e-9
"""Largest log c of a sweep after which parameters are balanced."""


class Rescaling(NamedTuple):
    """A factor c^e of every unit's part of a member leaves the outputs unchanged, for every unit and c > 0.

    Attributes:
        symmetry: The units.
        place: Of the symmetry among those found.
        exponents: e of every member.
    """

    symmetry: Symmetry
    place: int
    exponents: tuple[float, ...]

    def applied(self, blocks: Sequence[Array], log: Array) -> Blocks:
        """Blocks [K, ...] times c^e, for log c [K, S, n]."""
        scaled = list(blocks)
        for m, (b, _) in enumerate(self.symmetry.members):
            if self.exponents[m]:
                own = self.symmetry.own(m, 1)
                factor = np.exp(self.exponents[m] * (log if self.symmetry.within else log[:, 0]))
                factor = factor.reshape(*factor.shape, *(1,) * (scaled[b].ndim - factor.ndim))
                scaled[b] = scaled[b] * np.moveaxis(factor, range(1, len(own) + 1), own)
        return scaled

    def sums(self, blocks: Sequence[Array]) -> Array:
        """The sum of every unit's numbers in every member, [M, K, S, n]."""
        found = []
        for m, (b, _) in enumerate(self.symmetry.members):
            total = rows(blocks[b], (0, *self.symmetry.own(m, 1))).sum(-1)
            found.append(total if self.symmetry.within else total[:, None])
        return np.stack(found)


def find(branch: Branch, symmetries: Symmetries, *, seed: int = 0) -> tuple[Rescaling, ...]:
    """All rescalings of the units found, verified with factors far from one on random numbers.

    Args:
        branch: The network.
        symmetries: Its permutations.
        seed: Of the random numbers.
    """
    if not symmetries.found:
        return ()
    rng, layout = np.random.default_rng(seed), symmetries.layout
    probe = Probe(branch, rng, x=jax.tree.map(lambda leaf: _stretched(rng, leaf), branch.x))
    tolerance = np.sqrt(branch.outputs.epsilon)
    try:
        derivatives = _derivatives(probe, layout, rng)
    except Exception:  # programs without a derivative say so each in its own way
        return ()
    found = []
    for place, s in enumerate(symmetries.found):
        plain = Rescaling(s, place, (1.0,) * len(s.members))
        matrix = np.concatenate([plain.sums(blocks).reshape(len(s.members), -1).T for blocks in derivatives])
        several = [plain._replace(exponents=e) for e in null_vectors(matrix, tolerance)]
        found += [r for r in several if _holds(r, probe, layout, rng)]
    return tuple(found)


def _stretched(rng: np.random.Generator, x: Array) -> Array:
    """Examples 0.1 to 1,000 times as large: an activation that is a ReLU on small inputs only shows there."""
    if not trees.is_parameter(x):
        return x
    return x * 10 ** rng.uniform(-1, 3, (len(x), *(1,) * (x.ndim - 1))).astype(x.dtype)


def _derivatives(probe: Probe, layout: Layout, rng: np.random.Generator) -> list[Blocks]:
    """Blocks [1, ...] of w ∂⟨g, f⟩/∂w for random directions g, one example after the other."""
    one, (params,) = probe.branch.one, probe.params
    first = jax.tree.map(lambda leaf: leaf[0], probe.x)
    g: Any = jax.eval_shape(one, params, first)

    def pulled(w: Params, x: Any, g: Any) -> Params:
        gradient = jax.grad(lambda v: jnp.vdot(g, one(v, x)), allow_int=True)(w)
        return jax.tree.map(lambda a, b: a * b if trees.is_parameter(a) else jnp.zeros(a.shape), w, gradient)

    f, found = Wide(pulled, params, first, g), []
    for k in range(len(jax.tree.leaves(probe.x)[0])):
        x = jax.tree.map(lambda leaf, k=k: leaf[k], probe.x)
        blocks = layout.explode(f(params, x, rng.normal(size=g.shape)))
        found.append([np.nan_to_num(block)[None] for block in blocks])
    return found


def null_vectors(matrix: Array, tolerance: float) -> list[tuple[float, ...]]:
    """A basis of the null space in reduced form, of those vectors whose entries are multiples of a half.

    >>> null_vectors(np.array([[1.0, 1.0, 2.0], [0.0, 3.0, 3.0]]), 1e-9)
    [(1.0, 1.0, -1.0)]
    """
    size = np.abs(matrix).max(1, keepdims=True)
    _, values, basis = np.linalg.svd(matrix / np.where(size > 0, size, 1))
    rank = int((values > tolerance * max(values.max(), 1e-300)).sum())
    found = [2 * vector for vector in _reduced(basis[rank:])]
    found = [v for v in found if np.abs(v - np.round(v)).max() < 1e3 * tolerance and np.abs(v).max() <= 2 * POWER]
    return [tuple((np.round(v) / 2).tolist()) for v in found]


def _reduced(basis: Array) -> Array:
    """The reduced row echelon form of independent rows."""
    basis, row = basis.copy(), 0
    for column in range(basis.shape[1]):
        if row == len(basis):
            break
        pivot = row + int(np.argmax(np.abs(basis[row:, column])))
        if abs(basis[pivot, column]) > 1e-4:
            basis[[row, pivot]] = basis[[pivot, row]]
            basis[row] /= basis[row, column]
            others = np.arange(len(basis)) != row
            basis[others] -= np.outer(basis[others, column], basis[row])
            row += 1
    return basis


def _holds(rescaling: Rescaling, probe: Probe, layout: Layout, rng: np.random.Generator) -> bool:
    """Whether random factors leave the outputs of a probe unchanged."""
    blocks = [block[None] for block in layout.explode(probe.params[0])]
    log = rng.normal(size=rescaling.sums(blocks).shape[1:])
    moved = layout.assemble([block[0] for block in rescaling.applied(blocks, log)])
    return probe.change([moved]) <= 10 * probe.branch.tolerance


def balance(blocks: Sequence[Array], rescalings: Sequence[Rescaling]) -> tuple[Blocks, list[Array]]:
    """The rescaled parameters of least norm, and log c [K, S, n] of every rescaling.

    Of every unit, the parts P that grow as c^a and Q that shrink as c^−b are weighed: a ‖P‖² = b ‖Q‖² at the least
    norm. Units of which one part is zero stay as they are, as do rescalings with other exponents, or whose norm falls
    for ever.

    Args:
        blocks: [K, ...].
        rescalings: Those of the network.
    """
    start, blocks = blocks, list(blocks)
    logs = [np.zeros(r.sums(blocks).shape[1:]) for r in rescalings]
    for _ in range(SWEEPS):
        largest = 0.0
        for r, log in zip(rescalings, logs, strict=True):
            step = _step(r, blocks)
            log += step
            blocks = r.applied(blocks, step)
            largest = max(largest, float(np.abs(step).max(initial=0)))
        far = [float(np.abs(log).max(initial=0)) for log in logs]
        if max(far, default=0) > FAR:
            still = [
                r._replace(exponents=(0.0,) * len(r.exponents)) if f > FAR else r
                for r, f in zip(rescalings, far, strict=True)
            ]
            return balance(start, still)
        if largest < CONVERGED:
            break
    return blocks, logs


def _step(rescaling: Rescaling, blocks: Sequence[Array]) -> Array:
    """log c of every unit that gives it the least norm while all others stay, [K, S, n]."""
    exponents = np.array(rescaling.exponents)
    squares = rescaling.sums([block**2 for block in blocks])
    up, down = sorted({*exponents[exponents > 0]}), sorted({*-exponents[exponents < 0]})
    if len(up) != 1 or len(down) != 1:
        return np.zeros(squares.shape[1:])
    grows, shrinks = (e * squares[exponents == s * e].sum(0) for e, s in ((up[0], 1), (down[0], -1)))
    alive = (grows > 0) & (shrinks > 0)
    ratio = np.where(alive, shrinks, 1) / np.where(alive, grows, 1)
    return np.log(ratio) / (2 * (up[0] + down[0]))
