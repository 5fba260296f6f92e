"""Reads lines with the model in PyTorch, and scores the texts."""

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
class LineScores:
    """The accuracy of a model on lines.

    Attributes:
        lines: number of lines.
        character_error_rate: edits divided by characters, 0 for no error.
        exact_match: share of lines without any error, 0 to 1.
    """

    lines: int
    character_error_rate: float
    exact_match: float


def read_lines(
    model: LineReader, images: Sequence[NDArray[np.uint8]], batch_size: int = 64
) -> list[str]:
    """Returns the text of each image, decoded greedily by a full re-run for every token.

    Args:
        model: model in eval mode.
        images: grayscale images, each (32, width) uint8.
        batch_size: number of lines decoded together; they are padded to the widest.
    """
    texts: list[str] = []
    for start in range(0, len(images), batch_size):
        batch = torch.from_numpy(
            batch_images(images[start : start + batch_size], READING_MARGIN_PX)
        )
        texts += [text_from_tokens(row) for row in _read_batch(model, batch).tolist()]
    return texts


def score_lines(model: LineReader, lines: Sequence[Line]) -> LineScores:
    """Returns the accuracy of the model on lines.

    Raises:
        MissingDependencyError: jiwer is not installed.
    """
    try:
        import jiwer
    except ImportError as error:
        raise MissingDependencyError("jiwer", extra="reference") from error

    expected = [line.text for line in lines]
    texts = read_lines(model, [line.image for line in lines])
    exact_matches = sum(text == truth for text, truth in zip(texts, expected, strict=True))
    return LineScores(
        lines=len(lines),
        character_error_rate=float(jiwer.cer(expected, texts)),
        exact_match=exact_matches / len(lines),
    )


@torch.inference_mode()
def _read_batch(model: LineReader, image: Tensor) -> Tensor:
    """Returns tokens (batch, length) of an image; rows may have tokens after the end token."""
    memory = model.encode(image)
    tokens = torch.full((len(image), 1), START)
    while tokens.shape[1] < MAX_LENGTH and not (tokens == END).any(dim=1).all():
        following = model.decode(tokens, memory)[:, -1].argmax(dim=1, keepdim=True)
        tokens = torch.cat((tokens, following), dim=1)
    return tokens
