"""An interpreter of jaxprs: it runs the equations in order by a given rule."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
from jax.extend import core as jcore

Equation = jcore.JaxprEqn
Env = dict[Any, Any]


def interpret(
    equations: Iterable[Any],
    env: Env,
    rule: Callable[[Any, list[Any]], Sequence[Any]],
    constant: Callable[[jcore.Literal], Any] = lambda literal: literal.val,
) -> Env:
    """Run equations in order and return `env` with their outputs added.

    Args:
        equations: Equations of a jaxpr, or records with the same `invars` and `outvars`.
        env: The values of the variables that the equations read from outside.
        rule: Maps an equation and the values of its operands to the values of its outputs.
        constant: The value of a literal operand.

    >>> closed = jax.make_jaxpr(lambda x: 2 * x + 1)(1.0)
    >>> interpret(closed.jaxpr.eqns, {closed.jaxpr.invars[0]: 3.0}, lambda e, values: as_function(e)(*values))[
    ...     closed.jaxpr.outvars[0]
    ... ].item()
    7.0
    """
    for equation in equations:
        outputs = rule(equation, [read(env, atom, constant) for atom in equation.invars])
        env.update(zip(equation.outvars, outputs, strict=True))
    return env


def read(env: Env, atom: Any, constant: Callable[[jcore.Literal], Any] = lambda literal: literal.val) -> Any:
    """The value of a variable, or of a literal."""
    return constant(atom) if isinstance(atom, jcore.Literal) else env[atom]


def is_variable(atom: Any) -> bool:
    """Whether an operand is a variable and not a literal."""
    return not isinstance(atom, jcore.Literal)


def needed(jaxpr: jcore.Jaxpr) -> list[Equation]:
    """The equations that the outputs depend on, in order; values that are read for their shape alone are not.

    >>> closed = jax.make_jaxpr(lambda x: (x * 2, x + 1)[0])(1.0)
    >>> [e.primitive.name for e in needed(closed.jaxpr)]
    ['mul']
    """
    wanted, kept = {v for v in jaxpr.outvars if is_variable(v)}, []
    for e in reversed(jaxpr.eqns):
        if wanted & set(e.outvars):
            wanted |= {v for v in e.invars if is_variable(v)}
            kept.append(e)
    return kept[::-1]


def as_function(equation: Equation) -> Callable[..., list[Any]]:
    """One equation as a function of all its operands, literals included. It keeps its own derivative rule."""
    alone = jax.make_jaxpr(lambda *xs: list(xs))(*(v.aval for v in equation.invars)).jaxpr
    renamed = equation.replace(invars=list(alone.invars))
    alone = alone.replace(outvars=list(equation.outvars), eqns=[renamed])
    return jcore.jaxpr_as_fun(jcore.ClosedJaxpr(alone, ()))
