"""A model that is random by chance is told so, in place of what a check suspects."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hybrid_deploy.errors import ParityError, UnsupportedModelError
from hybrid_deploy.export.parity.repeatable import chance_told_first, check_repeatable
from hybrid_deploy.export.trace.refusal import RunsDifferError

INPUTS = {"x": torch.ones(2, 3)}


class Seldom(nn.Module):
    """Returns doubled logits in a share of its runs."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def encode(self, x: Tensor) -> Tensor:
        return x

    def decode(self, tokens: Tensor, memory: Tensor) -> Tensor:
        factor = 2.0 if random.random() < self.share else 1.0
        return torch.ones(*tokens.shape, 5) * factor


class SeldomStep(nn.Module):
    """A model with its own step that draws a dropout mask."""

    def encode(self, x: Tensor) -> Tensor:
        return x

    def initial_state(self, memory: Tensor) -> Tensor:
        return memory

    def step(self, token: Tensor, state: Tensor, memory: Tensor) -> Any:
        return nn.functional.dropout(state, 0.5, training=True), state


@pytest.mark.parametrize("refusal", [RunsDifferError("the length"), ParityError("differs")])
def test_a_random_model_is_told_before_the_refusal(refusal: Exception) -> None:
    random.seed(3)
    with pytest.raises(
        UnsupportedModelError, match=r"^decode\(\) returns other values in a second"
    ):
        with chance_told_first(Seldom(0.05), INPUTS, 4):
            raise refusal


@pytest.mark.parametrize(
    ("refusal", "kind"),
    [
        (RunsDifferError("the length"), UnsupportedModelError),
        (ParityError("the length"), ParityError),
    ],
)
def test_the_refusal_of_a_model_that_is_not_random_stays(
    refusal: Exception, kind: type[Exception]
) -> None:
    with pytest.raises(kind, match=r"^the length$") as caught:
        with chance_told_first(Seldom(0), INPUTS, 4):
            raise refusal
    assert type(caught.value) is kind


def test_a_random_step_is_called_a_step() -> None:
    torch.manual_seed(0)
    with pytest.raises(UnsupportedModelError, match=r"^step\(\) returns other values"):
        check_repeatable(SeldomStep(), INPUTS, torch.ones(2, 4, dtype=torch.int64))
