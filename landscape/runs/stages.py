"""Stages of a run that are kept on disk, so that the same command goes on after the last finished one."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from landscape.files import atomic
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
    found = atomic.recovered(file, key)
    if found is None:
        found = {where: np.asarray(array) for where, array in compute().items()}
        atomic.save_arrays(file, found, key)
        run.check_stop()
    elif word:
        run.say("kept", word)
    return found


def clear(run: Run) -> None:
    """Remove the files that only served to go on after a stop."""
    atomic.remove(run.path, "stage-*.npz", "block-*.npz", "training.npz")
