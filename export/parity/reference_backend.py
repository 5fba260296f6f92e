"""The model itself as a backend of the runtime: it decodes every token by a full re-run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hybrid_deploy.export.model.interface import reference_logits, reference_memory
from hybrid_deploy.runtime.backends.protocol import FloatArray, IntArray


class FullRerun:
    """A backend whose logits are the model's own: slow, and correct by definition.

    Args:
        model: module in eval mode with `encode` and `decode`.
        max_length: largest number of tokens of a sequence.
    """

    name = "pytorch"
    version = f"torch {torch.__version__}"

    def __init__(self, model: nn.Module, max_length: int) -> None:
        self._model = model
        self._max_length = max_length

    def start(self, inputs: Mapping[str, NDArray[Any]]) -> FullRerunDecoding:
        """Encodes a batch of inputs, and returns its decoding."""
        memory = reference_memory(self._model, tuple(map(torch.from_numpy, inputs.values())))
        batch = len(next(iter(inputs.values())))
        return FullRerunDecoding(self._model, memory, batch, self._max_length)


class FullRerunDecoding:
    """One batch of sequences; every call decodes all their tokens again."""

    def __init__(
        self, model: nn.Module, memory: tuple[Tensor, ...], batch: int, max_length: int
    ) -> None:
        self.batch = batch
        self._model = model
        self._memory = memory
        self._tokens = np.zeros((batch, max_length), np.int64)

    def prefill(self, tokens: IntArray, position: IntArray, last: IntArray) -> FloatArray:
        """Decodes several tokens per sequence; returns (batch, vocabulary) float32 logits."""
        for row, start, new in zip(self._tokens, position, tokens, strict=True):
            row[start : start + len(new)] = new[: len(row) - start]
        return self._logits(position + last)

    @property
    def resizable(self) -> bool:
        """Whether `select` may change the number of sequences: always."""
        return True

    def reorder(self, rows: IntArray) -> None:
        """Continues sequence i from the tokens of sequence `rows[i]`, which has the same input."""
        self._tokens = self._tokens[rows]

    def select(self, rows: IntArray) -> FullRerunDecoding:
        """Returns a decoding of the chosen sequences."""
        memory = tuple(tensor[torch.from_numpy(rows)] for tensor in self._memory)
        chosen = FullRerunDecoding(self._model, memory, len(rows), self._tokens.shape[1])
        chosen._tokens = self._tokens[rows]
        return chosen

    def expand_beams(self, count: int) -> FullRerunDecoding:
        """Returns a decoding with `count` copies of every sequence, side by side."""
        return self.select(np.repeat(np.arange(self.batch), count))

    def step(self, token: IntArray, position: IntArray) -> FloatArray:
        """Decodes one token per sequence; returns (batch, vocabulary) float32 logits."""
        self._tokens[np.arange(self.batch), position] = token
        return self._logits(position)

    def _logits(self, last: IntArray) -> FloatArray:
        tokens = torch.from_numpy(self._tokens[:, : int(last.max()) + 1])
        logits = reference_logits(self._model, self._memory, tokens).numpy()
        rows: FloatArray = logits[np.arange(self.batch), last].astype(np.float32)
        return rows
