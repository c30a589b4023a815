"""Permutations of a network's units that leave its outputs unchanged: read off its trace, verified on numbers."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from landscape.checkpoints import words
from landscape.symmetry.axes import Axis, atoms, atoms_of, pin
from landscape.symmetry.blocks import Layout, Symmetry, generators, permute
from landscape.symmetry.probes import Branch, One, Probe
from landscape.symmetry.trace import Trace

Params = Any
PROBES = 2


class Symmetries(NamedTuple):
    """What was found in a network.

    Attributes:
        layout: The parameters as blocks.
        found: The symmetries, those that permute slices before those within the slices.
        dropped: Symmetries of the trace that changed the outputs on numbers; they are not used.
        unknown: Primitives without a rule, with their number.
        readers: (block, axis) of blocks whose axes from that one on are the axes of the example, one array: the kernels
            of dense layers that read it.
    """

    layout: Layout
    found: tuple[Symmetry, ...]
    dropped: tuple[Symmetry, ...]
    unknown: dict[str, int]
    readers: tuple[tuple[int, int], ...]

    def leaves(self, symmetry: Symmetry) -> list[str]:
        """Names of the leaves that a symmetry permutes."""
        owners = self.layout.owners
        return [self.layout.names[k] for k in dict.fromkeys(owners[b][0] for b, _ in symmetry.members)]


def find(branch: Branch, *, seed: int = 0) -> Symmetries:
    """All permutations of units found in the trace that leave the outputs unchanged on random numbers.

    Args:
        branch: The network.
        seed: Of the random parameters and permutations.
    """
    layout, trace, read = _traced(branch.one, branch.params, jax.tree.map(lambda leaf: leaf[0], branch.x))
    rng = np.random.default_rng(seed)
    probes = [Probe(branch, rng) for _ in range(PROBES)]
    members, partners = _members(layout), _companions(trace.seen)
    nested = {a: [o for o in partners.get(a, ()) if o in members] for a in members}
    found, dropped, place = [], [], {}
    for a in sorted(members, key=lambda a: len(nested[a])):  # slices come before what is within them
        if a.pinned:
            continue
        tried = list(_candidates(a, members, nested[a], place, layout))
        right = next((s for s in tried if _holds(s, layout, probes, rng)), None)
        if right is None:
            dropped.append(tried[-1])
        else:
            place[a] = len(found)
            found.append(right)
    return Symmetries(layout, tuple(found), tuple(dropped), dict(+trace.unknown), _readers(layout, read))


def _traced(one: One, params: Params, example: Any) -> tuple[Layout, Trace, list[list[Axis]]]:
    """The network walked with axes for values, and those of its inputs: inputs and outputs keep their order."""
    leaves, structure = jax.tree.flatten(params)
    shapes = [jax.ShapeDtypeStruct(np.shape(t), t.dtype) for t in leaves]
    closed = jax.make_jaxpr(lambda w, x: one(jax.tree.unflatten(structure, w), x))(shapes, example)
    trace, axes = Trace(), [atoms_of(np.shape(leaf)) for leaf in leaves]
    avals: list[Any] = [v.aval for v in closed.jaxpr.invars[len(leaves) :]]
    trace.seen += axes
    read = [atoms_of(aval.shape, True) for aval in avals]
    outs = trace.run(closed.jaxpr, closed.consts, [*axes, *read])
    for axis in (axis for out in outs for axis in out):
        pin(axis)
    names = [".".join(words(path)) or "parameters" for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    return Layout(structure, tuple(names), tuple(map(tuple, axes))), trace, read


def _readers(layout: Layout, read: Sequence[Sequence[Axis]]) -> tuple[tuple[int, int], ...]:
    """Blocks with all axes of the one input, in order, and where these begin."""
    wanted = [a for axis in read[0] for a in atoms(axis)] if len(read) == 1 else []
    several = [(b, owned, k) for b, (_, owned) in enumerate(layout.owners) for k in range(len(owned))]
    return tuple((b, k) for b, owned, k in several if wanted and owned[k : k + len(wanted)] == wanted)


def _members(layout: Layout) -> dict[Axis, list[tuple[int, int]]]:
    """Where every atom occurs among the blocks; a single unit has to occur twice, it can only be rescaled."""
    members: dict[Axis, list[tuple[int, int]]] = {}
    for b, (_, owned) in enumerate(layout.owners):
        for k, a in enumerate(owned):
            members.setdefault(a, []).append((b, k))
    return {a: several for a, several in members.items() if a.size > 1 or len(several) > 1}


def _companions(seen: Sequence[Sequence[Axis]]) -> dict[Axis, set[Axis]]:
    """The atoms that every array has in which an atom occurs."""
    together: dict[Axis, set[Axis]] = {}
    for axes in seen:
        here = [a for axis in axes for a in atoms(axis)]
        for a in set(here):
            others = {o for o in here if o is not a}
            together[a] = together[a] & others if a in together else others
    return together


def _candidates(
    a: Axis,
    members: dict[Axis, list[tuple[int, int]]],
    nested: Sequence[Axis],
    place: dict[Axis, int],
    layout: Layout,
) -> Iterator[Symmetry]:
    """One permutation for every slice along an axis that is always there, the largest group first; then one for all."""
    owners, mine = layout.owners, tuple(members[a])
    for other in sorted(nested, key=lambda o: (o in place, o.size), reverse=True):
        at = [[k for k, t in enumerate(owners[b][1]) if t is other] for b, _ in mine]
        if all(len(k) == 1 for k in at):
            yield Symmetry(a.size, mine, tuple(k for (k,) in at), place.get(other, -1))
    yield Symmetry(a.size, mine)


def _holds(symmetry: Symmetry, layout: Layout, probes: Sequence[Probe], rng: np.random.Generator) -> bool:
    """Whether permutations that generate all others leave the outputs of every probe unchanged."""
    for probe in probes:
        blocks = [block[None] for block in layout.explode(probe.params[0])]
        for order in generators(rng, 1, symmetry.slices(blocks, 1), symmetry.size):
            moved = layout.assemble([block[0] for block in permute(blocks, symmetry, order)])
            if probe.change([moved]) > probe.branch.tolerance:
                return False
    return True
