"""The model itself as a backend of the runtime: it decodes every token by a full re-run.

One run returns the logits after each of its tokens. With graphs that draft the next tokens, the
model runs over blocks of them, and a run serves as long as the caller chooses the drafted tokens:

    tokens so far  5 8    drafted  2 2 9    one run over 5 8 2 2 9
    the caller chooses 2 and 2: the logits are those of that run; 7 in place of 9: a new run
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hybrid_deploy.export.model.interface import reference_logits, reference_memory
from hybrid_deploy.runtime.backends.protocol import Backend, Decoding, FloatArray, IntArray

_FIRST_BLOCK = 8
_LARGEST_RUN_BYTES = 64 << 20  # of logits


class FullRerun:
    """A backend whose logits are the model's own: slow, and correct by definition.

    Args:
        model: module in eval mode with `encode` and `decode`.
        max_length: largest number of tokens of a sequence.
        drafts: backend that drafts tokens; wrong drafts cost time alone. None drafts nothing.
    """

    name = "pytorch"
    version = f"torch {torch.__version__}"

    def __init__(self, model: nn.Module, max_length: int, drafts: Backend | None = None) -> None:
        self._model = model
        self._max_length = max_length
        self._drafts = drafts

    def start(self, inputs: Mapping[str, NDArray[Any]]) -> FullRerunDecoding:
        """Encodes a batch of inputs, and returns its decoding."""
        memory = reference_memory(self._model, tuple(map(torch.from_numpy, inputs.values())))
        batch = len(next(iter(inputs.values())))
        drafts = None if self._drafts is None else self._drafts.start(inputs)
        return FullRerunDecoding(self._model, memory, batch, self._max_length, drafts)


class FullRerunDecoding:
    """One batch of sequences; a call decodes all their tokens again, unless a run has them."""

    def __init__(
        self,
        model: nn.Module,
        memory: tuple[Tensor, ...],
        batch: int,
        max_length: int,
        drafts: Decoding | None = None,
    ) -> None:
        self.batch = batch
        self._model = model
        self._memory = memory
        self._tokens = np.zeros((batch, max_length), np.int64)
        self._drafts = drafts
        self._served = _FIRST_BLOCK // 2  # calls that the newest run has served
        self._run_tokens = np.zeros((batch, 0), np.int64)
        self._run_logits = np.zeros((batch, 0, 0), np.float32)

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
        self._tokens, self._drafts = self._tokens[rows], None

    def select(self, rows: IntArray) -> FullRerunDecoding:
        """Returns a decoding of the chosen sequences, which drafts nothing."""
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
        """Returns the logits after the tokens up to index `last` of each sequence."""
        if not self._run_begins_with(last):
            count = int(last.max()) + 1
            self._run_tokens = self._tokens[:, :count]
            if self._drafts is not None:
                self._run_tokens = self._drafted(self._drafts, last)
            tokens = torch.from_numpy(self._run_tokens)
            self._run_logits = reference_logits(self._model, self._memory, tokens).numpy()
            self._served = 0
        self._served += 1
        rows: FloatArray = self._run_logits[np.arange(self.batch), last].astype(np.float32)
        return rows

    def _run_begins_with(self, last: IntArray) -> bool:
        """Returns whether the newest run began with the tokens up to index `last`."""
        return int(last.max()) < self._run_tokens.shape[1] and all(
            np.array_equal(run[: end + 1], tokens[: end + 1])
            for run, tokens, end in zip(self._run_tokens, self._tokens, last, strict=True)
        )

    def _drafted(self, drafts: Decoding, last: IntArray) -> IntArray:
        """Returns the tokens so far and likely next ones, twice as many as were right before."""
        tokens, rows = self._tokens.copy(), np.arange(self.batch)
        zeros, ends = np.zeros_like(last), last.copy()
        logits = drafts.prefill(tokens[:, : int(last.max()) + 1], zeros, last)
        room, most = tokens.shape[1] - 1 - int(last.max()), _LARGEST_RUN_BYTES // logits.nbytes
        for _ in range(min(2 * self._served, room, max(1, most))):
            ends += 1
            tokens[rows, ends] = logits.argmax(-1)
            logits = drafts.step(tokens[rows, ends], ends)
        drafted: IntArray = tokens[:, : int(ends.max()) + 1]
        return drafted
