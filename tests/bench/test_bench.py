"""`landscape bench`: what it writes, what it counts, how two results are compared."""

import copy
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from landscape import bench
from landscape.__main__ import dispatch, exit_code
from landscape.bench import cases, compare

SOME = ["synthetic-100", "mnist-100", "table1-16"]


def run(*arguments: str) -> int:
    """Run the command line in this process."""
    return exit_code(lambda: dispatch(["bench", *arguments]))


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a run in the smallest sizes."""
    path = tmp_path_factory.mktemp("bench") / "small"
    assert run("--smoke", "--suite", "cpu", "--cases", *SOME, "--out", str(path), "--quiet") == 0
    return path / "bench.json"


def changed(result: Path, path: Path, change: Any) -> Path:
    """A copy of a result, changed."""
    content = json.loads(result.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return path


def test_everything_is_measured_apart(result: Path) -> None:
    found = json.loads(result.read_text())
    assert list(found["cases"]) == SOME
    assert set(found["ceilings"]) == {"multiply-add", "product", "stream"}
    assert found["environment"]["devices"] == jax.device_count()
    assert found["environment"]["jax"] == jax.__version__
    assert (found["precision"], found["rounds"], found["warm_ups"]) == ("highest", 2, 3)
    assert len(found["load_before"]) == 3
    assert found["peak_bytes"]["host"] > 2**20
    for case in found["cases"].values():
        seconds, devices = case["seconds"], case["devices"] / found["environment"]["devices"]
        assert min(seconds[stage] for stage in ("trace", "lower", "compile", "first")) > 0
        steady = seconds["steady"]
        assert np.allclose(
            np.quantile(steady["rounds"], [0.25, 0.5, 0.75]),
            [steady["quartiles"][0], steady["median"], steady["quartiles"][1]],
        )
        speed = case["operations"] / steady["median"]
        share = case["share_of_ceiling"]["multiply-add"]
        assert math.isclose(share, speed / (found["ceilings"]["multiply-add"]["best"] * devices))
        assert case["memory"]["temporary"] >= 0
        assert case["bytes"]["least"] > 0
    assert math.isclose(
        found["cases"]["mnist-100"]["rate"]["best"],
        25 / min(found["cases"]["mnist-100"]["seconds"]["steady"]["rounds"]),
    )


@pytest.mark.parametrize("suite", ["cpu", "gpu"])
def test_operations_are_those_of_the_formulas(suite: str) -> None:
    case = cases.shrunk(cases.SUITES[suite]["mnist-100"])
    found = cases.ready(case, precision="highest", memory=None, seed=0)
    (h,), n, grid = case.hidden, case.examples * case.branches, case.points**2
    once = 3 * 2 * case.inputs * h * n
    point = (2 * h + h + 2 * h * case.outputs) * n * grid  # a u onto the row, the ReLU, the last product
    assert found.operations == once + point
    assert found.nbytes["points"] == 2 * 4 * h * n * grid
    values = found.call[1]()
    assert values.shape == (1, case.points, case.points)
    program = np.asarray(found.program[1](), np.float64).sum(0)[:1, :, : case.points] / case.examples
    assert np.allclose(program, values, rtol=1e-4)


def test_a_training_is_counted_in_steps(tmp_path: Path) -> None:
    case = cases.shrunk(cases.SUITES["gpu"]["train-mnist-100"])
    found = cases.ready(case, precision="highest", memory=None, seed=0)
    d, (h,), c = case.inputs, case.hidden, case.outputs
    assert found.unit == "steps"
    assert found.program[0] == case.steps
    assert found.operations == case.steps * case.batch * case.branches * (4 * d * h + 6 * h * c)


def test_the_same_conditions_and_other_ones(result: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("compare", str(result), str(result.parent)) == 0
    text = capsys.readouterr().out
    assert "same device, versions and precision" in text
    assert "*" not in text.replace("* beyond", "")
    assert " 1\n" in text

    def change(content: dict[str, Any]) -> None:
        content["environment"]["jax"], content["precision"], content["device"] = "9.9", "default", "other"
        for rate in (content["cases"]["mnist-100"]["rate"], content["cases"]["mnist-100"]["call_rate"]):
            rate.update({key: np.multiply(value, 8.0).tolist() for key, value in rate.items()})
        content["cases"]["synthetic-100"]["sizes"]["examples"] += 1
        del content["cases"]["table1-16"]

    other = changed(result, tmp_path / "other.json", change)
    assert run("compare", str(result), str(other)) == 0
    text = capsys.readouterr().out
    for words in (f"jax {jax.__version__} / 9.9", "precision highest / default", "/ other"):
        assert words in text
    assert "left out: synthetic-100 (other sizes), table1-16 (in A only)" in text
    marked = [line for line in text.splitlines() if line.endswith(" *")]
    assert len(marked) == 2
    assert all(line.split()[-2] == "8" for line in marked)


def test_within_the_spread_nothing_is_marked() -> None:
    def rate(low: float, high: float) -> dict[str, Any]:
        return {"quartiles": [low, high]}

    assert compare.beyond(rate(1, 2), rate(1.9, 3)) == compare.beyond(rate(1.9, 3), rate(1, 2)) == ""
    assert compare.beyond(rate(1, 2), rate(2.1, 3)) == compare.beyond(rate(2.1, 3), rate(1, 2)) == "*"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "does not exist"),
        ("{", "is no JSON"),
        ("{}", "was not written by"),
        ("[1]", "was not written by"),
        (b"\xff", "is no JSON"),
    ],
)
def test_other_files_are_refused(
    content: Any, words: str, result: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "a.json"
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    for pair in ((file, result), (result, file)):
        assert run("compare", *map(str, pair)) == 2
        out, err = capsys.readouterr()
        assert words in err
        assert out == ""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--cases", "mnist-7"], "mnist-7 is none of the suite"),
        (["--rounds", "1"], "--rounds wants at least 2"),
        (["--suite", "tpu"], "--suite"),
        (["--distributed"], "one process"),
        (["compare", "a"], "See `landscape bench compare --help`"),
        (["--out", "/proc/nowhere", "--smoke"], "/proc/nowhere cannot be written"),
    ],
)
def test_wrong_use(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(*arguments) == 2
    assert words in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_help_starts_without_jax() -> None:
    for words in ([], ["compare"]):
        script = (
            f"import sys; sys.argv = ['landscape', 'bench', *{words}, '--help']\n"
            "from landscape.__main__ import main\n"
            "code = main(); sys.exit(f'jax' if 'jax' in sys.modules else code)"
        )
        found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
        assert found.returncode == 0, found.stderr


def test_where_the_file_goes() -> None:
    assert bench.file_of(None) == Path("runs/bench/bench.json")
    assert bench.file_of(Path("a")) == Path("a/bench.json")
    assert bench.file_of(Path("a/b.json")) == Path("a/b.json")


def test_the_committed_result_can_be_read() -> None:
    results = sorted((Path(__file__).parents[2] / "benchmarks/results").glob("bench-*.json"))
    assert results
    for path in results:
        found = compare.read(path)
        assert not found["smoke"]
        assert list(found["cases"]) == list(cases.SUITES[found["suite"]])
        assert compare.table(copy.deepcopy(found))
