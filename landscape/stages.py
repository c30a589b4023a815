"""Stages of a run that are kept on disk, so that the same command goes on after the last finished one."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from landscape import storage
from landscape.runs import Run


def kept(
    run: Run, name: str, key: str, compute: Callable[[], Mapping[str, Any]], word: str = ""
) -> dict[str, np.ndarray]:
    """The arrays of one stage: those on disk where they belong to the same inputs, else computed and written.

    Args:
        run: The run directory.
        name: A short name for the file.
        key: Fingerprint of all that the stage depends on.
        compute: Makes the arrays.
        word: What is said of a stage that is not computed again; nothing when empty.

    Raises:
        Stopped: A request to stop has come; the stage is on disk.
    """
    file = run.file(f"stage-{name}-{key[:8]}.npz")
    try:
        found = storage.load_arrays(file, key)
    except storage.Corrupted as error:
        run.say("note", f"{str(error).splitlines()[0]} It is computed again.")
        found = None
    if found is None:
        found = {where: np.asarray(array) for where, array in compute().items()}
        storage.save_arrays(file, found, key)
        run.check_stop()
    elif word:
        run.say("kept", word)
    return found


def clear(run: Run) -> None:
    """Remove the files that only served to go on after a stop."""
    for pattern in ("stage-*.npz", "block-*.npz", "training.npz"):
        for file in run.path.glob(pattern):
            file.unlink(missing_ok=True)
