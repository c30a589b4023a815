"""Figures show the numbers they are given: orientation, scales, marks, masked points, and what they do not show."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
import seeds
from matplotlib.figure import Figure
from matplotlib.image import imread
from mpl_toolkits.mplot3d.axes3d import Axes3D
from slices import formula, relu_slice

from landscape import plots
from landscape.plots import caption, scale, style, summary


@pytest.fixture
def rng() -> np.random.Generator:
    seed = seeds.draw()
    print("seed", seed)
    return np.random.default_rng(seed)


def text_of(fig: Figure) -> str:
    """All text of a figure on one line."""
    return " ".join(" ".join(t.get_text().split()) for t in fig.findobj(mpl.text.Text))


def pixels(fig: Figure, path: Path) -> np.ndarray:
    plots.save(fig, path)
    return imread(path)[..., :3]


def test_the_module_is_light_until_a_figure_is_drawn() -> None:
    code = "import sys, landscape; landscape.plots; sys.exit('matplotlib' in sys.modules or 'jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
    assert callable(plots.contour)
    assert set(plots.__all__) <= set(dir(plots))
    with pytest.raises(AttributeError, match="nothing"):
        plots.__getattr__("nothing")


def test_the_colour_map_survives_greyscale() -> None:
    colours = mpl.colormaps[style.SURFACE_MAP](np.linspace(0, 1, 64))[:, :3]
    assert np.all(np.diff(colours @ [0.2126, 0.7152, 0.0722]) > 0)


def test_contour_marks_solutions_and_says_what_is_missing(rng: np.random.Generator) -> None:
    surface = relu_slice(rng)
    fig = plots.contour(surface)
    ax = fig.axes[0]
    marks = [line.get_xydata() for line in ax.lines]
    assert any(np.array_equal(m, surface.anchors) for m in marks)
    assert any(len(m) == 4 and np.array_equal(m[0], m[3]) for m in marks)
    assert ax.get_aspect() == 1
    text = text_of(fig)
    for wanted in ("tau hinge loss (τ = 1)", "21 x 17 points", "3 seeds", "not shown", "distance", "$I$ = 5"):
        assert wanted in text


def test_axes_are_equal_only_where_distances_mean_something(rng: np.random.Generator) -> None:
    fig = plots.contour(relu_slice(rng, plane="oblique"))
    assert fig.axes[0].get_aspect() == "auto"
    assert "coordinate" in text_of(fig)


def test_first_axis_runs_to_the_right_and_second_upwards(rng: np.random.Generator, tmp_path: Path) -> None:
    a, b = np.linspace(0, 3, 9), np.linspace(0, 1, 23)
    rising = [formula(lambda a, b: a + 0 * b, a, b), formula(lambda a, b: 0 * a + b, a, b)]
    for surface, axis in zip(rising, (1, 0), strict=True):
        fig = plots.contour(surface)
        image = pixels(fig, tmp_path / "x.png")
        box = fig.axes[0].get_window_extent().transformed(fig.dpi_scale_trans.inverted()).extents * 200
        left, bottom, right, top = box.astype(int)
        inside = image[image.shape[0] - top + 8 : image.shape[0] - bottom - 8, left + 8 : right - 8].mean(2)
        profile = inside.mean(1 - axis)
        profile = profile if axis == 1 else profile[::-1]
        assert np.corrcoef(profile, np.arange(len(profile)))[0, 1] > 0.9
        assert np.ptp(inside.mean(axis)) < 0.1 * np.ptp(profile)


def test_solids_stand_at_the_values(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def record(self: Axes3D, *heights: Any, **style: Any) -> None:
        seen.update(style, a=heights[0], b=heights[1], risk=heights[2])

    monkeypatch.setattr(Axes3D, "plot_surface", record)
    surface = relu_slice(rng)
    plots.surface3d(surface)
    assert np.array_equal(seen["risk"], surface.risk)
    assert np.array_equal(seen["a"], np.repeat(surface.grid.a[:, None], len(surface.grid.b), 1))
    assert np.array_equal(seen["b"], np.repeat(surface.grid.b[None], len(surface.grid.a), 0))
    assert min(seen["rcount"], seen["ccount"]) >= 100


def test_row_is_ordered_by_branches_on_a_common_and_on_own_scales(rng: np.random.Generator, tmp_path: Path) -> None:
    surfaces = [relu_slice(rng, branches) for branches in (30, 3, 10)]
    again = relu_slice(rng, 3, triple=1)
    fig = plots.row([*surfaces, again])
    titles = [t.get_text() for t in fig.texts if t.get_text().startswith("$I$")]
    assert titles == ["$I$ = 3", "$I$ = 10", "$I$ = 30"]
    solid: list[Any] = [ax for ax in fig.axes if ax.name == "3d"]
    tops = [ax.get_zlim()[1] for ax in solid]
    highest = [surfaces[n].risk.max() for n in (1, 2, 0)]
    assert np.allclose(tops[:3], max(highest))
    assert np.allclose(tops[3:], highest)
    assert "first for each I" in text_of(fig)
    image = pixels(fig, tmp_path / "row.png")
    assert len(np.unique((image * 255).astype(int).reshape(-1, 3), axis=0)) > 2000


def test_measures_can_stand_under_the_row(rng: np.random.Generator) -> None:
    surfaces = [relu_slice(rng, n) for n in (2, 20)]
    records = [
        {"branches": n, "barrier": float(value)} for n, value in zip((2, 20), rng.exponential(size=2), strict=True)
    ]
    fig = plots.row(surfaces, measures=records)
    curves = [line.get_ydata() for ax in fig.axes if ax.name != "3d" for line in ax.lines]
    assert any(np.array_equal(curve, [r["barrier"] for r in records]) for curve in curves)
    assert "no spread" in text_of(fig)


def test_rows_share_scales_as_asked(rng: np.random.Generator) -> None:
    groups = {"one": [relu_slice(rng, n) for n in (2, 4)], "two": [relu_slice(rng, n) for n in (3, 6)]}
    tops = {}
    for scales in ("row", "all", "own"):
        fig = plots.rows(groups, scales=scales)
        solid: list[Any] = [ax for ax in fig.axes if ax.name == "3d"]
        tops[scales] = np.round([ax.get_zlim()[1] for ax in solid], 12)
        assert {"one", "two"} <= {t.get_text() for t in fig.texts}
    most = np.round([s.risk.max() for group in groups.values() for s in group], 12)
    assert np.array_equal(tops["own"], most)
    assert np.array_equal(tops["all"], np.full(4, most.max()))
    assert np.array_equal(tops["row"], np.repeat([most[:2].max(), most[2:].max()], 2))
    with pytest.raises(ValueError, match="row, all or own"):
        plots.rows(groups, scales="each")


def test_points_that_are_not_finite_are_masked_counted_and_kept(rng: np.random.Generator, tmp_path: Path) -> None:
    surface = relu_slice(rng)
    surface.risk[:4, :5], surface.risk[-1, -1] = np.nan, np.inf
    before = surface.risk.copy()
    for draw in (plots.contour, plots.surface3d):
        fig = draw(surface)
        plots.save(fig, tmp_path / "x.png")
        assert "21 of 357 points are not finite" in text_of(fig)
    assert np.array_equal(before, surface.risk, equal_nan=True)
    surface.risk[:] = np.nan
    with pytest.raises(ValueError, match="finite"):
        plots.contour(surface)


def test_log_scale_keeps_zeros_and_refuses_what_has_no_logarithm(rng: np.random.Generator, tmp_path: Path) -> None:
    a = np.linspace(-1, 1, 15)
    zero = formula(lambda a, b: np.maximum(a**2 + b**2 - 0.2, 0), a, a)
    norm = scale.norm([scale.values(zero)], log=True)
    low, high = scale.span(norm)
    assert 0 < low <= high * 1e-1
    assert scale.clip(scale.values(zero), norm).min() == low
    for draw in (plots.contour, plots.surface3d):
        plots.save(draw(zero, log=True), tmp_path / "x.png")
    with pytest.raises(ValueError, match="positive"):
        plots.contour(formula(lambda a, b: -1 - a**2 - b**2, a, a), log=True)


def test_layers_and_constant_surfaces(rng: np.random.Generator, tmp_path: Path) -> None:
    surface = relu_slice(rng)
    assert "twice" in text_of(plots.contour(surface, layer="twice"))
    with pytest.raises(ValueError, match="twice"):
        plots.contour(surface, layer="thrice")
    axis = np.linspace(0, 1, 2)
    for draw in (plots.contour, plots.surface3d):
        plots.save(draw(formula(lambda a, b: 0.0 * a * b, axis, axis)), tmp_path / "x.png")


def test_levels_are_quantiles(rng: np.random.Generator) -> None:
    values = np.ma.masked_invalid(rng.exponential(size=(40, 31)) ** 3)
    levels = scale.levels([values], scale.norm([values]), 9)
    shares = [(values <= level).mean() for level in levels]
    assert np.allclose(shares, np.arange(1, 10) / 10, atol=2 / values.size)


def test_png_has_200_dots_an_inch_and_pdf_real_text(rng: np.random.Generator, tmp_path: Path) -> None:
    fig = plots.contour(relu_slice(rng))
    plots.save(fig, tmp_path / "x.png")
    plots.save(fig, tmp_path / "x.pdf")
    assert imread(tmp_path / "x.png").shape[:2] == tuple(round(200 * s) for s in fig.get_size_inches()[::-1])
    assert b"/CIDFontType2" in (tmp_path / "x.pdf").read_bytes()


def test_trend_shows_every_triple_the_mean_and_its_interval(rng: np.random.Generator) -> None:
    samples = {i: rng.exponential(size=4) for i in (10, 100, 1000)}
    records = [{"branches": i, "triple": t, "barrier": v[t]} for i, v in samples.items() for t in range(4)]
    fig = plots.trend(records)
    lines = [line.get_xydata() for line in fig.axes[0].lines]
    mean = np.array([[i, v.mean()] for i, v in samples.items()])
    assert any(np.allclose(line, mean) for line in lines if line.shape == mean.shape)
    assert sorted(y for line in lines if len(line) == 4 for y in line[:, 1]) == sorted(
        np.concatenate([*samples.values()])
    )
    low, high = summary.interval(samples[10])[1:]
    assert samples[10].min() <= low <= samples[10].mean() <= high <= samples[10].max()
    assert "4 for each I" in text_of(fig)
    assert "no spread" in text_of(plots.trend(records[::4]))
    assert "aligned" in text_of(plots.trend({"as trained": records, "aligned": records}))
    with pytest.raises(ValueError, match="branches"):
        plots.trend([{"barrier": 1.0}])
    with pytest.raises(ValueError, match="measure"):
        plots.trend([{"branches": 1}])


def test_the_interval_covers_the_mean_about_as_often_as_it_says(rng: np.random.Generator) -> None:
    covered = [low <= 0 <= high for _, low, high in (summary.interval(rng.normal(size=30)) for _ in range(200))]
    assert 0.85 < np.mean(covered) <= 1
    assert np.isnan(summary.interval([2.0])[1:]).all()


def test_trajectories_show_how_far_they_leave_the_plane(rng: np.random.Generator) -> None:
    surface = relu_slice(rng)
    path = np.cumsum(rng.normal(size=(12, 3)), 0)
    path[:, 2] = np.abs(path[:, 2])
    fig = plots.trajectory(surface, {"SGD": path, "Adam": path[::-1]})
    drawn = [line.get_xydata() for line in fig.axes[0].lines]
    assert any(np.array_equal(path[:, :2], line) for line in drawn)
    assert any(np.array_equal(path[:, 2], line.get_ydata()) for line in fig.axes[1].lines)
    assert f"up to {path[:, 2].max():.2g} off the plane" in text_of(plots.contour(surface, paths={"SGD": path}))
    with pytest.raises(ValueError, match="out of the plane"):
        plots.trajectory(surface, {"SGD": path[:, :2]})


def test_edges_name_their_barriers(rng: np.random.Generator) -> None:
    t = np.linspace(0, 1, 21)
    fig = plots.edges({"1 – 2": 1 + t + 0.5 * np.sin(np.pi * t), "2 – 3": 1 + t})
    legend = fig.axes[0].get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["1 – 2: barrier 0.5", "2 – 3: barrier 0"]
    with pytest.raises(ValueError, match="two or more"):
        plots.edges({"1 – 2": np.ones(1)})


def test_before_and_after_share_one_scale(rng: np.random.Generator, tmp_path: Path) -> None:
    before, after = relu_slice(rng, 3), relu_slice(rng, 3)
    fig = plots.before_after(before, after)
    scales = [c.norm for ax in fig.axes[:2] for c in ax.collections if hasattr(c, "norm") and c.get_array() is not None]
    ends = {(n.vmin, n.vmax) for n in scales[::2]}
    both = np.concatenate([before.risk.ravel(), after.risk.ravel()])
    assert ends == {(both.min(), both.max())}
    assert "aligned" in text_of(fig)


def test_a_caption_needs_a_surface() -> None:
    with pytest.raises(ValueError, match="at least one"):
        caption.limits([])
    with pytest.raises(ValueError, match="at least one"):
        plots.row([])
