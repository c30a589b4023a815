"""What binds a run folder: only what was computed in it. Refusals leave nothing, whatever the command."""

import json
from pathlib import Path

import numpy as np
import pytest

from landscape import runs
from landscape.__main__ import WRONG, dispatch, exit_code
from landscape.cli import commands
from landscape.runs.options import Options

REFUSED = {
    "figure1": (["--batch-size", "5000"], "--batch-size wants"),
    "figure4": (["--data-root", "nowhere"], ""),
    "table1": (["--batch-size", "100000"], ""),
    "theorem1": (["--tau", "0.001", "--no-estimates", "--no-hinge"], ""),
    "explore": (["--loss", "hings"], "--loss wants"),
}
"""Mistakes that only the command's own work can see."""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to run in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_command_leaves_nothing_and_binds_nothing(
    name: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments, words = REFUSED[name]
    assert exit_code(lambda: dispatch([name, *arguments])) == WRONG
    captured = capsys.readouterr().err
    assert words in captured
    assert len(captured.splitlines()) <= 3
    assert not list(folder.iterdir())
    Path("runs", name).mkdir(parents=True)  # a folder of the user's own stays
    assert exit_code(lambda: dispatch([name, *arguments])) == WRONG
    assert [p.relative_to(folder).as_posix() for p in sorted(folder.rglob("*"))] == ["runs", f"runs/{name}"]


@pytest.mark.parametrize("name", REFUSED)
def test_a_run_that_kept_nothing_is_taken_over_and_one_that_kept_something_is_not(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    module, options = commands.recipe(name), Options()

    def begin(config: object, kept: bool) -> dict:
        with runs.opened(name, config, options, "typed") as run:
            if kept:
                run.stage("first", 0, lambda: {"x": np.ones(3)})
        return json.loads(run.file("config.json").read_text())

    one, other = module.Config(), module.Config(**module.SMOKE)
    with pytest.raises(KeyboardInterrupt), runs.opened(name, one, options, "typed"):
        raise KeyboardInterrupt
    assert not runs.finished(name, other, options)
    record = begin(other, kept=True)
    assert record["config"] == runs.record.record_of(name, other, options)["config"]
    for refuse in (lambda: runs.finished(name, one, options), lambda: begin(one, kept=False)):
        with pytest.raises(ValueError, match="belongs to another configuration"):
            refuse()
    assert json.loads(Path("runs", name, "config.json").read_text()) == record
    assert begin(other, kept=False) == record


def test_a_stranger_s_configuration_is_left_alone() -> None:
    Path("model").mkdir()
    Path("model/config.json").write_text('{"architectures": ["Net"]}')
    assert exit_code(lambda: dispatch(["explore", "--out", "model"])) == WRONG
    assert Path("model/config.json").read_text() == '{"architectures": ["Net"]}'
    assert [p.name for p in Path("model").iterdir()] == ["config.json"]


def test_a_refusal_after_a_stage_keeps_it() -> None:
    def refused_late() -> None:
        with runs.opened("toy", {}, Options(), "typed") as run:
            run.stage("first", 0, lambda: {"x": np.ones(3)})
            raise ValueError("too late")

    with pytest.raises(ValueError, match="too late"):
        refused_late()
    assert list(Path("runs/toy").glob("stage-first-*.npz"))
    assert Path("runs/toy/config.json").exists()
