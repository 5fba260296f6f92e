"""Decoders that depend on the number of tokens are refused with their line, before any graph."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hybrid_deploy.errors import UnsupportedModelError
from hybrid_deploy.export.parity import reference_rows
from hybrid_deploy.export.parity.length_checks import check_lengths

CAPACITY, WIDTH, VOCABULARY = 40, 8, 13
INPUTS = {"features": torch.linspace(-1, 1, 2 * WIDTH).reshape(2, WIDTH)}

Rows = Callable[[Any, Tensor], Tensor]


class Decoder(nn.Module):
    """Logits of embedded tokens, changed by a function of the rows (batch, length, width)."""

    def __init__(self, rows: Rows) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.positions = nn.Embedding(2 * CAPACITY, WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY)
        self.rows = rows

    def encode(self, features: Tensor) -> Tensor:
        return features

    def decode(self, tokens: Tensor, memory: Tensor) -> Tensor:
        logits: Tensor = self.head(self.rows(self, self.embedding(tokens) + memory[:, None]))
        return logits


def share(model: Any, x: Tensor) -> Tensor:
    places = torch.arange(x.shape[1])
    shares = places / x.shape[1]
    return x + shares[:, None]


def linspace(model: Any, x: Tensor) -> Tensor:
    return x + torch.linspace(0, 1, x.shape[1])[:, None]


def divided(model: Any, x: Tensor) -> Tensor:
    return x / x.shape[1]


def scaled_by_logarithm(model: Any, x: Tensor) -> Tensor:
    return x * math.log(x.shape[1] + 1)


def from_the_end(model: Any, x: Tensor) -> Tensor:
    places: Tensor = model.positions(x.shape[1] - 1 - torch.arange(x.shape[1]))
    return x + places


def row_of_length(model: Any, x: Tensor) -> Tensor:
    row: Tensor = model.positions.weight[x.shape[1]]
    return x + row


def odd(model: Any, x: Tensor) -> Tensor:
    if x.shape[1] % 2:
        x = x.flip(2)
    return x


def clamped(model: Any, x: Tensor) -> Tensor:
    places: Tensor = model.positions(torch.arange(x.shape[1]).clamp(max=13))
    return x + places


def relative(model: Any, x: Tensor) -> Tensor:
    """A table of distances from the last token, which the softmax over the keys cancels."""
    length = x.shape[1]
    future = torch.full((length, length), float("-inf")).triu(1)
    distances = torch.arange(1 - length, 1) * 0.3
    return x + (distances + future).softmax(1) @ x


def switched_table(length: int) -> Rows:
    def switched(model: Any, x: Tensor) -> Tensor:
        count = x.shape[1]
        first = CAPACITY if count > length else 0
        rows: Tensor = model.positions.weight[first : first + count]
        return x + rows

    return switched


def switched_program(length: int) -> Rows:
    def switched(model: Any, x: Tensor) -> Tensor:
        if x.shape[1] > length:
            x = x.sin()
        return x

    return switched


def special(length: int) -> Rows:
    def special_at(model: Any, x: Tensor) -> Tensor:
        if x.shape[1] == length:
            x = x.sin()
        return x

    return special_at


def check(rows: Rows) -> None:
    check_lengths(Decoder(rows).eval(), INPUTS, CAPACITY)


@pytest.mark.parametrize(
    ("rows", "offset", "text"),
    [
        (share, 2, "the value at row 1 changes with the number of tokens, here 40 and 39"),
        (linspace, 1, "the value at row 1 changes"),
        (divided, 1, "a number of this operator changes"),
        (scaled_by_logarithm, 1, "a number of this operator changes"),
        (from_the_end, 1, "the value at row 0 changes"),
        (row_of_length, 1, "this value changes"),
        (odd, 2, "decode() runs a different program for a different number of tokens"),
    ],
)
def test_a_value_of_the_number_of_tokens_is_refused(rows: Rows, offset: int, text: str) -> None:
    line = inspect.getsourcelines(rows)[1] + offset
    with pytest.raises(UnsupportedModelError) as caught:
        check(rows)
    assert str(caught.value).startswith(f"{__file__}:{line}: {text}"), caught.value


@pytest.mark.parametrize("length", [1, 13, CAPACITY - 1])
@pytest.mark.parametrize("kind", [switched_table, switched_program])
def test_a_switch_at_any_length_is_refused(kind: Callable[[int], Rows], length: int) -> None:
    rows = kind(length)
    lines, first = inspect.getsourcelines(rows)
    with pytest.raises(UnsupportedModelError) as caught:
        check(rows)
    numbers = [first + n for n, line in enumerate(lines) if "sin" in line or "weight" in line]
    assert str(caught.value).startswith(f"{__file__}:{numbers[0]}: "), caught.value


@pytest.mark.parametrize("length", [5, 31])
def test_a_single_length_is_found(length: int) -> None:
    with pytest.raises(UnsupportedModelError, match="different number of tokens"):
        check(special(length))


@pytest.mark.parametrize("length", [5, 25])
def test_a_switch_between_the_chosen_lengths_is_found(
    length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference_rows, "_EVERY_LENGTH_PRODUCTS", 0)
    with pytest.raises(UnsupportedModelError, match="different number of tokens"):
        check(switched_program(length))


@pytest.mark.parametrize("rows", [lambda model, x: x, clamped, relative])
def test_what_only_counts_the_tokens_is_accepted(rows: Any) -> None:
    check(rows)


def test_nan_is_called_nan() -> None:
    def none_of(model: Any, x: Tensor) -> Tensor:
        first = x.shape[1] - torch.arange(x.shape[1])[:, None] > CAPACITY - 4
        return x.masked_fill(first, math.nan)

    with pytest.raises(UnsupportedModelError, match=r"^decode\(\) returns NaN after token \d+ as "):
        check_lengths(Decoder(none_of).eval(), INPUTS, CAPACITY)
