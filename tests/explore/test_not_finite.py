"""Solutions whose loss is not a number or infinite: said in the tables, the report is written, exit 0."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import seeds

from landscape.__main__ import dispatch, exit_code

N, D, C = 12, 3, 2


def data():
    rng = seeds.generator()
    return rng.normal(size=(N, D)).astype("f4"), rng.integers(0, C, N)


def apply(w, x):
    return jnp.tanh(x @ w["k"]) / jnp.sqrt(w["s"])  # nan for negative s, infinite for 0


@pytest.mark.parametrize(("scales", "more"), [
    ((1.0, -1.0, 2.0), ("--spectrum", "--curvature")), ((-1.0, -2.0, -3.0), ("--spectrum", "--curvature")),
    ((1.0, 0.0, 2.0), ()), ((-1.0,), ("--plane", "random")),
])  # fmt: skip
def test_the_report_is_written(scales, more, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rng = seeds.generator()
    for n, s in enumerate(scales):
        np.savez(f"w{n}.npz", k=rng.normal(size=(D, C)).astype("f4"), s=np.float32(s))
    files = [f"w{n}.npz" for n in range(len(scales))]
    here = f"{__name__}:apply", f"{__name__}:data"
    words = ["--network", here[0], "--data", here[1], "--loss", "logistic", "--points", "3", "--out", "out", "--quiet"]
    assert exit_code(lambda: dispatch(["explore", *words, "--solutions", *files, *more])) == 0
    assert Path("out/report.html").stat().st_size > 10_000
    found = json.loads(Path("out/measures.json").read_text())
    if len(scales) == 3:
        assert found["barriers"]["1 – 2"] is None
        assert ">not finite<" in Path("out/report.html").read_text().split("Barriers on the lines")[1]
    if "--spectrum" in more:
        known = [record["largest"][0] is not None for record in found["hessian"]]
        assert known == [s > 0 for s in scales]
