"""One seed a session: drawn once, printed at the end, used by every test. `LANDSCAPE_SEED=N pytest` draws the same again.

What a test draws depends on the seed, on the test and on nothing else, so that it can be repeated alone.
"""

import os
import zlib

import numpy as np

SEED = int(os.environ.setdefault("LANDSCAPE_SEED", str(np.random.SeedSequence().entropy % 2**32)))
"""Kept in the environment, which the workers of a session inherit."""

_drawn: dict[str, int] = {}


def generator() -> np.random.Generator:
    """Random numbers of their own for every call."""
    test = os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" ")[0]
    if test not in _drawn:
        _drawn.clear()
    _drawn[test] = _drawn.get(test, 0) + 1
    return np.random.default_rng([SEED, zlib.crc32(test.encode()), _drawn[test]])


def draw() -> int:
    """A seed below 2^31, another one for every call."""
    return int(generator().integers(2**31))
