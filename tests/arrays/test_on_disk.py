"""Examples that stay on disk: the same bits as from memory, and never more in memory than asked for."""

import subprocess
import sys

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import seeds

import landscape as ls
from landscape.arrays import on_disk
from landscape.networks import mlp_branch

N, D = 1500, 6


class Slices:
    """An array-like that knows its shape, type and slices only, and notes the longest that it was asked for."""

    def __init__(self, array: np.ndarray) -> None:
        self.array, self.shape, self.dtype, self.longest = array, array.shape, array.dtype, 0

    def __getitem__(self, part: slice) -> np.ndarray:
        assert isinstance(part, slice)
        self.longest = max(self.longest, len(range(*part.indices(len(self.array)))))
        return self.array[part]


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    folder, x = tmp_path_factory.mktemp("data"), seeds.generator().normal(size=(N, D))
    np.save(folder / "x.npy", x)
    with h5py.File(folder / "x.h5", "w") as file:
        file["x"] = x
    with h5py.File(folder / "x.h5") as file:
        yield {"map": np.load(folder / "x.npy", mmap_mode="r"), "hdf5": file["x"], "slices": Slices(x), "memory": x}


def test_rows_of_every_kind(kinds) -> None:
    which = seeds.generator().integers(0, N, (3, 4))
    for array in kinds.values():
        for part in (slice(5, 9), slice(N - 2, N + 5), which, which[:0]):
            np.testing.assert_array_equal(on_disk.rows(array, part), kinds["memory"][part])
        np.testing.assert_array_equal(np.concatenate(list(on_disk.blocks(array))), kinds["memory"])
    assert not on_disk.stays(kinds["memory"])
    assert not on_disk.stays(jnp.ones(3))


def everything(x, weight):
    """Training, a surface, risk, gradient and fingerprint, as arrays."""
    y = np.arange(N) % 3
    network = ls.MultiBranch(mlp_branch((D, 4, 3), jnp.tanh, bias=True), 2)
    problem = ls.Problem(ls.Dataset(x, y, weight), network, ls.losses.logistic)
    found = ls.train(problem, jax.random.split(jax.random.key(0), 3), optax.sgd(0.3), steps=5, batch_size=50,
                     progress=False)  # fmt: skip
    plane = ls.planes.through_solutions(*found)
    surface = ls.evaluate(problem, plane, ls.grid_around(plane, points=3), progress=False)
    slope = jax.jit(jax.grad(problem.risk))(found[0])
    return jax.tree.map(np.asarray, (found.params, found.history, surface.risk, surface.anchor_risk, slope,
                                     problem.data.fingerprint))  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("weighted", [False, True])
def test_the_same_bits_from_disk(kinds, weighted: bool) -> None:
    weight = np.where(np.arange(N) % 4, 3.0, 0.0) if weighted else None
    wanted = everything(kinds["memory"], weight)
    for name in ("map", "slices") if weighted else ("map", "hdf5"):
        jax.tree.map(np.testing.assert_array_equal, everything(kinds[name], weight), wanted)


def test_what_is_read_at_a_time_is_bounded_by_the_memory() -> None:
    wide = Slices(np.zeros((4096, 20_000), "f4"))  # 312 MiB
    network = ls.Network(lambda key: {"k": jax.random.normal(key, (20_000, 1))}, lambda w, x: x @ w["k"])
    problem = ls.Problem(ls.Dataset(wide, np.zeros(4096)), network, ls.losses.squared)
    keys = jax.random.split(jax.random.key(0), 3)
    plane = ls.planes.through_solutions(*map(problem.network.init, keys))
    ls.evaluate(problem, plane, ls.grid_around(plane, points=2), memory=100 * 2**20, progress=False)
    assert wide.longest <= 1024


def test_a_value_that_is_not_finite_is_found_on_disk() -> None:
    x = np.ones((N, D))
    x[-1, 2] = np.nan
    with pytest.raises(ValueError, match=f"1 of {N * D}"):
        ls.Dataset(Slices(x), np.zeros(N))


PROGRAM = """
import re, jax, numpy as np, optax, landscape as ls
from pathlib import Path

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024

def explore(x):
    problem = ls.Problem(ls.Dataset(x, np.zeros(len(x))), ls.MultiBranch(relu_branch, 2), ls.losses.squared)
    keys = jax.random.split(jax.random.key(0), 3)
    found = ls.train(problem, keys, optax.sgd(0.1), steps=2, batch_size=10, memory=100 * 2**20, progress=False)
    plane = ls.planes.through_solutions(*found)
    ls.evaluate(problem, plane, ls.grid_around(plane, points=2), memory=100 * 2**20, progress=False)
    return problem.data.fingerprint

relu_branch = ls.networks.relu_branch(5_000)
explore(np.zeros((1_100, 5_000), "f4"))
begun = peak()
np.memmap("x.bin", "f4", "w+", shape=(30_000, 5_000))  # 572 MiB, a hole in the file
explore(np.memmap("x.bin", "f4", "r", shape=(30_000, 5_000)))
print(peak() - begun)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the memory of a process is read from /proc")
def test_the_memory_of_a_process_stays_far_below_the_data(tmp_path) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert float(done.stdout) < 400, done.stdout
