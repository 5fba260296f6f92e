"""Hand-written decoders: blocks, cross-attention, heads and gates around self-attentions."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models.zoo.captioner import (
    HEADS,
    HIDDEN,
    LAYERS,
    VOCABULARY,
    WIDTH,
    Captioner,
    LearnedPositions,
    ParameterPositions,
    RMSNorm,
    SwiGLU,
)
from tests.models.zoo.self_attentions import SIZE, Fused


class CrossAttention(nn.Module):
    """Queries come from the tokens, keys and values from the memory by one projection."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.pair = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        k, v = (heads(t) for t in self.pair(memory).chunk(2, dim=-1))
        mixed = F.scaled_dot_product_attention(heads(self.query(x)), k, v)
        rows: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return rows


class WrittenOutCrossAttention(CrossAttention):
    """CrossAttention with matmul and softmax."""

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        k, v = (heads(t) for t in self.pair(memory).chunk(2, dim=-1))
        scores = torch.matmul(heads(self.query(x)), k.transpose(-1, -2)) / SIZE**0.5
        mixed = torch.matmul(torch.softmax(scores, dim=-1), v)
        batch, _, length, _ = mixed.shape
        rows: Tensor = self.out(mixed.permute(0, 2, 1, 3).reshape(batch, length, WIDTH))
        return rows


class Block(nn.Module):
    """Self-attention, cross-attention, feed-forward, each with a norm before and a residual."""

    def __init__(self, attention: nn.Module, cross: nn.Module) -> None:
        super().__init__()
        self.attention, self.cross = attention, cross
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(WIDTH) for _ in range(3))
        self.mlp = nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, WIDTH))

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        x = x + self.cross(self.norm2(x), memory)
        rows: Tensor = x + self.mlp(self.norm3(x))
        return rows


class ParallelBlock(nn.Module):
    """Attention and feed-forward in parallel after one RMS norm, as in GPT-J and PaLM."""

    def __init__(self, attention: nn.Module, cross: nn.Module) -> None:
        super().__init__()
        self.attention, self.cross, self.feed_forward = attention, cross, SwiGLU()
        self.norm = RMSNorm(WIDTH)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        normed = self.norm(x)
        mixed = self.attention(normed) + self.cross(normed, memory)
        rows: Tensor = x + mixed + self.feed_forward(normed)
        return rows


class GatedBlock(nn.Module):
    """Flamingo's block: cross-attention with a tanh gate before the language model's block."""

    def __init__(self, attention: nn.Module, cross: nn.Module) -> None:
        super().__init__()
        self.block = Block(attention, nn.Identity())
        self.cross, self.norm = cross, nn.LayerNorm(WIDTH)
        self.attn_gate = nn.Parameter(torch.tensor([0.5]))
        self.ff_gate = nn.Parameter(torch.tensor([0.5]))
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(WIDTH), nn.Linear(WIDTH, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, WIDTH)
        )

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        x = x + self.cross(self.norm(x), memory) * self.attn_gate.tanh()
        x = x + self.feed_forward(x) * self.ff_gate.tanh()
        x = x + self.block.attention(self.block.norm1(x))
        rows: Tensor = x + self.block.mlp(self.block.norm3(x))
        return rows


class HandWrittenDecoder(Captioner):
    """Blocks of one kind around self-attentions of one kind.

    Args:
        attention: builds the self-attention of a block.
        cross: builds the cross-attention of a block.
        block: builds a block from both.
        positions: builds the module that adds positions to the embedded tokens.
    """

    def __init__(
        self,
        attention: Callable[[], nn.Module] = Fused,
        *,
        cross: Callable[[], nn.Module] = CrossAttention,
        block: Callable[[nn.Module, nn.Module], nn.Module] = Block,
        positions: Callable[[], nn.Module] = LearnedPositions,
    ) -> None:
        super().__init__()
        self.positions = positions()
        self.blocks = nn.ModuleList(block(attention(), cross()) for _ in range(LAYERS))
        self.norm = nn.LayerNorm(WIDTH)

    def decode(self, tokens: Tensor, memory: Tensor) -> Tensor:
        logits: Tensor = self.head(self.hidden(tokens, memory))
        return logits

    def hidden(self, tokens: Tensor, memory: Tensor) -> Tensor:
        """Returns the hidden states before the head, (batch, length, WIDTH)."""
        x = self.positions(self.embedding(tokens))
        for block in self.blocks:
            x = block(x, memory)
        rows: Tensor = self.norm(x)
        return rows


class TwoHeads(HandWrittenDecoder):
    """A decoder with logits of the next token and of the one after it."""

    def __init__(self) -> None:
        super().__init__(positions=ParameterPositions)
        self.second = nn.Linear(WIDTH, VOCABULARY)

    def decode(self, tokens: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        rows = self.hidden(tokens, memory)
        return self.head(rows), self.second(rows)


class MeanPooledMemory(HandWrittenDecoder):
    """A decoder without cross-attention: the mean of the memory is added to every token."""

    def __init__(self) -> None:
        super().__init__(block=SelfOnlyBlock)

    def decode(self, tokens: Tensor, memory: Tensor) -> Tensor:
        x = self.positions(self.embedding(tokens)) + memory.mean(dim=1, keepdim=True)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x))
        return logits


class SelfOnlyBlock(nn.Module):
    """A block without cross-attention."""

    def __init__(self, attention: nn.Module, cross: nn.Module | None = None) -> None:
        super().__init__()
        self.attention, self.norm1, self.norm2 = attention, nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        rows: Tensor = x + self.mlp(self.norm2(x))
        return rows


def heads(x: Tensor) -> Tensor:
    """Returns x (batch, length, width) as (batch, heads, length, size)."""
    return x.view(x.shape[0], x.shape[1], HEADS, -1).transpose(1, 2)
