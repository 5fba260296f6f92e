"""Encoders of sound, video, text, two inputs and padded images."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models.zoo.captioner import VOCABULARY, WIDTH, SinusoidalPositions
from tests.models.zoo.torch_decoders import TorchDecoder


class AudioStem(nn.Module):
    """Whisper's stem: two 1-D convolutions over (batch, mels, frames), sinusoids, one layer."""

    def __init__(self, mels: int = 20) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(mels, WIDTH, kernel_size=3, padding=1)
        self.conv2 = nn.Conv1d(WIDTH, WIDTH, kernel_size=3, stride=2, padding=1)
        self.positions = SinusoidalPositions()
        self.layer = nn.TransformerEncoderLayer(WIDTH, 4, 96, batch_first=True, norm_first=True)

    def forward(self, features: Tensor) -> Tensor:
        x = F.gelu(self.conv2(F.gelu(self.conv1(features))))
        memory: Tensor = self.layer(self.positions(x.permute(0, 2, 1)))
        return memory


class Video3d(nn.Module):
    """3-D convolutions over (batch, channels, frames, height, width)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(3, 16, kernel_size=3, stride=(1, 2, 2), padding=1)
        self.norm = nn.BatchNorm3d(16)
        self.conv2 = nn.Conv3d(16, WIDTH, kernel_size=3, stride=(1, 2, 2), padding=1)

    def forward(self, video: Tensor) -> Tensor:
        x = self.conv2(F.relu(self.norm(self.conv1(video))))
        memory: Tensor = x.mean(dim=(3, 4)).transpose(1, 2)
        return memory


class VideoPerFrame(nn.Module):
    """One 2-D CNN for all frames of (batch, frames, channels, height, width)."""

    def __init__(self) -> None:
        super().__init__()
        self.cnn = nn.Sequential(
            nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, WIDTH, 3, 2, 1)
        )
        self.time = nn.Embedding(32, WIDTH)

    def forward(self, video: Tensor) -> Tensor:
        batch, frames, *rest = video.shape
        vectors = self.cnn(video.view(batch * frames, *rest)).mean(dim=(2, 3))
        memory: Tensor = vectors.view(batch, frames, WIDTH) + self.time(torch.arange(frames))
        return memory


class TextCNN(nn.Module):
    """1-D convolutions over the embedded tokens of a source text."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.convs = nn.ModuleList(
            nn.Conv1d(WIDTH, WIDTH, size, padding=size // 2) for size in (3, 5)
        )

    def forward(self, source: Tensor) -> Tensor:
        x = self.embedding(source).transpose(1, 2)
        for conv in self.convs:
            x = x + F.relu(conv(x))
        rows: Tensor = x.transpose(1, 2)
        return rows


class ImageAndQuestion(nn.Module):
    """Memory of a CNN's cells followed by a question's words."""

    def __init__(self) -> None:
        super().__init__()
        self.cnn = nn.Sequential(nn.Conv2d(3, 16, 4, 4), nn.ReLU(), nn.Conv2d(16, WIDTH, 2, 2))
        self.words = nn.Embedding(VOCABULARY, WIDTH)
        self.kind = nn.Parameter(torch.zeros(2, WIDTH))

    def forward(self, image: Tensor, question: Tensor) -> Tensor:
        cells = self.cnn(image).flatten(2).transpose(1, 2) + self.kind[0]
        return torch.cat([cells, self.words(question) + self.kind[1]], dim=1)


class PaddedMemory(TorchDecoder):
    """A decoder whose encoder also returns which rows of the memory are padding."""

    def __init__(self) -> None:
        super().__init__(norm_first=True)
        del self.project
        self.cnn = nn.Sequential(
            nn.Conv2d(1, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, WIDTH, 3, 2, 1)
        )

    def decode(self, tokens: Tensor, memory: Tensor, padding: Tensor) -> Tensor:  # type: ignore[override]
        rows = self.positions(self.embedding(tokens))
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.size(1))
        rows = self.decoder(rows, memory, tgt_mask=mask, memory_key_padding_mask=padding)
        logits: Tensor = self.head(rows)
        return logits

    def columns(self, image: Tensor) -> Tensor:
        """Returns one row for every four pixel columns, (batch, width / 4, WIDTH)."""
        columns: Tensor = self.cnn(image).mean(dim=2).transpose(1, 2)
        return columns


class WidthMask(PaddedMemory):
    """The mask is an input (batch, width) with one value per pixel column, true for padding."""

    def encode(self, image: Tensor, width_mask: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        memory = self.columns(image)
        return memory, width_mask[:, ::4]


class Lengths(PaddedMemory):
    """The true widths are an input (batch,); encode() computes the mask from them."""

    def encode(self, image: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        memory = self.columns(image)
        steps = torch.arange(memory.size(1), device=memory.device)
        return memory, steps[None, :] * 4 >= lengths[:, None]


class AddedMask(PaddedMemory):
    """Hand-written cross-attention with an additive padding mask that decode() computes."""

    def __init__(self) -> None:
        super().__init__()
        self.key, self.value = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def encode(self, image: Tensor, width_mask: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return self.columns(image), F.max_pool1d(width_mask.float()[:, None], 4).squeeze(1)

    def decode(self, tokens: Tensor, memory: Tensor, padding: Tensor) -> Tensor:  # type: ignore[override]
        rows = self.positions(self.embedding(tokens))
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.size(1))
        scores = rows @ self.key(memory).transpose(1, 2) / WIDTH**0.5
        scores = scores + (padding * -1e9).unsqueeze(1)
        rows = rows + scores.softmax(-1) @ self.value(memory)
        rows = self.decoder(rows, memory, tgt_mask=mask)
        logits: Tensor = self.head(rows)
        return logits
