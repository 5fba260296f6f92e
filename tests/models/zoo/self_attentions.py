"""Causal self-attention in the forms that users write by hand."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models.zoo.captioner import HEADS, POSITIONS, WIDTH

SIZE = WIDTH // HEADS


class HandWritten(nn.Module):
    """Projections to queries, keys and values, and one back; subclasses define `attend`.

    Args:
        key_heads: number of heads of keys and values.
    """

    def __init__(self, key_heads: int = HEADS) -> None:
        super().__init__()
        self.key_heads = key_heads
        self.q_proj = nn.Linear(WIDTH, WIDTH)
        self.k_proj = nn.Linear(WIDTH, key_heads * SIZE)
        self.v_proj = nn.Linear(WIDTH, key_heads * SIZE)
        self.o_proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q = self.q_proj(x).view(batch, length, HEADS, SIZE).transpose(1, 2)
        k = self.k_proj(x).view(batch, length, self.key_heads, SIZE).transpose(1, 2)
        v = self.v_proj(x).view(batch, length, self.key_heads, SIZE).transpose(1, 2)
        mixed = self.attend(q, k, v).transpose(1, 2).contiguous().view(batch, length, WIDTH)
        rows: Tensor = self.o_proj(mixed)
        return rows

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Returns the attended values; all tensors are (batch, heads, length, size)."""
        raise NotImplementedError


class Fused(nn.Module):
    """nanoGPT's attention: one joint projection, split, scaled_dot_product_attention."""

    def __init__(self) -> None:
        super().__init__()
        self.c_attn = nn.Linear(WIDTH, 3 * WIDTH)
        self.c_proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        B, T, C = x.size()  # noqa: N806 - the names of nanoGPT
        q, k, v = self.c_attn(x).split(WIDTH, dim=2)
        k = k.view(B, T, HEADS, C // HEADS).transpose(1, 2)
        q = q.view(B, T, HEADS, C // HEADS).transpose(1, 2)
        v = v.view(B, T, HEADS, C // HEADS).transpose(1, 2)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=True)
        rows: Tensor = self.c_proj(y.transpose(1, 2).contiguous().view(B, T, C))
        return rows


class Unbound(nn.Module):
    """timm's attention: one projection, reshaped to (3, batch, heads, length, size), unbound."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH)
        self.softmax = nn.Softmax(dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(x).reshape(batch, length, 3, HEADS, SIZE).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        scores = (q * SIZE**-0.5) @ k.transpose(-2, -1)
        future = torch.triu(torch.ones(length, length, device=x.device), diagonal=1)
        weights = self.softmax(scores - 1e9 * future)
        rows: Tensor = self.proj((weights @ v).transpose(1, 2).reshape(batch, length, width))
        return rows


class MaskedFill(HandWritten):
    """Attention with a registered triangle, masked_fill and softmax."""

    bias: Tensor

    def __init__(self) -> None:
        super().__init__()
        triangle = torch.tril(torch.ones(POSITIONS, POSITIONS))
        self.register_buffer("bias", triangle.view(1, 1, POSITIONS, POSITIONS))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        length = q.size(-2)
        scores = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
        scores = scores.masked_fill(self.bias[:, :, :length, :length] == 0, float("-inf"))
        return F.softmax(scores, dim=-1) @ v


class Einsum(HandWritten):
    """Attention with einsum for both products, and the smallest float for masked scores."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        length = q.shape[2]
        scores = torch.einsum("bhqd,bhkd->bhqk", q, k) / SIZE**0.5
        past = torch.ones(length, length, dtype=torch.bool).tril()
        scores = torch.where(past, scores, torch.finfo(scores.dtype).min)
        return torch.einsum("bhqk,bhkd->bhqd", scores.softmax(dim=-1), v)


class FoldedHeads(HandWritten):
    """fairseq's attention: heads folded into the batch, torch.bmm, an added mask."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        batch, heads, length, size = q.shape
        q, k, v = (t.contiguous().view(batch * heads, length, size) for t in (q, k, v))
        scores = torch.bmm(q * size**-0.5, k.transpose(1, 2))
        scores = scores + torch.full((length, length), float("-inf")).triu(1).unsqueeze(0)
        mixed = torch.bmm(torch.softmax(scores, dim=-1), v)
        return mixed.view(batch, heads, length, size)


class SlidingWindow(HandWritten):
    """Attention to the last sixteen tokens only."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        length = q.size(2)
        band = torch.ones(length, length, dtype=torch.bool).tril().triu(-15)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=band)


class QueryKeyNorm(HandWritten):
    """Attention with normalized queries and keys, and scores limited by tanh."""

    def __init__(self) -> None:
        super().__init__()
        self.q_norm, self.k_norm = nn.RMSNorm(SIZE), nn.RMSNorm(SIZE)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        length = q.size(2)
        scores = self.q_norm(q) @ self.k_norm(k).mT / math.sqrt(SIZE)
        scores = 8.0 * torch.tanh(scores / 8.0)
        mask = torch.tril(torch.ones(length, length)).bool().logical_not()
        return scores.masked_fill(mask, torch.finfo(scores.dtype).min).softmax(-1) @ v


class GroupedEnableGqa(HandWritten):
    """Two key heads for four query heads, by scaled_dot_product_attention's enable_gqa."""

    def __init__(self) -> None:
        super().__init__(key_heads=2)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


class GroupedRepeatInterleave(GroupedEnableGqa):
    """Key heads repeated by repeat_interleave."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        groups = HEADS // self.key_heads
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)


class GroupedRepeatKv(GroupedEnableGqa):
    """Key heads repeated by LLaMA's repeat_kv: expand and reshape."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        length = q.size(2)
        k, v = repeat_kv(k, HEADS // self.key_heads), repeat_kv(v, HEADS // self.key_heads)
        scores = torch.matmul(q, k.transpose(2, 3)) / math.sqrt(SIZE)
        mask = torch.full((length, length), float("-inf"))
        scores = scores + torch.triu(mask, diagonal=1)
        return torch.matmul(F.softmax(scores.float(), dim=-1).type_as(q), v)


class MultiQuery(HandWritten):
    """One key head for all query heads, by broadcasting."""

    def __init__(self) -> None:
        super().__init__(key_heads=1)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k, v = k.expand(-1, HEADS, -1, -1), v.expand(-1, HEADS, -1, -1)
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=SIZE**-0.5)


class Functional(nn.Module):
    """Attention by F.multi_head_attention_forward, length first."""

    def __init__(self) -> None:
        super().__init__()
        self.in_weight = nn.Parameter(torch.empty(3 * WIDTH, WIDTH))
        self.in_bias = nn.Parameter(torch.zeros(3 * WIDTH))
        self.out_weight = nn.Parameter(torch.empty(WIDTH, WIDTH))
        self.out_bias = nn.Parameter(torch.zeros(WIDTH))
        for weight in (self.in_weight, self.out_weight):
            nn.init.xavier_uniform_(weight)

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(0, 1)
        mask = torch.full((len(x), len(x)), float("-inf")).triu(1)
        mixed, _ = F.multi_head_attention_forward(
            x, x, x, WIDTH, HEADS, self.in_weight, self.in_bias, None, None, False, 0.0,
            self.out_weight, self.out_bias, training=self.training, need_weights=False,
            attn_mask=mask,
        )  # fmt: skip
        return mixed.transpose(0, 1)


def repeat_kv(x: Tensor, times: int) -> Tensor:
    """Returns x (batch, heads, length, size) with each head repeated, as in LLaMA."""
    batch, heads, length, size = x.shape
    if times == 1:
        return x
    x = x[:, :, None, :, :].expand(batch, heads, times, length, size)
    return x.reshape(batch, heads * times, length, size)
