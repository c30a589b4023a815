"""What README.md shows works: its code runs, its commands parse, .ci/run calls its test command."""

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from landscape.__main__ import dispatch, exit_code
from landscape.cli import commands, parsing, sweeps

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


JOBS = [code for kind, code in BLOCKS if kind == "bash" and "#SBATCH" in code]


@pytest.mark.parametrize("job", JOBS, ids=lambda job: re.findall(r"job-name=(\w+)", job)[0])
@pytest.mark.parametrize("code", [0, 1, 75])
def test_jobs_are_queued_again_when_stopped_and_only_then(code, job, tmp_path):
    (sweep,) = [code for kind, code in BLOCKS if kind == "toml"]
    (tmp_path / "grid.toml").write_text(sweep)
    for name, then in (("srun", f"exit {code}"), ("scontrol", "exit 0")):
        (tmp_path / name).write_text(
            f'#!/bin/bash\nprintf "%s\\n" "$(basename "$0")" "$@" > {tmp_path}/{name}.words\n{then}\n'
        )
        (tmp_path / name).chmod(0o755)
    (tmp_path / "job").write_text(job)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": "/home/user", "SLURM_JOB_ID": "42"}
    done = subprocess.run(["bash", "-eu", "job"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "")
    again = tmp_path / "scontrol.words"
    assert (again.read_text().split() if again.exists() else None) == (
        ["scontrol", "requeue", "42"] if code == 75 else None
    )
    _, program, name, *arguments = (tmp_path / "srun.words").read_text().splitlines()
    assert program == "landscape"
    if name == "sweep":
        (last,) = re.findall(r"--array=0-(\d+)", job)
        name, tasks = sweeps.tasks(tmp_path / arguments[0], commands.PAPER)
        assert len(tasks) == int(last) + 1
    else:
        tasks = [arguments]
    for task in tasks:
        assert parsing.configuration(name, commands.recipe(name), task)
    assert "#SBATCH --signal=USR1@" in job
    assert ("--distributed" in arguments) == ("--nodes" in job)


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
