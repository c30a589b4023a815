"""Table 1 (§5.2): how often SGD hits the global minimum, against the number of hidden units."""

import dataclasses
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from landscape.files.tables import markdown_table, text_table

if TYPE_CHECKING:
    from landscape.datasets import Dataset
    from landscape.runs import Run
    from landscape.training.hitting import Rates
    from landscape.training.shallow import TrainingConfig

PRINTED = {12: 21, 13: 24, 14: 24, 15: 29, 16: 30, 17: 32, 18: 35, 19: 52, 20: 64, 21: 75}
"""Hits in 100 as printed in Table 1."""

STUDIED: dict[str, dict[str, Any]] = {
    **{f"teacher {k}": {"teacher": k} for k in range(5)},
    "protocol batch 10, step 0.012": {"batch_size": 10, "learning_rate": 0.012},
    "protocol batch 100, step 0.005": {"learning_rate": 0.005},
    "protocol batch 100, step 0.05": {"learning_rate": 0.05},
    "protocol normal start": {"initialisation": "normal"},
    "protocol squared loss": {"loss": "squared"},
}
"""What --study varies, one thing at a time."""

SMOKE: dict[str, Any] = {"widths": (12, 21), "seeds": 6, "steps": 2_000}
PAPER: dict[str, Any] = {}


@dataclass(frozen=True)
class Config:
    """The paper states widths, seeds, steps, loss and teacher; the other defaults are this project's choice."""

    widths: tuple[int, ...] = (12, 13, 14, 15, 16, 17, 18, 19, 20, 21)  # Table 1
    """Hidden units of the networks."""
    seeds: int = 100  # §5.2
    """Initialisations of each width."""
    steps: int = 100_000  # §5.2
    """SGD steps."""
    batch_size: int = 100
    """Examples a step."""
    learning_rate: float = 0.015
    """Constant step size."""
    initialisation: Literal["uniform", "normal"] = "uniform"
    """Uniform in ±1/√fan-in, or normal with standard deviation 1/√fan-in."""
    loss: Literal["hinge", "squared"] = "hinge"
    """Hinge on the sign of the teacher's output, or squared error on the output scaled to variance 1."""
    tau: float = 1.0  # §5.1
    """τ of the hinge loss."""
    teacher: int = 0
    """Seed of the 11-unit teacher and its 1,000 examples."""
    float64: bool = False
    """Train in double precision."""
    study: bool = False
    """Also train the first and last width with other teachers, batch sizes, steps, starts and losses."""

    def __post_init__(self) -> None:
        if not self.widths or min(self.widths) < 1 or len(set(self.widths)) != len(self.widths):
            raise ValueError(f"--widths wants different numbers of hidden units, at least 1; got {self.widths}.")
        for name, least in (("seeds", 1), ("steps", 1), ("batch_size", 1), ("teacher", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"--{name.replace('_', '-')} wants at least {least}; got {getattr(self, name)}.")
        if self.batch_size > 1000:
            raise ValueError(f"--batch-size wants at most the 1,000 examples; got {self.batch_size:,}.")
        for name in ("learning_rate", "tau"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"--{name.replace('_', '-')} wants a positive number; got {getattr(self, name)}.")


def run(config: Config, run: "Run") -> None:
    """Train all networks, count the hits, and print the table beside the paper's column."""
    networks = len(config.widths) * config.seeds
    run.say("table1:", f"{networks:,} networks of {_span(config.widths)} hidden units · {protocol_in_words(config)}")
    cells = {"": config, **(_studied(config) if config.study else {})}
    run.plan(f"{sum(len(c.widths) * c.seeds * c.steps for c in cells.values()):,} steps of one network")
    found = {}
    for name, cell in cells.items():
        rates = _rates(cell, run, name)
        found[name] = summary(rates)
        run.say(f"{name or 'table1'}:", "\n".join(text_table([HEAD, *rows(found[name])])))
    main = found.pop("")
    _save(run.file("table1.nc"), main, _rates(config, run, ""), config)
    run.measures({"protocol": dataclasses.asdict(config), "table": main, "study": found})
    run.clear()


def draw(path: Path) -> None:
    """figure.png and figure.pdf with both curves and the study's, and table1.md."""
    from landscape.files import atomic
    from landscape.plots import rates, style

    measures = json.loads((path / "measures.json").read_text())
    config = Config(**{**measures["protocol"], "widths": tuple(measures["protocol"]["widths"])})
    main, study = measures["table"], measures["study"]
    caption = (
        f"{config.seeds} initialisations a width; bars: Wilson's 95 % intervals. Measured: "
        f"{protocol_in_words(config)}. The paper leaves batch size, step size and initialisation open; other teachers "
        "and other optimisers give other rates."
    )
    printed = {w: PRINTED[w] / 100 for w in main["width"] if w in PRINTED}
    fig = rates.hitting(main, printed, others=study, caption=caption)
    style.save(fig, path / "figure")
    parts = [f"# Table 1\n\n{config.seeds} networks a width; {protocol_in_words(config)}.", *_markdown("", main)]
    parts += [part for name, columns in study.items() for part in _markdown(name, columns)]
    atomic.write_atomic(path / "table1.md", lambda pending: pending.write_text("\n\n".join(parts) + "\n", "utf-8"))


def protocol_in_words(config: Config) -> str:
    """How the networks are trained, in one line."""
    start = "uniform ±1/√fan-in" if config.initialisation == "uniform" else "normal 1/√fan-in"
    loss = f"τ = {config.tau:g} hinge on signs" if config.loss == "hinge" else "squared error on outputs"
    return (
        f"{config.steps:,} steps of SGD, minibatch {config.batch_size}, constant step {config.learning_rate:g}, "
        f"{start} start, {loss} of teacher {config.teacher}{', float64' if config.float64 else ''}"
    )


def problem(config: Config) -> "tuple[Dataset, TrainingConfig]":
    """Data, and how the networks are trained; the global minimum of the risk is 0, attained by the teacher."""
    import jax

    from landscape import datasets
    from landscape.training.shallow import TrainingConfig

    data = datasets.synthetic_teacher(jax.random.key(config.teacher))
    if config.loss == "squared":
        first, last = (np.asarray(layer["kernel"], np.float64) for layer in data.teacher)
        outputs = np.maximum(np.asarray(data.x, np.float64) @ first[:, :, 0].T, 0) @ last[:, 0, 0]
        data = datasets.Dataset(data.x, (outputs / outputs.std()).astype(np.float32), name=data.name)
    names = ("steps", "batch_size", "learning_rate", "initialisation", "loss", "tau", "float64")
    return data, TrainingConfig(**{name: getattr(config, name) for name in names})


def summary(rates: "Rates") -> dict[str, list[float]]:
    """The table, column by column."""
    count = rates.risk.shape[1]
    return {
        "width": [int(width) for width in rates.widths],
        "hits": [int(hits) for hits in rates.hits],
        "networks": [count] * len(rates.widths),
        "rate": [float(hits / count) for hits in rates.hits],
        "low": [float(low) for low in rates.low],
        "high": [float(high) for high in rates.high],
        "median_risk": [float(risk) for risk in np.median(rates.risk, 1)],
        "least_risk": [float(risk) for risk in rates.risk.min(1)],
    }


HEAD = ("width", "hits", "95 % interval", "paper", "median risk", "least risk")


def rows(columns: dict[str, list[float]]) -> list[list[str]]:
    """The table's rows, with the paper's column."""
    return [
        [
            *(str(width), f"{hits}/{count}", f"{100 * low:.0f} … {100 * high:.0f} %"),
            *(f"{PRINTED[int(width)]} %" if width in PRINTED else "–", f"{median:.2e}", f"{least:.2e}"),
        ]
        for width, hits, count, _, low, high, median, least in zip(*columns.values(), strict=True)
    ]


def _markdown(name: str, columns: dict[str, list[float]]) -> list[str]:
    return [*([f"## {name}"] if name else []), markdown_table([HEAD, *rows(columns)])]


def _studied(config: Config) -> dict[str, Config]:
    widths = tuple(dict.fromkeys((min(config.widths), max(config.widths))))
    cells = {name: dataclasses.replace(config, widths=widths, **change) for name, change in STUDIED.items()}
    return {name: cell for name, cell in cells.items() if dataclasses.replace(cell, widths=config.widths) != config}


def _rates(config: Config, run: "Run", name: str) -> "Rates":
    """The rates of one cell of the study, from disk where they are."""
    from landscape.training import hitting

    data, training = problem(config)
    training = dataclasses.replace(training, seed=run.options.seed)
    seeds = range(run.options.seed * config.seeds, (run.options.seed + 1) * config.seeds)
    folder = run.file("blocks")

    def compute() -> dict[str, np.ndarray]:
        with run.bar(name or f"{_span(config.widths)} units", config.seeds * len(config.widths) * config.steps) as bar:
            found = hitting.hitting_rate(
                data, config.widths, seeds, training, directory=folder, progress=bar, check_stop=run.check_stop
            )
        return {"risk": found.risk}

    inputs = (data, dataclasses.asdict(training), list(config.widths), list(seeds))
    risk = run.stage("rates", inputs, compute)["risk"]
    shutil.rmtree(folder, ignore_errors=True)
    return hitting.rates(config.widths, risk)


def _save(path: Path, columns: dict[str, list[float]], rates: "Rates", config: Config) -> None:
    """table1.nc: every final risk, and the table."""
    import xarray

    from landscape.files import atomic

    variables: dict[str, Any] = {"risk": (("width", "seed"), rates.risk, {"units": "loss"})}
    variables |= {name: ("width", values) for name, values in columns.items() if name not in ("width", "networks")}
    variables["printed"] = ("width", [PRINTED[int(w)] / 100 if w in PRINTED else np.nan for w in columns["width"]])
    attributes = {**dataclasses.asdict(config), "minimum": rates.minimum, "tolerance": rates.tolerance}
    attributes = {k: str(v) if isinstance(v, bool) else v for k, v in attributes.items() if k != "widths"}
    content = xarray.Dataset(variables, {"width": columns["width"]}, attributes)
    atomic.write_atomic(path, lambda pending: content.to_netcdf(pending, engine="h5netcdf"))


def _span(widths: tuple[int, ...]) -> str:
    low, high = min(widths), max(widths)
    return f"{low} … {high}" if low < high else str(low)
