"""Parts without tokens of their own: norms, activations, feed-forward layers, residuals, masks."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.benchmarks.fuzz_export.choices import Choices

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "elu": F.elu,
    "leaky": lambda x: F.leaky_relu(x, 0.1),
    "mish": F.mish,
    "hardswish": F.hardswish,
    "softplus": F.softplus,
    "tanh": torch.tanh,
    "squared": lambda x: F.relu(x) ** 2,
    "sine": lambda x: torch.sin(x) + 0.5 * x,
    "clamp": lambda x: x.clamp(-2, 2),
    "softsign": F.softsign,
}


class RootMeanSquare(nn.Module):
    """RMSNorm, written by hand."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


class ScaleNorm(nn.Module):
    """x / |x|, times one learned number."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(math.sqrt(width)))

    def forward(self, x: Tensor) -> Tensor:
        length: Tensor = torch.norm(x, dim=-1, keepdim=True)
        return self.scale * x / length.clamp(min=1e-5)


class Channels(nn.Module):
    """A norm over channels, (batch, width, length), on rows (batch, length, width)."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        rows: Tensor = self.norm(x.transpose(1, 2)).transpose(1, 2)
        return rows


def norm(choices: Choices, topic: str, width: int) -> nn.Module:
    """Returns a norm of rows; the rare ones mix the tokens."""
    name = choices.one(
        topic,
        ["layer", "rms", "nn_rms", "plain_layer", "none"],
        ["scale", "batch", "group", "instance"],
    )
    makers: dict[str, Callable[[], nn.Module]] = {
        "layer": lambda: nn.LayerNorm(width),
        "rms": lambda: RootMeanSquare(width),
        "nn_rms": lambda: nn.RMSNorm(width, eps=1e-6),
        "scale": lambda: ScaleNorm(width),
        "plain_layer": lambda: nn.LayerNorm(width, elementwise_affine=False),
        "none": nn.Identity,
        "batch": lambda: Channels(nn.BatchNorm1d(width)),
        "group": lambda: Channels(nn.GroupNorm(2, width)),
        "instance": lambda: Channels(nn.InstanceNorm1d(width)),
    }
    return makers[name]()


class FeedForward(nn.Module):
    """Rows to rows, each by itself."""

    def __init__(self, choices: Choices, topic: str, width: int) -> None:
        super().__init__()
        self.kind = choices.one(
            f"{topic}.ffn",
            ["two_linear", "swiglu", "conv1", "einsum", "bottleneck", "concat", "split"],
            ["glu", "experts", "reshape_pairs", "sort", "roll_channels", "top_channels"],
        )
        self.activation = ACTIVATIONS[choices.one(f"{topic}.act", list(ACTIVATIONS))]
        inner = width // 4 if self.kind == "bottleneck" else 2 * width
        self.first, self.second = nn.Linear(width, inner), nn.Linear(inner, width)
        self.gate = nn.Linear(width, inner)
        self.conv = nn.Conv1d(width, width, 1)
        self.both = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        rows: Tensor = getattr(self, f"_{self.kind}")(x)
        return rows

    def _two_linear(self, x: Tensor) -> Tensor:
        rows: Tensor = self.second(self.activation(self.first(x)))
        return rows

    _bottleneck = _two_linear

    def _glu(self, x: Tensor) -> Tensor:
        return F.glu(self.first(x), dim=-1)

    def _swiglu(self, x: Tensor) -> Tensor:
        rows: Tensor = self.second(self.activation(self.gate(x)) * self.first(x))
        return rows

    def _conv1(self, x: Tensor) -> Tensor:
        return self.activation(self.conv(x.permute(0, 2, 1))).permute(0, 2, 1)

    def _einsum(self, x: Tensor) -> Tensor:
        inner = self.activation(torch.einsum("bld,fd->blf", x, self.first.weight))
        return torch.einsum("blf,df->bld", inner, self.second.weight)

    def _concat(self, x: Tensor) -> Tensor:
        rows: Tensor = self.both(torch.cat([x, self.activation(x)], -1))
        return rows

    def _split(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        return torch.cat([self.activation(a) * b, a - b], -1)

    def _experts(self, x: Tensor) -> Tensor:
        outputs = torch.stack([self.second(self.first(x)), self.both(torch.cat([x, -x], -1))], -2)
        best = self.gate(x)[..., :2].argmax(-1)
        return outputs.gather(-2, best[..., None, None].expand(*best.shape, 1, x.shape[-1]))[
            ..., 0, :
        ]

    def _reshape_pairs(self, x: Tensor) -> Tensor:
        pairs = x.reshape(x.shape[0], x.shape[1], -1, 2)
        return (pairs * pairs.flip(-1)).reshape(x.shape)

    def _sort(self, x: Tensor) -> Tensor:
        return x.sort(-1).values

    def _roll_channels(self, x: Tensor) -> Tensor:
        return torch.roll(x, 3, -1)

    def _top_channels(self, x: Tensor) -> Tensor:
        return torch.where(x >= x.topk(4, -1).values[..., -1:], x, torch.zeros_like(x))


class Residual(nn.Module):
    """Adds the output of a part to its input."""

    def __init__(self, choices: Choices, topic: str, width: int) -> None:
        super().__init__()
        self.kind = choices.one(
            f"{topic}.residual", ["plain", "scaled", "gated", "concat", "rezero"], ["none"]
        )
        self.scale = nn.Parameter(torch.full((width,), 0.7))
        self.number = nn.Parameter(torch.tensor(0.8))
        self.gate, self.both = nn.Linear(width, width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor, added: Tensor) -> Tensor:
        if self.kind == "plain":
            return x + added
        if self.kind == "scaled":
            return torch.addcmul(x, added, self.scale)
        if self.kind == "rezero":
            return x + self.number * added
        if self.kind == "gated":
            share = torch.sigmoid(self.gate(x))
            return share * x + (1 - share) * added
        if self.kind == "concat":
            rows: Tensor = self.both(torch.cat([x, added], dim=-1))
            return rows
        return added


MASKS = ["triu", "tril", "arange", "banded", "dilated", "soft", "buffer"]
WRONG_MASKS = ["none", "triu_2", "blocks", "prefix", "anti", "pad_tokens", "from_end"]


def visible(kind: str, tokens: Tensor, largest: Tensor) -> Tensor:
    """Returns which keys a query sees, (length, length) or (batch, 1, length, length) bool.

    Args:
        kind: one of `MASKS` or `WRONG_MASKS`; those of `WRONG_MASKS` are mostly not causal.
        tokens: (batch, length).
        largest: a buffer of the causal mask at the largest length.
    """
    length = tokens.shape[1]
    query, key = torch.arange(length)[:, None], torch.arange(length)[None, :]
    causal = key <= query
    masks: dict[str, Callable[[], Tensor]] = {
        "triu": lambda: ~torch.ones(length, length, dtype=torch.bool).triu(1),
        "tril": lambda: torch.tril(torch.ones(length, length)).bool(),
        "arange": lambda: causal,
        "soft": lambda: causal,
        "buffer": lambda: largest[:length, :length],
        "banded": lambda: causal & (query - key < 3),
        "dilated": lambda: causal & ((query - key) % 2 == 0),
        "none": lambda: torch.ones(length, length, dtype=torch.bool),
        "triu_2": lambda: ~torch.ones(length, length, dtype=torch.bool).triu(2),
        "blocks": lambda: key // 3 <= query // 3,
        "prefix": lambda: causal | (key < 2),
        "anti": lambda: key >= query,
        "pad_tokens": lambda: (
            causal[None, None] & ((tokens != 0)[:, None, None, :] | (query == key)[None, None])
        ),
        "from_end": lambda: causal & (key >= length - 4) | (query == key),
    }
    return masks[kind]()
