"""Two larger readers of digit lines, written the ordinary way without a key-value cache."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

from safetensors.torch import load_file
from torch import Tensor, nn

from hybrid_deploy.export.reference.encoder import MAX_MEMORY, LineContext, MemoryEncoder
from hybrid_deploy.export.reference.model import LineReader
from hybrid_deploy.export.reference.positions import sinusoidal_positions
from hybrid_deploy.export.reference.vocabulary import MAX_LENGTH, PAD, VOCABULARY

ReaderForm = Literal["deep", "hybrid"]
FORMS: tuple[ReaderForm, ...] = ("deep", "hybrid")

D_MODEL = 128
HEADS = 4
D_FEEDFORWARD = 256


class Reader(LineReader):
    """An encoder, and a pre-norm Transformer decoder over the whole sequence.

    Args:
        encoder: encoder of the image.
        layers: number of decoder layers.
    """

    positions: Tensor

    def __init__(self, encoder: MemoryEncoder, *, layers: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.embedding = nn.Embedding(len(VOCABULARY), D_MODEL, padding_idx=PAD)
        # decode multiplies by sqrt(d_model), so the product has unit variance like the positions
        nn.init.normal_(self.embedding.weight, std=D_MODEL**-0.5)
        self.register_buffer(
            "positions", sinusoidal_positions(MAX_LENGTH, D_MODEL), persistent=False
        )
        layer = nn.TransformerDecoderLayer(
            D_MODEL, HEADS, D_FEEDFORWARD, dropout=0.0, batch_first=True, norm_first=True
        )
        self.decoder = nn.TransformerDecoder(layer, layers, norm=nn.LayerNorm(D_MODEL))
        self.head = nn.Linear(D_MODEL, len(VOCABULARY))

    def decode(self, tokens: Tensor, memory: Tensor) -> Tensor:
        """Returns the logits (batch, length, vocabulary) of the token after each given token."""
        length = tokens.shape[1]
        embedded = self.embedding(tokens) * math.sqrt(D_MODEL) + self.positions[:length]
        mask = nn.Transformer.generate_square_subsequent_mask(length, device=tokens.device)
        decoded = self.decoder(embedded, memory, tgt_mask=mask, tgt_is_causal=True)
        logits: Tensor = self.head(decoded)
        return logits


class ResidualEncoder(MemoryEncoder):
    """Four stages of two basic blocks as in ResNet-18, then a mix of the columns of the line."""

    positions: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.columns = nn.Sequential(
            *_convolution(1, 16, 3, padding=1),
            nn.MaxPool2d(2),
            *_stage(16, 16, stride=(1, 1)),
            *_stage(16, 32, stride=(2, 2)),
            # the width stays: a narrow 1 is only a few pixels wide
            *_stage(32, 32, stride=(2, 1)),
            *_stage(32, 48, stride=(2, 1)),
            *_convolution(48, D_MODEL, (2, 1)),
        )
        self.context = LineContext(D_MODEL)
        self.register_buffer(
            "positions", sinusoidal_positions(MAX_MEMORY, D_MODEL), persistent=False
        )

    def memory_from_columns(self, columns: Tensor) -> Tensor:
        """Returns memory (batch, width / 8, d_model) for columns (batch, d_model, 1, width / 4)."""
        memory: Tensor = self.context(columns).squeeze(2).transpose(1, 2)
        return memory + self.positions[: memory.shape[1]]


class BasicBlock(nn.Module):
    """Two convolutions and a residual add (https://arxiv.org/abs/1512.03385)."""

    def __init__(self, channels_in: int, channels_out: int, stride: tuple[int, int]) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            *_convolution(channels_in, channels_out, 3, stride=stride, padding=1),
            nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels_out),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != (1, 1) or channels_in != channels_out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride=stride, bias=False),
                nn.BatchNorm2d(channels_out),
            )

    def forward(self, features: Tensor) -> Tensor:
        """Returns features (batch, channels_out, height / stride, width / stride)."""
        return nn.functional.relu(self.shortcut(features) + self.residual(features))


class AttentiveEncoder(MemoryEncoder):
    """A convolutional stem, then a pre-norm Transformer encoder over its columns."""

    positions: Tensor

    def __init__(self, *, layers: int) -> None:
        super().__init__()
        self.columns = nn.Sequential(
            *_convolution(1, 16, 3, padding=1),
            nn.MaxPool2d(2),
            *_convolution(16, 32, 3, padding=1),
            nn.MaxPool2d(2),
            *_convolution(32, 32, 3, padding=1),
            nn.MaxPool2d((2, 1)),
            *_convolution(32, D_MODEL, (4, 3), padding=(0, 1)),
        )
        self.pool = nn.MaxPool2d((1, 2))
        self.register_buffer(
            "positions", sinusoidal_positions(MAX_MEMORY, D_MODEL), persistent=False
        )
        layer = nn.TransformerEncoderLayer(
            D_MODEL, HEADS, D_FEEDFORWARD, dropout=0.0, batch_first=True, norm_first=True
        )
        self.context = nn.TransformerEncoder(
            layer, layers, norm=nn.LayerNorm(D_MODEL), enable_nested_tensor=False
        )

    def memory_from_columns(self, columns: Tensor) -> Tensor:
        """Returns memory (batch, width / 8, d_model) for columns (batch, d_model, 1, width / 4)."""
        embedded = self.pool(columns).squeeze(2).transpose(1, 2)
        memory: Tensor = self.context(embedded + self.positions[: embedded.shape[1]])
        return memory


def build(form: ReaderForm) -> Reader:
    """Returns a reader with new weights."""
    if form == "deep":
        return Reader(ResidualEncoder(), layers=6)
    return Reader(AttentiveEncoder(layers=3), layers=3)


def load_reader(form: ReaderForm) -> Reader:
    """Returns the trained reader of one form, in eval mode."""
    model = build(form)
    model.load_state_dict(load_file(weights_path(form)))
    return model.eval()


def weights_path(form: ReaderForm) -> Path:
    """Returns the file that holds the weights of one form."""
    return Path(__file__).with_name(f"{form}.safetensors")


def _stage(channels_in: int, channels_out: int, stride: tuple[int, int]) -> list[nn.Module]:
    return [
        BasicBlock(channels_in, channels_out, stride),
        BasicBlock(channels_out, channels_out, (1, 1)),
    ]


def _convolution(
    channels_in: int,
    channels_out: int,
    kernel: int | tuple[int, int],
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
) -> list[nn.Module]:
    """Returns convolution, batch normalization and ReLU."""
    return [
        nn.Conv2d(channels_in, channels_out, kernel, stride, padding, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(),
    ]
