"""What README.md shows works: its code runs, its commands parse, its figures are those of the committed files."""

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from landscape.__main__ import dispatch, exit_code
from landscape.cli import commands, parsing, sweeps

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", TEXT, re.DOTALL)
COMMANDS = re.findall(r"`landscape (\w+[^`|…]*)`", TEXT)


@pytest.mark.parametrize("code", [code for kind, code in BLOCKS if kind == "python"])
def test_python_blocks_run(code, tmp_path, monkeypatch, capsys):
    if " torch" in code.partition("\n")[0]:
        pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'landscape-jax[torch]'")
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


def _documents(root):
    """README.md and benchmarks/ in another folder, to be changed there."""
    shutil.copytree(ROOT / "benchmarks", root / "benchmarks", ignore=shutil.ignore_patterns("*.png", "__pycache__"))
    shutil.copy(ROOT / "README.md", root)
    shutil.copytree(ROOT / "landscape/paper", root / "landscape/paper")
    return root


def _readme(root, *options):
    command = [sys.executable, root / "benchmarks/readme.py", *options]
    return subprocess.run(command, capture_output=True, text=True)


def test_every_number_comes_from_a_committed_file(tmp_path):
    """Written anew from the files, both documents stay as they are, and no other number stands in them."""
    done = _readme(ROOT, "--check")
    assert (done.returncode, done.stderr) == (0, "")
    root = _documents(tmp_path)
    assert _readme(root).returncode == 0
    for name in ("README.md", "benchmarks/README.md"):
        assert (root / name).read_text() == (ROOT / name).read_text()


_FIGURES = re.compile(r"(?<![\w⁻.,])\d[\d.,]*\d|(?<![\w⁻.,])\d")


def test_a_changed_number_is_found_wherever_it_stands(tmp_path):
    """Every number of every generated part, changed by hand, is reported, and written back."""
    root = _documents(tmp_path)
    for name in ("README.md", "benchmarks/README.md"):
        right = (root / name).read_text()
        parts = list(re.finditer(r"<!-- figures: .+? -->(.+?)<!-- end -->", right, re.DOTALL))
        assert len(parts) >= 5
        wrong = right
        for part in reversed(parts):
            changed = _FIGURES.sub(lambda number: number[0][:-1] + str((int(number[0][-1]) + 1) % 10), part[1])
            assert changed != part[1]
            wrong = wrong[: part.start(1)] + changed + wrong[part.end(1) :]
        (root / name).write_text(wrong)
        done = _readme(root, "--check")
        assert done.returncode == 1
        assert f"{name}: out of date" in done.stderr
        assert _readme(root).returncode == 0
        assert (root / name).read_text() == right


@pytest.mark.parametrize(
    "sentence", ["It is 12 times faster.", "It takes ½ s.", "About nine tenths of it.", "It was 3⁴."]
)
def test_a_number_without_a_file_is_refused(sentence, tmp_path):
    root = _documents(tmp_path)
    for name in ("README.md", "benchmarks/README.md"):
        right = (root / name).read_text()
        (root / name).write_text(f"{right}\n{sentence}\n")
        done = _readme(root, "--check")
        assert done.returncode == 1
        assert f"{name}: no source: …" in done.stderr
        (root / name).write_text(right)


def test_no_number_is_written_into_the_parts_by_hand():
    """The functions that mark a number as coming from a file never get a constant."""
    marking = {"whole", "digits", "decimals", "percent", "power", "duration", "word", "traced", "uncertain"}
    found = 0
    for path in ROOT.glob("benchmarks/*_parts.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in marking:
                found += 1
                assert any(isinstance(inner, ast.Name) for inner in ast.walk(node.args[0])), ast.unparse(node)
    assert found > 100


@pytest.mark.parametrize(("title", "folder"), [("Figure 1, synthetic", "figure1"), ("Figure 4, MNIST, h", "mnist")])
def test_tables_of_measures_counted_another_way(title, folder):
    """Every mean and standard error is numpy's, to half a unit of its last digit."""
    records = json.loads((ROOT / f"benchmarks/results/{folder}/measures.json").read_text())["records"]
    (table,) = re.findall(rf"^\| {title}.*\n(?:\|.*\n)+", TEXT, re.MULTILINE)
    head, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines())
    sizes = [int(cell.removeprefix("I = ").replace(",", "")) for cell in head[1:]]
    assert sizes == sorted({record["branches"] for record in records})
    keys = [("env_max_loss", "orthonormal"), ("barrier", "orthonormal"), ("barrier", "aligned")]
    for (key, view), (_, *cells) in zip(keys, rows, strict=True):
        for size, cell in zip(sizes, cells, strict=True):
            found = [r[key] for r in records if (r["branches"], r["view"]) == (size, view)]
            truth = np.mean(found), np.std(found, ddof=1) / np.sqrt(len(found))
            for text, value in zip(cell.split(" ± "), truth, strict=True):
                assert abs(float(text) - value) <= 0.5000001 * 10.0 ** -len(text.partition(".")[2])


def test_the_files_decide(tmp_path):
    """Other measures give other figures; measures that contradict a sentence's words are refused, naming it."""
    root = _documents(tmp_path)
    path = root / "benchmarks/results/cifar10-888/measures.json"
    measures = json.loads(path.read_text())
    for record in measures["records"]:
        record["barrier"] *= 1.5
    path.write_text(json.dumps(measures))
    assert _readme(root).returncode == 0
    assert "17 at I = 1 to 9.2 at I = 10" in " ".join((root / "README.md").read_text().split())
    for record in measures["records"]:
        record["minima"] = 2.0
    path.write_text(json.dumps(measures))
    done = _readme(root, "--check")
    assert done.returncode == 1
    assert "three minima in every plane" in done.stderr
