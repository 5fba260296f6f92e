"""The CNN encoders of the reference model: many memory tokens, or one pooled vector."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hybrid_deploy.export.reference.positions import sinusoidal_positions

COLUMN_PX = 4
"""Width in pixels of the image part that one column of the feature map covers."""

MEMORY_PX = 8
"""Width in pixels of the image part that one memory token of the feature-map form covers."""

MAX_MEMORY = 256
"""Largest number of memory tokens."""


class MemoryEncoder(nn.Module):
    """An encoder in two parts: columns, then memory.

    Attributes:
        columns: module that turns the image into (batch, d_model, 1, columns) float32 features;
            training also recognizes digits in them.
    """

    columns: nn.Module

    def forward(self, image: Tensor) -> Tensor:
        """Returns the memory (batch, memory tokens, d_model) of an image (batch, 1, 32, width)."""
        return self.memory_from_columns(self.columns(image))

    def memory_from_columns(self, columns: Tensor) -> Tensor:
        """Returns the memory of columns (batch, d_model, 1, columns) float32."""
        raise NotImplementedError


class ColumnEncoder(nn.Module):
    """Turns an image of 32 pixels height into one feature vector for every 4 pixels of width."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.stages = nn.Sequential(
            *_convolution(1, 16, (3, 3)),
            nn.MaxPool2d(2),
            *_convolution(16, 32, (3, 3)),
            nn.MaxPool2d(2),
            *_convolution(32, 48, (3, 3)),
            # the width stays: a narrow 1 is only a few pixels wide
            nn.MaxPool2d((2, 1)),
            *_convolution(48, d_model, (4, 3), padding=(0, 1)),
        )

    def forward(self, image: Tensor) -> Tensor:
        """Returns the columns (batch, d_model, 1, width / 4) of an image (batch, 1, 32, width)."""
        columns: Tensor = self.stages(image)
        return columns


class LineContext(nn.Sequential):
    """Mixes the columns of the whole line, so that a feature can mean "third digit, a 7".

    Without it a pooled vector does not hold the order of the digits, and attention over the columns
    cannot find the next digit in a long line.
    """

    def __init__(self, d_model: int) -> None:
        super().__init__(nn.MaxPool2d((1, 2)), WideBlock(d_model), WideBlock(d_model))


class FeatureMapEncoder(MemoryEncoder):
    """Turns every two columns of the feature map into one memory token with its position."""

    positions: Tensor

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.columns = ColumnEncoder(d_model)
        self.context = LineContext(d_model)
        self.register_buffer(
            "positions", sinusoidal_positions(MAX_MEMORY, d_model), persistent=False
        )

    def memory_from_columns(self, columns: Tensor) -> Tensor:
        """Returns memory (batch, width / 8, d_model) of columns (batch, d_model, 1, width / 4)."""
        # (batch, d_model, 1, width / 8) -> (batch, width / 8, d_model)
        memory: Tensor = self.context(columns).squeeze(2).transpose(1, 2)
        return memory + self.positions[: memory.shape[1]]


class PooledEncoder(MemoryEncoder):
    """Averages the feature map to one memory token."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.columns = ColumnEncoder(d_model)
        self.context = LineContext(d_model)
        self.widen = nn.Sequential(*_convolution(d_model, 2 * d_model, (1, 1)))
        # the mean differs little between lines, so the differences are scaled up
        self.norm = nn.BatchNorm1d(2 * d_model)
        self.project = nn.Linear(2 * d_model, d_model)

    def memory_from_columns(self, columns: Tensor) -> Tensor:
        """Returns the memory (batch, 1, d_model) of columns (batch, d_model, 1, columns)."""
        pooled = self.widen(self.context(columns)).mean(dim=(2, 3))
        memory: Tensor = self.project(self.norm(pooled))
        return memory.unsqueeze(1)


class WideBlock(nn.Module):
    """A residual depthwise convolution over 63 columns, then a mix of the channels.

    Its first weights are sums over the columns to the left in a third of the channels, and to the
    right in another third: counting the digits on either side makes "third digit" a local feature.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        reach = 31
        self.spread = nn.Conv2d(
            channels, channels, (1, 2 * reach + 1), padding=(0, reach), groups=channels
        )
        self.mix = nn.Sequential(*_convolution(channels, channels, (1, 1)))
        with torch.no_grad():
            self.spread.weight.mul_(0.1)
            self.spread.weight[0::3, ..., :reach] += 1 / 16
            self.spread.weight[1::3, ..., reach + 1 :] += 1 / 16
            self.spread.weight[2::3, ..., reach] += 1

    def forward(self, columns: Tensor) -> Tensor:
        """Returns mixed columns of the same shape, (batch, channels, 1, width)."""
        mixed: Tensor = columns + self.mix(self.spread(columns))
        return mixed


def _convolution(
    channels_in: int,
    channels_out: int,
    kernel: tuple[int, int],
    padding: tuple[int, int] | None = None,
) -> list[nn.Module]:
    """Returns convolution, batch normalization, ReLU; by default height and width do not change."""
    if padding is None:
        padding = (kernel[0] // 2, kernel[1] // 2)
    return [
        nn.Conv2d(channels_in, channels_out, kernel, padding=padding, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(),
    ]
