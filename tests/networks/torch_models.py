"""Networks in plain PyTorch, in the manner of torchvision, of Hugging Face and of the tutorials."""

import math
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'landscape-jax[torch]'")
nn, F = torch.nn, torch.nn.functional


def normed_conv(inputs: int, outputs: int, size: int = 3, stride: int = 1, groups: int = 1, act: Any = None) -> Any:
    """Convolution, BatchNorm and an activation."""
    conv = nn.Conv2d(inputs, outputs, size, stride, (size - 1) // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), *([act] if act else []))


class BasicBlock(nn.Module):
    """ResNet's block of two convolutions, its additions in place."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = normed_conv(inputs, outputs, stride=stride), normed_conv(outputs, outputs)
        self.downsample = normed_conv(inputs, outputs, 1, stride) if stride > 1 or inputs != outputs else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.conv2(F.relu(self.conv1(x), inplace=True))
        out += x if self.downsample is None else self.downsample(x)
        return F.relu(out, inplace=True)


class ResNet18(nn.Module):
    """Four stages of two blocks, narrow."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.conv1, self.maxpool = normed_conv(3, width, 7, 2, act=nn.ReLU(inplace=True)), nn.MaxPool2d(3, 2, 1)
        widths = [width * 2**k for k in range(4)]
        blocks = [
            BasicBlock(widths[max(0, k - (j == 0))] if k else width, widths[k], 2 if k and j == 0 else 1)
            for k in range(4)
            for j in range(2)
        ]
        self.layers, self.avgpool, self.fc = (
            nn.Sequential(*blocks),
            nn.AdaptiveAvgPool2d((1, 1)),
            nn.Linear(8 * width, 5),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.flatten(self.avgpool(self.layers(self.maxpool(self.conv1(x)))), 1))


class VGG(nn.Module):
    """VGG with BatchNorm, adaptive pooling to 7 x 7 from fewer pixels, and dropout."""

    def __init__(self) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        inputs = 3
        for outputs in (4, "M", 6, "M", 8, 8, "M"):
            if outputs == "M":
                parts.append(nn.MaxPool2d(2, 2))
            else:
                parts += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(True)]
                inputs = outputs
        self.features, self.avgpool = nn.Sequential(*parts), nn.AdaptiveAvgPool2d((3, 3))
        self.classifier = nn.Sequential(
            nn.Linear(72, 16),
            nn.ReLU(True),
            nn.Dropout(),
            nn.Linear(16, 16),
            nn.ReLU(True),
            nn.Dropout(),
            nn.Linear(16, 5),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


class InvertedResidual(nn.Module):
    """MobileNet's block with squeeze and excitation."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        wide = 3 * inputs
        self.expand = normed_conv(inputs, wide, 1, act=nn.Hardswish())
        self.depthwise = normed_conv(wide, wide, 3, stride, wide, nn.ReLU6())
        self.squeeze, self.excite, self.gate = nn.Conv2d(wide, 4, 1), nn.Conv2d(4, wide, 1), nn.Hardsigmoid()
        self.project, self.skips = normed_conv(wide, outputs, 1), stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.depthwise(self.expand(x))
        y = y * self.gate(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(y, 1)))))
        y = self.project(y)
        return x + y if self.skips else y


class MobileNet(nn.Module):
    """Three inverted residuals."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = normed_conv(3, 6, stride=2, act=nn.Hardswish())
        self.blocks = nn.Sequential(InvertedResidual(6, 6, 1), InvertedResidual(6, 8, 2), InvertedResidual(8, 8, 1))
        self.head = nn.Sequential(nn.Dropout(0.2), nn.Linear(8, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.stem(x)).mean([2, 3]))


class ViT(nn.Module):
    """Patches by a convolution, a class token, PyTorch's own encoder."""

    def __init__(self, dim: int = 12) -> None:
        super().__init__()
        self.patches, self.token = nn.Conv2d(3, dim, 4, 4), nn.Parameter(torch.zeros(1, 1, dim))
        self.position = nn.Parameter(0.1 * torch.randn(1, 17, dim))
        layer = nn.TransformerEncoderLayer(dim, 3, 24, 0.1, F.gelu, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, nn.LayerNorm(dim), enable_nested_tensor=False)
        self.head = nn.Linear(dim, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1) + self.position
        return self.head(self.encoder(x)[:, 0])


class Conv1D(nn.Module):
    """GPT-2's linear layer, its weight transposed."""

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        self.outputs = outputs
        self.weight, self.bias = nn.Parameter(0.2 * torch.randn(inputs, outputs)), nn.Parameter(torch.zeros(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shape = (*x.size()[:-1], self.outputs)
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(shape)


class GPTBlock(nn.Module):
    """GPT-2's block: a causal mask as a buffer, gelu by tanh written out."""

    def __init__(self, dim: int, heads: int, length: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2, self.heads = nn.LayerNorm(dim), nn.LayerNorm(dim), heads
        self.c_attn, self.c_proj = Conv1D(3 * dim, dim), Conv1D(dim, dim)
        self.c_fc, self.mlp_proj, self.dropout = Conv1D(4 * dim, dim), Conv1D(dim, 4 * dim), nn.Dropout(0.1)
        mask = torch.tril(torch.ones(length, length, dtype=torch.bool)).view(1, 1, length, length)
        self.register_buffer("bias", mask, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, length, dim = x.shape
        q, k, v = self.c_attn(self.ln_1(x)).split(dim, dim=2)
        q, k, v = (t.view(n, length, self.heads, dim // self.heads).permute(0, 2, 1, 3) for t in (q, k, v))
        scores = torch.matmul(q, k.transpose(-1, -2)) / torch.full([], v.size(-1) ** 0.5, dtype=x.dtype)
        lowest = torch.full([], torch.finfo(scores.dtype).min, dtype=scores.dtype)
        scores = torch.where(self.bias[:, :, :length, :length], scores, lowest)
        mixed = torch.matmul(self.dropout(F.softmax(scores, dim=-1)), v)
        x = x + self.c_proj(mixed.permute(0, 2, 1, 3).contiguous().view(n, length, dim))
        h = self.c_fc(self.ln_2(x))
        h = 0.5 * h * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (h + 0.044715 * torch.pow(h, 3.0))))
        return x + self.mlp_proj(h)


class GPT(nn.Module):
    """Two blocks with tied embeddings; the logits after the last token."""

    def __init__(self, words: int = 11, dim: int = 12, length: int = 8) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(words, dim), nn.Embedding(length, dim)
        self.h = nn.ModuleList([GPTBlock(dim, 3, length) for _ in range(2)])
        self.ln_f, self.lm_head = nn.LayerNorm(dim), nn.Linear(dim, words, bias=False)
        self.lm_head.weight = self.wte.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        positions = torch.arange(0, tokens.size(-1), dtype=torch.long, device=tokens.device).unsqueeze(0)
        x = self.wte(tokens) + self.wpe(positions)
        for block in self.h:
            x = block(x)
        return self.lm_head(self.ln_f(x))[:, -1, :]


class LSTMClassifier(nn.Module):
    """Two bidirectional layers, read out from both last states."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 5, num_layers=2, batch_first=True, bidirectional=True, dropout=0.3)
        self.fc = nn.Linear(10, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        _, (h, _) = self.lstm(x)
        return self.fc(torch.cat([h[-2], h[-1]], dim=1))


class WordsGRU(nn.Module):
    """Embedding, GRU with an initial state of its own making, mean over time."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.gru = nn.Embedding(11, 4, padding_idx=0), nn.GRU(4, 6, batch_first=True)
        self.out = nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 5))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        states, _ = self.gru(self.embedding(tokens), torch.zeros(1, tokens.size(0), 6, device=tokens.device))
        return self.out(states.mean(1))


class TutorialCNN(nn.Module):
    """PyTorch's basic MNIST example, narrow: dropout, flatten, log-softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 4, 3, 1), nn.Conv2d(4, 8, 3, 1)
        self.dropout1, self.dropout2 = nn.Dropout(0.25), nn.Dropout(0.5)
        self.norm, self.fc1, self.fc2 = nn.BatchNorm2d(8), nn.Linear(8 * 144, 16), nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.norm(self.conv2(F.relu(self.conv1(x)))))
        x = torch.flatten(self.dropout1(F.max_pool2d(x, 2)), 1)
        return F.log_softmax(self.fc2(self.dropout2(F.relu(self.fc1(x)))), dim=1)


def images(n: int, size: int = 16) -> torch.Tensor:
    """Random photographs."""
    return torch.randn(n, 3, size, size)


def tokens(n: int) -> torch.Tensor:
    """Random words."""
    return torch.randint(0, 11, (n, 8))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], torch.Tensor]]] = {
    "ResNet-18": (ResNet18, images),
    "VGG with BatchNorm": (VGG, images),
    "MobileNet": (MobileNet, images),
    "ViT": (ViT, images),
    "GPT": (GPT, tokens),
    "LSTM": (LSTMClassifier, lambda n: torch.randn(n, 7, 4)),
    "Embedding and GRU": (WordsGRU, tokens),
}
"""Class and random inputs, by name."""


def trained(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    """A module as training leaves it: every parameter and every statistic away from its initial value."""
    torch.manual_seed(seed)
    module = make()
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.1 * torch.randn_like(p))
        for name, buffer in module.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(0, 0.2)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)
    return module.eval()
