"""Keras: `.weights.h5` of a Keras model on the JAX backend, and HDF5 files with links and damage."""

import importlib.util
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import h5py
import numpy as np
import pytest
import seeds
import stored

from landscape import checkpoints


def test_weights_of_a_convolutional_network(tmp_path: Path) -> None:
    if importlib.util.find_spec("keras") is None:  # importing it here would choose a backend for this process
        pytest.skip("keras is not installed")
    program = """
        import keras, numpy as np
        layers = keras.layers
        model = keras.Sequential([keras.Input((8, 8, 1)), layers.Conv2D(3, 3), layers.BatchNormalization(),
                                  layers.Flatten(), layers.Dense(4), layers.Dense(2)])
        model.compile("adam", "mse")
        model.fit(np.ones((2, 8, 8, 1)), np.ones((2, 2)), verbose=0)
        model.save_weights("a.weights.h5")
        model.save("a.keras")
        np.savez("direct.npz", *(model.layers[k].kernel for k in (0, 3, 4)), *(model.layers[k].bias for k in (0, 3, 4)))
    """
    # A process of its own: keras chooses its backend from the environment, and changes JAX's settings.
    environment = {**os.environ, "KERAS_BACKEND": "jax"}
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(program)]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
    with np.load(tmp_path / "direct.npz") as file:
        direct = [file[f"arr_{k}"] for k in range(6)]
    names = ("conv2d", "dense", "dense_1")
    layers = {name: {"vars": {"0": direct[k], "1": direct[k + 3]}} for k, name in enumerate(names)}
    found = checkpoints.read(tmp_path / "a.weights.h5", {"layers": layers})
    stored.same(found.solutions[0], {"layers": layers})
    assert found.format == "Keras weights"
    assert any(name.startswith("optimizer") for name in found.left_out)
    assert not any(name.startswith("optimizer") for name in checkpoints.load(tmp_path / "a.weights.h5")[0])
    layers["dense"]["vars"]["0"] = layers["dense"]["vars"]["0"].T
    stored.refused(tmp_path / "a.weights.h5", {"layers": layers}, "layers/dense/vars/0", "transposed?")
    stored.refused(tmp_path / "a.keras", None, "model.save_weights")


def test_groups_are_names(tmp_path: Path) -> None:
    params = stored.random()
    with h5py.File(tmp_path / "a.weights.h5", "w") as file:
        for name, value in stored.flat(params, "/").items():
            file.create_dataset(name, data=value, compression="gzip" if value.ndim > 1 else None)
        file["text"] = "abc"
    stored.same(checkpoints.load(tmp_path / "a.weights.h5", params)[0], params)
    found = checkpoints.read(tmp_path / "a.weights.h5")
    stored.same(found.solutions[0], params)
    assert found.left_out == ("text",)


def test_links_external_data_and_large_zeros(tmp_path: Path) -> None:
    w = np.ones(3, "f4")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["w"] = w
    (tmp_path / "raw").write_bytes(w.tobytes())
    with h5py.File(tmp_path / "a.weights.h5", "w") as file:
        file["w"] = h5py.ExternalLink("other.h5", "w")
        file["v"] = w
        file.create_dataset("raw", (3,), "f4", external=[(str(tmp_path / "raw"), 0, 12)])
        file.create_dataset("large", (2**40,), "f4", chunks=(2**20,), compression="gzip")
        file["loop"] = file["/"]
    stored.refused(tmp_path / "a.weights.h5", {"w": w}, "lacks w")
    stored.refused(tmp_path / "a.weights.h5", {"raw": w})
    stored.refused(tmp_path / "a.weights.h5", {"large": w}, "wanted [3]")
    stored.refused(tmp_path / "a.weights.h5", None, "declares")
    stored.same(checkpoints.read(tmp_path / "a.weights.h5", {"v": w}).solutions[0], {"v": w})


def test_damage(tmp_path: Path) -> None:
    path = tmp_path / "a.weights.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("w", data=seeds.generator().normal(size=1000), compression="gzip")
    whole, like = path.read_bytes(), {"w": np.ones(1000, "f4")}
    for length in (0, 4, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        stored.refused(path, like)
    h5py.File(path, "w").close()
    stored.refused(path, like, "no arrays")
