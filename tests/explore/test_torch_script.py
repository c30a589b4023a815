"""Three trainings by a person's PyTorch script, then one command, then one report."""

import json
from pathlib import Path

import numpy as np
import pytest

import landscape as ls
from landscape.__main__ import WRONG, dispatch, exit_code

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'landscape-jax[torch]'")
torch_script = pytest.importorskip("torch_script")

WORDS = ("explore", "--network", "torch_script:make_torch", "--data", "torch_script:data", "--loss", "logistic")


def command(*arguments: str) -> int:
    """Run the command on a small grid."""
    return exit_code(lambda: dispatch([*WORDS, "--points", "5", *arguments]))


@pytest.fixture
def files(tmp_path: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Three trainings, in a folder to run in."""
    monkeypatch.chdir(tmp_path)
    torch_script.main(tmp_path)
    return ["a.pt", "b.pt", "c.pt"]


def test_from_a_script_to_a_report(files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert command("--solutions", *files, "--state", "none") == WRONG
    assert "--state frozen" in capsys.readouterr().err
    assert command("--solutions", *files, "--out", "out") == 0
    said = capsys.readouterr().out
    assert "BatchNorm frozen as a.pt holds it · dropout off" in said
    assert Path("out/report.html").stat().st_size > 1e6
    surface = ls.Surface.load("out/surface.nc")
    first = torch.load("a.pt", weights_only=True)
    digits = torch_script.data()
    x, y = torch.tensor(np.asarray(digits.x)), torch.tensor(np.asarray(digits.y)).long()
    for k, file in enumerate(files):
        state = torch.load(file, weights_only=True)
        module = torch_script.make_torch().eval()
        module.load_state_dict({name: first[name] if "running" in name else v for name, v in state.items()})
        with torch.no_grad():
            outputs = module(x)
        assert surface.anchor_risk[k] == pytest.approx(float(torch.nn.functional.cross_entropy(outputs, y)), rel=1e-5)
    accuracy = surface.layers["accuracy"]
    assert accuracy.max() > 0.5  # it has learned something
    assert set(json.loads(Path("out/measures.json").read_text())["barriers"]) == {"1 – 2", "1 – 3", "2 – 3"}
