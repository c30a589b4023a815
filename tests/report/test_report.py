"""report.html: whole, self-contained, true to the data, and working in a real browser without a network."""

import base64
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import chromium
import numpy as np
import pytest
import seeds
from matplotlib.image import imread
from slices import formula, relu_slice

from landscape import convexity, report

needs_browser = pytest.mark.skipif(chromium.program() is None, reason="chromium is not installed")
SEED = seeds.draw()


@pytest.fixture(scope="module")
def rng() -> np.random.Generator:
    print("seed", SEED)
    return np.random.default_rng(SEED)


def data_of(page: str) -> dict[str, Any]:
    found = re.search(r'<script id="data" type="application/json">(.*?)</script>', page, re.S)
    assert found
    return json.loads(found[1])


def floats(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), "<f4")


def test_the_page_holds_the_data_and_nothing_outside_it(rng: np.random.Generator, tmp_path: Path) -> None:
    surfaces = [relu_slice(rng, n, shape=(13, 9)) for n in (3, 8)]
    surfaces[1].risk[2, 5], surfaces[1].risk[0, 0] = np.nan, np.inf
    report.write(tmp_path / "report.html", surfaces, title="A & B")
    page = (tmp_path / "report.html").read_text("utf-8")
    for surface, stored in zip(surfaces, data_of(page)["surfaces"], strict=True):
        values = floats(stored["values"]["risk"]).reshape(13, 9)
        assert np.array_equal(values, surface.risk.astype("<f4"), equal_nan=True)
        assert np.array_equal(floats(stored["a"]), surface.grid.a.astype("<f4"))
        assert np.allclose(stored["anchors"], surface.anchors)
        assert set(stored["values"]) == {"risk", "twice"}
    assert "A &amp; B" in page
    assert page.count("plotly.js v") == 1
    outside = re.sub(r"<script>.*?</script>", "", page, flags=re.S)
    assert not re.findall(r"(?:src|href)\s*=\s*[\"'](?!data:)", outside)
    assert "default-src 'none'" in outside


def test_the_page_says_what_was_checked_and_what_a_slice_cannot_show(rng: np.random.Generator, tmp_path: Path) -> None:
    surface = relu_slice(
        rng, checks={"anchor_difference": 3e-7, "deterministic": True}, note="</script><b>", dataset="x"
    )
    report.write(tmp_path / "report.html", [surface])
    page = (tmp_path / "report.html").read_text("utf-8")
    for wanted in ("3e-07", "deterministic", "0 of 357", "&lt;/script&gt;", "proves nothing", "no spread can be given"):
        assert wanted in page
    assert data_of(page)["surfaces"][0]["name"] == "I = 5"


def test_measures_are_those_of_convexity_with_their_spread(rng: np.random.Generator, tmp_path: Path) -> None:
    surfaces = [relu_slice(rng, n, triple=t) for n in (3, 8) for t in range(3)]
    report.write(tmp_path / "report.html", surfaces)
    page = (tmp_path / "report.html").read_text("utf-8")
    curves = data_of(page)["trend"]["curves"]
    assert curves[0]["x"] == [3, 8]
    found = np.array([convexity.numbers(convexity.report(s))["env_max_loss"] for s in surfaces]).reshape(2, 3)
    drawn = np.array(curves[0]["points"][0])
    assert np.allclose(drawn[:, 0], found.mean(1))
    assert np.all(drawn[:, 1] <= drawn[:, 0])
    assert np.all(drawn[:, 0] <= drawn[:, 2])
    assert f"{drawn[0, 0]:.3g} ({drawn[0, 1]:.3g} … {drawn[0, 2]:.3g})" in page
    assert "I = 3, triple 2" in page


def test_kinds_of_plane_are_not_averaged(rng: np.random.Generator, tmp_path: Path) -> None:
    surfaces = [relu_slice(rng, 4, plane=plane) for plane in ("orthonormal", "oblique")]
    surfaces.append(relu_slice(rng, 4, aligned=True))
    report.write(tmp_path / "report.html", surfaces)
    data = data_of((tmp_path / "report.html").read_text("utf-8"))
    kinds = ["orthonormal", "oblique", "orthonormal, aligned"]
    assert [curve["name"] for curve in data["trend"]["curves"]] == kinds
    assert [s["name"] for s in data["surfaces"]] == [f"I = 4, {kind}" for kind in kinds]
    assert [s["isometric"] for s in data["surfaces"]] == [True, False, True]


def test_surfaces_that_cannot_be_measured_are_still_shown(rng: np.random.Generator, tmp_path: Path) -> None:
    surface = relu_slice(rng)
    surface.risk[:] = np.nan
    report.write(tmp_path / "report.html", [surface])
    assert "enough finite values" in (tmp_path / "report.html").read_text("utf-8")


def test_wrong_use_is_refused_and_leaves_no_file(rng: np.random.Generator, tmp_path: Path) -> None:
    surface = relu_slice(rng)
    with pytest.raises(ValueError, match="at least one"):
        report.write(tmp_path / "report.html", [])
    with pytest.raises(ValueError, match="as many names"):
        report.write(tmp_path / "report.html", [surface], names=["a", "b"])
    with pytest.raises(ValueError, match="as many paths"):
        report.write(tmp_path / "report.html", [surface], paths=[{}, {}])
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def opened(rng: np.random.Generator, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[chromium.Page, Path]]:
    """A report in the browser: two numbers of branches, a 201 x 201 surface with gaps, a trajectory."""
    folder = tmp_path_factory.mktemp("report")
    axis = np.linspace(-2, 2, 201)
    large = formula(lambda a, b: (a**2 - 1) ** 2 + b**2, axis, axis, branches=50, loss="squared", plane="oblique")
    large.risk[:20, :30] = np.nan
    first = relu_slice(rng, 2)
    first = replace(first, layers={**first.layers, "a_bend": first.risk - np.median(first.risk)})
    surfaces = [first, relu_slice(rng, 30), large]
    path = np.cumsum(rng.normal(size=(12, 3)), 0)
    report.write(folder / "report.html", surfaces, paths=[{"SGD": path}, {}, {}])
    with chromium.page() as page:
        page.do("Page.navigate", url=(folder / "report.html").as_uri() + "#common=0")
        page.wait("document.body && document.body.dataset.drawn")
        page.settle()
        yield page, folder


def choose(page: chromium.Page, control: str, value: Any) -> None:
    """What a reader does with a control of the page."""
    page.value(
        f"(() => {{ const e = document.getElementById({control!r}); e.value = {json.dumps(value)};"
        " e.dispatchEvent(new Event('change')); })()"
    )
    page.settle()


def picture(page: chromium.Page, path: Path) -> np.ndarray:
    return (imread(page.screenshot(path))[..., :3] * 255).astype(int)


@needs_browser
def test_the_surface_is_rendered_and_the_switch_changes_the_picture(opened: tuple[chromium.Page, Path]) -> None:
    page, folder = opened
    choose(page, "surface", 0)
    first = picture(page, folder / "first.png")
    assert len(np.unique(first.reshape(-1, 3), axis=0)) > 5000
    choose(page, "surface", 1)
    second = picture(page, folder / "second.png")
    middle = np.s_[150:600, 50:650]
    assert np.mean(np.any(np.abs(first[middle] - second[middle]) > 8, axis=-1)) > 0.05
    assert page.value("document.getElementById('slider').value") == "1"
    choose(page, "scale", "log")
    assert np.mean(np.any(picture(page, folder / "log.png")[middle] != second[middle], axis=-1)) > 0.02
    choose(page, "scale", "linear")
    assert not page.problems()
    assert not page.requests()


@needs_browser
def test_large_surfaces_with_gaps_are_rendered(opened: tuple[chromium.Page, Path]) -> None:
    page, folder = opened
    choose(page, "surface", 2)
    assert len(np.unique(picture(page, folder / "large.png").reshape(-1, 3), axis=0)) > 5000
    assert "600 of 40,401 points are not finite" in page.value("document.getElementById('caption').textContent")
    assert not page.problems()
    assert not page.requests()


@needs_browser
def test_hover_names_the_point_its_loss_and_the_nearest_solution(opened: tuple[chromium.Page, Path]) -> None:
    page, _ = opened
    choose(page, "surface", 0)
    i, j = 7, 11
    text = page.value(f"document.getElementById('flat').data[0].text[{j}][{i}]")
    a, b, loss = page.value(f"[here().a[{i}], here().b[{j}], here().values.risk[{i} * here().b.length + {j}]]")
    away = page.value(f"Math.min(...here().anchors.map(q => Math.hypot(q[0] - {a}, q[1] - {b})))")
    numbers = [float(n.replace("−", "-")) for n in re.findall(r"(?<![(\d])−?\d+(?:\.\d+)?(?:e[-−]\d+)?(?![)\d])", text)]
    assert "nearest solution" in text
    for wanted in (a, b, loss, away):
        assert any(abs(n - wanted) <= 1e-3 * abs(wanted) for n in numbers), (wanted, text)


@needs_browser
def test_a_cut_is_the_loss_along_the_line(opened: tuple[chromium.Page, Path]) -> None:
    page, _ = opened
    choose(page, "surface", 2)
    choose(page, "line", "along a through the centre")
    x, y = page.value("[document.getElementById('cut').data[0].x, document.getElementById('cut').data[0].y]")
    a = np.array(x) - 2
    assert np.allclose(np.array(y), (a**2 - 1) ** 2, atol=5e-3)
    choose(page, "surface", 0)
    choose(page, "line", "solution 1 to 3")
    ends = page.value("[here().anchors[0], here().anchors[2]]")
    assert page.value("document.getElementById('cut').data[0].x.at(-1)") == pytest.approx(
        np.linalg.norm(np.subtract(*ends))
    )


@needs_browser
def test_a_signed_quantity_keeps_its_sign(opened: tuple[chromium.Page, Path]) -> None:
    page, _ = opened
    choose(page, "surface", 0)
    choose(page, "quantity", "a_bend")
    choose(page, "scale", "log")
    low, high = page.value("scale().range")
    assert low == -high < 0
    assert page.value("scale().map === SIGNED && !scale().log")
    assert "Not all values are positive" in page.value("document.getElementById('caption').textContent")
    assert "a bend" in page.value("document.getElementById('quantity').selectedOptions[0].text")
    choose(page, "scale", "linear")
    choose(page, "quantity", "risk")


@needs_browser
def test_the_cut_takes_the_room_that_there_is(opened: tuple[chromium.Page, Path]) -> None:
    page, _ = opened
    for surface in (0, 1, 0):
        choose(page, "surface", surface)
        drawn, room = page.value("[get('cut')._fullLayout.width, get('cut').clientWidth]")
        assert drawn == pytest.approx(room, abs=3)
        assert page.value("get('away').hidden") == (surface == 1)


@needs_browser
def test_an_address_restores_what_was_chosen(opened: tuple[chromium.Page, Path]) -> None:
    page, _ = opened
    page.value("location.hash = '#surface=1&quantity=twice&scale=log&common=0'")
    page.settle()
    state = page.value("[state.surface, state.quantity, state.log, state.common]")
    assert state == [1, "twice", True, False]
    assert not page.problems()
