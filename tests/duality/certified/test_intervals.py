"""Interval arithmetic over traced functions: bounds that hold, shrink, or are refused."""

from collections.abc import Callable
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import seeds

from landscape.arrays import trees
from landscape.duality.branches import ACTIVATIONS
from landscape.duality.certified.interval_rules import Bounds
from landscape.duality.certified.intervals import NoRule, bounds, enclose

OTHERS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "ends": lambda x: jnp.maximum(x, 0.2) + jnp.minimum(x, 0.1) * x - jnp.clip(x, -0.3, 0.4),
    "exact gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "elu": jax.nn.elu,
    "others": lambda x: (
        (x**3 + (1 + x * x) ** -1.5 + 1 / (2 + jnp.cos(x))) * (jnp.sqrt(0.1 + x**2) + jax.lax.rsqrt(1 + jnp.abs(x)))
        + (jnp.log(2 + x * x) + jnp.log1p(x * x) + jnp.expm1(x) + jnp.exp2(x))
    ),
    "where": lambda x: jnp.where((x > 0.1) & ~(x > 0.5), (x - 0.1) * (x - 0.5), 0.0),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", [*ACTIVATIONS, *OTHERS])
def test_bounds_hold_and_shrink(name: str) -> None:
    """On fresh boxes f and its derivative stay inside; the excess of the bounds is of second order in the box."""
    seed = int(seeds.generator().integers(2**31))
    rng = np.random.default_rng(seed)
    sigma = (ACTIVATIONS | OTHERS)[name]
    with trees.float64():
        x = jnp.asarray(rng.normal(size=7))

        def f(w: jax.Array) -> jax.Array:
            return jnp.mean(w[0] * sigma(w[1] * x + 0.37))

        corner = jnp.asarray(rng.uniform(-1, 1, (50, 2)))
        excess = []
        enclosed = jax.vmap(lambda lo, hi: enclose(f, lo, hi))
        for size in (0.2, 0.01):
            found = enclosed(corner, corner + size)
            points = corner[:, None, :] + size * jnp.asarray(rng.uniform(size=(50, 40, 2)))
            values, slopes = jax.vmap(jax.vmap(jax.value_and_grad(f)))(points)
            assert (found.lo[:, None] <= values).all(), seed
            assert (found.hi[:, None] >= values).all(), seed
            assert (found.slope_lo[:, None, :] <= slopes + 1e-14).all(), seed
            assert (found.slope_hi[:, None, :] >= slopes - 1e-14).all(), seed
            centre = jax.vmap(f)(corner + size / 2)
            assert (found.centre_lo <= centre).all(), seed
            assert (centre <= found.centre_hi).all(), seed
            linear = jnp.sum(jnp.abs(jax.vmap(jax.grad(f))(corner + size / 2)), 1) * size
            excess.append(float(jnp.median(found.hi - found.lo - linear)))
        assert excess[1] < excess[0] / 30 + 1e-12, (seed, excess)


def test_maximum_is_exact_away_from_its_kink() -> None:
    """Written with jnp.maximum or as relu, a unit that is on has one slope."""
    with trees.float64():
        lo, hi = jnp.array([0.5, 0.5]), jnp.array([0.75, 1.0])
        for relu in (jax.nn.relu, lambda x: jnp.maximum(x, 0), lambda x: jnp.maximum(0, x)):
            found = enclose(lambda w, r=relu: r(w[0]) + 3 * r(w[1]), lo, hi)
            np.testing.assert_allclose(found.slope_lo, [1, 3], rtol=1e-12)
            np.testing.assert_allclose(found.slope_hi, [1, 3], rtol=1e-12)


def test_products_and_convolutions_of_two_ranges() -> None:
    rng = seeds.generator()
    with trees.float64():
        a, b = jnp.asarray(rng.normal(size=(3, 4))), jnp.asarray(rng.normal(size=(4, 2)))
        image, kernel = jnp.asarray(rng.normal(size=(1, 1, 6, 6))), jnp.asarray(rng.normal(size=(2, 1, 3, 3)))
        for f, left, right in ((jnp.matmul, a, b), (lambda x, k: jax.lax.conv(x, k, (1, 1), "SAME"), image, kernel)):
            found = bounds(f, Bounds(left - 0.1, left + 0.1), Bounds(right - 0.2, right + 0.2))
            for _ in range(100):
                value = f(
                    left + jnp.asarray(rng.uniform(-0.1, 0.1, left.shape)),
                    right + jnp.asarray(rng.uniform(-0.2, 0.2, right.shape)),
                )
                assert (found.lo <= value).all()
                assert (value <= found.hi).all()


def test_what_cannot_be_bounded_is_unbounded_or_refused() -> None:
    with trees.float64():
        box = Bounds(jnp.array([-1.0]), jnp.array([1.0]))
        through_zero = bounds(lambda w: 1 / w[0], box)
        assert jnp.isneginf(through_zero.lo)
        assert jnp.isposinf(through_zero.hi)
        with pytest.raises(NoRule, match=r"(?s)'sort'.*lipschitz"):
            bounds(lambda w: jnp.sort(jnp.concatenate([w, -w]))[0], box)
        with pytest.raises(NoRule, match="scan"):
            bounds(lambda w: jax.lax.scan(lambda c, _: (c * w[0], None), 1.0, None, length=3)[0], box)


def test_rounding_is_outward() -> None:
    """The bounds at a single point hold the value in exact arithmetic."""
    rng = seeds.generator()
    with trees.float64():
        for _ in range(20):
            w = rng.normal(size=9)
            found = bounds(lambda v: jnp.sum(v * v * v), Bounds(jnp.asarray(w), jnp.asarray(w) + 0.0))
            exact = sum(Fraction(float(v)) ** 3 for v in w)
            assert Fraction(float(found.lo)) <= exact <= Fraction(float(found.hi))
            assert found.hi - found.lo < 1e-12
