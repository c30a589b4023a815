"""What README.md shows works: its code runs, its commands parse, .ci/run calls its test command."""

import re
import shlex
from pathlib import Path

import pytest

from landscape import commands, parsing
from landscape.__main__ import dispatch, exit_code

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", TEXT, re.DOTALL)
COMMANDS = re.findall(r"`landscape (\w+[^`|…]*)`", TEXT)


@pytest.mark.parametrize("code", [code for kind, code in BLOCKS if kind == "python"])
def test_python_blocks_run(code, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
    assert "Report(" in capsys.readouterr().out
    assert (tmp_path / "surface.nc").exists()


def test_ci_calls_exactly_the_test_command():
    (command,) = [code.strip() for kind, code in BLOCKS if kind == "bash" and "pytest" in code]
    assert command in (ROOT / ".ci/run").read_text()


def test_the_main_command_draws_figure_1(tmp_path, monkeypatch):
    (command,) = [code for kind, code in BLOCKS if kind == "bash" and "landscape figure1" in code]
    arguments = shlex.split(command.split(".venv/bin/landscape")[1])
    monkeypatch.chdir(tmp_path)
    assert exit_code(lambda: dispatch([*arguments, "--smoke", "--branches", "5", "--quiet"])) == 0
    assert {"figure.png", "report.html", "surface.nc"} <= {f.name for f in (tmp_path / "runs/figure1").iterdir()}


@pytest.mark.parametrize("line", [line for line in COMMANDS if line.split()[0] in commands.PAPER])
def test_commands_of_the_table_parse(line):
    name, *arguments = shlex.split(line)
    config, _ = parsing.configuration(name, commands.recipe(name), arguments)
    assert config


def test_pictures_and_files_named_are_there():
    for path in re.findall(r"\]\((?!http)([^)#]+)\)", TEXT):
        assert (ROOT / path).exists(), path
