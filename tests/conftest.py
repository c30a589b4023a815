"""Shared settings of the tests: four CPU devices, no silent rank promotion, one seed, bounded memory, real data."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("MPLBACKEND", "agg")

import jax
import pytest
import seeds

collect_ignore = ["tutorials"]
"""Other people's programs: no tests in them, and they import what need not be installed."""

jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.devices()  # started here: commands run inside a test then find four devices, whatever the machine has


def pytest_addoption(parser: pytest.Parser) -> None:
    """How long the random searches for unsound intervals and false minima run."""
    parser.addoption("--cases", type=int, default=200, help="random branches and surfaces; 10000 branches take hours")


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder with the real MNIST and CIFAR-10 files; tests that need it are skipped where it is not given."""
    root = os.environ.get("LANDSCAPE_DATA")
    if not root:
        pytest.skip("LANDSCAPE_DATA is unset: it names the folder with the real MNIST and CIFAR-10 files")
    return Path(root)


PAGE, ROOM = os.sysconf("SC_PAGE_SIZE"), 1_300_000_000
"""Bytes of this process above which compiled programs are let go."""


@pytest.fixture(autouse=True)
def let_compiled_programs_go() -> Iterator[None]:
    """JAX keeps every program it has compiled: after a test that left too many, they are dropped."""
    yield
    memory = Path("/proc/self/statm")
    if memory.exists() and int(memory.read_text().split()[1]) * PAGE > ROOM:
        jax.clear_caches()
        gc.collect()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say how to draw the same random numbers again."""
    terminalreporter.write_line(f"seed {seeds.SEED}: LANDSCAPE_SEED={seeds.SEED} pytest draws the same again")
