"""Surfaces in the formats of other tools: NumPy, spreadsheets, the HDF5 files of [Li18]'s code, ParaView."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree as xml

import numpy as np

from landscape.files import atomic
from landscape.surfaces import Surface, load_stack


def export(folder: Path, form: str) -> list[Path]:
    """Write the surfaces of a run directory in another format beside surface.nc: surface.FORM, or one file each.

    Args:
        folder: A run directory, or a file written by `Surface.save` or `surfaces.save_stack`.
        form: "npz", "csv", "h5" or "vts".

    Raises:
        ValueError: There is no surface, or no such format.
    """
    if form not in WRITERS:
        raise ValueError(f"no format `{form}`; there are {', '.join(WRITERS)}.")
    path = folder / "surface.nc" if folder.is_dir() else folder
    if not path.exists():
        raise ValueError(
            f"{path} does not exist.\n  Run a command that computes surfaces, such as `landscape figure1`."
        )
    surfaces = load_stack(path)
    width = len(str(len(surfaces)))
    names = [path.with_suffix(f".{form}")]
    if len(surfaces) > 1:
        names = [path.with_name(f"{path.stem}-{k:0{width}}.{form}") for k in range(1, len(surfaces) + 1)]
    for name, surface in zip(names, surfaces, strict=True):
        atomic.write_atomic(name, lambda pending, surface=surface: WRITERS[form](surface, pending))
    return names


def write_npz(surface: Surface, path: Path) -> None:
    """Arrays a, b, risk, anchors, anchor_risk and the layers by name; the metadata as JSON in `metadata`."""
    arrays = {"a": surface.grid.a, "b": surface.grid.b, "anchors": surface.anchors, "anchor_risk": surface.anchor_risk}
    arrays |= {"metadata": np.array(described(surface)), **quantities(surface)}
    with open(path, "wb") as file:
        np.savez(file, **arrays)


def write_csv(surface: Surface, path: Path) -> None:
    """One row a point: a, b, risk and the layers, after a line `# {metadata}`."""
    values = quantities(surface)
    with open(path, "w", newline="", encoding="utf-8") as file:
        file.write(f"# {described(surface)}\n")
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["a", "b", *values])
        for i, a in enumerate(surface.grid.a):
            for j, b in enumerate(surface.grid.b):
                rows.writerow([repr(float(value)) for value in (a, b, *(layer[i, j] for layer in values.values()))])


def write_h5(surface: Surface, path: Path) -> None:
    """The keys that the scripts of [Li18] read: xcoordinates, ycoordinates, train_loss; layers by their own names.

    Those scripts take the entry [j, i] as the value at (xcoordinates[i], ycoordinates[j]), hence the transposition.
    """
    import h5py

    with h5py.File(path, "w") as file:
        file["xcoordinates"], file["ycoordinates"] = surface.grid.a, surface.grid.b
        for name, values in quantities(surface).items():
            file["train_loss" if name == "risk" else name] = np.asarray(values).T
        file.attrs["metadata"] = described(surface)


def write_vts(surface: Surface, path: Path) -> None:
    """A structured grid of VTK as XML text: points (a, b, risk), the risk and the layers as values at the points."""
    a, b = np.meshgrid(surface.grid.a, surface.grid.b, indexing="ij")
    extent = f"0 {len(surface.grid.a) - 1} 0 {len(surface.grid.b) - 1} 0 0"
    root = xml.Element("VTKFile", type="StructuredGrid", version="1.0", byte_order="LittleEndian", header_type="UInt64")
    root.append(xml.Comment(described(surface).replace("--", "- -")))
    piece = xml.SubElement(xml.SubElement(root, "StructuredGrid", WholeExtent=extent), "Piece", Extent=extent)
    data = xml.SubElement(piece, "PointData", Scalars="risk")
    for name, values in quantities(surface).items():
        data.append(data_array(name, np.asarray(values).T.reshape(-1, 1)))
    points = np.stack([a.T, b.T, np.asarray(surface.risk, float).T], axis=-1).reshape(-1, 3)
    xml.SubElement(piece, "Points").append(data_array("Points", points))
    xml.ElementTree(root).write(path, encoding="utf-8", xml_declaration=True)


def data_array(name: str, values: np.ndarray) -> xml.Element:
    """Values [points, components] as VTK's DataArray; a runs fastest."""
    kind = {"Name": name, "type": "Float64", "format": "ascii", "NumberOfComponents": str(values.shape[1])}
    element = xml.Element("DataArray", kind)
    element.text = "\n".join(" ".join(repr(float(value)) for value in row) for row in values)
    return element


def quantities(surface: Surface) -> dict[str, np.ndarray]:
    """The risk and the layers, [A, B] each."""
    return {"risk": surface.risk, **surface.layers}


def described(surface: Surface) -> str:
    """The metadata as one line of JSON."""
    return json.dumps(dict(surface.metadata), ensure_ascii=False, default=str)


WRITERS: dict[str, Callable[[Surface, Path], None]] = {
    "npz": write_npz,
    "csv": write_csv,
    "h5": write_h5,
    "vts": write_vts,
}
