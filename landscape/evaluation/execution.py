"""How a computation runs: a record that is made once and handed on."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np

from landscape.arrays import hardware
from landscape.evaluation.grid_loop import Tile
from landscape.files.progress import Bar


def wanted_error(tolerance: float | str) -> tuple[float, bool]:
    """A tolerance as a number, and whether it is a share of the surface's range.

    Args:
        tolerance: A standard error in loss units, or a share such as "1%".

    Raises:
        ValueError: It is neither.
    """
    text = str(tolerance).strip()
    share = text.endswith("%")
    try:
        value = float(text.removesuffix("%")) / (100 if share else 1)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise ValueError(
            "A tolerance is a standard error in loss units, such as 0.01, or a share of the surface's range, such as "
            f"1%; got {tolerance!r}."
        )
    return value, share


@dataclass(frozen=True)
class Execution:
    """How to run; nothing of this but `tolerance` changes what is computed, beyond rounding.

    Attributes:
        precision: Of matrix products: "highest" (float32), "high" (tf32 or bf16 in three passes), "default".
        memory: Bytes allowed on each device; chosen from the device when None.
        tile: Sizes of the grid loop instead of those of the cost model.
        devices: The devices, of all processes.
        branch_shards: Over how many of them the branches of each solution are split; as few as the memory asks for
            when None.
        route: "lanes" or "direct"; chosen by the cost model when None.
        threads: Threads that share the work of a single CPU device; one a core when None.
        tolerance: Standard error of the risk at which to stop, in loss units or as a share of the range ("1%").
        directory: Where finished blocks are kept, so that the same call continues an interrupted one.
        progress: True for a bar, False for silence, or a bar already open.
        check_stop: Called whenever a block is on disk; may raise to interrupt.
    """

    precision: str = "highest"
    memory: int | None = None
    tile: Tile | None = None
    devices: tuple[Any, ...] = field(default_factory=lambda: tuple(jax.devices()))
    branch_shards: int | None = None
    route: str | None = None
    threads: int | None = None
    tolerance: float | str | None = None
    directory: Path | None = None
    progress: bool | Bar = False
    check_stop: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        """Refuse a tolerance that is none; errors are those of `wanted_error`."""
        if self.tolerance is not None:
            wanted_error(self.tolerance)

    def allowed_error(self, risk: np.ndarray) -> float:
        """The largest standard error at which a surface is finished, in loss units; inf without a tolerance."""
        if self.tolerance is None:
            return float("inf")
        wanted, share = wanted_error(self.tolerance)
        finite = risk[np.isfinite(risk)]
        return wanted * (float(np.ptp(finite)) if share and finite.size else 1.0)

    @property
    def budget(self) -> int:
        """Bytes allowed on each device, the same on all processes."""
        return hardware.allowed(self.memory, self.devices)

    @property
    def workers(self) -> int:
        """Devices, or the threads of a single one."""
        return max(len(self.devices), self.threads or hardware.cores(self.devices))

    @property
    def platform(self) -> str:
        """ "cpu", "gpu" or "tpu"."""
        return self.devices[0].platform

    @property
    def device_words(self) -> str:
        """The devices in words: "2 x cpu"."""
        return f"{len(self.devices)} x {self.devices[0].device_kind}"
