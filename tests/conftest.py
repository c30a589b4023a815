"""Shared settings of the test suite: four CPU devices, no silent rank promotion, real data only where named."""

import os
from pathlib import Path

os.environ.setdefault("MPLBACKEND", "agg")

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.devices()  # started here: commands run inside a test then find four devices, whatever the machine has


def pytest_addoption(parser: pytest.Parser) -> None:
    """How long the random search for unsound intervals runs, and where it begins."""
    parser.addoption(
        "--cases", type=int, default=200, help="random cases of tests/test_soundness.py (10000: overnight)"
    )
    parser.addoption("--seed", type=int, default=None, help="their seed; a fresh one where it is not given")


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder with the real MNIST and CIFAR-10 files; tests that need it are skipped where it is not given."""
    root = os.environ.get("LANDSCAPE_DATA")
    if not root:
        pytest.skip("LANDSCAPE_DATA is unset: it names the folder with the real MNIST and CIFAR-10 files")
    return Path(root)
