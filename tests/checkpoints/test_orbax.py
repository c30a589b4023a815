"""orbax: every kind of folder that it writes, training states, random keys, links, damage."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import own_module
import pytest
import stored
from flax import nnx
from flax.training.train_state import TrainState

import landscape as ls
from landscape import checkpoints

orbax = pytest.importorskip("orbax.checkpoint", reason="orbax-checkpoint is not installed")


def standard(path: Path, tree: Any) -> None:
    """As `StandardCheckpointer` writes it."""
    with orbax.StandardCheckpointer() as keeper:
        keeper.save(path, tree)


def zarr(path: Path, tree: Any) -> None:
    """One folder an array."""
    orbax.PyTreeCheckpointer(use_ocdbt=False).save(path, tree)


def zarr3(path: Path, tree: Any) -> None:
    """The third version of zarr."""
    orbax.PyTreeCheckpointer(use_ocdbt=True, use_zarr3=True).save(path, tree)


def pytree(path: Path, tree: Any) -> None:
    """As most examples write it."""
    orbax.PyTreeCheckpointer().save(path, tree)


def version_1(path: Path, tree: Any) -> None:
    """The first version of the new interface, which moves between versions of the package."""
    v1 = pytest.importorskip("orbax.checkpoint.experimental.v1", reason="orbax has no v1 yet")
    (v1.save if hasattr(v1, "save") else v1.save_pytree)(path, tree)


@pytest.mark.parametrize("write", [standard, pytree, zarr, zarr3, version_1])
def test_every_way_to_write(write: Any, tmp_path: Path) -> None:
    params = stored.random()
    kept = jax.tree.map(jnp.asarray, params) | {"half": jnp.arange(3, dtype=jnp.bfloat16), "step": jnp.array(7)}
    write(tmp_path / "kept", kept)
    found = checkpoints.read(tmp_path / "kept", params)
    stored.same(found.solutions[0], params)
    assert sorted(found.left_out) == ["half", "step"]
    assert found.unexpected == ("half",)
    stored.same(checkpoints.load(tmp_path / "kept")[0], params | {"half": np.arange(3)})
    with pytest.warns(UserWarning, match="half"):
        checkpoints.load(tmp_path / "kept", params)


def test_a_manager_with_steps_and_items(tmp_path: Path) -> None:
    trees = {step: stored.random() for step in (1, 9, 10)}
    with orbax.CheckpointManager(tmp_path / "one") as manager:
        for step, tree in trees.items():
            manager.save(step, args=orbax.args.StandardSave(tree))
    with orbax.CheckpointManager(tmp_path / "two") as manager:
        rest = {"m": np.ones(4, "f4")}
        items = {"params": orbax.args.StandardSave(trees[1]), "optimizer": orbax.args.StandardSave(rest)}
        manager.save(3, args=orbax.args.Composite(**items))
    for place, step in {"one": 10, "one/9": 9, "one/1/default": 1, "two": 1, "two/3": 1, "two/3/params": 1}.items():
        for like in (None, trees[1]):
            found = checkpoints.read(tmp_path / place, like)
            stored.same(found.solutions[0], trees[step])
            assert found.left_out == (("optimizer/m",) if place in ("two", "two/3") else ())
    assert checkpoints.read(tmp_path / "one").format == "orbax, step 10"


class Dropping(nnx.Module):
    """With random keys and counters in its state."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.hidden, self.drop = nnx.Linear(4, 5, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.drop(self.hidden(x))


def test_random_keys_of_nnx_stay_out_unless_they_are_asked_for(tmp_path: Path) -> None:
    state = nnx.state(Dropping(nnx.Rngs(int(np.random.default_rng().integers(1000)))))
    standard(tmp_path / "kept", state)
    params = nnx.to_pure_dict(nnx.filter_state(state, nnx.Param))
    found = checkpoints.read(tmp_path / "kept", params)
    stored.same(found.solutions[0], params)
    assert sorted(found.left_out) == ["drop/rngs/count", "drop/rngs/key"]
    assert not found.unexpected
    stored.same(checkpoints.load(tmp_path / "kept")[0], params)
    every = nnx.to_pure_dict(state)
    whole = checkpoints.load(tmp_path / "kept", every)[0]
    wanted = every["drop"]["rngs"]["key"]
    np.testing.assert_array_equal(*map(jax.random.key_data, (whole["drop"]["rngs"]["key"], wanted)))


def test_the_parameters_of_a_training_state(tmp_path: Path) -> None:
    module = nn.Dense(3)
    variables = module.init(jax.random.key(0), jnp.ones((1, 4)))
    state = TrainState.create(apply_fn=module.apply, params=variables, tx=optax.adam(0.1))
    for name, kept in {"state": state, "inside": {"model": state, "data": {"seen": np.ones(2)}}}.items():
        pytree(tmp_path / name, kept)
        for like in (None, variables["params"], ls.from_linen(module, jnp.ones((1, 4))).init(jax.random.key(1))):
            if like is None and name == "inside":
                continue
            found = checkpoints.read(tmp_path / name, like)
            stored.same(found.solutions[0], dict(variables["params"]))
            assert any("opt_state" in name for name in found.left_out)
            assert any("step" in name for name in found.left_out)


def test_statistics_beside_the_parameters(tmp_path: Path) -> None:
    state = nnx.to_pure_dict(nnx.state(own_module.Normed(nnx.Rngs(0)), nnx.Not(nnx.RngState)))
    standard(tmp_path / "kept", state)
    held = {"norm": {name: state["norm"][name] for name in ("mean", "var")}}
    stored.same(checkpoints.load_if_there(tmp_path / "kept", held), held)
    assert checkpoints.load_if_there(tmp_path / "kept", {"other": {"mean": np.ones(5)}}) is None


def test_links_that_leave_the_folder(tmp_path: Path) -> None:
    params = stored.random()
    standard(tmp_path / "kept", params)
    outside = tmp_path / "outside"
    shutil.copytree(tmp_path / "kept" / "d", outside)
    shutil.rmtree(tmp_path / "kept" / "d")
    (tmp_path / "kept" / "d").symlink_to(outside)
    stored.refused(tmp_path / "kept", params, "link that leaves")
    (tmp_path / "kept" / "d").unlink()
    shutil.copytree(outside, tmp_path / "kept" / "inner")
    (tmp_path / "kept" / "d").symlink_to("inner")
    stored.same(checkpoints.load(tmp_path / "kept", params)[0], params)
    os.mkfifo(tmp_path / "kept" / "pipe")
    stored.refused(tmp_path / "kept", params, "no regular file")


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"tree_metadata": 3}', '{"tree_metadata": {"a": {}}}', "[" * 20_000, "\xff"]
)
def test_damaged_metadata(text: str, tmp_path: Path) -> None:
    params = stored.random()
    standard(tmp_path / "kept", params)
    (tmp_path / "kept" / "_METADATA").write_bytes(text.encode("latin-1"))
    stored.refused(tmp_path / "kept", params)


@pytest.mark.parametrize("key", ["../outside", "..", "a/../../b", "missing"])
def test_names_of_arrays_that_lie_elsewhere(key: str, tmp_path: Path) -> None:
    zarr(tmp_path / "outside", {"w": jnp.ones(3)})
    zarr(tmp_path / "kept", {"w": jnp.ones(3)})
    about = json.loads((tmp_path / "kept" / "_METADATA").read_text())
    about["tree_metadata"]["('w',)"]["key_metadata"] = [{"key": key, "key_type": 2}]
    (tmp_path / "kept" / "_METADATA").write_text(json.dumps(about))
    stored.refused(tmp_path / "kept", {"w": jnp.ones(3)})


def test_damaged_arrays_and_other_folders(tmp_path: Path) -> None:
    params = stored.random()
    zarr(tmp_path / "kept", params)
    about = json.loads((tmp_path / "kept" / "hidden.bias" / ".zarray").read_text())
    (tmp_path / "kept" / "hidden.bias" / ".zarray").write_text(json.dumps(about | {"shape": [2**40]}))
    stored.refused(tmp_path / "kept", params, "hidden/bias [1099511627776], wanted [5]")
    (tmp_path / "kept" / "hidden.bias" / ".zarray").write_text(json.dumps(about | {"zarr_format": 9}))
    stored.refused(tmp_path / "kept", params, "hidden.bias")
    (tmp_path / "kept" / "hidden.bias" / ".zarray").write_text(json.dumps(about | {"chunks": [2**40]}))
    stored.refused(tmp_path / "kept", params, "chunks")
    (tmp_path / "kept" / "hidden.bias" / ".zarray").write_text(json.dumps(about))
    (tmp_path / "kept" / "hidden.bias" / "0").write_bytes(b"damaged")
    stored.refused(tmp_path / "kept", params)
    (tmp_path / "empty").mkdir()
    stored.refused(tmp_path / "empty", params, "orbax", "_METADATA")
