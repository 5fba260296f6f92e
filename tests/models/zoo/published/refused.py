"""Published models that are refused, with the words of each refusal."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models.zoo.captioner import (
    FEATURES,
    HEADS,
    HIDDEN,
    VOCABULARY,
    WIDTH,
    Captioner,
)
from tests.models.zoo.case import Case, build
from tests.models.zoo.published import (
    captioners,
    pix2tex,
    recurrent_readers,
    translation,
)
from tests.models.zoo.published.captioners import Coca
from tests.models.zoo.published.case_makers import (
    PADDING,
    lines_of_text,
    regions,
    sentences,
    squares,
)
from tests.models.zoo.published.pix2tex import Pix2Tex
from tests.models.zoo.published.recurrent_readers import Aster
from tests.models.zoo.published.scene_text import Master
from tests.models.zoo.published.translation import Fairseq, OpenNmt
from tests.models.zoo.refusal import Refusal


class LoopOnly(nn.Module):
    """ASTER as its authors train it: a loop in `decode`, and no step of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.aster = Aster()

    def encode(self, image: Tensor) -> Tensor:
        return self.aster.encode(image)

    def decode(self, tokens: Tensor, memory: Tensor) -> Tensor:
        return self.aster.decode(tokens, memory)


class SparseExperts(Captioner):
    """Mixtral's feed-forward network: each expert reads the rows that picked it."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, 4)
        self.experts = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def decode(self, tokens: Tensor, memory: Tensor) -> Tensor:
        logits: Tensor = self.head(
            self.routed(self.embedding(tokens)) + memory.mean(1, keepdim=True)
        )
        return logits

    def routed(self, x: Tensor) -> Tensor:
        rows = x.view(-1, WIDTH)
        weights, chosen = torch.topk(F.softmax(self.router(rows), dim=1), 2, dim=-1)
        result = torch.zeros_like(rows)
        masks = F.one_hot(chosen, num_classes=4).permute(2, 1, 0)
        for expert, layer in enumerate(self.experts):
            idx, top_x = torch.where(masks[expert])
            current = layer(rows[top_x]) * weights[top_x, idx, None]
            result.index_add_(0, top_x, current)
        return result.view(x.shape)


class PerceiverAr(nn.Module):
    """Perceiver AR: the last four tokens attend to all tokens, and only they get logits."""

    latents = 4

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(FEATURES, WIDTH)
        self.embedding, self.positions = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(80, WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.up, self.head = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, VOCABULARY)

    def encode(self, features: Tensor) -> Tensor:
        memory: Tensor = self.project(features)
        return memory

    def decode(self, tokens: Tensor, memory: Tensor) -> Tensor:
        x = self.embedding(tokens) + self.positions.weight[: tokens.shape[1]]
        x = x + memory.mean(1, keepdim=True)
        length = x.shape[1]
        hidden = torch.ones(self.latents, length, dtype=torch.bool).triu(length - self.latents + 1)
        rows = self.attention(x[:, -self.latents :], x, x, attn_mask=hidden)[0]
        logits: Tensor = self.head(F.gelu(self.up(rows)))
        return logits


_MAX_LENGTH = 24  # a loop over the tokens is traced step by step


def _refusal(
    case: Case,
    message: str,
    line: str | None = None,
    file: str | None = __file__,
) -> Refusal:
    case = dataclasses.replace(case, family="refused", max_length=_MAX_LENGTH)
    return Refusal(case, message, line, Path(file or __file__))


REFUSED = (
    _refusal(
        lines_of_text("aster-without-step", LoopOnly),
        r"different program for a different number of tokens: Python control flow",
        "output, state = self.step(tokens[:, i], state, *memory)",
        recurrent_readers.__file__,
    ),
    _refusal(
        lines_of_text("master-padding-rows", build(Master, PADDING), channels=1),
        r"not causal: tokens change the logits of the tokens before them",
    ),
    _refusal(
        squares("coca", Coca),
        r"token axis is folded into an axis other than the batch",
        'sim = torch.einsum("b h i d, b j d -> b h i j", q, k)',
        captioners.__file__,
    ),
    _refusal(
        lines_of_text("x-transformers-memory-keys", build(Pix2Tex, memory_keys=3), channels=1),
        r"self-attention with 27 keys for 24 rows.*learned memory keys.*decoder\.layers\.0",
        'out = torch.einsum("bhij,bhjd->bhid", F.softmax(dots, dim=-1), v)',
        pix2tex.__file__,
    ),
    _refusal(
        sentences("opennmt-relative", OpenNmt),
        r"not known to treat tokens one by one.*aten\.matmul",
        "x = torch.matmul(x, z.transpose(1, 2) if transpose else z)",
        translation.__file__,
    ),
    _refusal(
        sentences("fairseq-positions", build(Fairseq, from_tokens=True)),
        r"mixes tokens.*aten\.cumsum",
        "return (torch.cumsum(mask, dim=1).type_as(mask) * mask).long() + PADDING",
        translation.__file__,
    ),
    _refusal(
        regions("mixtral", SparseExperts),
        r"a size or a Python number depends on the values of this operator's operands",
        "idx, top_x = torch.where(masks[expert])",
    ),
    _refusal(
        regions("perceiver-ar", PerceiverAr),
        r"logits of shape \(2, 4, 97\) for tokens \(2, 24\).*a row for every token",
    ),
)
