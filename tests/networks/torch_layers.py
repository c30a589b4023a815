"""Layers and functions of PyTorch, each as a small module with its random inputs."""

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'landscape-jax[torch]'")
nn, F = torch.nn, torch.nn.functional


class Applied(nn.Module):
    """A function of the inputs, scaled by a parameter where they are floating-point numbers."""

    def __init__(self, f: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.f, self.scale = f, nn.Parameter(torch.tensor(1.1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.f(x * self.scale if x.is_floating_point() else x)


class Unrolled(nn.Module):
    """A recurrent cell in a Python loop."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.cell = getattr(nn, kind)(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state = None
        for t in range(x.shape[1]):
            state = self.cell(x[:, t], state)
        return state[0] if isinstance(state, tuple) else state


class Half(nn.Module):
    """A part without derivatives."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            h = self.first(x)
        return self.second(torch.relu(h))


class Called(nn.Module):
    """A part called with several arguments; the first of its results."""

    def __init__(self, part: nn.Module, count: int, **options: Any) -> None:
        super().__init__()
        self.part, self.count, self.options = part, count, options

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = self.part(*[x] * self.count, **self.options)
        return found[0] if isinstance(found, tuple) else found


class Lists(nn.Module):
    """Parameters in lists and dictionaries."""

    def __init__(self) -> None:
        super().__init__()
        self.items = nn.ParameterList([nn.Parameter(torch.randn(4)) for _ in range(2)])
        self.named = nn.ParameterDict({"gain": nn.Parameter(torch.randn(4))})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.items[0] + self.items[1] * self.named["gain"]


def in_place(x: torch.Tensor) -> torch.Tensor:
    y = x.clone()
    y[:, 0] = 1.0
    y.mul_(2)
    y[:, 1:3].zero_()
    y += x
    return y


def activations(x: torch.Tensor) -> torch.Tensor:
    kinds = (F.celu, F.selu, F.softsign, F.tanhshrink, F.hardshrink, F.softshrink, F.logsigmoid, F.mish, F.relu6)
    more = (F.hardswish, F.hardsigmoid, F.silu, F.gelu, F.softplus, F.elu, torch.sinc, torch.sign, F.threshold_)
    return torch.stack([f(2 * x) for f in (*kinds, *more[:-1])] + [F.threshold(x, 0.1, 2.0), F.rrelu(x)], 1)


def arithmetic(x: torch.Tensor) -> torch.Tensor:
    parts = [torch.addcmul(x, x, x, value=0.5), torch.addcdiv(x, x, x.abs() + 1), torch.lerp(x, -x, 0.3), x.frac()]
    parts += [x.clamp(min=-0.1), torch.hypot(x, x + 1), torch.xlogy(x, x.abs() + 1), torch.heaviside(x, x)]
    parts += [torch.nan_to_num(x), x.abs() ** 0.5, 2**x, x**2, 1 - x, 1 / (3 + x.abs()), x // 0.3, x % 0.3]
    parts += [torch.where(x > 0, x, -1.0), x.masked_fill(x < 0, 0.0), (x > 0).float(), torch.copysign(x, -x)]
    return torch.stack(parts, 1)


def reductions(x: torch.Tensor) -> torch.Tensor:
    parts = [x.std(1), x.var(1, unbiased=False), x.logsumexp(1), x.norm(dim=1), x.norm(p=1, dim=1), x.prod(1)]
    parts += [torch.linalg.norm(x, dim=1), x.max(1)[0], x.amin(1), x.aminmax(dim=1)[0], x.median(1)[0], x.mean(1)]
    parts += [x.kthvalue(2, 1)[0], x.topk(2)[0][:, 1], x.sort(1, descending=True)[0][:, 2], x.quantile(0.3, dim=1)]
    parts += [torch.trapezoid(x, dim=1), x.diff(dim=1).sum(1), x.argmax(1).float(), torch.std_mean(x, 1)[1]]
    return torch.stack(parts, 1)


def made(x: torch.Tensor) -> torch.Tensor:
    rows = [torch.linspace(0, 1, 4), torch.logspace(0, 1, 4), torch.arange(4), torch.diag(torch.arange(4.0))[2]]
    rows += [torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij")[0][1], torch.tensor([1.0, 2, 3, 4])]
    rows += [torch.kron(torch.eye(2), torch.ones(1, 2))[0], torch.ones(4, 4).tril()[2], x.new_tensor([1.0, 2, 3, 4])]
    return torch.stack([x * row.to(x.dtype) for row in rows], 1)


def moved(x: torch.Tensor) -> torch.Tensor:
    parts = [x.repeat_interleave(2, 1)[:, :4], x.roll(1, 1), x.flip(1), x[:, [0, 2, 1, 1]], x.unfold(1, 2, 1)[:, :, 0]]
    parts = [F.pad(p, (0, 4 - p.shape[1])) for p in parts] + [torch.rot90(x[:, None].tile(1, 4, 1), 1, (1, 2))[:, 0]]
    parts += [
        x[:, torch.arange(4) % 2],
        x.gather(1, x.argsort(1)),
        x[..., ::2].repeat(1, 2),
        x.view(-1, 2, 2).mT.flatten(1),
    ]
    return torch.stack([*parts, torch.cat(x.chunk(2, 1)[::-1], 1), *x[:, None].tensor_split(1, 1)[0].unbind(1)], 1)


def cumulative(x: torch.Tensor) -> torch.Tensor:
    return torch.stack([x.cumsum(1), x.cumprod(1), x.cummax(1)[0], torch.logcumsumexp(x, 1)], 1)


def resized(x: torch.Tensor) -> torch.Tensor:
    sizes = {"size": (5, 7)}, {"scale_factor": 2}, {"scale_factor": 1.7, "recompute_scale_factor": True}
    found = [F.interpolate(x, mode=mode, **size).flatten(1)
             for mode in ("nearest", "bilinear", "bicubic", "area", "nearest-exact") for size in sizes]  # fmt: skip
    return torch.cat([*found, F.interpolate(x, size=(9, 3), mode="bilinear", align_corners=True).flatten(1)], 1)


def pooled(x: torch.Tensor) -> torch.Tensor:
    parts = [F.max_pool2d(x, 3, 2, 1, ceil_mode=True), F.avg_pool2d(x, 3, 2, 1, count_include_pad=False)]
    parts += [F.adaptive_max_pool2d(x, 3), F.adaptive_avg_pool2d(x, (3, 5)), F.lp_pool2d(x, 2.0, 2), x.amax((2, 3))]
    parts += [F.unfold(x, 3, padding=1), F.fold(F.unfold(x, 3, padding=1), (8, 8), 3, padding=1)]
    return torch.cat([p.flatten(1) for p in parts], 1)


def padded(x: torch.Tensor) -> torch.Tensor:
    modes = ("constant", "reflect", "replicate", "circular")
    return torch.cat([F.pad(x, (1, 2, 2, 1), mode).flatten(1) for mode in modes], 1)


def vectors(n: int) -> torch.Tensor:
    return torch.randn(n, 4)


def sequences(n: int) -> torch.Tensor:
    return torch.randn(n, 6, 8)


def steps(n: int) -> torch.Tensor:
    return torch.randn(n, 6, 4)


def images(n: int) -> torch.Tensor:
    return torch.randn(n, 4, 8, 8)


def words(n: int) -> torch.Tensor:
    return torch.randint(0, 11, (n, 5))


def function(f: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[], nn.Module]:
    return lambda: Applied(f)


def attention(**options: Any) -> Callable[[], nn.Module]:
    return lambda: Called(nn.MultiheadAttention(8, 2, batch_first=True, **options), 3)


Draw = Callable[[int], torch.Tensor]
LAYERS: dict[str, tuple[Callable[[], nn.Module], Draw]] = {
    **{kind: (lambda kind=kind: Unrolled(kind), steps) for kind in ("LSTMCell", "GRUCell", "RNNCell")},
    "LSTM with projections": (lambda: Called(nn.LSTM(4, 6, 2, proj_size=3, batch_first=True), 1), steps),
    "RNN": (lambda: Called(nn.RNN(4, 6, 2, bidirectional=True, batch_first=True, nonlinearity="relu"), 1), steps),
    "GRU": (lambda: Called(nn.GRU(4, 6, 2, bidirectional=True, batch_first=True, bias=False), 1), steps),
    "no_grad": (Half, vectors),
    "lists of parameters": (Lists, vectors),
    "Transformer": (lambda: Called(nn.Transformer(8, 2, 1, 1, 16, batch_first=True), 2), sequences),
    "attention": (attention(), sequences),
    "attention with further keys": (attention(add_bias_kv=True, add_zero_attn=True), sequences),
    "causal attention": (function(lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True)), steps),
    "weight norm": (lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 5))), vectors),
    "spectral norm": (lambda: nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(4, 5))), vectors),
    "orthogonal": (lambda: nn.Sequential(nn.utils.parametrizations.orthogonal(nn.Linear(4, 4))), vectors),
    "transposed convolutions": (
        lambda: nn.Sequential(nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, groups=2), nn.ConvTranspose2d(6, 2, 2, dilation=2)),
        images,
    ),
    "convolutions": (
        lambda: nn.Sequential(
            nn.Conv2d(4, 6, 4, padding="same", dilation=2),
            nn.Conv2d(6, 6, 3, padding=1, groups=3, padding_mode="circular"),
            nn.Conv2d(6, 4, (1, 3), padding=(0, 1), padding_mode="reflect"),
        ),
        images,
    ),
    "one-dimensional": (
        lambda: nn.Sequential(
            nn.Conv1d(6, 4, 3), nn.BatchNorm1d(4), nn.MaxPool1d(2), nn.ConvTranspose1d(4, 3, 2), nn.AdaptiveAvgPool1d(3)
        ),
        sequences,
    ),
    "three-dimensional": (
        lambda: nn.Sequential(nn.Unflatten(1, (2, 2)), nn.Conv3d(2, 4, (1, 3, 3)), nn.BatchNorm3d(4), nn.AvgPool3d(2)),
        images,
    ),
    "shuffles": (
        lambda: nn.Sequential(nn.PixelShuffle(2), nn.PixelUnshuffle(4), nn.ChannelShuffle(2), nn.Softmax2d()),
        images,
    ),
    "norms of images": (
        lambda: nn.Sequential(
            nn.GroupNorm(2, 4),
            nn.InstanceNorm2d(4, affine=True),
            nn.InstanceNorm2d(4, track_running_stats=True),
            nn.LocalResponseNorm(3),
            nn.BatchNorm2d(4, affine=False),
            nn.PReLU(4),
        ),
        images,
    ),
    "norms": (lambda: nn.Sequential(nn.LayerNorm(4), nn.RMSNorm(4), nn.BatchNorm1d(4), nn.PReLU(), nn.GLU()), vectors),
    "normalised": (function(lambda x: F.normalize(x, dim=1) + F.softmin(x, 1) + F.log_softmax(x, -1)), vectors),
    "distances": (function(lambda x: torch.cdist(x, x.flip(1)) + F.cosine_similarity(x, 2 - x, 2)[:, :, None]), steps),
    "bags": (lambda: nn.EmbeddingBag(11, 4, mode="mean", padding_idx=1), words),
    "one-hot": (function(lambda t: F.one_hot(t, 11).float().mean(1)), words),
    "products": (
        function(lambda x: torch.einsum("bi,bj->bij", x, x) @ torch.linalg.inv(torch.eye(4) + x.abs()[:, None] * 0.1)),
        vectors,
    ),
    "booleans": (function(lambda t: t.float().mean(1, keepdim=True)), lambda n: torch.rand(n, 5) > 0.5),
    **{f.__name__: (function(f), vectors) for f in (in_place, activations, arithmetic, reductions, made, moved)},
    "cumulative": (function(cumulative), vectors),
    **{f.__name__: (function(f), images) for f in (resized, pooled, padded)},
}
"""A function that makes the module, and one that draws its inputs, by name."""
