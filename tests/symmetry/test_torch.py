"""Symmetries of PyTorch modules: nothing is known of them but their trace."""

import jax
import numpy as np
import pytest
import seeds

from landscape import alignment, losses
from landscape.datasets import Dataset
from landscape.networks import from_torch
from landscape.networks.statistics import as_parameters
from landscape.problem import Problem

torch = pytest.importorskip("torch")


class Small(torch.nn.Module):
    """Two convolutions with BatchNorm, flattened into a dense layer with a gated unit."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = torch.nn.Conv2d(2, 4, 3, padding=1), torch.nn.BatchNorm2d(4)
        self.b = torch.nn.Conv2d(4, 3, 3, padding=1, groups=1)
        self.c, self.out = torch.nn.Linear(3 * 2 * 2, 10), torch.nn.Linear(5, 2)

    def forward(self, x):
        x = torch.nn.functional.max_pool2d(torch.relu(self.norm(self.a(x))), 2)
        return self.out(torch.nn.functional.glu(self.c(torch.relu(self.b(x)).flatten(1))))


def test_a_torch_module_is_aligned_with_its_running_statistics() -> None:
    seed = seeds.draw()
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(12, 2, 4, 4)).astype("f4")
    network = as_parameters(from_torch(Small, x[0]), x[:1])

    def drawn(tree):
        return jax.tree.map(lambda t: np.asarray(t + 0.3 * np.abs(rng.normal(size=t.shape)), "f4")[None], tree)

    problem = Problem(Dataset(x, rng.integers(0, 2, 12)), network, losses.logistic)
    params = drawn(network.init(jax.random.key(seed)))
    found = alignment.symmetries(problem, params).kinds[0].symmetries
    assert sorted(s.size for s in found.found) == [3, 4, 5]
    order = rng.permutation(4)
    moved = jax.tree.map(np.copy, params)
    w, s = moved["params"], moved["statistics"]
    w["a"] = jax.tree.map(lambda t: t[:, order], w["a"])
    w["norm"], s["norm"] = (jax.tree.map(lambda t: t[:, order], t["norm"]) for t in (w, s))
    w["b"]["weight"] = w["b"]["weight"][:, :, order]
    reference, aligned = alignment.align_all(problem, [params, moved])
    for one, other in zip(jax.tree.leaves(reference), jax.tree.leaves(aligned), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)
