"""How a computation runs: a record that is made once and handed on."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax

from landscape.arrays import hardware
from landscape.evaluation.grid_loop import Tile
from landscape.files.progress import Bar


@dataclass(frozen=True)
class Execution:
    """How to run; nothing of this changes what is computed beyond rounding.

    Attributes:
        precision: Of matrix products: "highest" (float32), "high" (tf32 or bf16 in three passes), "default".
        memory: Bytes allowed on each device; chosen from the device when None.
        tile: Sizes of the grid loop instead of those of the cost model.
        devices: The devices, of all processes.
        branch_shards: Over how many of them the branches of each solution are split; as few as the memory asks for
            when None.
        route: "lanes" or "direct"; chosen by the cost model when None.
        threads: Threads that share the work of a single CPU device; one a core when None.
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
    directory: Path | None = None
    progress: bool | Bar = False
    check_stop: Callable[[], None] = lambda: None

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
