"""Duality measured: Theorem 1 (multi_branch), Theorem 2 (deep_linear), the Shapley–Folkman lemma (shapley_folkman).

Beside Theorem 1: estimates (branches too large for certificates), convexification (the true hinge), assumption (the
smallest admissible τ), arrangement (one ReLU unit with data in the plane), closed_forms (known frontiers).
"""

import importlib
from types import ModuleType

_MODULES = (
    "multi_branch",
    "deep_linear",
    "shapley_folkman",
    "estimates",
    "convexification",
    "assumption",
    "arrangement",
    "closed_forms",
    "examples",
)

__all__ = [*_MODULES]


def __getattr__(name: str) -> ModuleType:
    """The parts are loaded on first use."""
    if name in _MODULES:
        return importlib.import_module(f"landscape.duality.{name}")
    raise AttributeError(f"module 'landscape.duality' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
