"""Figure 4: the loss surface of multi-branch ReLU networks on MNIST and CIFAR-10, against the number of branches I."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import landscape as ls
from landscape.paper.figure1 import check
from landscape.runs import Run

SMOKE: dict[str, Any] = {"branches": (1, 3), "points": 9, "steps": 40, "limit": 500}
PAPER: dict[str, Any] = {"limit": None, "steps": 20_000, "branches": (1, 10, 30, 100)}


@dataclass(frozen=True)
class Config:
    """Figure 4: surfaces of multi-branch networks with hidden layers of 8 units on real images, §5.1."""

    dataset: Literal["mnist", "cifar10"] = "mnist"
    """MNIST, or CIFAR-10 (needs --data-root, LANDSCAPE_DATA or a download)."""
    hidden: tuple[int, ...] = (8,)
    """Widths of each branch's hidden layers: 8, or 8 8 8."""
    branches: tuple[int, ...] = (1, 3, 10, 30, 100)
    """Numbers I of branches, one surface each."""
    limit: int | None = 2_000
    """Training examples, the first ones; None for all of them."""
    test_limit: int = 1_000
    """Test examples for the barriers of the test risk; 0 for none."""
    points: int = 41
    """Grid points along each axis."""
    triples: int = 1
    """Independent triples of solutions for each I; 5 give an error bar."""
    steps: int = 600
    """Steps of SGD."""
    batch_size: int = 100
    """Examples a step."""
    learning_rate: float = 0.005
    """Step length for one branch; divided by the square root of the number of branches."""
    tolerance: float | None = None
    """Stop training when the risk falls by no more than this over a quarter of the steps."""
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
        if (self.limit is not None and self.limit < 1) or self.test_limit < 0:
            came = f"{self.limit} and {self.test_limit}"
            raise ValueError(f"--limit wants at least 1 example, --test-limit 0 or more; got {came}.")


def images(config: Config, run: Run) -> tuple[ls.Dataset, ls.Dataset | None]:
    """The training examples and those of the test set; with --smoke and no files at hand random ones, which is said."""
    import jax

    name, root = config.dataset, run.options.data_root
    if run.options.smoke and not ls.datasets.at_hand(name, root):
        run.say(
            "note:", f"--smoke downloads nothing: RANDOM NUMBERS in the shape of {name}; give --data-root for images"
        )
        keys = jax.random.split(jax.random.key(run.options.seed))
        counts = config.limit or SMOKE["limit"], min(config.test_limit, SMOKE["limit"])
        test = ls.datasets.random_images(name, counts[1], keys[1]) if counts[1] else None
        return ls.datasets.random_images(name, counts[0], keys[0]), test
    read = {"mnist": ls.datasets.mnist, "cifar10": ls.datasets.cifar10}[name]
    test = read(root, split="test", limit=config.test_limit) if config.test_limit else None
    return read(root, limit=config.limit), test


def run(config: Config, run: Run) -> None:
    """Train, evaluate and measure the networks of every number of branches."""
    from landscape import study

    data, test = images(config, run)
    run.data(data)
    if config.batch_size > len(data):
        raise ValueError(f"--batch-size wants at most the {len(data):,} examples; got {config.batch_size}.")
    loss = ls.losses.multiclass_hinge if config.loss == "hinge" else ls.losses.BY_NAME[config.loss]
    cases = []
    for n in config.branches:
        network = multi_branch(data.x.shape[1], config.hidden, n)
        tested = ls.Problem(test, network, loss) if test else None
        cases.append(study.Case(ls.Problem(data, network, loss), tested, config.learning_rate / n**0.5))
    protocol = study.Protocol(
        config.triples,
        config.steps,
        config.batch_size,
        config.learning_rate,
        config.tolerance,
        config.points,
        config.margin,
    )
    study.run(cases, protocol, run, drawn=config.plane)


def multi_branch(inputs: int, hidden: tuple[int, ...], branches: int) -> Any:
    """f(x) = Σ_i f_i(x), each branch W_(i,H) [… [W_(i,1) x]_+]_+ with hidden layers of the given widths (§5.1)."""
    branch = ls.networks.mlp_branch((inputs, *hidden, 10), summed_over=branches)
    return ls.MultiBranch(branch, branches, average=False)


def draw(path: Path) -> None:
    """The row of surfaces over I with its measures, and the report."""
    from landscape import study

    study.draw(path, "Figure 4: multi-branch networks on images")
