"""Tests what encode and decode may return, and the line for what they may not."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hybrid_deploy.errors import UnsupportedModelError
from hybrid_deploy.export.model.example_run import check_example_run

LENGTH, WORDS = 6, 7
ROWS = {"rows": torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))}
Pair = namedtuple("Pair", ["keys", "mask"])
Hidden = namedtuple("Hidden", ["hidden", "logits"])


class Returning(nn.Module):
    """Returns what two functions make of the rows and of the right logits."""

    def __init__(
        self,
        memory: Callable[[Tensor], Any] = lambda rows: rows,
        outputs: Callable[[Tensor], Any] = lambda logits: logits,
    ) -> None:
        super().__init__()
        self._memory, self._outputs = memory, outputs

    def encode(self, rows: Tensor) -> Any:
        return self._memory(rows)

    def decode(self, tokens: Tensor, *memory: Any) -> Any:
        return self._outputs(torch.zeros(*tokens.shape, WORDS))


@pytest.mark.parametrize(
    "model",
    [
        Returning(),
        Returning(memory=lambda rows: [rows, rows.mean(1)]),
        Returning(memory=lambda rows: Pair(rows, rows[..., 0] > 0)),
        Returning(memory=lambda rows: rows[:, :2]),  # an axis of 2 beside the batch of 2
        Returning(outputs=lambda logits: (logits, logits.tanh())),
        Returning(outputs=lambda logits: {"logits": logits}),
        Returning(outputs=lambda logits: OrderedDict(logits=logits)),
        Returning(outputs=lambda logits: {"hidden": logits[..., 0], "logits": logits}),
        Returning(outputs=lambda logits: {"loss": None, "scores": logits}),
        Returning(outputs=lambda logits: Hidden(logits[..., 0], logits)),
    ],
)
def test_what_the_interface_allows_passes(model: nn.Module) -> None:
    check_example_run(model, ROWS, LENGTH)


@pytest.mark.parametrize(
    ("memory", "message"),
    [
        (lambda rows: {"keys": rows}, "encode() returns dict with keys; return a tensor or"),
        (lambda rows: None, "encode() returns None; return a tensor or"),
        (lambda rows: (), "encode() returns nothing; return a tensor or"),
        (lambda rows: (rows, None), "encode() returns None as value 1 of its memory; return"),
        (lambda rows: (rows, 5), "encode() returns int as value 1 of its memory; return"),
        (lambda rows: rows.half(), "encode() returns float16, and an export computes in float32"),
        (
            lambda rows: rows.transpose(0, 1),
            "encode() returns memory of shape (5, 2, 3) for the inputs rows (2, 5, 3): the memory "
            "must be batch first; return it as .transpose(0, 1), and turn it back in decode()",
        ),
        (
            lambda rows: rows[:, :2].transpose(0, 1),  # two places: only a batch of 3 tells
            "encode() returns memory of shape (2, 3, 3) for the inputs rows (3, 5, 3): the memory "
            "must be batch first; return it as .transpose(0, 1), and turn it back in decode()",
        ),
        (
            lambda rows: rows.flatten(0, 1),
            "encode() returns memory of shape (10, 3) for the inputs rows (2, 5, 3): the memory "
            "must be batch first; give every input of the batch its own row",
        ),
        (lambda rows: rows.mean(), "encode() returns memory of shape () for the inputs rows"),
    ],
)
def test_other_memory_is_refused(memory: Callable[[Tensor], Any], message: str) -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        check_example_run(Returning(memory=memory), ROWS, LENGTH)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        (lambda logits: None, "decode() returns None; return logits (batch, length, vocabulary)"),
        (lambda logits: (), "decode() returns nothing; return logits"),
        (lambda logits: (logits, None), "decode() returns None as output 1; return logits"),
        (lambda logits: 3, "decode() returns int; return logits"),
        (
            lambda logits: {"hidden": logits, "scores": logits},
            "the decoder returns 'hidden', 'scores', and none of them is called 'logits'",
        ),
        (lambda logits: logits.bfloat16(), "decode() returns bfloat16, and an export computes"),
        (
            lambda logits: logits.transpose(0, 1),
            "decode() returns logits of shape (6, 2, 7) for tokens (2, 6), expected logits (batch, "
            "length, vocabulary): a row for every token; return them batch first, as "
            ".transpose(0, 1)",
        ),
        (
            lambda logits: logits[:, -1],
            "decode() returns logits of shape (2, 7) for tokens (2, 6), expected logits (batch, "
            "length, vocabulary): a row for every token",
        ),
    ],
)
def test_other_logits_are_refused(outputs: Callable[[Tensor], Any], message: str) -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        check_example_run(Returning(outputs=outputs), ROWS, LENGTH)
    assert str(caught.value).startswith(message)


class OneMemory(Returning):
    """Takes one value of the memory."""

    def decode(self, tokens: Tensor, memory: Tensor) -> Any:
        return super().decode(tokens, memory)


def test_a_decoder_has_to_take_every_value_of_the_memory() -> None:
    model = OneMemory(memory=lambda rows: Pair(rows, rows[..., 0]))
    with pytest.raises(UnsupportedModelError) as caught:
        check_example_run(model, ROWS, LENGTH)
    called = (
        "encode() returns 2 values, so decode() is called as decode(tokens, memory_0, memory_1)"
    )
    assert str(caught.value).startswith(called)


class Tables(Returning):
    """A decoder with positions of a table of 4 rows, or of 4 values of a parameter."""

    def __init__(self, parameter: bool) -> None:
        super().__init__()
        self.places = nn.Embedding(4, WORDS)
        self.values = nn.Parameter(torch.zeros(4, WORDS))
        self.parameter = parameter

    def decode(self, tokens: Tensor, *memory: Any) -> Any:
        logits = super().decode(tokens)
        if self.parameter:
            return logits + self.values[: tokens.shape[1]]
        return logits + self.places(torch.arange(tokens.shape[1]))


@pytest.mark.parametrize(
    ("parameter", "why"), [(False, "the table places has 4 rows"), (True, r"tensor b \(")]
)
def test_the_largest_working_number_of_tokens_is_named(parameter: bool, why: str) -> None:
    words = (
        r"test_example_run\.py:\d+: decode\(\) fails for 6 tokens, the max_length, and works for "
        rf"4 \(.*{why}.*\); give a max_length of at most 4$"
    )
    with pytest.raises(UnsupportedModelError, match=words):
        check_example_run(Tables(parameter), ROWS, LENGTH)
    check_example_run(Tables(parameter), ROWS, 4)
