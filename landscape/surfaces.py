"""The loss on a plane as a record, and the files that hold it."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from landscape.files import atomic
from landscape.planes.grids import Grid, checked, grid_around

if TYPE_CHECKING:
    import xarray

__all__ = ["Grid", "Provenance", "Surface", "grid_around", "load_stack", "save_stack"]


ERRORS = {"standard_error": (), "difference_error": (), "left_out": ("group",)}
"""Arrays about the sampling error, with their dimensions before those of the grid."""
TAKEN = frozenset(
    "a b risk anchor anchor_a anchor_b anchor_risk surface point_a point_b branches triple plane metadata "
    "standard_error difference_error left_out group".split()
)
"""Names reserved in a file of surfaces."""


@dataclass(frozen=True, eq=False)
class Provenance(Mapping[str, Any]):
    """How a surface was computed, from which data, and its self-checks; a mapping of all fields that are known.

    Attributes:
        plane: Kind of the plane.
        parameters: Number of parameters.
        precision: Precision of matrix products.
        device: The devices in words.
        versions: Versions of the package and of JAX.
        branches: I.
        average: Whether the network is the mean of its branches.
        loss: Name of the loss.
        dataset: Name of the data; `examples` of them were taken, with the hash `data_sha256` of all.
        examples_available: How many there are, where a tolerance was given.
        tolerance: Standard error at which the surface stopped; `largest_standard_error` is the one reached.
        error_of: Whose mean the standard errors are about: "the population" or "the data set".
        order_seed: Seed of the random order in which the examples were taken.
        tile: Sizes of the grid loop.
        route: Which loop computed it and why, in words.
        operations: Floating-point operations of the surface.
        checks: What `evaluation.checks.agreement` found.
        triple: Which triple of solutions, from 0.
        aligned: Whether branches were aligned first.
        training: How the training of the solutions ended.
        barriers: Exact barriers on the edges, of the training and the test risk.
        extent: The rule of the grid's extent, in words.
        state: What became of the network's state.
        network: Class and library of the network.
        layout: The shape in which built-in images came.
        notes: What was switched off or kept fixed, in words.
        files: The checkpoints of the solutions.
        gram: Inner products of the axes.
        not_finite: Number of grid points without a finite loss.
        curvature: "shown", or why it is not.
        unexplained_fraction: Share of the change of slope that second derivatives do not explain.
        units: Units of the loss.
        more: Further entries by name.
    """

    plane: str | None = None
    parameters: int | None = None
    precision: str | None = None
    device: str | None = None
    versions: Mapping[str, str] | None = None
    branches: int | None = None
    average: bool | None = None
    loss: str | None = None
    dataset: str | None = None
    examples: int | None = None
    examples_available: int | None = None
    tolerance: str | None = None
    largest_standard_error: float | None = None
    error_of: str | None = None
    order_seed: int | None = None
    data_sha256: str | None = None
    tile: Sequence[int] | None = None
    route: str | None = None
    operations: float | None = None
    checks: Mapping[str, Any] | None = None
    triple: int | None = None
    aligned: bool | None = None
    training: Mapping[str, Any] | None = None
    barriers: Mapping[str, Any] | None = None
    extent: str | None = None
    state: str | None = None
    network: str | None = None
    layout: str | None = None
    notes: str | None = None
    files: str | None = None
    gram: Any = None
    not_finite: int | None = None
    curvature: str | None = None
    unexplained_fraction: float | None = None
    units: str | None = None
    more: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, known: Mapping[str, Any]) -> "Provenance":
        """The record of a mapping; unknown keys go to `more`."""
        names = {f.name for f in fields(cls)} - {"more"}
        more = {name: value for name, value in known.items() if name not in names}
        return cls(**{name: known[name] for name in names & set(known)}, more=more)

    def _known(self) -> dict[str, Any]:
        found = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "more"}
        return {name: value for name, value in found.items() if value is not None} | dict(self.more)

    def __getitem__(self, name: str) -> Any:
        return self._known()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._known())

    def __len__(self) -> int:
        return len(self._known())


def check_names(names: Iterable[Any]) -> None:
    """Refuse names of quantities beside the risk that a file of surfaces cannot hold.

    Raises:
        ValueError: A name that is no text or empty, that a file of surfaces uses itself, or that has a slash or is a
            dot, which name places in a file.
    """
    for name in names:
        if not isinstance(name, str) or not name.strip(" .") or not name.isprintable() or "/" in name or name in TAKEN:
            raise ValueError(
                f"A quantity of a surface cannot be called {name!r}: names are text without slashes, other than "
                f"{', '.join(sorted(TAKEN))}.\n  Call it otherwise, train_accuracy for example."
            )


@dataclass(frozen=True, eq=False)
class Surface:
    """A quantity on a grid of a plane.

    Attributes:
        grid: Coordinates a [A] and b [B].
        risk: The loss, [A, B], with risk[i, j] = R(w(a_i, b_j)).
        anchors: Coordinates of the marked solutions, [M, 2].
        anchor_risk: The loss at the solutions themselves, [M].
        layers: Further quantities by name, each [A, B].
        metadata: Its `Provenance`; any mapping is taken.
        standard_error: Of the loss, [A, B]; None where the loss is no mean over examples.
        difference_error: Standard error of the loss's difference to that of the first solution, [A, B], or None.
        left_out: The loss without each of G groups of examples, [G, A, B], or None; see `convexity.report`.

    Raises:
        ValueError: Arrays that do not fit the grid, or names that `check_names` refuses.

    >>> Surface(Grid(np.arange(3.0), np.arange(2.0)), np.zeros([3, 2]))
    Surface(3 x 2 points, risk 0 to 0)
    """

    grid: Grid
    risk: np.ndarray
    anchors: np.ndarray = field(default_factory=lambda: np.zeros((0, 2)))
    anchor_risk: np.ndarray | None = None
    layers: Mapping[str, np.ndarray] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    standard_error: np.ndarray | None = None
    difference_error: np.ndarray | None = None
    left_out: np.ndarray | None = None

    def __post_init__(self) -> None:
        grid = checked(self.grid)
        shape = (len(grid.a), len(grid.b))
        check_names(self.layers)
        arrays = {"risk": np.asarray(self.risk), **{k: np.asarray(v) for k, v in self.layers.items()}}
        for name, array in {**arrays, **self.errors}.items():
            if array.shape[-2:] != shape or array.ndim != 2 + (name == "left_out"):
                raise ValueError(f"{name} must have one value a grid point, shape {shape}; got {array.shape}.")
        anchors = np.asarray(self.anchors, float).reshape(-1, 2)
        risk = np.full(len(anchors), np.nan) if self.anchor_risk is None else np.asarray(self.anchor_risk, float)
        if len(risk) != len(anchors):
            raise ValueError(f"{len(anchors)} anchors need as many values of the loss; got {len(risk)}.")
        values = {"grid": grid, "risk": arrays.pop("risk"), "layers": arrays, "anchors": anchors, "anchor_risk": risk}
        values["metadata"] = Provenance.of(self.metadata)
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @property
    def errors(self) -> dict[str, np.ndarray]:
        """What is known of the sampling error, by name."""
        known = {name: getattr(self, name) for name in ERRORS}
        return {name: np.asarray(value) for name, value in known.items() if value is not None}

    def noting(self, known: Provenance) -> "Surface":
        """The surface with further provenance."""
        return replace(self, metadata={**self.metadata, **known})

    def __repr__(self) -> str:
        a, b = self.risk.shape
        words = [f"{a} x {b} points", f"risk {np.nanmin(self.risk):.4g} to {np.nanmax(self.risk):.4g}"]
        words += [f"I = {self.metadata['branches']}"] if "branches" in self.metadata else []
        return f"Surface({', '.join(words + sorted(self.layers))})"

    def to_xarray(self) -> "xarray.Dataset":
        """The surface as an xarray data set: dimensions a, b, anchor; metadata as attributes."""
        import xarray

        units = {"units": self.metadata.get("units", "loss")}
        distance = {"units": "parameter distance" if self.metadata.get("plane") != "oblique" else "axis lengths"}
        variables: dict[str, Any] = {"risk": (("a", "b"), self.risk, units)}
        variables |= {name: (("a", "b"), layer) for name, layer in self.layers.items()}
        variables |= {name: ((*ERRORS[name], "a", "b"), value, units) for name, value in self.errors.items()}
        variables |= {f"anchor_{k}": ("anchor", self.anchors[:, i], distance) for i, k in enumerate("ab")}
        variables["anchor_risk"] = ("anchor", self.anchor_risk, units)
        coords = {k: (k, axis, distance) for k, axis in zip("ab", self.grid, strict=True)}
        return xarray.Dataset(variables, coords, _attributes(self.metadata))

    def save(self, path: Path | str) -> None:
        """Write the surface as netCDF, whole or not at all."""
        data = self.to_xarray()
        atomic.write_atomic(Path(path), lambda p: data.to_netcdf(p, engine="h5netcdf"))

    @staticmethod
    def load(path: Path | str) -> "Surface":
        """Read a surface written by `save`.

        Raises:
            FileNotFoundError: No such file.
            ValueError: The file holds several surfaces, or none.
        """
        found = load_stack(path)
        if len(found) != 1:
            raise ValueError(f"{path} holds {len(found)} surfaces; read it with landscape.surfaces.load_stack.")
        return found[0]


def save_stack(path: Path | str, surfaces: Sequence[Surface], left_out: bool = False) -> None:
    """Write several surfaces of the same shape as one netCDF, dimensions (surface, point_a, point_b).

    Args:
        path: The file.
        surfaces: At least one.
        left_out: Whether their `left_out` is kept, which takes the most room.

    Raises:
        ValueError: No surfaces, or different shapes.
    """
    import xarray

    shapes = {s.risk.shape for s in surfaces}
    if len(shapes) != 1:
        raise ValueError(
            f"Surfaces in one file must have the same number of points, and there must be some; got {shapes}."
        )
    points = ("surface", "point_a", "point_b")
    names = sorted(set.intersection(*(set(s.layers) for s in surfaces)))
    variables: dict[str, Any] = {"risk": (points, np.stack([s.risk for s in surfaces]), {"units": "loss"})}
    variables |= {name: (points, np.stack([s.layers[name] for s in surfaces])) for name in names}
    for name, before in ERRORS.items():
        if all(name in s.errors for s in surfaces) and (left_out or name != "left_out"):
            dims = points[:1], before, points[1:]
            variables[name] = (sum(dims, ()), np.stack([s.errors[name] for s in surfaces]), {"units": "loss"})
    count = max(len(s.anchors) for s in surfaces)
    for i, k in enumerate("ab"):
        variables[f"anchor_{k}"] = (
            ("surface", "anchor"),
            np.stack([_filled(s.anchors[:, i], count) for s in surfaces]),
        )
    risks = np.stack([_filled(np.asarray(s.anchor_risk), count) for s in surfaces])
    variables["anchor_risk"] = (("surface", "anchor"), risks)
    coords: dict[str, Any] = {
        f"{k}": (("surface", f"point_{k}"), np.stack([s.grid[i] for s in surfaces])) for i, k in enumerate("ab")
    }
    for name in ("branches", "triple", "plane"):
        if all(name in s.metadata for s in surfaces):
            coords[name] = ("surface", [s.metadata[name] for s in surfaces])
    metadata = [json.dumps(atomic.plain(s.metadata)) for s in surfaces]
    coords["metadata"] = ("surface", metadata)
    shared = {k: v for k, v in surfaces[0].metadata.items() if all(s.metadata.get(k) == v for s in surfaces)}
    data = xarray.Dataset(variables, coords, _attributes(shared))
    atomic.write_atomic(Path(path), lambda p: data.to_netcdf(p, engine="h5netcdf"))


def load_stack(path: Path | str) -> list[Surface]:
    """Read every surface of a file written by `save_stack` or `Surface.save`.

    Raises:
        FileNotFoundError: No such file.
        ValueError: It is not a file of surfaces.
    """
    import xarray

    if not Path(path).exists():
        raise FileNotFoundError(f"{path} does not exist; a run directory keeps its surfaces in surface.nc.")
    try:
        with xarray.open_dataset(path, engine="h5netcdf") as file:
            data = file.load()
        if "surface" not in data.sizes:
            return [_surface(data, _restored(data.attrs))]
        parts = [data.isel(surface=i) for i in range(data.sizes["surface"])]
        return [_surface(part, json.loads(str(part["metadata"].values))) for part in parts]
    except (KeyError, OSError) as error:
        raise ValueError(f"{path} is not a file of surfaces ({error}).") from error


def _surface(data: "xarray.Dataset", metadata: dict[str, Any]) -> Surface:
    anchors = np.stack([data["anchor_a"].values, data["anchor_b"].values], -1)
    there = np.isfinite(anchors).all(-1)
    points = data["risk"].dims
    known = {"risk", "anchor_a", "anchor_b", "anchor_risk"}
    layers = {str(n): v.values for n, v in data.data_vars.items() if n not in known | {*ERRORS} and v.dims == points}
    errors = {name: data[name].values for name in ERRORS if name in data}
    grid, at = Grid(data["a"].values, data["b"].values), data["anchor_risk"].values[there]
    return Surface(grid, data["risk"].values, anchors[there], at, layers, metadata, **errors)


def _filled(values: np.ndarray, count: int) -> np.ndarray:
    return np.concatenate([values, np.full(count - len(values), np.nan)])


def _attributes(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata as netCDF attributes: numbers and text as they are, the rest as JSON."""
    plain = {k: v for k, v in atomic.plain(metadata).items() if v is not None}
    return {
        k: v if (isinstance(v, int | float) and not isinstance(v, bool)) or _is_plain_text(v) else json.dumps(v)
        for k, v in plain.items()
    }


def _is_plain_text(value: Any) -> bool:
    """Whether a value is text that is not taken for JSON when it is read."""
    return isinstance(value, str) and value[:1] not in ("", "{", "[", '"') and value not in ("true", "false")


def _restored(attributes: Mapping[str, Any]) -> dict[str, Any]:
    found = {}
    for key, value in attributes.items():
        text = isinstance(value, str) and not _is_plain_text(value) and value
        found[str(key)] = json.loads(value) if text else value.item() if isinstance(value, np.generic) else value
    return found
