"""pix2tex (LaTeX-OCR): a hybrid ViT for images of any size, and a decoder of x-transformers."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models.zoo.captioner import HEADS, POSITIONS, VOCABULARY, WIDTH
from tests.models.zoo.case import build
from tests.models.zoo.published.case_makers import lines_of_text

_PATCH, _WIDEST, _HIGHEST = 8, 64, 16


class StdConv2d(nn.Conv2d):
    """A convolution with standardized weights, standardized by a batch norm in training mode."""

    def forward(self, x: Tensor) -> Tensor:
        flat = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(flat, None, None, training=True, momentum=0.0, eps=1e-6)
        return F.conv2d(
            x, weight.reshape_as(self.weight), self.bias, self.stride, self.padding
        )  # fmt: skip


class Bottleneck(nn.Module):
    """Two standardized convolutions with group norms, and a shortcut."""

    def __init__(self, narrow: int, wide: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = StdConv2d(narrow, wide, 3, 2, 1, bias=False), nn.GroupNorm(4, wide)
        self.conv2, self.norm2 = StdConv2d(wide, wide, 3, 1, 1, bias=False), nn.GroupNorm(4, wide)
        self.downsample = StdConv2d(narrow, wide, 1, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(y + self.downsample(x))


class ScaleNorm(nn.Module):
    """Rows divided by their length, times one learned number."""

    def __init__(self, eps: float = 1e-5) -> None:
        super().__init__()
        self.scale, self.eps = WIDTH**-0.5, eps
        self.g = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        norm = torch.norm(x, dim=-1, keepdim=True) * self.scale
        rows: Tensor = x / norm.clamp(min=self.eps) * self.g
        return rows


class GLU(nn.Module):
    """A projection to a value and a gate."""

    def __init__(self, activation: Callable[[Tensor], Tensor] = F.gelu) -> None:
        super().__init__()
        self.proj, self.act = nn.Linear(WIDTH, 4 * WIDTH), activation

    def forward(self, x: Tensor) -> Tensor:
        x, gate = self.proj(x).chunk(2, dim=-1)
        return x * self.act(gate)


class Attention(nn.Module):
    """x-transformers' attention: masks of arange, attention on attention, memory keys."""

    def __init__(self, *, causal: bool, on_attn: bool, memory_keys: int = 0) -> None:
        super().__init__()
        self.causal, self.scale = causal, (WIDTH // HEADS) ** -0.5
        self.to_q, self.to_k, self.to_v = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(3))
        gated = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GLU())
        self.to_out = gated if on_attn else nn.Linear(WIDTH, WIDTH)
        self.memory_keys = memory_keys
        if memory_keys:
            self.mem_k = nn.Parameter(torch.randn(HEADS, memory_keys, WIDTH // HEADS))
            self.mem_v = nn.Parameter(torch.randn(HEADS, memory_keys, WIDTH // HEADS))

    def forward(
        self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        kv_input = x if context is None else context
        q, k, v = (
            t.reshape(t.shape[0], t.shape[1], HEADS, -1).permute(0, 2, 1, 3)
            for t in (self.to_q(x), self.to_k(kv_input), self.to_v(kv_input))
        )
        if self.memory_keys:
            k = torch.cat((self.mem_k.expand(x.shape[0], -1, -1, -1), k), dim=-2)
            v = torch.cat((self.mem_v.expand(x.shape[0], -1, -1, -1), v), dim=-2)
        dots = torch.einsum("bhid,bhjd->bhij", q, k) * self.scale
        mask_value = -torch.finfo(dots.dtype).max
        if mask is not None and context is None:
            seen = mask[:, None, :, None] * mask[:, None, None, :]
            dots.masked_fill_(~F.pad(seen, (self.memory_keys, 0), value=True), mask_value)
        if self.causal:
            i, j = dots.shape[-2:]
            r = torch.arange(i, device=x.device)
            future = r[None, None, :, None] < r[None, None, None, :]
            dots.masked_fill_(F.pad(future, (j - i, 0), value=False), mask_value)
        out = torch.einsum("bhij,bhjd->bhid", F.softmax(dots, dim=-1), v)
        rows: Tensor = self.to_out(out.permute(0, 2, 1, 3).flatten(2))
        return rows


class AttentionLayers(nn.Module):
    """Norm, block and residual for each letter of `kinds`: attention, cross-attention, feed."""

    def __init__(self, kinds: str, norm: Callable[[], nn.Module], memory_keys: int) -> None:
        super().__init__()
        self.kinds = kinds
        feed = build(lambda: nn.Sequential(GLU(), nn.Dropout(0.1), nn.Linear(2 * WIDTH, WIDTH)))
        blocks: dict[str, Callable[[], nn.Module]] = {
            "a": build(Attention, causal=True, on_attn=True, memory_keys=memory_keys),
            "c": build(Attention, causal=False, on_attn=True),
            "f": feed,
        }
        self.layers = nn.ModuleList(nn.ModuleList([norm(), blocks[kind]()]) for kind in kinds)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
        for kind, layer in zip(self.kinds, self.layers, strict=True):
            norm, block = cast(nn.ModuleList, layer)
            residual, x = x, norm(x)
            if kind == "a":
                x = block(x, mask=mask)
            elif kind == "c":
                x = block(x, context=context)
            else:
                x = block(x)
            x = x + residual
        return x


class Pix2Tex(nn.Module):
    """The encoder picks position vectors of a grid for any image size.

    Args:
        masked: whether a mask of ones is given, as pix2tex does in training.
        norm: norm of the decoder.
        memory_keys: number of learned keys of each self-attention.
    """

    def __init__(
        self,
        *,
        masked: bool = False,
        norm: Callable[[], nn.Module] = ScaleNorm,
        memory_keys: int = 0,
    ) -> None:
        super().__init__()
        self.masked = masked
        self.backbone = nn.Sequential(
            StdConv2d(1, 16, 7, 2, 3, bias=False), nn.GroupNorm(4, 16), nn.ReLU(),
            nn.MaxPool2d(2, 2), Bottleneck(16, 32),
        )  # fmt: skip
        self.proj = nn.Conv2d(32, WIDTH, 1)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        cells = (_HIGHEST // _PATCH) * (_WIDEST // _PATCH)
        self.pos_embed = nn.Parameter(torch.randn(1, cells + 1, WIDTH))
        self.attend = Attention(causal=False, on_attn=False)
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.token_emb = nn.Embedding(VOCABULARY, WIDTH)
        self.pos_emb = nn.Embedding(POSITIONS, WIDTH)
        self.decoder = AttentionLayers("acf", norm, memory_keys)
        self.norm, self.to_logits = norm(), nn.Linear(WIDTH, VOCABULARY)

    def encode(self, image: Tensor) -> Tensor:
        batch, _, height, width = image.shape
        x = self.proj(self.backbone(image)).flatten(2).transpose(1, 2)
        x = torch.cat((self.cls_token.expand(batch, -1, -1), x), dim=1)
        h, w = height // _PATCH, width // _PATCH
        jumps = torch.arange(h)[:, None].expand(h, w).reshape(-1) * (_WIDEST // _PATCH - w)
        places = torch.cat((torch.zeros(1), jumps + torch.arange(h * w) + 1), dim=0).long()
        x = x + self.pos_embed[:, places]
        memory: Tensor = self.norm2(x + self.attend(self.norm1(x)))
        return memory

    def decode(self, tokens: Tensor, memory: Tensor) -> Tensor:
        mask = torch.full_like(tokens, True, dtype=torch.bool) if self.masked else None
        x = self.token_emb(tokens)
        x = x + self.pos_emb(torch.arange(x.shape[1], device=x.device))[None]
        logits: Tensor = self.to_logits(self.norm(self.decoder(x, memory, mask)))
        return logits


CASES = (
    lines_of_text("pix2tex", Pix2Tex, channels=1),
    lines_of_text("pix2tex-masked", build(Pix2Tex, masked=True), channels=1),
    lines_of_text(
        "x-transformers-layer-norm", build(Pix2Tex, norm=build(nn.LayerNorm, WIDTH)), channels=1
    ),
)
