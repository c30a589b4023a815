"""The deep networks of `deep.py`, in flax and, where it is installed, in PyTorch: the same layers and sizes."""

import itertools
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

CLASSES, SIDE, PATCH, WIDTH, LAYERS, HEADS = 10, 32, 4, 64, 2, 4
CHANNELS, DENSE, HIDDEN = (24, 48), 96, 512
STAGES = ((16, 16, 1), (16, 32, 2), (32, 64, 2))
"""ResNet-20: channels in and out and the stride of three stages, of three blocks each."""
BLOCKS = [(last if k else first, last, 1 if k else stride) for first, last, stride in STAGES for k in range(3)]


class CNN(nnx.Module):
    """Two convolutions with pooling, two dense layers."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        first, second = CHANNELS
        self.first = nnx.Conv(3, first, (3, 3), rngs=rngs)
        self.second = nnx.Conv(first, second, (3, 3), rngs=rngs)
        self.dense = nnx.Linear((SIDE // 4) ** 2 * second, DENSE, rngs=rngs)
        self.out = nnx.Linear(DENSE, CLASSES, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Outputs [N, C]."""
        for convolution in (self.first, self.second):
            x = nnx.max_pool(nnx.relu(convolution(x)), (2, 2), strides=(2, 2))
        return self.out(nnx.relu(self.dense(x.reshape(len(x), -1))))


class Block(nnx.Module):
    """Two convolutions beside an identity, or beside one of 1 x 1 where the size changes."""

    def __init__(self, inputs: int, outputs: int, stride: int, rngs: nnx.Rngs) -> None:
        self.first = nnx.Conv(inputs, outputs, (3, 3), strides=stride, use_bias=False, rngs=rngs)
        self.second = nnx.Conv(outputs, outputs, (3, 3), use_bias=False, rngs=rngs)
        self.norms = nnx.List([nnx.BatchNorm(outputs, rngs=rngs) for _ in range(2)])
        same = stride == 1 and inputs == outputs
        self.beside = None if same else nnx.Conv(inputs, outputs, (1, 1), strides=stride, use_bias=False, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Images [N, H, W, channels]."""
        y = self.norms[1](self.second(nnx.relu(self.norms[0](self.first(x)))))
        return nnx.relu(y + (x if self.beside is None else self.beside(x)))


class ResNet20(nnx.Module):
    """ResNet-20 for 32 x 32 images."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.first = nnx.Conv(3, STAGES[0][0], (3, 3), use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(STAGES[0][0], rngs=rngs)
        self.blocks = nnx.List([Block(*size, rngs=rngs) for size in BLOCKS])
        self.out = nnx.Linear(STAGES[-1][1], CLASSES, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Outputs [N, C]."""
        x = nnx.relu(self.norm(self.first(x)))
        for block in self.blocks:
            x = block(x)
        return self.out(x.mean((1, 2)))


class Layer(nnx.Module):
    """Attention and a dense part, each after a LayerNorm and beside an identity."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.norms = nnx.List([nnx.LayerNorm(WIDTH, rngs=rngs) for _ in range(2)])
        self.attention = nnx.MultiHeadAttention(HEADS, WIDTH, decode=False, rngs=rngs)
        self.wide = nnx.Linear(WIDTH, 4 * WIDTH, rngs=rngs)
        self.narrow = nnx.Linear(4 * WIDTH, WIDTH, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Tokens [N, T, WIDTH]."""
        x = x + self.attention(self.norms[0](x))
        return x + self.narrow(nnx.gelu(self.wide(self.norms[1](x))))


class Transformer(nnx.Module):
    """A vision transformer of two layers on 64 patches."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.embed = nnx.Linear(3 * PATCH**2, WIDTH, rngs=rngs)
        self.place = nnx.Param(0.02 * jax.random.normal(rngs.params(), ((SIDE // PATCH) ** 2, WIDTH)))
        self.layers = nnx.List([Layer(rngs) for _ in range(LAYERS)])
        self.norm = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.out = nnx.Linear(WIDTH, CLASSES, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Outputs [N, C]."""
        n, side = len(x), SIDE // PATCH
        patches = x.reshape(n, side, PATCH, side, PATCH, 3).transpose(0, 1, 3, 2, 4, 5).reshape(n, side**2, -1)
        x = self.embed(patches) + self.place[...][None]
        for layer in self.layers:
            x = layer(x)
        return self.out(self.norm(x).mean(1))


class MLP(nnx.Module):
    """Two hidden layers of 512 units."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        sizes = (3 * SIDE**2, HIDDEN, HIDDEN, CLASSES)
        self.layers = nnx.List([nnx.Linear(a, b, rngs=rngs) for a, b in itertools.pairwise(sizes)])

    def __call__(self, x: jax.Array) -> jax.Array:
        """Outputs [N, C]."""
        *hidden, last = self.layers
        x = x.reshape(len(x), -1)
        for layer in hidden:
            x = nnx.relu(layer(x))
        return last(x)


FLAX: dict[str, Callable[[nnx.Rngs], Any]] = {"CNN": CNN, "ResNet-20": ResNet20, "transformer": Transformer, "MLP": MLP}


def in_torch() -> dict[str, Callable[[], Any]]:
    """The same networks as functions that make PyTorch modules."""
    from torch import nn
    from torch.nn import functional as F

    class TorchBlock(nn.Module):
        def __init__(self, inputs: int, outputs: int, stride: int) -> None:
            super().__init__()
            self.first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
            self.second = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
            self.norms = nn.ModuleList([nn.BatchNorm2d(outputs) for _ in range(2)])
            same = stride == 1 and inputs == outputs
            self.beside = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

        def forward(self, x: Any) -> Any:
            y = self.norms[1](self.second(F.relu(self.norms[0](self.first(x)))))
            return F.relu(y + self.beside(x))

    class TorchLayer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norms = nn.ModuleList([nn.LayerNorm(WIDTH, eps=1e-6) for _ in range(2)])
            self.inward, self.outward = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
            self.wide, self.narrow = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

        def forward(self, x: Any) -> Any:
            n, t, d = x.shape
            q, k, v = self.inward(self.norms[0](x)).reshape(n, t, 3, HEADS, d // HEADS).permute(2, 0, 3, 1, 4)
            x = x + self.outward(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, d))
            return x + self.narrow(F.gelu(self.wide(self.norms[1](x)), approximate="tanh"))

    class TorchTransformer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            import torch

            self.embed = nn.Conv2d(3, WIDTH, PATCH, PATCH)
            self.place = nn.Parameter(0.02 * torch.randn((SIDE // PATCH) ** 2, WIDTH))
            self.layers = nn.Sequential(*[TorchLayer() for _ in range(LAYERS)])
            self.norm, self.out = nn.LayerNorm(WIDTH, eps=1e-6), nn.Linear(WIDTH, CLASSES)

        def forward(self, x: Any) -> Any:
            tokens = self.embed(x).flatten(2).transpose(1, 2) + self.place
            return self.out(self.norm(self.layers(tokens)).mean(1))

    def cnn() -> Any:
        first, second = CHANNELS
        convolutions = [nn.Conv2d(3, first, 3, padding=1), nn.Conv2d(first, second, 3, padding=1)]
        parts = [layer for one in convolutions for layer in (one, nn.ReLU(), nn.MaxPool2d(2))]
        dense = [nn.Flatten(), nn.Linear((SIDE // 4) ** 2 * second, DENSE), nn.ReLU(), nn.Linear(DENSE, CLASSES)]
        return nn.Sequential(*parts, *dense)

    def resnet() -> Any:
        first = nn.Conv2d(3, STAGES[0][0], 3, 1, 1, bias=False)
        parts = [first, nn.BatchNorm2d(STAGES[0][0]), nn.ReLU(), *(TorchBlock(*size) for size in BLOCKS)]
        return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(STAGES[-1][1], CLASSES))

    def mlp() -> Any:
        hidden = [nn.Linear(3 * SIDE**2, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU()]
        return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(HIDDEN, CLASSES))

    return {"CNN": cnn, "ResNet-20": resnet, "transformer": TorchTransformer, "MLP": mlp}
