"""The options shared by all commands that compute."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

UNITS = {"": 1, "B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40, "KB": 10**3, "MB": 10**6, "GB": 10**9}
RESULT_OPTIONS = ("seed", "precision", "memory", "distributed")
"""The options on which stored numbers depend; the others may change when a run is continued."""


@dataclass(frozen=True)
class Options:
    """Options shared by all commands that compute."""

    out: Path | None = None
    """Run directory (default: runs/COMMAND)."""
    seed: int = 0
    """Seed of every random number."""
    smoke: bool = False
    """Smallest sizes, for a few seconds; explicit options win."""
    paper: bool = False
    """The paper's sizes; explicit options win."""
    data_root: Path | None = None
    """Folder with MNIST/raw and cifar-10-batches-py (default: LANDSCAPE_DATA, then downloads)."""
    precision: Literal["highest", "high", "default"] = "highest"
    """Precision of matrix products in float32."""
    memory: str | None = None
    """Memory the computation may use on a device, such as 500MiB or 2GiB: 3/4 of a GPU's, half of the machine's."""
    quiet: bool = False
    """Print nothing but errors."""
    distributed: bool = False
    """Join the processes started by srun into one computation (jax.distributed)."""

    def __post_init__(self) -> None:
        if self.smoke and self.paper:
            raise ValueError("--smoke and --paper contradict each other.\n  Give one of them.")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"--seed wants a number from 0 to {2**32 - 1:,}; got {self.seed:,}.")
        if self.memory is not None:
            parse_bytes(self.memory)

    @property
    def memory_bytes(self) -> int | None:
        """--memory in bytes; None leaves it to the device."""
        return None if self.memory is None else parse_bytes(self.memory)

    @property
    def progress(self) -> bool:
        """Whether to show bars."""
        return not self.quiet


def parse_bytes(text: str) -> int:
    """Bytes named by a text such as "2GiB", "500 MB" or "1073741824".

    >>> parse_bytes("2GiB") == 2 * 1024**3
    True

    Raises:
        ValueError: The text is not a positive amount of memory.
    """
    number = text.strip().rstrip("BKMGTi").strip()
    unit = text.strip()[len(number) :].strip()
    try:
        size = int(float(number) * UNITS[unit])
    except (ValueError, KeyError, OverflowError):
        size = 0
    if size < 1:
        raise ValueError(f'--memory wants an amount such as 500MiB or 2GiB; got "{text}".')
    return size
