"""Figures for print: one module for each kind of picture, matplotlib only here, loaded when the first is drawn."""

import importlib
from typing import Any

_HOMES = {
    "figure": "style",
    "save": "style",
    "contour": "surface",
    "surface3d": "surface",
    "row": "gallery",
    "rows": "gallery",
    "before_after": "gallery",
    "trend": "measures",
    "edges": "profiles",
    "trajectory": "profiles",
    "curvatures": "curvature",
    "density": "curvature",
}

__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    """The figures are loaded on first use: `import landscape` must not wait for matplotlib."""
    if name in _HOMES:
        return getattr(importlib.import_module(f"landscape.plots.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'landscape.plots' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
