"""One barrier a pair of solutions: every file and picture of a run shows the exact one, none the interpolated one."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import own_module
import pytest
import seeds

import landscape as ls
from landscape import checkpoints, convexity, plots, report, surfaces
from landscape.__main__ import dispatch, exit_code
from landscape.plots import summary

PAIRS = ((1, 2), (1, 3), (2, 3))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def labels(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The labels of all curves in the pictures, instead of the pictures."""
    found: list[str] = []

    def read(figure: Any, path: Path) -> None:
        legends = [ax.get_legend() for ax in figure.axes if ax.get_legend()]
        found.extend(text.get_text() for legend in legends for text in legend.get_texts())

    monkeypatch.setattr(plots, "save", read)
    return found


def column(page: str, heading: str) -> list[str]:
    """The cells below a heading, in the table that has it."""
    tables = [re.findall(r"<tr>(.*?)</tr>", table) for table in re.findall(r"<table>(.*?)</table>", page)]
    parsed = [[re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in rows] for rows in tables]
    (found,) = [rows for rows in parsed if rows and heading in rows[0]]
    return [row[found[0].index(heading)] for row in found[1:]]


def exact(risk: Any, start: Any, end: Any) -> float:
    """A loop over 51 points of the segment."""
    at = [jax.tree.map(lambda p, q, t=t: (1 - t) * p + t * q, start, end) for t in np.linspace(0, 1, 51)]
    values = np.array([float(risk(w)) for w in at])
    return max(0.0, float((values - np.linspace(values[0], values[-1], 51)).max()))


def test_explore(labels) -> None:
    """Another grid, every edge and view, training and test data."""
    network, (x, y) = own_module.many(), own_module.data()
    risk = jax.jit(ls.Problem(ls.Dataset(x, y), network, own_module.loss).risk)
    heights, seed = [0.0], 0
    while max(heights) < 0.05:  # small barriers would be zero however they are computed
        keys = jax.random.split(jax.random.key(seed := seed + 1), 3)
        solutions = [jax.tree.map(lambda t: 10 * t, network.init(key)) for key in keys]
        heights = [exact(risk, solutions[i - 1], solutions[j - 1]) for i, j in PAIRS]
    files = [f"w{k}.npz" for k in range(3)]
    for file, w in zip(files, solutions, strict=True):
        checkpoints.save(file, w)
    words = ["--network", "own_module:many", "--data", "own_module:data", "--loss", "own_module:loss"]
    words += ["--test-data", "own_module:data", "--align", "--solutions", *files, "--points", "5", "--quiet"]
    assert exit_code(lambda: dispatch(["explore", *words, "--out", "out"])) == 0
    measures, stack = json.loads(Path("out/measures.json").read_text()), surfaces.load_stack("out/surface.nc")
    barriers, page = measures["barriers"], Path("out/report.html").read_text("utf-8")
    for (i, j), height in zip(PAIRS, heights, strict=True):
        for name in (f"{i} – {j}", f"test {i} – {j}"):
            assert barriers[name] == pytest.approx(height, rel=1e-3, abs=1e-5)
    with np.load("out/explore.npz") as lines:
        for name, height in barriers.items():
            assert convexity.barrier(lines[f"edge {name}"]) == height
    for surface, prefix, record in zip(stack, ("", "aligned "), measures["records"], strict=True):
        known = surface.metadata["barriers"]
        for data, word in (("train", ""), ("test", "test ")):
            assert known[data] == [barriers[f"{prefix}{word}{i} – {j}"] for i, j in PAIRS]
        assert record["barrier"] == max(known["train"])
        drawn = convexity.report(surface)
        assert drawn.barriers.tolist() == drawn.triangle.barriers.tolist() == known["train"]
        assert convexity.report(surface, layer="test risk").barriers.tolist() == known["test"]
    bare = convexity.report(replace(stack[0], metadata={}))
    assert bare.barriers.tolist() != stack[0].metadata["barriers"]["train"]  # else this test could not fail
    assert column(page, "barrier (loss units)") == [f"{height:.4g}" for height in barriers.values()]
    wanted = {r["aligned"]: f"{r['barrier']:.3g}" for r in measures["records"]}
    assert sorted(column(page, summary.name("barrier"))) == sorted(wanted.values())
    found = dict(text.split(": barrier ") for text in labels if "barrier" in text)
    assert found == {name: f"{h:.3g}" for name, h in barriers.items() if "test" not in name}


def test_figure1(labels, capsys) -> None:
    words = ["--branches", "3", "6", "--points", "5", "--steps", "40", "--triples", "2", "--out", "out"]
    assert exit_code(lambda: dispatch(["figure1", *words])) == 0
    printed = capsys.readouterr().out
    measures, stack = json.loads(Path("out/measures.json").read_text()), surfaces.load_stack("out/surface.nc")
    records, again = measures["records"], report.records(stack)
    assert [r["barrier"] for r in records] == [max(s.metadata["barriers"]["train"]) for s in stack]
    assert [r["barrier"] for r in again] == [r["barrier"] for r in records]  # what `landscape compare` reads
    pairs: dict[Any, set[tuple[float, ...]]] = {}
    for surface in stack:  # two planes through the same solutions have the same edges
        known = surface.metadata
        pairs.setdefault((known["branches"], known["triple"], known["aligned"]), set()).add(
            tuple(known["barriers"]["train"])
        )
    assert {len(found) for found in pairs.values()} == {1}
    assert any(
        convexity.report(replace(s, metadata={})).barriers.max() != r["barrier"]
        for s, r in zip(stack, records, strict=True)
    )
    groups = [group for plane in report.by_plane(records).values() for group in report.by_branches(plane).values()]
    wanted = [summary.several(*summary.interval([r["barrier"] for r in g]), len(g)) for g in groups]
    assert column(Path("out/report.html").read_text("utf-8"), summary.name("barrier")) == wanted
    for branches in (3, 6):
        mean = np.mean([r["barrier"] for r in records if (r["branches"], r["view"]) == (branches, "orthonormal")])
        assert f" {mean:.2g} ± " in next(line for line in printed.splitlines() if line.split()[:1] == [str(branches)])


def test_one_profile_for_problems_and_functions() -> None:
    """Of a function it is the same, whether alone or among others, and of a dict that of its risk."""
    rng = seeds.generator()
    network, (x, y) = own_module.many(), own_module.data()
    ends = [network.init(jax.random.key(int(k))) for k in rng.integers(0, 10**6, 2)]
    made = ls.Problem(ls.Dataset(x, y), network, own_module.loss)

    def risk(w: Any) -> dict[str, jax.Array]:
        return {"a size": jnp.float32(1), "risk": own_module.loss(network.apply(w, x), jnp.asarray(y)).mean()}

    one = ls.evaluation.profile(made, *ends, points=9)
    np.testing.assert_allclose(ls.evaluation.profile(risk, *ends, points=9), one, rtol=1e-4)
    np.testing.assert_allclose(
        ls.evaluation.profiles(risk, [ends, ends[::-1]], points=9)["risk"][1], one[::-1], rtol=1e-4
    )
    assert convexity.barriers(risk, ends, points=9)["risk"] == pytest.approx([convexity.barrier(one)], abs=1e-5)
    assert np.isnan(convexity.barrier(np.array([0.0, np.inf, 1.0])))
    spoilt = jax.tree.map(lambda t: t * np.nan, ends[1])
    with pytest.raises(ValueError, match="finite"):
        ls.evaluation.profile(risk, ends[0], spoilt)
