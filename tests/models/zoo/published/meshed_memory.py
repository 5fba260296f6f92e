"""The meshed-memory captioner (M2): memory vectors in the encoder, mesh gates in the decoder."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from tests.models.zoo.captioner import (
    FEATURES,
    HEADS,
    HIDDEN,
    POSITIONS,
    VOCABULARY,
    WIDTH,
    SinusoidalPositions,
)
from tests.models.zoo.case import build
from tests.models.zoo.published.case_makers import regions

_SIZE = WIDTH // HEADS


class ScaledDotProductAttention(nn.Module):
    """Attention to keys, and to learned memory vectors after them."""

    def __init__(self, memory_vectors: int = 0) -> None:
        super().__init__()
        self.fc_q, self.fc_k, self.fc_v, self.fc_o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.m = memory_vectors
        if memory_vectors:
            self.m_k = nn.Parameter(torch.randn(1, memory_vectors, WIDTH))
            self.m_v = nn.Parameter(torch.randn(1, memory_vectors, WIDTH))

    def forward(
        self, queries: Tensor, keys: Tensor, values: Tensor, attention_mask: Tensor | None
    ) -> Tensor:
        b_s, nq = queries.shape[:2]
        nk = keys.shape[1]
        q = self.fc_q(queries).view(b_s, nq, HEADS, _SIZE).permute(0, 2, 1, 3)
        keys, values = self.fc_k(keys), self.fc_v(values)
        if self.m:
            m_k = math.sqrt(_SIZE) * self.m_k.expand(b_s, self.m, WIDTH)
            m_v = math.sqrt(self.m) * self.m_v.expand(b_s, self.m, WIDTH)
            keys, values = torch.cat([keys, m_k], 1), torch.cat([values, m_v], 1)
        k = keys.view(b_s, nk + self.m, HEADS, _SIZE).permute(0, 2, 3, 1)
        v = values.view(b_s, nk + self.m, HEADS, _SIZE).permute(0, 2, 1, 3)
        att = torch.matmul(q, k) / math.sqrt(_SIZE)
        if attention_mask is not None and self.m:
            shown = att[:, :, :, :nk].masked_fill(attention_mask, -math.inf)
            att = torch.cat([shown, att[:, :, :, nk:]], -1)
        elif attention_mask is not None:
            att = att.masked_fill(attention_mask, -math.inf)
        out = torch.matmul(torch.softmax(att, -1), v)
        rows: Tensor = self.fc_o(out.permute(0, 2, 1, 3).contiguous().view(b_s, nq, WIDTH))
        return rows


class MultiHeadAttention(nn.Module):
    """The attention with dropout, residual and norm after it."""

    def __init__(self, memory_vectors: int = 0) -> None:
        super().__init__()
        self.attention = ScaledDotProductAttention(memory_vectors)
        self.dropout, self.layer_norm = nn.Dropout(0.1), nn.LayerNorm(WIDTH)

    def forward(self, queries: Tensor, keys: Tensor, mask: Tensor | None = None) -> Tensor:
        out = self.attention(queries, keys, keys, mask)
        rows: Tensor = self.layer_norm(queries + self.dropout(out))
        return rows


class PositionWiseFeedForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)
        self.layer_norm = nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        rows: Tensor = self.layer_norm(x + self.fc2(torch.relu(self.fc1(x))))
        return rows


class MeshedDecoderLayer(nn.Module):
    """Self-attention, then a gated sum of the cross-attentions to every encoder level."""

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.self_att, self.enc_att = MultiHeadAttention(), MultiHeadAttention()
        self.pwff = PositionWiseFeedForward()
        self.alphas = nn.ModuleList(nn.Linear(2 * WIDTH, WIDTH) for _ in range(levels))

    def forward(self, x: Tensor, levels: Tensor, mask_pad: Tensor, masks: Tensor) -> Tensor:
        self_att = self.self_att(x, x, masks) * mask_pad
        mixed: Tensor = torch.zeros_like(self_att)
        for level, alpha in enumerate(self.alphas):
            enc_att = self.enc_att(self_att, levels[:, level]) * mask_pad
            gate = torch.sigmoid(alpha(torch.cat([self_att, enc_att], -1)))
            mixed = mixed + enc_att * gate
        mixed = mixed / math.sqrt(len(self.alphas)) * mask_pad
        rows: Tensor = self.pwff(mixed) * mask_pad
        return rows


class MeshedMemory(nn.Module):
    """M2: the memory holds every level of the encoder, (batch, levels, regions, WIDTH).

    Args:
        padding: id of the padding token, whose rows are zeros and which no token sees.
        memory_vectors: number of learned keys in each layer of the encoder.
    """

    def __init__(self, padding: int = 1, memory_vectors: int = 4) -> None:
        super().__init__()
        self.padding = padding
        self.fc, self.layer_norm = nn.Linear(FEATURES, WIDTH), nn.LayerNorm(WIDTH)
        self.layers = nn.ModuleList(MultiHeadAttention(memory_vectors) for _ in range(2))
        self.pwffs = nn.ModuleList(PositionWiseFeedForward() for _ in range(2))
        self.word_emb = nn.Embedding(VOCABULARY, WIDTH)
        table = torch.cat([torch.zeros(1, WIDTH), SinusoidalPositions().pe[0, : POSITIONS - 1]])
        self.pos_emb = nn.Embedding(POSITIONS, WIDTH, _weight=table)
        self.decoder = nn.ModuleList(MeshedDecoderLayer(2) for _ in range(2))
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def encode(self, features: Tensor) -> Tensor:
        out = self.layer_norm(torch.relu(self.fc(features)))
        mask = (features.sum(-1) == 0).unsqueeze(1).unsqueeze(1)
        outs = []
        for layer, pwff in zip(self.layers, self.pwffs, strict=True):
            out = pwff(layer(out, out, mask))
            outs.append(out.unsqueeze(1))
        return torch.cat(outs, 1)

    def decode(self, tokens: Tensor, memory: Tensor) -> Tensor:
        b_s, seq_len = tokens.shape
        mask_queries = (tokens != self.padding).unsqueeze(-1).float()
        mask = torch.triu(torch.ones((seq_len, seq_len), dtype=torch.uint8), diagonal=1)
        mask = mask.unsqueeze(0).unsqueeze(0)
        mask = mask + (tokens == self.padding).unsqueeze(1).unsqueeze(1).byte()
        mask = mask.gt(0)  # (b_s, 1, seq_len, seq_len)
        seq = torch.arange(1, seq_len + 1).view(1, -1).expand(b_s, -1)
        seq = seq.masked_fill(mask_queries.squeeze(-1) == 0, 0)
        out = self.word_emb(tokens) + self.pos_emb(seq)
        for layer in self.decoder:
            out = layer(out, memory, mask_queries, mask)
        return torch.log_softmax(self.head(out), dim=-1)


CASES = (
    regions("meshed-memory", build(MeshedMemory, padding=VOCABULARY), gain=1.0),
    regions("meshed-memory-padding", build(MeshedMemory, padding=2), gain=1.0),
)
