"""The seed of a module of tests."""

import pytest
import seeds


@pytest.fixture(scope="module")
def seed() -> int:
    """Drawn once a module, and printed."""
    seed = seeds.draw()
    print("seed", seed)
    return seed
