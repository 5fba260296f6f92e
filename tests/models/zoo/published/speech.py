"""Recognizers of speech: ESPnet's Conformer, Whisper as OpenAI writes it, Listen-Attend-Spell."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models.zoo.captioner import (
    HEADS,
    HIDDEN,
    POSITIONS,
    VOCABULARY,
    WIDTH,
    SinusoidalPositions,
)
from tests.models.zoo.published.case_makers import RECURRENT, SOUND_BINS, sound
from tests.models.zoo.published.recurrent_readers import Recurrent

_SIZE = WIDTH // HEADS


class EspnetAttention(nn.Module):
    """ESPnet's attention: masked scores, then masked weights."""

    def __init__(self) -> None:
        super().__init__()
        self.linear_q, self.linear_k, self.linear_v, self.linear_out = (
            nn.Linear(WIDTH, WIDTH) for _ in range(4)
        )

    def qkv(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns (batch, heads, length, size) each."""
        q, k, v = (
            linear(x).view(x.size(0), -1, HEADS, _SIZE).transpose(1, 2)
            for linear, x in (
                (self.linear_q, query), (self.linear_k, key), (self.linear_v, key)
            )
        )  # fmt: skip
        return q, k, v

    def attend(self, value: Tensor, scores: Tensor, mask: Tensor) -> Tensor:
        mask = mask.unsqueeze(1).eq(0)
        scores = scores.masked_fill(mask, torch.finfo(scores.dtype).min)
        attn = torch.softmax(scores, dim=-1).masked_fill(mask, 0.0)
        x = torch.matmul(attn, value).transpose(1, 2).contiguous()
        rows: Tensor = self.linear_out(x.view(value.size(0), -1, WIDTH))
        return rows

    def forward(self, query: Tensor, key: Tensor, mask: Tensor) -> Tensor:
        q, k, v = self.qkv(query, key)
        return self.attend(v, torch.matmul(q, k.transpose(-2, -1)) / math.sqrt(_SIZE), mask)


class RelativeAttention(EspnetAttention):
    """Attention of Transformer-XL with learned biases and the shift by padding and reshaping."""

    def __init__(self) -> None:
        super().__init__()
        self.linear_pos = nn.Linear(WIDTH, WIDTH, bias=False)
        self.pos_bias_u, self.pos_bias_v = (
            nn.Parameter(torch.randn(HEADS, _SIZE)) for _ in range(2)
        )

    def rel_shift(self, x: Tensor) -> Tensor:
        zero_pad = torch.zeros((*x.size()[:3], 1), dtype=x.dtype)
        x_padded = torch.cat([zero_pad, x], dim=-1)
        x_padded = x_padded.view(*x.size()[:2], x.size(3) + 1, x.size(2))
        return x_padded[:, :, 1:].view_as(x)[:, :, :, : x.size(-1) // 2 + 1]

    def shifted(self, query: Tensor, pos_emb: Tensor, mask: Tensor) -> Tensor:
        q, k, v = self.qkv(query, query)
        q = q.transpose(1, 2)
        p = self.linear_pos(pos_emb).view(1, -1, HEADS, _SIZE).transpose(1, 2)
        matrix_ac = torch.matmul((q + self.pos_bias_u).transpose(1, 2), k.transpose(-2, -1))
        matrix_bd = torch.matmul((q + self.pos_bias_v).transpose(1, 2), p.transpose(-2, -1))
        return self.attend(v, (matrix_ac + self.rel_shift(matrix_bd)) / math.sqrt(_SIZE), mask)


class FeedForward(nn.Sequential):
    def __init__(self, activation: nn.Module) -> None:
        super().__init__(nn.Linear(WIDTH, HIDDEN), activation, nn.Linear(HIDDEN, WIDTH))


class ConformerBlock(nn.Module):
    """Half a feed-forward network, attention, convolution, the other half, a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.macaron, self.feed_forward = FeedForward(nn.SiLU()), FeedForward(nn.SiLU())
        self.self_attn = RelativeAttention()
        self.pointwise1 = nn.Conv1d(WIDTH, 2 * WIDTH, 1)
        self.depthwise = nn.Conv1d(WIDTH, WIDTH, 5, padding=2, groups=WIDTH)
        self.norm, self.pointwise2 = nn.BatchNorm1d(WIDTH), nn.Conv1d(WIDTH, WIDTH, 1)
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(5))

    def forward(self, x: Tensor, pos_emb: Tensor, mask: Tensor) -> Tensor:
        x = x + 0.5 * self.macaron(self.norms[0](x))
        x = x + self.self_attn.shifted(self.norms[1](x), pos_emb, mask)
        y = F.glu(self.pointwise1(self.norms[2](x).transpose(1, 2)), dim=1)
        y = y.masked_fill(~mask, 0.0)
        y = self.pointwise2(F.silu(self.norm(self.depthwise(y))))
        x = x + y.transpose(1, 2)
        x = x + 0.5 * self.feed_forward(self.norms[3](x))
        rows: Tensor = self.norms[4](x)
        return rows


class EspnetDecoderLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.self_attn, self.src_attn = EspnetAttention(), EspnetAttention()
        self.feed_forward = FeedForward(nn.ReLU())
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(WIDTH, eps=1e-12) for _ in range(3))

    def forward(self, x: Tensor, mask: Tensor, memory: Tensor, memory_mask: Tensor) -> Tensor:
        normed = self.norm1(x)
        x = x + self.self_attn(normed, normed, mask)
        x = x + self.src_attn(self.norm2(x), memory, memory_mask)
        rows: Tensor = x + self.feed_forward(self.norm3(x))
        return rows


class Espnet(nn.Module):
    """Conv2dSubsampling with subsampled masks, a Conformer block, a Transformer decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(1, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 8, 3, 2), nn.ReLU()
        )
        self.out = nn.Linear(8 * (((SOUND_BINS - 1) // 2 - 1) // 2), WIDTH)
        self.block, self.after_norm = ConformerBlock(), nn.LayerNorm(WIDTH)
        self.embed, self.positions = nn.Embedding(VOCABULARY, WIDTH), SinusoidalPositions()
        self.decoders = nn.ModuleList(EspnetDecoderLayer() for _ in range(2))
        self.decoder_norm = nn.LayerNorm(WIDTH)
        self.output_layer = nn.Linear(WIDTH, VOCABULARY)

    def relative_positions(self, length: int) -> Tensor:
        """Returns (1, 2 * length - 1, WIDTH): the distances from the largest to the smallest."""
        position = torch.arange(length - 1, -length, -1).unsqueeze(1).float()
        rates = torch.exp(torch.arange(0, WIDTH, 2) * -(math.log(10000.0) / WIDTH))
        waves = torch.stack([torch.sin(position * rates), torch.cos(position * rates)], -1)
        return waves.flatten(1).unsqueeze(0)

    def encode(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        masks = (torch.arange(features.shape[1])[None] < lengths[:, None])[:, None, :]
        x = self.conv(features.unsqueeze(1))
        b, c, t, f = x.size()
        x = self.out(x.transpose(1, 2).contiguous().view(b, t, c * f)) * math.sqrt(WIDTH)
        masks = masks[:, :, :-2:2][:, :, :-2:2]
        x = self.block(x, self.relative_positions(x.shape[1]), masks)
        return self.after_norm(x), masks

    def decode(self, tokens: Tensor, memory: Tensor, memory_mask: Tensor) -> Tensor:
        length = tokens.size(1)
        mask = torch.tril(torch.ones(length, length, dtype=torch.bool)).unsqueeze(0)
        x = self.positions(self.embed(tokens) * math.sqrt(WIDTH))
        for layer in self.decoders:
            x = layer(x, mask, memory, memory_mask)
        logits: Tensor = self.output_layer(self.decoder_norm(x))
        return logits


class OpenAiLayerNorm(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float()).type(x.dtype)


class OpenAiAttention(nn.Module):
    """Whisper's attention, with the branch for a cache that hooks would fill."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.key = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(
        self,
        x: Tensor,
        xa: Tensor | None = None,
        mask: Tensor | None = None,
        kv_cache: dict[nn.Module, Tensor] | None = None,
    ) -> Tensor:
        q = self.query(x)
        if kv_cache is None or xa is None or self.key not in kv_cache:
            k = self.key(x if xa is None else xa)
            v = self.value(x if xa is None else xa)
        else:
            k, v = kv_cache[self.key], kv_cache[self.value]
        rows: Tensor = self.out(self.qkv_attention(q, k, v, mask))
        return rows

    def qkv_attention(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        _, n_ctx, n_state = q.shape
        scale = (n_state // HEADS) ** -0.25
        q = q.view(*q.shape[:2], HEADS, -1).permute(0, 2, 1, 3) * scale
        k = k.view(*k.shape[:2], HEADS, -1).permute(0, 2, 3, 1) * scale
        v = v.view(*v.shape[:2], HEADS, -1).permute(0, 2, 1, 3)
        qk = q @ k
        if mask is not None:
            qk = qk + mask[:n_ctx, :n_ctx]
        w = F.softmax(qk.float(), dim=-1).to(q.dtype)
        return (w @ v).permute(0, 2, 1, 3).flatten(start_dim=2)


class ResidualAttentionBlock(nn.Module):
    def __init__(self, *, cross: bool) -> None:
        super().__init__()
        self.attn, self.attn_ln = OpenAiAttention(), OpenAiLayerNorm(WIDTH)
        self.cross_attn = OpenAiAttention() if cross else None
        self.cross_attn_ln = OpenAiLayerNorm(WIDTH) if cross else None
        self.mlp, self.mlp_ln = FeedForward(nn.GELU()), OpenAiLayerNorm(WIDTH)

    def forward(self, x: Tensor, xa: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        x = x + self.attn(self.attn_ln(x), mask=mask)
        if self.cross_attn is not None and self.cross_attn_ln is not None:
            x = x + self.cross_attn(self.cross_attn_ln(x), xa)
        rows: Tensor = x + self.mlp(self.mlp_ln(x))
        return rows


class OpenAiWhisper(nn.Module):
    """Whisper: sinusoids of half sines and half cosines, a mask as a buffer, tied float logits."""

    mask: Tensor
    encoder_positions: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(SOUND_BINS, WIDTH, kernel_size=3, padding=1)
        self.conv2 = nn.Conv1d(WIDTH, WIDTH, kernel_size=3, stride=2, padding=1)
        rates = torch.exp(-math.log(10000) / (WIDTH // 2 - 1) * torch.arange(WIDTH // 2))
        time = torch.arange(POSITIONS)[:, np.newaxis] * rates[np.newaxis, :]
        self.register_buffer("encoder_positions", torch.cat([time.sin(), time.cos()], dim=1))
        self.block, self.ln_post = ResidualAttentionBlock(cross=False), OpenAiLayerNorm(WIDTH)
        self.token_embedding = nn.Embedding(VOCABULARY, WIDTH)
        nn.init.normal_(self.token_embedding.weight, std=WIDTH**-0.5)
        self.positional_embedding = nn.Parameter(torch.randn(POSITIONS, WIDTH) * 0.5)
        self.blocks = nn.ModuleList(ResidualAttentionBlock(cross=True) for _ in range(2))
        self.ln = OpenAiLayerNorm(WIDTH)
        mask = torch.empty(POSITIONS, POSITIONS).fill_(-np.inf).triu_(1)
        self.register_buffer("mask", mask, persistent=False)

    def encode(self, features: Tensor) -> Tensor:
        x = F.gelu(self.conv1(features.transpose(1, 2)))
        x = F.gelu(self.conv2(x)).permute(0, 2, 1)
        x = (x + self.encoder_positions[: x.shape[1]]).to(x.dtype)
        memory: Tensor = self.ln_post(self.block(x))
        return memory

    def decode(self, tokens: Tensor, memory: Tensor) -> Tensor:
        offset = 0  # the length of the cache, which is empty
        positions = self.positional_embedding[offset : offset + tokens.shape[-1]]
        x = (self.token_embedding(tokens) + positions).to(memory.dtype)
        for block in self.blocks:
            x = block(x, memory, mask=self.mask)
        x = self.ln(x)
        weight = self.token_embedding.weight.to(x.dtype)
        logits: Tensor = (x @ torch.transpose(weight, 0, 1)).float()
        return logits


class ListenAttendSpell(Recurrent):
    """LAS: a pyramid of bidirectional LSTMs, and a speller of two LSTM cells."""

    def __init__(self) -> None:
        super().__init__()
        self.bottom = nn.LSTM(SOUND_BINS, WIDTH // 2, bidirectional=True, batch_first=True)
        self.pyramid = nn.LSTM(2 * WIDTH, WIDTH // 2, bidirectional=True, batch_first=True)
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.cell1, self.cell2 = nn.LSTMCell(2 * WIDTH, WIDTH), nn.LSTMCell(WIDTH, WIDTH)
        self.phi, self.psi = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.character = nn.Linear(2 * WIDTH, VOCABULARY)

    def encode(self, features: Tensor) -> Tensor:
        rows, _ = self.bottom(features)
        batch, time, width = rows.shape
        memory: Tensor = self.pyramid(rows.contiguous().view(batch, time // 2, width * 2))[0]
        return memory

    def initial_state(self, *memory: Tensor) -> list[Tensor]:
        """The first context is the first row of the listener."""
        zeros = torch.zeros_like(memory[0][:, 0])
        return [zeros, zeros, zeros, zeros, memory[0][:, 0]]

    def step(
        self, token: Tensor, state: list[Tensor], *memory: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        (listened,) = memory
        fed = torch.cat([self.embedding(token), state[4]], dim=-1)
        h1, c1 = self.cell1(fed, (state[0], state[1]))
        h2, c2 = self.cell2(h1, (state[2], state[3]))
        query = self.phi(h2).unsqueeze(1)
        energy = torch.bmm(query, self.psi(listened).transpose(1, 2))
        context = torch.bmm(torch.softmax(energy, -1), listened).squeeze(1)
        return self.character(torch.cat([h2, context], -1)), [h1, c1, h2, c2, context]


CASES = (
    sound("espnet-conformer", Espnet, lengths=True),
    sound("whisper-openai", OpenAiWhisper, gain=4.0),
)

RECURRENT_CASES = (
    sound("listen-attend-spell", ListenAttendSpell, varies=False, gain=3.0, family=RECURRENT),
)
