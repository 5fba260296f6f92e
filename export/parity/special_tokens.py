"""Random tokens among which stand a model's special ones, which chance would miss.

A decoder may look ahead, or mix sequences, only where a padding token stands. Special tokens take
every second place after the first, in turn, and other places in the next sequence:

    random     41  7 88 13  9 62 30 54        special 0 (padding), 1 (start), 2 (end)
    row 0      41  0 88  1  9  2 30  0
    row 1      17  1  5  2 70  0 44  1

The first token is an ordinary one: a sequence that begins with padding hides every key from it, and
the model itself returns NaN.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import nn

from hybrid_deploy.bundle.manifest import GenerationDefaults


@dataclass(frozen=True)
class TokenChoice:
    """The tokens that random prompts are drawn from.

    Attributes:
        vocabulary_size: number of tokens, the width of the logits.
        told_apart: ids that the decoder compares its tokens with, such as a padding.
    """

    vocabulary_size: int
    told_apart: tuple[int, ...] = ()

    def draw(
        self,
        shape: tuple[int, int],
        model: nn.Module,
        generation: GenerationDefaults,
        rng: np.random.Generator,
    ) -> NDArray[np.int64]:
        """Returns random tokens (batch, length) among which stand the model's special ones."""
        special = special_tokens(model, generation, self.told_apart)
        return mixed_tokens(self.vocabulary_size, shape, special, rng)


def special_tokens(
    model: nn.Module, generation: GenerationDefaults, more: Iterable[int] = ()
) -> tuple[int, ...]:
    """Returns the ids that a model may treat unlike others, the padding first, each once.

    Args:
        model: its embeddings name their padding.
        generation: the start, end and padding tokens of the export.
        more: other ids that the decoder tells apart.
    """
    paddings = (m.padding_idx for m in model.modules() if isinstance(m, nn.Embedding))
    named = [padding for padding in paddings if padding is not None]
    tokens = [
        *named,
        *more,
        generation.pad_token,
        *generation.start_tokens,
        *generation.end_tokens,
    ]
    return tuple(dict.fromkeys(tokens))


def mixed_tokens(
    vocabulary_size: int,
    shape: tuple[int, int],
    special: Iterable[int],
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """Returns random tokens with the special ones at every second place, and none at the first.

    Args:
        vocabulary_size: number of tokens to draw from.
        shape: (batch, length).
        special: ids; those outside the vocabulary are left out.
        rng: draws the random tokens.
    """
    tokens = rng.integers(0, vocabulary_size, shape)
    inside = np.array([token for token in special if 0 <= token < vocabulary_size], np.int64)
    if len(inside):
        ordinary = np.setdiff1d(np.arange(vocabulary_size), inside)
        if len(ordinary):
            tokens[:, 0] = rng.choice(ordinary, shape[0])
        rows, places = np.indices(tokens[:, 1::2].shape)
        tokens[:, 1::2] = inside[(rows + places) % len(inside)]
    return tokens
