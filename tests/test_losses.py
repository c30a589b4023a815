"""Losses equal loops over examples and classes in float64, in every layout in which they are called."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import seeds

from landscape import losses
from landscape.arrays import trees

BINARY = {"hinge": losses.hinge, "tau_hinge": losses.tau_hinge(tau=0.3), "logistic": losses.logistic}
CLASSES = {name: losses.BY_NAME[name] for name in ("multiclass_hinge", "squared", "logistic")}


def oracle(name, f, y):
    """One example: outputs [C], one label."""
    if name == "multiclass_hinge":
        return sum(max(0.0, 1 + f[j] - f[y]) for j in range(len(f)) if j != y)
    if name == "squared":
        target = [float(y)] if len(f) == 1 else [float(j == y) for j in range(len(f))]
        return sum((a - b) ** 2 for a, b in zip(f, target, strict=True))
    if name == "logistic" and len(f) > 1:
        return math.log(sum(math.exp(v - f[y]) for v in f))
    return {"logistic": math.log1p(math.exp(-y * f[0])), "hinge": max(0.0, 1 - y * f[0])}.get(
        name, max(0.0, 1 - y * f[0] / 0.3)
    )


def draw(classes):
    seed = seeds.draw()
    rng = np.random.default_rng(seed)
    outputs = rng.normal(size=(37, classes)) * 3
    labels = rng.choice([-1, 1], 37) if classes == 1 else rng.integers(0, classes, 37)
    return f"seed {seed}", outputs, labels


CASES = [*((n, f, 1) for n, f in BINARY.items()), *((n, f, c) for n, f in CLASSES.items() for c in (2, 10))]


@pytest.mark.parametrize(("name", "loss", "classes"), CASES)
def test_equal_a_loop(name, loss, classes):
    seed, outputs, labels = draw(classes)
    wanted = [oracle(name, f, y) for f, y in zip(outputs.tolist(), labels.tolist(), strict=True)]
    with trees.float64():
        np.testing.assert_allclose(loss(jnp.asarray(outputs), jnp.asarray(labels)), wanted, rtol=1e-12, err_msg=seed)
    got = loss(jnp.asarray(outputs, jnp.float32), jnp.asarray(labels))
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5, err_msg=seed)


@pytest.mark.parametrize(("name", "loss", "classes"), CASES)
def test_one_example_a_batch_sample_minor_and_more_axes_agree(name, loss, classes):
    seed, outputs, labels = draw(classes)
    f, y = jnp.asarray(outputs, jnp.float32), jnp.asarray(labels)
    f, y = f[:3], y[:3]
    whole = loss(f, y)
    for other in (
        jax.jit(lambda g: loss(g.T, y))(f.T),
        jax.vmap(loss)(f, y),
        jnp.stack([loss(f[n], y[n]) for n in range(3)]),
        jax.vmap(lambda s: loss(s * f, y))(jnp.ones(2))[1],
    ):
        np.testing.assert_allclose(other, whole, rtol=1e-5, atol=1e-6, err_msg=seed)


@pytest.mark.parametrize(("name", "loss", "classes"), CASES)
def test_gradients_equal_differences(name, loss, classes):
    seed, outputs, labels = draw(classes)
    step = np.random.default_rng(0).normal(size=outputs.shape)
    with trees.float64():

        def total(f):
            return loss(f, jnp.asarray(labels)).sum()

        slope = (total(outputs + 1e-7 * step) - total(outputs - 1e-7 * step)) / 2e-7
        np.testing.assert_allclose((jax.grad(total)(jnp.asarray(outputs)) * step).sum(), slope, rtol=1e-5, err_msg=seed)


def test_the_hinge_is_the_tau_hinge_of_one_and_scales_with_tau():
    _, outputs, labels = draw(1)
    f, y = jnp.asarray(outputs), jnp.asarray(labels)
    np.testing.assert_array_equal(losses.hinge(f, y), losses.tau_hinge(f, y))
    np.testing.assert_allclose(losses.tau_hinge(7 * f, y, tau=7.0), losses.hinge(f, y), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(losses.tau_hinge(tau=2.5)(f, y), losses.tau_hinge(f, y, 2.5))


def test_no_margin_violated_is_exactly_zero():
    """Not merely small: the global minimum of Table 1 is zero."""
    f = jnp.asarray(seeds.generator().normal(size=(50, 10)) * 1e3, jnp.float32)
    y = jnp.argmax(f, 1)
    f = f + 1.5 * jax.nn.one_hot(y, 10)
    assert float(losses.multiclass_hinge(f, y).max()) == 0


@pytest.mark.parametrize("tau", [0.0, -1.0, math.nan, math.inf])
def test_tau_must_be_positive(tau):
    with pytest.raises(ValueError, match="tau must be positive"):
        losses.tau_hinge(tau=tau)
    with pytest.raises(ValueError, match="tau must be positive"):
        losses.tau_hinge(jnp.ones([3, 1]), jnp.ones(3), tau)


@pytest.mark.parametrize(
    ("loss", "outputs", "labels"),
    [
        (losses.hinge, (5, 10), np.ones(5, "i4")),
        (losses.hinge, (5,), np.ones(5, "f4")),
        (losses.hinge, (5, 1), np.ones((5, 1), "f4")),
        (losses.multiclass_hinge, (5, 1), np.ones(5, "i4")),
        (losses.multiclass_hinge, (5, 10), np.ones(5, "f4")),
        (losses.logistic, (5, 10), np.ones(5, "f4")),
        (losses.squared, (5, 3), np.ones(5, "f4")),
    ],
)
def test_outputs_and_labels_that_do_not_fit_are_refused(loss, outputs, labels):
    with pytest.raises(ValueError, match=r"got outputs \(5"):
        loss(jnp.ones(outputs), jnp.asarray(labels))


@pytest.mark.parametrize(
    ("loss", "classes", "labels"),
    [
        (losses.hinge, 1, [0, 1, 1]),
        (losses.logistic, 1, [-1, 1, 2]),
        (losses.multiclass_hinge, 3, [0, 1, 3]),
        (losses.logistic, 3, [-1, 1, 2]),
    ],
)
def test_labels_that_mean_nothing_to_the_loss_are_refused(loss, classes, labels):
    with pytest.raises(ValueError, match=r"takes (labels -1 and \+1|classes 0)|with one output takes"):
        loss(jnp.zeros([3, classes]), jnp.asarray(labels))


def test_squared_takes_targets_of_the_outputs_shape():
    seed, outputs, _ = draw(4)
    targets = outputs[::-1]
    got = losses.squared(jnp.asarray(outputs), jnp.asarray(targets))
    np.testing.assert_allclose(got, ((outputs - targets) ** 2).sum(1), rtol=1e-5, err_msg=seed)


def test_every_loss_has_the_name_it_is_chosen_by():
    synonyms = {"mse": "squared", "cross_entropy": "logistic"}
    wanted = {name: synonyms.get(name, name) for name in losses.BY_NAME}
    assert {name: loss.__name__ for name, loss in losses.BY_NAME.items()} == wanted


def test_the_losses_of_probabilities_equal_their_definitions_in_float64():
    rng = seeds.generator()
    scores, classes, signs = rng.normal(size=(40, 5)), rng.integers(0, 5, 40), rng.integers(0, 2, (40, 5))
    probabilities = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    own = -np.log(probabilities[np.arange(40), classes])
    f = jnp.asarray(probabilities, jnp.float32)
    np.testing.assert_allclose(losses.nll(jnp.log(f), classes), own, rtol=1e-5)
    np.testing.assert_allclose(losses.log_of_probability(f, classes), own, rtol=1e-5)
    np.testing.assert_allclose(
        losses.BY_NAME["cross_entropy"](jnp.asarray(scores, jnp.float32), classes), own, rtol=1e-5
    )
    chance = 1 / (1 + np.exp(-scores))
    binary = -np.where(signs, np.log(chance), np.log(1 - chance))
    f = jnp.asarray(scores, jnp.float32)
    np.testing.assert_allclose(losses.bce(f, signs), binary.mean(1), rtol=1e-5)
    np.testing.assert_allclose(losses.bce(f[:, :1], signs[:, 0]), binary[:, 0], rtol=1e-5)
    assert jnp.isfinite(losses.log_of_probability(jnp.array([[1.0, 0.0]]), jnp.array([1]))).all()
    for y, words in ((2 * signs - 1, "labels 0 and 1"), (classes, "as many labels")):
        with pytest.raises(ValueError, match=words):
            losses.bce(f, y)
