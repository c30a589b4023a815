"""A traced function as one flat list of equations: nested calls are entered, invariant work is hoisted out of loops."""

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core as jcore

from landscape.compiler import convolutions
from landscape.compiler.interpreter import Equation, as_function, interpret, is_variable, read
from landscape.files import atomic

CALLS = frozenset({"jit", "pjit", "closed_call", "core_call", "remat", "remat2", "checkpoint"})
DERIVED = frozenset({"custom_jvp_call", "custom_vjp_call"})


class How(NamedTuple):
    """Which rewrites `flat` makes.

    Attributes:
        inference: Whether functions with a derivative of their own (`custom_jvp`, `custom_vjp`) are entered too. The
            result then loses these derivatives; otherwise such functions stay whole.
        patches: Whether convolutions of one example become products with its patches.
        rows: Whether convolutions of few channels become products with their rows, and others have their channels last.
    """

    inference: bool = False
    patches: bool = False
    rows: bool = False


AS_IS = How()


def flat(closed: jcore.ClosedJaxpr, how: How = AS_IS) -> jcore.ClosedJaxpr:
    """The same function with nested calls entered and scans hoisted, at every depth.

    Args:
        closed: The function.
        how: What is rewritten.
    """
    shapes = [v.aval for v in closed.jaxpr.invars]
    return jax.make_jaxpr(lambda *xs: _inline(closed.jaxpr, closed.consts, xs, how))(*shapes)


def jaxpr_hash(f: Callable[..., Any], *args: Any) -> str:
    """Hash of what a function computes: equal in every process, different if its closure holds other numbers.

    Args:
        f: A function that JAX can trace.
        args: Its arguments, or their shapes.

    >>> jaxpr_hash(lambda x: 2 * x, 1.0) == jaxpr_hash(lambda y: 2 * y, 5.0)
    True
    >>> jaxpr_hash(lambda x: 2 * x, 1.0) == jaxpr_hash(lambda x: 3 * x, 1.0)
    False
    """
    return closed_hash(jax.make_jaxpr(f)(*args))


def closed_hash(closed: jcore.ClosedJaxpr) -> str:
    """`jaxpr_hash` of a function that is traced already."""
    traced = flat(closed)
    return atomic.fingerprint(re.sub(r" at 0x[0-9a-f]+", "", str(traced.jaxpr)), list(map(_bits, traced.consts)))


def coarsest(closed: jcore.ClosedJaxpr) -> Any:
    """The floating-point type in which a traced function rounds most, at every depth; float32 where it has none.

    >>> coarsest(jax.make_jaxpr(lambda x: jnp.sin(x.astype(jnp.bfloat16)).astype(jnp.float32))(1.0))
    dtype(bfloat16)
    """
    found = _types(closed.jaxpr) or {jnp.dtype(jnp.float32)}
    return max(found, key=lambda dtype: float(jnp.finfo(dtype).eps))


def _types(jaxpr: Any) -> set[Any]:
    """The floating-point types of all values, those of nested functions included."""
    values = [*jaxpr.invars, *(v for e in jaxpr.eqns for v in e.outvars)]
    found = {v.aval.dtype for v in values if hasattr(v.aval, "dtype") and jnp.issubdtype(v.aval.dtype, jnp.floating)}
    return found.union(*map(_types, _nested(jaxpr)))


def _nested(jaxpr: Any) -> list[Any]:
    inner = [v for e in jaxpr.eqns for p in e.params.values() for v in (p if isinstance(p, tuple | list) else (p,))]
    return [getattr(v, "jaxpr", v) for v in inner if isinstance(v, jcore.Jaxpr | jcore.ClosedJaxpr)]


def _bits(constant: Any) -> Any:
    """A constant as plain numbers, random keys included."""
    is_key = jnp.issubdtype(jnp.result_type(constant), jax.dtypes.prng_key)
    return jax.random.key_data(constant) if is_key else constant


def _inline(jaxpr: jcore.Jaxpr, consts: Sequence[Any], values: Sequence[Any], how: How) -> list[Any]:
    """Run a jaxpr with nested calls entered, so that tracing the run gives one flat list of equations."""
    calls = CALLS | DERIVED if how.inference else CALLS

    def rule(e: Equation, inputs: list[Any]) -> list[Any]:
        if e.primitive.name in calls:
            inner: Any = e.params.get("jaxpr", e.params.get("call_jaxpr"))
            inner, held = (inner.jaxpr, inner.consts) if hasattr(inner, "consts") else (inner, ())
            return _inline(inner, held, inputs, how)
        if e.primitive.name == "scan":
            return _hoisted_scan(e, inputs, how)
        if how.patches and convolutions.of_one_example(e):
            return [convolutions.product_with_patches(e, *inputs)]
        if how.rows and convolutions.of_few_channels(e):
            return [convolutions.product_of_rows(e, *inputs)]
        if how.rows and convolutions.in_another_layout(e):
            return [convolutions.with_channels_last(e, *inputs)]
        return as_function(e)(*inputs)

    env = interpret(jaxpr.eqns, _bound(jaxpr, consts, values), rule)
    return [read(env, atom) for atom in jaxpr.outvars]


def _bound(jaxpr: jcore.Jaxpr, consts: Sequence[Any], values: Sequence[Any]) -> dict[Any, Any]:
    """The values of a jaxpr's constants and inputs."""
    return dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *values], strict=True))


def _hoisted_scan(equation: Equation, inputs: Sequence[Any], how: How) -> list[Any]:
    """A scan whose equations that do not depend on the carry run before it, for all steps at once.

    `before` runs these equations for one step; `step` runs the others, with the values that `before` found for it.
    """
    params = equation.params
    fixed, carried = params["num_consts"], params["num_consts"] + params["num_carry"]
    constants, start, xs_of_steps = inputs[:fixed], inputs[fixed:carried], inputs[carried:]
    body = flat(params["jaxpr"], how)
    jaxpr, consts = body.jaxpr, body.consts
    early, rest, hoisted = _apart(jaxpr, jaxpr.invars[fixed:carried])
    if not hoisted or not xs_of_steps:
        early, rest, hoisted = [], jaxpr.eqns, []

    def before(xs: Sequence[Any]) -> list[Any]:
        no_carry = [None] * len(start)
        env = interpret(early, _bound(jaxpr, consts, [*constants, *no_carry, *xs]), _plainly)
        return [env[v] for v in hoisted]

    def step(carry: Sequence[Any], inputs: Any) -> tuple[Any, Any]:
        xs, known = inputs
        env = _bound(jaxpr, consts, [*constants, *carry, *xs]) | dict(zip(hoisted, known, strict=True))
        interpret(rest, env, _plainly)
        outs = [read(env, v) for v in jaxpr.outvars]
        return outs[: len(carry)], outs[len(carry) :]

    known = jax.vmap(before)(xs_of_steps) if hoisted else []
    length, reverse = params["length"], params["reverse"]
    last, stacked = lax.scan(step, list(start), (xs_of_steps, known), length=length, reverse=reverse)
    return [*last, *stacked]


def _apart(jaxpr: jcore.Jaxpr, carry: Sequence[Any]) -> tuple[list[Equation], list[Equation], list[Any]]:
    """The equations that do not depend on the carry, those that do, and what the second kind reads of the first.

    The variables come in the order of the equations: two traces of one function must be the same.
    """
    moving, early, rest = set(carry), [], []
    for e in jaxpr.eqns:
        depends = any(is_variable(v) and v in moving for v in e.invars)
        moving |= set(e.outvars) if depends else set()
        (rest if depends else early).append(e)
    needed = {v for v in [*(v for e in rest for v in e.invars), *jaxpr.outvars] if is_variable(v)}
    return early, rest, [v for e in early for v in e.outvars if v in needed]


def _plainly(equation: Equation, values: list[Any]) -> list[Any]:
    return as_function(equation)(*values)
