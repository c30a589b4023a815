"""Runs laid side by side: pairs by I, triple and seed; differences equal NumPy's; files whole; one colour scale."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import seeds
from slices import relu_slice

from landscape import report
from landscape.plots import gallery
from landscape.report import compare
from landscape.surfaces import Surface, save_stack


@pytest.fixture
def rng() -> np.random.Generator:
    seed = seeds.draw()
    print("seed", seed)
    return np.random.default_rng(seed)


def stored(folder: Path, surfaces: list[Surface]) -> Path:
    folder.mkdir(parents=True)
    save_stack(folder / "surface.nc", surfaces)
    return folder


def test_differences_are_paired_over_triples(rng: np.random.Generator, tmp_path: Path) -> None:
    runs = {name: [relu_slice(rng, n, triple=t) for n in (2, 6) for t in range(3)] for name in ("first", "second")}
    paths = [stored(tmp_path / name, surfaces) for name, surfaces in runs.items()]
    lines = compare.compare(paths, tmp_path / "out")
    measures = {name: report.records(surfaces) for name, surfaces in runs.items()}
    written = json.loads((tmp_path / "out" / "measures.json").read_text())
    for difference in written["differences"]:
        key, branches = difference["measure"], difference["branches"]
        one, two = ([r[key] for r in measures[n] if r["branches"] == branches] for n in ("first", "second"))
        assert difference["mean"] == pytest.approx(np.mean(np.subtract(two, one)), rel=1e-5, abs=1e-7)
        assert difference["low"] <= difference["mean"] <= difference["high"]
        assert difference["pairs"] == 3
    assert {d["branches"] for d in written["differences"]} == {2, 6}
    assert any("env_max_loss" in line for line in lines)
    assert any(line.startswith("minus first") for line in lines)
    for name in ("figure.png", "figure.pdf", "report.html"):
        assert (tmp_path / "out" / name).stat().st_size > 10_000
    assert "first: I = 2, triple 1" in (tmp_path / "out" / "report.html").read_text("utf-8")


def records(*places: tuple[int, int], offset: float = 0.0, **more: Any) -> list[dict[str, Any]]:
    return [{"branches": i, "triple": t, "barrier": i + t + offset, **more} for i, t in places]


def test_only_the_same_places_are_pairs() -> None:
    first, second = records((2, 0), (2, 1), (5, 0)), records((2, 1), (5, 0), (9, 0), offset=0.5)
    found = compare.differences({"a": first, "b": second})
    assert [(d.branches, d.pairs, d.mean) for d in found] == [(2, 1, 0.5), (5, 1, 0.5)]
    assert not compare.differences({"a": records((2, 0), seed=0), "b": records((2, 0), (3, 0), seed=1)})
    assert "No pairs" in compare.table({"a": first, "b": records((7, 0), (8, 0))}, [])[-1]


def test_kinds_of_plane_pair_across_runs_but_not_within() -> None:
    plain, other = records((2, 0), plane="orthonormal"), records((2, 0), plane="oblique", offset=1.0)
    assert [d.mean for d in compare.differences({"a": plain, "b": other})] == [1.0]
    both = [*plain, *other]
    assert [(d.pairs, d.mean) for d in compare.differences({"a": both, "b": both})] == [(2, 0.0)]


def test_runs_of_one_size_stand_in_one_row(
    rng: np.random.Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    aligned = [relu_slice(rng), relu_slice(rng, aligned=True)]
    paths = [stored(tmp_path / n / "run", s) for n, s in {"x": [relu_slice(rng)], "y": aligned}.items()]
    drawn, row = [], gallery.row
    monkeypatch.setattr(gallery, "row", lambda s, titles: drawn.extend(titles) or row(s, titles=titles))
    compare.compare(paths, tmp_path / "out")
    assert drawn == ["x/run", "y/run\northonormal", "y/run\northonormal, aligned"]
    written = json.loads((tmp_path / "out" / "measures.json").read_text())
    assert list(written["runs"]) == ["x/run", "y/run"]
    assert all(d["low"] is None and d["pairs"] == 1 for d in written["differences"])


def test_wrong_use_is_refused(rng: np.random.Generator, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least two"):
        compare.compare([tmp_path], tmp_path / "out")
    with pytest.raises(ValueError, match=r"surface\.nc"):
        compare.compare([tmp_path, tmp_path], tmp_path / "out")
    assert not (tmp_path / "out").exists()
