"""A traced function as one flat list of equations: nested calls entered, loops relieved of what can be hoisted."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core as jcore

from landscape import batching, storage
from landscape.batching import Equation

CALLS = frozenset({"jit", "pjit", "closed_call", "core_call", "remat", "remat2", "checkpoint"})
DERIVED = frozenset({"custom_jvp_call", "custom_vjp_call"})


def flat(closed: jcore.ClosedJaxpr, values_only: bool = False) -> jcore.ClosedJaxpr:
    """The same function with nested calls entered and scans hoisted, at every depth.

    Args:
        closed: The function.
        values_only: Whether functions with a derivative of their own (`custom_jvp`, `custom_vjp`) are entered too, so
            that derivatives of the result are not theirs; otherwise they stay whole.
    """
    shapes, calls = [v.aval for v in closed.jaxpr.invars], CALLS | DERIVED if values_only else CALLS
    return jax.make_jaxpr(lambda *xs: _inline(closed.jaxpr, closed.consts, xs, calls))(*shapes)


def program(f: Callable[..., Any], *args: Any) -> str:
    """Fingerprint of what a function computes: the same in every process, another for other numbers in its closure.

    Args:
        f: A function that JAX can trace.
        args: Its arguments, or their shapes.

    >>> program(lambda x: 2 * x, 1.0) == program(lambda y: 2 * y, 5.0)
    True
    >>> program(lambda x: 2 * x, 1.0) == program(lambda x: 3 * x, 1.0)
    False
    """
    traced = flat(jax.make_jaxpr(f)(*args))
    return storage.fingerprint(re.sub(r" at 0x[0-9a-f]+", "", str(traced.jaxpr)), list(map(_bits, traced.consts)))


def _bits(constant: Any) -> Any:
    """A constant as plain numbers, random keys included."""
    is_key = jnp.issubdtype(jnp.result_type(constant), jax.dtypes.prng_key)
    return jax.random.key_data(constant) if is_key else constant


def _inline(jaxpr: jcore.Jaxpr, consts: Sequence[Any], values: Sequence[Any], calls: frozenset[str]) -> list[Any]:
    """Run a jaxpr with nested calls entered, so that tracing the run gives one flat list of equations."""
    env = dict(zip(jaxpr.constvars, consts, strict=True)) | dict(zip(jaxpr.invars, values, strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, jcore.Literal) else env[atom]

    for equation in jaxpr.eqns:
        inputs = [read(atom) for atom in equation.invars]
        if equation.primitive.name in calls:
            inner: Any = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
            inner, held = (inner.jaxpr, inner.consts) if hasattr(inner, "consts") else (inner, ())
            outs = _inline(inner, held, inputs, calls)
        elif equation.primitive.name == "scan":
            outs = _hoisted_scan(equation, inputs, calls > CALLS)
        else:
            outs = batching.as_function(equation)(*inputs)
        env.update(zip(equation.outvars, outs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _hoisted_scan(equation: Equation, inputs: Sequence[Any], values_only: bool) -> list[Any]:
    """A scan with everything that does not depend on the carry computed before it, for all its steps at once."""
    params = equation.params
    fixed, carried = params["num_consts"], params["num_consts"] + params["num_carry"]
    body = params["jaxpr"]
    inner = flat(body, values_only)
    jaxpr, consts, steps = inner.jaxpr, inner.consts, inputs[carried:]
    moving = set(jaxpr.invars[fixed:carried])
    early, rest = [], []
    for e in jaxpr.eqns:
        depends = any(v in moving for v in e.invars if not isinstance(v, jcore.Literal))
        moving |= set(e.outvars) if depends else set()
        (rest if depends else early).append(e)
    made = [v for e in early for v in e.outvars]  # in order: what is traced must be the same every time
    read = {v for e in rest for v in e.invars if not isinstance(v, jcore.Literal)}
    cut = [v for v in made if v in read or v in jaxpr.outvars]

    def before(*values: Any) -> list[Any]:
        env = dict(zip(jaxpr.constvars, consts, strict=True))
        env |= dict(zip([*jaxpr.invars[:fixed], *jaxpr.invars[carried:]], values, strict=True))
        return _steps(early, env, cut)

    def step(carry: Sequence[Any], xs: Any) -> tuple[Any, Any]:
        own, hoisted = xs
        env = dict(zip(jaxpr.constvars, consts, strict=True))
        env |= dict(zip(jaxpr.invars, [*inputs[:fixed], *carry, *own], strict=True)) | dict(
            zip(cut, hoisted, strict=True)
        )
        outs = _steps(rest, env, jaxpr.outvars)
        return outs[: len(carry)], outs[len(carry) :]

    axes = (*[None] * fixed, *[0] * len(steps))
    hoisted = jax.vmap(before, axes)(*inputs[:fixed], *steps) if cut and steps else []
    if not hoisted:
        cut, rest = [], jaxpr.eqns
    last, stacked = jax.lax.scan(
        step, list(inputs[fixed:carried]), (list(steps), hoisted), length=params["length"], reverse=params["reverse"]
    )
    return [*last, *stacked]


def _steps(equations: Sequence[Equation], env: dict[Any, Any], wanted: Sequence[Any]) -> list[Any]:
    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, jcore.Literal) else env[atom]

    for e in equations:
        env.update(zip(e.outvars, batching.as_function(e)(*map(read, e.invars)), strict=True))
    return [read(v) for v in wanted]
