"""A person's training script in PyTorch: three seeds of a small CNN on MNIST, saved as PyTorch's tutorials save.

python torch_script.py [FOLDER]
"""

import sys
from pathlib import Path

import pytest

import landscape as ls

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'landscape-jax[torch]'")
nn, F = torch.nn, torch.nn.functional


class CNN(nn.Module):
    """Two convolutions, BatchNorm, dropout, two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 4, 5, stride=2), nn.Conv2d(4, 8, 3, stride=2)
        self.norm, self.dropout = nn.BatchNorm2d(8), nn.Dropout(0.25)
        self.fc1, self.fc2 = nn.Linear(8 * 25, 16), nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.norm(self.conv2(F.relu(self.conv1(x)))))
        x = self.dropout(torch.flatten(x, 1))
        return self.fc2(F.relu(self.fc1(x)))


def make_torch() -> nn.Module:
    """What --network names."""
    return CNN()


def data() -> ls.Dataset:
    """What --data names: 600 digits, channels first."""
    digits = ls.datasets.mnist(limit=600)
    return ls.Dataset(digits.x.reshape(-1, 1, 28, 28), digits.y, name="mnist, 1 x 28 x 28")


def train(seed: int, x: torch.Tensor, y: torch.Tensor, steps: int = 60) -> nn.Module:
    """A few steps of Adam."""
    torch.manual_seed(seed)
    model = CNN().train()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(steps):
        batch = torch.randint(0, len(x), (64,))
        optimizer.zero_grad()
        F.cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()
    return model


def main(folder: Path) -> None:
    """Train and save a.pt, b.pt and c.pt."""
    digits = data()
    x, y = torch.tensor(digits.x.tolist()), torch.tensor(digits.y.tolist())
    for seed, name in enumerate("abc"):
        torch.save(train(seed, x, y).state_dict(), folder / f"{name}.pt")


if __name__ == "__main__":
    main(Path(*sys.argv[1:2]))
