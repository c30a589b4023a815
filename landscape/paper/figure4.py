"""Figure 4: the loss surface of multi-branch ReLU networks on MNIST and CIFAR-10, against the number of branches I."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import landscape as ls
from landscape.paper.figure1 import between_records, check
from landscape.runs import Run

SMOKE: dict[str, Any] = {"branches": (1, 3), "points": 9, "steps": 40, "limit": 500}
PAPER: dict[str, Any] = {"limit": "all", "steps": 100_000, "branches": (1, 10, 30, 100)}
STEP = {"mnist": 0.05, "cifar10": 0.005}
"""Step lengths that are stable for one branch: inverse to the squared norm of an image, about 100 and 850."""
FEW = {"mnist": 100, "cifar10": 1_000}
"""Branches up to which first layers decide what is stable; E‖∂f/∂w‖² of the last layers grows as I and then does."""
EPOCHS = 5
"""Between two entries of the history that the criterion looks at."""


@dataclass(frozen=True)
class Config:
    """Figure 4: surfaces of multi-branch networks with hidden layers of 8 units on real images, §5.1."""

    dataset: Literal["mnist", "cifar10"] = "mnist"
    """MNIST, or CIFAR-10 (needs --data-root, LANDSCAPE_DATA or a download)."""
    hidden: tuple[int, ...] = (8,)
    """Widths of each branch's hidden layers: 8, or 8 8 8."""
    branches: tuple[int, ...] | None = None
    """Numbers I of branches, one surface each: 1 3 10 30 100, or 1 10 100 1000 with several hidden layers."""
    limit: int | Literal["all"] | None = None
    """Training examples, the first ones: 2,000, or 500 with several hidden layers (4 min on two cores)."""
    test_limit: int = 1_000
    """Test examples for the barriers of the test risk; 0 for none."""
    points: int = 41
    """Grid points along each axis."""
    triples: int = 1
    """Independent triples of solutions for each I; 5 give an error bar."""
    steps: int = 20_000
    """Most steps of SGD."""
    batch_size: int = 100
    """Examples a step."""
    learning_rate: float | None = None
    """Step length, constant. 0.05 for MNIST, 0.005 for CIFAR-10; with several hidden layers times the root of I. More
    than 100 branches on MNIST, or 1,000 on CIFAR-10, take that of so many times 100/I or 1,000/I."""
    tolerance: float | None = 0.005
    """Stop training when no solution's lowest risk has fallen by more than this over the last 25 epochs."""
    plane: Literal["orthonormal", "oblique", "aligned"] = "orthonormal"
    """Axes of the drawn plane; all three are computed and stored."""
    margin: float = 0.3
    """Share of the triangle's extent shown around it."""
    loss: Literal["hinge", "squared", "logistic"] = "hinge"
    """Loss per example: the 10-class hinge, the squared or the softmax loss."""

    def __post_init__(self) -> None:
        check(self)
        if not self.hidden or min(self.hidden) < 1:
            raise ValueError(f"--hidden wants the widths of the hidden layers, at least 1 each; got {self.hidden}.")
        if (isinstance(self.limit, int) and self.limit < 1) or self.test_limit < 0:
            came = f"{self.limit} and {self.test_limit}"
            raise ValueError(f"--limit wants at least 1 example, --test-limit 0 or more; got {came}.")

    @property
    def sizes(self) -> tuple[int, ...]:
        """I, chosen or by default."""
        return self.branches or ((1, 3, 10, 30, 100) if len(self.hidden) == 1 else (1, 10, 100, 1000))

    @property
    def examples(self) -> int | None:
        """Training examples read; None for all."""
        return None if self.limit == "all" else self.limit or (2_000 if len(self.hidden) == 1 else 500)

    def step(self, branches: int) -> float:
        """Step length for I branches: gradients of first layers are the smaller the more layers lie above them."""
        few = min(branches, FEW[self.dataset])
        longer = few**0.5 if len(self.hidden) > 1 else 1.0
        return (self.learning_rate or STEP[self.dataset]) * longer * few / branches


def images(config: Config, run: Run) -> "tuple[ls.Dataset, ls.Dataset | None]":
    """The training examples and those of the test set; with --smoke and no files at hand random ones, which is said."""
    import jax

    name, root = config.dataset, run.options.data_root
    if run.options.smoke and not ls.datasets.at_hand(name, root):
        run.say(
            "note:", f"--smoke downloads nothing: RANDOM NUMBERS in the shape of {name}; give --data-root for images"
        )
        keys = jax.random.split(jax.random.key(run.options.seed))
        counts = config.examples or SMOKE["limit"], min(config.test_limit, SMOKE["limit"])
        test = ls.datasets.random_images(name, counts[1], keys[1]) if counts[1] else None
        return ls.datasets.random_images(name, counts[0], keys[0]), test
    read = {"mnist": ls.datasets.mnist, "cifar10": ls.datasets.cifar10}[name]
    test = read(root, split="test", limit=config.test_limit) if config.test_limit else None
    return read(root, limit=config.examples), test


def run(config: Config, run: Run) -> None:
    """Train, evaluate and measure the networks of every number of branches."""
    from landscape.paper import study

    data, test = images(config, run)
    run.data(data)
    if config.batch_size > len(data):
        raise ValueError(f"--batch-size wants at most the {len(data):,} examples; got {config.batch_size}.")
    loss = ls.losses.multiclass_hinge if config.loss == "hinge" else ls.losses.BY_NAME[config.loss]
    networks = []
    for n in config.sizes:
        network = multi_branch(data.x.shape[1], config.hidden, n)
        tested = ls.Problem(test, network, loss) if test else None
        networks.append(study.Studied(ls.Problem(data, network, loss), tested, config.step(n)))
    recipe = study.Recipe(
        config.triples,
        config.steps,
        config.batch_size,
        config.step(1),
        config.tolerance,
        config.points,
        config.margin,
        between_records(EPOCHS, len(data), config),
    )
    study.run(networks, recipe, run, drawn=config.plane)


def multi_branch(inputs: int, hidden: tuple[int, ...], branches: int) -> Any:
    """f(x) = Σ_i f_i(x), each branch W_(i,H) [… [W_(i,1) x]_+]_+ with hidden layers of the given widths (§5.1)."""
    branch = ls.networks.mlp_branch((inputs, *hidden, 10), summed_over=branches)
    return ls.MultiBranch(branch, branches, average=False)


def draw(path: Path) -> None:
    """The row of surfaces over I with its measures, and the report."""
    from landscape.paper import study

    study.draw(path, "Figure 4: multi-branch networks on images")
