"""Reading lines with the model in PyTorch, and how well it reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hybrid_deploy.errors import MissingDependencyError
from hybrid_deploy.export.reference.lines import READING_MARGIN_PX, Line, batch_images
from hybrid_deploy.export.reference.model import LineReader
from hybrid_deploy.export.reference.vocabulary import END, MAX_LENGTH, START, text_from_tokens


@dataclass(frozen=True)
class Reading:
    """How well lines were read.

    Attributes:
        lines: How many lines.
        character_error_rate: Edits over characters, 0 at best.
        exact_match: Share of lines without any error, 0-1.
    """

    lines: int
    character_error_rate: float
    exact_match: float


def read_lines(
    model: LineReader, images: Sequence[NDArray[np.uint8]], batch_size: int = 64
) -> list[str]:
    """Returns the text of each image, decoded greedily by running the whole sequence every step.

    Args:
        model: In eval mode.
        images: Grayscale images, each (32, width) uint8.
        batch_size: Lines read together; each batch is padded to its widest.
    """
    texts: list[str] = []
    for start in range(0, len(images), batch_size):
        batch = torch.from_numpy(
            batch_images(images[start : start + batch_size], READING_MARGIN_PX)
        )
        texts += [text_from_tokens(row) for row in _read_batch(model, batch).tolist()]
    return texts


def score_lines(model: LineReader, lines: Sequence[Line]) -> Reading:
    """Returns how well the model reads the lines.

    Raises:
        MissingDependencyError: If jiwer is not installed.
    """
    try:
        import jiwer
    except ImportError as error:
        raise MissingDependencyError("jiwer", extra="reference") from error

    expected = [line.text for line in lines]
    read = read_lines(model, [line.image for line in lines])
    matches = sum(text == truth for text, truth in zip(read, expected, strict=True))
    return Reading(
        lines=len(lines),
        character_error_rate=float(jiwer.cer(expected, read)),
        exact_match=matches / len(lines),
    )


@torch.inference_mode()
def _read_batch(model: LineReader, image: Tensor) -> Tensor:
    """Tokens (batch, length) from image (batch, 1, 32, width); rows may run on past their end."""
    memory = model.encode(image)
    tokens = torch.full((len(image), 1), START)
    while tokens.shape[1] < MAX_LENGTH and not (tokens == END).any(dim=1).all():
        following = model.decode(tokens, memory)[:, -1].argmax(dim=1, keepdim=True)
        tokens = torch.cat((tokens, following), dim=1)
    return tokens
