"""Row rules: a user's own operator in the decoder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from hybrid_deploy.errors import UnsupportedModelError, UsageError
from hybrid_deploy.export import row_rule
from hybrid_deploy.export.analysis.binding_time import analyse
from hybrid_deploy.export.analysis.rules import custom
from hybrid_deploy.export.lowering.decoder_modules import EncoderGraph, StepGraph, cache_example
from hybrid_deploy.export.model.interface import DecodePart, EncodePart
from hybrid_deploy.export.plan.plan import DecodePlan
from hybrid_deploy.export.trace.capture import capture_decoder
from tests.closeness import assert_close_in_float32

VOCABULARY, WIDTH, LENGTH = 11, 8, 6


@torch.library.custom_op("hybrid_tests::fold", mutates_args=())
def fold(rows: Tensor, weight: Tensor) -> Tensor:
    """Adds and subtracts the halves of every weighted row: an operator without a rule."""
    left, right = (rows * weight).chunk(2, -1)
    return torch.cat([left + right, left - right], -1)


@fold.register_fake
def _(rows: Tensor, weight: Tensor) -> Tensor:
    return torch.empty_like(rows)


class Folded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.weight = nn.Parameter(torch.randn(WIDTH))
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def encode(self, memory: Tensor) -> Tensor:
        return memory

    def decode(self, tokens: Tensor, memory: Tensor) -> Tensor:
        rows = torch.ops.hybrid_tests.fold(self.embedding(tokens), self.weight)
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1])
        mixed, _ = self.attention(rows, rows, rows, attn_mask=mask, need_weights=False)
        logits: Tensor = self.head(mixed + memory.mean(1, keepdim=True))
        return logits


@pytest.fixture
def no_rules() -> Iterator[None]:
    saved = dict(custom._RULES)
    custom._RULES.clear()
    yield
    custom._RULES.clear()
    custom._RULES.update(saved)


def plan_of(model: nn.Module) -> DecodePlan:
    memory = (torch.randn(2, 3, WIDTH),)
    return analyse(capture_decoder(DecodePart(model), memory, ((1,),), LENGTH))


@pytest.mark.usefixtures("no_rules")
def test_an_operator_is_decoded_after_it_got_a_row_rule() -> None:
    torch.manual_seed(0)
    model = Folded().eval()
    with pytest.raises(
        UnsupportedModelError, match=r"not PyTorch's own and has no rule.*row_rule"
    ) as caught:
        plan_of(model)
    assert "hybrid_tests.fold.default" in str(caught.value)

    @row_rule("hybrid_tests::fold")
    def fold_factor(rows: Tensor, weight: Tensor) -> Tensor:
        assert rows.dim() == 3
        left, right = (rows * weight).chunk(2, -1)
        return torch.cat([left + right, left - right], -1)

    plan = plan_of(model)
    memory, tokens = torch.randn(2, 4, WIDTH), torch.randint(VOCABULARY, (2, LENGTH))
    with torch.no_grad():
        cross = EncoderGraph(EncodePart(model), plan)(memory)
        caches, step = cache_example(plan, 2), StepGraph(plan)
        expected = model.decode(tokens, memory)
        for index in range(LENGTH):
            position = torch.full((2,), index)
            logits, *caches = step(tokens[:, index], position, *cross, *caches)
            assert_close_in_float32(logits, expected[:, index])


def test_a_rule_for_an_unknown_operator_is_refused() -> None:
    with pytest.raises(UsageError, match=r"PyTorch has no operator 'hybrid_tests::nothing'"):
        row_rule("hybrid_tests::nothing")
