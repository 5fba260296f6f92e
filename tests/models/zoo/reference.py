"""Compares a decoder with its module, which is run again over all tokens of each sequence."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hybrid_deploy.runtime.backends.protocol import Decoding
from tests.closeness import float32_error, largest
from tests.models.zoo.captioner import VOCABULARY
from tests.models.zoo.case import Case, random_tokens

ROUNDINGS = 400
"""Accepted roundings of a whole model: 5e-5 of the largest logit, four times the worst case.

The two sides add numbers in another order, in every layer and for every earlier token.
"""

GREEDY_TOKENS = 64
"""Number of tokens decoded after each prompt."""

LEAST_DISTINCT = 8
"""Smallest number of different tokens in a batch that makes a case meaningful."""

LEAST_EFFECT = 1e-2
"""Smallest difference of a logit between two inputs that makes a case meaningful."""

Start = Callable[[Mapping[str, NDArray[Any]]], Decoding]
"""Encodes a batch of inputs by name, and returns its decoding."""


class HybridModel(Protocol):
    """The interface of a model of the zoo."""

    def encode(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Returns the memory, each tensor batch first."""
        ...

    def decode(self, tokens: Tensor, *memory: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Returns the logits of every token, (batch, length, vocabulary)."""
        ...


@dataclass(frozen=True)
class Scenario:
    """One batch to decode.

    Attributes:
        size: size of the inputs.
        prompts: length of each sequence's prompt in tokens.
    """

    size: int
    prompts: tuple[int, ...]


@dataclass
class Comparison:
    """The result of comparing a decoder with its module.

    Attributes:
        largest_difference: largest difference of any logit, up to the first token that differs.
        largest_logit: largest absolute logit of the module.
        identical: number of equal tokens.
        tokens: number of tokens decoded, without those after a tie: if the two largest logits
            differ by less than rounding, the two sides may continue with different tokens.
        distinct: smallest number of different tokens in a batch of several sequences.
    """

    largest_difference: float = 0.0
    largest_logit: float = 0.0
    identical: int = 0
    tokens: int = 0
    distinct: int = VOCABULARY

    @property
    def close(self) -> bool:
        """Whether all logits are equal up to rounding."""
        return self.largest_difference <= float32_error(self.largest_logit, ROUNDINGS)

    @property
    def passed(self) -> bool:
        """Whether all tokens are identical and all logits are close."""
        return self.identical == self.tokens > 0 and self.close


def scenarios(case: Case) -> list[Scenario]:
    """Returns batches of one, of three, with unequal prompts, and with the last input size."""
    short, long = case.prompts[0], case.prompts[-1]
    first, last = case.sizes[0], case.sizes[-1]
    unequal = (short, long, (short + long) // 2)
    batches = [
        Scenario(first, (short,)),
        Scenario(first, (long,) * 3),
        Scenario(first, unequal),
        Scenario(last, unequal),
    ]
    return list(dict.fromkeys(batches))


def compare(
    case: Case,
    model: nn.Module,
    start: Start,
    chosen: Sequence[Scenario] | None = None,
    steps: int = GREEDY_TOKENS,
) -> Comparison:
    """Compares greedy decoding by a decoder and by its module; each reads its own tokens.

    Args:
        case: inputs and prompts.
        model: the module, in eval mode.
        start: starts the decoder that is compared.
        chosen: scenarios to decode; None takes all scenarios of the case.
        steps: number of tokens to decode.
    """
    total = Comparison()
    for scenario in scenarios(case) if chosen is None else chosen:
        _compare(case, model, start, scenario, steps, total)
    return total


def _compare(
    case: Case, model: nn.Module, start: Start, scenario: Scenario, steps: int, total: Comparison
) -> None:
    batch, longest = len(scenario.prompts), max(scenario.prompts)
    inputs = case.inputs(batch, scenario.size)
    prompts = random_tokens(VOCABULARY, batch, longest)
    lengths = np.array(scenario.prompts)
    steps = min(steps, case.max_length - longest + 1)
    actual_tokens, actual_logits = _decode(start, inputs, prompts.numpy(), lengths, steps)
    for row, length in enumerate(scenario.prompts):
        alone = {name: value[row : row + 1] for name, value in inputs.items()}
        expected_tokens, expected_logits = greedy(
            model, alone, prompts[row, :length].tolist(), steps
        )
        identical = int(np.cumprod(expected_tokens == actual_tokens[row]).sum())
        compared_steps = min(identical + 1, steps)  # the first wrong token's logits count too
        difference = np.abs(expected_logits - actual_logits[row])[:compared_steps].max()
        total.largest_difference = float(np.fmax(total.largest_difference, difference))
        if np.isnan(difference):
            total.largest_difference = float("inf")
        total.largest_logit = max(total.largest_logit, largest(expected_logits))
        total.identical += identical
        tie = identical < steps and _is_tie(
            expected_logits[identical], int(actual_tokens[row, identical])
        )
        total.tokens += identical if tie else steps
    if batch > 1:
        total.distinct = min(total.distinct, len(np.unique(actual_tokens)))


def _is_tie(logits: NDArray[np.float32], other: int) -> bool:
    """Returns whether the largest logit and that of another token differ by rounding alone."""
    return bool(logits.max() - logits[other] <= 2 * float32_error(largest(logits), ROUNDINGS))


def _decode(
    start: Start,
    inputs: Mapping[str, Tensor],
    prompts: NDArray[np.int64],
    lengths: NDArray[np.int64],
    steps: int,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    decoding = start({name: value.numpy() for name, value in inputs.items()})
    logits = decoding.prefill(prompts, np.zeros_like(lengths), lengths - 1).copy()
    tokens, history = [logits.argmax(-1)], [logits]
    for step in range(steps - 1):
        logits = decoding.step(tokens[-1], lengths + step).copy()
        tokens.append(logits.argmax(-1))
        history.append(logits)
    return np.stack(tokens, 1), np.stack(history, 1)


@torch.no_grad()
def greedy(
    model: nn.Module, inputs: Mapping[str, Tensor], prompt: Sequence[int], steps: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Decodes one sequence by full re-runs; returns tokens (steps,) and logits (steps, V)."""
    memory = encoded(model, inputs)
    tokens, history = list(prompt), []
    for _ in range(steps):
        logits = rerun(model, torch.tensor([tokens]), memory)[0, -1]
        history.append(logits.numpy())
        tokens.append(int(logits.argmax()))
    return np.array(tokens[len(prompt) :]), np.stack(history)


@torch.no_grad()
def encoded(model: nn.Module, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """Returns the module's own memory as a tuple of tensors, batch first."""
    memory = _hybrid(model).encode(*inputs.values())
    return memory if isinstance(memory, tuple) else (memory,)


@torch.no_grad()
def rerun(model: nn.Module, tokens: Tensor, memory: tuple[Tensor, ...]) -> Tensor:
    """Returns the logits (batch, length, vocabulary) of the module's first head."""
    logits = _hybrid(model).decode(tokens, *memory)
    return logits[0] if isinstance(logits, tuple) else logits


def effect_of_memory(case: Case, model: nn.Module) -> float:
    """Returns the largest difference of a logit between two inputs, for the same tokens."""
    memory = encoded(model, case.inputs(2, case.sizes[0]))
    tokens = random_tokens(VOCABULARY, 1, 12).expand(2, -1)
    logits = rerun(model, tokens, memory)
    return float((logits[0] - logits[1]).abs().max())


def _hybrid(model: nn.Module) -> HybridModel:
    untyped: Any = model
    hybrid: HybridModel = untyped
    return hybrid
