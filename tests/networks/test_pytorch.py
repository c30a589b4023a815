"""Networks from PyTorch modules: against PyTorch for every kind of network, as surfaces, and what is refused."""

from collections.abc import Callable, Mapping
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import seeds

import landscape as ls
from landscape.networks import modules

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'landscape-jax[torch]'")
torch_layers = pytest.importorskip("networks.torch_layers")
torch_models = pytest.importorskip("networks.torch_models")
nn = torch.nn

NAMES = sorted(torch_models.NETWORKS)


@pytest.fixture(autouse=True)
def undisturbed() -> Any:
    """PyTorch's settings stay as they are."""
    yield
    assert torch.get_default_dtype() == torch.float32


@contextmanager
def double() -> Any:
    """Tensors that a module makes while it runs are of float64."""
    torch.set_default_dtype(torch.float64)
    try:
        with torch.no_grad():
            yield
    finally:
        torch.set_default_dtype(torch.float32)


def random_batch(name: str, n: int) -> Any:
    return torch_models.NETWORKS[name][1](n)


def outputs_of(module: Any, x: Any) -> np.ndarray:
    """PyTorch's outputs in float64."""
    with double():
        kept = module.double().eval()
        return kept(x.double() if x.is_floating_point() else x).numpy()


def torch_risks(module: Any, states: list[Mapping[str, Any]], plane: ls.Plane, grid: ls.Grid, x: Any, y: Any) -> Any:
    """The loop over points that a surface replaces: set the parameters in float64, run the module, take the mean."""
    solutions = [{k: v.double() if v.is_floating_point() else v for k, v in state.items()} for state in states]
    basis = np.linalg.inv(np.column_stack([plane.anchors, np.ones(3)]))  # barycentric coordinates of (a, b)
    module, found = module.double().eval(), np.zeros((len(grid.a), len(grid.b)))
    free = set(dict(module.named_parameters(remove_duplicate=False)))
    for i, j in np.ndindex(found.shape):
        shares = np.array([grid.a[i], grid.b[j], 1.0]) @ basis
        state = {k: sum(c * s[k] for c, s in zip(shares, solutions, strict=True)) if k in free else v
                 for k, v in solutions[0].items()}  # fmt: skip
        module.load_state_dict(state)
        with double():
            outputs = module(x.double() if x.is_floating_point() else x)
        found[i, j] = torch.nn.functional.cross_entropy(outputs, y).item()
    return found


@pytest.mark.parametrize("name", NAMES)
def test_surfaces_through_three_state_dicts_equal_a_loop_in_torch(name: str) -> None:
    make = torch_models.NETWORKS[name][0]
    trained = [torch_models.trained(make, seed) for seed in seeds.generator().integers(2**31, size=3).tolist()]
    states = [{k: v.clone() for k, v in module.state_dict().items()} for module in trained]
    x = random_batch(name, 24)
    y = torch.randint(0, 5, (24,))
    network = ls.from_torch(trained[1], x[0].numpy(), buffers=states[0])
    problem = ls.Problem(ls.Dataset(x.numpy(), y.numpy()), network, ls.losses.logistic)
    solutions = [jax.tree.map(lambda t: t[None], network.apply.params_of(state)) for state in states]
    plane = ls.planes.through_solutions(*solutions)
    surface = ls.evaluate(problem, plane, ls.grid_around(plane, (3, 4)), progress=False)
    wanted = torch_risks(trained[1], states, plane, surface.grid, x, y)
    np.testing.assert_allclose(surface.risk, wanted, rtol=1e-5, atol=1e-5)
    assert np.ptp(wanted) > 1e-2
    assert network.apply.agreement < 1e-5


@pytest.mark.parametrize("name", ["ResNet-18", "GPT", "LSTM"])
def test_derivatives_equal_those_of_torch(name: str) -> None:
    module = torch_models.trained(torch_models.NETWORKS[name][0], 3)
    x = random_batch(name, 5)
    network = ls.from_torch(module, x[0].numpy())
    direction = torch.randn(5, *network.apply.outputs, dtype=torch.float64)
    w = network.apply.params_of(module.state_dict())
    found = jax.jit(jax.grad(lambda p: (network.apply(p, x.numpy()) * direction.numpy()).sum()))(w)
    module = module.double()
    torch.set_default_dtype(torch.float64)
    (module(x.double() if x.is_floating_point() else x) * direction).sum().backward()
    torch.set_default_dtype(torch.float32)
    wanted = {k: p.grad for k, p in module.named_parameters()}
    flat = {".".join(k.key for k in where): leaf for where, leaf in jax.tree_util.tree_leaves_with_path(found)}
    assert set(flat) == set(wanted)  # a tied parameter once, its derivative that of both uses
    for k, leaf in flat.items():
        np.testing.assert_allclose(leaf, wanted[k], rtol=1e-3, atol=1e-4 * max(1, wanted[k].abs().max()), err_msg=k)


@pytest.mark.parametrize("name", sorted(torch_layers.LAYERS))
def test_layers_and_functions(name: str) -> None:
    make, draw = torch_layers.LAYERS[name]
    torch.manual_seed(int(seeds.generator().integers(2**31)))
    module, x = make(), draw(4)
    network = ls.from_torch(module, x[0].numpy())
    w = network.apply.params_of(module.state_dict())
    np.testing.assert_allclose(network.apply(w, x.numpy()), outputs_of(module, x), rtol=1e-3, atol=2e-4)


def test_any_number_of_examples_under_every_transformation() -> None:
    module = torch_models.trained(torch_models.ViT, 0)
    x = torch_models.images(6)
    network = ls.from_torch(module, x[0].numpy())
    wanted = outputs_of(module, x)
    w = network.apply.params_of(module.state_dict())
    for n in (1, 2, 6):
        np.testing.assert_allclose(network.apply(w, x[:n].numpy()), wanted[:n], rtol=1e-4, atol=1e-5)
    one = jax.jit(jax.vmap(lambda e: network.apply(w, e[None])[0]))(x.numpy())
    np.testing.assert_allclose(one, wanted, rtol=1e-4, atol=1e-5)
    several = jax.tree.map(lambda t: jnp.stack([t] * 3), w)
    np.testing.assert_allclose(ls.MultiBranch(network, 3).apply(several, jnp.asarray(x.numpy())), wanted, 1e-4, 1e-5)
    with pytest.raises(ValueError, match=r"traced for examples \(3, 16, 16\)"):
        network.apply(w, x[0].numpy())


class Pair(nn.Module):
    """Two inputs, named against the alphabet."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(3, 4), nn.Embedding(5, 4)

    def forward(self, z: Any, a: Any) -> Any:
        return self.left(z) * self.right(a)


def test_several_inputs() -> None:
    module, z, a = Pair(), torch.randn(6, 3), torch.randint(0, 5, (6,))
    wanted = module(z, a).detach()
    for x in ((z, a), {"z": z, "a": a}):
        arrays = jax.tree.map(lambda t: t.numpy(), x)
        network = ls.from_torch(module, jax.tree.map(lambda t: t[0], arrays))
        found = network.apply(network.apply.params_of(module.state_dict()), arrays)
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


class Squeezed(nn.Module):
    """With `squeeze()` where `flatten` is meant: a batch of one loses its axis."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 6, 3), nn.Linear(6, 4)

    def forward(self, x: Any) -> Any:
        x = torch.nn.functional.adaptive_avg_pool2d(self.conv(x), 1).squeeze()
        return torch.log_softmax(self.fc(x), dim=1)


def test_modules_that_treat_a_batch_of_one_differently() -> None:
    module, x = Squeezed(), torch_models.images(5)
    network = ls.from_torch(module, x[0].numpy())
    assert network.apply.copies == 2
    w = network.apply.params_of(module.state_dict())
    for n in (1, 5):
        np.testing.assert_allclose(network.apply(w, x[:n].numpy()), outputs_of(module, x)[:n],
                                   rtol=1e-4, atol=1e-5)  # fmt: skip
        module.float()


class Spare(nn.Module):
    """With a head that the forward pass does not use, a counter, and an integer parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.spare = nn.Linear(3, 4), nn.Linear(3, 2)
        self.shift = nn.Parameter(torch.tensor([0, 1, 0, 2]), requires_grad=False)
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Any) -> Any:
        self.count += 1
        return self.used(x) + self.shift


def test_what_is_no_parameter_stays_out_and_is_named() -> None:
    module = Spare()
    network = ls.from_torch(module, np.zeros(3, "f8"))
    assert set(network.init(jax.random.key(0))) == {"used"}
    assert network.apply.unread == ("spare.weight", "spare.bias")
    assert "not read: spare.weight" in repr(network.apply)
    assert "float64 as float32" in repr(network.apply)
    x = torch.randn(2, 3)
    found = network.apply(network.apply.params_of(module.state_dict()), x.numpy())
    np.testing.assert_allclose(found, module(x).detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["bfloat16", "float16", "float64"])
def test_types(kind: str) -> None:
    module = nn.Sequential(nn.Linear(4, 64), nn.LayerNorm(64), nn.GELU(), nn.Linear(64, 3)).to(getattr(torch, kind))
    network = ls.from_torch(module, np.zeros(4, "f4"))
    w = network.apply.params_of(module.state_dict())
    assert {leaf.dtype for leaf in jax.tree.leaves(w)} == {np.dtype("float32")}  # planes are spanned in float32
    x = torch.randn(7, 4)
    found, wanted = network.apply(w, x.numpy()), module(x.to(getattr(torch, kind))).double().detach()
    assert found.dtype == (kind if kind != "float64" else "float32")
    tolerance = {"bfloat16": 3e-2, "float16": 5e-3, "float64": 1e-5}[kind]
    np.testing.assert_allclose(np.asarray(found, float), wanted, atol=tolerance)


def test_the_module_is_not_changed() -> None:
    module = torch_models.TutorialCNN().train()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    state = torch.get_rng_state()
    network = ls.from_torch(module, np.zeros((1, 28, 28), "f4"), buffers={"norm.running_mean": np.ones(8, "f4"),
                            "norm.running_var": np.ones(8, "f4")})  # fmt: skip
    network.init(jax.random.key(0))
    assert all(part.training for part in module.modules())
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert network.apply.statistics["norm"]["running_mean"].tolist() == [1] * 8


def test_initial_parameters() -> None:
    for make in (torch_models.GPT, torch_models.GPT()):
        network = ls.from_torch(make, np.zeros(8, "i4"))
        first, again, other = (network.init(jax.random.key(k)) for k in (1, 1, 2))
        assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), first, again))
        assert not (first["wte"]["weight"] == other["wte"]["weight"]).all()
        drawn_again = not (first["h"]["0"]["c_attn"]["weight"] == other["h"]["0"]["c_attn"]["weight"]).all()
        assert drawn_again == isinstance(make, type)  # a module's own nn.Parameter has no reset_parameters
        assert first["wte"]["weight"].std() == pytest.approx(1, abs=0.2)
        stacked = ls.MultiBranch(network, 2).init(jax.random.key(0))  # under jit, branch after branch
        assert not (stacked["wte"]["weight"][0] == stacked["wte"]["weight"][1]).all()


def test_training_from_a_module() -> None:
    rng = seeds.generator()
    x = rng.normal(size=(60, 4)).astype("f4")
    data = ls.Dataset(x, (x[:, 0] > 0).astype("i4"))
    network = ls.from_torch(nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)), x[0])
    problem = ls.Problem(data, ls.MultiBranch(network, 2), ls.losses.logistic)
    found = ls.train(problem, jax.random.split(jax.random.key(0), 2), optax.sgd(0.5), steps=200, batch_size=20,
                     progress=False)  # fmt: skip
    assert max(found.risk) < 0.3


def hidden_dropout(x: Any) -> Any:
    return torch.nn.functional.dropout(x, 0.5)


def noisy(x: Any) -> Any:
    return x + torch.randn_like(x)


def branching(x: Any) -> Any:
    return x if x.sum() > 0 else -x


def fault(f: Callable[[Any], Any], layer: Any = None) -> Any:
    """A module that does f after a layer."""

    class Faulty(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer or nn.Linear(4, 4)

        def forward(self, x: Any) -> Any:
            return f(self.layer(x))

    return Faulty()


REFUSED = {
    "dropout": (lambda: fault(hidden_dropout), "draws random numbers in evaluation mode .aten.dropout"),
    "noise": (lambda: fault(noisy), "draws random numbers in evaluation mode .aten.randn_like"),
    "branches": (lambda: fault(branching), "could not trace Faulty.*\n.*branches that depend on data"),
    "tuple": (lambda: fault(lambda x: (x, x)), "returns a tuple; wrap it to return the outputs"),
    "dictionary": (lambda: fault(lambda x: {"logits": x}), "returns a dict; wrap it to return the outputs"),
    "one number": (lambda: fault(lambda x: x.mean()), "wanted one row an example"),
    "unknown operation": (lambda: fault(lambda x: torch.fft.rfft(x).abs()), "no rule for aten._fft_r2c.*\n.*in JAX"),
    "mixed examples": (lambda: fault(lambda x: x - x.mean(0)), "examples of a batch influence each other"),
    "BatchNorm without statistics": (
        lambda: fault(lambda x: x, nn.BatchNorm1d(4, track_running_stats=False)),
        "BatchNorm without running statistics",
    ),
    "another shape": (lambda: nn.Linear(7, 3), "does not take a batch of 3 examples"),
    "complex": (lambda: nn.Linear(4, 3, dtype=torch.complex64), "complex parameters"),
    "no module": (lambda: lambda: 3, "wants an nn.Module"),
}


@pytest.mark.parametrize("kind", sorted(REFUSED))
def test_refused(kind: str) -> None:
    make, words = REFUSED[kind]
    with pytest.raises(ValueError, match=words) as error:
        ls.from_torch(make(), np.random.default_rng(0).normal(size=4).astype("f4"))
    assert len(str(error.value).splitlines()) <= 3


def test_buffers_of_another_module_are_refused() -> None:
    module = torch_models.TutorialCNN()
    for values, words in (({}, "lack norm.running_mean"), ({"norm.running_mean": np.ones(3)}, "lack norm.running_var")):
        with pytest.raises(ValueError, match=words):
            ls.from_torch(module, np.zeros((1, 28, 28), "f4"), buffers=values)


def test_modules_on_the_command_line_are_recognised() -> None:
    x = np.zeros((1, 3, 16, 16), "f4")
    for target in (torch_models.VGG, torch_models.VGG(), lambda: torch_models.VGG()):
        found = modules.read(target, x, "frozen")
        assert set(modules.statistics(found.make, x)["features"]["1"]) == {"running_mean", "running_var"}
        with pytest.raises(ValueError, match="--state frozen"):
            modules.read(target, x)
        with pytest.raises(ValueError, match="--state frozen"):
            modules.read(target, x, "recompute")
    assert modules.read(torch_models.ViT, x).network is not None
    with pytest.raises(ValueError, match="give --data"):
        modules.read(torch_models.ViT, None)
