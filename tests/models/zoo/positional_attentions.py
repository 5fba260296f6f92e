"""Causal self-attention that encodes positions: RoPE, ALiBi, T5's bias, relative shifts."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models.zoo.captioner import HEADS, POSITIONS, WIDTH
from tests.models.zoo.self_attentions import SIZE, HandWritten


class RopeInterleaved(HandWritten):
    """Rotary positions over neighboring pairs, computed in forward."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(rotate_pairs(q), rotate_pairs(k), v, is_causal=True)


class RopeHalf(HandWritten):
    """Rotary positions over halves as in LLaMA: cos and sin of position ids, rotate_half."""

    inv_freq: Tensor

    def __init__(self) -> None:
        super().__init__(key_heads=2)
        self.register_buffer("inv_freq", 10000.0 ** (-torch.arange(0, SIZE, 2).float() / SIZE))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        position_ids = torch.arange(q.shape[2], device=q.device).unsqueeze(0)
        inv_freq = self.inv_freq[None, :, None].float().expand(position_ids.shape[0], -1, 1)
        freqs = (inv_freq @ position_ids[:, None, :].float()).transpose(1, 2)
        angles = torch.cat((freqs, freqs), dim=-1)
        cos, sin = angles.cos().unsqueeze(1), angles.sin().unsqueeze(1)
        q, k = q * cos + rotate_half(q) * sin, k * cos + rotate_half(k) * sin
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


class RopeCached(HandWritten):
    """Rotary positions over halves, looked up by position in registered tables."""

    cos: Tensor
    sin: Tensor

    def __init__(self) -> None:
        super().__init__()
        rates = 10000.0 ** (-torch.arange(0, SIZE, 2).float() / SIZE)
        angles = torch.outer(torch.arange(POSITIONS).float(), rates).repeat(1, 2)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        ids = torch.arange(q.shape[2]).expand(q.shape[0], -1)  # (batch, length)
        cos, sin = self.cos[ids].unsqueeze(1), self.sin[ids].unsqueeze(1)
        q, k = q * cos + rotate_half(q) * sin, k * cos + rotate_half(k) * sin
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)


class RopeComplex(HandWritten):
    """Rotary positions as complex numbers, as in LLaMA's first release."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        rates = 10000.0 ** (-torch.arange(0, SIZE, 2).float() / SIZE)
        angles = torch.outer(torch.arange(q.shape[2]).float(), rates)
        turns = torch.polar(torch.ones_like(angles), angles)
        return F.scaled_dot_product_attention(
            rotate_complex(q, turns), rotate_complex(k, turns), v, is_causal=True
        )


class Alibi(HandWritten):
    """ALiBi: scores decrease with the distance, at a rate per head."""

    slopes: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("slopes", 2.0 ** (-torch.arange(1, HEADS + 1).float()))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        steps = torch.arange(q.size(2), device=q.device)
        distance = (steps[None, :] - steps[:, None]).float()
        scores = q @ k.transpose(-1, -2) / math.sqrt(SIZE)
        scores = scores + self.slopes[:, None, None] * distance
        scores = scores.masked_fill(distance > 0, float("-inf"))
        return scores.softmax(-1) @ v


class AlibiFused(Alibi):
    """ALiBi as one additive mask of scaled_dot_product_attention."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        steps = torch.arange(q.size(2))
        distance = steps.view(1, -1) - steps.view(-1, 1)
        bias = self.slopes.view(HEADS, 1, 1) * distance
        mask = bias.masked_fill(distance > 0, float("-inf")).unsqueeze(0)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


class RelativeBias(HandWritten):
    """T5's relative bias: a learned value per head for each bucket of distances.

    Args:
        buckets: number of buckets.
        furthest: distance from which all distances share the last bucket.
    """

    def __init__(self, buckets: int = 16, furthest: int = 48) -> None:
        super().__init__()
        self.buckets, self.furthest = buckets, furthest
        self.relative_attention_bias = nn.Embedding(buckets, HEADS)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        length = q.shape[2]
        context = torch.arange(length, dtype=torch.long)[:, None]
        memory = torch.arange(length, dtype=torch.long)[None, :]
        bias = self.relative_attention_bias(self.bucket(memory - context))
        scores = torch.matmul(q, k.transpose(3, 2)) + bias.permute([2, 0, 1]).unsqueeze(0)
        causal = torch.full((length, length), torch.finfo(q.dtype).min).triu(1)
        weights = F.softmax((scores + causal).float(), dim=-1).type_as(scores)
        return torch.matmul(weights, v)

    def bucket(self, relative: Tensor) -> Tensor:
        """Returns the bucket of each distance, as in T5's decoder."""
        distance = -torch.min(relative, torch.zeros_like(relative))
        exact = self.buckets // 2
        scale = (self.buckets - exact) / math.log(self.furthest / exact)
        large = exact + (torch.log(distance.float() / exact) * scale).to(torch.long)
        large = torch.min(large, torch.full_like(large, self.buckets - 1))
        return torch.where(distance < exact, distance, large)


class TransformerXl(HandWritten):
    """Transformer-XL: scores by distance, of sinusoids, shifted to the keys."""

    def __init__(self) -> None:
        super().__init__()
        self.r = nn.Linear(WIDTH, WIDTH, bias=False)
        self.r_w_bias = nn.Parameter(torch.zeros(HEADS, 1, SIZE))
        self.r_r_bias = nn.Parameter(torch.zeros(HEADS, 1, SIZE))

    def distances(self, length: int) -> Tensor:
        """Returns a vector of each head for every distance, (length, heads, size)."""
        rates = 10000.0 ** (-torch.arange(0, WIDTH, 2).float() / WIDTH)
        angles = torch.arange(length - 1, -1, -1.0)[:, None] * rates
        projected: Tensor = self.r(torch.cat([angles.sin(), angles.cos()], -1))
        return projected.view(length, HEADS, SIZE)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        batch, heads, length, _ = q.shape
        content = (q + self.r_w_bias) @ k.transpose(-2, -1)
        position = (q + self.r_r_bias) @ self.distances(length).permute(1, 2, 0)
        zeros = torch.zeros((batch, heads, length, 1), device=q.device, dtype=q.dtype)
        padded = torch.cat([zeros, position], dim=-1).view(batch, heads, length + 1, length)
        shifted = padded[:, :, 1:].view_as(position)
        future = torch.ones(length, length, dtype=torch.bool).triu(1)
        scores = (content + shifted).mul(SIZE**-0.5).masked_fill(future, -1e30)
        return scores.softmax(-1) @ v


class MusicTransformer(HandWritten):
    """Music Transformer: a learned vector for each distance, and the skew of the scores."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(POSITIONS, SIZE))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        batch, heads, length, _ = q.shape
        by_distance = q @ self.table[POSITIONS - length :].transpose(0, 1)
        skewed = F.pad(by_distance, (1, 0)).reshape(batch, heads, length + 1, length)[:, :, 1:]
        future = torch.ones(length, length, dtype=torch.bool).triu(1)
        bias = (skewed / math.sqrt(SIZE)).masked_fill(future, -float("inf"))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


def rotate_pairs(x: Tensor) -> Tensor:
    """Returns x (batch, heads, length, size) with neighboring pairs rotated by their position."""
    length, size = x.shape[-2:]
    rates = 10000.0 ** (-torch.arange(0, size, 2).float() / size)
    angles = torch.arange(length).float()[:, None] * rates
    even, odd = x[..., ::2], x[..., 1::2]
    pairs = (even * angles.cos() - odd * angles.sin(), even * angles.sin() + odd * angles.cos())
    return torch.stack(pairs, dim=-1).flatten(-2)


def rotate_half(x: Tensor) -> Tensor:
    """Returns x with its halves swapped and the first one negated, as in LLaMA."""
    x1, x2 = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
    return torch.cat((-x2, x1), dim=-1)


def rotate_complex(x: Tensor, turns: Tensor) -> Tensor:
    """Returns x with neighboring pairs, as complex numbers, times `turns` (length, size / 2)."""
    pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * turns).flatten(3).type_as(x)
