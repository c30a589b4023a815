"""Shared settings of the tests: four CPU devices, no silent rank promotion, one seed, bounded memory, real data."""

import gc
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("MPLBACKEND", "agg")

import jax
import pytest
import seeds

FEW = 100
"""Tests of a session below which all of them run: those that a person asked for by name."""
collect_ignore = ["tutorials"]
"""Other people's programs: no tests in them, and they import what need not be installed."""

jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.devices()  # started here: commands run inside a test then find four devices, whatever the machine has


def pytest_addoption(parser: pytest.Parser) -> None:
    """How many of the slow tests run, and how long the random searches for unsound intervals and false minima."""
    parser.addoption("--slow", type=float, default=0.2, help="share of the slow tests, drawn anew a session; 1 for all")
    parser.addoption("--cases", type=int, default=200, help="random branches and surfaces; 10000 branches take hours")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out a share of the tests marked slow, which the session's seed draws: all of them run in a few sessions."""
    share = config.getoption("--slow")

    def drawn(item: pytest.Item) -> bool:
        chance = zlib.crc32(f"{seeds.SEED} {item.nodeid}".encode()) / 2**32
        return item.get_closest_marker("slow") is None or chance < share

    left = [item for item in items if not drawn(item)]
    if left and len(items) > FEW:
        config.hook.pytest_deselected(items=left)
        items[:] = [item for item in items if drawn(item)]


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
