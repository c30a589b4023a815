"""Whatever examples, outputs and number types a network has: surfaces against loops in float64 NumPy."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest
import seeds

import landscape as ls
from landscape.evaluation import curvature, profile
from landscape.explore.inputs import further
from landscape.losses import IGNORED
from landscape.networks import Network
from landscape.surfaces import Surface

N, T, V, H, C = 13, 5, 7, 4, 3
"""Examples, tokens, words, hidden units, classes."""


def normal(**shapes: tuple[int, ...]):
    """`init` of named Gaussian parameters."""

    def init(key: jax.Array) -> dict[str, jax.Array]:
        keys = jax.random.split(key, len(shapes))
        return {name: jax.random.normal(k, shape) for k, (name, shape) in zip(keys, shapes.items(), strict=True)}

    return init


def cross_entropy(f: np.ndarray, y: np.ndarray) -> np.ndarray:
    """−log softmax at the class; the mean over the labels of an example that are not ignored."""
    f = f - f.max(-1, keepdims=True)
    log = f - np.log(np.exp(f).sum(-1, keepdims=True))
    values = -np.take_along_axis(log, np.where(y == IGNORED, 0, y)[..., None], -1)[..., 0]
    if y.ndim == 1:
        return values
    there = y != IGNORED
    return (values * there).sum(1) / np.maximum(there.sum(1), 1)


def embedded(w, x):
    return np.tanh(w["e"][x].mean(1)) @ w["o"]


WORDS = normal(e=(V, H), o=(H, C))


def draw_cases():
    """Networks by name: init, apply, x, y, the same forward pass in NumPy."""
    rng = seeds.generator()
    tokens, y = rng.integers(0, V, (N, T)), rng.integers(0, C, N)
    image, x = rng.normal(size=(N, T, H)).astype("f4"), rng.normal(size=(N, H)).astype("f4")
    per_token = np.where(rng.random((N, T)) < 0.3, IGNORED, rng.integers(0, V, (N, T)))
    layer = normal(o=(H, C))

    def asserting(w, x):
        assert x.ndim == 2
        return x @ w["o"]

    def both(w, x):  # on one example, too, but along another axis
        with jax.numpy_rank_promotion("allow"):
            return jnp.tanh(x[..., None] * w["s"]).mean(axis=1)

    return {
        "embedding": (WORDS, lambda w, x: jnp.tanh(w["e"][x].mean(axis=1)) @ w["o"], tokens, y, embedded),
        "words as rows": (normal(e=(V, C)), lambda w, x: w["e"][x], tokens[:, 0], y, lambda w, x: w["e"][x]),
        "booleans": (
            normal(o=(T, C)),
            lambda w, x: jnp.where(x[..., None], w["o"], 0.0).sum(1),
            tokens > 2,
            y,
            lambda w, x: x.astype(float) @ w["o"],
        ),
        "bytes": (
            normal(o=(T, C)),
            lambda w, x: x.astype("f4") @ w["o"] / 255,
            (30 * tokens).astype("u1"),
            y,
            lambda w, x: x.astype(float) @ w["o"] / 255,
        ),
        "language model": (
            normal(e=(V, H), o=(H, V)),
            lambda w, x: jnp.tanh(w["e"][x]) @ w["o"],
            tokens,
            per_token,
            lambda w, x: np.tanh(w["e"][x]) @ w["o"],
        ),
        "tuple": (
            WORDS,
            lambda w, x: jnp.tanh(x[0] + w["e"][x[1]]) @ w["o"],
            (x, tokens[:, 0]),
            y,
            lambda w, x: np.tanh(x[0] + w["e"][x[1]]) @ w["o"],
        ),
        "dictionary": (
            layer,
            lambda w, x: jnp.tanh(x["left"] @ w["o"]) * x["right"],
            {"left": x, "right": x[:, :1]},
            y,
            lambda w, x: np.tanh(x["left"] @ w["o"]) * x["right"],
        ),
        "slices": (layer, lambda w, x: x[:, :1] * (x @ w["o"]), x, y, lambda w, x: x[:, :1] * (x @ w["o"])),
        "sizes": (layer, lambda w, x: x @ w["o"] / x.shape[1], x, y, lambda w, x: x @ w["o"] / x.shape[1]),
        "means": (
            layer,
            lambda w, x: (x - x.mean(axis=1, keepdims=True)) @ w["o"],
            x,
            y,
            lambda w, x: (x - x.mean(axis=1, keepdims=True)) @ w["o"],
        ),
        "assertion": (layer, asserting, x, y, lambda w, x: x @ w["o"]),
        "two readings": (
            normal(s=(1, C)),
            both,
            x[:, :C],
            y,
            lambda w, x: np.tanh(x[..., None] * w["s"]).mean(axis=1),
        ),
        "time steps": (
            layer,
            lambda w, x: jnp.tanh(x @ w["o"]).mean(1),
            image,
            y,
            lambda w, x: np.tanh(x @ w["o"]).mean(1),
        ),
        "one example": (normal(o=(C, H)), lambda w, x: jnp.tanh(w["o"] @ x), x, y, lambda w, x: np.tanh(x @ w["o"].T)),
    }


def drawn_cases(count: int) -> set[str]:
    """Some of the cases, others every session: each of their programs takes seconds to compile."""
    return set(np.random.default_rng(seeds.SEED).choice(list(draw_cases()), count, replace=False))


@pytest.mark.slow
@pytest.mark.parametrize("name", draw_cases())
def test_every_kind_of_example_and_output(name: str) -> None:
    init, apply, x, y, forward = draw_cases()[name]
    network = ls.MultiBranch(Network(init, apply), 3)
    problem = ls.Problem(ls.Dataset(x, y), network, ls.losses.logistic)
    solutions = [network.init(jax.random.key(seeds.draw())) for _ in range(3)]
    plane = ls.planes.through_solutions(*solutions)
    surface = ls.evaluate(problem, plane, ls.grid_around(plane, points=4), progress=False)

    def risk(w) -> float:
        branches = [forward({k: t[i] for k, t in w.items()}, x) for i in range(3)]
        return float(cross_entropy(np.mean(branches, 0), np.asarray(y)).mean())

    np.testing.assert_allclose(surface.risk, oracles.surface(plane.affine, surface.grid, risk), rtol=2e-5, atol=1e-6)
    other = ls.evaluate(problem, plane, surface.grid, route="direct", progress=False)
    np.testing.assert_allclose(other.risk, surface.risk, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(other.anchor_risk, surface.anchor_risk, rtol=1e-5, atol=1e-6)
    at_solutions = [float(problem.risk(w)) for w in solutions]
    np.testing.assert_allclose(surface.anchor_risk, at_solutions, rtol=1e-5)
    if name not in drawn_cases(4):
        return
    line = profile(problem, *solutions[:2], points=3)
    np.testing.assert_allclose(line[[0, -1]], at_solutions[:2], rtol=1e-5)
    bend = curvature.in_plane(problem, plane, ls.Grid(np.arange(2.0), np.arange(2.0)))
    slope = oracles.slope(risk, oracles.float64(plane.origin), oracles.float64(plane.u))
    np.testing.assert_allclose(bend.gradient[0, 0, 0], slope, rtol=1e-3, atol=1e-4)
    moved = ls.alignment.align(problem, solutions[0], solutions[1], by="outputs")
    np.testing.assert_allclose(problem.risk(moved), at_solutions[1], rtol=1e-5)
    trained = ls.train(problem, jax.random.split(jax.random.key(0), 2), optax.sgd(0.3), steps=1, batch_size=N,
                       start=jax.tree.map(lambda *t: jnp.stack(t), *solutions[:2]), progress=False)  # fmt: skip
    step = jax.tree.map(lambda w, g: w - 0.3 * g, solutions[0], problem.gradient(solutions[0]))
    for found, wanted in zip(jax.tree.leaves(trained[0]), jax.tree.leaves(step), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_more_branches_than_a_chunk_train_on_whole_numbers() -> None:
    init, apply, x, y, _ = draw_cases()["tuple"]
    network = ls.MultiBranch(Network(init, apply), 5, branch_chunk=2)
    problem = ls.Problem(ls.Dataset(x, y), network, ls.losses.logistic)
    w = network.init(jax.random.key(seeds.draw()))
    trained = ls.train(problem, jax.random.split(jax.random.key(0), 1), optax.sgd(1.0), steps=1, batch_size=N,
                       start=jax.tree.map(lambda t: t[None], w), progress=False)  # fmt: skip
    wanted = jax.tree.map(lambda p, g: p - g, w, problem.gradient(w))
    for found, expected in zip(jax.tree.leaves(trained[0]), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


class Convolution(nn.Module):
    """A linen network for batches of images only."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(C)(nn.relu(nn.Conv(4, (3, 3))(x)).mean((1, 2)))


def test_a_convolution_for_batches_equals_its_own_forward_pass() -> None:
    rng = seeds.generator()
    x, y = rng.normal(size=(N, 6, 6, 1)).astype("f4"), rng.integers(0, C, N)
    branch = ls.from_linen(Convolution(), x[:1])
    problem = ls.Problem(ls.Dataset(x, y), ls.MultiBranch(branch, 1), ls.losses.logistic)
    w = branch.init(jax.random.key(seeds.draw()))
    wanted = cross_entropy(np.asarray(Convolution().apply({"params": w}, x), float), y).mean()
    np.testing.assert_allclose(problem.risk(jax.tree.map(lambda t: t[None], w)), wanted, rtol=1e-5)


@pytest.mark.parametrize(
    "mix", [lambda f: f - f.mean(0, keepdims=True), lambda f: jax.nn.softmax(f, 0), lambda f: jnp.cumsum(f, 0)]
)
def test_examples_that_depend_on_each_other_are_refused_as_what_they_are(mix) -> None:
    rng = seeds.generator()
    data = ls.Dataset(rng.normal(size=(N, H)).astype("f4"), rng.integers(0, C, N))
    problem = ls.Problem(data, Network(normal(o=(H, C)), lambda w, x: mix(x @ w["o"])), ls.losses.logistic)
    keys = jax.random.split(jax.random.key(seeds.draw()), 3)
    plane = ls.planes.through_solutions(*map(problem.network.init, keys))
    with pytest.raises(ValueError, match="depend on the other examples of its batch"):
        ls.evaluate(problem, plane, progress=False)
    with pytest.raises(ValueError, match="depend on the other examples of its batch"):
        ls.train(problem, keys, optax.sgd(0.1), steps=1, batch_size=4, progress=False)


@pytest.mark.parametrize("back", [False, True])
def test_products_in_bfloat16_are_rounding_and_said_to_be(back: bool) -> None:
    rng = seeds.generator()
    x, y = rng.normal(size=(N, H)).astype("f4"), rng.integers(0, C, N)

    def apply(w, x):
        f = x.astype(jnp.bfloat16) @ w["o"].astype(jnp.bfloat16)
        return f.astype(jnp.float32) if back else f

    problem = ls.Problem(ls.Dataset(x, y), Network(normal(o=(H, C)), apply), ls.losses.logistic)
    plane = ls.planes.through_solutions(*map(problem.network.init, jax.random.split(jax.random.key(seeds.draw()), 3)))
    found = ls.evaluate(problem, plane, ls.grid_around(plane, points=3), progress=False)
    checks = found.metadata["checks"]
    assert checks["rounding"] == "bfloat16"
    assert checks["relative_difference"] < checks["tolerance"]
    of_function = ls.evaluate(lambda w: problem.risk(w), plane, ls.grid_around(plane, points=3), progress=False)
    assert of_function.metadata["checks"]["rounding"] == "bfloat16"


@pytest.mark.filterwarnings("ignore:.*hold no floating-point numbers")
def test_a_network_may_hold_a_counter_a_key_and_an_empty_array() -> None:
    rng, draw = seeds.generator(), normal(o=(H, C))

    def init(key: jax.Array) -> dict[str, jax.Array]:
        return draw(key) | {"n": jnp.array(2), "key": key, "none": jnp.zeros((0, 3))}

    x, y = rng.normal(size=(N, H)).astype("f4"), rng.integers(0, C, N)
    network = ls.MultiBranch(Network(init, lambda w, x: jnp.tanh(x @ w["o"] * w["n"])), 3)
    problem = ls.Problem(ls.Dataset(x, y), network, ls.losses.logistic)
    solutions = [network.init(jax.random.key(seeds.draw())) for _ in range(3)]
    plane = ls.planes.through_solutions(*solutions)
    surface = ls.evaluate(problem, plane, ls.grid_around(plane, points=3), progress=False)

    def risk(w) -> float:
        return float(cross_entropy(np.tanh(2 * x @ w["o"]).mean(0), y).mean())

    wanted = [[risk({"o": np.asarray(plane.at((a, b))["o"], float)}) for b in surface.grid.b] for a in surface.grid.a]
    np.testing.assert_allclose(surface.risk, wanted, rtol=2e-5)
    np.testing.assert_allclose(surface.anchor_risk, [float(problem.risk(w)) for w in solutions], rtol=1e-5)


@pytest.mark.parametrize("kind", [jnp.float16, jnp.bfloat16])
def test_half_precision_networks_run_in_their_own_type_on_planes_in_float32(kind) -> None:
    seen, draw = set(), normal(k=(H, C), o=(C, C))

    def apply(w, x):
        seen.add(str(w["k"].dtype))
        return jnp.tanh(x.astype(kind) @ w["k"]) @ w["o"]

    network = Network(lambda key: jax.tree.map(lambda t: t.astype(kind), draw(key)), apply)
    rng = seeds.generator()
    data = ls.Dataset(rng.normal(size=(N, H)).astype("f4"), rng.integers(0, C, N))
    problem = ls.Problem(data, network, ls.losses.logistic)
    solutions = [problem.network.init(key) for key in jax.random.split(jax.random.key(seeds.draw()), 3)]
    at_solutions = [float(problem.risk(w)) for w in solutions]
    plane = ls.planes.through_solutions(*solutions)
    surface = ls.evaluate(problem, plane, ls.grid_around(plane, points=3), progress=False)
    np.testing.assert_allclose(surface.anchor_risk, at_solutions, rtol=1e-5)
    np.testing.assert_allclose(profile(problem, *solutions[:2], points=3)[[0, -1]], at_solutions[:2], rtol=1e-5)
    middle = jax.tree.map(lambda t: t.astype(kind), plane.at((surface.grid.a[1], surface.grid.b[1])))
    np.testing.assert_allclose(surface.risk[1, 1], problem.risk(middle), rtol=1e-5)
    assert surface.metadata["checks"]["rounding"] == jnp.dtype(kind).name
    assert seen == {jnp.dtype(kind).name}


def test_half_precision_parameters_make_a_plane_in_float32() -> None:
    rng = seeds.generator()
    several = [{"o": jnp.asarray(100 * rng.normal(size=(30, 40)), jnp.float16)} for _ in range(3)]
    plane = ls.planes.through_solutions(*several)  # squares overflow in float16
    flat = np.stack([np.asarray(w["o"], np.float64).ravel() for w in several])
    distances = np.linalg.norm(flat[1:] - flat[0], axis=1)
    np.testing.assert_allclose(np.linalg.norm(plane.anchors[1:], axis=1), distances, rtol=1e-5)
    for w, ab in zip(flat, plane.anchors, strict=True):
        np.testing.assert_allclose(np.ravel(plane.at(tuple(ab))["o"]), w, rtol=1e-4, atol=1e-3)


def test_complex_parameters_are_refused_in_a_sentence() -> None:
    several = [{"o": jnp.full(3, k + 1j)} for k in range(3)]
    with pytest.raises(ValueError, match=r"\['o'\] is complex"):
        ls.planes.through_solutions(*several)


def test_leaves_that_are_no_parameters_stay_out_of_the_plane_and_are_named() -> None:
    rng = seeds.generator()
    several = [{"w": jnp.asarray(rng.normal(size=4), jnp.float32)} for _ in range(3)]
    plain = ls.planes.through_solutions(*several)
    counted = [w | {"step": jnp.array(1000 * k), "key": jax.random.key(k)} for k, w in enumerate(several)]
    with pytest.warns(UserWarning, match=r"\['key'\], \['step'\]"):
        plane = ls.planes.through_solutions(*counted)
    np.testing.assert_allclose(plane.anchors, plain.anchors)
    with pytest.warns(UserWarning, match="step"):
        surface = ls.evaluate(lambda w: (w["w"] ** 2).sum() + w["step"], plane, progress=False)
    np.testing.assert_allclose(surface.anchor_risk, [float((w["w"] ** 2).sum()) for w in several], rtol=1e-5)


def test_moments_of_an_optimiser_stay_out_of_the_plane_and_are_named() -> None:
    rng = seeds.generator()
    several = [{"w": jnp.asarray(rng.normal(size=4), jnp.float32)} for _ in range(3)]
    plain = ls.planes.through_solutions(*several)

    def risk(tree):
        return (tree["w"] ** 2).sum()

    moments = [w | {"mu": jnp.asarray(1000 * rng.normal(size=4), jnp.float32)} for w in several]
    with pytest.warns(UserWarning, match=r"\['mu'\] are no parameters"):
        told = ls.planes.through_solutions(*moments, of=risk)
    np.testing.assert_allclose(told.anchors, plain.anchors)
    with pytest.warns(UserWarning, match=r"\['mu'\] are no parameters"):
        surface = ls.evaluate(risk, ls.planes.through_solutions(*moments), progress=False)
    np.testing.assert_allclose(surface.anchors, plain.anchors, rtol=1e-3)  # from large coordinates, in float32
    np.testing.assert_allclose(surface.anchor_risk, [float(risk(w)) for w in several], rtol=1e-5)
    states = [{"w": w["w"], "state": optax.trace(0.9).init(w)} for w in several]
    states = [s | {"state": jax.tree.map(lambda x, k=k: x + 1000 * k, s["state"])} for k, s in enumerate(states)]
    with pytest.warns(UserWarning, match="state"):
        np.testing.assert_allclose(ls.planes.through_solutions(*states).anchors, plain.anchors)


@pytest.mark.parametrize("name", ["train/acc", "a", "b", "", ".", "anchor_risk", "metadata", "two\nlines"])
def test_names_that_a_file_cannot_hold_are_refused_before_computing(name: str) -> None:
    rng = seeds.generator()
    data = ls.Dataset(rng.normal(size=(N, H)).astype("f4"), rng.integers(0, C, N))
    called = []

    def loss(f, y):
        called.append(1)
        return ls.losses.logistic(f, y)

    problem = ls.Problem(data, Network(normal(o=(H, C)), lambda w, x: x @ w["o"]), ls.losses.logistic)
    plane = ls.planes.through_solutions(*map(problem.network.init, jax.random.split(jax.random.key(seeds.draw()), 3)))
    with pytest.raises(ValueError, match="cannot be called"):
        ls.evaluate(problem, plane, layers={name: loss}, progress=False)
    assert not called
    with pytest.raises(ValueError, match="cannot be called"):
        ls.evaluate(lambda w: {"risk": (w["o"] ** 2).sum(), name: w["o"].sum()}, plane, progress=False)


@pytest.mark.parametrize("name", ["[mine]", "{", "true", "", '"quoted"', "a/b"])
def test_every_name_of_a_data_set_survives_its_file(name: str, tmp_path) -> None:
    surface = Surface(ls.Grid(np.arange(2.0), np.arange(2.0)), np.zeros((2, 2)), metadata={"dataset": name})
    surface.save(tmp_path / "s.nc")
    assert Surface.load(tmp_path / "s.nc").metadata["dataset"] == name


def test_accuracy_leaves_out_weight_zero_and_labels_that_are_ignored() -> None:
    rng = seeds.generator()
    f, y = rng.normal(size=(N, T, V)).astype("f4"), rng.integers(0, V, (N, T))
    y[rng.random((N, T)) < 0.4] = IGNORED
    y[0] = IGNORED
    weight = rng.uniform(0.5, 2, N) * (rng.random(N) < 0.7)
    weight[:2] = 1
    there = (y != IGNORED).any(1)
    right = [np.mean(f[n].argmax(-1)[y[n] != IGNORED] == y[n][y[n] != IGNORED]) for n in np.flatnonzero(there)]
    wanted = np.average(right, weights=weight[there])
    data = ls.Dataset(f, y, weight)
    values = further(data)["accuracy"](jnp.asarray(f), jnp.asarray(y))
    np.testing.assert_allclose(np.average(np.asarray(values, float), weights=data.weight), wanted, rtol=1e-5)
