"""What is known of a traced branch before anything runs: which equations are affine on a plane, and what they cost.

On the plane w(a, b) = o + a u + b v a parameter is the triple (o, u, v), and so is every value that is linear in the
parameters: the first layer of a network, whatever its kind. `analyse` finds the equations that keep their values affine
on the plane, where that prefix ends, and which values are summed over branches early.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.extend import core as jcore

from landscape.compiler import batch_rules
from landscape.compiler.batch_rules import Axes, Product
from landscape.compiler.costs import Cost
from landscape.compiler.interpreter import Equation, interpret, is_variable, read

LINEAR = frozenset(
    "neg reshape transpose broadcast_in_dim squeeze slice rev reduce_sum cumsum convert_element_type copy div "
    "reduce_window_sum dynamic_slice gather".split()
)
"""These are linear in their first operand; the other operands must not depend on the plane."""
JOINTLY_LINEAR = frozenset("add sub add_any concatenate pad select_n".split())
BILINEAR = frozenset({"mul", "dot_general", "conv_general_dilated"})
MOVERS = frozenset("reshape squeeze transpose neg broadcast_in_dim reduce_sum add sub add_any".split())
"""These are linear and commute with the sum over branches."""

CONSTANT, AFFINE, NONLINEAR = 0, 1, 2
"""Degree of a value in the coordinates (a, b): 0 means the same on the whole plane, 1 means o + a u + b v."""


STILL = frozenset("reshape squeeze transpose broadcast_in_dim slice convert_element_type copy".split())
"""These do no arithmetic; they only move values."""
OUTPUTS = "outputs"
"""Name of the last step's result."""


class Fact(NamedTuple):
    """What is known of a value before anything is computed."""

    axes: Axes = Axes()
    degree: int = CONSTANT


class Residual(NamedTuple):
    """An operand of a nonlinear equation that is known before the grid point."""

    step: int
    operand: int


class Step(NamedTuple):
    """How one equation is run for all branches and examples.

    Attributes:
        equation: The equation; None for the last step, which only sums the outputs over branches.
        invars: Its operands: variables, literals, and in the nonlinear part residuals.
        outvars: Its outputs.
        axes: The axes of its operands.
        degree: The degree of its outputs in the coordinates of the plane.
        product: How a product runs in which at most one factor has the example axis.
        summed: Whether its outputs are held summed over branches.
        sums: Operands that are summed over branches before it runs.
        clips: Whether it is a maximum with a literal that may run as a selection.
    """

    equation: Any
    invars: tuple[Any, ...]
    outvars: tuple[Any, ...]
    axes: tuple[Axes, ...]
    degree: int
    product: Product | None
    summed: bool
    sums: tuple[bool, ...]
    clips: bool = False

    @property
    def name(self) -> str:
        """The name of its primitive."""
        return self.equation.primitive.name if self.equation else ""

    @property
    def moves(self) -> bool:
        """Whether it runs on operands that are summed over branches."""
        return self.summed and self.name in MOVERS

    @property
    def joint(self) -> tuple[bool, ...]:
        """Whether each operand is a summand. A constant summand belongs to the origin of a triple alone."""
        return tuple(
            self.name in JOINTLY_LINEAR and not (self.name == "select_n" and j == 0) for j in range(len(self.invars))
        )


@dataclass(frozen=True, eq=False)
class StagedBranch:
    """A branch on one example, analysed; `staged` runs it in three stages.

    Attributes:
        closed: The branch as one flat list of equations; its inputs are the leaves of the parameters, then those of x.
        steps: Every equation, and last the sum of the outputs over branches.
        prefix: Steps whose outputs are known before the grid point: constant or affine.
        nonlinear: The other steps, which run at every grid point.
        residuals: What `nonlinear` reads of the prefix.
        weights: Parameters used only as the weight of a product with the examples; they can be laid out beforehand.
        cost: Operations and values of one branch on one example.
    """

    closed: jcore.ClosedJaxpr
    steps: tuple[Step, ...]
    prefix: tuple[Step, ...]
    nonlinear: tuple[Step, ...]
    residuals: tuple[Residual, ...]
    weights: dict[Any, Product]
    cost: Cost

    def axes(self, residual: Residual) -> Axes:
        """The axes of a residual."""
        return self.steps[residual.step].axes[residual.operand]

    @property
    def affine(self) -> bool:
        """Whether the outputs themselves are affine, so that nothing is left but their sum over branches."""
        return len(self.nonlinear) == 1


def analyse(closed: jcore.ClosedJaxpr, inference: bool = False, inputs: int = 1, batched: bool = False) -> StagedBranch:
    """Divide a branch into its affine prefix and its nonlinear rest.

    Args:
        closed: The branch on one example, flat; inputs are the leaves of the parameters, then x.
        inference: Whether it is never differentiated.
        inputs: Number of arrays of an example.
        batched: Whether it is one branch on a batch instead: no value gets further axes, and `cost` counts nothing.
    """
    jaxpr, output = closed.jaxpr, closed.jaxpr.outvars[0]
    summed, params = frozenset() if batched else _summed(jaxpr), jaxpr.invars[:-inputs]
    facts = _facts(jaxpr, summed, inputs, batched)
    steps = [_step(e, facts, summed, inference) for e in jaxpr.eqns]
    whole, axes = output in summed, (facts[output].axes,)
    steps.append(Step(None, (output,), (OUTPUTS,), axes, NONLINEAR, None, whole, (not whole and not batched,)))
    nonlinear, residuals = [], []
    for i, step in enumerate(steps):
        if step.degree == NONLINEAR:
            known = [Residual(i, j) if _known(step, j, facts) else v for j, v in enumerate(step.invars)]
            residuals += [v for v in known if isinstance(v, Residual)]
            nonlinear.append(step._replace(invars=tuple(known)))
    return StagedBranch(
        closed,
        tuple(steps),
        tuple(step for step in steps if step.degree != NONLINEAR),
        tuple(nonlinear),
        tuple(residuals),
        _weights(jaxpr, params, steps, facts),
        _cost(params, steps[:-1], [r for r in residuals if r.step < len(jaxpr.eqns)], _live(jaxpr, facts)),
    )


def varies(closed: jcore.ClosedJaxpr, inputs: int) -> bool:
    """Whether the outputs of a branch depend on the example, its last `inputs` arguments."""
    facts = _facts(closed.jaxpr, frozenset(), inputs)
    return read(facts, closed.jaxpr.outvars[0], _literal).axes.example


def _summed(jaxpr: jcore.Jaxpr) -> frozenset[Any]:
    """Variables that are used once, and linearly, on the way to the output: only their sum over branches is held."""
    atoms = [v for e in jaxpr.eqns for v in e.invars] + [jaxpr.outvars[0]]
    uses = Counter(filter(is_variable, atoms))
    once = {v for e in jaxpr.eqns for v in e.outvars if uses[v] == 1}
    found = once & {jaxpr.outvars[0]}
    for e in reversed(jaxpr.eqns):
        if e.outvars[0] in found and e.primitive.name in MOVERS:
            found |= once.intersection(filter(is_variable, e.invars))
    return frozenset(found)


def _facts(jaxpr: jcore.Jaxpr, summed: frozenset[Any], inputs: int, batched: bool = False) -> dict[Any, Fact]:
    """The axes and the degree of every variable."""

    def rule(e: Equation, operands: list[Fact]) -> list[Fact]:
        axes, degree = batch_rules.union([f.axes for f in operands]), _degree(e, [f.degree for f in operands])
        return [Fact(axes._replace(branch=axes.branch and v not in summed), degree) for v in e.outvars]

    facts: dict[Any, Fact] = {v: Fact() for v in jaxpr.constvars}
    moved = jaxpr.invars[:-inputs]
    facts |= {v: Fact(Axes(branch=not batched), AFFINE if is_moved(v) else CONSTANT) for v in moved}
    facts |= {v: Fact(Axes(example=not batched)) for v in jaxpr.invars[-inputs:]}
    return interpret(jaxpr.eqns, facts, rule, _literal)


def is_moved(variable: Any) -> bool:
    """Whether a plane moves a parameter: counters and random keys are the same everywhere."""
    return bool(jnp.issubdtype(_aval(variable).dtype, jnp.floating))


def _literal(_: jcore.Literal) -> Fact:
    return Fact()


def _degree(e: Equation, degrees: list[int]) -> int:
    """The degree of an equation's outputs, from those of its operands."""
    name, top = e.primitive.name, max(degrees, default=CONSTANT)
    if top != AFFINE:
        return top
    floating = all(jnp.issubdtype(_aval(v).dtype, jnp.floating) for v in e.outvars)
    first_only = all(s == CONSTANT for s in degrees[1:])
    if name == "convert_element_type" and floating and _rounds(e):
        return NONLINEAR  # what is rounded is w(a, b), not its parts
    joint = name in JOINTLY_LINEAR and not (name == "select_n" and degrees[0] != CONSTANT)
    linear = (name in LINEAR and first_only) or (name in BILINEAR and degrees.count(AFFINE) == 1) or joint
    return AFFINE if linear and floating else NONLINEAR


def _rounds(e: Equation) -> bool:
    """Whether a cast goes to a coarser type."""
    before, after = (_aval(v).dtype for v in (e.invars[0], e.outvars[0]))
    return not jnp.issubdtype(before, jnp.floating) or bool(jnp.finfo(after).eps > jnp.finfo(before).eps)


def _step(e: Equation, facts: dict[Any, Fact], summed: frozenset[Any], inference: bool) -> Step:
    """How one equation is run."""
    name, whole = e.primitive.name, e.outvars[0] in summed
    axes = tuple(read(facts, v, _literal).axes for v in e.invars)
    plan = None
    if name == "dot_general" and not (axes[0].example and axes[1].example):
        plan = batch_rules.product(e, axes, whole and axes[0].branch and axes[1].branch)
    # A literal summand of the outputs counts once for each branch, like any other.
    sums = tuple(whole and name in MOVERS and not (is_variable(v) and v in summed) for v in e.invars)
    clips = inference and name == "max" and not all(map(is_variable, e.invars))
    return Step(e, tuple(e.invars), tuple(e.outvars), axes, facts[e.outvars[0]].degree, plan, whole, sums, clips)


def _known(step: Step, j: int, facts: dict[Any, Fact]) -> bool:
    """Whether an operand of a nonlinear step is prepared before the grid point."""
    atom = step.invars[j]
    return facts[atom].degree != NONLINEAR if is_variable(atom) else step.sums[j]


def _weights(
    jaxpr: jcore.Jaxpr, params: Sequence[Any], steps: Sequence[Step], facts: dict[Any, Fact]
) -> dict[Any, Product]:
    """Parameters that serve only as the weight of an early product with the examples."""
    uses = Counter(v for e in jaxpr.eqns for v in e.invars if is_variable(v))
    found = {}
    for step in steps:
        if step.product and not step.product.folds and step.degree != NONLINEAR:
            weight, other = step.invars[:: -1 if step.product.swap else 1]
            if is_variable(weight) and uses[weight] == 1 and read(facts, other, _literal).axes.example:
                found[weight] = step.product
    return {v: found[v] for v in params if v in found}


def _live(jaxpr: jcore.Jaxpr, facts: dict[Any, Fact]) -> int:
    """Most values with the example axis that are held at once, where an elementwise result replaces its operand."""
    last = {v: k for k, e in enumerate(jaxpr.eqns) for v in e.invars if is_variable(v)}
    last[jaxpr.outvars[0]] = len(jaxpr.eqns)
    held = {v: _size(v) for v in jaxpr.invars if facts[v].axes.example}
    most = sum(held.values())
    for k, e in enumerate(jaxpr.eqns):
        ending = {v for v in e.invars if is_variable(v) and v in held and last[v] == k}
        made = {v: _size(v) for v in e.outvars if facts[v].axes.example}
        replaced = e.primitive.name not in BILINEAR and set(made.values()) <= {held[v] for v in ending}
        most = max(most, sum(held.values()) + (0 if replaced else sum(made.values())))
        held = {v: size for v, size in (held | made).items() if v not in ending}
    return most


def _cost(params: Sequence[Any], steps: Sequence[Step], residuals: Sequence[Residual], live: int) -> Cost:
    """Operations and values of one branch on one example."""
    early, late = ([s for s in steps if (s.degree == NONLINEAR) == kind] for kind in (False, True))
    once, thrice = (sum(map(_operations, (s for s in early if (s.degree == AFFINE) == kind))) for kind in (False, True))
    point = sum(map(_operations, late))
    operands = [(steps[i].invars[j], steps[i].axes[j]) for i, j in residuals]
    kept = {v: axes for v, axes in operands if is_variable(v)}
    held = sum(_size(v) for v, axes in kept.items() if axes.example)
    last = [s.equation for s in late if s.product and s.product.folds]
    return Cost(
        once + 3 * thrice,
        point + 2 * held,
        once + thrice + point,
        held,
        max((_size(v) for s in late for v in s.outvars), default=1),
        sum(map(_size, kept)) - held,
        sum(map(_size, params)),
        _contracted(last[-1]) if last else 0,
        live,
        any(s.name == "conv_general_dilated" for s in late),
    )


def _size(variable: Any) -> int:
    return math.prod(_aval(variable).shape)


def _aval(variable: Any) -> Any:
    return variable.aval


def _contracted(e: Equation) -> int:
    (left, _), _ = e.params["dimension_numbers"]
    return math.prod(_aval(e.invars[0]).shape[d] for d in left)


def _operations(step: Step) -> int:
    """Operations of a step, where it runs once an example."""
    return _count(step.equation) if batch_rules.union(step.axes).example else 0


def _count(e: Equation) -> int:
    if e.primitive.name in STILL:
        return 0
    size = sum(map(_size, e.outvars))
    if e.primitive.name == "dot_general":
        return 2 * size * _contracted(e)
    if e.primitive.name == "conv_general_dilated":
        kernel: Any = e.invars[1].aval
        return 2 * size * kernel.size // kernel.shape[e.params["dimension_numbers"].rhs_spec[0]]
    if e.primitive.name == "scan":
        return e.params["length"] * sum(_count(inner) for inner in e.params["jaxpr"].jaxpr.eqns)
    return size
