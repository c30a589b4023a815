"""Figure 3 (§4a): averages of l_p balls become convex; drawn in 2-D and 3-D, with their distance to the hull."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from landscape.files.tables import text_table

if TYPE_CHECKING:
    from landscape.runs import Run

SMOKE: dict[str, Any] = {"measured": (1, 2, 10), "mesh": 20}
PAPER: dict[str, Any] = {}


@dataclass(frozen=True)
class Config:
    """The paper draws p = ½ in the plane; dimension 3 and the numbers are this project's addition."""

    p: float = 0.5  # Figure 3
    """Exponent of the ball, strictly between 0 and 1; minutes instead of seconds above 0.9."""
    copies: tuple[int, ...] = (1, 2, 10)  # Figure 3
    """Numbers I of balls that are averaged, one panel each; the hull comes last."""
    measured: tuple[int, ...] = (1, 2, 3, 5, 10, 30, 100, 300, 1000)
    """Numbers I whose distance to the hull is measured."""
    mesh: int = 40
    """Triangles along an edge of an octant in 3-D."""

    def __post_init__(self) -> None:
        if not 0 < self.p < 1:
            raise ValueError(f"--p wants an exponent strictly between 0 and 1; got {self.p:g}.")
        for name in ("copies", "measured"):
            numbers = getattr(self, name)
            if not numbers or min(numbers) < 1 or len(set(numbers)) < len(numbers):
                raise ValueError(
                    f"--{name} wants different whole numbers, at least 1; got {' '.join(map(str, numbers))}."
                )
        if self.mesh < 2:
            raise ValueError(f"--mesh wants at least 2; got {self.mesh}.")


def run(config: Config, run: "Run") -> None:
    """Measure the distances, trace the boundaries, and print the table."""
    from landscape.duality.shapley_folkman import nonconvexity

    run.say(
        "figure3:", f"averages of l_p balls, p = {config.p:g}, {_words(config.copies)} copies and the hull, 2-D and 3-D"
    )
    run.plan("seconds" if config.p <= 0.9 else "minutes: the distance is small at this p")
    rows: dict[str, list[dict[str, Any]]] = {"2": [], "3": []}
    with run.bar("distance", 2 * len(config.measured)) as bar:
        for dimension in (2, 3):
            for copies in config.measured:
                found = nonconvexity(p=config.p, dimension=dimension, copies=copies)
                rows[str(dimension)].append({"copies": copies, **found._asdict()})
                bar.update(1)
                run.check_stop()
    _trace(config, run)
    run.say("rho(I):", table(rows))
    run.measures({"config": dataclasses.asdict(config), "distance": rows})


def draw(path: Path) -> None:
    """figure.png and figure.pdf: the panels in 2-D and 3-D, and the distances beside the bounds."""
    from landscape.files import atomic
    from landscape.plots import shapley_folkman, style

    measures = json.loads((path / "measures.json").read_text())
    arrays = atomic.load_arrays(path / "boundaries.npz", json.dumps(measures["config"]))
    if arrays is None:
        raise ValueError(f"{path / 'boundaries.npz'} is missing.\n  Run the command again.")
    config = measures["config"]
    fig = shapley_folkman.averages(config["p"], config["copies"], arrays, measures["distance"])
    style.save(fig, path / "figure")


def table(rows: dict[str, list[dict[str, Any]]]) -> str:
    """Intervals for ρ(I) and the bounds, both dimensions side by side."""
    head = ["I", "2-D: interval", "proved", "R bound", "r bound", "area lost", "3-D: interval", "R bound", "r bound"]
    cells = [
        [
            *(flat["copies"], _interval(flat), "–" if flat["exact"] is None else f"{flat['exact']:.6f}"),
            *(*_bounds(flat), f"{flat['area_deficit']:.6f}", _interval(space), *_bounds(space)),
        ]
        for flat, space in zip(rows["2"], rows["3"], strict=True)
    ]
    return "\n".join(text_table([head, *cells]))


def _interval(row: dict[str, Any]) -> str:
    return f"{row['lo']:.6f} … {row['hi']:.6f}"


def _bounds(row: dict[str, Any]) -> list[str]:
    return [f"{row[key]:.6f}" for key in ("circumradius_bound", "inner_radius_bound")]


def _words(numbers: tuple[int, ...]) -> str:
    return ", ".join(map(str, numbers))


def _trace(config: Config, run: "Run") -> None:
    """boundaries.npz: for every I the curve in the plane, and the octant's radii along a mesh of directions."""
    from landscape.duality.shapley_folkman import averaged_ball
    from landscape.files import atomic

    arrays: dict[str, Any] = {"directions": directions(config.mesh)}
    for copies in config.copies:
        x = curve_abscissae(copies, config.p)
        arrays[f"curve-{copies}"] = [x, averaged_ball(config.p, 2, copies).boundary(x)]
        arrays[f"radius-{copies}"] = radii(averaged_ball(config.p, 3, copies), arrays["directions"])
        run.check_stop()
    atomic.save_arrays(run.file("boundaries.npz"), arrays, json.dumps(dataclasses.asdict(config)))


def curve_abscissae(copies: int, p: float) -> Any:
    """x from 0 to 1, dense at both ends of each of the I arcs."""
    import numpy as np

    u = np.linspace(0.0, 1.0, 201)
    arc = np.concatenate([u[:100] ** (1 / p), 1 - (1 - u[100:] ** (1 / p))])
    return np.unique((np.arange(copies)[:, None] + arc[None, :]).ravel()) / copies


def directions(mesh: int) -> Any:
    """Points [K, 3] of the face x + y + z = 1 on a triangular mesh, row by row."""
    import numpy as np

    steps = [(i, j, mesh - i - j) for i in range(mesh + 1) for j in range(mesh + 1 - i)]
    return np.array(steps) / mesh


def radii(ball: Any, toward: Any) -> Any:
    """The greatest t ≤ 1 [K] with t·direction in the ball, by bisection (S_I is star-shaped)."""
    import numpy as np

    inside, outside = np.zeros(len(toward)), np.ones(len(toward))
    for _ in range(16):
        t = 0.5 * (inside + outside)
        x, y, z = (t[:, None] * toward).T
        within = z <= np.nan_to_num(ball.boundary(x, y), nan=-1.0) + 1e-9
        inside, outside = np.where(within, t, inside), np.where(within, outside, t)
    return np.where(np.isclose(toward.max(axis=1), 1.0), 1.0, inside)
