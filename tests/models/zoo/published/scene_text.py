"""Readers of text in photos with their own transformers: NRTR, SATRN, MASTER."""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models.zoo.captioner import (
    HEADS,
    HIDDEN,
    VOCABULARY,
    WIDTH,
    SinusoidalPositions,
)
from tests.models.zoo.case import build
from tests.models.zoo.published.case_makers import PADDING, lines_of_text


class MultiHeadAttention(nn.Module):
    """MMOCR's attention, whose mask is 0 for hidden keys."""

    def __init__(self, *, bias: bool = False) -> None:
        super().__init__()
        self.linear_q, self.linear_k, self.linear_v = (
            nn.Linear(WIDTH, WIDTH, bias=bias) for _ in range(3)
        )
        self.fc, self.proj_drop = nn.Linear(WIDTH, WIDTH, bias=bias), nn.Dropout(0.1)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        batch, len_q, _ = q.size()
        len_k, size = k.size(1), WIDTH // HEADS
        q = self.linear_q(q).view(batch, len_q, HEADS, size).transpose(1, 2)
        k = self.linear_k(k).view(batch, len_k, HEADS, size).transpose(1, 2)
        v = self.linear_v(v).view(batch, len_k, HEADS, size).transpose(1, 2)
        if mask is not None:
            if mask.dim() == 3:
                mask = mask.unsqueeze(1)
            elif mask.dim() == 2:
                mask = mask.unsqueeze(1).unsqueeze(1)
        attn = torch.matmul(q / size**0.5, k.transpose(2, 3))
        if mask is not None:
            attn = attn.masked_fill(mask == 0, float("-inf"))
        out = torch.matmul(F.softmax(attn, dim=-1), v)
        out = out.transpose(1, 2).contiguous().view(batch, len_q, WIDTH)
        rows: Tensor = self.proj_drop(self.fc(out))
        return rows


class FeedForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w_1, self.w_2 = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        rows: Tensor = self.dropout(self.w_2(F.gelu(self.w_1(x))))
        return rows


class DecoderLayer(nn.Module):
    """A layer whose blocks run in a listed order, with norms before them."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(WIDTH) for _ in range(3))
        self.self_attn, self.enc_attn = MultiHeadAttention(), MultiHeadAttention()
        self.mlp = FeedForward()

    def forward(
        self, x: Tensor, memory: Tensor, self_attn_mask: Tensor, enc_mask: Tensor | None
    ) -> Tensor:
        normed = self.norm1(x)
        x = x + self.self_attn(normed, normed, normed, self_attn_mask)
        normed = self.norm2(x)
        x = x + self.enc_attn(normed, memory, memory, enc_mask)
        rows: Tensor = x + self.mlp(self.norm3(x))
        return rows


class NrtrDecoder(nn.Module):
    """NRTR's decoder in MMOCR: the mask joins padding tokens and later tokens with `&`."""

    def __init__(self) -> None:
        super().__init__()
        self.trg_word_emb = nn.Embedding(VOCABULARY, WIDTH, padding_idx=PADDING)
        self.position_enc = SinusoidalPositions()
        self.layer_stack = nn.ModuleList(DecoderLayer() for _ in range(2))
        self.layer_norm = nn.LayerNorm(WIDTH, eps=1e-6)
        self.classifier = nn.Linear(WIDTH, VOCABULARY)

    def decode(self, tokens: Tensor, memory: Tensor, enc_mask: Tensor | None = None) -> Tensor:
        length = tokens.size(1)
        past = 1 - torch.triu(torch.ones((length, length), device=tokens.device), diagonal=1)
        mask = (tokens != PADDING).unsqueeze(-2) & past.unsqueeze(0).bool()
        rows = self.position_enc(self.trg_word_emb(tokens))
        for layer in self.layer_stack:
            rows = layer(rows, memory, mask, enc_mask)
        logits: Tensor = self.classifier(self.layer_norm(rows))
        return logits


class EncoderLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attn, self.mlp = MultiHeadAttention(), FeedForward()

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        normed = self.norm1(x)
        x = x + self.attn(normed, normed, normed, mask)
        rows: Tensor = x + self.mlp(self.norm2(x))
        return rows


class Nrtr(NrtrDecoder):
    """NRTR: a modality transform of convolutions turns columns into rows for the encoder.

    Args:
        ratios: whether the valid ratio of each image's width masks the memory.
    """

    def __init__(self, *, ratios: bool = False) -> None:
        super().__init__()
        self.ratios = ratios
        self.conv_1 = nn.Conv2d(3, 16, 3, 2, 1)
        self.bn_1 = nn.BatchNorm2d(16)
        self.conv_2 = nn.Conv2d(16, 24, 3, 2, 1)
        self.bn_2 = nn.BatchNorm2d(24)
        self.linear = nn.Linear(4 * 24, WIDTH)
        self.encoder = EncoderLayer()
        self.encoder_norm = nn.LayerNorm(WIDTH)

    def encode(self, image: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = self.bn_1(F.relu(self.conv_1(image)))
        x = self.bn_2(F.relu(self.conv_2(x)))
        n, c, h, w = x.size()
        x = x.permute(0, 3, 2, 1).contiguous().view(n, w, h * c)
        x = self.linear(x)
        mask = None
        if self.ratios:
            valid = (image.abs().mean((1, 2, 3)) * w).clamp(1, w)  # stands for the valid ratio
            mask = (torch.arange(w)[None] < valid[:, None]).to(x.dtype)
        memory: Tensor = self.encoder_norm(self.encoder(x, mask))
        return memory if mask is None else (memory, mask)


class SatrnEncoderLayer(nn.Module):
    """Self-attention over all cells, then a feed-forward network of convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attn = MultiHeadAttention()
        self.conv1, self.bn1 = nn.Conv2d(WIDTH, HIDDEN, 1, bias=False), nn.BatchNorm2d(HIDDEN)
        self.depthwise = nn.Conv2d(HIDDEN, HIDDEN, 3, padding=1, groups=HIDDEN, bias=False)
        self.bn2 = nn.BatchNorm2d(HIDDEN)
        self.conv2, self.bn3 = nn.Conv2d(HIDDEN, WIDTH, 1, bias=False), nn.BatchNorm2d(WIDTH)

    def forward(self, x: Tensor, h: int, w: int) -> Tensor:
        n, hw, c = x.size()
        normed = self.norm1(x)
        x = x + self.attn(normed, normed, normed)
        residual = x
        x = self.norm2(x).transpose(1, 2).contiguous().view(n, c, h, w)
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.depthwise(x)))
        x = F.relu(self.bn3(self.conv2(x)))
        return residual + x.view(n, c, hw).transpose(1, 2)


class Satrn(NrtrDecoder):
    """SATRN: a shallow CNN, positions of two axes with learned scales, 2D self-attention."""

    h_position_encoder: Tensor
    w_position_encoder: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(3, 24, 3, 1, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU(True),
            nn.MaxPool2d(2, 2),
            nn.Conv2d(24, WIDTH, 3, 1, 1, bias=False), nn.BatchNorm2d(WIDTH), nn.ReLU(True),
            nn.MaxPool2d(2, 2),
        )  # fmt: skip
        table = SinusoidalPositions().pe[0].transpose(0, 1)  # (width, positions)
        self.register_buffer("h_position_encoder", table.view(1, WIDTH, -1, 1))
        self.register_buffer("w_position_encoder", table.view(1, WIDTH, 1, -1))
        self.h_scale, self.w_scale = self.scale_layer(), self.scale_layer()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.layer, self.encoder_norm = SatrnEncoderLayer(), nn.LayerNorm(WIDTH)

    def scale_layer(self) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(WIDTH, WIDTH, 1), nn.ReLU(inplace=True), nn.Conv2d(WIDTH, WIDTH, 1),
            nn.Sigmoid(),
        )  # fmt: skip

    def encode(self, image: Tensor) -> Tensor:
        x = self.conv(image)
        _, c, h, w = x.size()
        pooled = self.pool(x)
        rows = self.h_scale(pooled) * self.h_position_encoder[:, :, :h, :]
        columns = self.w_scale(pooled) * self.w_position_encoder[:, :, :, :w]
        x = x + rows + columns
        x = x.reshape(x.size(0), c, h * w).permute(0, 2, 1).contiguous()
        memory: Tensor = self.encoder_norm(self.layer(x, h, w))
        return memory


def clones(module: nn.Module, count: int) -> nn.ModuleList:
    return nn.ModuleList([copy.deepcopy(module) for _ in range(count)])


class MultiAspectContext(nn.Module):
    """MASTER's global context attention: some heads weigh the cells of their channels."""

    def __init__(self, channels: int, headers: int = 4) -> None:
        super().__init__()
        self.headers, self.single = headers, channels // headers
        self.conv_mask = nn.Conv2d(self.single, 1, kernel_size=1)
        self.channel_add_conv = nn.Sequential(
            nn.Conv2d(channels, 16, 1), nn.LayerNorm([16, 1, 1]), nn.ReLU(inplace=True),
            nn.Conv2d(16, channels, 1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        batch, channel, height, width = x.size()
        heads = x.view(batch * self.headers, self.single, height, width)
        values = heads.view(batch * self.headers, self.single, height * width).unsqueeze(1)
        mask = self.conv_mask(heads).view(batch * self.headers, 1, height * width)
        mask = torch.softmax(mask / math.sqrt(self.single), dim=2)
        context = torch.matmul(values, mask.unsqueeze(-1)).view(batch, channel, 1, 1)
        rows: Tensor = x + self.channel_add_conv(context)
        return rows


class Master(nn.Module):
    """MASTER: a CNN with global context, a decoder with cloned linears and a mask of bytes.

    Args:
        padding_symbol: id of the padding token, whose row would see all tokens, later ones too.
    """

    def __init__(self, padding_symbol: int = VOCABULARY) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 32, 3, 2, 1), nn.BatchNorm2d(32)
        self.context = MultiAspectContext(32)
        self.conv2, self.bn2 = nn.Conv2d(32, WIDTH, 3, 2, 1), nn.BatchNorm2d(WIDTH)
        self.encoder_positions, self.positions = SinusoidalPositions(), SinusoidalPositions()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.self_attention = clones(self.projections(), 2)
        self.source_attention = clones(self.projections(), 2)
        self.feed_forward = clones(FeedForward(), 2)
        self.layer_norms = clones(nn.LayerNorm(WIDTH), 6)
        self.norm, self.fc = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCABULARY)
        self.padding_symbol = padding_symbol

    def projections(self) -> nn.ModuleList:
        return clones(nn.Linear(WIDTH, WIDTH), 4)

    def encode(self, image: Tensor) -> Tensor:
        x = self.context(F.relu(self.bn1(self.conv1(image))))
        x = F.relu(self.bn2(self.conv2(x)))
        b, c, h, w = x.shape
        memory: Tensor = self.encoder_positions(x.view(b, c, h * w).permute(0, 2, 1))
        return memory

    def attend(
        self, linears: nn.ModuleList, query: Tensor, keys: Tensor, mask: Tensor | None
    ) -> Tensor:
        batch = query.size(0)
        q, k, v = (
            linear(x).view(batch, -1, HEADS, WIDTH // HEADS).transpose(1, 2)
            for linear, x in zip(linears, (query, keys, keys), strict=False)
        )
        score = torch.matmul(q, k.transpose(-2, -1)) / math.sqrt(WIDTH // HEADS)
        if mask is not None:
            score = score.masked_fill(mask == 0, -6.55e4)
        x = torch.matmul(F.softmax(score, dim=-1), v)
        x = x.transpose(1, 2).contiguous().view(batch, -1, WIDTH)
        rows: Tensor = linears[3](x)
        return rows

    def decode(self, tokens: Tensor, memory: Tensor) -> Tensor:
        length = tokens.size(1)
        padding = (tokens != self.padding_symbol).unsqueeze(1).unsqueeze(3)
        past = torch.tril(torch.ones((length, length), dtype=torch.uint8, device=tokens.device))
        mask = padding & past.bool()
        x = self.positions(self.embedding(tokens) * math.sqrt(WIDTH))
        for n in range(2):
            first, second, third = self.layer_norms[3 * n : 3 * n + 3]
            normed = first(x)
            x = x + self.attend(self.self_attention[n], normed, normed, mask)  # type: ignore[arg-type]
            x = x + self.attend(self.source_attention[n], second(x), memory, None)  # type: ignore[arg-type]
            x = x + self.feed_forward[n](third(x))
        logits: Tensor = self.fc(self.norm(x))
        return logits


CASES = (
    lines_of_text("nrtr", Nrtr),
    lines_of_text("nrtr-valid-ratio", build(Nrtr, ratios=True)),
    lines_of_text("satrn", Satrn),
    lines_of_text("master", Master, channels=1),
)
