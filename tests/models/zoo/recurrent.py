"""Models with their own step, and a full-sequence `decode` that the step must equal."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.models.zoo.captioner import VOCABULARY, WIDTH
from tests.models.zoo.case import Case, build, random_floats

_CAPACITY = 72
_LSTMState = tuple[Tensor, Tensor]


class _Columns(nn.Module):
    """Turns an image (batch, 1, 16, width) into columns (batch, width / 4, WIDTH)."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, 16, 4, stride=4)
        self.projection = nn.Linear(64, WIDTH)

    def forward(self, image: Tensor) -> Tensor:
        features = torch.relu(self.convolution(image))
        columns: Tensor = self.projection(features.permute(0, 3, 1, 2).flatten(2))
        return columns


class AttendAndTell(nn.Module):
    """An LSTM with attention to the columns at every token, as in Show, Attend and Tell."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = _Columns()
        self.first = nn.Linear(WIDTH, 2 * WIDTH)
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.query = nn.Linear(WIDTH, WIDTH)
        self.cell = nn.LSTMCell(2 * WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def encode(self, image: Tensor) -> Tensor:
        columns: Tensor = self.encoder(image)
        return columns

    def initial_state(self, columns: Tensor) -> _LSTMState:
        hidden, cell = torch.tanh(self.first(columns.mean(1))).chunk(2, -1)
        return hidden, cell

    def step(self, token: Tensor, state: _LSTMState, columns: Tensor) -> tuple[Tensor, _LSTMState]:
        weights = torch.softmax(columns @ self.query(state[0]).unsqueeze(-1), 1)
        context = (weights * columns).sum(1)
        state = self.cell(torch.cat([self.embedding(token), context], -1), state)
        return self.head(state[0]), state

    def decode(self, tokens: Tensor, columns: Tensor) -> Tensor:
        hidden, cell = self.initial_state(columns)
        logits = []
        for token in tokens.unbind(1):
            scores = torch.einsum("bld,bd->bl", columns, self.query(hidden))
            context = torch.einsum("bl,bld->bd", scores.softmax(-1), columns)
            fed = torch.cat([self.embedding(token), context], -1)
            hidden, cell = self.cell(fed, (hidden, cell))
            logits.append(self.head(hidden))
        return torch.stack(logits, 1)


class TwoLayerGRU(nn.Module):
    """A GRU whose first state is the image; no later step reads the image."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = _Columns()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.rnn = nn.GRU(WIDTH, WIDTH, num_layers=2, batch_first=True)
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def encode(self, image: Tensor) -> Tensor:
        vector: Tensor = self.encoder(image).mean(1)
        return vector

    def initial_state(self, vector: Tensor) -> dict[str, Tensor]:
        return {"hidden": torch.stack([vector, -vector], 1)}

    def step(
        self, token: Tensor, state: dict[str, Tensor], vector: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        hidden = state["hidden"].transpose(0, 1).contiguous()
        rows, hidden = self.rnn(self.embedding(token).unsqueeze(1), hidden)
        return self.head(rows[:, 0]), {"hidden": hidden.transpose(0, 1)}

    def decode(self, tokens: Tensor, vector: Tensor) -> Tensor:
        hidden = torch.stack([vector, -vector])
        rows, _ = self.rnn(self.embedding(tokens), hidden)
        logits: Tensor = self.head(rows)
        return logits


class OwnCache(nn.Module):
    """Attention over all tokens so far; its state is a hand-written cache and the position."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = _Columns()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.key = nn.Linear(WIDTH, WIDTH)
        self.value = nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def encode(self, image: Tensor) -> Tensor:
        vector: Tensor = self.encoder(image).mean(1)
        return vector

    def initial_state(self, vector: Tensor) -> list[Tensor]:
        empty = vector.new_zeros(vector.shape[0], _CAPACITY, WIDTH)
        return [empty, empty.clone(), vector.new_zeros(vector.shape[0], dtype=torch.int64)]

    def step(
        self, token: Tensor, state: list[Tensor], vector: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        keys, values, position = state
        row = self.embedding(token) + vector
        slots = torch.arange(_CAPACITY)
        is_newest = (slots == position.unsqueeze(1)).unsqueeze(-1)
        keys = torch.where(is_newest, self.key(row).unsqueeze(1), keys)
        values = torch.where(is_newest, self.value(row).unsqueeze(1), values)
        scores = (keys @ row.unsqueeze(-1)).squeeze(-1) / WIDTH**0.5
        scores = scores.masked_fill(slots > position.unsqueeze(1), -1e4)
        mixed = (scores.softmax(-1).unsqueeze(-1) * values).sum(1)
        return self.head(row + mixed), [keys, values, position + 1]

    def decode(self, tokens: Tensor, vector: Tensor) -> Tensor:
        rows = self.embedding(tokens) + vector.unsqueeze(1)
        mixed = nn.functional.scaled_dot_product_attention(
            rows, self.key(rows), self.value(rows), is_causal=True
        )
        logits: Tensor = self.head(rows + mixed)
        return logits


def _image(batch: int, size: int) -> dict[str, Tensor]:
    return {"image": random_floats(batch, 1, 16, size)}


def _case(name: str, model_class: type[nn.Module], *, fast: bool = False) -> Case:
    return Case(
        name,
        "recurrent",
        build(model_class),
        _image,
        sizes=(32, 56),
        dynamic={"image": ((3, "width", 16, 64),)},
        max_length=_CAPACITY,
        fast=fast,
    )


RECURRENT = (
    _case("attend-and-tell", AttendAndTell, fast=True),
    _case("two-layer-gru", TwoLayerGRU),
    _case("own-cache", OwnCache),
)
