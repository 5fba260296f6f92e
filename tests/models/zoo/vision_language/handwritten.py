"""A user's own language model that reads an image before its text."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.models.zoo.captioner import VOCABULARY, WIDTH
from tests.models.zoo.case import Case, random_floats

LONGEST = 120
HEADS = 4


class CausalAttention(nn.Module):
    """Self-attention with one projection for all heads, and a table of visible keys."""

    visible: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.all_heads = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.register_buffer("visible", torch.ones(1, 1, LONGEST, LONGEST).tril())

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = (
            part.view(batch, length, HEADS, width // HEADS).transpose(1, 2)
            for part in self.all_heads(x).split(width, dim=2)
        )
        scores = q @ k.transpose(-2, -1) * (width // HEADS) ** -0.5
        scores = scores.masked_fill(self.visible[:, :, :length, :length] == 0, float("-inf"))
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).contiguous().view(batch, length, width)
        rows: Tensor = self.out(mixed)
        return rows


class ImageGpt(nn.Module):
    """A CNN whose features are the first rows of a language model written by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.cnn = nn.Sequential(
            nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, WIDTH, 4, 4), nn.ReLU()
        )
        self.words = nn.Embedding(VOCABULARY, WIDTH)
        self.positions = nn.Embedding(LONGEST, WIDTH)
        self.attentions = nn.ModuleList(CausalAttention() for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(4))
        self.mlps = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))
            for _ in range(2)
        )
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def encode(self, image: Tensor) -> Tensor:
        maps: Tensor = self.cnn(image)
        return maps.flatten(2).transpose(1, 2)

    def decode(self, tokens: Tensor, features: Tensor) -> Tensor:
        rows = self.transformed(torch.cat([features, self.words(tokens)], 1))
        logits: Tensor = self.head(rows[:, features.shape[1] :])
        return logits

    def transformed(self, rows: Tensor) -> Tensor:
        rows = rows + self.positions(torch.arange(rows.shape[1]))
        for index, (attention, mlp) in enumerate(zip(self.attentions, self.mlps, strict=True)):
            rows = rows + attention(self.norms[2 * index](rows))
            rows = rows + mlp(self.norms[2 * index + 1](rows))
        return rows


IMAGE_BEFORE_TEXT = (
    Case(
        "image-before-handwritten-gpt",
        "image-before-text",
        ImageGpt,
        lambda batch, size: {"image": random_floats(batch, 3, 16, size)},
        sizes=(32,),
        prompts=(1, 5),
        gain=2.5,
        fast=True,
    ),
)
