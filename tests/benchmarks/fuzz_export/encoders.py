"""Random encoders of feature rows, images and token ids, whose sizes vary."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.benchmarks.fuzz_export.choices import Choices
from tests.benchmarks.fuzz_export.parts import ACTIVATIONS, FeedForward, norm

FEATURES = 6
HEIGHT = 8
WORDS = 17

INPUTS = {
    "features": (
        "features",
        "features_mask",
        "features_scale",
        "features_ids",
        "features_double",
        "features_half",
    ),
    "image": ("image",),
    "ids": ("ids",),
}
"""Kinds of inputs by the name of the main one."""


class Encoder(nn.Module):
    """Feature rows, an image or ids to memory (batch, places, width).

    Args:
        choices: draws the parts.
        kind: kind of the input, one of `INPUTS`.
        width: width of the memory.
    """

    def __init__(self, choices: Choices, kind: str, width: int) -> None:
        super().__init__()
        self.kind = kind
        self.sizes = choices.one(
            "sizes",
            ["as_is", "as_is", "every_second", "pad_to_4", "interpolate"],
            ["pad_if", "trim_if", "pairs", "ceil_same", "halves", "branch", "cumsum", "gru", "odd"],
        )
        self.mixer = choices.one(
            "mixer", ["none", "torch_layer", "conv", "positions"], ["flip", "global_mean", "pool"]
        )
        self.activation = ACTIVATIONS[choices.one("encoder.act", list(ACTIVATIONS))]
        self.linear = nn.Linear(FEATURES, width)
        self.patches = nn.Conv2d(1, width, (HEIGHT, 4), (HEIGHT, 2))
        self.words = nn.Embedding(WORDS, width)
        self.conv = nn.Conv1d(width, width, 3, 2)
        self.same = nn.Conv1d(width, width, 3, 1, 1)
        self.pairs = nn.Linear(2 * width, width)
        self.gru = nn.GRU(width, width, batch_first=True)
        self.layer = nn.TransformerEncoderLayer(
            width, 2, 2 * width, 0.0, batch_first=True, norm_first=choices.one(
                "norm_first", ["yes", "no"]
            ) == "yes",
        )  # fmt: skip
        self.norm = norm(choices, "encoder.norm", width)
        self.feed_forward = FeedForward(choices, "encoder", width)

    def forward(self, value: Tensor) -> Tensor:
        """Returns the memory."""
        if self.kind == "image":
            rows = self.patches(value).flatten(2).transpose(1, 2)
        elif self.kind == "ids":
            rows = self.words(value)
        else:
            rows = self.activation(self.linear(value.float()))
        rows = self._resized(rows)
        rows = self._mixed(rows)
        rows = self.norm(rows)
        memory: Tensor = rows + self.feed_forward(rows)
        return memory

    def _resized(self, x: Tensor) -> Tensor:
        """Changes the number of rows, (batch, rows, width)."""
        length = x.shape[1]
        if self.sizes == "every_second":
            return x[:, ::2]
        if self.sizes == "pad_to_4":
            return F.pad(x, (0, 0, 0, -length % 4))
        if self.sizes == "pad_if":
            return F.pad(x, (0, 0, 0, 4 - length % 4)) if length % 4 else x
        if self.sizes == "trim_if":
            return x[:, : length - length % 3] if length % 3 else x
        if self.sizes == "pairs":
            trimmed = x[:, : length // 2 * 2]
            rows: Tensor = self.pairs(trimmed.reshape(x.shape[0], length // 2, -1))
            return rows
        if self.sizes == "ceil_same":
            needed = max((math.ceil(length / 2) - 1) * 2 + 3 - length, 0)
            if needed > 0:
                x = F.pad(x, (0, 0, needed // 2, needed - needed // 2))
            return self.activation(self.conv(x.transpose(1, 2))).transpose(1, 2)
        if self.sizes == "interpolate":
            scaled = F.interpolate(x.transpose(1, 2), scale_factor=0.5, mode="nearest")
            return scaled.transpose(1, 2)
        if self.sizes == "halves":
            return x[:, : int(length * 0.75)]
        if self.sizes == "branch":
            return x * 0.5 if length > 10 else x
        if self.sizes == "odd":
            return x + 1 if length % 2 else x
        if self.sizes == "cumsum":
            return x.cumsum(1) / length
        if self.sizes == "gru":
            states: Tensor = self.gru(x)[0]
            return states
        return x

    def _mixed(self, x: Tensor) -> Tensor:
        if self.mixer == "torch_layer":
            rows: Tensor = self.layer(x)
            return rows
        if self.mixer == "conv":
            return x + self.activation(self.same(x.transpose(1, 2))).transpose(1, 2)
        if self.mixer == "positions":
            numbers = torch.arange(x.shape[1])[:, None]
            steps = numbers / torch.arange(1, x.shape[2] + 1)
            return x + torch.sin(steps)
        if self.mixer == "flip":
            return x + x.flip(1)
        if self.mixer == "global_mean":
            return torch.cat([x.mean(1, keepdim=True), x], 1)
        if self.mixer == "pool":
            return F.adaptive_avg_pool1d(x.transpose(1, 2), 5).transpose(1, 2)
        return x
