"""A decoder that looks ahead or mixes sequences only where a special token stands is refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hybrid_deploy.bundle.manifest import GenerationDefaults
from hybrid_deploy.errors import ParityError, UnsupportedModelError
from hybrid_deploy.export.exporter import export_model
from hybrid_deploy.export.model.interface import arrays_of
from hybrid_deploy.export.parity.compare import compare_prefill
from hybrid_deploy.export.parity.decode_checks import check_batch, check_causal
from hybrid_deploy.export.parity.length_checks import check_lengths
from hybrid_deploy.export.parity.reference_backend import FullRerun
from hybrid_deploy.export.parity.special_tokens import TokenChoice, mixed_tokens, special_tokens

VOCABULARY, WIDTH, LENGTH, SPECIAL = 5000, 8, 16, 4321
INPUTS = {"features": torch.linspace(-1, 1, 2 * WIDTH).reshape(2, WIDTH)}

Rows = Callable[[Tensor, Tensor], Tensor]
Check = Callable[..., None]


class Decoder(nn.Module):
    """Logits of embedded tokens, changed by a function of the rows and of where SPECIAL stands."""

    def __init__(self, rows: Rows, padding: int | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(VOCABULARY, WIDTH, padding)
        self.head = nn.Linear(WIDTH, VOCABULARY)
        self.rows = rows

    def encode(self, features: Tensor) -> Tensor:
        return features

    def decode(self, tokens: Tensor, memory: Tensor) -> Tensor:
        x = self.embedding(tokens) + memory[:, None]
        logits: Tensor = self.head(self.rows(x, tokens == SPECIAL))
        return logits


def plain(x: Tensor, special: Tensor) -> Tensor:
    return x


def special_rows_see_all(x: Tensor, special: Tensor) -> Tensor:
    """Rows of the mean of the earlier rows; a special token's row is the mean of all rows."""
    length = x.shape[1]
    past = torch.ones(length, length, dtype=torch.bool).tril()
    scores = torch.zeros(length, length).masked_fill(~(past & ~special[:, :, None]), -1e9)
    return scores.softmax(-1) @ x


def first_row_sees_the_second(x: Tensor, special: Tensor) -> Tensor:
    return torch.cat([x[:, :1] + x[:, 1:2], x[:, 1:]], 1)


def rows_change_if_one_is_special(x: Tensor, special: Tensor) -> Tensor:
    return x * (1 + special.any())


def special_rows_count_tokens(x: Tensor, special: Tensor) -> Tensor:
    return x + special[:, :, None] * x.shape[1]


def special_rows_are_doubled(x: Tensor, special: Tensor) -> Tensor:
    return x * (1 + special[:, :, None].float())


class ScaledBy(Decoder):
    """Scales its inputs by a value of the whole batch, which stands in one of its rows."""

    def __init__(self, value: Callable[[Tensor], Tensor]) -> None:
        super().__init__(plain)
        self.value = value

    def encode(self, features: Tensor) -> Tensor:
        return features / self.value(features)


@pytest.mark.parametrize("value", [torch.amax, torch.amin, torch.mean])
@pytest.mark.parametrize("scale", [1.0, -1.0])
def test_inputs_that_are_scaled_by_a_value_of_the_batch_are_refused(
    value: Callable[[Tensor], Tensor], scale: float
) -> None:
    inputs = {"features": scale * (INPUTS["features"] + 0.1)}
    with pytest.raises(UnsupportedModelError, match="mixes the inputs of a batch"):
        check_batch(ScaledBy(value).eval(), inputs, LENGTH)


@pytest.mark.parametrize(
    ("check", "rows", "message"),
    [
        (check_causal, special_rows_see_all, "not causal"),
        (check_batch, rows_change_if_one_is_special, "mixes the sequences"),
        (check_lengths, special_rows_count_tokens, "number of tokens"),
    ],
)
def test_what_a_special_token_does_is_found(check: Check, rows: Rows, message: str) -> None:
    check(Decoder(plain).eval(), INPUTS, LENGTH, [SPECIAL])
    check(Decoder(rows).eval(), INPUTS, LENGTH)  # chance alone does not find it
    with pytest.raises(UnsupportedModelError, match=message):
        check(Decoder(rows).eval(), INPUTS, LENGTH, [SPECIAL])


def test_a_first_token_that_sees_the_second_is_found() -> None:
    with pytest.raises(UnsupportedModelError, match="not causal"):
        check_causal(Decoder(first_row_sees_the_second).eval(), INPUTS, LENGTH)


@pytest.mark.parametrize(
    "generation",
    [{"start_tokens": (1, SPECIAL)}, {"end_tokens": (SPECIAL,)}, {"pad_token": SPECIAL}],
    ids=["start", "end", "pad"],
)
def test_graphs_are_compared_on_special_tokens(generation: Mapping[str, Any]) -> None:
    given: dict[str, Any] = {"start_tokens": (), "end_tokens": (), "pad_token": 0, **generation}
    defaults = GenerationDefaults(max_length=LENGTH, **given)
    model, inputs = Decoder(special_rows_are_doubled).eval(), arrays_of(INPUTS)
    compare_prefill(model, FullRerun(model, LENGTH), defaults, inputs, TokenChoice(VOCABULARY))
    with pytest.raises(ParityError):
        graphs = FullRerun(Decoder(plain).eval(), LENGTH)
        compare_prefill(model, graphs, defaults, inputs, TokenChoice(VOCABULARY))


def test_the_special_tokens_of_a_model() -> None:
    generation = GenerationDefaults(
        start_tokens=(1, 5), end_tokens=(2,), pad_token=0, max_length=LENGTH
    )
    assert special_tokens(Decoder(plain, padding=9), generation, [7]) == (9, 7, 0, 1, 5, 2)
    tokens = mixed_tokens(VOCABULARY, (2, 8), (9, VOCABULARY, 7), np.random.default_rng(0))
    assert tokens[:, 1::2].tolist() == [[9, 7, 9, 7], [7, 9, 7, 9]]


def test_no_sequence_begins_with_a_special_token() -> None:
    """A padding token alone hides every key, and the model itself returns NaN."""
    tokens = mixed_tokens(12, (500, 1), (0, 9), np.random.default_rng(0))
    assert set(tokens[:, 0].tolist()) == set(range(12)) - {0, 9}


def test_a_token_that_the_decoder_compares_is_tried(tmp_path: Path) -> None:
    """No argument and no embedding names the padding: the decoder alone tells it apart."""
    with pytest.raises(UnsupportedModelError, match="not causal"):
        export_model(
            Decoder(special_rows_see_all).eval(), INPUTS, tmp_path / "b", max_length=LENGTH
        )


@pytest.mark.parametrize("seed", range(5))
def test_no_prompt_begins_with_a_token_that_the_decoder_tells_apart(seed: int) -> None:
    generation = GenerationDefaults((1,), (2,), pad_token=0, max_length=LENGTH)
    choice = TokenChoice(6, told_apart=(3, 4))
    drawn = choice.draw((40, LENGTH), Decoder(plain), generation, np.random.default_rng(seed))
    assert set(drawn[:, 0]) == {5}
    assert set(drawn[:, 1]) == {0, 1, 2, 3, 4}
