"""A run directory survives kills, signals, full disks and damage, and refuses what does not belong to it."""

import contextlib
import fcntl
import json
import os
import pty
import random
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import seeds
import toy

from landscape import runs
from landscape.__main__ import exit_code
from landscape.cli import commands
from landscape.datasets import Dataset
from landscape.files import atomic
from landscape.runs.options import Options, parse_bytes
from landscape.surfaces import load_stack

TOY = [sys.executable, str(Path(toy.__file__))]


@pytest.fixture
def dice() -> random.Random:
    seed = seeds.draw()
    print(f"seed {seed}")
    return random.Random(seed)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test works in its own current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def here(*arguments: str, module: Any = toy) -> int:
    """Run the toy in this process."""
    return exit_code(lambda: commands.compute("toy", module, list(arguments)))


def start(*arguments: str) -> subprocess.Popen[str]:
    """Run the toy in a process of its own."""
    return subprocess.Popen([*TOY, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def pair(*arguments: str, command: list[str] = TOY) -> list[subprocess.Popen[str]]:
    """Run a command, the toy by default, as two processes of one job, as srun would start them."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    job = {"SLURM_JOB_ID": "1", "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2"}
    job |= {"SLURM_JOB_NUM_NODES": "1", "SLURM_STEP_ID": "0", "SLURM_LOCALID": "0"}
    job |= {"JAX_COORDINATOR_ADDRESS": f"localhost:{port}"}
    return [
        subprocess.Popen(
            [*command, *arguments, "--distributed"],
            env={**os.environ, **job, "SLURM_PROCID": str(k)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for k in range(2)
    ]


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    """Wait until a file of the run appears."""
    deadline = time.monotonic() + 60
    while not path.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    assert path.exists(), process.communicate()


def finish(process: subprocess.Popen[str]) -> tuple[str, str]:
    """What a process wrote; one that hangs is ended."""
    try:
        return process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.communicate()


def results(path: Path) -> dict[str, Any]:
    """The numbers of a run, bit for bit, whatever the dates of its files."""
    arrays = {file.name: dict(np.load(file)) for file in sorted(path.glob("*.npz"))}
    numbers = {name: {key: value.tobytes() for key, value in content.items()} for name, content in arrays.items()}
    return {**numbers, "measures": (path / "measures.json").read_bytes(), "figure": (path / "figure.png").read_bytes()}


def test_a_run_explains_itself_and_can_be_repeated(capsys: pytest.CaptureFixture[str]) -> None:
    assert here("--units", "4", "--seconds", "0", "--sizes", "1", "2", "3", "--seed", "7") == 0
    record = json.loads(Path("runs/toy/config.json").read_text())
    assert record["config"] == {"units": 4, "seconds": 0.0, "values": 1000, "sizes": [1, 2, 3], "fail": ""}
    assert record["options"]["seed"] == 7
    assert {"landscape", "jax", "jaxlib", "flax", "numpy", "device_kind", "devices"} <= record["environment"].keys()
    assert record["environment"]["devices"] == 4
    events = [json.loads(line) for line in Path("runs/toy/log.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events][:1] == ["start"]
    assert events[-1]["event"] == "done"
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "toy:     4 units"
    assert lines[1] == "plan:    4 CPU devices · 0.01 GiB · runs/toy"
    assert lines[-1] == "done:    runs/toy  figure.png  measures.json"
    again = record["command"].split()
    assert again[:2] == ["landscape", "toy"]
    assert here(*again[2:], "--out", "again") == 0
    assert results(Path("again")) == results(Path("runs/toy"))


def test_a_finished_run_is_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert here("--smoke") == 0
    before = {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in Path("runs/toy").iterdir()}
    capsys.readouterr()
    assert here("--smoke", "--quiet") == 0
    assert capsys.readouterr().out == "done already: runs/toy (delete it or choose --out to run again)\n"
    assert before == {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in Path("runs/toy").iterdir()}


def test_a_finished_run_that_lost_a_file_is_completed() -> None:
    assert here("--smoke") == 0
    before = results(Path("runs/toy"))
    for name in ("figure.png", "unit-1.npz", "measures.json"):
        Path("runs/toy", name).unlink()
        assert here("--smoke") == 0
        assert results(Path("runs/toy")) == before


def test_what_is_computed_is_not_computed_again_when_drawing_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path) -> None:
        raise OSError(28, "No space left on device")

    calls = []

    def count(config: toy.Config, run: runs.Run, real: Any = toy.run) -> None:
        calls.append(config)
        real(config, run)

    monkeypatch.setattr(toy, "run", count)
    with monkeypatch.context() as broken:
        broken.setattr(toy, "draw", fail)
        assert here("--smoke") == 1
    assert here("--smoke") == 0
    assert len(calls) == 1
    assert Path("runs/toy/figure.png").exists()


@pytest.mark.parametrize("finished", [True, False])
def test_a_changed_configuration_is_refused(finished: bool, capsys: pytest.CaptureFixture[str]) -> None:
    assert here("--seconds", "0", *([] if finished else ["--fail", "RuntimeError"])) == (0 if finished else 1)
    before = results(Path("runs/toy")) if finished else None
    capsys.readouterr()
    assert here("--seconds", "0", "--units", "9", "--sizes", "1", "2", "--seed", "5") == 2
    message = capsys.readouterr().err
    assert "--units was 10, now 9; --sizes was 10 30, now 1 2" in message
    assert "--seed was 0, now 5" in message
    assert len(message.splitlines()) <= 3
    assert before is None or results(Path("runs/toy")) == before


def test_options_that_change_no_number_may_change() -> None:
    assert here("--seconds", "0", "--quiet") == 0
    assert here("--seconds", "0", "--data-root", "elsewhere") == 0


def test_presets_change_defaults_and_explicit_options_win() -> None:
    for arguments, units in [(["--smoke"], 3), (["--smoke", "--units", "2"], 2), (["--units", "10", "--smoke"], 10)]:
        config, _ = commands.configuration("toy", toy, arguments)
        assert config.units == units
    assert commands.configuration("toy", toy, ["--paper"])[0].units == 50


def test_quiet_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert here("--smoke", "--quiet") == 0
    assert capsys.readouterr() == ("", "")


def test_killed_at_any_moment_ends_with_the_same_bits(dice: random.Random) -> None:
    arguments = ["--units", "40", "--seconds", "0.02", "--values", "20000"]
    assert here(*arguments, "--out", "whole", "--quiet") == 0
    for _ in range(6):
        process = start(*arguments, "--out", "killed")
        wait_for(Path("killed/config.json"), process)
        time.sleep(dice.uniform(0, 0.4))
        process.kill()
        process.communicate()
    assert here(*arguments, "--out", "killed", "--quiet") == 0
    assert results(Path("killed")) == results(Path("whole"))
    assert not list(Path("killed").glob(".*pending*"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_asked_to_stop_it_finishes_the_unit_and_continues_later(number: signal.Signals) -> None:
    arguments = ["--units", "10", "--seconds", "0.1"]
    process = start(*arguments)
    wait_for(Path("runs/toy/unit-0.npz"), process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75
    assert errors == "landscape: stopped on request; the same command continues where it stopped.\n"
    done = {file: file.stat().st_mtime_ns for file in Path("runs/toy").glob("unit-*.npz")}
    assert 1 <= len(done) < 10
    process = start(*arguments)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert output.startswith("resuming: runs/toy, begun 20")
    assert all(file.stat().st_mtime_ns == moment for file, moment in done.items())
    assert here(*arguments, "--out", "whole") == 0
    assert results(Path("runs/toy")) == results(Path("whole"))


def test_interrupted_from_the_keyboard() -> None:
    process = start("--seconds", "0.1")
    wait_for(Path("runs/toy/unit-0.npz"), process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert len(errors.splitlines()) == 1
    assert here("--seconds", "0.1") == 0


def test_two_processes_on_one_directory(capsys: pytest.CaptureFixture[str]) -> None:
    process = start("--seconds", "0.1")
    wait_for(Path("runs/toy/unit-0.npz"), process)
    assert here("--seconds", "0.1") == 2
    message = capsys.readouterr().err
    assert f"runs/toy is in use by process {process.pid} " in message
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert here("--seconds", "0.1") == 0


def test_two_processes_of_one_job_share_a_directory_and_stop_together() -> None:
    arguments = ["--seconds", "0.1"]
    job = pair(*arguments)
    wait_for(Path("runs/toy/unit-0.npz"), job[0])
    job[1].send_signal(signal.SIGTERM)
    ends = [process.communicate(timeout=60) for process in job]
    assert [process.returncode for process in job] == [75, 75], ends
    assert len(list(Path("runs/toy").glob("unit-*.npz"))) < 10
    job = pair(*arguments)
    outputs = [process.communicate(timeout=60)[0] for process in job]
    assert [process.returncode for process in job] == [0, 0]
    assert "done:    runs/toy" in outputs[0]
    assert "toy" not in outputs[1]
    assert here(*arguments, "--out", "whole") == 0
    assert results(Path("runs/toy")) == results(Path("whole"))
    starts = [line for line in Path("runs/toy/log.jsonl").read_text().splitlines() if '"event": "start"' in line]
    assert len(starts) == 2


LANDSCAPE = [sys.executable, "-m", "landscape"]


@pytest.mark.slow
def test_two_processes_draw_the_surfaces_of_one_and_continue_them_after_a_stop() -> None:
    sizes = ["--smoke", "--branches", "5", "--points", "5", "--steps", "60", "--out"]
    job = pair("figure1", *sizes, "two", command=LANDSCAPE)
    wait_for(Path("two/solutions-I5.npz"), job[0])
    job[1].send_signal(signal.SIGTERM)
    ends = [finish(process) for process in job]
    assert [process.returncode for process in job] == [75, 75], ends
    job = pair("figure1", *sizes, "two", command=LANDSCAPE)
    ends = [finish(process) for process in job]
    assert [process.returncode for process in job] == [0, 0], ends
    assert "resuming:" in ends[0][0]
    assert "figure1" not in ends[1][0]
    assert not list(Path("two").glob("*block*"))
    assert json.loads(Path("two/config.json").read_text())["environment"]["processes"] == 2
    assert exit_code(lambda: commands.compute("figure1", commands.recipe("figure1"), [*sizes, "one"])) == 0
    one, two = (load_stack(Path(name) / "surface.nc") for name in ("one", "two"))
    assert len(one) == len(two) == 3
    for a, b in zip(one, two, strict=True):
        for name in ("risk", "anchors", "anchor_risk"):
            np.testing.assert_allclose(getattr(a, name), getattr(b, name), rtol=1e-3, atol=1e-4)
        assert b.metadata["checks"]["deterministic"]
        assert b.metadata["device"].split(" x ")[0] == str(2 * len(os.sched_getaffinity(0)))


def test_a_job_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("SLURM_", "JAX_COORDINATOR"))]:
        monkeypatch.delenv(name)
    process = start("--distributed")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "srun" in errors
    assert not os.listdir()


@pytest.mark.parametrize("name", commands.SINGLE_PROCESS)
def test_commands_of_one_process_refuse_several(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(lambda: commands.compute(name, commands.recipe(name), ["--smoke", "--distributed"])) == 2
    assert "job array" in capsys.readouterr().err
    assert not os.listdir()


def test_full_disk_keeps_what_is_finished_and_continues_after_room_is_made(folder: Path) -> None:
    disk = folder / "disk"
    disk.mkdir()
    inside = f"mount -t tmpfs -o size=1m none {disk} && cd {disk} && head -c 700000 /dev/zero > ballast && "
    first = " ".join([*TOY, "--seconds", "0", "--values", "5000", "--out", "run"])
    keep = f"cp -r run {folder}/full; rm ballast; {first}; echo second $?; cp -r run {folder}/after"
    script = inside + f"({first}; echo first $?; {keep})"
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("this machine does not let a process mount a small disk of its own (unshare -rm)")
    found = subprocess.run(["unshare", "-rm", "sh", "-c", script], capture_output=True, text=True)
    assert "first 1" in found.stdout, found.stderr
    assert "No space left on device" in found.stderr
    assert "make room and give the same command again" in found.stderr
    assert len(found.stderr.splitlines()) <= 3
    assert "second 0" in found.stdout
    assert not list((folder / "full").glob(".*pending*"))
    kept = sorted((folder / "full").glob("unit-*.npz"))
    assert 1 <= len(kept) < 10
    assert here("--seconds", "0", "--values", "5000", "--out", "whole") == 0
    assert results(folder / "after") == results(folder / "whole")
    for file in kept:
        key = atomic.fingerprint(0, 10, 5000)
        assert atomic.load_arrays(file, key) is not None


def test_damaged_unit_is_refused_not_used(capsys: pytest.CaptureFixture[str], dice: random.Random) -> None:
    assert here("--seconds", "0", "--fail", "RuntimeError") == 1
    capsys.readouterr()
    path = Path("runs/toy/unit-1.npz")
    content = bytearray(path.read_bytes())
    content[dice.randrange(400, 8000)] ^= 255
    path.write_bytes(content)
    assert here("--seconds", "0", "--fail", "RuntimeError") == 2
    assert "unit-1.npz" in capsys.readouterr().err
    path.unlink()
    assert here("--seconds", "0", "--fail", "RuntimeError") == 1


def test_a_folder_that_cannot_be_written(capsys: pytest.CaptureFixture[str]) -> None:
    Path("file").write_text("")
    assert here("--out", "file/run") == 2
    assert "file/run cannot be written" in capsys.readouterr().err


def test_a_folder_with_other_files_is_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    Path("thesis").mkdir()
    Path("thesis/chapter1.tex").write_text("…")
    assert here("--out", "thesis") == 2
    assert "chapter1.tex" in capsys.readouterr().err
    assert [entry.name for entry in Path("thesis").iterdir() if not entry.name.startswith(".")] == ["chapter1.tex"]


@pytest.mark.parametrize("content", ["", "{", '{"name": "toy"', "\udcff"])
def test_a_damaged_record_is_refused(content: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert here("--smoke") == 0
    Path("runs/toy/config.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    assert here("--smoke") == 2
    assert "config.json cannot be read" in capsys.readouterr().err


def test_changed_data_are_refused() -> None:
    rng = seeds.generator()
    x = rng.normal(size=(5, 3)).astype(np.float32)
    with runs.opened("toy", toy.Config(), Options(out=Path("run")), "") as run:
        mark = run.data(Dataset(x, x[:, 0]))
        assert run.data(Dataset(x.copy(), x[:, 0])) == mark
        x[rng.integers(5), rng.integers(3)] += 1e-3
        with pytest.raises(ValueError, match="other data"):
            run.data(Dataset(x, x[:, 0]))
        run.data(Dataset(x, x[:, 0]), "second")
    assert json.loads(Path("run/config.json").read_text())["data"]["data"] == mark


def test_warnings_are_notes_of_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    with (
        warnings.catch_warnings(record=True, action="default") as others,
        runs.opened("toy", toy.Config(), Options(out=Path("run")), "") as run,
    ):
        warnings.warn("The device ran out of memory.", stacklevel=1)
        warnings.warn("of another kind", DeprecationWarning, stacklevel=1)
        run.say("done")
    assert capsys.readouterr().out.splitlines() == ["note     The device ran out of memory.", "done"]
    assert [str(other.message) for other in others] == ["of another kind"]
    texts = [json.loads(line).get("text") for line in Path("run/log.jsonl").read_text().splitlines()]
    assert "The device ran out of memory." in texts


def test_a_changed_machine_is_noted_not_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert here("--seconds", "0", "--fail", "RuntimeError") == 1
    record = json.loads(Path("runs/toy/config.json").read_text())
    record["environment"]["jax"] = "0.0.1"
    Path("runs/toy/config.json").write_text(json.dumps(record))
    capsys.readouterr()
    assert here("--seconds", "0", "--fail", "RuntimeError") == 1
    assert "(begun with 0.0.1)" in capsys.readouterr().out


def test_errors_in_the_middle(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert here("--seconds", "0", "--fail", "ValueError", "--quiet") == 2
    assert capsys.readouterr().err == "landscape: asked to fail\n"
    assert here("--seconds", "0", "--fail", "RuntimeError", "--quiet", "--out", "b") == 1
    assert "Traceback" not in capsys.readouterr().err
    monkeypatch.setenv("LANDSCAPE_DEBUG", "1")
    assert here("--seconds", "0", "--fail", "RuntimeError", "--quiet", "--out", "c") == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "size"), [("2GiB", 2**31), ("1.5 MiB", 3 * 2**19), ("7", 7), ("3KB", 3000), ("1TiB", 2**40)]
)
def test_memory(text: str, size: int) -> None:
    assert parse_bytes(text) == Options(memory=text).memory_bytes == size
    assert Options().memory_bytes is None


@pytest.mark.parametrize("text", ["", "GiB", "2 GiBs", "-1GiB", "0", "nan", "inf", "1e400GiB", "2,5GiB", "two"])
def test_memory_that_is_none(text: str) -> None:
    with pytest.raises(ValueError, match=r"--memory wants .* got"):
        parse_bytes(text)


def test_a_bar_counts_and_ends_with_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with (
        runs.opened("toy", toy.Config(), Options(out=Path("run")), "") as run,
        run.bar("surface  I=1000", 2601, "points") as bar,
    ):
        bar.update(601)
        bar.note("risk 0.031")
        bar.update(2000)
    line = capsys.readouterr().out
    assert line.startswith("surface  I=1000")
    assert "100 %  0:00  risk 0.031" in line
    assert line.count("\n") == 1
    events = [json.loads(line) for line in Path("run/log.jsonl").read_text().splitlines()]
    assert events[-1]["done"] == events[-1]["total"] == 2601


def test_on_a_terminal_one_bar_moves_and_leaves_one_line() -> None:
    def read(handle: int) -> bytes:
        with contextlib.suppress(OSError):  # the other end was closed
            return os.read(handle, 2**16)
        return b""

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 110, 0, 0))
    process = subprocess.Popen([*TOY, "--seconds", "0.12"], stdout=theirs, stderr=theirs)
    os.close(theirs)
    text = b"".join(iter(lambda: read(ours), b"")).decode()
    os.close(ours)
    assert process.wait() == 0
    lines = [line.split("\r") for line in text.replace("\r\n", "\n").split("\n")]
    moving = next(states for states in lines if len(states) > 3)
    assert any(re.search(r"50 %  \d\d:\d\d  0:0\d left  sum -?\d", state) for state in moving), moving
    assert [states[-1] for states in lines if "100 %" in states[-1]] == [moving[-1]]
