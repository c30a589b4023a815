"""config.json, the record of a run: its configuration and its environment."""

import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from landscape import __version__
from landscape.files.atomic import plain
from landscape.runs.options import RESULT_OPTIONS, Options

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")
"""Packages whose versions are recorded beside our own."""
RECORDS = ("config.json", "log.jsonl")
"""Files that every run writes before it computes anything."""
REFUSALS = (ValueError, FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError)
"""Errors that mean wrong use or a wrong configuration."""


def record_of(name: str, config: Any, options: Options) -> dict[str, Any]:
    """The fields that identify a run."""
    return {
        "name": name,
        "config": plain(config),
        "options": {key: plain(getattr(options, key)) for key in RESULT_OPTIONS},
    }


def refuse_changes(path: Path, wanted: dict[str, Any]) -> None:
    """Compare the record on disk with the `wanted` one.

    Raises:
        ValueError: They differ; the message lists the fields.
    """
    known = read_config(path)
    changes = [
        f"{label(part, key)} was {show(old)}, now {show(new)}"
        for part in ("config", "options")
        for key, old, new in differences(known.get(part, {}), wanted[part])
    ]
    if known.get("name") != wanted["name"]:
        changes = [f"command was {known.get('name')}, now {wanted['name']}"]
    if changes:
        raise ValueError(
            f"{path} belongs to another configuration:\n  {'; '.join(changes)}.\n"
            f"  Choose another --out, or delete {path} to begin anew."
        )


def keeps_nothing(path: Path) -> bool:
    """Whether a run directory holds only records, so that a later run may have another configuration.

    Raises:
        ValueError: Its config.json cannot be read.
    """
    others = [f for f in path.iterdir() if f.name not in RECORDS and not f.name.startswith(".")]
    return not others and "begun" in read_config(path)


def missing(path: Path) -> list[Path]:
    """Those of a run directory, its lock and its parents that do not exist yet, the innermost first."""
    return [place for place in (path / ".lock", path, *path.parents) if not place.exists()]


@contextlib.contextmanager
def removed_if_refused(path: Path, made: Sequence[Path]) -> Iterator[None]:
    """In this context an error before anything is computed removes the run's records and new folders.

    Args:
        path: The run directory.
        made: The result of `missing` before the directory was made.
    """
    try:
        yield
    except REFUSALS:
        with contextlib.suppress(OSError, ValueError):
            if (path / "config.json").exists() and keeps_nothing(path):
                for name in RECORDS:
                    (path / name).unlink(missing_ok=True)
            for place in made:
                place.rmdir() if place.is_dir() else place.unlink(missing_ok=True)
        raise


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """(field, old value, new value) wherever two records differ."""
    keys = dict.fromkeys([*old, *new])
    return [(key, old.get(key), new.get(key)) for key in keys if old.get(key) != new.get(key)]


def label(part: str, key: str) -> str:
    """A field as the option that sets it."""
    return f"--{key.replace('_', '-')}"


def show(value: Any) -> str:
    """A value as it would be typed."""
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def environment_of() -> dict[str, Any]:
    """Versions, device and precision in use, on which results may depend."""
    import jax

    versions = {"landscape": __version__} | {package: metadata.version(package) for package in PACKAGES}
    return {
        "python": ".".join(map(str, sys.version_info[:3])),
        **versions,
        "platform": jax.default_backend(),
        "device_kind": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "processes": jax.process_count(),
    }


def read_config(path: Path) -> dict[str, Any]:
    """The content of a run directory's config.json.

    Raises:
        ValueError: There is none, or it cannot be read.
    """
    try:
        return json.loads((path / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"{path} is not a run directory: it has no config.json.") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}/config.json cannot be read ({error}).\n  Delete {path}, or choose --out.") from error
