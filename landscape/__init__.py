"""Loss surfaces and duality gaps of multi-branch neural networks, measured with JAX.

Axes, the same letters everywhere:

    S seeds (solutions)    I branches    N examples    D inputs    C outputs
    A x B grid points of a plane    P points in a tile    M anchors

The line: Dataset -> Network, MultiBranch -> Problem -> train -> Plane -> evaluate -> Surface -> convexity, plots.

References, cited by key in the docstrings:

    [Zhang19]     Zhang, Shao, Salakhutdinov. Deep Neural Networks with Multi-Branch Architectures Are Intrinsically
                  Less Non-Convex. AISTATS 2019. Section, equation and theorem numbers without a key are this paper's.
    [Li18]        Li, Xu, Taylor, Studer, Goldstein. Visualizing the Loss Landscape of Neural Nets. NeurIPS 2018.
    [Udell16]     Udell, Boyd. Bounding duality gap for separable problems with linear constraints.
                  Computational Optimization and Applications 64, 2016.
    [Bertsekas82] Bertsekas, Sandell. Estimates of the duality gap for large-scale separable nonconvex optimization
                  problems. CDC 1982.
    [Starr69]     Starr. Quasi-equilibria in markets with non-convex preferences. Econometrica 37, 1969.
    [Grussler18]  Grussler, Rantzer, Giselsson. Low-rank optimization with convex constraints.
                  IEEE Transactions on Automatic Control 63, 2018.
    [Ainsworth23] Ainsworth, Hayase, Srinivasa. Git Re-Basin: merging models modulo permutation symmetries. ICLR 2023.
    [Cochran77]   Cochran. Sampling Techniques. Wiley 1977.
    [Efron82]     Efron. The Jackknife, the Bootstrap and Other Resampling Plans. SIAM 1982.
    [Edelsbrunner10] Edelsbrunner, Harer. Computational Topology. AMS 2010.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "Dataset": "datasets",
    "Network": "networks",
    "MultiBranch": "networks",
    "from_flax": "networks",
    "from_linen": "networks",
    "from_torch": "networks",
    "from_keras": "networks",
    "Problem": "problem",
    "Solutions": "training.solutions",
    "train": "training",
    "Plane": "planes",
    "Grid": "planes.grids",
    "grid_around": "planes.grids",
    "Surface": "surfaces",
    "evaluate": "evaluation",
}
_RENAMED = {"modules": "networks.modules"}
"""Earlier names of modules, kept for one release."""
_MODULES = ("datasets", "networks", "checkpoints", "losses", "planes", "convexity", "alignment", "plots", "duality")

__all__ = [*_HOMES, *_MODULES]


def __getattr__(name: str) -> Any:
    """Public names are loaded on first use, so that `landscape --help` never waits for JAX."""
    if name in _HOMES:
        return getattr(importlib.import_module(f"landscape.{_HOMES[name]}"), name)
    if name in _MODULES or name in _RENAMED:
        return importlib.import_module(f"landscape.{_RENAMED.get(name, name)}")
    raise AttributeError(f"module 'landscape' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
