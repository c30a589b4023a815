"""A traced function as one flat list of equations: nested calls entered, loops relieved of what can be hoisted."""

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core as jcore

from landscape.compiler import batch_rules
from landscape.compiler.batch_rules import Equation
from landscape.files import atomic

CALLS = frozenset({"jit", "pjit", "closed_call", "core_call", "remat", "remat2", "checkpoint"})
DERIVED = frozenset({"custom_jvp_call", "custom_vjp_call"})


class How(NamedTuple):
    """What is rewritten on the way.

    Attributes:
        values_only: Whether functions with a derivative of their own (`custom_jvp`, `custom_vjp`) are entered too, so
            that derivatives of the result are not theirs; otherwise they stay whole.
        products: Whether convolutions of one example become products with its patches.
    """

    values_only: bool = False
    products: bool = False


AS_IS = How()


def flat(closed: jcore.ClosedJaxpr, how: How = AS_IS) -> jcore.ClosedJaxpr:
    """The same function with nested calls entered and scans hoisted, at every depth.

    Args:
        closed: The function.
        how: What is rewritten.
    """
    shapes = [v.aval for v in closed.jaxpr.invars]
    return jax.make_jaxpr(lambda *xs: _inline(closed.jaxpr, closed.consts, xs, how))(*shapes)


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
    return atomic.fingerprint(re.sub(r" at 0x[0-9a-f]+", "", str(traced.jaxpr)), list(map(_bits, traced.consts)))


def _bits(constant: Any) -> Any:
    """A constant as plain numbers, random keys included."""
    is_key = jnp.issubdtype(jnp.result_type(constant), jax.dtypes.prng_key)
    return jax.random.key_data(constant) if is_key else constant


def _inline(jaxpr: jcore.Jaxpr, consts: Sequence[Any], values: Sequence[Any], how: How) -> list[Any]:
    """Run a jaxpr with nested calls entered, so that tracing the run gives one flat list of equations."""
    env = dict(zip(jaxpr.constvars, consts, strict=True)) | dict(zip(jaxpr.invars, values, strict=True))
    calls = CALLS | DERIVED if how.values_only else CALLS

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, jcore.Literal) else env[atom]

    for equation in jaxpr.eqns:
        inputs = [read(atom) for atom in equation.invars]
        if equation.primitive.name in calls:
            inner: Any = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
            inner, held = (inner.jaxpr, inner.consts) if hasattr(inner, "consts") else (inner, ())
            outs = _inline(inner, held, inputs, how)
        elif equation.primitive.name == "scan":
            outs = _hoisted_scan(equation, inputs, how)
        elif how.products and _plain_convolution(equation):
            outs = [_product_with_patches(equation, *inputs)]
        else:
            outs = batch_rules.as_function(equation)(*inputs)
        env.update(zip(equation.outvars, outs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _plain_convolution(e: Equation) -> bool:
    """Whether an equation is a convolution of one example, of one group, with nothing put between its values."""
    if e.primitive.name != "conv_general_dilated":
        return False
    image: Any = e.invars[0].aval
    one = image.shape[e.params["dimension_numbers"].lhs_spec[0]] == 1
    groups = e.params["feature_group_count"] == e.params["batch_group_count"] == 1
    return one and groups and set(e.params["lhs_dilation"]) == {1}


def _product_with_patches(e: Equation, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The same convolution as one product: where branches and seeds differ, its gradient is 20 times faster on a CPU.

    Patches are gathered axis by axis, so that a window of k x k takes 2 k slices.
    """
    params, (left, right, out) = e.params, e.params["dimension_numbers"]
    x = lax.transpose(x, (*left[2:], left[1], left[0])).reshape(
        *(x.shape[d] for d in left[2:]), -1
    )  # [space, channels]
    kernel = lax.transpose(kernel, (*right[2:], right[1], right[0]))  # [window, channels, outputs]
    x = lax.pad(x, jnp.zeros((), x.dtype), [(*both, 0) for both in params["padding"]] + [(0, 0, 0)])
    for axis, (k, stride, spread) in enumerate(
        zip(kernel.shape[:-2], params["window_strides"], params["rhs_dilation"], strict=True)
    ):
        length = (x.shape[axis] - spread * (k - 1) - 1) // stride + 1
        parts = [
            lax.slice_in_dim(x, spread * i, spread * i + stride * (length - 1) + 1, stride, axis) for i in range(k)
        ]
        x = jnp.stack(parts, -2).reshape(*parts[0].shape[:-1], -1)  # the window's later axes vary slowest
    order = (*reversed(range(kernel.ndim - 2)), kernel.ndim - 2, kernel.ndim - 1)
    weights = lax.transpose(kernel, order).reshape(-1, kernel.shape[-1])
    options = {name: params[name] for name in ("precision", "preferred_element_type")}
    found = lax.dot_general(x, weights, (((x.ndim - 1,), (0,)), ((), ())), **options)
    space = found.shape[:-1]
    moved = lax.transpose(found, (len(space), *range(len(space)))).reshape(1, -1, *space)
    return lax.transpose(moved, tuple(out.index(d) for d in range(len(out))))


def _hoisted_scan(equation: Equation, inputs: Sequence[Any], how: How) -> list[Any]:
    """A scan with everything that does not depend on the carry computed before it, for all its steps at once."""
    params = equation.params
    fixed, carried = params["num_consts"], params["num_consts"] + params["num_carry"]
    body = params["jaxpr"]
    inner = flat(body, how)
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
    last, stacked = lax.scan(
        step, list(inputs[fixed:carried]), (list(steps), hoisted), length=params["length"], reverse=params["reverse"]
    )
    return [*last, *stacked]


def _steps(equations: Sequence[Equation], env: dict[Any, Any], wanted: Sequence[Any]) -> list[Any]:
    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, jcore.Literal) else env[atom]

    for e in equations:
        env.update(zip(e.outvars, batch_rules.as_function(e)(*map(read, e.invars)), strict=True))
    return [read(v) for v in wanted]
