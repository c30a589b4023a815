"""PyTorch: state dicts of every kind, training states, exported programs; pickled objects and damage are refused."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stored

from landscape import checkpoints

torch = pytest.importorskip("torch", reason="torch is not installed")


@pytest.fixture
def module() -> Any:
    """A small network with running statistics."""
    norm = torch.nn.BatchNorm1d(5)
    return torch.nn.Sequential(torch.nn.Linear(4, 5), norm, torch.nn.Tanh(), torch.nn.Linear(5, 3)).eval()


def params_of(module: Any) -> dict[str, Any]:
    """Its parameters as nested dictionaries."""
    found: dict[str, Any] = {}
    for name, value in module.named_parameters():
        first, last = name.split(".")
        found.setdefault(first, {})[last] = value.detach().numpy()
    return found


def states(module: Any) -> dict[str, Any]:
    """What training scripts save."""
    optimiser = torch.optim.Adam(module.parameters())
    module(torch.ones(2, 4)).sum().backward()
    optimiser.step()
    state = module.state_dict()
    return {
        "plain": state,
        "parallel": {f"module.{k}": v for k, v in state.items()},
        "compiled": {f"_orig_mod.{k}": v for k, v in state.items()},
        "both": {f"module._orig_mod.{k}": v for k, v in state.items()},
        "tutorial": {
            "epoch": 3,
            "model_state_dict": state,
            "optimizer_state_dict": optimiser.state_dict(),
            "loss": 0.1,
        },
        "lightning": {
            "epoch": 1,
            "pytorch-lightning_version": "2.5",
            "state_dict": {f"model.{k}": v for k, v in state.items()},
            "optimizer_states": [optimiser.state_dict()],
            "hyper_parameters": {"width": 5},
        },
    }


@pytest.mark.parametrize("kind", ["plain", "parallel", "compiled", "both", "tutorial", "lightning"])
@pytest.mark.parametrize("suffix", ["pt", "pth", "ckpt", "bin"])
def test_state_dicts_and_training_states(module: Any, kind: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{suffix}"
    torch.save(states(module)[kind], path)
    found = checkpoints.read(path, params_of(module))
    stored.same(found.solutions[0], params_of(module))
    assert any("running_mean" in name for name in found.left_out)
    assert not found.unexpected
    held = {"1": {"running_mean": module[1].running_mean.numpy(), "running_var": module[1].running_var.numpy()}}
    stored.same(checkpoints.load_if_there(path, held), held)


def test_the_old_format_and_half_precision(module: Any, tmp_path: Path) -> None:
    torch.save(module.state_dict(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    stored.same(checkpoints.load(tmp_path / "old.pt", params_of(module))[0], params_of(module))
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        module = module.to(dtype)
        torch.save(module.state_dict(), tmp_path / "half.pt")
        wanted = params_of(module.float())
        found = checkpoints.read(tmp_path / "half.pt", wanted)
        stored.same(found.solutions[0], wanted)
        assert found.cast == (str(dtype).removeprefix("torch."),)


def test_weights_that_two_layers_share_and_views(tmp_path: Path) -> None:
    w = torch.randn(6, 4)
    torch.save({"embed.weight": w, "head.weight": w, "turned": w.T, "one": w[:, 1]}, tmp_path / "a.pt")
    like = {"embed": {"weight": np.ones((6, 4), "f4")}, "turned": np.ones((4, 6), "f4"), "one": np.ones(6, "f4")}
    found = checkpoints.read(tmp_path / "a.pt", like)
    assert found.left_out == ("head/weight",)
    assert not found.unexpected
    np.testing.assert_array_equal(found.solutions[0]["turned"], w.numpy().T)
    np.testing.assert_array_equal(found.solutions[0]["one"], w.numpy()[:, 1])


@pytest.mark.parametrize("old", [False, True])
def test_whole_modules_are_not_unpickled(module: Any, old: bool, tmp_path: Path) -> None:
    torch.save(module, tmp_path / "a.pt", _use_new_zipfile_serialization=not old)
    said = f"{tmp_path}/a.pt holds pickled objects; save model.state_dict() instead"
    stored.refused(tmp_path / "a.pt", params_of(module), said)
    torch.save({"state_dict": module.state_dict(), "path": Path("x")}, tmp_path / "b.pt")
    stored.refused(tmp_path / "b.pt", params_of(module), "holds pickled objects")


def test_other_files_of_torch(module: Any, tmp_path: Path) -> None:
    with pytest.warns() as _:
        torch.jit.save(torch.jit.trace(module, torch.ones(1, 4)), tmp_path / "a.pt")
    stored.refused(tmp_path / "a.pt", None, "TorchScript", "state_dict()")
    for kept in (torch.ones(3), 3, [torch.ones(3)], {}, {"a": "text"}):
        torch.save(kept, tmp_path / "b.pt")
        stored.refused(tmp_path / "b.pt", params_of(module))
    torch.save({"w": torch.ones(3, dtype=torch.complex64)}, tmp_path / "c.pt")
    stored.refused(tmp_path / "c.pt", {"w": np.ones(3, "f4")}, "complex")
    torch.save({"w": torch.ones(3).to_sparse()}, tmp_path / "d.pt")
    stored.refused(tmp_path / "d.pt", {"w": np.ones(3, "f4")})
    torch.save({"w": torch.ones(3), "v": torch.empty(3, device="meta")}, tmp_path / "e.pt")
    stored.refused(tmp_path / "e.pt", {"w": np.ones(3, "f4"), "v": np.ones(3, "f4")})


def test_another_network_and_another_layout(module: Any, tmp_path: Path) -> None:
    torch.save(module.state_dict(), tmp_path / "a.pt")
    turned = params_of(module)
    turned["0"]["weight"] = turned["0"]["weight"].T
    stored.refused(tmp_path / "a.pt", turned, "0/weight [5, 4], wanted [4, 5], transposed?")
    other = {"0": {"kernel": np.ones((4, 5))}}
    stored.refused(tmp_path / "a.pt", other, "lacks 0/kernel", "unexpected 0/weight, 0/bias, 1/weight and 3 more")


def test_damage(module: Any, tmp_path: Path) -> None:
    torch.save(module.state_dict(), tmp_path / "whole.pt")
    whole = (tmp_path / "whole.pt").read_bytes()
    cut = tmp_path / "cut.pt"
    for length in (0, 1, 4, 100, len(whole) // 2, len(whole) - 1):
        cut.write_bytes(whole[:length])
        stored.refused(cut, params_of(module))
    cut.write_bytes(b"\x80\x02cos\nsystem\nU\x04trueR.")
    stored.refused(cut, params_of(module))
    with zipfile.ZipFile(tmp_path / "whole.pt") as archive, zipfile.ZipFile(cut, "w", zipfile.ZIP_DEFLATED) as packed:
        for name in archive.namelist():
            packed.writestr(name, archive.read(name))
    stored.refused(cut, params_of(module), "compressed")


def test_exported_programs(module: Any, tmp_path: Path) -> None:
    torch.export.save(torch.export.export(module, (torch.ones(1, 4),)), tmp_path / "a.pt2")
    found = checkpoints.read(tmp_path / "a.pt2", params_of(module))
    stored.same(found.solutions[0], params_of(module))
    assert found.format == "PyTorch export"
    assert "1/num_batches_tracked" in found.left_out
    torch.save(module.state_dict(), tmp_path / "state.pt")
    with zipfile.ZipFile(tmp_path / "old.pt2", "w") as old:  # as torch 2.6 lays it out
        old.writestr("version", "8.7")
        old.writestr("serialized_exported_program.json", "{}")
        old.writestr("serialized_state_dict.pt", (tmp_path / "state.pt").read_bytes())
    stored.same(checkpoints.load(tmp_path / "old.pt2", params_of(module))[0], params_of(module))
    module = module.to(torch.bfloat16)
    torch.export.save(torch.export.export(module, (torch.ones(1, 4).bfloat16(),)), tmp_path / "b.pt2")
    stored.same(checkpoints.load(tmp_path / "b.pt2", params_of(module.float()))[0], params_of(module.float()))


def rewritten(path: Path, to: Path, name: str, content: bytes) -> None:
    """The archive with another member whose name ends with `name`."""
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(to, "w") as other:
        for inner in archive.namelist():
            other.writestr(inner, content if inner.endswith(name) else archive.read(inner))


def test_newer_and_damaged_exports(module: Any, tmp_path: Path) -> None:
    torch.export.save(torch.export.export(module, (torch.ones(1, 4),)), tmp_path / "a.pt2")
    other, params = tmp_path / "b.pt2", params_of(module)
    rewritten(tmp_path / "a.pt2", other, "/archive_version", b"9")
    stored.refused(other, params, "version '9'")
    rewritten(tmp_path / "a.pt2", other, "/weight_0", b"short")
    stored.refused(other, params, "0.weight")
    for text in (b"", b"[]", b"{}", b'{"config": {"w": 3}}', b"\xff", b"[" * 20_000):
        rewritten(tmp_path / "a.pt2", other, "/model_weights_config.json", text)
        stored.refused(other, params)
