"""Decoders after language models, from Gemma and RetNet to RWKV and DALL-E mini."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models.zoo.captioner import (
    HEADS,
    HIDDEN,
    POSITIONS,
    WIDTH,
    Captioner,
    LearnedPositions,
)
from tests.models.zoo.case import Case
from tests.models.zoo.handwritten_decoders import Block, CrossAttention
from tests.models.zoo.positional_attentions import rotate_half
from tests.models.zoo.published.case_makers import RECURRENT, regions
from tests.models.zoo.published.recurrent_readers import Recurrent
from tests.models.zoo.self_attentions import SIZE, Fused, HandWritten


class GemmaRMSNorm(nn.Module):
    """A norm whose weight is counted from one."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        normed = x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-6)
        return (normed * (1.0 + self.weight.float())).type_as(x)


class GemmaAttention(nn.Module):
    """Gemma's attention: complex rotary positions, grouped keys, capped scores."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv_proj, self.o_proj = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, freqs_cis: Tensor, mask: Tensor) -> Tensor:
        batch, length, _ = x.shape
        qkv = self.qkv_proj(x)
        xq, xk, xv = qkv.split([WIDTH, WIDTH // 2, WIDTH // 2], dim=-1)
        xq = self.rotate(xq.view(batch, -1, HEADS, SIZE), freqs_cis)
        xk = self.rotate(xk.view(batch, -1, HEADS // 2, SIZE), freqs_cis)
        key = torch.repeat_interleave(xk, 2, dim=2).transpose(1, 2)
        value = torch.repeat_interleave(xv.view(batch, -1, HEADS // 2, SIZE), 2, dim=2)
        scores = torch.matmul(xq.transpose(1, 2) * SIZE**-0.5, key.transpose(2, 3))
        scores = torch.tanh(scores / 50.0) * 50.0
        scores = F.softmax((scores + mask).float(), dim=-1).type_as(xq)
        output = torch.matmul(scores, value.transpose(1, 2)).transpose(1, 2)
        rows: Tensor = self.o_proj(output.contiguous().view(batch, length, -1))
        return rows

    def rotate(self, x: Tensor, freqs_cis: Tensor) -> Tensor:
        """Rotates halves of (batch, length, heads, size) as complex numbers."""
        pairs = torch.stack(torch.chunk(x.transpose(1, 2).float(), 2, dim=-1), dim=-1)
        turned = torch.view_as_real(torch.view_as_complex(pairs) * freqs_cis).type_as(x)
        halves = torch.cat(torch.chunk(turned, 2, dim=-1), dim=-2)
        return halves.reshape(*halves.shape[:-2], -1).transpose(1, 2)


class Gemma(Captioner):
    """Gemma with cross-attention: scaled embeddings, norms before and after, capped logits."""

    freqs_cis: Tensor

    def __init__(self) -> None:
        super().__init__()
        nn.init.normal_(self.embedding.weight, std=0.2)
        rates = 1.0 / (10000.0 ** (torch.arange(0, SIZE, 2).float() / SIZE))
        angles = torch.outer(torch.arange(POSITIONS).float(), rates)
        self.register_buffer("freqs_cis", torch.polar(torch.ones_like(angles), angles))
        self.self_attn, self.cross = GemmaAttention(), CrossAttention()
        self.norms = nn.ModuleList(GemmaRMSNorm() for _ in range(6))
        self.gate_proj, self.up_proj = nn.Linear(WIDTH, HIDDEN), nn.Linear(WIDTH, HIDDEN)
        self.down_proj, self.norm = nn.Linear(HIDDEN, WIDTH), GemmaRMSNorm()

    def decode(self, tokens: Tensor, memory: Tensor) -> Tensor:
        length, norms = tokens.shape[1], self.norms
        mask = torch.full((1, 1, POSITIONS, POSITIONS), -2.3819763e38)
        mask = torch.triu(mask, diagonal=1).index_select(2, torch.arange(length))[..., :length]
        freqs_cis = self.freqs_cis.index_select(0, torch.arange(length))
        x = self.embedding(tokens) * WIDTH**0.5
        x = x + norms[1](self.self_attn(norms[0](x), freqs_cis, mask))
        x = x + norms[3](self.cross(norms[2](x), memory))
        normed = norms[4](x)
        fused = F.gelu(self.gate_proj(normed), approximate="tanh") * self.up_proj(normed)
        x = x + norms[5](self.down_proj(fused))
        logits: Tensor = self.head(self.norm(x))
        return 30.0 * torch.tanh(logits / 30.0)


class LatentAttention(nn.Module):
    """DeepSeek's attention: keys and values from narrow latents, one rotated key for all heads."""

    narrow, rotated = 16, 6

    def __init__(self) -> None:
        super().__init__()
        self.q_proj = nn.Linear(WIDTH, HEADS * (SIZE + self.rotated), bias=False)
        self.kv_a_proj_with_mqa = nn.Linear(WIDTH, self.narrow + self.rotated, bias=False)
        self.kv_a_layernorm = nn.RMSNorm(self.narrow)
        self.kv_b_proj = nn.Linear(self.narrow, HEADS * 2 * SIZE, bias=False)
        self.o_proj = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        bsz, q_len, _ = x.size()
        q = self.q_proj(x).view(bsz, q_len, HEADS, -1).transpose(1, 2)
        q_nope, q_pe = torch.split(q, [SIZE, self.rotated], dim=-1)
        compressed, k_pe = torch.split(
            self.kv_a_proj_with_mqa(x), [self.narrow, self.rotated], dim=-1
        )
        k_pe = k_pe.view(bsz, q_len, 1, self.rotated).transpose(1, 2)
        kv = self.kv_b_proj(self.kv_a_layernorm(compressed))
        kv = kv.view(bsz, q_len, HEADS, 2 * SIZE).transpose(1, 2)
        k_nope, value_states = torch.split(kv, [SIZE, SIZE], dim=-1)
        rates = 10000.0 ** (-torch.arange(0, self.rotated, 2).float() / self.rotated)
        angles = torch.outer(torch.arange(q_len).float(), rates).repeat(1, 2)
        cos, sin = angles.cos()[None, None], angles.sin()[None, None]
        q_pe, k_pe = q_pe * cos + rotate_half(q_pe) * sin, k_pe * cos + rotate_half(k_pe) * sin
        query = torch.cat([q_nope, q_pe], dim=-1)
        key = torch.cat([k_nope, k_pe.expand(-1, HEADS, -1, -1)], dim=-1)
        mixed = F.scaled_dot_product_attention(query, key, value_states, is_causal=True)
        rows: Tensor = self.o_proj(mixed.transpose(1, 2).reshape(bsz, q_len, WIDTH))
        return rows


class Retention(HandWritten):
    """RetNet's parallel retention: scores times a decay per head, no softmax, a norm per head."""

    decay: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("decay", torch.log(1 - 2 ** (-5 - torch.arange(HEADS).float())))
        self.group_norm = nn.LayerNorm(SIZE, elementwise_affine=False)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        index = torch.arange(q.size(2)).to(self.decay)
        mask = torch.tril(torch.ones(q.size(2), q.size(2)))
        mask = torch.masked_fill(index[:, None] - index[None, :], ~mask.bool(), float("inf"))
        mask = torch.nan_to_num(torch.exp(mask * self.decay[:, None, None]))
        mask = mask / mask.sum(dim=-1, keepdim=True).sqrt()
        qk_mat = q @ (k * SIZE**-0.5).transpose(-1, -2) * mask
        qk_mat = qk_mat / qk_mat.detach().abs().sum(dim=-1, keepdim=True).clamp(min=1, max=5e4)
        rows: Tensor = self.group_norm(qk_mat @ v)
        return rows


class Differential(nn.Module):
    """The Differential Transformer: one softmax minus another, times a learned number."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (
            nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4)
        )
        self.lambda_q1, self.lambda_k1, self.lambda_q2, self.lambda_k2 = (
            nn.Parameter(torch.randn(SIZE // 2) * 0.1) for _ in range(4)
        )
        self.subln = nn.RMSNorm(SIZE, elementwise_affine=False)

    def forward(self, x: Tensor) -> Tensor:
        bsz, length, _ = x.size()
        q = self.q_proj(x).view(bsz, length, 2 * HEADS, SIZE // 2).transpose(1, 2)
        k = self.k_proj(x).view(bsz, length, 2 * HEADS, SIZE // 2).transpose(1, 2)
        v = self.v_proj(x).view(bsz, length, HEADS, SIZE).transpose(1, 2)
        weights = torch.matmul(q * (SIZE // 2) ** -0.5, k.transpose(-1, -2))
        weights = torch.nan_to_num(weights)
        weights += torch.triu(torch.zeros([length, length]).fill_(float("-inf")), 1)
        weights = F.softmax(weights, dim=-1, dtype=torch.float32).type_as(weights)
        lambda_1 = torch.exp(torch.sum(self.lambda_q1 * self.lambda_k1, dim=-1).float())
        lambda_2 = torch.exp(torch.sum(self.lambda_q2 * self.lambda_k2, dim=-1).float())
        weights = weights.view(bsz, HEADS, 2, length, length)
        weights = weights[:, :, 0] - (lambda_1 - lambda_2 + 0.8) * weights[:, :, 1]
        attn = self.subln(torch.matmul(weights, v)) * 0.2
        rows: Tensor = self.out_proj(attn.transpose(1, 2).reshape(bsz, length, WIDTH))
        return rows


class Stacked(Captioner):
    """A decoder of two blocks, or of one block used twice.

    Args:
        attention: class of the self-attention.
        shared: whether one block is used twice, as in ALBERT and the Universal Transformer.
    """

    def __init__(self, attention: type[nn.Module], *, shared: bool = False) -> None:
        super().__init__()
        self.positions, self.norm = LearnedPositions(), nn.LayerNorm(WIDTH)
        first = Block(attention(), CrossAttention())
        second = first if shared else Block(attention(), CrossAttention())
        self.blocks = nn.ModuleList([first, second])

    def decode(self, tokens: Tensor, memory: Tensor) -> Tensor:
        x = self.positions(self.embedding(tokens))
        for block in self.blocks:
            x = block(x, memory)
        logits: Tensor = self.head(self.norm(x))
        return logits


class Rwkv(Recurrent):
    """RWKV-4 with the memory's mean as first row: a state of sums instead of a cache."""

    def __init__(self) -> None:
        super().__init__()
        self.captioner = Captioner()
        self.time_decay, self.time_first = (nn.Parameter(torch.randn(WIDTH)) for _ in range(2))
        self.mix_k, self.mix_v, self.mix_r = (nn.Parameter(torch.rand(WIDTH)) for _ in range(3))
        self.key, self.value, self.receptance, self.output = (
            nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4)
        )
        self.ln, self.ln_out = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.cross = CrossAttention()

    def encode(self, features: Tensor) -> Tensor:
        return self.captioner.encode(features)

    def initial_state(self, *memory: Tensor) -> list[Tensor]:
        """Returns the last row, the weighted sum, the sum of the weights, the largest exponent."""
        mean = memory[0].mean(1)
        return [mean, torch.zeros_like(mean), torch.zeros_like(mean), torch.full_like(mean, -1e30)]

    def step(
        self, token: Tensor, state: list[Tensor], *memory: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        last, aa, bb, pp = state
        embedded = self.captioner.embedding(token)
        x = self.ln(embedded)
        k = self.key(x * self.mix_k + last * (1 - self.mix_k))
        v = self.value(x * self.mix_v + last * (1 - self.mix_v))
        r = torch.sigmoid(self.receptance(x * self.mix_r + last * (1 - self.mix_r)))
        ww = self.time_first + k
        qq = torch.maximum(pp, ww)
        e1, e2 = torch.exp(pp - qq), torch.exp(ww - qq)
        wkv = (e1 * aa + e2 * v) / (e1 * bb + e2)
        ww = pp - torch.exp(self.time_decay)
        largest = torch.maximum(ww, k)
        e1, e2 = torch.exp(ww - largest), torch.exp(k - largest)
        rows = embedded + self.output(r * wkv)
        rows = rows + self.cross(rows.unsqueeze(1), memory[0]).squeeze(1)
        logits = self.captioner.head(self.ln_out(rows))
        return logits, [x, e1 * aa + e2 * v, e1 * bb + e2, largest]


class DalleBart(Captioner):
    """DALL-E mini's decoder of image tokens: NormFormer norms, GLU between them, no biases."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_positions = nn.Embedding(POSITIONS, WIDTH)
        self.layernorm_embedding, self.final_ln = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.pre_self, self.post_self, self.pre_cross, self.post_cross, self.ln0 = (
            nn.LayerNorm(WIDTH) for _ in range(5)
        )
        self.self_qkv, self.self_out = (
            nn.Linear(WIDTH, 3 * WIDTH, bias=False),
            nn.Linear(WIDTH, WIDTH),
        )
        self.cross, self.ln1 = CrossAttention(), nn.LayerNorm(HIDDEN)
        self.fc0, self.fc1 = (nn.Linear(WIDTH, HIDDEN, bias=False) for _ in range(2))
        self.fc2 = nn.Linear(HIDDEN, WIDTH, bias=False)

    def decode(self, tokens: Tensor, memory: Tensor) -> Tensor:
        batch, length = tokens.shape
        pose = torch.arange(length, device=tokens.device).expand(batch, length)
        x = self.layernorm_embedding(self.embedding(tokens) + self.embed_positions(pose))
        q, k, v = self.self_qkv(self.pre_self(x)).chunk(3, dim=-1)
        q, k, v = (t.reshape(batch, length, HEADS, -1) for t in (q / math.sqrt(SIZE), k, v))
        weights = torch.einsum("bqhc,bkhc->bhqk", q, k)
        mask = torch.tril(torch.ones((POSITIONS, POSITIONS), dtype=torch.bool))[:length, :length]
        weights = weights + (1 - mask[None, None].to(torch.float32)) * -1e12
        mixed = torch.einsum("bhqk,bkhc->bqhc", torch.softmax(weights, -1), v).flatten(2)
        x = x + self.post_self(self.self_out(mixed))
        x = x + self.post_cross(self.cross(self.pre_cross(x), memory))
        normed = self.ln0(x)
        gated = self.ln1(F.gelu(self.fc0(normed)) * self.fc1(normed))
        logits: Tensor = self.head(self.final_ln(x + self.fc2(gated)))
        return logits


def _case(name: str, attention: type[nn.Module], *, shared: bool = False) -> Case:
    return regions(name, lambda: Stacked(attention, shared=shared), family="published-language")


CASES = (
    regions("gemma-cross-attention", Gemma, family="published-language"),
    _case("latent-attention", LatentAttention),
    _case("retnet", Retention),
    _case("differential-attention", Differential),
    _case("universal-transformer", Fused, shared=True),
    regions("dalle-mini", DalleBart, family="published-language"),
)

RECURRENT_CASES = (regions("rwkv", Rwkv, family=RECURRENT),)
