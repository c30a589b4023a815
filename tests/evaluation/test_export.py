"""The evaluator and the trainer export for cpu, cuda and tpu at once: no operation of one kind of device only."""

import jax
import numpy as np
import optax
import pytest
from jax import export

import landscape as ls
from landscape import networks
from landscape.arrays import hardware
from landscape.arrays.trees import Affine
from landscape.evaluation import block
from landscape.evaluation.grid_loop import Tile
from landscape.evaluation.moments import Weights
from landscape.networks import MultiBranch
from landscape.training import sgd

PLATFORMS = ("cpu", "cuda", "tpu")
NETWORKS = {
    "units": MultiBranch(networks.relu_branch(6, bias=True), 7, average=False),
    "layers": MultiBranch(networks.mlp_branch((6, 3, 2, 4), jax.nn.gelu), 7, branch_chunk=3),
    "groups": MultiBranch([networks.conv_branch((2, 3, 1), (2,), 4), networks.relu_branch(6, 3, 4)], [2, 3]),
}


def problem(network: MultiBranch, outputs: int) -> ls.Problem:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(32, 6)).astype("f4")
    y = np.ones(32, "f4") if outputs == 1 else rng.integers(0, 4, 32).astype("i4")
    return ls.Problem(ls.Dataset(x, y), network, ls.losses.hinge if outputs == 1 else ls.losses.multiclass_hinge)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_evaluator(name: str) -> None:
    made = problem(NETWORKS[name], 1 if name == "units" else 4)
    auto = (jax.sharding.AxisType.Auto,) * 2
    mesh = jax.make_mesh((1, 1), ("points", "examples"), axis_types=auto, devices=jax.local_devices()[:1])
    shapes = jax.eval_shape(made.network.init, jax.random.key(0))
    x, y, weight = (jax.ShapeDtypeStruct(t.shape, t.dtype) for t in (made.data.x, made.data.y, made.data.weight))
    data = x, y, Weights(weight, jax.ShapeDtypeStruct(weight.shape, "i4"))
    axes = tuple(jax.ShapeDtypeStruct((n,), "f4") for n in (5, 4))
    options = {"network": made.network, "losses": (made.loss,), "tile": Tile(16, 4, 2, 3), "mesh": mesh}
    run = jax.jit(lambda *arguments: block.block_sums(*arguments, **options))
    exported = export.export(run, platforms=PLATFORMS)(Affine(shapes, shapes, shapes), data, axes, weight)
    assert exported.platforms == PLATFORMS


@pytest.mark.parametrize("optimizer", [optax.sgd(0.1, 0.9), optax.adam(1e-3)], ids=["sgd", "adam"])
def test_the_trainer(optimizer: optax.GradientTransformation) -> None:
    made, keys = problem(NETWORKS["layers"], 4), jax.random.split(jax.random.key(0), 2)
    one = hardware.mesh(jax.local_devices()[:1], seeds=1, branches=1)
    static = sgd.Static(made.network, made.loss, optimizer, 8, one)
    state = jax.eval_shape(lambda k: sgd.begin(static, k, len(made.data), None), keys)
    step = jax.jit(lambda s, k, d: sgd.advance(static, s, k, d, 0, 3))
    assert export.export(step, platforms=PLATFORMS)(state, keys, made.data).platforms == PLATFORMS
