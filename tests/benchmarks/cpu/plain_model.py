"""The plain PyTorch model of the `resnet` workload, with a decoder that has no cache."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.benchmarks.cpu.contender import INPUT, Job

_STRIDES = ((1, 1), (2, 2), (2, 1), (2, 1))
_PICTURES = {"resnet": (1, 3, 64, 512), "tiny": (1, 3, 16, 32)}


class _Block(nn.Module):
    """Two convolutions with a residual connection."""

    def __init__(self, channels: int, out: int, stride: tuple[int, int]) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, out, 3, stride, 1, bias=False)
        self.first_norm = nn.BatchNorm2d(out)
        self.second = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.second_norm = nn.BatchNorm2d(out)
        around = nn.Conv2d(channels, out, 1, stride, bias=False)
        same = channels == out and stride == (1, 1)
        self.around = nn.Identity() if same else nn.Sequential(around, nn.BatchNorm2d(out))

    def forward(self, image: Tensor) -> Tensor:
        rows = torch.relu(self.first_norm(self.first(image)))
        rows = self.second_norm(self.second(rows)) + self.around(image)
        return torch.relu(rows)


class LineReader(nn.Module):
    """A ResNet with strides for text lines, and nn.TransformerDecoder.

    A picture of 3 x 64 x 512 becomes 128 memory positions.
    """

    def __init__(
        self,
        channels: Sequence[int] = (64, 128, 256, 512),
        width: int = 256,
        layers: int = 4,
        heads: int = 8,
        vocabulary: int = 100,
        max_length: int = 128,
    ) -> None:
        super().__init__()
        stem = nn.Conv2d(3, channels[0], 7, 2, 3, bias=False)
        body: list[nn.Module] = [stem, nn.BatchNorm2d(channels[0]), nn.ReLU()]
        body.append(nn.MaxPool2d(3, 2, 1))
        before = channels[0]
        for out, stride in zip(channels, _STRIDES, strict=False):
            body += [_Block(before, out, stride), _Block(out, out, (1, 1))]
            before = out
        self.cnn = nn.Sequential(*body)
        self.projection = nn.Linear(before, width)
        self.embedding = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(max_length, width)
        layer = nn.TransformerDecoderLayer(width, heads, 4 * width, batch_first=True)
        self.decoder = nn.TransformerDecoder(layer, layers)
        self.head = nn.Linear(width, vocabulary)

    def encode(self, image: Tensor) -> Tensor:
        """Returns the memory, (batch, positions, width) float32."""
        memory: Tensor = self.projection(self.cnn(image).flatten(2).transpose(1, 2))
        return memory

    def decode(self, tokens: Tensor, memory: Tensor, causal: bool | None = None) -> Tensor:
        """Returns the logits of every position, (batch, length, vocabulary) float32.

        Args:
            tokens: (batch, length) int64.
            memory: (batch, positions, width) float32.
            causal: True states that the mask is causal; None makes nn.TransformerDecoder test it.
        """
        length = tokens.shape[1]
        rows = self.embedding(tokens) + self.positions(torch.arange(length))
        mask = torch.full((length, length), float("-inf")).triu(1)
        rows = self.decoder(rows, memory, tgt_mask=mask, tgt_is_causal=causal)
        logits: Tensor = self.head(rows)
        return logits


def make_reader(name: str) -> LineReader:
    """Returns the model of a workload with seeded random weights."""
    torch.manual_seed(3)
    model = LineReader() if name == "resnet" else LineReader((8,), 32, 1, 4, 20, 16)
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            if parameter.dim() > 1:  # nn.TransformerDecoder copies one layer
                nn.init.xavier_uniform_(parameter)
        randomize_biases(model)
    return model.eval()


def write_reader(job: Job) -> None:
    """Writes the weights of a workload's model, and a random picture as its input."""
    save_file(make_reader(job.workload).state_dict(), job.model)
    write_picture(job, _PICTURES[job.workload])


def write_picture(job: Job, shape: Sequence[int]) -> None:
    """Writes a random picture of the given shape as a workload's input."""
    picture = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    np.savez(job.inputs, **{INPUT: picture})  # type: ignore[arg-type]


def load_reader(name: str, path: Path) -> LineReader:
    """Returns the model of a workload with its weights from a file."""
    model = make_reader(name)
    model.load_state_dict(load_file(path))
    return model.eval()


def randomize_biases(model: nn.Module) -> None:
    """Fills the biases with random numbers; the caller turns gradients off.

    Exporters remove the zero biases of a new model; a trained model has no zero biases.
    """
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.normal_(0, 0.02)
