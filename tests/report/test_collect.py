"""Finished runs joined into one netCDF: every run once, every surface under its own run, unfinished runs left out."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import seeds
import xarray

from landscape.__main__ import dispatch, exit_code
from landscape.report import collect
from landscape.surfaces import Grid, Surface, load_stack, save_stack


@pytest.fixture
def rng() -> np.random.Generator:
    seed = seeds.draw()
    print(f"seed {seed}")
    return np.random.default_rng(seed)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test works in its own current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make(
    name: str, rng: np.random.Generator, *, finished: bool = True, surfaces: int = 2, **asked: Any
) -> list[Surface]:
    """A run directory with random surfaces and measures."""
    path = Path("runs") / name
    path.mkdir(parents=True)
    grid = Grid(np.linspace(-1, 1, 3), np.linspace(0, 1, 5))
    made = [
        Surface(grid, rng.normal(size=(3, 5)), rng.normal(size=(3, 2)), rng.normal(size=3), {}, {"branches": k + 1})
        for k in range(surfaces)
    ]
    if made:
        save_stack(path / "surface.nc", made)
    options = {"seed": asked.pop("seed", 0), "precision": "highest"}
    record = {"command": f"landscape toy --out {path}", "name": "toy", "config": asked, "options": options}
    (path / "config.json").write_text(json.dumps(record | ({"finished": ["config.json"]} if finished else {})))
    return made


def measure(name: str, content: dict[str, Any]) -> None:
    """Write the measures of a run."""
    (Path("runs") / name / "measures.json").write_text(json.dumps(content))


def test_every_number_is_under_its_run(rng: np.random.Generator) -> None:
    first = make("a", rng, hidden=[8, 8], dataset="mnist", limit=None, seed=3, branches=[1, 2])
    second = make("b/deep/er", rng, hidden=[8], dataset="cifar10", limit=5, surfaces=1)
    make("b/without", rng, surfaces=0, dataset="none", hidden=[])
    make("c", rng, finished=False)
    measure("a", {"gap": {"lo": 0.25, "hi": 0.5}, "rows": [1, 2], "word": "x", "flag": True})
    measure("b/without", {"gap": {"lo": -1}})
    path, count, left_out = collect.collect([Path("runs"), Path("runs/a")], Path("out"))
    assert (path, count, left_out) == (Path("out/collected.nc"), 3, [Path("runs/c")])
    with xarray.open_dataset(path, engine="h5netcdf") as data:
        assert dict(data.sizes)["run"] == 3
        assert list(data["path"].values) == ["runs/a", "runs/b/deep/er", "runs/b/without"]
        assert list(data["config.hidden"].values) == ["8 8", "8", ""]
        assert list(data["branches"].values) == [1, 2, 1]
        assert list(data["config.branches"].values) == ["1 2", "", ""]
        assert list(data["options.seed"].values) == [3, 0, 0]
        assert np.array_equal(data["config.limit"].values, [np.nan, 5, np.nan], equal_nan=True)
        assert np.array_equal(data["measures.gap.lo"].values, [0.25, np.nan, -1], equal_nan=True)
        assert np.array_equal(data["measures.gap.hi"].values, [0.5, np.nan, np.nan], equal_nan=True)
        assert json.loads(str(data["measures"].values[0]))["rows"] == [1, 2]
        assert list(data["run_of_surface"].values) == [0, 0, 1]
    for found, made in zip(load_stack(path), [*first, *second], strict=True):
        assert np.array_equal(found.risk, made.risk)
        assert np.array_equal(found.anchors, made.anchors)


def test_a_second_time_gives_the_same_numbers(rng: np.random.Generator) -> None:
    make("a", rng)
    path, _, _ = collect.collect([Path("runs")], Path("out"))
    first = xarray.load_dataset(path, engine="h5netcdf")
    make("b", rng, finished=False)
    collect.collect([Path("runs")], Path("out"))
    xarray.testing.assert_identical(first, xarray.load_dataset(path, engine="h5netcdf"))


def test_runs_without_surfaces_make_a_table(rng: np.random.Generator) -> None:
    make("a", rng, surfaces=0)
    measure("a", {"hits": 7})
    path, _, _ = collect.collect([Path("runs")], Path("out"))
    assert float(xarray.load_dataset(path, engine="h5netcdf")["measures.hits"][0]) == 7


def test_damaged_surfaces_are_refused_and_an_earlier_file_stays(rng: np.random.Generator) -> None:
    make("a", rng)
    path, _, _ = collect.collect([Path("runs")], Path("out"))
    before = path.read_bytes()
    content = Path("runs/a/surface.nc").read_bytes()
    Path("runs/a/surface.nc").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"surface\.nc"):
        collect.collect([Path("runs")], Path("out"))
    assert path.read_bytes() == before


def test_wrong_use(rng: np.random.Generator, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(lambda: dispatch(["collect"])) == 2
    assert "name at least one folder" in capsys.readouterr().err
    assert exit_code(lambda: dispatch(["collect", "nowhere"])) == 2
    assert "nowhere is no directory" in capsys.readouterr().err
    make("a", rng, finished=False)
    assert exit_code(lambda: dispatch(["collect", "runs"])) == 2
    assert "no finished run in runs (1 unfinished)" in capsys.readouterr().err
    make("b", rng)
    assert exit_code(lambda: dispatch(["collect", "runs", "--out", "joined"])) == 0
    assert capsys.readouterr().out == "done:    joined/collected.nc  1 runs  (unfinished, left out: runs/a)\n"
