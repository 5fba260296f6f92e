"""Decoder-only models, where the memory precedes the tokens on the same axis."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models.zoo.captioner import LAYERS, WIDTH, Captioner
from tests.models.zoo.handwritten_decoders import heads

PREFIX_POSITIONS = 120


class MaskedBlock(nn.Module):
    """Self-attention over prefix and tokens with a mask, and a feed-forward network."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = (heads(t) for t in self.qkv(self.norm1(x)).chunk(3, dim=-1))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        rows: Tensor = x + self.mlp(self.norm2(x))
        return rows


class PrefixDecoder(Captioner):
    """A decoder of image tokens followed by text tokens; it returns logits of the text alone.

    Args:
        bidirectional: whether image tokens attend to all image tokens; if not, the mask is causal.
    """

    def __init__(self, *, bidirectional: bool = False) -> None:
        super().__init__()
        self.bidirectional = bidirectional
        self.positions = nn.Parameter(torch.randn(1, PREFIX_POSITIONS, WIDTH))
        self.blocks = nn.ModuleList(MaskedBlock() for _ in range(LAYERS))
        self.norm = nn.LayerNorm(WIDTH)

    def decode(self, tokens: Tensor, memory: Tensor) -> Tensor:
        prefix = memory.shape[1]
        x = torch.cat([memory, self.embedding(tokens)], dim=1)
        x = x + self.positions[:, : x.shape[1]]
        mask = self.mask(prefix, x.shape[1])
        for block in self.blocks:
            x = block(x, mask)
        logits: Tensor = self.head(self.norm(x[:, prefix:]))
        return logits

    def mask(self, prefix: int, length: int) -> Tensor | None:
        """Returns a boolean mask (length, length) of visible keys; None for a causal mask."""
        if not self.bidirectional:
            return None
        past = torch.ones(length, length, dtype=torch.bool).tril()
        return past | (torch.arange(length) < prefix)
