"""The derived decoder in PyTorch: each step equals the model's own run of the full sequence."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybrid_deploy.errors import UnsupportedModelError
from hybrid_deploy.export.analysis.binding_time import analyse
from hybrid_deploy.export.lowering.decoder_modules import (
    EncoderGraph,
    PrefillGraph,
    StepGraph,
    cache_example,
    cache_names,
    memory_names,
)
from hybrid_deploy.export.model.interface import DecodePart, EncodePart
from hybrid_deploy.export.parity.decode_checks import check_causal
from hybrid_deploy.export.plan.plan import DecodePlan
from hybrid_deploy.export.trace.capture import capture_decoder
from tests.closeness import assert_close_in_float32

VOCABULARY, WIDTH, HEADS, LENGTH = 23, 16, 2, 12


class Decoder(nn.Module):
    """The base of the decoders below: an identity as the encoder, an embedding, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.positions = nn.Embedding(LENGTH, WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def encode(self, memory: Tensor) -> Tensor:
        return memory

    def embedded(self, tokens: Tensor) -> Tensor:
        rows: Tensor = self.embedding(tokens) + self.positions(torch.arange(tokens.shape[1]))
        return rows


class TorchDecoder(Decoder):
    """torch.nn.TransformerDecoder with its options."""

    def __init__(
        self, *, norm_first: bool = False, batch_first: bool = True, hint: bool | None = None
    ) -> None:
        super().__init__()
        self.batch_first, self.hint = batch_first, hint
        layer = nn.TransformerDecoderLayer(
            WIDTH, HEADS, 32, norm_first=norm_first, batch_first=batch_first
        )
        self.decoder = nn.TransformerDecoder(layer, 2, norm=nn.LayerNorm(WIDTH))

    def decode(self, tokens: Tensor, memory: Tensor) -> Tensor:
        rows, mask = self.embedded(tokens), self.mask(tokens.shape[1])
        if not self.batch_first:
            rows, memory = rows.transpose(0, 1), memory.transpose(0, 1)
        rows = self.decoder(rows, memory, tgt_mask=mask, tgt_is_causal=self.hint)
        logits: Tensor = self.head(rows if self.batch_first else rows.transpose(0, 1))
        return logits

    def mask(self, length: int) -> Tensor:
        return nn.Transformer.generate_square_subsequent_mask(length)


class PaddingMaskFromTokens(TorchDecoder):
    """A decoder that masks padding tokens as keys, as many tutorials do."""

    def decode(self, tokens: Tensor, memory: Tensor) -> Tensor:
        mask = torch.triu(torch.ones(tokens.shape[1], tokens.shape[1], dtype=torch.bool), 1)
        rows = self.decoder(
            self.embedded(tokens), memory, tgt_mask=mask, tgt_key_padding_mask=tokens == 0
        )
        logits: Tensor = self.head(rows)
        return logits


class HandWritten(Decoder):
    """Self-attention by matmul, masked_fill and softmax; cross-attention by einsum."""

    triangle: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.query, self.pair = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2 * WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.register_buffer("triangle", torch.tril(torch.ones(64, 64)).view(1, 1, 64, 64))

    def decode(self, tokens: Tensor, memory: Tensor) -> Tensor:
        x = self.embedded(tokens)
        batch, length, _ = x.shape
        q, k, v = (self.heads(t) for t in self.qkv(self.norm(x)).split(WIDTH, 2))
        scores = (q @ k.transpose(-2, -1)) / math.sqrt(k.shape[-1])
        scores = scores.masked_fill(self.triangle[:, :, :length, :length] == 0, float("-inf"))
        x = x + self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, length, WIDTH))
        k, v = (self.heads(t) for t in self.pair(memory).chunk(2, -1))
        scores = torch.einsum("bhqd,bhkd->bhqk", self.heads(self.query(x)), k)
        mixed = torch.einsum("bhqk,bhkd->bhqd", scores.softmax(-1), v)
        logits: Tensor = self.head(x + mixed.transpose(1, 2).reshape(batch, length, WIDTH))
        return logits

    def heads(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], x.shape[1], HEADS, -1).transpose(1, 2)


class RotaryGrouped(HandWritten):
    """Rotary positions, one key head for two query heads, RMS norm, tied embedding."""

    def __init__(self) -> None:
        super().__init__()
        half = WIDTH // HEADS
        self.q, self.kv = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2 * half)
        self.rms = nn.RMSNorm(WIDTH)

    def decode(self, tokens: Tensor, memory: Tensor) -> Tensor:
        x = self.embedding(tokens)
        batch, length, _ = x.shape
        normed = self.rms(x)
        q = rotate(self.heads(self.q(normed)))
        k, v = (t.view(batch, length, 1, -1).transpose(1, 2) for t in self.kv(normed).chunk(2, -1))
        mixed = F.scaled_dot_product_attention(q, rotate(k), v, is_causal=True, enable_gqa=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, WIDTH))
        k, v = (self.heads(t) for t in self.pair(memory).chunk(2, -1))
        mixed = F.scaled_dot_product_attention(self.heads(self.query(x)), k, v)
        x = x + mixed.transpose(1, 2).reshape(batch, length, WIDTH)
        return F.linear(x, self.embedding.weight)


class BiasPerDistance(HandWritten):
    """A decoder whose additive mask holds a bias per distance: it is no plain causal table."""

    def decode(self, tokens: Tensor, memory: Tensor) -> Tensor:
        x = self.embedding(tokens)
        batch, length, _ = x.shape
        q, k, v = (self.heads(t) for t in self.qkv(x).split(WIDTH, 2))
        steps = torch.arange(length)
        distance = (steps[:, None] - steps[None, :]).float()
        slopes = torch.tensor([0.5, 0.25])[:, None, None]
        bias = torch.where(distance < 0, float("-inf"), -distance * slopes)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None])
        x = x + mixed.transpose(1, 2).reshape(batch, length, WIDTH) + memory.mean(1, keepdim=True)
        logits: Tensor = self.head(x)
        return logits


class PointwiseConvolutions(HandWritten):
    """A feed-forward network of convolutions with a kernel of one, and batch normalization."""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.project = nn.Conv1d(WIDTH, 24, 1), nn.Conv1d(24, WIDTH, 1)
        self.batch_norm = nn.BatchNorm1d(24)
        self.batch_norm.running_mean.normal_()  # type: ignore[union-attr]

    def embedded(self, tokens: Tensor) -> Tensor:
        rows = super().embedded(tokens)
        hidden = self.batch_norm(self.expand(rows.transpose(1, 2))).relu()
        projected: Tensor = self.project(hidden)
        return rows + projected.transpose(1, 2)


class FlattenedRows(TorchDecoder):
    """Puts the rows of all sequences into one table, and back into the shape of another tensor."""

    def decode(self, tokens: Tensor, memory: Tensor) -> Tensor:
        logits = super().decode(tokens, memory)
        table = logits.reshape(-1, VOCABULARY) * 2
        changed: Tensor = table.view_as(logits) + table.exp().reshape_as(logits)
        return changed


class ScaledByMemorySize(TorchDecoder):
    """Scales the memory, and the logits, by numbers that the size of the memory gives."""

    def decode(self, tokens: Tensor, memory: Tensor) -> Tensor:
        logits = super().decode(tokens, memory / memory.shape[1] ** 0.5)
        return logits * (1 / memory.shape[1])


def rotate(x: Tensor) -> Tensor:
    """Returns x with interleaved rotary position embedding."""
    length, width = x.shape[-2:]
    rates = 10000.0 ** (-torch.arange(0, width, 2).float() / width)
    angles = torch.arange(length).float()[:, None] * rates
    even, odd = x[..., 0::2], x[..., 1::2]
    rotated = (even * angles.cos() - odd * angles.sin(), even * angles.sin() + odd * angles.cos())
    return torch.stack(rotated, -1).flatten(-2)


def plan_of(model: nn.Module) -> DecodePlan:
    memory = (torch.randn(2, 5, WIDTH),)
    return analyse(capture_decoder(DecodePart(model), memory, ((1,),), LENGTH))


MODELS = {
    "post-norm": lambda: TorchDecoder(),
    "pre-norm, length first, hint": lambda: TorchDecoder(
        norm_first=True, batch_first=False, hint=True
    ),
    "padding mask from tokens": PaddingMaskFromTokens,
    "hand-written": HandWritten,
    "rotary, grouped": RotaryGrouped,
    "bias per distance": BiasPerDistance,
    "pointwise convolutions": PointwiseConvolutions,
    "flattened rows": FlattenedRows,
    "scaled by the memory's size": ScaledByMemorySize,
}


@pytest.mark.parametrize("name", MODELS)
def test_every_step_equals_the_full_run(name: str) -> None:
    torch.manual_seed(1)
    model = MODELS[name]().eval()
    plan = plan_of(model)
    encoder, prefill, step = (
        EncoderGraph(EncodePart(model), plan),
        PrefillGraph(plan),
        StepGraph(plan),
    )
    memory, decode = torch.randn(3, 7, WIDTH), cast("Callable[..., Tensor]", model.decode)
    prompts, lengths = torch.randint(1, VOCABULARY, (3, 3)), torch.tensor([1, 3, 2])
    rows = [prompts[i, : lengths[i]].tolist() for i in range(3)]
    with torch.no_grad():
        cross = encoder(memory)
        logits, *caches = prefill(
            prompts, torch.zeros(3, dtype=torch.int64), lengths - 1, *cross, *cache_example(plan, 3)
        )
        for _ in range(LENGTH - 3):
            full = [decode(torch.tensor([r]), memory[i : i + 1]) for i, r in enumerate(rows)]
            expected = torch.cat([logits[:, -1] for logits in full])
            assert_close_in_float32(logits, expected)
            token = expected.argmax(-1)
            for row, new in zip(rows, token.tolist(), strict=True):
                row.append(new)
            position = torch.tensor([len(row) - 1 for row in rows])
            logits, *caches = step(token, position, *cross, *caches)


def test_cross_attention_moves_to_the_encoder() -> None:
    plan = plan_of(TorchDecoder().eval())
    assert memory_names(plan) == [
        "cross_key_0",
        "cross_value_0",
        "cross_key_1",
        "cross_value_1",
    ]
    assert cache_names(plan) == ["self_key_0", "self_value_0", "self_key_1", "self_value_1"]
    shapes = {tuple(cache.shape) for cache in cache_example(plan, batch=3)}
    assert shapes == {(3, HEADS, LENGTH, WIDTH // HEADS)}


def test_transposed_keys_are_cached_before_the_transposition() -> None:
    plan = plan_of(HandWritten().eval())
    assert [cache.kind for cache in plan.caches] == ["key", "value"]


class LeakyMask(TorchDecoder):
    def mask(self, length: int) -> Tensor:
        return torch.triu(
            torch.full((length, length), float("-inf")), 2
        )  # a row sees one later token


def test_a_mask_that_leaks_is_refused() -> None:
    """tests/models/zoo/refused.py holds the other models that are refused."""
    with pytest.raises(UnsupportedModelError, match="lets a token see the tokens after it"):
        plan_of(LeakyMask().eval())


class HandWrittenWithoutMask(HandWritten):
    def __init__(self) -> None:
        super().__init__()
        self.triangle.fill_(1)


def test_a_missing_mask_of_hand_written_attention_is_refused() -> None:
    inputs = {"memory": torch.randn(2, 5, WIDTH)}
    check_causal(HandWritten().eval(), inputs, LENGTH)
    with pytest.raises(UnsupportedModelError, match="give its self-attention a causal mask"):
        check_causal(HandWrittenWithoutMask().eval(), inputs, LENGTH)


class Convolution(TorchDecoder):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(WIDTH, WIDTH, 3, padding=1)

    def embedded(self, tokens: Tensor) -> Tensor:
        rows: Tensor = self.conv(super().embedded(tokens).transpose(1, 2)).transpose(1, 2)
        return rows


def test_a_refusal_names_the_module_and_the_line() -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        plan_of(Convolution().eval())
    assert "module conv" in str(caught.value)
    source, first = inspect.getsourcelines(Convolution.embedded)
    line = first + next(n for n, text in enumerate(source) if "self.conv(" in text)
    assert f"test_decoder_modules.py:{line}: " in str(caught.value)
