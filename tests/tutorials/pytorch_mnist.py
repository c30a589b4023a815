"""PyTorch's "Basic MNIST Example": dropout, log-softmax, NLL; `torch.save(model.state_dict(), ...)`."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn, optim


class Net(nn.Module):
    """Two convolutions and two linear layers."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 3, 1)
        self.conv2 = nn.Conv2d(4, 8, 3, 1)
        self.dropout1 = nn.Dropout(0.25)
        self.dropout2 = nn.Dropout(0.5)
        self.fc1 = nn.Linear(1152, 16)
        self.fc2 = nn.Linear(16, 10)

    def forward(self, x):
        x = self.conv1(x)
        x = F.relu(x)
        x = self.conv2(x)
        x = F.relu(x)
        x = F.max_pool2d(x, 2)
        x = self.dropout1(x)
        x = torch.flatten(x, 1)
        x = self.fc1(x)
        x = F.relu(x)
        x = self.dropout2(x)
        x = self.fc2(x)
        return F.log_softmax(x, dim=1)


def train(images: np.ndarray, labels: np.ndarray, seed: int, steps: int) -> Net:
    """A few steps."""
    torch.manual_seed(seed)
    model = Net()
    optimizer = optim.Adadelta(model.parameters(), lr=1.0)
    model.train()
    for step in range(steps):
        rows = slice(32 * step, 32 * (step + 1))
        data, target = torch.tensor(images[rows, None]), torch.tensor(labels[rows]).long()
        optimizer.zero_grad()
        loss = F.nll_loss(model(data), target)
        loss.backward()
        optimizer.step()
    return model


def main(images: np.ndarray, labels: np.ndarray, folder: Path, steps: int) -> list[str]:
    """Train and save three seeds; images [N, 28, 28]."""
    for seed in range(3):
        torch.save(train(images, labels, seed, steps).state_dict(), folder / f"mnist_cnn{seed}.pt")
    return [f"mnist_cnn{seed}.pt" for seed in range(3)]


def outputs(file: Path, images: np.ndarray, first: Path) -> np.ndarray:
    """The network of a checkpoint, by the framework itself."""
    model = Net().eval()
    model.load_state_dict(torch.load(file, weights_only=True))
    with torch.no_grad():
        return model(torch.tensor(images[:, None])).numpy()
