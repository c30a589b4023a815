"""Theorem 2 (§3): deep linear networks have no duality gap; primal, dual and gradient descent meet in one value."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from landscape.files.tables import text_table

if TYPE_CHECKING:
    from landscape.duality.deep_linear import Certificate, DeepLinear
    from landscape.runs import Run

INPUTS, OUTPUTS, EXAMPLES, NARROWEST, WIDEST = 6, 5, 40, 3, 4
"""Sizes of the random problem: d_0, d_H, n, the last hidden width and the others."""

SMOKE: dict[str, Any] = {"depths": (2, 3), "gammas": (0.5, 4.0), "seeds": 4, "steps": 400, "limit": 200}
PAPER: dict[str, Any] = {"limit": 60_000}


@dataclass(frozen=True)
class Config:
    """Theorem 2 is proved in the paper and not measured there; all sizes are this project's choice."""

    depths: tuple[int, ...] = (2, 3, 4, 5, 6)
    """Numbers H of weight matrices."""
    gammas: tuple[float, ...] = (0.5, 4.0, 10.0)
    """γ in units of σ_min(Ỹ): the theorem asks for less than 1, strong duality holds for all."""
    seeds: int = 20
    """Random starts of gradient descent for each depth and γ."""
    steps: int = 6_000
    """Steps of Adam on problem (4), its step size falling to 0 along a cosine."""
    learning_rate: float = 0.03
    """First step size."""
    tolerance: float = 1e-6
    """Relative excess over the optimum at which a seed counts as having reached it."""
    limit: int = 2_000
    """MNIST digits for the curve on real data; 0 leaves it out."""

    def __post_init__(self) -> None:
        if not self.depths or min(self.depths) < 2 or len(set(self.depths)) < len(self.depths):
            raise ValueError(f"--depths wants different numbers, at least 2; got {self.depths}.")
        if not self.gammas or not all(0 <= gamma < float("inf") for gamma in self.gammas):
            raise ValueError(f"--gammas wants numbers, at least 0; got {self.gammas}.")
        if len(set(self.gammas)) < len(self.gammas):
            raise ValueError(f"--gammas wants different numbers; got {self.gammas}.")
        for name, least in (("seeds", 1), ("steps", 1), ("limit", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"--{name} wants at least {least}; got {getattr(self, name)}.")
        for name in ("learning_rate", "tolerance"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"--{name.replace('_', '-')} wants a positive number; got {getattr(self, name)}.")


def run(config: Config, run: "Run") -> None:
    """Solve every depth and γ in four ways, then the reduced-rank regressions of MNIST."""
    from landscape.duality.linear.problem import singular_values

    base = random_problem(run.options.seed)
    s = singular_values(base.coordinates.labels)
    sizes = f"{INPUTS} inputs, {OUTPUTS} outputs, {EXAMPLES} examples, d_min {NARROWEST}"
    run.say(
        "theorem2:",
        f"{sizes} · sigma(Y~) {' '.join(f'{x:.3g}' for x in s)} · gamma {_words(config.gammas)} x sigma_min",
    )
    run.plan(f"{len(config.depths) * len(config.gammas) * config.seeds * config.steps:,} steps of gradient descent")
    rows, descents = [], {}
    with run.bar("descent", len(config.gammas) * len(config.depths)) as bar:
        for factor in config.gammas:
            for depth in config.depths:
                problem = base.varied(widths=_widths(depth), gamma=factor * s[-1])
                values = _descent(problem, config, run, f"descent-{factor:g}-{depth}")
                rows.append(_row(problem, factor, values, config.tolerance))
                descents[f"{factor:g}-{depth}"] = values
                bar.update(1)
    run.say("meeting:", table(rows))
    run.say("note:", "the theorem asks for gamma < sigma_min; strong duality holds beyond it as well, as the gaps show")
    measures = {"config": dataclasses.asdict(config), "meeting": rows, "mnist": _images(config, run)}
    run.measures(measures)
    run.clear()


def draw(path: Path) -> None:
    """figure.png and figure.pdf from measures.json."""
    from landscape.plots import deep_linear, style

    measures = json.loads((path / "measures.json").read_text())
    fig = deep_linear.meeting(measures["config"], measures["meeting"], measures["mnist"])
    style.save(fig, path / "figure")


def random_problem(seed: int) -> "DeepLinear":
    """Gaussian X and a noisy linear teacher's Y, scaled by 1/√n; its depth and γ are set later."""
    from landscape.duality.deep_linear import DeepLinear

    rng = np.random.default_rng(seed)
    X = rng.normal(size=(INPUTS, EXAMPLES)) / EXAMPLES**0.5
    Y = rng.normal(size=(OUTPUTS, INPUTS)) @ X + 0.3 / EXAMPLES**0.5 * rng.normal(size=(OUTPUTS, EXAMPLES))
    return DeepLinear(X, Y, (NARROWEST,), 0.0)


def table(rows: list[dict[str, Any]]) -> str:
    """One line for each γ and H."""
    head = ["gamma", "H", "formula", "primal - dual", "DR steps", "DR - formula"]
    head += ["descent: best", "median", "reached", "zero start", "gradient"]
    cells = [
        [
            *(f"{row['factor']:g} s_min", row["depth"], f"{row['optimum']:.10f}", f"{row['gap']:.1e}"),
            *(row["iterations"], f"{row['error']:.1e}", f"{row['best']:.1e}", f"{row['median']:.1e}"),
            *(f"{100 * row['share']:.0f} %", f"{row['zero_excess']:+.2f}", f"{row['zero_gradient']:.1g}"),
        ]
        for row in rows
    ]
    return "\n".join(text_table([head, *cells]))


def image_table(rows: list[dict[str, Any]]) -> str:
    """The reduced-rank regressions of MNIST, one line for each d_min and γ."""
    cells = [
        [
            *(row["d_min"], f"{row['gamma']:.3g}", f"{row['value']:.9f}", f"{row['relative_gap']:.1e}"),
            *(row["iterations"], "yes" if row["verified"] else "NO"),
        ]
        for row in rows
    ]
    return "\n".join(text_table([["d_min", "gamma", "value/example", "relative gap", "DR steps", "verified"], *cells]))


def _widths(depth: int) -> tuple[int, ...]:
    return (WIDEST,) * (depth - 2) + (NARROWEST,)


def _words(numbers: tuple[float, ...]) -> str:
    return ", ".join(f"{x:g}" for x in numbers)


def _descent(problem: "DeepLinear", config: Config, run: "Run", name: str) -> np.ndarray:
    """Values of (4) along gradient descent [S, steps + 1], from disk where they are."""
    import jax
    import optax

    from landscape.duality.linear import descent

    def compute() -> dict[str, np.ndarray]:
        keys = jax.random.split(jax.random.key(run.options.seed), config.seeds)
        schedule = optax.cosine_decay_schedule(config.learning_rate, config.steps)
        return {"values": descent.descend(problem, keys, optax.adam(schedule), steps=config.steps).values}

    inputs = (problem.X, problem.Y, list(problem.widths), problem.gamma, dataclasses.asdict(config))
    return run.stage(name, inputs, compute)["values"]


def _row(problem: "DeepLinear", factor: float, values: np.ndarray, tolerance: float) -> dict[str, Any]:
    """All numbers for one γ and H; the excess is relative to the optimum."""
    from landscape.duality import deep_linear
    from landscape.duality.linear import descent

    found, best = deep_linear.douglas_rachford(problem), deep_linear.optimum(problem)
    zero = [np.zeros(shape) for shape in problem.shapes]
    excess = values / best - 1
    steps = np.unique(np.geomspace(1, values.shape[1], 120).astype(int)) - 1
    return {
        "factor": factor,
        "gamma": problem.gamma,
        "depth": problem.depth,
        "optimum": best,
        "primal": found.primal,
        "dual": found.dual,
        "gap": found.gap,
        "iterations": found.iterations,
        "error": found.primal - best,
        "verified": bool(deep_linear.verify(found)),
        "bracket": found.history.tolist(),
        "best": float(excess[:, -1].min()),
        "median": float(np.median(excess[:, -1])),
        "share": float(np.mean(excess[:, -1] <= tolerance)),
        "descent": values[:, -1].tolist(),
        "steps": steps.tolist(),
        "curve": np.quantile(excess[:, steps], [0.0, 0.5, 1.0], axis=0).tolist(),
        "zero_excess": deep_linear.objective(problem, zero) / best - 1,
        "zero_gradient": descent.gradient_norm(problem, zero),
    }


def _images(config: Config, run: "Run") -> dict[str, Any]:
    """The reduced-rank regression curve of MNIST with its certificates; says so where the files are absent."""
    if not config.limit:
        return {"absent": "left out by --limit 0"}
    import landscape as ls

    try:
        data = ls.datasets.mnist(run.options.data_root, limit=config.limit, download=not run.options.smoke)
    except FileNotFoundError as error:
        reason = str(error).splitlines()[0]
        run.say("mnist:", f"NOT DONE: {reason}\nGive --data-root or LANDSCAPE_DATA; the rest above is complete.")
        return {"absent": reason}
    run.data(data, "mnist")
    rows = regressions(np.asarray(data.x, np.float64).T, np.eye(10)[np.asarray(data.y)].T)
    run.say(
        "mnist:", f"X = {len(data):,} digits x 784 pixels and a bias, Y = one-hot labels, H = 3\n{image_table(rows)}"
    )
    return {"examples": len(data), "rows": rows}


def regressions(X: np.ndarray, Y: np.ndarray) -> list[dict[str, Any]]:
    """d_min = 1 … 9 at γ = 0, at half the smallest and at half the largest singular value of Ỹ."""
    from landscape.duality import deep_linear
    from landscape.duality.linear.problem import singular_values

    base = deep_linear.DeepLinear(deep_linear.with_bias(X), Y, (1, 1), 0.0)
    s = singular_values(base.coordinates.labels)
    problems = [base.varied(widths=(d, d), gamma=gamma) for gamma in (0.0, s[-1] / 2, s[0] / 2) for d in range(1, 10)]
    return [_regression(certificate) for certificate in deep_linear.douglas_rachford_batch(problems)]


def _regression(certificate: "Certificate") -> dict[str, Any]:
    from landscape.duality import deep_linear

    problem, best = certificate.problem, deep_linear.optimum(certificate.problem)
    return {
        "d_min": problem.d_min,
        "gamma": problem.gamma,
        "value": certificate.primal / problem.X.shape[1],
        "formula": best / problem.X.shape[1],
        "relative_gap": certificate.gap / certificate.primal,
        "iterations": certificate.iterations,
        "verified": bool(deep_linear.verify(certificate)),
    }
