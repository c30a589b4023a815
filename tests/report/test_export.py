"""Surfaces written for other tools come back with every number, each at its own point, on A ≠ B grids."""

import csv
import json
from pathlib import Path
from xml.etree import ElementTree

import h5py
import numpy as np
import pytest
import seeds

from landscape.__main__ import dispatch, exit_code
from landscape.report import export
from landscape.surfaces import Grid, Surface, save_stack


@pytest.fixture
def rng() -> np.random.Generator:
    seed = seeds.draw()
    print(f"seed {seed}")
    return np.random.default_rng(seed)


def random_surface(rng: np.random.Generator, branches: int = 10) -> Surface:
    """A surface of 4 x 7 points with a layer, three anchors and metadata."""
    a, b = np.sort(rng.normal(size=4)), np.sort(rng.normal(size=7))
    layers = {"error rate": rng.uniform(size=(4, 7)).astype(np.float32)}
    metadata = {"branches": branches, "triple": 0, "plane": "orthonormal", "loss": "τ-hinge -- Eq. (1) <&>"}
    risk = rng.lognormal(size=(4, 7)).astype(np.float32)
    return Surface(Grid(a, b), risk, rng.normal(size=(3, 2)), rng.uniform(size=3), layers, metadata)


def exported(surface: Surface, folder: Path, form: str) -> Path:
    """The file made from one surface."""
    surface.save(folder / "surface.nc")
    (path,) = export.export(folder, form)
    assert path == folder / f"surface.{form}"
    return path


def test_npz(tmp_path: Path, rng: np.random.Generator) -> None:
    surface = random_surface(rng)
    with np.load(exported(surface, tmp_path, "npz"), allow_pickle=False) as found:
        assert np.array_equal(found["a"], surface.grid.a)
        assert np.array_equal(found["b"], surface.grid.b)
        assert np.array_equal(found["risk"], surface.risk)
        assert np.array_equal(found["error rate"], surface.layers["error rate"])
        assert np.array_equal(found["anchors"], surface.anchors)
        assert np.array_equal(found["anchor_risk"], np.asarray(surface.anchor_risk))
        assert json.loads(str(found["metadata"])) == dict(surface.metadata)


def test_csv(tmp_path: Path, rng: np.random.Generator) -> None:
    surface = random_surface(rng)
    first, *lines = exported(surface, tmp_path, "csv").read_text(encoding="utf-8").splitlines()
    assert json.loads(first.removeprefix("# ")) == dict(surface.metadata)
    rows = list(csv.DictReader(lines))
    assert len(rows) == 28
    values = {(float(row["a"]), float(row["b"])): row for row in rows}
    for i, a in enumerate(surface.grid.a):
        for j, b in enumerate(surface.grid.b):
            assert np.float32(values[a, b]["risk"]) == surface.risk[i, j]
            assert np.float32(values[a, b]["error rate"]) == surface.layers["error rate"][i, j]


def test_h5_is_read_as_the_other_scripts_read_it(tmp_path: Path, rng: np.random.Generator) -> None:
    surface = random_surface(rng)
    with h5py.File(exported(surface, tmp_path, "h5")) as file:
        x, y = np.asarray(file["xcoordinates"]), np.asarray(file["ycoordinates"])
        losses = np.asarray(file["train_loss"])
        assert {"error rate", "train_loss"} <= set(file)
    columns, rows = np.meshgrid(x, y)  # as plot_2D.py does before plt.contour(X, Y, Z)
    assert losses.shape == columns.shape == (7, 4)
    for k in np.ndindex(losses.shape):
        i = int(np.flatnonzero(surface.grid.a == columns[k])[0])
        j = int(np.flatnonzero(surface.grid.b == rows[k])[0])
        assert losses[k] == surface.risk[i, j]


def test_vts(tmp_path: Path, rng: np.random.Generator) -> None:
    surface = random_surface(rng)
    root = ElementTree.parse(exported(surface, tmp_path, "vts")).getroot()
    piece = root.find("StructuredGrid/Piece")
    assert piece is not None
    assert root.get("type") == "StructuredGrid"
    assert piece.get("Extent") == "0 3 0 6 0 0"
    arrays = {
        str(element.get("Name")): np.array((element.text or "").split(), float).reshape(28, -1)
        for element in piece.iter("DataArray")
    }
    points = arrays["Points"]
    assert points.shape == (28, 3)
    for k, (a, b, height) in enumerate(points):
        i, j = k % 4, k // 4  # in VTK the first index runs fastest
        assert (a, b) == (surface.grid.a[i], surface.grid.b[j])
        assert np.float32(height) == np.float32(arrays["risk"][k, 0]) == surface.risk[i, j]
        assert np.float32(arrays["error rate"][k, 0]) == surface.layers["error rate"][i, j]


def test_several_surfaces_give_several_files_in_order(tmp_path: Path, rng: np.random.Generator) -> None:
    surfaces = [random_surface(rng, branches) for branches in range(1, 12)]
    save_stack(tmp_path / "surface.nc", surfaces)
    paths = export.export(tmp_path, "npz")
    assert [path.name for path in paths] == [f"surface-{k:02}.npz" for k in range(1, 12)]
    for path, surface in zip(paths, surfaces, strict=True):
        with np.load(path) as found:
            assert json.loads(str(found["metadata"]))["branches"] == surface.metadata["branches"]
            assert np.array_equal(found["risk"], surface.risk)


def test_wrong_use(tmp_path: Path, rng: np.random.Generator, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="no format `obj`; there are npz, csv, h5, vts"):
        export.export(tmp_path, "obj")
    with pytest.raises(ValueError, match=r"surface\.nc does not exist"):
        export.export(tmp_path, "npz")
    (tmp_path / "surface.nc").write_bytes(b"no netCDF")
    with pytest.raises(ValueError, match="not a file of surfaces"):
        export.export(tmp_path, "npz")
    random_surface(rng).save(tmp_path / "surface.nc")
    assert exit_code(lambda: dispatch(["export", str(tmp_path), "--to", "obj"])) == 2
    assert exit_code(lambda: dispatch(["export", str(tmp_path), "--to", "csv"])) == 0
    assert capsys.readouterr().out == f"written: {tmp_path}/surface.csv\n"
