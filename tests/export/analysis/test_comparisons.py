"""What the analysis compares: sizes by expression, and mask values with room for a bias."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hybrid_deploy.errors import UnsupportedModelError
from hybrid_deploy.export.analysis.binding_time import analyse
from hybrid_deploy.export.model.interface import DecodePart
from hybrid_deploy.export.plan.plan import DecodePlan
from hybrid_deploy.export.trace.capture import capture_decoder

WIDTH, HEADS, BATCH, PLACES = 8, 2, 2, 5


class Decoder(nn.Module):
    """Self-attention with an additive mask, and PyTorch's own attention to the memory."""

    def __init__(self, hidden: float) -> None:
        super().__init__()
        self.hidden = hidden
        self.embedding = nn.Embedding(7, WIDTH)
        self.cross = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.head = nn.Linear(WIDTH, 7)

    def decode(self, tokens: Tensor, memory: Tensor) -> Tensor:
        x = self.embedding(tokens)
        places = torch.arange(tokens.shape[1])
        distance = places[None] - places[:, None]
        mask = 0.3 * distance + torch.where(distance > 0, self.hidden, 0.0)
        x = x + nn.functional.scaled_dot_product_attention(x, x, x, attn_mask=mask)
        logits: Tensor = self.head(self.cross(x, memory, memory)[0])
        return logits


def plan_of(decoder: Decoder, length: int) -> DecodePlan:
    memory = (torch.randn(BATCH, PLACES, WIDTH),)
    return analyse(capture_decoder(DecodePart(decoder.eval()), memory, ((1,),), length))


def test_as_many_tokens_as_heads_of_a_batch_fix_no_batch() -> None:
    plan = plan_of(Decoder(-1e9), BATCH * HEADS)
    assert plan.capture.batch.is_Symbol


def test_a_bias_on_a_hidden_token_leaves_it_hidden() -> None:
    plan_of(Decoder(-1e4), 5)


def test_a_bias_alone_hides_no_token() -> None:
    with pytest.raises(UnsupportedModelError, match="see the tokens after it"):
        plan_of(Decoder(-1e3), 5)
