"""Surfaces as records and as files: whole round trips, labels that xarray shows, wrong arrays refused."""

from typing import Any

import numpy as np
import pytest
import seeds
import xarray

import landscape as ls
from landscape import surfaces

METADATA = {
    "branches": 30,
    "triple": 1,
    "plane": "oblique",
    "loss": "hinge",
    "average": False,
    "checks": {"deterministic": True, "max_difference": 3e-7},
    "tile": [64, 7, 7, 1],
    "operations": 1.5e9,
    "text": "true to scale",
}


def made(rng: np.random.Generator, anchors: int = 3, shape: tuple[int, int] = (4, 3), **metadata: Any) -> ls.Surface:
    grid = ls.Grid(*(np.cumsum(rng.uniform(0.1, 1, n)) for n in shape))
    layers = {"error": rng.random(shape), "accuracy": rng.random(shape)}
    return ls.Surface(
        grid, rng.random(shape), rng.normal(size=(anchors, 2)), rng.random(anchors), layers, {**METADATA, **metadata}
    )


def equal(one: ls.Surface, other: ls.Surface) -> None:
    assert (one.risk == other.risk).all()
    assert (one.grid.a == other.grid.a).all()
    assert (one.grid.b == other.grid.b).all()
    assert (one.anchors == other.anchors).all()
    assert (one.anchor_risk == other.anchor_risk).all()
    assert set(one.layers) == set(other.layers)
    assert all((one.layers[name] == other.layers[name]).all() for name in one.layers)
    assert dict(one.metadata) == dict(other.metadata)


@pytest.mark.parametrize("anchors", [0, 1, 3])
def test_one_surface_on_disk(tmp_path, anchors: int) -> None:
    surface = made(seeds.generator(), anchors)
    surface.save(tmp_path / "surface.nc")
    equal(ls.Surface.load(tmp_path / "surface.nc"), surface)
    equal(ls.Surface.load(str(tmp_path / "surface.nc")), surface)
    assert [p.name for p in tmp_path.iterdir()] == ["surface.nc"]


def test_what_xarray_sees(tmp_path) -> None:
    surface = made(seeds.generator())
    surface.save(tmp_path / "surface.nc")
    with xarray.open_dataset(tmp_path / "surface.nc") as data:
        assert data["risk"].dims == ("a", "b")
        assert data.sizes == {"a": 4, "b": 3, "anchor": 3}
        i, j = 2, 1
        picked = data["risk"].sel(a=surface.grid.a[i], b=surface.grid.b[j])
        assert float(picked) == surface.risk[i, j]
        assert set(data.data_vars) == {"risk", "anchor_a", "anchor_b", "anchor_risk", "error", "accuracy"}
        assert data.attrs["branches"] == 30
        assert data.attrs["loss"] == "hinge"
        assert data["risk"].attrs["units"] == "loss"
        assert data["a"].attrs["units"] == "axis lengths"
    assert made(seeds.generator(), plane="orthonormal").to_xarray()["a"].attrs["units"] == "parameter distance"


def test_several_surfaces_on_disk(tmp_path) -> None:
    rng = seeds.generator()
    stack = [made(rng, anchors, branches=i) for i, anchors in ((10, 3), (100, 1), (1000, 0))]
    surfaces.save_stack(tmp_path / "surface.nc", stack)
    for found, surface in zip(surfaces.load_stack(tmp_path / "surface.nc"), stack, strict=True):
        equal(found, surface)
    with xarray.open_dataset(tmp_path / "surface.nc") as data:
        assert data["risk"].dims == ("surface", "point_a", "point_b")
        assert data["branches"].values.tolist() == [10, 100, 1000]
        assert set(data["plane"].values.tolist()) == {"oblique"}
        assert data["a"].dims == ("surface", "point_a")
    with pytest.raises(ValueError, match=r"holds 3 surfaces.*load_stack"):
        ls.Surface.load(tmp_path / "surface.nc")
    stack[0].save(tmp_path / "one.nc")
    equal(surfaces.load_stack(tmp_path / "one.nc")[0], stack[0])


def test_surfaces_of_different_sizes_do_not_share_a_file(tmp_path) -> None:
    rng = seeds.generator()
    for stack in ([], [made(rng), made(rng, shape=(3, 4))]):
        with pytest.raises(ValueError, match="same number of points"):
            surfaces.save_stack(tmp_path / "surface.nc", stack)
    assert not list(tmp_path.iterdir())


def test_files_that_hold_no_surface(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist"):
        surfaces.load_stack(tmp_path / "none.nc")
    (tmp_path / "text.nc").write_text("not a surface")
    xarray.Dataset({"other": ("a", np.ones(3))}).to_netcdf(tmp_path / "other.nc", engine="h5netcdf")
    made(seeds.generator()).save(tmp_path / "cut.nc")
    (tmp_path / "cut.nc").write_bytes((tmp_path / "cut.nc").read_bytes()[:200])
    for name in ("text.nc", "other.nc", "cut.nc"):
        with pytest.raises(ValueError, match="is not a file of surfaces"):
            surfaces.load_stack(tmp_path / name)


def test_grid_and_risk_alone_are_enough() -> None:
    surface = ls.Surface(grid=ls.Grid([0, 1, 2], [0, 1]), risk=[[0.0, 1], [2, 3], [4, 5]])
    assert surface.anchors.shape == (0, 2)
    assert surface.risk[2, 1] == 5
    assert repr(surface) == "Surface(3 x 2 points, risk 0 to 5)"
    marked = ls.Surface(surface.grid, surface.risk, anchors=[[0, 0]])
    assert np.isnan(marked.anchor_risk).all()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"risk": np.zeros((2, 3))}, r"risk must .* shape \(3, 2\); got \(2, 3\)"),
        ({"layers": {"error": np.zeros(6)}}, r"error must .* shape \(3, 2\)"),
        ({"anchors": np.zeros((2, 2)), "anchor_risk": [1.0]}, "2 anchors need as many"),
        ({"grid": ls.Grid([0, 1, 1], [0, 1])}, "strictly increasing"),
    ],
    ids=["risk", "layer", "anchors", "grid"],
)
def test_arrays_that_do_not_fit_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ls.Surface(**{"grid": ls.Grid([0, 1, 2], [0, 1]), "risk": np.zeros((3, 2))} | wrong)
