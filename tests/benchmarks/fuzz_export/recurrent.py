"""Decoders that bring their own step: recurrent cells, with or without attention to the memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tests.benchmarks.fuzz_export.choices import Choices
from tests.benchmarks.fuzz_export.encoders import Encoder
from tests.benchmarks.fuzz_export.rows import RowOperation
from tests.benchmarks.fuzz_export.wrong import Wrong


class RecurrentModel(nn.Module):
    """A model with `encode`, `initial_state` and `step`.

    Args:
        choices: draws the parts.
    """

    form = "tensor"
    variant = "features"

    def __init__(self, choices: Choices) -> None:
        super().__init__()
        self.input = choices.one("input", ["features", "image", "ids"])
        width = choices.size(8, 16)
        self.vocabulary = choices.size(11, 23, 40)
        self.cell_kind = choices.one("cell", ["gru", "lstm", "rnn", "two", "hand"])
        self.read = choices.one("read", ["dot", "additive", "mean", "last"])
        self.head_kind = choices.one("head", ["linear", "named"])
        self.wrong = Wrong(choices.wrong())
        self.encoder = Encoder(choices, self.input, width)
        self.words = nn.Embedding(self.vocabulary, width)
        cells: dict[str, type[Any]] = {"lstm": nn.LSTMCell, "rnn": nn.RNNCell}
        self.cell = cells.get(self.cell_kind, nn.GRUCell)(2 * width, width)
        self.second = nn.GRUCell(width, width)
        self.start, self.query = nn.Linear(width, width), nn.Linear(width, width)
        self.energy, self.head = nn.Linear(width, 1), nn.Linear(2 * width, self.vocabulary)
        self.rows = RowOperation(choices, "step.rows", width, self.vocabulary)

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the inputs of encode()."""
        return (self.input,)

    def encode(self, *inputs: Tensor) -> Tensor:
        """Returns the memory."""
        return self.wrong.memory(self.encoder(inputs[0]))

    def initial_state(self, memory: Tensor) -> Any:
        """Returns the state before the first token."""
        first = torch.tanh(self.start(memory.mean(1)))
        return (first, first * 0) if self.cell_kind in ("lstm", "two") else (first,)

    def step(self, token: Tensor, state: Any, memory: Tensor) -> Any:
        """Returns logits (batch, vocabulary) and the next state."""
        read = self._read(state[0], memory)
        x = torch.cat([self.words(token), read], -1)
        if self.cell_kind == "lstm":
            state = self.cell(x, state)
        elif self.cell_kind == "two":
            below = self.cell(x, state[0])
            state = (below, self.second(below, state[1]))
        elif self.cell_kind == "hand":
            gate = torch.sigmoid(self.query(state[0]))
            state = (gate * state[0] + (1 - gate) * torch.tanh(x[:, : x.shape[-1] // 2] + read),)
        else:
            state = (self.cell(x, state[0]),)
        rows = self.rows(state[-1][:, None], token[:, None], memory)
        rows = self.wrong.rows(rows, token[:, None])[:, 0]
        logits = self.head(torch.cat([rows, read], -1))
        return ({"logits": logits, "more": rows} if self.head_kind == "named" else logits), state

    def _read(self, state: Tensor, memory: Tensor) -> Tensor:
        if self.read == "mean":
            return memory.mean(1)
        if self.read == "last":
            return memory[:, -1]
        if self.read == "dot":
            scores = (memory @ self.query(state)[..., None])[..., 0]
        else:
            scores = self.energy(torch.tanh(memory + self.query(state)[:, None]))[..., 0]
        read: Tensor = (scores.softmax(-1)[..., None] * memory).sum(1)
        return read
