"""Any chunk gives the whole sum and its derivatives; only one chunk's values are ever alive."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import seeds

from landscape.arrays.chunked import chunked_sum

LENGTH = 11


def part(xs: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Sums over the leading axis of a tree, with shapes that differ from the inputs'."""
    return {"outer": jnp.einsum("ni,nj->ij", xs["x"], jnp.sin(xs["x"])), "total": (xs["y"] ** 2).sum()}


def inputs() -> dict[str, jax.Array]:
    rng = seeds.generator()
    return {"x": jnp.asarray(rng.normal(size=(LENGTH, 3)), "f4"), "y": jnp.asarray(rng.normal(size=LENGTH), "f4")}


@pytest.mark.parametrize("chunk", [1, 2, 4, 10, LENGTH, LENGTH + 1, 100])
def test_any_chunk_is_the_whole(chunk: int) -> None:
    xs = inputs()

    @jax.jit
    def both(xs: dict[str, jax.Array]) -> tuple:
        def objective(xs: dict[str, jax.Array]) -> jax.Array:
            found = chunked_sum(part, xs, chunk)
            return jnp.sum(found["outer"] ** 3) + found["total"]

        tangent = jax.jvp(objective, (xs,), (xs,))[1]
        return chunked_sum(part, xs, chunk), jax.grad(objective)(xs), tangent

    found, slope, tangent = both(xs)
    x, y = (np.asarray(xs[name], float) for name in "xy")
    outer = sum(np.outer(row, np.sin(row)) for row in x)
    np.testing.assert_allclose(found["outer"], outer, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found["total"], (y**2).sum(), rtol=1e-5)
    lead = 3 * outer**2  # d objective / d outer
    by_x = np.stack([lead @ np.sin(row) + np.cos(row) * (lead.T @ row) for row in x])
    np.testing.assert_allclose(slope["x"], by_x, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(slope["y"], 2 * y, rtol=1e-5)
    np.testing.assert_allclose(tangent, (by_x * x).sum() + 2 * (y**2).sum(), rtol=1e-4, atol=1e-3)


def test_one_chunk_is_alive_at_a_time() -> None:
    weights = jnp.ones((64, 64))

    def values(x: jax.Array) -> jax.Array:
        return jnp.tanh(jnp.tanh(x[:, None] * jnp.arange(64.0)[None]) @ weights).sum()

    def temporary(length: int, chunk: int) -> int:
        step = jax.jit(jax.grad(lambda x: chunked_sum(values, x, chunk)))
        compiled = step.lower(jax.ShapeDtypeStruct((length,), jnp.float32)).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    few, many = temporary(1024, 32), temporary(4096, 32)
    assert many < 4096 * 64 * 4 / 8  # an eighth of one layer of all
    assert many - few <= 8 * (4096 - 1024)  # the inputs and their gradient, not the values made from them


def test_the_program_does_not_grow_with_the_number_of_chunks() -> None:
    def lines(length: int) -> int:
        run = jax.jit(lambda x: chunked_sum(jnp.sum, x, 3))
        return len(run.lower(jax.ShapeDtypeStruct((length,), jnp.float32)).as_text().splitlines())

    assert lines(7) == lines(3001)
