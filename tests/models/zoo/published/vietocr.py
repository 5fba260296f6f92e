"""VietOCR: a VGG of columns with nn.Transformer, or with a GRU and additive attention."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from tests.models.zoo.captioner import HEADS, HIDDEN, VOCABULARY, WIDTH, SinusoidalPositions
from tests.models.zoo.case import build
from tests.models.zoo.published.case_makers import RECURRENT, lines_of_text


class Vgg(nn.Module):
    """Convolutions that end in one row per column of the image, columns first."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(True), nn.AvgPool2d((2, 1)),
            nn.Conv2d(16, 32, 3, (2, 1), 1), nn.BatchNorm2d(32), nn.ReLU(True),
            nn.AvgPool2d((2, 2)),
        )  # fmt: skip
        self.dropout = nn.Dropout(0.1)
        self.last_conv_1x1 = nn.Conv2d(32, WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        conv = self.dropout(self.features(x))
        conv = self.last_conv_1x1(conv)
        conv = conv.transpose(-1, -2)
        conv = conv.flatten(2)
        rows: Tensor = conv.permute(-1, 0, 1)  # (columns, batch, width)
        return rows


class LanguageTransformer(nn.Module):
    """VietOCR's transformer: batch second, an additive mask of -inf, scaled embeddings."""

    def __init__(self, *, memory_mask: bool = False) -> None:
        super().__init__()
        self.cnn = Vgg()
        self.embed_tgt = nn.Embedding(VOCABULARY, WIDTH)
        nn.init.uniform_(self.embed_tgt.weight, -0.2, 0.2)
        self.pos_enc = SinusoidalPositions(batch_first=False)
        self.transformer = nn.Transformer(WIDTH, HEADS, 1, 1, HIDDEN, 0.1)
        self.fc = nn.Linear(WIDTH, VOCABULARY)
        self.memory_mask = memory_mask

    def encode(self, image: Tensor) -> Tensor:
        src = self.pos_enc(self.cnn(image) * math.sqrt(WIDTH))
        memory: Tensor = self.transformer.encoder(src).transpose(0, 1)
        return memory

    def gen_nopeek_mask(self, length: int) -> Tensor:
        mask = (torch.triu(torch.ones(length, length)) == 1).transpose(0, 1)
        mask = mask.float().masked_fill(mask == 0, float("-inf"))
        return mask.masked_fill(mask == 1, 0.0)

    def decode(self, tokens: Tensor, memory: Tensor) -> Tensor:
        tokens = tokens.transpose(0, 1)
        mask = self.gen_nopeek_mask(tokens.shape[0]).to(tokens.device)
        hidden = torch.zeros(memory.shape[:2], dtype=torch.bool) if self.memory_mask else None
        rows = self.pos_enc(self.embed_tgt(tokens) * math.sqrt(WIDTH))
        rows = self.transformer.decoder(
            rows, memory.transpose(0, 1), tgt_mask=mask, memory_key_padding_mask=hidden
        )
        rows = rows.transpose(0, 1)
        logits: Tensor = self.fc(rows)
        return logits


class Attention(nn.Module):
    """Additive attention to the encoder's rows; the rows stand first, then the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.Linear(3 * WIDTH, WIDTH)
        self.v = nn.Linear(WIDTH, 1, bias=False)

    def forward(self, hidden: Tensor, encoder_outputs: Tensor) -> Tensor:
        src_len = encoder_outputs.shape[0]
        hidden = hidden.unsqueeze(1).repeat(1, src_len, 1)
        encoder_outputs = encoder_outputs.permute(1, 0, 2)
        energy = torch.tanh(self.attn(torch.cat((hidden, encoder_outputs), dim=2)))
        attention = self.v(energy).squeeze(2)
        return torch.softmax(attention, dim=1)


class Seq2Seq(nn.Module):
    """VietOCR's seq2seq: a bidirectional GRU over columns, a GRU decoder with attention."""

    def __init__(self) -> None:
        super().__init__()
        self.cnn = Vgg()
        self.rnn = nn.GRU(WIDTH, WIDTH, bidirectional=True)
        self.to_hidden = nn.Linear(2 * WIDTH, WIDTH)
        self.attention = Attention()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.decoder = nn.GRU(3 * WIDTH, WIDTH)
        self.fc_out = nn.Linear(4 * WIDTH, VOCABULARY)

    def encode(self, image: Tensor) -> tuple[Tensor, Tensor]:
        outputs, hidden = self.rnn(self.cnn(image))
        hidden = torch.tanh(self.to_hidden(torch.cat((hidden[-2], hidden[-1]), dim=1)))
        return hidden, outputs.transpose(0, 1)

    def initial_state(self, hidden: Tensor, outputs: Tensor) -> Tensor:
        return hidden

    def step(
        self, token: Tensor, state: Tensor, hidden: Tensor, outputs: Tensor
    ) -> tuple[Tensor, Tensor]:
        embedded = self.embedding(token.unsqueeze(0))
        rows = outputs.transpose(0, 1)
        weights = self.attention(state, rows).unsqueeze(1)
        weighted = torch.bmm(weights, outputs).permute(1, 0, 2)
        output, newest = self.decoder(torch.cat((embedded, weighted), 2), state.unsqueeze(0))
        joined = torch.cat((output.squeeze(0), weighted.squeeze(0), embedded.squeeze(0)), dim=1)
        return self.fc_out(joined), newest.squeeze(0)

    def decode(self, tokens: Tensor, hidden: Tensor, outputs: Tensor) -> Tensor:
        state, logits = hidden, []
        for token in tokens.unbind(1):
            row, state = self.step(token, state, hidden, outputs)
            logits.append(row)
        return torch.stack(logits, 1)


CASES = (
    lines_of_text("vietocr-transformer", LanguageTransformer, gain=1.0, seed=1),
    lines_of_text(
        "vietocr-memory-mask", build(LanguageTransformer, memory_mask=True), gain=1.0, seed=1
    ),
)

RECURRENT_CASES = (lines_of_text("vietocr-seq2seq", Seq2Seq, sizes=(32,), family=RECURRENT),)
