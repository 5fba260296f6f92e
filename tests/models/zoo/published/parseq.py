"""PARSeq: a decoder of two streams, whose queries are positions and whose keys are tokens."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models.zoo.captioner import HEADS, HIDDEN, POSITIONS, VOCABULARY, WIDTH
from tests.models.zoo.case import build
from tests.models.zoo.published.case_makers import lines_of_text


class TwoStreamLayer(nn.Module):
    """One layer for the stream of queries and, unless it is the last, the stream of content."""

    def __init__(self) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.cross_attn = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.linear1, self.linear2 = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.norm_q, self.norm_c = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.dropout = nn.Dropout(0.1)

    def stream(
        self, rows: Tensor, normed: Tensor, keys: Tensor, memory: Tensor, mask: Tensor,
        padding: Tensor | None,
    ) -> Tensor:  # fmt: skip
        mixed, _ = self.self_attn(normed, keys, keys, attn_mask=mask, key_padding_mask=padding)
        rows = rows + self.dropout(mixed)
        mixed, _ = self.cross_attn(self.norm1(rows), memory, memory)
        rows = rows + self.dropout(mixed)
        hidden = self.dropout(F.gelu(self.linear1(self.norm2(rows))))
        updated: Tensor = rows + self.dropout(self.linear2(hidden))
        return updated

    def forward(
        self, query: Tensor, content: Tensor, memory: Tensor, mask: Tensor,
        padding: Tensor | None, *, last: bool,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        normed_query, normed = self.norm_q(query), self.norm_c(content)
        query = self.stream(query, normed_query, normed, memory, mask, padding)
        if not last:
            content = self.stream(content, normed, normed, memory, mask, padding)
        return query, content


class Parseq(nn.Module):
    """A ViT encoder and the decoder of two streams; the head has no <bos> and no <pad>.

    Args:
        padding: id of the padding token, which no token sees; None for no padding mask.
        depth: number of decoder layers.
        cut: whether the tokens are cut into <bos> and the rest, as published, to which positions
            are added; if not, a row of zeros stands before the positions.
    """

    def __init__(
        self, *, padding: int | None = VOCABULARY - 1, depth: int = 2, cut: bool = True
    ) -> None:
        super().__init__()
        self.padding, self.cut = padding, cut
        self.patch_embed = nn.Conv2d(3, WIDTH, (4, 8), (4, 8))
        self.pos_embed = nn.Parameter(torch.randn(1, 16, WIDTH) * 0.1)
        layer = nn.TransformerEncoderLayer(
            WIDTH, HEADS, HIDDEN, batch_first=True, norm_first=True, activation="gelu"
        )
        self.encoder = nn.TransformerEncoder(
            layer, 1, norm=nn.LayerNorm(WIDTH), enable_nested_tensor=False
        )
        self.layers = nn.ModuleList(TwoStreamLayer() for _ in range(depth))
        self.norm = nn.LayerNorm(WIDTH)
        self.text_embed = nn.Embedding(VOCABULARY, WIDTH)
        self.pos_queries = nn.Parameter(torch.randn(1, POSITIONS, WIDTH))
        self.head = nn.Linear(WIDTH, VOCABULARY - 2)

    def encode(self, image: Tensor) -> Tensor:
        patches = self.patch_embed(image).flatten(2).transpose(1, 2)
        memory: Tensor = self.encoder(patches + self.pos_embed)
        return memory

    def decode(self, tokens: Tensor, memory: Tensor) -> Tensor:
        batch, length = tokens.shape
        mask = torch.triu(torch.ones((length, length), dtype=torch.bool), 1)
        padding = None if self.padding is None else tokens == self.padding
        content = self.content(tokens)
        query = self.pos_queries[:, :length].expand(batch, -1, -1)
        for number, layer in enumerate(self.layers, 1):
            last = number == len(self.layers)
            query, content = layer(query, content, memory, mask, padding, last=last)
        logits: Tensor = self.head(self.norm(query))
        return logits

    def content(self, tokens: Tensor) -> Tensor:
        """Returns the embedded tokens with their positions, but none for <bos>."""
        length, scale = tokens.shape[1], math.sqrt(WIDTH)
        if self.cut:
            bos = scale * self.text_embed(tokens[:, :1])
            rest = self.pos_queries[:, : length - 1] + scale * self.text_embed(tokens[:, 1:])
            return torch.cat([bos, rest], dim=1)
        none = torch.zeros_like(self.pos_queries[:, :1])
        positions = torch.cat([none, self.pos_queries], dim=1)[:, :length]
        rows: Tensor = scale * self.text_embed(tokens) + positions
        return rows


CASES = (
    lines_of_text("parseq", Parseq, sizes=(32,)),
    lines_of_text("parseq-one-layer", build(Parseq, padding=None, depth=1), sizes=(32,)),
    lines_of_text("parseq-row-of-zeros", build(Parseq, cut=False), sizes=(32,)),
)
