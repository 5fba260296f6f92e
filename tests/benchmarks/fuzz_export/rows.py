"""One more operation on the rows of tokens, written as users write such things."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from tests.benchmarks.fuzz_export.choices import Choices

_EXPERTS = 3


class RowOperation(nn.Module):
    """Rows (batch, length, width) to rows; it may read the tokens and the memory too.

    Args:
        choices: draws the operation.
        topic: name of the choice.
        width: width of the rows.
        vocabulary: number of tokens.
    """

    def __init__(self, choices: Choices, topic: str, width: int, vocabulary: int) -> None:
        super().__init__()
        self.kind = choices.one(
            topic, ["nothing", *_ON_CHANNELS, *_ON_TOKENS], [*_ALONG_TOKENS, *_NO_ONNX]
        )
        self.vocabulary, self.width = vocabulary, width
        self.linear, self.gate = nn.Linear(width, width), nn.Linear(width, _EXPERTS)
        self.experts = nn.Parameter(torch.randn(_EXPERTS, width, width) / width**0.5)
        self.bilinear = nn.Bilinear(width, width, width)
        self.words, self.more = nn.Embedding(vocabulary, width), nn.Embedding(7, width)
        self.normed = parametrizations.weight_norm(nn.Linear(width, width))
        self.cell = nn.GRUCell(width, width)
        self.prototypes = nn.Parameter(torch.randn(5, width))
        self.register_buffer("weights", torch.linspace(0.5, 1.5, vocabulary))
        self.register_buffer("steps", torch.linspace(-1, 1, 9))

    def forward(self, x: Tensor, tokens: Tensor, memory: Tensor) -> Tensor:
        operations = _ON_CHANNELS | _ON_TOKENS | _ALONG_TOKENS | _NO_ONNX
        if self.kind == "nothing":
            return x
        return operations[self.kind](self, x, tokens, memory)


Operation = Callable[[RowOperation, Tensor, Tensor, Tensor], Tensor]


def _experts_loop(self: RowOperation, x: Tensor, tokens: Tensor, memory: Tensor) -> Tensor:
    shares, chosen = self.gate(x).softmax(-1).topk(2, -1)
    out = torch.zeros_like(x)
    for index in range(_EXPERTS):
        share = (shares * (chosen == index)).sum(-1, keepdim=True)
        out = out + share * torch.tanh(x @ self.experts[index])
    return x + out


def _experts_einsum(self: RowOperation, x: Tensor, tokens: Tensor, memory: Tensor) -> Tensor:
    shares = self.gate(x).softmax(-1)
    return x + torch.einsum("ble,bld,edf->blf", shares, x, self.experts)


def _in_place_channel(self: RowOperation, x: Tensor, tokens: Tensor, memory: Tensor) -> Tensor:
    x = x.clone()
    x[..., 0] = x[..., 1] * 2
    x[..., 2:4] += 0.5
    return x.mul_(0.9)


def _scatter(self: RowOperation, x: Tensor, tokens: Tensor, memory: Tensor) -> Tensor:
    ones = torch.zeros(*tokens.shape, self.vocabulary)
    ones.scatter_(-1, tokens[..., None], 1.0)
    rows: Tensor = x + ones @ self.words.weight
    return rows


def _previous_token(self: RowOperation, x: Tensor, tokens: Tensor, memory: Tensor) -> Tensor:
    before = F.pad(tokens[:, :-1], (1, 0), value=1)
    rows: Tensor = x + self.words(before)
    return rows


def _previous_cat(self: RowOperation, x: Tensor, tokens: Tensor, memory: Tensor) -> Tensor:
    before = torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], 1)
    rows: Tensor = x + self.linear(before)
    return rows


def _bigram(self: RowOperation, x: Tensor, tokens: Tensor, memory: Tensor) -> Tensor:
    before = torch.cat([torch.ones_like(tokens[:, :1]), tokens[:, :-1]], 1)
    rows: Tensor = x + self.more((tokens * 3 + before) % 7)
    return rows


def _in_place_first_row(self: RowOperation, x: Tensor, tokens: Tensor, memory: Tensor) -> Tensor:
    x = x.clone()
    x[:, 0] = x[:, 0] + self.words.weight[0]
    return x


def _rolled(self: RowOperation, x: Tensor, tokens: Tensor, memory: Tensor) -> Tensor:
    rows = torch.roll(x, 1, 1)
    return x + torch.cat([torch.zeros_like(rows[:, :1]), rows[:, 1:]], 1)


def _tokens_in_place(self: RowOperation, x: Tensor, tokens: Tensor, memory: Tensor) -> Tensor:
    tokens.clamp_(max=6)
    rows: Tensor = x + self.more(tokens)
    return rows


_ON_CHANNELS: dict[str, Operation] = {
    "glu": lambda s, x, t, m: x + F.glu(torch.cat([x, s.linear(x)], -1), -1),
    "cumsum": lambda s, x, t, m: x.cumsum(-1) / s.width**0.5,
    "topk": lambda s, x, t, m: x + x.topk(3, -1).values.sum(-1, keepdim=True) / 3,
    "sorted": lambda s, x, t, m: x + x.sort(-1, descending=True).values,
    "argsort": lambda s, x, t, m: x + x.gather(-1, x.argsort(-1)),
    "bilinear": lambda s, x, t, m: x + s.bilinear(x, torch.tanh(x)),
    "weight_norm": lambda s, x, t, m: x + s.normed(x),
    "prototypes": lambda s, x, t, m: (
        x + ((x[..., None, :] - s.prototypes) ** 2).sum(-1).softmax(-1) @ s.prototypes
    ),
    "std": lambda s, x, t, m: (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 0.1),
    "logsumexp": lambda s, x, t, m: x - 0.1 * x.logsumexp(-1, keepdim=True),
    "l1": lambda s, x, t, m: F.normalize(x, p=1.0, dim=-1) * 8,
    "unfold": lambda s, x, t, m: F.pad(x, (1, 1)).unfold(-1, 3, 1).mean(-1),
    "conv_channels": lambda s, x, t, m: F.conv2d(
        x[:, None], s.prototypes[None, None, :1, :3], padding=(0, 1)
    )[:, 0],
    "pool_channels": lambda s, x, t, m: x + F.avg_pool1d(x, 3, 1, 1),
    "where": lambda s, x, t, m: torch.where(x > 0, x, 0.2 * x),
    "masked_fill": lambda s, x, t, m: x.masked_fill(x.abs() > 3, 3.0),
    "round": lambda s, x, t, m: x + 0.1 * (x * 4 + 0.37).floor(),
    "flat_linear": lambda s, x, t, m: s.linear(x.reshape(-1, s.width)).view_as(x) + x,
    "einsum": lambda s, x, t, m: x + torch.einsum("...d,fd->...f", x, s.linear.weight),
    "outer": lambda s, x, t, m: x + (x[..., :4, None] * x[..., None, :4]).sum((-1, -2))[..., None],
    "cell": lambda s, x, t, m: s.cell(x.flatten(0, 1), torch.zeros_like(x.flatten(0, 1))).view(
        x.shape
    ),
    "experts_loop": _experts_loop,
    "experts_einsum": _experts_einsum,
    "in_place": _in_place_channel,
}
"""Operations that look at one row only."""

_ON_TOKENS: dict[str, Operation] = {
    "one_hot": lambda s, x, t, m: x + F.one_hot(t, s.vocabulary).float() @ s.words.weight,
    "lookup": lambda s, x, t, m: x + s.words.weight[t],
    "index_select": lambda s, x, t, m: (
        x + s.words.weight.index_select(0, t.flatten()).view(x.shape)
    ),
    "weights": lambda s, x, t, m: x * s.get_buffer("weights")[t][..., None],
    "where_token": lambda s, x, t, m: torch.where((t == 3)[..., None], x * 0.5, x),
    "where_range": lambda s, x, t, m: x + ((t > 4) & (t < 9)).float()[..., None],
    "isin": lambda s, x, t, m: x * torch.isin(t, torch.tensor([1, 4, 6]))[..., None].float().add(1),
    "remainder": lambda s, x, t, m: x + s.more(t % 7),
    "shifted_ids": lambda s, x, t, m: x + s.words(torch.clamp(t - 1, min=0)),
    "int32": lambda s, x, t, m: x + s.words(t.to(torch.int32)),
    "scatter": _scatter,
    "by_memory": lambda s, x, t, m: x * torch.sigmoid(m.mean(1, keepdim=True)),
    "memory_first": lambda s, x, t, m: x + s.linear(m[:, :1]),
    "memory_max": lambda s, x, t, m: x + m.amax(1)[:, None],
}
"""Operations that read the row's own token, or the memory."""

_NO_ONNX: dict[str, Operation] = {
    "cdist": lambda s, x, t, m: x + torch.cdist(x, s.prototypes).softmax(-1) @ s.prototypes,
    "bucketize": lambda s, x, t, m: (
        x + s.more(torch.bucketize(x[..., 0].contiguous(), s.get_buffer("steps")) % 7)
    ),
}
"""Operations that PyTorch's exporter does not translate."""

_ALONG_TOKENS: dict[str, Operation] = {
    "previous_token": _previous_token,
    "previous_row": _previous_cat,
    "bigram": _bigram,
    "first_row": lambda s, x, t, m: x + s.linear(x[:, :1]),
    "first_token": lambda s, x, t, m: x + s.words(t[:, :1]),
    "in_place_first": _in_place_first_row,
    "rolled": _rolled,
    "tokens_in_place": _tokens_in_place,
    "count": lambda s, x, t, m: x + 0.1 * (t == 3).cumsum(1)[..., None],
    "cummax": lambda s, x, t, m: x + x.cummax(1).values,
    "running_mean": lambda s, x, t, m: x.cumsum(1) / torch.arange(1, t.shape[1] + 1)[:, None],
    "tril_matmul": lambda s, x, t, m: (
        x + torch.ones(t.shape[1], t.shape[1]).tril() @ x / t.shape[1]
    ),
    "memory_by_token": lambda s, x, t, m: x + m[torch.arange(len(t))[:, None], t % m.shape[1]],
}
"""Operations that read the tokens before, which few models do and fewer can be exported with."""
