"""What a person types and sees: help, versions, mistakes, exit codes."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest

import landscape
from landscape.__main__ import dispatch, exit_code, overview, table
from landscape.cli import commands, parsing

COMPUTING = [name for name in table() if name in commands.PAPER]
SHARED = ("--out", "--seed", "--smoke", "--paper", "--data-root", "--precision", "--memory", "--quiet", "--distributed")
HEAVY = "jax flax optax scipy xarray matplotlib plotly pandas h5py pooch requests"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test works in its own current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str) -> int:
    """Run the command line in this process."""
    return exit_code(lambda: dispatch(arguments))


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["figure9"], *([name, "--help"] for name in COMPUTING)]
)
def test_answers_without_loading_large_libraries(arguments: list[str]) -> None:
    script = (
        f"import sys; sys.argv = ['landscape', *{arguments}]\n"
        "from landscape.__main__ import main\n"
        "code = main()\n"
        f"heavy = set('{HEAVY}'.split()) & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else code)"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "loaded" not in found.stderr
    assert found.returncode == (2 if arguments == ["figure9"] else 0), found.stderr


def test_installed_command_and_module_are_the_same() -> None:
    command = Path(sys.executable).with_name("landscape")
    outputs = [
        subprocess.run([*start, "--version"], capture_output=True, text=True, check=True).stdout
        for start in ([str(command)], [sys.executable, "-m", "landscape"])
    ]
    assert outputs == [f"landscape {landscape.__version__}\n"] * 2


def test_overview_names_every_command_in_one_line_each() -> None:
    lines = overview().splitlines()
    for name in table():
        rows = [line for line in lines if line.startswith(f"  {name} ")]
        assert len(rows) == 1
        assert len(rows[0]) <= 130
        assert rows[0].split(maxsplit=1)[1].endswith(".")


def test_no_command_shows_the_overview(capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == run("--help") == 0
    assert capsys.readouterr().out == 2 * (overview() + "\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["figur1"], ["no command `figur1`", "--help"]),
        (["plto"], ["did you mean `landscape plot`?"]),
        (["-x"], ["no command `-x`"]),
        (["plot"], ["See `landscape plot --help`"]),
        (["plot", "nowhere"], ["nowhere", "config.json"]),
        (["plot", "a", "b"], ["b", "See `landscape plot --help`"]),
    ],
)
def test_wrong_use(arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("landscape: ")
    assert 1 <= len(err.splitlines()) <= 3
    assert all(word in err for word in words), err


@pytest.mark.parametrize("name", COMPUTING)
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--no-such-option", "1"], "--no-such-option"),
        (["--seed", "x"], "--seed"),
        (["--seed", "-1"], "--seed wants a number from 0"),
        (["--precision", "double"], "highest"),
        (["--memory", "much"], "--memory wants an amount such as 500MiB or 2GiB; got"),
        (["--smoke", "--paper"], "contradict"),
    ],
)
def test_wrong_options_end_before_any_work(
    name: str, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(name, *arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("landscape: ")
    assert len(err.splitlines()) <= 3
    assert words in err
    assert not os.listdir()


@pytest.mark.parametrize("name", COMPUTING)
def test_every_computing_command_follows_the_same_form(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    module = commands.recipe(name)
    assert dataclasses.is_dataclass(module.Config)
    module.Config(**module.SMOKE)
    module.Config(**module.PAPER)
    assert module.SMOKE
    assert callable(module.run)
    assert callable(module.draw)
    assert run(name, "--help") == 0
    text = capsys.readouterr().out
    own = {field.name.replace("_", "-"): field.default for field in dataclasses.fields(module.Config)}
    assert all(f"--no-{name} " in text if default is True else f"--{name} " in text for name, default in own.items())
    assert all(f"{option} " in text for option in SHARED)
    assert not {f"--{name}" for name in own} & set(SHARED)


def test_the_parsers_complaint_is_unframed() -> None:
    @dataclasses.dataclass(frozen=True)
    class Config:
        """One option."""

        points: int = 5
        """Points."""

        def __post_init__(self) -> None:
            if self.points < 2:
                raise ValueError(f"--points wants at least 2 for a surface that has an extent; got {self.points}. " * 3)

    with pytest.raises(
        ValueError, match=r"^--points wants at least 2 for a surface that has an extent; got 1\. --points"
    ):
        parsing.parse(Config, "toy", ["--points", "1"], "")
    with pytest.raises(ValueError, match=r"--points.*'five'\n  See `landscape toy --help`\."):
        parsing.parse(Config, "toy", ["--points", "five"], "")
    with pytest.raises(ValueError, match=r"--point\b.*--points.*\n  See"):
        parsing.parse(Config, "toy", ["--point", "5"], "")
    assert parsing.parse(Config, "toy", ["--points", "7"], "").points == 7


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ValueError("wrong"), 2),
        (FileNotFoundError(2, "No such file", "data"), 2),
        (PermissionError(13, "Permission denied", "data"), 2),
        (RuntimeError("bug"), 1),
        (OSError(28, "No space left on device"), 1),
        (KeyboardInterrupt(), 130),
        (SystemExit(0), 0),
        (ZeroDivisionError(), 1),
    ],
)
def test_exit_codes(error: BaseException, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise error

    assert exit_code(fail) == code
    message = capsys.readouterr().err
    assert len(message.splitlines()) <= 3
    assert "Traceback" not in message


def test_a_closed_pipe_is_no_disaster() -> None:
    script = "from landscape.__main__ import main; import sys; sys.argv = ['landscape', '--help']; sys.exit(main())"
    found = subprocess.run(f'{sys.executable} -c "{script}" | true', shell=True, capture_output=True, text=True)
    assert found.stderr == ""
