"""A traced network walked equation by equation, with the axes of arrays in place of their values."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core as jcore

from landscape.compiler.flatten import CALLS, DERIVED
from landscape.compiler.interpreter import Equation, interpret, needed, read
from landscape.symmetry.axes import Axis, atoms_of, is_pinned, pin, root, unify
from landscape.symmetry.rules import Axes, rule_of, shapes_of


class Trace:
    """Axes of all arrays of a program.

    Attributes:
        seen: The axes of every array that was met.
        unknown: Primitives without a rule that pinned axes, with their number.
    """

    def __init__(self) -> None:
        self.seen: list[Axes] = []
        self.unknown: Counter[str] = Counter()

    def run(self, jaxpr: jcore.Jaxpr, consts: Sequence[Any], inputs: Sequence[Axes]) -> list[Axes]:
        """The axes of a program's outputs.

        Args:
            jaxpr: The program.
            consts: The values of its constants.
            inputs: The axes of its inputs.
        """
        known = [*map(constant, consts), *inputs]
        env = dict(zip([*jaxpr.constvars, *jaxpr.invars], known, strict=True))
        interpret(needed(jaxpr), env, self._outputs, _literal)
        return [read(env, atom, _literal) for atom in jaxpr.outvars]

    def _outputs(self, e: Equation, xs: list[Axes]) -> list[Axes]:
        """The axes of an equation's outputs; where nothing is known, everything is pinned."""
        shapes = shapes_of(e)
        outs = self._entered(e, xs) or rule_of(e.primitive.name)(e, xs)
        if outs is None or [tuple(root(a).size for a in out) for out in outs] != shapes:
            self.unknown[e.primitive.name] += not all(is_pinned(a) for x in xs for a in x)
            _pin_all(xs)
            outs = [atoms_of(shape, True) for shape in shapes]
        self.seen += outs
        return outs

    def _entered(self, e: Equation, xs: list[Axes]) -> list[Axes] | None:
        """The axes of the outputs of a call, a loop or a condition."""
        name, p = e.primitive.name, e.params
        if name in CALLS | DERIVED:
            return self._called(p.get("jaxpr", p.get("call_jaxpr", p.get("fun_jaxpr"))), xs)
        loops = {"scan": self._scan, "while": self._while, "cond": self._condition}
        return loops[name](p, xs) if name in loops else None

    def _called(self, inner: Any, xs: Sequence[Axes]) -> list[Axes]:
        closed = isinstance(inner, jcore.ClosedJaxpr)
        return self.run(inner.jaxpr, inner.consts, xs) if closed else self.run(inner, (), xs)

    def _scan(self, p: dict[str, Any], xs: list[Axes]) -> list[Axes]:
        """Steps keep their order; the carry leaves a step as it entered."""
        fixed, carried = p["num_consts"], p["num_consts"] + p["num_carry"]
        for x in xs[carried:]:
            pin(x[0])
        outs = self._called(p["jaxpr"], [*xs[:carried], *(x[1:] for x in xs[carried:])])
        last, stacked = outs[: carried - fixed], outs[carried - fixed :]
        _unify_all(xs[fixed:carried], last)
        return [*last, *([Axis(p["length"], pinned=True), *out] for out in stacked)]

    def _while(self, p: dict[str, Any], xs: list[Axes]) -> list[Axes]:
        tested, fixed = p["cond_nconsts"], p["cond_nconsts"] + p["body_nconsts"]
        carry = xs[fixed:]
        self._called(p["cond_jaxpr"], [*xs[:tested], *carry])
        _unify_all(carry, self._called(p["body_jaxpr"], [*xs[tested:fixed], *carry]))
        return carry

    def _condition(self, p: dict[str, Any], xs: list[Axes]) -> list[Axes]:
        first, *others = (self._called(branch, xs[1:]) for branch in p["branches"])
        for other in others:
            _unify_all(first, other)
        return first


def _pin_all(several: Sequence[Axes]) -> None:
    for axes in several:
        for axis in axes:
            pin(axis)


def _unify_all(several: Sequence[Axes], others: Sequence[Axes]) -> None:
    for one, other in zip(several, others, strict=True):
        for a, b in zip(one, other, strict=True):
            unify(a, b)


def _literal(atom: jcore.Literal) -> Axes:
    return constant(atom.val)


def constant(value: Any) -> Axes:
    """The axes of a constant, pinned where its entries differ along them."""
    if jnp.issubdtype(jnp.result_type(value), jax.dtypes.extended):  # random keys
        return atoms_of(jnp.shape(value), True)
    array = np.asarray(value)
    same = [n < 2 or bool(np.all(array == np.take(array, [0], k))) for k, n in enumerate(array.shape)]
    return [Axis(n, pinned=not equal) for n, equal in zip(array.shape, same, strict=True)]
