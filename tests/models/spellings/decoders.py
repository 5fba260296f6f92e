"""A decoder of one layer whose rows, self-attention or logits others spell in other ways."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models.zoo.captioner import (
    HEADS,
    HIDDEN,
    VOCABULARY,
    WIDTH,
    Captioner,
    LearnedPositions,
)
from tests.models.zoo.handwritten_decoders import CrossAttention
from tests.models.zoo.self_attentions import Fused

PAD = 3


class Spelled(Captioner):
    """A decoder of one layer; subclasses override one of its methods.

    Args:
        attention: builds the self-attention.
    """

    def __init__(self, attention: Callable[[], nn.Module] = Fused) -> None:
        super().__init__()
        self.positions, self.cross = LearnedPositions(), CrossAttention()
        self.attention = attention()
        self.norm = nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN // 2, WIDTH)
        self.pair = nn.Parameter(torch.randn(VOCABULARY, WIDTH))

    def decode(self, tokens: Tensor, memory: Tensor) -> Tensor:
        x = self.rows(self.positions(self.embed(tokens)), tokens)
        x = x + self.attention(x)
        x = x + self.cross(x, memory)
        return self.logits(self.rows(self.norm(x), tokens), tokens, memory)

    def embed(self, tokens: Tensor) -> Tensor:
        """Returns the embedded tokens, (batch, length, WIDTH)."""
        rows: Tensor = self.embedding(tokens)
        return rows

    def rows(self, x: Tensor, tokens: Tensor) -> Tensor:
        """Returns rows of the shape of `x`, (batch, length, WIDTH)."""
        return x

    def logits(self, x: Tensor, tokens: Tensor, memory: Tensor) -> Tensor:
        """Returns the logits of rows (batch, length, WIDTH)."""
        logits: Tensor = self.head(x)
        return logits


class Experts(Spelled):
    """Four experts; each row takes two of them, by one of three spellings."""

    def __init__(self, spelling: str) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDTH, 4)
        self.experts = nn.Parameter(torch.randn(4, WIDTH, WIDTH) / 10)
        self.spelling = spelling

    def rows(self, x: Tensor, tokens: Tensor) -> Tensor:
        scores = self.gate(x)
        values, places = scores.topk(2, dim=-1)
        every = torch.einsum("bld,edh->bleh", x, self.experts)
        if self.spelling == "dense":
            return torch.einsum("ble,bleh->blh", scores.softmax(-1), every)
        if self.spelling == "masked":
            kept = scores.masked_fill(scores < values[..., -1:], float("-inf")).softmax(-1)
            return torch.einsum("ble,bleh->blh", kept, every)
        if self.spelling == "scattered":
            kept = torch.full_like(scores, float("-inf")).scatter(-1, places, values).softmax(-1)
            return torch.einsum("ble,bleh->blh", kept, every)
        if self.spelling == "one-hot":
            chosen = F.one_hot(places, 4).to(x.dtype)  # (batch, length, 2, 4)
            kept = (values.softmax(-1).unsqueeze(-1) * chosen).sum(-2)
            return torch.einsum("ble,bleh->blh", kept, every)
        gathered = every.gather(2, places.unsqueeze(-1).expand(*places.shape, WIDTH))
        mixed: Tensor = (values.softmax(-1).unsqueeze(-1) * gathered).sum(2)
        return mixed


class Registers(Spelled):
    """Learned rows before the tokens, which every token sees."""

    def __init__(self) -> None:
        super().__init__()
        self.registers = nn.Parameter(torch.randn(1, 3, WIDTH))

    def decode(self, tokens: Tensor, memory: Tensor) -> Tensor:
        registers = self.registers.expand(tokens.shape[0], -1, -1)
        x = torch.cat([registers, self.positions(self.embedding(tokens))], dim=1)
        x = x + self.attention(x)
        x = x + self.cross(x, memory)
        logits: Tensor = self.head(self.norm(x[:, 3:]))
        return logits


class NoSelfAttention(Spelled):
    """Rows that read the memory alone, so that nothing is cached.

    Args:
        prefix: whether the rows of the memory stand before those of the tokens too.
    """

    def __init__(self, *, prefix: bool) -> None:
        super().__init__()
        self.prefix = prefix

    def decode(self, tokens: Tensor, memory: Tensor) -> Tensor:
        x = self.embedding(tokens)
        if self.prefix:
            before = memory.mean(2, keepdim=True).expand(-1, -1, x.shape[2])
            x = torch.cat([before, x], dim=1)[:, memory.shape[1] :]
        logits: Tensor = self.head(self.norm(x + self.cross(x, memory)))
        return logits


class IntegerMask(Spelled):
    """A mask made of sums of integers: later tokens and padding keys are positive.

    Args:
        only_causal: whether the padding is constant.
    """

    def __init__(self, *, only_causal: bool) -> None:
        super().__init__(lambda: nn.Linear(WIDTH, WIDTH))
        self.only_causal = only_causal

    def decode(self, tokens: Tensor, memory: Tensor) -> Tensor:
        x, length = self.positions(self.embedding(tokens)), tokens.shape[1]
        future = torch.triu(torch.ones(length, length, dtype=torch.uint8), diagonal=1)
        padding = torch.zeros_like(tokens) if self.only_causal else tokens.eq(PAD)
        hidden = (future + padding.unsqueeze(1)).gt(0)  # (batch, length, length)
        k = self.attention(x)
        scores = (x @ k.transpose(1, 2) / WIDTH).masked_fill(hidden, -1e9)
        x = x + scores.softmax(-1) @ k
        return self.logits(x + self.cross(x, memory), tokens, memory)


class PositionQueries(Spelled):
    """PARSeq's decoder: the queries are a table per position, keys and values are the tokens.

    Args:
        fused: whether the attention returns no weights, so that it is one operator.
    """

    def __init__(self, *, fused: bool) -> None:
        super().__init__(lambda: nn.MultiheadAttention(WIDTH, HEADS, batch_first=True))
        self.fused = fused

    def decode(self, tokens: Tensor, memory: Tensor) -> Tensor:
        x, length = self.positions(self.embedding(tokens)), tokens.shape[1]
        queries = self.norm(self.pair[:length].expand(tokens.shape[0], -1, -1))
        future = torch.ones(length, length, dtype=torch.bool).triu(1)
        x = (
            queries
            + self.attention(queries, x, x, attn_mask=future, need_weights=not self.fused)[0]
        )
        return self.logits(x + self.cross(x, memory), tokens, memory)
