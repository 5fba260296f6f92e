"""Self-attention and cross-attention, each written in several ways, and other token mixers."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.benchmarks.fuzz_export.choices import Choices
from tests.benchmarks.fuzz_export.parts import MASKS, WRONG_MASKS, visible

LONGEST = 32


class SelfAttention(nn.Module):
    """Rows of tokens to rows of tokens; only some choices are causal."""

    def __init__(self, choices: Choices, topic: str, width: int, heads: int) -> None:
        super().__init__()
        self.kind = choices.one(
            f"{topic}.self",
            ["sdpa", "sdpa_causal", "matmul", "einsum", "module", "fused", "grouped", "baddbmm"],
            ["shift", "causal_conv", "cumulative", "sigmoid", "linear", "gru", "max_pool"],
        )
        self.mask = choices.one(f"{topic}.mask", MASKS, WRONG_MASKS)
        self.bias = choices.one(f"{topic}.bias", ["none", "none", "alibi", "table", "softcap"])
        self.rotary = choices.one(f"{topic}.rotary", ["no", "no", "half", "pairs", "complex"])
        self.heads, self.size = heads, width // heads
        shared = 2 if heads % 2 == 0 else 1
        self.key_heads = heads // shared if self.kind == "grouped" else heads
        self.q = nn.Linear(width, width)
        self.k = nn.Linear(width, self.key_heads * self.size)
        self.v = nn.Linear(width, self.key_heads * self.size)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)
        self.module = nn.MultiheadAttention(width, heads, batch_first=True)
        self.conv = nn.Conv1d(width, width, 3, groups=width)
        self.gru = nn.GRU(width, width, batch_first=True)
        self.distances = nn.Parameter(torch.randn(heads, 2 * LONGEST - 1))
        self.register_buffer("largest", torch.ones(LONGEST, LONGEST).tril().bool())

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        if self.kind in ("shift", "causal_conv", "cumulative", "gru", "max_pool"):
            return self._mixed(x)
        assert isinstance(self.largest, Tensor)
        seen = visible(self.mask, tokens, self.largest)
        if self.kind == "module":
            hidden = ~seen if seen.dim() == 2 else ~seen[:, 0].repeat_interleave(self.heads, 0)
            rows: Tensor = self.module(x, x, x, attn_mask=hidden, need_weights=False)[0]
            return rows
        q, k, v = self._projected(x)
        if self.rotary != "no":
            q, k = self._rotated(q), self._rotated(k)
        mixed: Tensor = self.out(self._attend(q, k, v, seen).transpose(1, 2).flatten(2))
        return mixed

    def _mixed(self, x: Tensor) -> Tensor:
        if self.kind == "shift":
            shifted: Tensor = self.out(F.pad(x[:, :-1], (0, 0, 1, 0)))
            return shifted * torch.sigmoid(x)
        if self.kind == "causal_conv":
            rows: Tensor = self.conv(F.pad(x.transpose(1, 2), (2, 0))).transpose(1, 2)
            return rows
        if self.kind == "max_pool":
            return F.max_pool1d(F.pad(x.transpose(1, 2), (1, 0)), 2, 1).transpose(1, 2)
        if self.kind == "gru":
            states: Tensor = self.gru(x)[0]
            return states
        return x.cumsum(1) / torch.arange(1, x.shape[1] + 1)[:, None]

    def _projected(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns queries, keys and values, each (batch, heads, length, size)."""
        batch, length, _ = x.shape
        if self.kind == "fused":
            q, k, v = self.qkv(x).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
            return q, k, v
        q = self.q(x).view(batch, length, self.heads, self.size).transpose(1, 2)
        k, v = (
            part(x).reshape(batch, -1, self.key_heads, self.size).permute(0, 2, 1, 3)
            for part in (self.k, self.v)
        )
        shared = self.heads // self.key_heads
        return q, k.repeat_interleave(shared, 1), v.repeat_interleave(shared, 1)

    def _rotated(self, x: Tensor) -> Tensor:
        length, half = x.shape[2], self.size // 2
        angles = torch.arange(length)[:, None] / 10 ** torch.linspace(0, 2, half)
        cos, sin = angles.cos(), angles.sin()
        if self.rotary == "complex":
            turned = torch.view_as_complex(x.reshape(*x.shape[:-1], half, 2))
            return torch.view_as_real(
                turned * torch.polar(torch.ones_like(angles), angles)
            ).flatten(3)
        if self.rotary == "pairs":
            a, b = x[..., ::2], x[..., 1::2]
            return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)
        a, b = x.chunk(2, -1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
        if self.kind == "sdpa_causal":
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)
        if self.kind == "linear":
            q, k = F.elu(q) + 1, F.elu(k) + 1
            sums = torch.einsum("bhld,bhle->bhlde", k, v).cumsum(2)
            return torch.einsum("bhld,bhlde->bhle", q, sums) / (q * k.cumsum(2)).sum(-1, True)
        added = self._added(seen)
        if self.kind in ("sdpa", "grouped") and self.bias != "softcap":
            mask = seen if self.bias == "none" and self.mask != "soft" else added
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        if self.kind == "einsum":
            scores = torch.einsum("bhqd,bhkd->bhqk", q, k) / math.sqrt(self.size)
        elif self.kind == "baddbmm":
            flat = torch.bmm(q.flatten(0, 1), k.flatten(0, 1).mT)
            scores = flat.view(*q.shape[:3], -1) * self.size**-0.5
        else:
            scores = q @ k.transpose(-1, -2) * self.size**-0.5
        if self.bias == "softcap":
            scores = 5 * torch.tanh(scores / 5)
        if self.kind == "sigmoid":
            return torch.sigmoid(scores).masked_fill(~seen, 0) @ v
        return torch.softmax(scores + added, -1) @ v

    def _added(self, seen: Tensor) -> Tensor:
        """Returns the numbers that are added to the scores."""
        low = -1e4 if self.mask == "soft" else float("-inf")
        added = torch.zeros(seen.shape).masked_fill(~seen, low)
        length = seen.shape[-1]
        distance = torch.arange(length)[None, :] - torch.arange(length)[:, None]
        if self.bias == "alibi":
            return added + 0.3 * distance * torch.ones(self.heads, 1, 1)
        if self.bias == "table":
            return added + self.distances[:, distance + LONGEST - 1]
        return added


class CrossAttention(nn.Module):
    """Reads the memory for every token."""

    def __init__(self, choices: Choices, topic: str, width: int, heads: int) -> None:
        super().__init__()
        self.kind = choices.one(
            f"{topic}.cross",
            ["sdpa", "module", "matmul", "additive", "pooled", "latest", "flipped"],
            ["if_long", "first_rows", "last_rows", "windowed", "local", "argmax", "numbered"],
        )
        self.heads = heads
        self.module = nn.MultiheadAttention(width, heads, batch_first=True)
        self.q, self.kv, self.out = (
            nn.Linear(width, width),
            nn.Linear(width, 2 * width),
            nn.Linear(width, width),
        )
        self.energy = nn.Linear(width, 1)

    def forward(self, x: Tensor, memory: Tensor, valid: Tensor | None) -> Tensor:
        """Returns rows (batch, length, width).

        Args:
            x: (batch, length, width).
            memory: (batch, places, width).
            valid: (batch, places) bool, or None.
        """
        if self.kind == "pooled":
            mean: Tensor = self.out(memory.mean(1, keepdim=True))
            return x + mean
        if self.kind == "latest":
            last: Tensor = self.out(memory[:, -1:])
            return last * torch.sigmoid(self.q(x))
        if self.kind == "module":
            padding = None if valid is None else ~valid
            rows: Tensor = self.module(x, memory, memory, key_padding_mask=padding)[0]
            return rows
        memory, valid = self._read(memory, valid)
        k, v = self.kv(memory).chunk(2, -1)
        if self.kind == "additive":
            scores = self.energy(torch.tanh(self.q(x)[:, :, None] + k[:, None])).squeeze(-1)
            if valid is not None:
                scores = scores.masked_fill(~valid[:, None], float("-inf"))
            read: Tensor = scores.softmax(-1) @ v
            return read
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (self.q(x), k, v))
        return self._attend(q, k, v, valid)

    def _read(self, memory: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Returns the part of the memory that the choice reads."""
        if self.kind == "if_long" and memory.shape[1] > 7:
            return memory * 0.5, valid
        if self.kind == "first_rows":
            return memory[:, :3], None if valid is None else valid[:, :3]
        if self.kind == "last_rows":
            return memory[:, -3:], None if valid is None else valid[:, -3:]
        if self.kind == "flipped":
            return memory.flip(1), None if valid is None else valid.flip(1)
        if self.kind == "numbered":
            return memory + torch.arange(memory.shape[1])[:, None] / memory.shape[1], valid
        return memory, valid

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, valid: Tensor | None) -> Tensor:
        mask = None if valid is None else valid[:, None, None]
        length, places = q.shape[2], k.shape[2]
        if self.kind == "windowed":  # a token sees the places up to its own number
            near = torch.arange(places)[None] <= torch.arange(length)[:, None] + 2
            mask = near if mask is None else mask & near
        if self.kind == "local":  # a token sees the places near its share of the longest text
            near = (torch.arange(places)[None] - torch.arange(length)[:, None]).abs() < places
            mask = near if mask is None else mask & near
        if self.kind == "argmax":
            best = (q @ k.mT).argmax(-1, keepdim=True).expand(-1, -1, -1, v.shape[-1])
            rows = v.gather(2, best)
        elif self.kind == "matmul":
            scores = q @ k.mT / k.shape[-1] ** 0.5
            if mask is not None:
                scores = scores.masked_fill(~mask, -1e9)
            rows = scores.softmax(-1) @ v
        else:
            rows = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        out: Tensor = self.out(rows.transpose(1, 2).flatten(2))
        return out


class PrefixLayer(nn.Module):
    """A layer of a decoder-only model: memory and tokens are one sequence."""

    def __init__(self, choices: Choices, topic: str, width: int, heads: int) -> None:
        super().__init__()
        self.mask = choices.one(f"{topic}.prefix", ["causal", "full_prefix", "additive"])
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, prefix: int) -> Tensor:
        """Returns rows of the prefix and of the tokens, (batch, prefix + length, width)."""
        numbers = torch.arange(x.shape[1])
        seen = numbers[None, :] <= numbers[:, None]
        if self.mask == "full_prefix":
            seen = seen | (numbers < prefix)[None, :]
        parts = self.qkv(self.norm(x)).chunk(3, -1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        if self.mask == "additive":
            low = torch.zeros(seen.shape).masked_fill(~seen, float("-inf"))
            rows = torch.softmax(q @ k.mT / q.shape[-1] ** 0.5 + low, -1) @ v
        else:
            rows = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        mixed: Tensor = x + self.out(rows.transpose(1, 2).flatten(2))
        return mixed
