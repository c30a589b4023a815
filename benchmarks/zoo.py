"""A zoo of branches for `checkouts.py`: cases that call the public interface only, answered by a process."""

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np


def serve(devices: int) -> None:
    """Answer cases from standard input."""
    import jax

    jax.config.update("jax_num_cpu_devices", devices)
    cases: dict[str, Callable[[], Any]] = {}
    for line in sys.stdin:
        name, file = json.loads(line)
        answer: dict[str, Any] = {"error": ""}
        try:
            if name not in cases:
                cases[name] = CASES[name]()
            begun = time.process_time()
            leaves = jax.tree.leaves(jax.block_until_ready(cases[name]()))
            answer["seconds"] = time.process_time() - begun
            if file:
                np.savez(file, **{f"array {k}": np.asarray(x) for k, x in enumerate(leaves)})
        except Exception as error:
            answer["error"] = f"{type(error).__name__}: {error}"
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def example(branch: Any, inputs: tuple[int, ...], outputs: int, count: Any, examples: int = 70, points: int = 5) -> Any:
    """A problem with random weighted data, a plane through three random parameters, a grid."""
    import jax

    import landscape as ls

    rng = np.random.default_rng(0)
    x = rng.normal(size=(examples, *inputs)).astype("f4")
    y = np.sign(rng.normal(size=examples)).astype("f4") if outputs == 1 else rng.integers(0, outputs, examples)
    loss = ls.losses.hinge if outputs == 1 else ls.losses.multiclass_hinge
    data = ls.Dataset(x, y, rng.uniform(0.5, 1.5, examples))
    problem = ls.Problem(data, ls.MultiBranch(branch, count), loss)
    plane = ls.planes.through_solutions(*(problem.network.init(jax.random.key(k)) for k in range(3)))
    return problem, plane, ls.grid_around(plane, (points, points - 1))


def values(surface: Any) -> Any:
    """The numbers of a surface."""
    checks = surface.metadata["checks"]
    return surface.risk, surface.anchor_risk, dict(surface.layers), checks["max_difference"]


def surface_case(make: Callable[[], Any], *sizes: Any, **options: Any) -> Callable[[], Callable[[], Any]]:
    """A surface through `evaluate`."""

    def prepared() -> Callable[[], Any]:
        import landscape as ls

        problem, plane, grid = example(make(), *sizes)
        return lambda: values(ls.evaluate(problem, plane, grid, progress=False, **options))

    return prepared


def trained(make: Callable[[], Any], *sizes: Any, steps: int = 20) -> Callable[[], Callable[[], Any]]:
    """Some steps of SGD for two seeds."""

    def prepared() -> Callable[[], Any]:
        import jax
        import optax

        import landscape as ls

        problem, _, _ = example(make(), *sizes)
        keys, optimizer = jax.random.split(jax.random.key(0), 2), optax.sgd(0.01)

        def run() -> Any:
            found = ls.train(problem, keys, optimizer, steps=steps, batch_size=32, progress=False)
            return found.risk, found.params

        return run

    return prepared


def ready(name: str, *arguments: Any, **options: Any) -> Callable[[], Any]:
    """A ready-made branch, by name."""

    def make() -> Any:
        from landscape import networks

        return getattr(networks, name)(*arguments, **options)

    return make


def linen(kind: str) -> Callable[[], Any]:
    """A flax module on examples [72]: a convolution with strides and pooling, a GRU, or attention."""

    def make() -> Any:
        import flax.linen as nn
        import jax.numpy as jnp

        from landscape import networks

        class Module(nn.Module):
            @nn.compact
            def __call__(self, x: Any) -> Any:
                if kind == "convolution":
                    x = nn.relu(nn.Conv(3, (3, 3))(x.reshape(*x.shape[:-1], 6, 6, 2)))
                    x = nn.gelu(nn.Conv(2, (2, 2), strides=(2, 2))(nn.max_pool(x, (2, 2), (2, 2))))
                    return nn.Dense(3)(x.reshape(*x.shape[:-3], -1))
                x = x.reshape(*x.shape[:-1], 9, 8)
                if kind == "gru":
                    return nn.Dense(3)(nn.RNN(nn.GRUCell(4))(x)[..., -1, :])
                return nn.Dense(3)(jnp.tanh(nn.LayerNorm()(x + nn.MultiHeadDotProductAttention(2)(x)).mean(-2)))

        return networks.from_linen(Module(), np.ones((1, 72), "f4"))

    return make


def kinds() -> Any:
    """Two kinds of branches."""
    from landscape import networks

    return [networks.relu_branch(6, 2, 3), networks.mlp_branch((6, 3, 2, 3), bias=True)]


def with_layers() -> Callable[[], Any]:
    """Two further losses in the same pass."""
    import landscape as ls

    problem, plane, grid = example(ready("mlp_branch", (6, 4, 3), bias=True)(), (6,), 3, 7)
    layers = {"error": lambda f, y: 1.0 * (f.argmax(-1) != y), "norm": lambda f, y: (f * f).sum(-1)}
    return lambda: values(ls.evaluate(problem, plane, grid, layers=layers, progress=False))


def resumed() -> Callable[[], Any]:
    """A function of the parameters and a problem, interrupted and continued."""
    import landscape as ls

    problem, plane, grid = example(ready("relu_branch", 6, 4, 3)(), (6,), 3, 7)

    def run() -> Any:
        found = []
        for risk in (problem, lambda w: {"risk": problem.risk(w), "half": problem.risk(w) / 2}):
            with tempfile.TemporaryDirectory() as folder:
                for stop in (True, False):
                    count = iter(range(100))

                    def check(stop: bool = stop, count: Iterator[int] = count) -> None:
                        if stop and next(count) == 1:
                            raise InterruptedError

                    try:
                        found.append(
                            values(ls.evaluate(risk, plane, grid, directory=folder, check_stop=check, progress=False))
                        )
                    except InterruptedError:
                        continue
        return found

    return run


def derivatives(make: Callable[[], Any], *sizes: Any) -> Callable[[], Callable[[], Any]]:
    """Risk, gradient, Hessian-vector product, profile and plane of the Hessian."""

    def prepared() -> Callable[[], Any]:
        import jax

        import landscape as ls
        from landscape import evaluation

        problem, plane, _ = example(make(), *sizes)
        w = plane.origin

        def run() -> Any:
            top = ls.planes.top_hessian(problem, w, jax.random.key(1))
            line = evaluation.profile(problem, w, plane.at((1.0, 0.5)), points=5)
            return problem.risk(w), problem.gradient(w), problem.hessian_vector_product(w, plane.u), top.u, line

        return run

    return prepared


CONV, RNN = ready("conv_branch", (8, 8, 1), (4, 3), 3, bias=True), ready("recurrent_branch", 8, 6, 3, bias=True)
CASES: dict[str, Callable[[], Callable[[], Any]]] = {
    "units": surface_case(ready("relu_branch", 10), (10,), 1, 100),
    "bias": surface_case(ready("relu_branch", 6, 8, 3, bias=True), (6,), 3, 30),
    "deep": surface_case(ready("mlp_branch", (12, 8, 8, 8, 4), bias=True), (12,), 4, 20),
    "affine": surface_case(ready("mlp_branch", (6, 3), bias=True), (6,), 3, 5),
    "conv": surface_case(CONV, (8, 8, 1), 3, 4),
    "recurrent": surface_case(RNN, (9, 8), 3, 5),
    **{kind: surface_case(linen(kind), (72,), 3, 3) for kind in ("convolution", "gru", "attention")},
    "groups": surface_case(kinds, (6,), 3, [8, 4]),
    "scarce": surface_case(ready("mlp_branch", (12, 8, 8, 4)), (12,), 4, 300, 500, memory=3_000_000),
    "shards": surface_case(ready("mlp_branch", (12, 8, 8, 4)), (12,), 4, 20, branch_devices=2),
    "high": surface_case(ready("mlp_branch", (12, 8, 4)), (12,), 4, 20, precision="high"),
    "layers": with_layers,
    "resumed": resumed,
    "derivatives": derivatives(ready("mlp_branch", (6, 4, 3)), (6,), 3, 5),
    "train mlp": trained(ready("mlp_branch", (6, 5, 4, 3), bias=True), (6,), 3, 7),
    "train conv": trained(CONV, (8, 8, 1), 3, 4),
    "train rnn": trained(RNN, (9, 8), 3, 5),
    **{f"train {kind}": trained(linen(kind), (72,), 3, 3) for kind in ("convolution", "gru", "attention")},
}
SPEED: dict[str, Callable[[], Callable[[], Any]]] = {
    "1000 units": surface_case(ready("relu_branch", 10), (10,), 1, 1000, 1000, 31),
    "bias units": surface_case(ready("relu_branch", 10, bias=True), (10,), 1, 1000, 1000, 31),
    "mnist": surface_case(ready("relu_branch", 784, 8, 10), (784,), 10, 100, 1000, 21),
    "8-8-8": surface_case(ready("mlp_branch", (784, 8, 8, 8, 10)), (784,), 10, 50, 500, 21),
    "8-8-8 bias": surface_case(ready("mlp_branch", (784, 8, 8, 8, 10), bias=True), (784,), 10, 50, 500, 21),
    "rnn": surface_case(ready("recurrent_branch", 8, 8, 3, bias=True), (9, 8), 3, 20, 200, 15),
    "conv surface": surface_case(ready("conv_branch", (12, 12, 1), (4, 4), 3), (12, 12, 1), 3, 4, 100, 9),
    "sgd mlp": trained(ready("mlp_branch", (784, 8, 8, 10), bias=True), (784,), 10, 100, 1000, steps=50),
    "sgd conv": trained(ready("conv_branch", (14, 14, 1), (6, 6), 10), (14, 14, 1), 10, 4, 200, steps=20),
    "sgd linen": trained(linen("convolution"), (72,), 3, 8, 200, steps=50),
    "sgd rnn": trained(ready("recurrent_branch", 8, 8, 3, bias=True), (9, 8), 3, 10, 200, steps=100),
}
CASES |= SPEED


if __name__ == "__main__":
    serve(int(sys.argv[1]))
