"""Readers with a recurrent decoder: ASTER, SAR, RobustScanner, a CRNN with attention, im2latex.

Each has a `step` of its own; `decode` is the loop of its training.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models.zoo.captioner import POSITIONS, VOCABULARY, WIDTH
from tests.models.zoo.published.case_makers import RECURRENT, lines_of_text


class Recurrent(nn.Module):
    """A model whose `decode` is a loop over `step`."""

    def initial_state(self, *memory: Tensor) -> Any:
        raise NotImplementedError

    def step(self, token: Tensor, state: Any, *memory: Tensor) -> tuple[Tensor, Any]:
        raise NotImplementedError

    def decode(self, tokens: Tensor, *memory: Tensor) -> Tensor:
        state, logits = self.initial_state(*memory), []
        for i in range(tokens.size(1)):
            output, state = self.step(tokens[:, i], state, *memory)
            logits.append(output)
        return torch.stack(logits, dim=1)


class Columns(nn.Module):
    """Convolutions and one row per column of the image."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 24, 3, 2, 1, bias=False), nn.BatchNorm2d(24)
        self.conv2, self.bn2 = nn.Conv2d(24, WIDTH, 3, 2, 1, bias=False), nn.BatchNorm2d(WIDTH)

    def forward(self, image: Tensor) -> Tensor:
        x = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(image))))))
        return x.mean(dim=2).permute(0, 2, 1).contiguous()


class Aster(Recurrent):
    """ASTER's recognition head: additive attention, a GRU over embedding and context."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Columns()
        self.sEmbed, self.xEmbed = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.wEmbed = nn.Linear(WIDTH, 1)
        self.tgt_embedding = nn.Embedding(VOCABULARY + 1, WIDTH)
        self.gru = nn.GRU(input_size=2 * WIDTH, hidden_size=WIDTH, batch_first=True)
        self.fc = nn.Linear(WIDTH, VOCABULARY)

    def encode(self, image: Tensor) -> Tensor:
        columns: Tensor = self.encoder(image)
        return columns

    def initial_state(self, *memory: Tensor) -> Tensor:
        return torch.zeros(memory[0].size(0), 1, WIDTH)

    def step(self, token: Tensor, state: Tensor, *memory: Tensor) -> tuple[Tensor, Tensor]:
        (x,) = memory
        batch, length, _ = x.size()
        projected = self.xEmbed(x.view(-1, WIDTH)).view(batch, length, WIDTH)
        query = self.sEmbed(state.squeeze(1)).unsqueeze(1).expand(batch, length, WIDTH)
        scores = self.wEmbed(torch.tanh(query + projected).view(-1, WIDTH)).view(batch, length)
        alpha = F.softmax(scores, dim=1)
        context = torch.bmm(alpha.unsqueeze(1), x).squeeze(1)
        fed = torch.cat([self.tgt_embedding(token), context], 1).unsqueeze(1)
        output, newest = self.gru(fed, state.transpose(0, 1).contiguous())
        return self.fc(output.squeeze(1)), newest.transpose(0, 1)


class AttentionCell(Recurrent):
    """The attention of the deep text recognition benchmark: an LSTM cell reads one-hot tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Columns()
        self.i2h = nn.Linear(WIDTH, WIDTH, bias=False)
        self.h2h = nn.Linear(WIDTH, WIDTH)
        self.score = nn.Linear(WIDTH, 1, bias=False)
        self.rnn = nn.LSTMCell(WIDTH + VOCABULARY, WIDTH)
        self.generator = nn.Linear(WIDTH, VOCABULARY)

    def encode(self, image: Tensor) -> Tensor:
        columns: Tensor = self.encoder(image)
        return columns

    def initial_state(self, *memory: Tensor) -> tuple[Tensor, Tensor]:
        zeros = torch.zeros(memory[0].size(0), WIDTH)
        return zeros, zeros.clone()

    def step(
        self, token: Tensor, state: tuple[Tensor, Tensor], *memory: Tensor
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        (batch_H,) = memory  # noqa: N806 - the name of the benchmark
        char_onehots = F.one_hot(token, VOCABULARY).float()
        e = self.score(torch.tanh(self.i2h(batch_H) + self.h2h(state[0]).unsqueeze(1)))
        alpha = F.softmax(e, dim=1)
        context = torch.bmm(alpha.permute(0, 2, 1), batch_H).squeeze(1)
        hidden, cell = self.rnn(torch.cat([context, char_onehots], 1), state)
        return self.generator(hidden), (hidden, cell)


class Sar(Recurrent):
    """SAR: a holistic feature, two LSTM cells, attention over cells and their neighbors."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 24, 3, 2, 1), nn.ReLU(), nn.Conv2d(24, WIDTH, 3, 2, 1), nn.ReLU()
        )
        self.rnn_encoder = nn.LSTM(WIDTH, WIDTH // 2, 1, bidirectional=True, batch_first=True)
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.conv1x1_1 = nn.Linear(WIDTH, WIDTH)
        self.conv3x3_1 = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        self.conv1x1_2 = nn.Linear(WIDTH, 1)
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.rnn_decoder_1, self.rnn_decoder_2 = (
            nn.LSTMCell(WIDTH, WIDTH),
            nn.LSTMCell(WIDTH, WIDTH),
        )
        self.prediction = nn.Linear(3 * WIDTH, VOCABULARY)

    def encode(self, image: Tensor) -> tuple[Tensor, Tensor]:
        feat = self.stem(image)
        columns = F.max_pool2d(feat, kernel_size=(feat.size(2), 1)).squeeze(2).permute(0, 2, 1)
        holistic, _ = self.rnn_encoder(columns.contiguous())
        return feat, self.linear(holistic[:, -1])

    def initial_state(self, *memory: Tensor) -> list[Tensor]:
        """The holistic feature is the first input of both cells."""
        zeros = torch.zeros_like(memory[1])
        first = self.rnn_decoder_1(memory[1], (zeros, zeros))
        return [*first, *self.rnn_decoder_2(first[0], (zeros, zeros))]

    def step(
        self, token: Tensor, state: Sequence[Tensor], *memory: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        feat, holistic = memory
        n, c, h, w = feat.shape
        first = self.rnn_decoder_1(self.embedding(token), (state[0], state[1]))
        second = self.rnn_decoder_2(first[0], (state[2], state[3]))
        query = self.conv1x1_1(second[0]).view(n, c, 1, 1)
        attn = torch.tanh(torch.add(self.conv3x3_1(feat), query)).permute(0, 2, 3, 1).contiguous()
        weights = F.softmax(self.conv1x1_2(attn).view(n, -1), dim=-1).view(n, 1, h, w)
        glimpse = torch.sum(torch.mul(feat, weights), (2, 3))
        logits = self.prediction(torch.cat((second[0], glimpse, holistic), 1))
        return logits, [*first, *second]


class RobustScanner(Recurrent):
    """RobustScanner: a branch with an LSTM, a branch with queries of positions, a fused gate."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Columns()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.sequence_layer = nn.LSTM(WIDTH, WIDTH, num_layers=2, batch_first=True)
        self.position_embedding = nn.Embedding(3 * POSITIONS, WIDTH)
        self.position_aware = nn.LSTM(WIDTH, WIDTH // 2, bidirectional=True, batch_first=True)
        self.mixer = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH))
        self.fuse = nn.Linear(2 * WIDTH, 2 * WIDTH)
        self.prediction = nn.Linear(WIDTH, VOCABULARY)

    def encode(self, image: Tensor) -> tuple[Tensor, Tensor]:
        columns = self.encoder(image)
        rows, _ = self.position_aware(columns)
        return columns, self.mixer(rows)

    def initial_state(self, *memory: Tensor) -> dict[str, Tensor]:
        batch = memory[0].size(0)
        return {
            "hidden": torch.zeros(batch, 2, WIDTH),
            "cell": torch.zeros(batch, 2, WIDTH),
            "index": torch.zeros(batch, dtype=torch.int64),
        }

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        weights = torch.matmul(query.unsqueeze(1), key.transpose(1, 2)) / WIDTH**0.5
        return torch.matmul(F.softmax(weights, dim=-1), value).squeeze(1)

    def step(
        self, token: Tensor, state: dict[str, Tensor], *memory: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        feat, keys = memory
        before = tuple(state[name].transpose(0, 1).contiguous() for name in ("hidden", "cell"))
        output, (hidden, cell) = self.sequence_layer(self.embedding(token).unsqueeze(1), before)
        hybrid = self.attend(output.squeeze(1), feat, feat)
        position = self.attend(self.position_embedding(state["index"]), keys, feat)
        logits = self.prediction(F.glu(self.fuse(torch.cat([hybrid, position], -1)), dim=-1))
        newest = {"hidden": hidden.transpose(0, 1), "cell": cell.transpose(0, 1)}
        return logits, {**newest, "index": state["index"] + 1}


class Im2Latex(Recurrent):
    """Harvard's im2latex: row encoder over the feature map, Luong attention, input feeding."""

    def __init__(self) -> None:
        super().__init__()
        self.cnn = nn.Sequential(
            nn.Conv2d(3, 24, 3, 2, 1), nn.ReLU(), nn.MaxPool2d(2, 2), nn.Conv2d(24, WIDTH, 3, 1, 1),
            nn.ReLU(), nn.BatchNorm2d(WIDTH),
        )  # fmt: skip
        self.row_rnn = nn.LSTM(WIDTH, WIDTH // 2, bidirectional=True, batch_first=True)
        self.row_start = nn.Parameter(torch.randn(2, 4, WIDTH // 2))
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.rnn_decoder = nn.LSTMCell(2 * WIDTH, WIDTH)
        self.init_h, self.init_c, self.init_o = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.W_1, self.W_2 = (
            nn.Linear(WIDTH, WIDTH, bias=False),
            nn.Linear(WIDTH, WIDTH, bias=False),
        )
        self.beta = nn.Parameter(torch.randn(WIDTH))
        self.W_3 = nn.Linear(2 * WIDTH, WIDTH, bias=False)
        self.W_out = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def encode(self, image: Tensor) -> Tensor:
        maps = self.cnn(image).permute(0, 2, 3, 1)  # (batch, height, width, channels)
        b, h, w, c = maps.shape
        start = self.row_start[:, :h].unsqueeze(1).expand(-1, b, -1, -1).reshape(2, b * h, -1)
        rows, _ = self.row_rnn(maps.reshape(b * h, w, c), (start.contiguous(), start.contiguous()))
        encoded: Tensor = rows.reshape(b, h * w, c)
        return encoded

    def initial_state(self, *memory: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean = memory[0].mean(dim=1)
        first, second, third = (
            torch.tanh(layer(mean)) for layer in (self.init_h, self.init_c, self.init_o)
        )
        return first, second, third

    def step(
        self, token: Tensor, state: tuple[Tensor, Tensor, Tensor], *memory: Tensor
    ) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        (enc_out,) = memory
        h, c, o = state
        h, c = self.rnn_decoder(torch.cat([self.embedding(token), o], dim=1), (h, c))
        alpha = torch.tanh(self.W_1(enc_out) + self.W_2(h).unsqueeze(1))
        alpha = F.softmax(torch.sum(self.beta * alpha, dim=-1), dim=-1)
        context = torch.bmm(alpha.unsqueeze(1), enc_out).squeeze(1)
        o = self.W_3(torch.cat([h, context], dim=1)).tanh()
        return self.W_out(o), (h, c, o)


CASES = (
    lines_of_text("aster", Aster, family=RECURRENT),
    lines_of_text("crnn-attention", AttentionCell, gain=6.0, seed=2, family=RECURRENT),
    lines_of_text("sar", Sar, sizes=(32,), gain=7.8, seed=6, family=RECURRENT),
    lines_of_text("robust-scanner", RobustScanner, sizes=(32,), gain=4.0, family=RECURRENT),
    lines_of_text("im2latex", Im2Latex, sizes=(32,), gain=2.5, family=RECURRENT),
)
