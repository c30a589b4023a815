"""figure1 and collect under kills, signals, full disks and damage: the same bits as an undisturbed run, or a refusal.

Compiled code is kept in a folder of the tests between the processes, so that a start takes seconds.
"""

import fcntl
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import seeds
import xarray

COMMAND = [sys.executable, str(Path(__file__).with_name("undrawn.py"))]
SMALL = ["figure1", "--branches", "3", "8", "--points", "5", "--steps", "8000", "--quiet"]


@pytest.fixture
def dice() -> random.Random:
    seed = seeds.draw()
    print(f"seed {seed}")
    return random.Random(seed)


class Whole(NamedTuple):
    """An undisturbed run: where it is, the seconds until it began to compute, and those that it took in all."""

    path: Path
    begun: float
    seconds: float


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """An undisturbed run, timed once all is compiled; made once for all test processes."""
    own = tmp_path_factory.getbasetemp()
    shared = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "faults"
    shared.mkdir(exist_ok=True)
    os.environ["LANDSCAPE_TEST_CACHE"] = str(shared / "compiled")
    with open(shared / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (shared / "seconds").exists():
            assert end(start(*SMALL, "--out", str(shared / "first"))) == (0, "")
            clock = time.monotonic()
            process = start(*SMALL, "--out", str(shared / "whole"))
            computing(shared / "whole", process)
            begun = time.monotonic() - clock
            assert end(process) == (0, "")
            seconds = time.monotonic() - clock
            assert results(shared / "first") == results(shared / "whole")
            (shared / "seconds").write_text(f"{begun} {seconds}")
    return Whole(shared / "whole", *map(float, (shared / "seconds").read_text().split()))


def environment() -> dict[str, str]:
    """This environment, with compiled code kept."""
    kept = {"JAX_COMPILATION_CACHE_DIR": os.environ["LANDSCAPE_TEST_CACHE"]}
    kept |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1"}
    return {**os.environ, **kept}


def start(*arguments: str) -> subprocess.Popen[str]:
    """Run the command line in a process of its own."""
    return subprocess.Popen([*COMMAND, *arguments], env=environment(), stderr=subprocess.PIPE, text=True)


def end(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and complaints."""
    _, errors = process.communicate(timeout=300)
    return process.returncode, errors


def computing(path: Path, process: subprocess.Popen[str]) -> None:
    """Wait until a run has begun to compute, or has ended."""
    while not (path / "log.jsonl").exists() and process.poll() is None:
        time.sleep(0.01)


def results(path: Path) -> dict[str, Any]:
    """Every number of a finished run, bit for bit."""
    with xarray.open_dataset(path / "surface.nc", engine="h5netcdf") as data:
        variables = {str(name): data[name].load().values for name in data.variables}
    found = {
        name: values.tolist() if values.dtype == object else values.tobytes() for name, values in variables.items()
    }
    found |= {file.name: file.read_bytes() for file in path.glob("*.npz")}
    return {**found, "measures": (path / "measures.json").read_bytes()}


@pytest.mark.slow
def test_killed_at_any_moment(whole: Whole, tmp_path: Path, dice: random.Random) -> None:
    path, begun, seconds = whole
    killed, arguments = tmp_path / "killed", [*SMALL, "--out", str(tmp_path / "killed")]
    strata = 14
    for k in dice.sample(range(strata), strata):
        process = start(*arguments)
        time.sleep(begun + (k + dice.random()) / strata * (seconds - begun))
        process.kill()
        end(process)
        if (killed / "config.json").exists() and "finished" in json.loads((killed / "config.json").read_text()):
            assert results(killed) == results(path)
            shutil.rmtree(killed)
    assert end(start(*arguments)) == (0, "")
    assert results(killed) == results(path)
    assert not [file.name for file in killed.iterdir() if "pending" in file.name or file.name.startswith("block")]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_asked_to_stop(number: signal.Signals, whole: Whole, tmp_path: Path, dice: random.Random) -> None:
    path, begun, seconds = whole
    stopped, arguments = tmp_path / "stopped", [*SMALL, "--out", str(tmp_path / "stopped")]
    codes = []
    for _ in range(10):
        process = start(*arguments)
        computing(stopped, process)
        time.sleep(dice.uniform(0, 0.6 * (seconds - begun)))
        process.send_signal(number)
        codes.append(end(process)[0])
        if 75 in codes or codes[-1] == 0:
            break
    assert set(codes) <= {75, 0}
    assert end(start(*arguments)) == (0, "")
    assert results(stopped) == results(path)


def test_damaged_solutions_are_not_used(whole: Whole, tmp_path: Path, dice: random.Random) -> None:
    damaged = shutil.copytree(whole[0], tmp_path / "damaged")
    for name in ("surface.nc", "measures.json"):
        (damaged / name).unlink()
    file = damaged / "solutions-I3.npz"
    content = bytearray(file.read_bytes())
    content[dice.randrange(300, 400)] ^= 255
    file.write_bytes(content)
    code, errors = end(start(*SMALL, "--out", str(damaged)))
    if code == 0:
        assert results(damaged) == results(whole[0])
    else:
        assert code == 2
        assert "solutions-I3.npz" in errors
        file.unlink()
        assert end(start(*SMALL, "--out", str(damaged))) == (0, "")
        assert results(damaged) == results(whole[0])


def test_full_disk(whole: Whole, tmp_path: Path) -> None:
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("this machine does not let a process mount a small disk of its own (unshare -rm)")
    disk = tmp_path / "disk"
    disk.mkdir()
    command = " ".join([*COMMAND, *SMALL, "--out", "run"])
    again = f"rm ballast; {command} || exit 9; cp -r run {tmp_path}/after"
    script = f"mount -t tmpfs -o size=16m none {disk} && cd {disk} && head -c 16740000 /dev/zero > ballast; {command}; "
    script += f"echo first $?; ls run/*.npz; {again}"
    found = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script], capture_output=True, text=True, env=environment(), timeout=300
    )
    assert found.returncode == 0, found
    assert "first 1" in found.stdout
    assert "No space left on device" in found.stderr
    assert "make room and give the same command again" in found.stderr
    assert results(tmp_path / "after") == results(whole[0])


def test_collection_killed_at_any_moment(whole: Whole, tmp_path: Path, dice: random.Random) -> None:
    for k in range(3):
        shutil.copytree(whole[0], tmp_path / "runs" / str(k))
    arguments = ["collect", str(tmp_path / "runs"), "--out"]
    begun = time.monotonic()
    assert end(start(*arguments, str(tmp_path / "one"))) == (0, "")
    seconds = time.monotonic() - begun
    for _ in range(6):
        process = start(*arguments, str(tmp_path / "two"))
        time.sleep(dice.uniform(0.5, 1.0) * seconds)
        process.kill()
        end(process)
        if (tmp_path / "two" / "collected.nc").exists():
            same(tmp_path / "one", tmp_path / "two")
            (tmp_path / "two" / "collected.nc").unlink()
    assert end(start(*arguments, str(tmp_path / "two"))) == (0, "")
    same(tmp_path / "one", tmp_path / "two")


def same(one: Path, two: Path) -> None:
    """Two collections hold the same numbers."""
    first, second = (xarray.load_dataset(path / "collected.nc", engine="h5netcdf") for path in (one, two))
    xarray.testing.assert_identical(first, second)
    assert first.sizes["run"] == 3
    assert np.isfinite(first["risk"].values).all()
