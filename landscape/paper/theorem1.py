"""Theorem 1: the duality gap of multi-branch networks against their number of branches I, as certified intervals."""

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import landscape as ls
from landscape.files.tables import text_table

if TYPE_CHECKING:
    from landscape.runs import Run

BRANCHES = (1, 2, 3, 4, 5, 7, 10, 14, 20, 30, 50, 70, 100, 140, 200, 300, 500, 700, 1000)

KINDS = {
    "relu_l1": "One ReLU unit a[w]₊, norm |a| + |w|",
    "chain3_decay": "Chain of three ReLU layers, weight decay",
    "mnist_l2": "One ReLU unit on two MNIST digits, norm |a| + ‖u‖",
    "relu_decay": "One ReLU unit a[w]₊, weight decay: no gap",
}
"""The certified cases and their titles."""

TRIVIAL = (
    "f and h are both of degree 2 in the weights, so v(r) is a straight line, v = v**, and the gap is 0 for every I "
    "although Δ > 0"
)
"""Why two layers with weight decay have no gap."""

SHOWN = 401

SMOKE: dict[str, Any] = {"branches": (1, 3, 10, 100), "budgets": 200, "estimates": False, "limit": 500}
PAPER: dict[str, Any] = {}


@dataclass(frozen=True)
class Config:
    """Theorem 1 (§2): primal, dual, Δ_worst and the gap of the τ-hinge risk under Assumption 1, in float64."""

    branches: tuple[int, ...] = BRANCHES
    """Numbers I of identical branches."""
    budgets: int = 2000
    """Steps of the grid of budgets."""
    share: float = (5**0.5 - 1) / 2
    """K as a share of the largest h on W; the gap is 0 where I times it is a whole number."""
    tau: float = 2.0
    """τ of the hinge, Eq. (1); Assumption 1 is checked. The data are scaled so that the smallest admissible τ is 1."""
    digits: tuple[int, int] = (0, 1)
    """The two MNIST digits, labels −1 and +1, projected on their two principal components."""
    limit: int | None = None
    """At most so many MNIST examples; all of the two digits when not given."""
    estimates: bool = True
    """Also a branch too large for certificates (22 parameters, teacher data): estimates, labelled so."""
    hinge: bool = True
    """Also the true hinge (τ = 0.5, where Assumption 1 fails): the convexification gap, under its own name."""

    def __post_init__(self) -> None:
        if not self.branches or min(self.branches) < 1 or len(set(self.branches)) < len(self.branches):
            raise ValueError(f"--branches wants different numbers, at least 1 each; got {self.branches}.")
        if self.budgets < 10:
            raise ValueError(f"--budgets wants at least 10 steps; got {self.budgets}.")
        if not 0 <= self.share <= 1:
            raise ValueError(f"--share wants a number from 0 to 1; got {self.share:g}.")
        if not 0 < self.tau < float("inf"):
            raise ValueError(f"--tau must be positive; got {self.tau:g}.")
        if len(set(self.digits)) != 2 or not all(0 <= d <= 9 for d in self.digits):
            raise ValueError(f"--digits wants two different digits; got {self.digits}.")
        if self.limit is not None and self.limit < 10:
            raise ValueError(f"--limit wants at least 10 examples; got {self.limit}.")


def run(config: Config, run: "Run") -> None:
    """Measure every kind of branches, each a stage on disk; then print and write the tables."""
    span = " … ".join(str(n) for n in sorted({min(config.branches), max(config.branches)}))
    run.say("theorem1:", f"{len(KINDS)} kinds of branches · I = {span} · K = {config.share:.4g} of the largest h")
    run.plan(f"{config.budgets:,} budgets · float64")
    from landscape.duality import examples

    settings = (dataclasses.asdict(config), run.options.seed)
    found, missing = {}, {}
    for name in KINDS:
        try:
            found[name] = run.stage(name, settings, lambda n=name: _measure(n, config, run))
        except FileNotFoundError as error:
            missing[name] = str(error)
            run.say("skipped:", f"{KINDS[name]}\n{error}\nGive --data-root, or set LANDSCAPE_DATA.")
            continue
        run.say(f"{name}:", _words(name, found[name], config))
    extra = {}
    if config.hinge:
        extra["hinge"] = run.stage("hinge", settings, lambda: examples.hinge(_up_to(config.branches, 20), config.share))
        run.say("hinge:", _hinge_words(extra["hinge"]))
    if config.estimates:
        extra["estimate"] = run.stage(
            "estimate", settings, lambda: examples.estimate(config.branches, config.share, run.options.seed)
        )
        run.say("estimate:", _estimate_words(extra["estimate"]))
    epigraph = run.stage("epigraph", settings, lambda: examples.epigraph(config.tau))
    _save(run.file("theorem1.nc"), found, extra, epigraph, config)
    run.measures(_tables(found, extra, missing, config))
    run.clear()


def draw(path: Path) -> None:
    """figure.png and figure.pdf from theorem1.nc and measures.json."""
    import xarray

    from landscape.plots import duality_gap, style

    with xarray.open_dataset(path / "theorem1.nc", engine="h5netcdf") as content:
        stored = content.load()
    measures = json.loads((path / "measures.json").read_text())
    digits = " and ".join(map(str, measures["protocol"]["digits"]))
    titles = {
        **KINDS,
        "mnist_l2": KINDS["mnist_l2"].replace("One ReLU unit on two MNIST digits", f"ReLU unit on MNIST {digits}"),
    }
    fig = duality_gap.overview(stored, titles, measures)
    style.save(fig, path / "figure")


def _measure(name: str, config: Config, run: "Run") -> dict[str, Any]:
    """Frontier, smallest τ, Δ and the gaps of one kind of branches."""
    from landscape.duality import examples, multi_branch
    from landscape.duality.certified import assumption
    from landscape.duality.certified.frontiers import envelope

    if name == "mnist_l2":
        root, download = run.options.data_root, not run.options.smoke
        data = ls.datasets.mnist(root, classes=config.digits, limit=config.limit, download=download)
        run.data(data)
        frontier, smallest = examples.two_classes(data, config.tau, config.budgets)
    else:
        frontier, smallest = examples.one_example(name, config.tau, config.budgets)
    assumption.check_tau(config.tau, smallest)
    K = config.share * float(frontier.budgets[-1])
    gaps = []
    with _bar(run, name, len(config.branches)) as bar:
        for branches in config.branches:
            gaps.append(multi_branch.duality_gap(frontier, branches, K))
            bar.update(1)
    r = np.linspace(frontier.budgets[0], frontier.budgets[-1], SHOWN)
    curves = {"values": frontier.values, "lower": frontier.lower, "upper": frontier.upper}
    curves["envelope"] = envelope(frontier.budgets, frontier.values)
    shares = [(s.num_branches, *share[1:]) for s in gaps for share in s.shares]
    return {
        **{key: np.array([getattr(g, key) for g in gaps]) for key in ("primal", "dual", "gap", "ratio", "paper_ratio")},
        **{f"frontier_{key}": np.interp(r, frontier.budgets, curve) for key, curve in curves.items()},
        "frontier_budget": r,
        "multiplier": [g.multiplier for g in gaps],
        "delta": gaps[0].delta_worst,
        "smallest_tau": smallest,
        "K": K,
        "shares": np.array(shares, float),
    }


@contextmanager
def _bar(run: "Run", name: str, total: int) -> Iterator[Any]:
    with run.bar(f"{name:<13}", total, "I") as bar:
        yield bar


def _up_to(numbers: tuple[int, ...], most: int) -> list[int]:
    """The numbers up to `most`: the integer program's time grows with I."""
    return [n for n in numbers if n <= most] or [1]


def _words(name: str, found: dict[str, np.ndarray], config: Config) -> str:
    """The table of one kind of branches: some I, the certified gap, and its ratio to the bounds."""
    (low, high), (tau_low, tau_high) = found["delta"], found["smallest_tau"]
    tau = f"{tau_high:.4g}" if tau_high - tau_low < 1e-3 else f"[{tau_low:.4g}, {tau_high:.4g}]"
    lines = [f"{KINDS[name]} · smallest admissible τ {tau} (used: {config.tau:g}) · Δ in [{low:.5f}, {high:.5f}]"]
    if name == "relu_decay":
        lines.append(f"gap 0: {TRIVIAL}")
    table = [["I", "duality gap, certified", "sharp Δ/I", "paper 2Δ/I", "I·gap/Δ"]]
    rows = [i for i, n in enumerate(config.branches) if n in (1, 3, 10, 30, 100, 300, 1000)] or [0]
    for i in rows:
        n, (a, b) = config.branches[i], found["gap"][i]
        ratio = f"≤ {found['ratio'][i][1]:.2g}" if a == 0 else f"{found['ratio'][i].mean():.4f}"
        table.append([f"{n:,}", _interval(a, b), f"{high / n:.2e}", f"{2 * high / n:.2e}", ratio])
    return "\n".join([*lines, *text_table(table)])


def _interval(low: float, high: float) -> str:
    return f"[{low:.6e}, {high:.6e}]"


def _hinge_words(found: dict[str, np.ndarray]) -> str:
    lines = ["true hinge, τ = 0.5: Assumption 1 fails; the convexification gap P_I − D_conv, not Theorem 1's"]
    rows = [[f"{n:,}", _interval(a, b)] for n, (a, b) in zip(found["branches"], found["gap"], strict=True)]
    return "\n".join([*lines, *text_table(rows)])


def _estimate_words(found: dict[str, np.ndarray]) -> str:
    lines = [f"22 parameters a branch, {found['live']:.0%} of random starts live: estimates, not certificates"]
    pairs = zip(found["branches"], found["gap"], strict=True)
    return "\n".join([*lines, *text_table([[f"{n:,}", f"≈ {gap:.4e}"] for n, gap in pairs if n in (1, 10, 100)])])


def _tables(
    found: dict[str, dict[str, np.ndarray]],
    extra: dict[str, dict[str, np.ndarray]],
    missing: dict[str, str],
    config: Config,
) -> dict[str, Any]:
    """The content of measures.json, in which every number states its kind."""
    certified = {
        name: {
            "title": KINDS[name],
            "kind": "certified intervals [lo, hi]",
            "note": TRIVIAL if name == "relu_decay" else "",
            "branches": list(config.branches),
            **{key: case[key].tolist() for key in ("K", "delta", "smallest_tau", "multiplier")},
            **{key: case[key].tolist() for key in ("primal", "dual", "gap", "ratio", "paper_ratio")},
            "shares": [
                dict(zip(("I", "budget", "branches", "on_envelope"), s, strict=True)) for s in case["shares"].tolist()
            ],
        }
        for name, case in found.items()
    }
    content: dict[str, Any] = {"protocol": dataclasses.asdict(config), "certified": certified, "missing": missing}
    if "hinge" in extra:
        kept = {key: extra["hinge"][key].tolist() for key in ("branches", "primal", "relaxed", "gap")}
        content["convexification_gap"] = {"kind": "true hinge, P_I − D_conv: not Theorem 1's gap", "tau": 0.5, **kept}
    if "estimate" in extra:
        case = extra["estimate"]
        bounds = {"primal": "upper bound", "hull": "upper bound", "dual": "estimate", "gap": "estimate"}
        kept = {key: {"kind": kind, "values": case[key].tolist()} for key, kind in bounds.items()}
        content["estimate"] = {"branches": case["branches"].tolist(), "live": float(case["live"]), **kept}
    return content


def _save(
    path: Path,
    found: dict[str, dict[str, np.ndarray]],
    extra: dict[str, dict[str, np.ndarray]],
    epigraph: dict[str, np.ndarray],
    config: Config,
) -> None:
    """theorem1.nc: the same numbers and the curves, with names."""
    import xarray

    from landscape.files import atomic

    variables: dict[str, Any] = {}
    for key in ("primal", "dual", "gap", "ratio", "paper_ratio"):
        variables[key] = (("case", "branches", "end"), np.stack([case[key] for case in found.values()]))
    for key in ("delta", "smallest_tau"):
        variables[key] = (("case", "end"), np.stack([case[key] for case in found.values()]))
    variables["K"] = ("case", np.array([float(case["K"]) for case in found.values()]))
    for key in ("budget", "values", "lower", "upper", "envelope"):
        variables[f"frontier_{key}"] = (("case", "point"), np.stack([c[f"frontier_{key}"] for c in found.values()]))
    variables["epigraph_edge"] = (("copies", "epigraph_budget"), epigraph["edge"], {"meaning": "P_I(r), case relu_l1"})
    variables["epigraph_hull"] = ("epigraph_budget", epigraph["hull"])
    coordinates = {"case": list(found), "branches": list(config.branches), "end": ["lo", "hi"]}
    coordinates |= {"copies": epigraph["copies"], "epigraph_budget": epigraph["budget"]}
    if "hinge" in extra:
        coordinates["hinge_branches"] = extra["hinge"]["branches"]
        kind = {"kind": "convexification gap P_I − D_conv of the true hinge"}
        variables["hinge_gap"] = (("hinge_branches", "end"), extra["hinge"]["gap"], kind)
    if "estimate" in extra:
        variables["estimate_gap"] = ("branches", extra["estimate"]["gap"], {"kind": "estimate"})
        variables["estimate_budget"] = ("estimate_point", extra["estimate"]["budget"])
        variables["estimate_upper"] = ("estimate_point", extra["estimate"]["upper"], {"kind": "upper bound"})
    attributes = {key: str(value) for key, value in dataclasses.asdict(config).items()}
    content = xarray.Dataset(variables, coordinates, {"units": "loss", **attributes})
    atomic.write_atomic(path, lambda pending: content.to_netcdf(pending, engine="h5netcdf"))
