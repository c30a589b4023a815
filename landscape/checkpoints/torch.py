"""PyTorch: `.pt`, `.pth`, `.bin`, Lightning's `.ckpt`; tensors only, nothing else is ever unpickled."""

import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from landscape.checkpoints.contents import SMALL, Contents, Leaf, Name, collected, needed, refuse
from landscape.checkpoints.names import split
from landscape.checkpoints.npz import number_type


def contents(path: Path) -> Contents:
    """Names, shapes and types of the tensors of a state dict, alone or inside a training state.

    Raises:
        ValueError: Pickled objects, a damaged file, or torch is missing.
    """
    torch = needed("torch", path, "torch")
    packed = zipfile.is_zipfile(path)
    if packed:
        _refuse_packed(path)
    return of(path, _loaded(torch, path, packed, path), torch)


def of(path: Path, state: Any, torch: Any) -> Contents:
    """The contents of what torch has loaded."""
    if not isinstance(state, Mapping):
        raise ValueError(f"{path} holds {type(state).__name__}, not a state dict; save model.state_dict() instead.")
    flat = all(not isinstance(value, Mapping | list | tuple) for value in state.values())
    named = [(split("/".join(where)), _leaf(torch, value)) for where, value in _walk((), state)]
    leaves = collected(path, named)
    if not any(leaf.dtype is not None for leaf in leaves.values()):
        raise ValueError(f"{path} holds no tensors; wanted torch.save(model.state_dict(), …).")
    return Contents("PyTorch", leaves, _read, nested=not flat)


def _refuse_packed(path: Path) -> None:
    """torch stores its members as they are; what is deflated is another program's, and may grow without end."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise refuse(path, "PyTorch's zip", error) from error
    if any("/code/" in member.filename for member in members):
        raise ValueError(f"{path} is a TorchScript program; save model.state_dict() instead.")
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise refuse(path, "PyTorch's zip", "its members are compressed, which torch.save never does")


def _loaded(torch: Any, path: Path, packed: bool, source: Any) -> Any:
    mapped = {"mmap": True} if packed and source is path else {}
    try:
        return torch.load(str(source) if source is path else source, map_location="cpu", weights_only=True, **mapped)
    except Exception as error:  # torch raises pickle's, zip's and its own errors
        text = str(error)
        if type(error).__name__ == "UnpicklingError" and ("GLOBAL" in text or "class" in text or "Unsupported" in text):
            raise ValueError(f"{path} holds pickled objects; save model.state_dict() instead.") from error
        raise refuse(path, "PyTorch's state dict", error, "Save it with torch.save(model.state_dict(), …).") from error


def part(path: Path, stream: Any) -> Contents:
    """The contents of a state dict that lies inside another file."""
    torch = needed("torch", path, "torch")
    return of(path, _loaded(torch, path, False, stream), torch)


def _walk(where: Name, value: Any) -> Iterator[tuple[Name, Any]]:
    if isinstance(value, Mapping | list | tuple) and len(where) < 64:
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, inner in items:
            yield from _walk((*where, str(key)), inner)
    else:
        yield where, value


def _leaf(torch: Any, value: Any) -> Leaf:
    """The shape and type of a dense tensor on the CPU; everything else is no array."""
    if not isinstance(value, torch.Tensor):
        return Leaf((), None)
    plain = value.layout is torch.strided and not value.is_quantized and value.device.type == "cpu"
    name = str(value.dtype).removeprefix("torch.")
    known = SMALL.get(name) or (number_type(np.dtype(name)) if name in np.sctypeDict else None)
    return Leaf(tuple(value.shape), known if plain else None, value)


def _read(leaves: Sequence[Leaf]) -> list[np.ndarray]:
    """Tensors as arrays; what NumPy has no type for as float32."""
    return [(leaf.key.float() if leaf.dtype in SMALL.values() else leaf.key).detach().numpy() for leaf in leaves]
