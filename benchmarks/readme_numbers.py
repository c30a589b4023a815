"""Numbers from the files under benchmarks/results, rounded, as text that remembers that it comes from a file."""

import itertools
import json
import math
import re
from collections.abc import Iterable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import xarray

RESULTS = Path(__file__).parent / "results"
OPEN, CLOSE = "\ue000", "\ue001"
"""Around every number from a file, until `readme.py` has looked for others."""
WORDS = "no one two three four five six seven eight nine ten".split()


def load(name: str) -> Any:
    """A JSON file of benchmarks/results."""
    return json.loads((RESULTS / name).read_text())


def require(holds: object, sentence: str) -> None:
    """Fail where the files do not say what a sentence says in words.

    Raises:
        ValueError: The sentence.
    """
    if not holds:
        raise ValueError(f'The files no longer say "{sentence}": mend the sentence in benchmarks/*_parts.py.')


def traced(text: str) -> str:
    """Text marked as coming from a file."""
    return f"{OPEN}{text}{CLOSE}"


def among(value: float, values: Iterable[float]) -> str:
    """A number that a sentence names because a file has it, such as an I of a run."""
    require(value in set(values), f"there is {value:g}")
    return traced(f"{value:,.12g}")


def digits(value: float, count: int = 2) -> str:
    """So many significant digits: 4.6, 0.045, 11, 1,300."""
    if value == 0:
        return traced("0")
    rounded = float(f"{value:.{count - 1}e}")
    return decimals(rounded, max(0, count - 1 - math.floor(math.log10(abs(rounded)))))


def decimals(value: float, count: int) -> str:
    """So many digits after the point."""
    return traced(f"{value:,.{count}f}".replace("-", "−"))


def whole(value: float) -> str:
    """The nearest whole number: 1,000."""
    return decimals(value, 0)


def word(count: int) -> str:
    """A small whole number as a word."""
    return traced(WORDS[count])


def percent(*shares: float) -> str:
    """Shares in percent, without the sign; several as "least–largest"."""
    least, most = f"{100 * min(shares):.0f}", f"{100 * max(shares):.0f}"
    return traced(least if least == most else f"{least}–{most}")


def power(value: float) -> str:
    """10⁻⁴, 2.2·10⁻⁷."""
    factor, exponent = f"{value:.1e}".split("e")
    raised = "10" + str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return traced(raised if factor == "1.0" else f"{factor}·{raised}")


def duration(seconds: float) -> str:
    """41 s, 2 min 3 s."""
    minutes, rest = divmod(round(seconds), 60)
    return traced(" ".join(([f"{minutes} min"] if minutes else []) + ([f"{rest} s"] if rest or not minutes else [])))


def uncertain(values: Iterable[float]) -> str:
    """Mean ± standard error, the error to one digit, or to two where the first is a 1."""
    values = list(values)
    error = stdev(values) / math.sqrt(len(values))
    first = float(f"{error:.1e}")
    places = max(0, (2 if f"{first:e}"[0] == "1" else 1) - 1 - math.floor(math.log10(first)))
    return traced(f"{mean(values):.{places}f} ± {error:.{places}f}")


def row(*cells: str) -> str:
    """A row of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    head = list(head)
    return "\n".join([row(*head), "|" + "---|" * len(head), *(row(*cells) for cells in rows)])


class Run:
    """A run of figure1 or figure4: its configuration and its measures.

    Attributes:
        folder: Its name below benchmarks/results.
        config: What it was asked for.
        records: One for each I, triple and view.
        branches: The numbers I, ascending.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.config = load(f"{folder}/config.json")["config"]
        self.measures = load(f"{folder}/measures.json")
        self.records = self.measures["records"]
        self.branches = sorted({record["branches"] for record in self.records})

    @property
    def examples(self) -> str:
        """Number of training examples."""
        with xarray.open_dataset(RESULTS / self.folder / "surface.nc") as surfaces:
            return whole(int(surfaces.attrs["examples"]))

    def values(self, key: str, branches: int, view: str = "orthonormal") -> list[float]:
        """One measure of every triple."""
        found = [r[key] for r in self.records if (r["branches"], r["view"]) == (branches, view)]
        require(found, f"{self.folder} has {view} surfaces at I = {branches}")
        return found

    def means(self, key: str, view: str = "orthonormal") -> list[float]:
        """The mean over the triples, for each I."""
        return [mean(self.values(key, branches, view)) for branches in self.branches]

    def at(self, branches: int, key: str = "barrier", view: str = "orthonormal") -> str:
        """The mean over the triples and its I: "4.6 at I = 1"."""
        return f"{digits(mean(self.values(key, branches, view)))} at I = {whole(branches)}"

    def removed(self) -> list[float]:
        """The share of the barrier that aligning removes, for each I."""
        pairs = zip(self.means("barrier"), self.means("barrier", "aligned"), strict=True)
        return [1 - aligned / before for before, aligned in pairs]

    def trend(self, key: str) -> str:
        """Spearman's rank correlation with I and its p value, of the drawn planes."""
        found = self.measures["trends"][f"orthonormal {key}"]
        return spearman(found["spearman"], found["p_value"])


def spearman(correlation: float, p_value: float) -> str:
    """A rank correlation and its p value, which permutations bound by 10⁻⁴."""
    p = f"≤ {power(p_value)}" if p_value <= 1e-4 else f"= {digits(p_value)}"
    return f"{decimals(correlation, 2)}, p {p}"


def source(path: str, pattern: str) -> str:
    """A number that a source file of the package states.

    Raises:
        ValueError: No such sentence is there.
    """
    found = re.search(pattern, (RESULTS.parent.parent / "landscape" / path).read_text())
    require(found, f"{path}: {pattern}")
    return traced(found[1]) if found else ""


def falls(values: list[float]) -> bool:
    """Whether each is below the one before."""
    return all(later < earlier for earlier, later in itertools.pairwise(values))


def shape(size: dict) -> str:
    """A case by its data's shape, I and the hidden layers."""
    name = {10: "synthetic", 784: "MNIST's shape", 3072: "CIFAR-10's shape"}[size["inputs"]]
    hidden = traced("-".join(map(str, size["hidden"])))
    layers = "" if size["inputs"] == 10 else f", h = {hidden}" if len(size["hidden"]) == 1 else f", {hidden}"
    return f"{name}, I = {whole(size['branches'])}{layers}"
