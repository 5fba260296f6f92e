"""The original model as a backend: every token is decoded by a full re-run, as PyTorch users do."""

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
    """Serves the runtime's loop with a model's own logits: slow, and right by definition.

    Args:
        model: has `encode` and `decode`, in eval mode.
        max_length: how many tokens are decoded at most.
    """

    name = "pytorch"
    version = f"torch {torch.__version__}"

    def __init__(self, model: nn.Module, max_length: int) -> None:
        self._model = model
        self._max_length = max_length

    def start(self, inputs: Mapping[str, NDArray[Any]]) -> FullRerunDecoding:
        """Encodes a batch and makes ready to decode it."""
        memory = reference_memory(self._model, tuple(map(torch.from_numpy, inputs.values())))
        batch = len(next(iter(inputs.values())))
        return FullRerunDecoding(self._model, memory, batch, self._max_length)


class FullRerunDecoding:
    """One batch: all tokens so far are decoded again for every new one."""

    def __init__(
        self, model: nn.Module, memory: tuple[Tensor, ...], batch: int, max_length: int
    ) -> None:
        self.batch = batch
        self._model = model
        self._memory = memory
        self._tokens = np.zeros((batch, max_length), np.int64)

    def prefill(self, tokens: IntArray, position: IntArray, last: IntArray) -> FloatArray:
        """Decodes several tokens per sequence."""
        for row, start, new in zip(self._tokens, position, tokens, strict=True):
            row[start : start + len(new)] = new[: len(row) - start]
        return self._logits(position + last)

    @property
    def resizable(self) -> bool:
        """Any number of sequences will do."""
        return True

    def reorder(self, rows: IntArray) -> None:
        """Lets every sequence go on from what another one of the same input was."""
        self._tokens = self._tokens[rows]

    def select(self, rows: IntArray) -> FullRerunDecoding:
        """Returns the decoding of chosen sequences."""
        memory = tuple(tensor[torch.from_numpy(rows)] for tensor in self._memory)
        chosen = FullRerunDecoding(self._model, memory, len(rows), self._tokens.shape[1])
        chosen._tokens = self._tokens[rows]
        return chosen

    def expand_beams(self, count: int) -> FullRerunDecoding:
        """Returns the decoding in which every sequence is `count` beams."""
        return self.select(np.repeat(np.arange(self.batch), count))

    def step(self, token: IntArray, position: IntArray) -> FloatArray:
        """Decodes one token per sequence."""
        self._tokens[np.arange(self.batch), position] = token
        return self._logits(position)

    def _logits(self, last: IntArray) -> FloatArray:
        tokens = torch.from_numpy(self._tokens[:, : int(last.max()) + 1])
        logits = reference_logits(self._model, self._memory, tokens).numpy()
        rows: FloatArray = logits[np.arange(self.batch), last].astype(np.float32)
        return rows
