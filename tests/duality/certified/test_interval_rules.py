"""Every rule of the interval arithmetic against sampled values and slopes; the rules are found in the tables.

Boxes are ordinary, thin, of one point, around 0, with infinite or nan ends, far from 0. NumPy and Python's `math` give
the values. A function's slopes are its secants: by the mean value theorem they lie within the bounds of its derivative.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import seeds
from jax import lax

from landscape.arrays import trees
from landscape.duality.certified.interval_arrays import BILINEAR, REDUCTIONS, STRUCTURAL
from landscape.duality.certified.interval_rules import RULES, Bounds
from landscape.duality.certified.intervals import NoRule, bounds, enclose

COUNT, SAMPLES = 600, 24


class Rule(NamedTuple):
    """How to meet an operation.

    Attributes:
        traced: A function of `arguments` arrays that JAX turns into the operation.
        value: The same by NumPy; None for `traced` itself, evaluated on numbers.
        arguments: How many.
        smooth: Whether secants bound its slopes (it does not jump).
    """

    traced: Callable[..., Any]
    value: Callable[..., Any] | None = None
    arguments: int = 1
    smooth: bool = True


def by_math(f: Callable[[float], float]) -> Callable[[np.ndarray], np.ndarray]:
    """A function of Python's library on arrays, nan where it is not defined."""

    def one(x: float) -> float:
        try:
            return f(x)
        except (ValueError, OverflowError, ZeroDivisionError):
            return math.nan

    return np.vectorize(one, otypes=[float])


def both(x: Any) -> Any:
    """Two values of one box, for operations that join arrays."""
    return jnp.stack([x, 2 * x + 1])


CASES: dict[str, tuple[Rule, ...]] = {
    "add": (Rule(lax.add, np.add, 2),),
    "add_any": (Rule(lambda x, y: jax.linear_transpose(lambda v: (v, v), x)((x, y))[0], np.add, 2),),
    "sub": (Rule(lax.sub, np.subtract, 2),),
    "neg": (Rule(lax.neg, np.negative),),
    "mul": (Rule(lax.mul, np.multiply, 2), Rule(lambda x: x * x, np.square), Rule(lambda x: -0.7 * x)),
    "div": (Rule(lax.div, np.divide, 2, smooth=False), Rule(lambda x: 1 / (1 + x * x))),
    "abs": (Rule(lax.abs, np.abs),),
    "square": (Rule(lax.square, np.square),),
    "integer_pow": tuple(
        Rule(lambda x, n=n: lax.integer_pow(x, n), lambda x, n=n: np.power(x, float(n)), smooth=n > 0)
        for n in (0, 2, 3, 4, 7, -1, -2, -3)
    ),
    "pow": (
        *(Rule(lambda x, p=p: lax.pow(x, jnp.asarray(p)), lambda x, p=p: np.power(x, p)) for p in (0.5, 1.5, 2.5)),
        *(
            Rule(lambda x, p=p: lax.pow(x, jnp.asarray(p)), lambda x, p=p: np.power(x, p), 1, False)
            for p in (2.0, -0.5)
        ),
        Rule(lax.pow, np.power, 2, smooth=False),
    ),
    "max": (Rule(lax.max, np.maximum, 2), Rule(jax.nn.relu, lambda x: np.maximum(x, 0))),
    "min": (Rule(lax.min, np.minimum, 2),),
    "clamp": (Rule(lambda x: lax.clamp(-0.5, x, 1.5), lambda x: np.clip(x, -0.5, 1.5)),),
    "sign": (Rule(lax.sign, np.sign, smooth=False), Rule(lambda x: lax.sign(x) * x, np.abs)),
    "floor": (Rule(lax.floor, np.floor, smooth=False),),
    "exp": (Rule(lax.exp, np.exp),),
    "exp2": (Rule(lax.exp2, by_math(lambda x: 2.0**x)),),
    "log": (Rule(lax.log, by_math(math.log)),),
    "log1p": (Rule(lax.log1p, by_math(math.log1p)),),
    "expm1": (Rule(lax.expm1, by_math(math.expm1)),),
    "tanh": (Rule(lax.tanh, by_math(math.tanh)),),
    "logistic": (Rule(lax.logistic, by_math(lambda x: 1 / (1 + math.exp(-x)))),),
    "atan": (Rule(lax.atan, by_math(math.atan)),),
    "erf": (Rule(lax.erf, by_math(math.erf)),),
    "erfc": (Rule(lax.erfc, by_math(math.erfc)),),
    "sqrt": (Rule(lax.sqrt, np.sqrt),),
    "rsqrt": (Rule(lax.rsqrt, lambda x: 1 / np.sqrt(x)),),
    "sin": (Rule(lax.sin, np.sin),),
    "cos": (Rule(lax.cos, np.cos),),
    "ge": (Rule(lambda x, y: jnp.where(x >= y, x, 3 * y), None, 2, False), Rule(lax.ge, np.greater_equal, 2, False)),
    "gt": (Rule(lax.gt, np.greater, 2, False),),
    "le": (Rule(lax.le, np.less_equal, 2, False),),
    "lt": (Rule(lax.lt, np.less, 2, False),),
    "eq": (Rule(lax.eq, np.equal, 2, False), Rule(lambda x: jnp.log(x) == jnp.log(x), None, 1, False)),
    "ne": (Rule(lax.ne, np.not_equal, 2, False), Rule(lambda x: jnp.isnan(jnp.sqrt(x)), None, 1, False)),
    "and": (Rule(lambda x, y: (x > 0.2) & (y < x), None, 2, False),),
    "or": (Rule(lambda x, y: (x > 0.2) | (y < x), None, 2, False),),
    "not": (Rule(lambda x: ~(jnp.log(x) > 0.2), None, 1, False),),
    "select_n": (
        Rule(lambda x: jnp.where(x > 0.5, 2 * x, x + 0.5), lambda x: np.where(x > 0.5, 2 * x, x + 0.5)),
        Rule(lambda x: jnp.where(jnp.log(x) <= 5.0, 1.0, -1.0), None, 1, False),
        Rule(lambda x: jnp.where(jnp.sqrt(x) >= 0, x, 1 - x), None, 1, False),
        Rule(lambda x: lax.select_n(jnp.clip(x, 0, 2).astype(int), x, x * x, -x), None, 1, False),
        Rule(lambda x: jax.nn.relu(-jnp.log(4e4 * x * x - 0.3 * x + 0.1)), None, 1, False),
        Rule(lambda x: jax.nn.relu(1 / (x * x - 2 * x + 1.001) - 0.5), None, 1, False),  # ill-conditioned secants
    ),
    "convert_element_type": (
        *(Rule(lambda x, t=t: lax.convert_element_type(x, t), None, 1, False) for t in (jnp.bool_, jnp.float32)),
        Rule(lambda x: jnp.clip(x, -9.9, 9.9).astype(int), lambda x: np.trunc(np.clip(x, -9.9, 9.9)), 1, False),
    ),
    "reduce_sum": (Rule(lambda x: jnp.sum(both(x), 0), lambda x: 3 * x + 1),),
    "reduce_max": (Rule(lambda x: jnp.max(both(x), 0), lambda x: np.maximum(x, 2 * x + 1)),),
    "reduce_min": (Rule(lambda x: jnp.min(both(x), 0), lambda x: np.minimum(x, 2 * x + 1)),),
    "cumsum": (Rule(lambda x: lax.cumsum(both(x))[1], lambda x: 3 * x + 1),),
    "broadcast_in_dim": (Rule(lambda x: lax.broadcast_in_dim(x, (2, *x.shape), (1,))[1]),),
    "reshape": (Rule(lambda x: lax.reshape(x, (x.size, 1))[:, 0]),),
    "squeeze": (Rule(lambda x: lax.squeeze(lax.broadcast_in_dim(x, (1, *x.shape), (1,)), (0,))),),
    "transpose": (Rule(lambda x: lax.transpose(both(x), (1, 0))[:, 1], lambda x: 2 * x + 1),),
    "slice": (Rule(lambda x: lax.slice(both(x), (1, 0), (2, x.size))[0], lambda x: 2 * x + 1),),
    "concatenate": (Rule(lambda x: lax.concatenate([x, 2 * x], 0)[x.size :], lambda x: 2 * x),),
    "pad": (Rule(lambda x: lax.pad(x[None], jnp.asarray(-7.0), [(1, 0, 0), (0, 0, 0)])[1]),),
    "rev": (Rule(lambda x: lax.rev(both(x), (0,))[0], lambda x: 2 * x + 1),),
    "copy": (Rule(lambda x: jnp.copy(x)),),
    "split": (Rule(lambda x: lax.split(both(x), (1, 1))[1][0], lambda x: 2 * x + 1),),
    "stack": (Rule(lambda x: both(x)[1], lambda x: 2 * x + 1),),
    "unstack": (Rule(lambda x: jnp.unstack(both(x))[1], lambda x: 2 * x + 1),),
    "gather": (Rule(lambda x: jnp.take(both(x), jnp.array([1]), axis=0)[0], lambda x: 2 * x + 1),),
    "dynamic_slice": (Rule(lambda x: lax.dynamic_slice(both(x), (1, 0), (1, x.size))[0], lambda x: 2 * x + 1),),
    "dot_general": (
        Rule(lambda x: (jnp.array([[2.0, -3.0]]) @ both(x))[0], lambda x: -4 * x - 3),
        Rule(lambda x, y: jnp.einsum("kn,kn->n", both(x), both(y)), lambda x, y: x * y + (2 * x + 1) * (2 * y + 1), 2),
    ),
    "conv_general_dilated": (
        Rule(
            lambda x: lax.conv(both(x)[None, None], jnp.array([0.5, -2.0])[None, None, :, None], (1, 1), "VALID")[
                0, 0, 0
            ],
            lambda x: -3.5 * x - 2,
        ),
        Rule(
            lambda x: lax.conv(both(x)[None, None], both(x[:1])[None, None], (1, 1), "VALID")[0, 0, 0], None, 1, False
        ),
    ),
}


def boxes(rng: np.random.Generator, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Ends of COUNT boxes of one kind."""
    centre = rng.normal(size=COUNT) * 10 ** rng.uniform(-3, 2, COUNT)
    half = 10 ** rng.uniform(-8, 1, COUNT)
    lo, hi = centre - half, centre + half
    if kind == "around zero":
        lo, hi = (np.abs(end) * (rng.random(COUNT) < 0.7) for end in (lo, hi))
        return -lo, hi
    if kind == "thin":
        return lo, np.where(rng.random(COUNT) < 0.5, lo, np.nextafter(lo, np.inf))
    if kind in ("infinite", "nan"):
        end = np.inf if kind == "infinite" else np.nan
        which = rng.integers(3, size=COUNT)
        return np.where(which != 1, -end, lo), np.where(which != 0, end, hi)
    return (hi, lo) if kind == "empty" else (lo, hi)


KINDS = ("ordinary", "around zero", "thin", "infinite", "nan", "empty")


def sampled(rng: np.random.Generator, lo: np.ndarray, hi: np.ndarray) -> np.ndarray:
    """Numbers in boxes, ends and 0 often among them, [SAMPLES, COUNT]; an end that says nothing lies far away."""
    far = 10 ** rng.uniform(-2, 3, (2, COUNT))
    a = np.where(np.isfinite(lo), lo, np.where(np.isfinite(hi), hi, 0.0) - far[0])
    b = np.where(np.isfinite(hi), hi, np.where(np.isfinite(lo), lo, 0.0) + far[1])
    share = rng.uniform(size=(SAMPLES, COUNT)) ** rng.choice([1.0, 4.0, 0.25], COUNT)
    share[0], share[1] = 0.0, 1.0
    x = np.clip(a + share * (b - a), a, b)
    x[2] = np.clip(0.0, a, b)
    return x


def numbers(f: Callable[..., Any], *x: np.ndarray) -> np.ndarray:
    """Values without warnings, as floats or booleans."""
    with np.errstate(all="ignore"):
        return np.asarray(f(*x))


def check_inside(found: Bounds, value: np.ndarray, slack: np.ndarray | float = 0.0) -> None:
    """Numbers lie between the ends; what is true is possible, and what is false is not certain."""
    lo, hi = np.asarray(found.lo), np.asarray(found.hi)
    if lo.dtype == bool:
        value = value.astype(bool)
        assert not (value & ~hi).any()
        assert not (~value & lo).any()
        return
    assert not np.isnan(lo).any()
    assert not np.isnan(hi).any()
    with np.errstate(invalid="ignore"):
        outside = np.isfinite(value) & ((lo > value + slack) | (value - slack > hi))
    assert not outside.any(), [(a[outside][0], value[outside][0]) for a in np.broadcast_arrays(lo, hi, value)[:2]]


def primitives(jaxpr: Any) -> set[str]:
    """Names of the operations of a jaxpr and of those inside."""
    names = set()
    for eqn in jaxpr.eqns:
        names.add(eqn.primitive.name)
        for inner in eqn.params.values():
            names |= (
                primitives(getattr(inner, "jaxpr", inner)) if hasattr(getattr(inner, "jaxpr", inner), "eqns") else set()
            )
    return names


def test_every_rule_has_a_case_that_meets_it() -> None:
    assert set(CASES) == set(RULES) | set(REDUCTIONS) | STRUCTURAL | BILINEAR
    with trees.float64():
        for name, rules in CASES.items():
            met = [primitives(jax.make_jaxpr(r.traced)(*[jnp.ones(COUNT)] * r.arguments).jaxpr) for r in rules]
            assert name in set.union(*met), name


@pytest.mark.parametrize("name", sorted(CASES))
def test_values_and_slopes_are_inside(name: str) -> None:
    rng = seeds.generator()
    with trees.float64():
        for rule in CASES[name]:
            for kind in KINDS:
                given = [boxes(rng, k) for k in (kind, *rng.choice(KINDS[:5], rule.arguments - 1))]
                found = bounds(rule.traced, *(Bounds(*map(jnp.asarray, box)) for box in given))
                if kind == "empty":
                    check_empty(found)
                    continue
                x = [sampled(rng, *box) for box in given]
                traced = jax.jit(jax.vmap(rule.traced))
                check_inside(found, numbers(traced, *x))
                if rule.value is not None:
                    check_inside(found, numbers(rule.value, *x))
                if found.lo.dtype != bool:
                    check_slopes(rng, rule, given, x)


def check_empty(found: Bounds) -> None:
    """No point lies there; the ends are numbers still, and what is certain is possible."""
    if found.lo.dtype == bool:
        assert not (found.lo & ~found.hi).any()
    else:
        assert not (np.isnan(found.lo) | np.isnan(found.hi)).any()


def check_slopes(rng: np.random.Generator, rule: Rule, given: list[Any], x: list[np.ndarray]) -> None:
    """Derivatives at the samples, and secants between them, in each argument."""
    for k in range(rule.arguments):

        def along(*w: Any, k: int = k) -> Any:
            tangents = tuple(jnp.full_like(v, float(j == k)) for j, v in enumerate(w))
            return jax.jvp(rule.traced, w, tangents)[1]

        if jax.eval_shape(rule.traced, *(v[0] for v in x)).dtype != np.float64:
            return
        found = bounds(along, *(Bounds(*map(jnp.asarray, box)) for box in given))
        slope = numbers(jax.vmap(along), *x)
        check_inside(found, slope, 1e-12 * (1 + np.abs(slope)))
        if not rule.smooth:
            continue
        moved = [np.roll(v, 1, 0) if j == k else v for j, v in enumerate(x)]
        f = rule.value or jax.vmap(rule.traced)
        first, second, run = numbers(f, *x), numbers(f, *moved), x[k] - moved[k]
        with np.errstate(all="ignore"):
            secant = np.where(run == 0, np.nan, (first - second) / run)
            magnitude = 1 + np.abs(first) + np.abs(second) + sum(np.abs(v) for v in x) ** 2
            rounding = 1e-14 * magnitude / np.abs(run)
        check_inside(found, secant, np.where(np.isfinite(rounding), rounding, 0.0) + 1e-12 * np.abs(secant))


UNARY: tuple[Callable[[Any], Any], ...] = (
    *(jnp.exp, jnp.log, jnp.sqrt, jnp.tanh, jnp.square, jnp.abs, jax.nn.relu, jnp.sin, jnp.log1p, jnp.sign, jnp.floor),
    *(lambda x: 1 / x, lambda x: x**1.5, lambda x: x**-2, lambda x: -x, lambda x: jnp.clip(x, -1, 1), jax.nn.softplus),
    *(lambda x: 3 * x, lambda x: x - 0.5, jax.lax.rsqrt, lambda x: jnp.where(jnp.isnan(x), 0.25, x)),
)
BINARY: tuple[Callable[[Any, Any], Any], ...] = (
    *(jnp.add, jnp.subtract, jnp.multiply, jnp.divide, jnp.maximum, jnp.minimum),
    *(lambda x, y: jnp.where(x > y, x, 2 * y), lambda x, y: jnp.where((x <= 0) | (y == x), y, x)),
    lambda x, y: jnp.where(x >= 0, y, 1.0),
)


def expression(rng: np.random.Generator, depth: int) -> Callable[[Any, Any], Any]:
    """A random formula in two numbers."""
    if depth == 0:
        which = rng.random() < 0.5
        return lambda a, b: a if which else b
    if rng.random() < 0.55:
        f, inner = UNARY[rng.integers(len(UNARY))], expression(rng, depth - 1)
        return lambda a, b: f(inner(a, b))
    g, left, right = BINARY[rng.integers(len(BINARY))], expression(rng, depth - 1), expression(rng, depth - 1)
    return lambda a, b: g(left(a, b), right(a, b))


@pytest.mark.parametrize("part", range(4))
def test_random_formulas(part: int) -> None:
    """Formulas that are nan or infinite on parts of a box, compared and selected: numbers and slopes are inside."""
    rng = seeds.generator()
    with trees.float64():
        for _ in range(20):
            f = expression(rng, 4)
            given = [boxes(rng, k) for k in rng.choice(KINDS[:4], 2)]
            both_boxes = [Bounds(*map(jnp.asarray, box)) for box in given]
            x = [sampled(rng, *box) for box in given]
            check_inside(bounds(f, *both_boxes), numbers(f, *map(jnp.asarray, x)))

            def slope(a: Any, b: Any, f: Any = f) -> Any:
                return jax.jvp(f, (a, b), (jnp.ones_like(a), jnp.full_like(b, 0.5)))[1]

            value = numbers(slope, *map(jnp.asarray, x))
            check_inside(bounds(slope, *both_boxes), value, 1e-12 * np.abs(value))


def test_casts_and_bits_that_are_not_monotone_are_refused() -> None:
    with trees.float64():
        box = Bounds(jnp.array([-1.5]), jnp.array([2.5]))
        for f in (lambda w: w.astype(int) & 1, lambda w: w.astype(int) * 3, lambda w: w.astype(jnp.uint8)):
            with pytest.raises(NoRule):
                bounds(f, box)


def test_thin_cells_far_from_zero() -> None:
    """A cell a few units in the last place wide: its points may lie farther from the centre than half its width."""
    rng = seeds.generator()
    with trees.float64():
        lo = rng.uniform(1, 2, (200, 1)) * 10 ** rng.uniform(0, 8, (200, 1))
        hi = lo + rng.integers(1, 4, (200, 1)) * np.spacing(lo)
        found = jax.vmap(lambda a, b: enclose(lambda w: 1e6 * (w[0] * w[0]) ** 0.5, a, b))(
            jnp.asarray(lo), jnp.asarray(hi)
        )
        for w in (lo, hi):
            assert (found.lo <= 1e6 * w[:, 0]).all()
            assert (found.hi >= 1e6 * w[:, 0]).all()
