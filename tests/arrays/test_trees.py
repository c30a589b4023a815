"""The pytree algebra equals NumPy's on the concatenated vector."""

import jax
import numpy as np
import seeds

from landscape.arrays import trees


def tree(rng):
    return {"a": rng.normal(size=(3, 2)).astype("f4"), "b": [rng.normal(size=4).astype("f4")]}


def flat(t):
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(t)])


def test_algebra_equals_that_of_the_concatenated_vector():
    seed = seeds.draw()
    rng = np.random.default_rng(seed)
    a, b = tree(rng), tree(rng)
    np.testing.assert_allclose(trees.vdot(a, b), flat(a) @ flat(b), rtol=1e-4, atol=1e-5, err_msg=str(seed))
    np.testing.assert_allclose(trees.norm(a), np.linalg.norm(flat(a)), rtol=1e-5, err_msg=str(seed))
    np.testing.assert_allclose(flat(trees.axpy(2.0, a, b)), 2 * flat(a) + flat(b), rtol=1e-5, err_msg=str(seed))
    np.testing.assert_allclose(flat(trees.subtract(a, b)), flat(a) - flat(b), rtol=1e-5, err_msg=str(seed))


def test_sizes():
    t = tree(np.random.default_rng(0))
    assert trees.size(t) == 10
    assert trees.nbytes(t) == 40


def test_float64_is_double_inside_and_single_outside():
    with trees.float64():
        assert jax.numpy.ones(1).dtype == "float64"
    assert jax.numpy.ones(1).dtype == "float32"
