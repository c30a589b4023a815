"""Explore your own network: the loss on a plane through your checkpoints, with barriers, paths and curvature.

Without --network an example is trained and shown: 30 ReLU branches on the synthetic teacher's data of §5.1.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from landscape.runs import Run

SMOKE: dict[str, Any] = {"points": 11, "steps": 100, "spectrum": True, "curvature": True, "loss": "logistic"}
PAPER: dict[str, Any] = {"points": 101, "steps": 20_000}

NEEDS_THREE = ("solutions", "oblique")


@dataclass(frozen=True)
class Config:
    """What to draw, of what."""

    network: str = ""
    """MODULE:NAME of a module of flax (nnx or linen), PyTorch, Keras or Equinox, its class, or a function of rngs, of a
    key or of nothing that makes it; a Network or MultiBranch, a function of (params, x), or a function risk(params)."""
    branches: int = 0
    """Take the mean over so many copies of the network, each with weights of its own; 0 for the network as it is."""
    loss: str = "hinge"
    """hinge, multiclass_hinge, squared (mse), logistic (cross_entropy; of scores, or of probabilities that sum to 1),
    nll (of log-probabilities), bce (of scores), or MODULE:NAME of a function (outputs, y) -> one value an example."""
    data: str = ""
    """MODULE:NAME of a Dataset, of (x, y), or of a function that returns one; or mnist, or cifar10."""
    test_data: str = ""
    """The same for the test risk; mnist and cifar10 bring their own."""
    layout: Literal["", "flat", "nhwc", "nchw", "hw"] = ""
    """Shape of an image of mnist or cifar10, with height, width and channels; the one that the network accepts when not
    given."""
    limit: int | None = 2_000
    """Examples of mnist or cifar10, the first ones; None for all."""
    solutions: tuple[Path, ...] = ()
    """Checkpoints: npz, safetensors, msgpack, eqx, pt, pt2, weights.h5 or orbax folders; six, nine … are taken three by
    three, for a spread of the measures; without any, solutions are trained."""
    triples: int = 1
    """Triples of solutions, where they are trained: with several the measures have a spread."""
    paths: tuple[Path, ...] = ()
    """Trajectories to draw: checkpoints whose arrays have a leading axis of steps, one file a run."""
    plane: Literal["solutions", "oblique", "random", "pca", "hessian", "gradient"] = "solutions"
    """Through three solutions with orthonormal or the paper's oblique axes; or through the first solution (pca: the
    last point of a trajectory)."""
    normalize: Literal["filter", "layer", "none"] = "filter"
    """What the random directions are scaled by, in each branch by itself; a function's parameters are one branch. A
    filter holds the weights into one output unit, whatever the layout."""
    vectors: bool = False
    """Move biases and norm scales along the random directions too; as published they stay."""
    align: bool = False
    """Permute and rescale units and branches of the solutions to match each other; before and after are drawn."""
    points: int = 51
    """Grid points along each axis."""
    tolerance: str = ""
    """Stop once the largest standard error of the surface is this small: in loss units (0.01) or as a share of the
    surface's range (1%). The examples are then taken in a fixed random order; all of them when not given."""
    margin: float = 0.3
    """Share of the extent shown around the solutions (or the path)."""
    rise: float = 10.0
    """Extent of a plane through one solution: where the loss is so many times the solution's (at least 0.01)."""
    weight_decay: float = 0.0
    """λ of a regulariser λ/2 ‖w‖², a layer apart from the data's loss."""
    state: Literal["auto", "none", "frozen", "recompute"] = "auto"
    """BatchNorm-like state: refused, frozen as the first checkpoint (else the module) holds it, or recomputed over the
    training data at every point; frozen where the first checkpoint holds it, else refused, when not given."""
    curvature: bool = False
    """Exact slopes and 2x2 Hessians in the plane, at every grid point (about six times the work of the surface)."""
    spectrum: bool = False
    """Extreme eigenvalues, trace and spectral density of the full Hessian at the solutions."""
    steps: int = 2_000
    """Steps of SGD, where solutions are trained."""
    batch_size: int = 100
    """Examples a step, where solutions are trained."""
    learning_rate: float = 0.05
    """Step length, where solutions are trained."""
    record: int | None = None
    """Steps between two points of the recorded trajectories, where solutions are trained (default: 1/20 of all)."""

    def __post_init__(self) -> None:
        if self.points < 2:
            raise ValueError(f"--points wants at least 2 grid points along each axis; got {self.points}.")
        if not 0 <= self.margin < float("inf") or not 1 < self.rise < float("inf"):
            raise ValueError(f"--margin wants at least 0, --rise more than 1; got {self.margin:g} and {self.rise:g}.")
        if self.tolerance:
            from landscape.evaluation.execution import wanted_error

            wanted_error(self.tolerance)
        if self.triples < 1 or (self.triples > 1 and (self.solutions or self.plane not in NEEDS_THREE)):
            raise ValueError(
                "--triples wants at least 1, and more only where planes go through trained solutions.\n"
                "  Checkpoints named with --solutions are taken three by three anyway."
            )
        if self.branches < 0 or (self.record is not None and self.record < 1):
            raise ValueError("--branches wants a number of copies, --record a number of steps.")
        if min(self.steps, self.batch_size) < 1 or not 0 < self.learning_rate < float("inf") or self.weight_decay < 0:
            raise ValueError(
                "--steps, --batch-size and --learning-rate want positive numbers, --weight-decay none below 0."
            )
        if self.network and ":" not in self.network:
            raise ValueError(f"--network wants MODULE:NAME, such as my_module:make; got {self.network}.")
        if self.plane in NEEDS_THREE and len(self.solutions) in (1, 2):
            names = f"--plane {self.plane} wants three solutions (a file may hold several)"
            if all(path.suffix != ".npz" for path in self.solutions):
                raise ValueError(f"{names}; got {len(self.solutions)}.\n  With one or two, take --plane random.")


def run(config: Config, run: Run) -> None:
    """Load, check, evaluate and measure."""
    from landscape.explore import pipeline

    pipeline.run(config, run)


def draw(path: Path) -> None:
    """The surface in two and three dimensions, edges, paths, curvature, spectra; and the report."""
    from landscape.explore import figures

    figures.draw(path)
