"""The notebooks are stripped, open in Colab, install without touching its jax, and run in their smallest size."""

import json
import os
import re
import tomllib
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).parent.parent / "notebooks"
PROJECT = tomllib.loads((FOLDER.parent / "pyproject.toml").read_text())
REPOSITORY = PROJECT["tool"]["landscape"]["repository"]
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))

nbclient = pytest.importorskip("nbclient", reason="the extra `notebook` is not installed")
nbformat = pytest.importorskip("nbformat", reason="the extra `notebook` is not installed")


def cells(path, kind):
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == kind]


def source(cell):
    return "".join(cell["source"])


def test_there_are_four():
    assert [path.stem[:2] for path in NOTEBOOKS] == ["01", "02", "03", "04"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_stripped_and_ready_for_colab(path):
    for cell in cells(path, "code"):
        assert cell["outputs"] == []
        assert cell["execution_count"] is None
    badge, install, versions = source(cells(path, "markdown")[0]), *map(source, cells(path, "code")[:2])
    assert f"(https://colab.research.google.com/github/{REPOSITORY}/blob/main/notebooks/{path.name})" in badge
    assert f'"{PROJECT["project"]["name"]} @ git+https://github.com/{REPOSITORY}' in install
    assert "%pip install -q" in install
    assert not re.search(r"pip install.*(-U|--upgrade|[\" ]jax\b)", install.replace(REPOSITORY, ""))
    for word in ("jax.devices()", "jax.__version__", "ls.__version__"):
        assert word in versions


@pytest.mark.filterwarnings("default")  # what the notebook client itself warns of is not ours
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_in_its_smallest_size(path, tmp_path, monkeypatch):
    monkeypatch.setenv("LANDSCAPE_SMOKE", "1")
    monkeypatch.setenv("PYTHONWARNINGS", "ignore")
    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    ).execute()
    done = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in done)
    assert any("image/png" in output.get("data", {}) for cell in done for output in cell.outputs), os.listdir(tmp_path)
