"""Decoders made of torch.nn: TransformerDecoder, Transformer and MultiheadAttention."""

from __future__ import annotations

import math

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
    SinusoidalPositions,
    SwiGLU,
)


class TorchDecoder(Captioner):
    """nn.TransformerDecoder, batch first, with a float mask.

    Args:
        norm_first: whether each norm stands before its block.
        activation: activation of the feed-forward network.
        final_norm: whether a norm follows the last layer.
        hint: value of `tgt_is_causal`.
    """

    def __init__(
        self,
        *,
        norm_first: bool = False,
        activation: str = "relu",
        final_norm: bool = False,
        hint: bool | None = None,
    ) -> None:
        super().__init__()
        self.hint = hint
        self.positions = LearnedPositions()
        layer = nn.TransformerDecoderLayer(
            WIDTH, HEADS, HIDDEN, 0.1, activation, batch_first=True, norm_first=norm_first
        )
        norm = nn.LayerNorm(WIDTH) if final_norm else None
        self.decoder = nn.TransformerDecoder(layer, LAYERS, norm)

    def decode(self, tokens: Tensor, memory: Tensor) -> Tensor:
        rows = self.positions(self.embedding(tokens))
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1])
        rows = self.decoder(rows, memory, tgt_mask=mask, tgt_is_causal=self.hint)
        logits: Tensor = self.head(rows)
        return logits


class LengthFirst(Captioner):
    """The decoder of PyTorch's tutorials: (length, batch, width), sinusoids, scaled embedding."""

    def __init__(self, *, norm_first: bool = False, activation: str = "relu") -> None:
        super().__init__()
        self.positions = SinusoidalPositions(batch_first=False)
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        layer = nn.TransformerDecoderLayer(
            WIDTH, HEADS, HIDDEN, activation=activation, norm_first=norm_first
        )
        self.decoder = nn.TransformerDecoder(layer, LAYERS)

    def decode(self, tokens: Tensor, memory: Tensor) -> Tensor:
        rows = self.embedding(tokens).permute(1, 0, 2) * math.sqrt(WIDTH)
        mask = (torch.triu(torch.ones(rows.size(0), rows.size(0))) == 1).transpose(0, 1)
        mask = mask.float().masked_fill(mask == 0, float("-inf")).masked_fill(mask == 1, 0.0)
        rows = self.decoder(self.positions(rows), memory.permute(1, 0, 2), tgt_mask=mask)
        logits: Tensor = self.head(rows).permute(1, 0, 2)
        return logits


class PaddingFromTokens(TorchDecoder):
    """A decoder that masks padding tokens as keys, and later tokens with a boolean mask."""

    def decode(self, tokens: Tensor, memory: Tensor) -> Tensor:
        length = tokens.size(1)
        causal = torch.ones(length, length, dtype=torch.bool, device=tokens.device).triu(1)
        rows = self.decoder(
            self.positions(self.embedding(tokens)),
            memory,
            tgt_mask=causal,
            tgt_key_padding_mask=(tokens == 0),
        )
        logits: Tensor = self.head(rows)
        return logits


class TiedAndScaled(TorchDecoder):
    """A decoder with one matrix for embedding and head, scaled by the root of the width."""

    def __init__(self) -> None:
        super().__init__(norm_first=True, activation="gelu", final_norm=True)
        nn.init.normal_(self.embedding.weight, std=0.5 * WIDTH**-0.5)
        self.transform = nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.head.weight = self.embedding.weight

    def decode(self, tokens: Tensor, memory: Tensor) -> Tensor:
        rows = self.positions(self.embedding(tokens) * WIDTH**0.5)
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.size(1)).to(rows)
        rows = self.decoder(rows, memory, tgt_mask=mask, tgt_is_causal=True)
        logits: Tensor = self.head(F.gelu(self.transform(rows), approximate="tanh"))
        return logits


class WholeTransformer(Captioner):
    """nn.Transformer, whose encoder and decoder serve encode and decode."""

    def __init__(self, *, norm_first: bool = False) -> None:
        super().__init__()
        self.positions, self.target_positions = SinusoidalPositions(), LearnedPositions()
        self.transformer = nn.Transformer(
            WIDTH, HEADS, LAYERS, LAYERS, HIDDEN, batch_first=True, norm_first=norm_first
        )

    def encode(self, features: Tensor) -> Tensor:
        memory: Tensor = self.transformer.encoder(self.positions(self.project(features)))
        return memory

    def decode(self, tokens: Tensor, memory: Tensor) -> Tensor:
        rows = self.target_positions(self.embedding(tokens))
        mask = self.transformer.generate_square_subsequent_mask(tokens.size(1))
        logits: Tensor = self.head(self.transformer.decoder(rows, memory, tgt_mask=mask))
        return logits


class SwiGLULayer(nn.Module):
    """A layer like nn.TransformerDecoderLayer with a gated feed-forward network."""

    def __init__(self) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.cross_attn = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.feed_forward = SwiGLU()
        self.norm1, self.norm2, self.norm3 = (nn.RMSNorm(WIDTH) for _ in range(3))

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
        normed = self.norm1(x)
        x = x + self.self_attn(normed, normed, normed, attn_mask=mask, need_weights=False)[0]
        x = x + self.cross_attn(self.norm2(x), memory, memory, need_weights=False)[0]
        rows: Tensor = x + self.feed_forward(self.norm3(x))
        return rows


class SwiGLUDecoder(Captioner):
    """A list of gated layers with a boolean mask and learned positions."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = ParameterPositions()
        self.layers = nn.ModuleList(SwiGLULayer() for _ in range(LAYERS))
        self.norm = nn.RMSNorm(WIDTH)

    def decode(self, tokens: Tensor, memory: Tensor) -> Tensor:
        rows = self.positions(self.embedding(tokens))
        mask = torch.triu(torch.ones(tokens.size(1), tokens.size(1)), diagonal=1).bool()
        for layer in self.layers:
            rows = layer(rows, memory, mask)
        logits: Tensor = self.head(self.norm(rows))
        return logits


class WithWeights(Captioner):
    """nn.MultiheadAttention with default arguments, which also computes unused weights."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = LearnedPositions()
        self.self_attn = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.cross_attn = nn.MultiheadAttention(
            WIDTH, HEADS, batch_first=True, add_bias_kv=False, kdim=WIDTH, vdim=WIDTH
        )
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)

    def decode(self, tokens: Tensor, memory: Tensor) -> Tensor:
        x, length = self.positions(self.embedding(tokens)), tokens.size(1)
        mask = torch.full((length, length), float("-inf")).triu(1)
        mixed, _ = self.self_attn(x, x, x, attn_mask=mask)
        x = self.norm1(x + mixed)
        mixed, _ = self.cross_attn(x, memory, memory)
        logits: Tensor = self.head(self.norm2(x + mixed))
        return logits
