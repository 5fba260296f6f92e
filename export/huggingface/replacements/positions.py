"""Positions that depend on a token's index alone.

    table[padding + cumsum(tokens != padding)]    (reads all tokens)
      becomes    table[padding + 1 + index of the token]

These are the positions of `generate()`, which reads one token at a time and takes the length of the
cache as its position. A full run differs only for tokens after a padding token.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def rows_by_token(table: Tensor, tokens: Tensor, padding: int) -> Tensor:
    """Returns the position vector of each token: the rows of the table from `padding + 1` on.

    A padding token has the row `padding` at every position.

    Args:
        table: (positions, width) float32, the position vectors.
        tokens: (batch, length) int64.
        padding: id of the padding token, and the row of the table that it takes.

    Returns:
        (batch, length, width) float32.
    """
    first = padding + 1
    steps = table[first : first + tokens.shape[1]]
    return torch.where((tokens == padding).unsqueeze(-1), table[padding], steps)


class SinusoidalPositions(nn.Module):
    """Fairseq's sinusoidal positions, which depend on a token's index alone.

    Args:
        old: the module of transformers, whose table is taken.
    """

    table: Tensor

    def __init__(self, old: Any) -> None:
        super().__init__()
        self.register_buffer("table", old.weights, persistent=False)
        self.padding = int(old.padding_idx)

    def forward(self, input_ids: Tensor, *_: object, **__: object) -> Tensor:
        """Returns the position vectors of the tokens, (batch, length, width)."""
        return rows_by_token(self.table, input_ids, self.padding)


class FSMTPositions(nn.Module):
    """FSMT's sinusoidal positions: in `generate()` a padding token has the row before its own.

    Args:
        old: the module of transformers, whose table is taken.
    """

    table: Tensor

    def __init__(self, old: Any) -> None:
        super().__init__()
        self.register_buffer("table", old.weight.detach(), persistent=False)
        self.padding = int(old.padding_idx)

    def forward(self, tokens: Tensor, **_: object) -> Tensor:
        """Returns the position vectors of the tokens, (batch, length, width)."""
        first, length = self.padding, tokens.shape[1]
        is_padding = (tokens == self.padding).unsqueeze(-1)
        rows = self.table[first + 1 : first + 1 + length]
        return torch.where(is_padding, self.table[first : first + length], rows)


class RobertaEmbeddings(nn.Module):
    """RoBERTa's embeddings, with positions that depend on a token's index alone.

    Args:
        old: RoBERTa's embedding module, whose tables and norm are taken.
    """

    def __init__(self, old: Any) -> None:
        super().__init__()
        self.words: nn.Embedding = old.word_embeddings
        self.types: nn.Embedding = old.token_type_embeddings
        self.positions: nn.Embedding = old.position_embeddings
        self.norm: nn.LayerNorm = old.LayerNorm
        self.padding = int(old.padding_idx)

    def forward(self, input_ids: Tensor, **_: object) -> Tensor:
        """Returns the embedded tokens, (batch, length, width)."""
        words = self.words(input_ids) + self.types.weight[0]
        rows: Tensor = self.norm(
            words + rows_by_token(self.positions.weight, input_ids, self.padding)
        )
        return rows
