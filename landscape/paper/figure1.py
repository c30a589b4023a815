"""Figure 1: the loss surface of a one-hidden-layer ReLU network on synthetic data, against its number of units I."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import landscape as ls
from landscape.runs import Run

SMOKE: dict[str, Any] = {"branches": (10, 30, 100), "points": 15, "steps": 200}
PAPER: dict[str, Any] = {"points": 101, "triples": 5}
EPOCHS = 50
"""Between two entries of the history that the criterion looks at."""


@dataclass(frozen=True)
class Config:
    """Figure 1: surfaces of a one-hidden-layer ReLU network on the synthetic teacher's data, §5.1."""

    branches: tuple[int, ...] = (10, 30, 100, 300, 1000)
    """Numbers I of hidden units, one surface each."""
    points: int = 51
    """Grid points along each axis."""
    teacher: int = 1
    """Seed of the teacher and its examples: 0 labels 96 % of them alike, 1 … 4 between 37 and 73 %."""
    triples: int = 1
    """Independent triples of solutions for each I; 5 give an error bar."""
    steps: int = 100_000
    """Most steps of SGD."""
    batch_size: int = 100
    """Examples a step."""
    learning_rate: float = 0.05
    """Step length, constant."""
    tolerance: float | None = 1e-3
    """Stop training when no solution's lowest risk has fallen by more than this over the last 250 epochs."""
    plane: Literal["orthonormal", "oblique", "aligned"] = "orthonormal"
    """Axes of the drawn plane; all three are computed and stored."""
    margin: float = 0.3
    """Share of the triangle's extent shown around it."""
    loss: Literal["hinge", "squared", "logistic"] = "hinge"
    """Loss per example."""
    tau: float = 1.0
    """Margin parameter of the hinge loss, Eq. (1)."""

    def __post_init__(self) -> None:
        check(self)
        if not 0 < self.tau < float("inf"):
            raise ValueError(f"--tau must be positive, Eq. (1); got {self.tau:g}.")


def check(config: Any) -> None:
    """Refuse what cannot be drawn, before anything long starts.

    Raises:
        ValueError: A number that is too small, or the same I twice.
    """
    sizes = config.branches
    if sizes is not None and (not sizes or min(sizes) < 1 or len(set(sizes)) < len(sizes)):
        raise ValueError(f"--branches wants different numbers, at least 1 each; got {_words(sizes)}.")
    if config.points < 2:
        raise ValueError(f"--points wants at least 2 grid points along each axis; got {config.points}.")
    for name in ("triples", "steps", "batch_size"):
        if getattr(config, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} wants at least 1; got {getattr(config, name)}.")
    if config.learning_rate is not None and not 0 < config.learning_rate < float("inf"):
        raise ValueError(f"--learning-rate must be positive; got {config.learning_rate:g}.")
    if config.tolerance is not None and not 0 <= config.tolerance < float("inf"):
        raise ValueError(f"--tolerance must be at least 0, or None; got {config.tolerance:g}.")
    if not 0 <= config.margin < float("inf"):
        raise ValueError(f"--margin must be at least 0; got {config.margin:g}.")


def between_records(epochs: int, examples: int, config: Any) -> int:
    """Steps in so many epochs, and few enough that the criterion can be met."""
    return max(1, min(epochs * (examples // config.batch_size), config.steps // 20))


def _words(numbers: tuple[int, ...]) -> str:
    return " ".join(map(str, numbers)) or "none"


def run(config: Config, run: Run) -> None:
    """Train, evaluate and measure the networks of every width."""
    import jax

    from landscape.paper import study

    data = ls.datasets.synthetic_teacher(jax.random.key(config.teacher))
    run.data(data)
    if config.batch_size > len(data):
        raise ValueError(f"--batch-size wants at most the {len(data):,} examples; got {config.batch_size}.")
    of_tau = config.loss == "hinge" and config.tau != 1
    loss = ls.losses.tau_hinge(tau=config.tau) if of_tau else ls.losses.BY_NAME[config.loss]
    networks = [study.Studied(ls.Problem(data, network(n), loss)) for n in config.branches]
    recipe = study.Recipe(
        config.triples,
        config.steps,
        config.batch_size,
        config.learning_rate,
        config.tolerance,
        config.points,
        config.margin,
        between_records(EPOCHS, len(data), config),
    )
    study.run(networks, recipe, run, drawn=config.plane)


def network(branches: int) -> Any:
    """f(x) = Σ_i w_(i,2) [W_(i,1) x]_+ in R^10 (§5.1)."""
    return ls.MultiBranch(ls.networks.relu_branch(10, summed_over=branches), branches, average=False)


def draw(path: Path) -> None:
    """The row of surfaces over I with its measures, and the report."""
    from landscape.paper import study

    study.draw(path, "Figure 1: one hidden layer on synthetic data")
