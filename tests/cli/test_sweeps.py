"""Grids of configurations: every combination once, the right one for each job of an array, joined at the end."""

import itertools
import json
import signal
import sys
from pathlib import Path

import pytest
import toy

from landscape.__main__ import dispatch, exit_code
from landscape.cli import commands, sweeps

FILE = """
command = "toy"
out = "runs/grid"
[fixed]
seconds = 0.0
smoke = true
quiet = true
[grid]
units = [2, 3]
sizes = [[1], [1, 2]]
seed = [0, 1, 2]
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test works in its own current folder, knows the toy as a command, and is no job of an array."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(commands, "PAPER", ("toy",))
    monkeypatch.setitem(sys.modules, "landscape.paper.toy", toy)
    monkeypatch.delenv("SLURM_ARRAY_TASK_ID", raising=False)
    Path("grid.toml").write_text(FILE)
    return tmp_path


def run(*arguments: str) -> int:
    """Run the command line in this process."""
    return exit_code(lambda: dispatch(arguments))


def configurations() -> list[tuple[int, list[int], int]]:
    """(units, sizes, seed) of every finished run, in order of the directories."""
    records = [json.loads(file.read_text()) for file in sorted(Path("runs/grid").glob("*/config.json"))]
    assert all(record["finished"] for record in records)
    return [(r["config"]["units"], r["config"]["sizes"], r["options"]["seed"]) for r in records]


def test_every_combination_is_run_once_and_the_last_varies_fastest() -> None:
    assert run("sweep", "grid.toml") == 0
    assert configurations() == list(itertools.product([2, 3], [[1], [1, 2]], [0, 1, 2]))
    assert sorted(path.name for path in Path("runs/grid").iterdir()) == [f"{k:03}" for k in range(12)]


def test_jobs_of_an_array_make_the_same_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    for k in range(6):
        assert run("sweep", "grid.toml", "--task-index", str(k)) == 0
        assert len(list(Path("runs/grid").iterdir())) == k + 1
    for k in range(6, 12):
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", str(k))
        assert run("sweep", "grid.toml") == 0
    assert configurations() == list(itertools.product([2, 3], [[1], [1, 2]], [0, 1, 2]))


def test_an_explicit_index_wins_over_the_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    assert run("sweep", "grid.toml", "--task-index", "5") == 0
    assert [path.name for path in Path("runs/grid").iterdir()] == ["005"]


def test_a_second_time_all_is_done_already(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("sweep", "grid.toml") == 0
    capsys.readouterr()
    assert run("sweep", "grid.toml") == 0
    assert capsys.readouterr().out.count("done already: runs/grid/") == 12


def test_a_signal_between_two_tasks_stops_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = toy.draw

    def draw_and_signal(path: Path) -> None:
        draw(path)
        signal.raise_signal(signal.SIGUSR1)

    monkeypatch.setattr(toy, "draw", draw_and_signal)
    assert run("sweep", "grid.toml") == 75
    assert sorted(path.name for path in Path("runs/grid").iterdir()) == ["000", "001"]
    assert not json.loads(Path("runs/grid/001/config.json").read_text()).get("finished")
    monkeypatch.setattr(toy, "draw", draw)
    assert run("sweep", "grid.toml") == 0
    assert len(configurations()) == 12


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("command = ", "is not a TOML file"),
        ('[grid]\nunits = [1]\ncommand = "toy"', "command is None; wanted one of toy"),
        ('command = "figure9"', "command is figure9"),
        ('command = "toy"\n[grid]\nunits = 3', "units wants a list"),
        ('command = "toy"\n[grid]\nunits = []', "units wants a list"),
        ('command = "toy"\nunits = [1]', "has `units`"),
        ('command = "toy"\n[grid]\nunit = [1]', "--unit"),
        ('command = "toy"\n[grid]\nunits = [3, 0]', "--units wants at least 1; got 0"),
        ('command = "toy"\n[fixed]\nseed = "x"', "--seed"),
    ],
)
def test_wrong_files_end_before_any_run(text: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("wrong.toml").write_text(text)
    assert run("sweep", "wrong.toml") == 2
    out, err = capsys.readouterr()
    assert words in err
    assert out == ""
    assert not Path("runs").exists()


@pytest.mark.parametrize("index", ["12", "-1", "x", ""])
def test_an_index_outside_the_grid(index: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", index)
    with pytest.raises(ValueError, match="tasks 0 to 11"):
        sweeps.chosen(12, None)
    if index == "12":
        with pytest.raises(ValueError, match="--task-index is 12"):
            sweeps.chosen(12, 12)


def test_a_missing_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("sweep", "nowhere.toml") == 2
    assert "nowhere.toml does not exist" in capsys.readouterr().err
