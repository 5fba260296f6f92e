"""The common parts of the zoo's decoders: sizes, input projection, embedding, positions, head."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

VOCABULARY = 97
WIDTH = 48
HEADS = 4
HIDDEN = 96
LAYERS = 2
POSITIONS = 80
FEATURES = 24


class Captioner(nn.Module):
    """A linear encoder of features (batch, size, FEATURES); subclasses define `decode`."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(FEATURES, WIDTH)
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def encode(self, features: Tensor) -> Tensor:
        memory: Tensor = torch.tanh(self.project(features))
        return memory


class LearnedPositions(nn.Module):
    """One learned vector per position, looked up by number."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(POSITIONS, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        steps = torch.arange(x.shape[1], device=x.device)
        rows: Tensor = x + self.table(steps)
        return rows


class ParameterPositions(nn.Module):
    """One learned vector per position, sliced from a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(1, POSITIONS, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.table[:, : x.size(1)]


class SinusoidalPositions(nn.Module):
    """The positional encoding of PyTorch's tutorials: a buffer, then dropout."""

    pe: Tensor

    def __init__(self, *, batch_first: bool = True) -> None:
        super().__init__()
        self.batch_first = batch_first
        self.dropout = nn.Dropout(0.1)
        position = torch.arange(POSITIONS).unsqueeze(1)
        rates = torch.exp(torch.arange(0, WIDTH, 2) * (-math.log(10000.0) / WIDTH))
        pe = torch.zeros(POSITIONS, 1, WIDTH)
        pe[:, 0, 0::2] = torch.sin(position * rates)
        pe[:, 0, 1::2] = torch.cos(position * rates)
        self.register_buffer("pe", pe.transpose(0, 1) if batch_first else pe)

    def forward(self, x: Tensor) -> Tensor:
        table = self.pe[:, : x.size(1)] if self.batch_first else self.pe[: x.size(0)]
        rows: Tensor = self.dropout(x + table)
        return rows


class RMSNorm(nn.Module):
    """Root mean square norm as in LLaMA."""

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        scale = torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + self.eps)
        return (x.float() * scale).type_as(x) * self.weight


class SwiGLU(nn.Module):
    """A gated feed-forward network."""

    def __init__(self, width: int = WIDTH, hidden: int = HIDDEN) -> None:
        super().__init__()
        self.gate = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(nn.functional.silu(self.gate(x)) * self.up(x))
        return y
