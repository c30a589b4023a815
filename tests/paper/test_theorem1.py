"""The command theorem1 and its examples: what it prints and writes, with and without data; Δ from the arrangement."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import seeds

from landscape import datasets
from landscape.__main__ import dispatch, exit_code
from landscape.datasets import downloads
from landscape.duality import examples
from landscape.duality.certified.arrangement import plane_frontier
from landscape.duality.certified.plane_branch import plane_delta
from landscape.duality.multi_branch import Ball, Box, Product, Regulariser, divergence, duality_gap, unit
from landscape.paper import theorem1


@pytest.fixture
def start(capsys):
    """theorem1 with the given arguments: (exit code, what it printed)."""

    def run(*arguments: str) -> tuple[int, str]:
        code = exit_code(lambda: dispatch(("theorem1", *arguments)))
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    return run


@pytest.mark.slow
def test_without_data_the_other_cases_are_shown(start, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("LANDSCAPE_DATA", raising=False)
    monkeypatch.setattr(downloads, "find", lambda *_, **__: pytest.fail("a download was begun"))
    out = tmp_path / "run"
    arguments = ("--smoke", "--budgets", "50", "--branches", "1", "10", "--no-hinge", "--out", str(out))
    code, text = start(*arguments)
    assert code == 0
    assert "skipped" in text
    assert "LANDSCAPE_DATA" in text
    assert "v(r) is a straight line" in text
    measures = json.loads((out / "measures.json").read_text())
    assert set(measures["certified"]) == {"relu_l1", "chain3_decay", "relu_decay"}
    assert "nothing may be downloaded" in measures["missing"]["mnist_l2"]
    theta = 10 * (5**0.5 - 1) / 2 % 1
    low, high = measures["certified"]["relu_l1"]["gap"][1]
    assert low <= theta * (1 - theta) / 20 <= high
    assert measures["certified"]["relu_decay"]["gap"][0][0] == 0
    assert sum(s["branches"] for s in measures["certified"]["relu_l1"]["shares"]) == 11
    import xarray

    with xarray.open_dataset(out / "theorem1.nc", engine="h5netcdf") as stored:
        assert stored.gap.dims == ("case", "branches", "end")
        np.testing.assert_allclose(stored.gap.sel(case="relu_l1", branches=10), [low, high])
    assert (out / "figure.png").stat().st_size > 10_000
    assert not list(out.glob("case-*.npz"))
    assert "done already" in start(*arguments)[1]


@pytest.mark.parametrize("bad", [["--branches", "0"], ["--share", "1.5"], ["--digits", "3", "3"], ["--budgets", "1"]])
def test_impossible_options_are_refused_before_any_work(start, tmp_path, bad) -> None:
    code, _ = start(*bad, "--out", str(tmp_path / "run"))
    assert code == 2
    assert not (tmp_path / "run").exists()


def test_two_digits_are_certified(data_root) -> None:
    """Real images: Assumption 1 at τ = 1, Δ above G₁, the gap within the sharp bound."""
    data = datasets.mnist(root=data_root, classes=(3, 8), limit=300)
    found, smallest = examples.two_classes(data, 2.0, 500)
    assert smallest.contains(1.0)
    assert found.delta.hi >= found.nonconvexity.lo > 0
    for branches in (1, 7, 60):
        gap = duality_gap(found, branches, 2 * (5**0.5 - 1) / 2)
        assert 0 < gap.gap.lo <= gap.gap.hi < found.delta.hi / branches


@pytest.mark.slow
def test_delta_from_the_arrangement_equals_the_traced_one() -> None:
    seed = int(seeds.generator().integers(2**31))
    rng = np.random.default_rng(seed)
    data = rng.normal(size=(6, 2)), rng.choice([-1.0, 1.0], 6)
    frontier = plane_frontier(data, 5.0, budgets=200)
    fast = plane_delta(data, 5.0, frontier, tol=2e-3)
    size = Regulariser(lambda w: jnp.abs(w[0]) + jnp.sqrt(w[1] ** 2 + w[2] ** 2), True)
    domain = Product((Box(-np.ones(1), np.ones(1)), Ball(np.zeros(2), 1.0)))
    traced = divergence(unit("relu", 2), size, domain, data, 5.0, frontier, tol=4e-3, max_cells=10_000).paper
    assert fast.lo <= traced.hi, seed
    assert traced.lo <= fast.hi, seed
    assert fast.width < 0.03, seed


def test_the_principal_plane_keeps_most_variance() -> None:
    rng = seeds.generator()
    x = rng.normal(size=(50, 2)) @ rng.normal(size=(2, 9)) + 3
    plane = examples.principal_plane(x)
    _, values, vectors = np.linalg.svd(x - x.mean(0), full_matrices=False)
    exact = (x - x.mean(0)) @ vectors[:2].T
    np.testing.assert_allclose(np.abs(plane), np.abs(exact) / np.sqrt((exact**2).sum(1)).max(), atol=1e-9)
    assert values[2] < 1e-9 * values[0]


def test_words_tell_what_is_certified() -> None:
    assert all("MNIST" in title for name, title in theorem1.KINDS.items() if name.startswith("mnist"))
    with pytest.raises(ValueError, match="no example"):
        examples.one_example("other", 2.0, 10)
    with pytest.raises(ValueError, match="Assumption 1 fails"):
        examples.one_example("relu_l1", 0.9, 10)
