"""Exported programs without torch: the archive as torch 2.13 and torch 2.6 lay it out, written by hand."""

import json
import zipfile
from pathlib import Path

import numpy as np
import stored

from landscape import checkpoints


def archive(path: Path, w: np.ndarray, version: str = "0") -> None:
    """Weights as `torch.export.save` stores them, w transposed in its storage."""
    sizes, strides = ([{"as_int": n} for n in numbers] for numbers in (w.shape, (1, w.shape[0])))
    meta = {"dtype": 7, "sizes": sizes, "strides": strides, "storage_offset": {"as_int": 2}, "layout": 7}
    config = {"w": {"path_name": "weight_0", "is_param": True, "use_pickle": False, "tensor_meta": meta}}
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("a/archive_format", "pt2")
        packed.writestr("a/archive_version", version)
        packed.writestr("a/data/weights/model_weights_config.json", json.dumps({"config": config}))
        packed.writestr("a/data/weights/weight_0", bytes(8) + w.T.tobytes())


def test_strides_and_offsets(tmp_path: Path) -> None:
    w = np.random.default_rng().normal(size=(3, 4)).astype("f4")
    archive(tmp_path / "a.pt2", w)
    stored.same(checkpoints.load(tmp_path / "a.pt2", {"w": w})[0], {"w": w})
    stored.same(checkpoints.load(tmp_path / "a.pt2")[0], {"w": w})


def test_newer_layouts_and_weights_outside_their_member(tmp_path: Path) -> None:
    w = np.ones((3, 4), "f4")
    for version in ("1", "99", "x", ""):
        archive(tmp_path / "a.pt2", w, version)
        stored.refused(tmp_path / "a.pt2", {"w": w}, "version")
    archive(tmp_path / "b.pt2", w)
    data = (tmp_path / "b.pt2").read_bytes()
    (tmp_path / "b.pt2").write_bytes(
        data.replace(b'"storage_offset": {"as_int": 2}', b'"storage_offset": {"as_int": 9}')
    )
    stored.refused(tmp_path / "b.pt2", {"w": w})
