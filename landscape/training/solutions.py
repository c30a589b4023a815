"""Trained solutions as a record and as a file."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from landscape.arrays import hardware
from landscape.files import atomic

Params = Any


@dataclass(frozen=True, eq=False)
class Solutions:
    """Trained solutions, one for each seed; iterates over the seeds.

    Attributes:
        params: Final parameters [S, I, ...].
        risk: Risk on all the data at the end, [S], loss units.
        history: Risk on all the data at the recorded steps, [S, T].
        steps: The recorded steps, [T].
        converged: Whether the criterion was met before the last step, [S].
        trajectory: Parameters at the recorded steps, [S, T, I, ...]; None unless asked for.
        branch_shards: Devices that the branches of a solution are split over; above 1, `params` are on the host.
    """

    params: Params
    risk: np.ndarray
    history: np.ndarray
    steps: np.ndarray
    converged: np.ndarray
    trajectory: Params | None = None
    branch_shards: int = 1

    def __len__(self) -> int:
        return len(self.risk)

    def __getitem__(self, seed: int) -> Params:
        found = jax.tree.map(lambda x: x[range(len(self))[seed]], self.params)
        return found if self.branch_shards == 1 else hardware.at_home(found, self.branch_shards)

    def __iter__(self) -> Iterator[Params]:
        return (self[i] for i in range(len(self)))

    def save(self, path: Path | str, key: str = "") -> None:
        """Write all but the trajectory as npz with a checksum; the leaves of params under their paths.

        Args:
            path: The file.
            key: Identifies the training; `load` refuses another key.
        """
        leaves = jax.tree_util.tree_leaves_with_path(self.params)
        arrays = {f"params{jax.tree_util.keystr(where)}": leaf for where, leaf in leaves}
        arrays |= {name: getattr(self, name) for name in ("risk", "history", "steps", "converged")}
        arrays["share"] = np.asarray(self.branch_shards)
        atomic.save_arrays(Path(path), arrays, key)

    @staticmethod
    def load(path: Path | str, key: str, like: Params) -> "Solutions":
        """Read solutions written by `save`.

        Args:
            path: The file.
            key: As when saved.
            like: Parameters of one seed, or their shapes.

        Raises:
            FileNotFoundError: No such file.
            Corrupted: The file is damaged, belongs to another key, or to a network with other parameters.
        """
        arrays = atomic.load_arrays(Path(path), key)
        if arrays is None:
            raise FileNotFoundError(f"{path} does not exist.")
        leaves, structure = jax.tree_util.tree_flatten_with_path(like)
        names = [f"params{jax.tree_util.keystr(where)}" for where, _ in leaves]
        shapes = [arrays[n].shape[1:] if n in arrays else None for n in names]
        if shapes != [leaf.shape for _, leaf in leaves]:
            raise atomic.Corrupted(f"{path} holds the parameters of another network: {sorted(arrays)}.")
        branch_shards = int(arrays["share"])
        values = [arrays[n] if branch_shards > 1 else jnp.asarray(arrays[n]) for n in names]
        params = jax.tree.unflatten(structure, values)
        rest = (arrays[name] for name in ("risk", "history", "steps", "converged"))
        return Solutions(params, *rest, branch_shards=branch_shards)

    def __repr__(self) -> str:
        return f"Solutions({len(self)} seeds, {self.steps[-1]:,} steps: risk {' '.join(f'{r:.4g}' for r in self.risk)})"
