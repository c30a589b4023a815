"""flax's msgpack: parameters, training states, arrays in chunks, half precision, damage."""

from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import msgpack
import numpy as np
import optax
import pytest
import stored
from flax import serialization
from flax.training.train_state import TrainState

from landscape import checkpoints


def test_what_flax_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    params = stored.random()
    (tmp_path / "a.msgpack").write_bytes(serialization.to_bytes({"params": params}))
    (tmp_path / "checkpoint_10").write_bytes(serialization.msgpack_serialize(params))  # found by its content
    monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", 24)
    (tmp_path / "chunks.msgpack").write_bytes(serialization.to_bytes(params))
    for name in ("a.msgpack", "checkpoint_10", "chunks.msgpack"):
        for like in (None, params):
            found = checkpoints.read(tmp_path / name, like)
            stored.same(found.solutions[0], params)
            assert (found.format, found.left_out) == ("msgpack", ())


def test_half_precision_scalars_and_text(tmp_path: Path) -> None:
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), stored.random())
    beside = {"step": 3, "name": "abc", "rate": 0.1, "number": np.float32(2), "turned": 1j, "none": None}
    (tmp_path / "a.msgpack").write_bytes(serialization.msgpack_serialize({**params, **beside}))
    found = checkpoints.read(tmp_path / "a.msgpack", params)
    stored.same(found.solutions[0], jax.tree.map(lambda x: x.astype("f4"), params))
    assert found.cast == ("bfloat16",)
    assert sorted(found.left_out) == sorted(beside)


def test_the_parameters_of_a_training_state(tmp_path: Path) -> None:
    module = nn.Dense(3)
    params = module.init(jax.random.key(0), jnp.ones((1, 4)))["params"]
    state = TrainState.create(apply_fn=module.apply, params=params, tx=optax.adam(0.1))
    (tmp_path / "a.msgpack").write_bytes(serialization.to_bytes(state))
    for like in (None, params):
        found = checkpoints.read(tmp_path / "a.msgpack", like)
        stored.same(found.solutions[0], dict(params))
        assert {name.split("/")[0] for name in found.left_out} == {"opt_state", "step"}


def test_damage(tmp_path: Path) -> None:
    params, path = stored.random(), tmp_path / "a.msgpack"
    whole = serialization.to_bytes(params)
    for length in (0, 1, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        stored.refused(path, params)
    for content in (b"\xc1", b"\x80", b"\x91" * 5000, msgpack.packb([1, 2]), msgpack.packb({"a": "text"})):
        path.write_bytes(content)
        stored.refused(path, params)
    for shape, name in (((10**12,), "float32"), ((5,), "object"), ((5,), "nothing"), ((-1, 3), "float32")):
        inner = msgpack.ExtType(1, msgpack.packb((shape, name, bytes(20))))
        path.write_bytes(msgpack.packb({"w": inner}))
        stored.refused(path, {"w": np.ones(5, "f4")})
