"""The staged restriction of any branch to a plane: trace one branch on one example, run all of them in lanes.

On the plane w(a, b) = o + a u + b v a parameter is the triple (o, u, v), and so is every value that is linear in the
parameters: the first layer of a network, whatever its kind. `trace` finds, once and without computing anything, which
equations of a branch keep their values affine on the plane and where that prefix ends. `Restriction` then runs in
three stages, so that a grid pays for each of them as rarely as possible:

    prefix  once a chunk of examples and branches: the triples at which the affine prefix ends; most of the arithmetic
    row     once a grid row b: o + b v
    at      once a grid point a: (o + b v) + a u, and the rest of the network

With plain parameters instead of triples nothing is left after the first stage: it is the forward pass, in the same
layout. The sum over branches is folded into the last product.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core as jcore

from landscape.compiler import batch_rules, flatten
from landscape.compiler.batch_rules import Axes, Equation, Product

Tree = Any
Parts = tuple[jax.Array, ...]

LINEAR = frozenset(
    "neg reshape transpose broadcast_in_dim squeeze slice rev reduce_sum cumsum convert_element_type copy div "
    "reduce_window_sum dynamic_slice gather".split()
)
"""Linear in the first operand; further operands must not depend on the plane."""
JOINTLY_LINEAR = frozenset("add sub add_any concatenate pad select_n".split())
BILINEAR = frozenset({"mul", "dot_general", "conv_general_dilated"})
MOVERS = frozenset("reshape squeeze transpose neg broadcast_in_dim reduce_sum add sub add_any".split())
"""Linear with a rule of their own: the sum over branches may be taken before them."""

CONSTANT, AFFINE, LATE = 0, 1, 2
"""Stages: independent of the plane; a triple (o, u, v); known only at a grid point."""


class Fact(NamedTuple):
    """What is known of a value before anything is computed."""

    axes: Axes
    stage: int = CONSTANT


def trace(
    f: Callable[[Tree, jax.Array], jax.Array],
    params: Tree,
    example: Any,
    staged: bool = True,
    values_only: bool = False,
) -> "Restriction":
    """Trace a branch on one example and stage it.

    Args:
        f: One branch on one example: params, x [...] -> outputs [C].
        params: Its parameters, or their shapes.
        example: One example, or its shape and type.
        staged: True for parameters on a plane (triples), False for plain ones.
        values_only: Whether the result is faster but not to be differentiated.
    """
    how = flatten.How(values_only, products=not values_only and jax.default_backend() == "cpu")
    found = Restriction(flatten.flat(jax.make_jaxpr(f)(params, example), how), staged, values_only)
    if found.axes(found.output).example:
        return found
    # Outputs that are the same for every example: one zero of the example gives them its axis.
    return trace(lambda w, x: f(w, x) + 0 * x.reshape(-1)[:1], params, example, staged, values_only)


class Cut(NamedTuple):
    """Operand of a late equation that is known before the grid point: a triple, or independent of the plane."""

    equation: int
    operand: int


@dataclass(frozen=True, eq=False)
class Restriction:
    """A branch, staged; see the module's text.

    Attributes:
        closed: The branch on one example as one flat list of equations; inputs are the leaves of params, then x.
        staged: Whether the parameters are triples.
        values_only: Whether it is never differentiated.
    """

    closed: jcore.ClosedJaxpr
    staged: bool
    values_only: bool = False

    @cached_property
    def equations(self) -> list[Equation]:
        """The equations in order."""
        return self.closed.jaxpr.eqns

    @cached_property
    def output(self) -> Any:
        """The variable of the outputs [C]."""
        return self.closed.jaxpr.outvars[0]

    @cached_property
    def summed(self) -> frozenset[Any]:
        """Variables from which the output follows linearly, and only once: held already summed over branches."""
        atoms = [v for e in self.equations for v in e.invars] + [self.output]
        uses = Counter(v for v in atoms if not isinstance(v, jcore.Literal))
        made = {v for e in self.equations for v in e.outvars}
        found = {v for v in (self.output,) if v in made and uses[v] == 1}
        for e in reversed(self.equations):
            if e.outvars[0] in found and e.primitive.name in MOVERS:
                variables = [v for v in e.invars if not isinstance(v, jcore.Literal)]
                found |= {v for v in variables if v in made and uses[v] == 1}
        return frozenset(found)

    @cached_property
    def facts(self) -> dict[Any, Fact]:
        """What is known of every variable."""
        jaxpr = self.closed.jaxpr
        stage = AFFINE if self.staged else CONSTANT
        facts = {v: Fact(Axes()) for v in jaxpr.constvars}
        facts |= {v: Fact(Axes(branch=True), stage) for v in jaxpr.invars[:-1]}
        facts[jaxpr.invars[-1]] = Fact(Axes(example=True))
        for e in jaxpr.eqns:
            ins = [Fact(Axes()) if isinstance(v, jcore.Literal) else facts[v] for v in e.invars]
            axes, stage = batch_rules.union([f.axes for f in ins]), _stage(e, [f.stage for f in ins])
            for v in e.outvars:
                facts[v] = Fact(axes._replace(branch=axes.branch and v not in self.summed), stage)
        return facts

    def axes(self, atom: Any) -> Axes:
        """The axes of a variable or literal."""
        return Axes() if isinstance(atom, jcore.Literal) else self.facts[atom].axes

    @cached_property
    def late(self) -> list[int]:
        """Positions of the equations that must wait for the grid point."""
        return [i for i, e in enumerate(self.equations) if self.facts[e.outvars[0]].stage == LATE]

    @cached_property
    def cuts(self) -> list[Cut]:
        """What the late equations read of the prefix."""
        found = []
        for i in self.late:
            e = self.equations[i]
            # A literal summand of the outputs counts once for each branch, so it is prepared like the rest.
            literals = self._moves(e)
            found += [
                Cut(i, j)
                for j, v in enumerate(e.invars)
                if (literals if isinstance(v, jcore.Literal) else self.facts[v].stage != LATE)
            ]
        return found

    @cached_property
    def early(self) -> bool:
        """Whether the outputs themselves are known before the grid point."""
        return isinstance(self.output, jcore.Literal) or self.facts[self.output].stage != LATE

    @cached_property
    def products(self) -> dict[int, Product]:
        """The plan of every product in which at most one factor has the example axis."""
        plans = {}
        for i, e in enumerate(self.equations):
            axes = [self.axes(v) for v in e.invars]
            if e.primitive.name == "dot_general" and not (axes[0].example and axes[1].example):
                fold = e.outvars[0] in self.summed and axes[0].branch and axes[1].branch
                plans[i] = batch_rules.product(e, axes, fold)
        return plans

    @cached_property
    def weights(self) -> dict[Any, Product]:
        """Parameters that serve only as the weight of a product with the examples: they can be laid out beforehand."""
        jaxpr = self.closed.jaxpr
        uses = Counter(v for e in self.equations for v in e.invars if not isinstance(v, jcore.Literal))
        found = {}
        for i, plan in self.products.items():
            weight, other = self.equations[i].invars[:: -1 if plan.swap else 1]
            if isinstance(weight, jcore.Literal):
                continue
            early = self.facts[self.equations[i].outvars[0]].stage != LATE
            if early and not plan.folds and self.axes(other).example and uses[weight] == 1:
                found[weight] = plan
        return {v: found[v] for v in jaxpr.invars[:-1] if v in found}

    def lay_out(self, params: Tree) -> Tree:
        """Parameters [I, ...] with every weight of the first layer laid out once, for `prefix(..., laid_out=True)`."""
        leaves, structure = jax.tree.flatten(params)
        pairs = zip(self.closed.jaxpr.invars, leaves, strict=False)
        return structure.unflatten([self.weights[v].lay_out(x) if v in self.weights else x for v, x in pairs])

    def prefix(self, params: Sequence[Tree], x: jax.Array, laid_out: bool = False) -> tuple[Parts, ...]:
        """The first stage.

        Args:
            params: The triple (o, u, v) of trees [I, ...] when staged, else one tree.
            x: Examples, last axis n.
            laid_out: Whether the trees come from `lay_out`.

        Returns:
            For each cut the triple, or the value alone where it does not depend on the plane; where nothing is late,
            the outputs instead.
        """
        jaxpr, count = self.closed.jaxpr, jax.tree.leaves(params[0])[0].shape[0]
        leaves = zip(*map(jax.tree.leaves, params), strict=True)
        env: dict[Any, Parts] = dict(zip(jaxpr.invars, [*leaves, (x,)], strict=True))
        env |= {v: (jnp.asarray(c),) for v, c in zip(jaxpr.constvars, self.closed.consts, strict=True)}

        def operand(i: int, j: int) -> Parts:
            atom = self.equations[i].invars[j]
            parts = (_literal(atom),) if isinstance(atom, jcore.Literal) else env[atom]
            ready = laid_out and not isinstance(atom, jcore.Literal) and atom in self.weights
            return parts if ready else tuple(self._prepare(i, j, p, count) for p in parts)

        for i, e in enumerate(self.equations):
            if self.facts[e.outvars[0]].stage != LATE:
                outs = self._parts(i, [operand(i, j) for j in range(len(e.invars))], count)
                env.update(zip(e.outvars, outs, strict=True))
        if not self.early:
            return tuple(operand(*cut) for cut in self.cuts)
        whole = self.output in self.summed
        return (tuple(p if whole else _total(p, self.axes(self.output), count) for p in env[self.output]),)

    def _parts(self, i: int, operands: list[Parts], count: int) -> list[Parts]:
        """One equation of the prefix, on triples where its value is affine."""
        name = self.equations[i].primitive.name

        def part(k: int, j: int) -> jax.Array:
            if len(operands[j]) > k:
                return operands[j][k]
            # A constant adds to the origin only; as a factor (or as a predicate) it goes with all three.
            adds = name in JOINTLY_LINEAR and not (name == "select_n" and j == 0)
            return jnp.zeros_like(operands[j][0]) if adds else operands[j][0]

        width = max(map(len, operands), default=1)
        outs = [self._run(i, [part(k, j) for j in range(len(operands))], count) for k in range(width)]
        return [tuple(parts) for parts in zip(*outs, strict=True)]

    def _moves(self, e: Equation) -> bool:
        return e.primitive.name in MOVERS and e.outvars[0] in self.summed

    def _prepare(self, i: int, j: int, value: jax.Array, count: int) -> jax.Array:
        """An operand as `_run` takes it: a product's weight laid out, a summand of the outputs summed over branches."""
        e = self.equations[i]
        atom = e.invars[j]
        if i in self.products:
            return self.products[i].lay_out(value) if j == self.products[i].swap else value
        if self._moves(e) and (isinstance(atom, jcore.Literal) or atom not in self.summed):
            return _total(value, self.axes(atom), count)
        return value

    def _run(self, i: int, values: list[jax.Array], count: int) -> list[jax.Array]:
        """One equation on prepared operands."""
        e, axes = self.equations[i], [self.axes(v) for v in self.equations[i].invars]
        if self._moves(e):
            return batch_rules.run(e, values, [a._replace(branch=False) for a in axes])
        if i in self.products:
            plan = self.products[i]
            outs = [plan.multiply(*(reversed(values) if plan.swap else values))]
            if plan.folds:
                return outs
        elif self.values_only and e.primitive.name == "max" and any(isinstance(v, jcore.Literal) for v in e.invars):
            outs = [_rectified(*(values if isinstance(e.invars[1], jcore.Literal) else values[::-1]))]
        else:
            outs = batch_rules.run(e, values, axes)
        both = batch_rules.union(axes)
        return [_total(o, both, count) if v in self.summed else o for v, o in zip(e.outvars, outs, strict=True)]

    def row(self, cuts: tuple[Parts, ...], b: jax.Array) -> tuple[Parts, ...]:
        """The second stage: every triple at b, as (o + b v, u)."""
        return tuple((p[0] + b * p[2], p[1]) if len(p) == 3 else p for p in cuts)

    def at(self, row: tuple[Parts, ...], a: jax.Array) -> jax.Array:
        """The third stage: outputs [C, n] at (a, b), summed over branches."""
        values = [p[0] + a * p[1] if len(p) == 2 else p[0] for p in row]
        if self.early:
            return values[0]
        known = dict(zip(self.cuts, values, strict=True))
        env: dict[Any, jax.Array] = {}

        def operand(i: int, j: int) -> jax.Array:
            atom = self.equations[i].invars[j]
            if (i, j) in known:
                return known[Cut(i, j)]
            return self._prepare(i, j, _literal(atom) if isinstance(atom, jcore.Literal) else env[atom], 0)

        for i in self.late:
            e = self.equations[i]
            outs = self._run(i, [operand(i, j) for j in range(len(e.invars))], 0)
            env.update(zip(e.outvars, outs, strict=True))
        return env[self.output] if self.output in self.summed else env[self.output].sum(0)


def _stage(e: Equation, stages: list[int]) -> int:
    name, top = e.primitive.name, max(stages, default=CONSTANT)
    if top != AFFINE:
        return top
    floating = all(jnp.issubdtype(_type(v), jnp.floating) for v in e.outvars)
    first_only = all(s == CONSTANT for s in stages[1:])
    joint = name in JOINTLY_LINEAR and not (name == "select_n" and stages[0] != CONSTANT)
    linear = (name in LINEAR and first_only) or (name in BILINEAR and stages.count(AFFINE) == 1) or joint
    return AFFINE if linear and floating else LATE


def _type(variable: Any) -> Any:
    return variable.aval.dtype


def _rectified(value: jax.Array, least: jax.Array) -> jax.Array:
    """max(value, least), nan for nan, as CPUs compute it faster than XLA's maximum; not to be differentiated."""
    return jnp.where(value < least, least, value)


def _literal(atom: Any) -> jax.Array:
    return jnp.asarray(atom.val, _type(atom))


def _total(value: jax.Array, axes: Axes, count: int) -> jax.Array:
    """Σ over branches of a value that each of the `count` branches has, or that all of them share."""
    return value.sum(0) if axes.branch else count * value
