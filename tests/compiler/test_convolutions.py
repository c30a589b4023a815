"""Convolutions as products equal XLA's own, whatever their layout, strides, padding, dilation and rank."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import seeds
from jax import lax
from jax.extend import core as jcore

from landscape.compiler import flatten

LAYOUTS = [("NHWC", "HWIO", "NHWC"), ("NCHW", "OIHW", "NCHW"), ("NHWC", "OIHW", "NCHW"), ("HWNC", "IHWO", "CNHW")]
PATCHES, ROWS = flatten.How(patches=True), flatten.How(rows=True)


def drawn(layout: tuple[str, ...], channels: int, n: int, window: dict[str, int]) -> tuple[jax.Array, jax.Array]:
    """A kernel and images in a layout."""
    rng, sizes = seeds.generator(), {"N": n, "H": 9, "W": 11, "D": 5, "C": channels, "I": channels, "O": 4}
    kernel, x = (
        jnp.asarray(rng.normal(size=[(sizes | of)[axis] for axis in axes]), jnp.float32)
        for axes, of in ((layout[1], window), (layout[0], {}))
    )
    return kernel, x


def check(how: flatten.How, kernel: jax.Array, x: jax.Array, **options: Any) -> None:
    """No convolution is left; values and gradients are those of XLA's."""

    def f(kernel: jax.Array, x: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(x, kernel, **options)

    closed = flatten.flat(jax.make_jaxpr(f)(kernel, x), how)
    assert "conv" not in str(closed)
    fast = jax.jit(jcore.jaxpr_as_fun(closed))
    np.testing.assert_allclose(fast(kernel, x)[0], f(kernel, x), rtol=1e-4, atol=1e-5)
    slopes = [
        jax.grad(lambda k, x, g=g: jnp.sin(g(k, x)).sum(), (0, 1))(kernel, x) for g in (f, lambda *a: fast(*a)[0])
    ]
    for one, other in zip(*slopes, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("how", [PATCHES, ROWS])
@pytest.mark.parametrize(
    ("strides", "padding", "dilation"),
    [
        ((1, 1), "SAME", (1, 1)),
        ((2, 1), "VALID", (1, 2)),
        ((2, 3), [(2, 1), (0, 3)], (2, 1)),
        ((1, 1), [(-1, 0)] * 2, (1, 1)),
    ],
)
def test_in_two_dimensions(layout, how, strides, padding, dilation) -> None:
    arrays = drawn(layout, 3, 1 if how.patches else 2, {"H": 3, "W": 2})
    check(how, *arrays, window_strides=strides, padding=padding, rhs_dilation=dilation, dimension_numbers=layout)


@pytest.mark.parametrize(
    ("layout", "window"), [(("NWC", "WIO", "NWC"), {"W": 3}), (("NCHWD", "OIHWD", "NCHWD"), {"H": 3, "W": 1, "D": 2})]
)
def test_in_one_and_three_dimensions(layout, window) -> None:
    strides = tuple(range(1, len(window) + 1))
    check(ROWS, *drawn(layout, 1, 2, window), window_strides=strides, padding="SAME", dimension_numbers=layout)


@pytest.mark.parametrize("layout", LAYOUTS[1:])
@pytest.mark.parametrize("groups", [{}, {"feature_group_count": 4}, {"batch_group_count": 4}, {"lhs_dilation": (2, 1)}])
def test_channels_are_put_last(layout, groups: dict[str, Any]) -> None:
    kernel, x = drawn(layout, 16, 4, {"H": 3, "W": 2, "I": 4 if "feature_group_count" in groups else 16})
    options = {"window_strides": (2, 1), "padding": [(1, 0), (0, 2)], "rhs_dilation": (1, 2)} | groups

    def f(kernel: jax.Array, x: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(x, kernel, **options, dimension_numbers=layout)

    closed = flatten.flat(jax.make_jaxpr(f)(kernel, x), ROWS)
    assert "lhs_spec=(0, 3, 1, 2), rhs_spec=(3, 2, 0, 1), out_spec=(0, 3, 1, 2)" in str(closed)
    np.testing.assert_allclose(jcore.jaxpr_as_fun(closed)(kernel, x)[0], f(kernel, x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("why", ["channels", "groups", "batch groups", "transposed", "integers"])
def test_other_convolutions_are_left_alone(why: str) -> None:
    layout = LAYOUTS[0]
    kernel, x = drawn(layout, 16 if why == "channels" else 4, 4, {"H": 3, "W": 3})
    options: dict[str, Any] = {"window_strides": (1, 1), "padding": "SAME", "dimension_numbers": layout}
    options |= {"groups": {"feature_group_count": 4}, "batch groups": {"batch_group_count": 4}}.get(why, {})
    options |= {"lhs_dilation": (2, 2), "padding": [(0, 0)] * 2} if why == "transposed" else {}
    kernel = kernel[:, :, :1] if why == "groups" else kernel
    kernel, x = (t.astype(int) for t in (kernel, x)) if why == "integers" else (kernel, x)
    traced = jax.make_jaxpr(lambda k, x: lax.conv_general_dilated(x, k, **options))(kernel, x)
    assert "conv" in str(flatten.flat(traced, ROWS))
