"""What is right: the module itself, run again over all tokens of one sequence alone."""

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
"""Of whole models: 5e-5 of the largest logit, four times what the worst ones differ by.

Both sides round their sums in another order, in every layer and for every token before.
"""

GREEDY_TOKENS = 64
LEAST_DISTINCT = 8
LEAST_EFFECT = 1e-2

Start = Callable[[Mapping[str, NDArray[Any]]], Decoding]
"""Begins to decode a batch of encoder inputs."""


class HybridModel(Protocol):
    """What a model of the zoo has."""

    def encode(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Returns the memory."""
        ...

    def decode(self, tokens: Tensor, *memory: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Returns the logits of every position."""
        ...


@dataclass(frozen=True)
class Scenario:
    """One batch to decode: its input size and the length of every sequence's prompt."""

    size: int
    prompts: tuple[int, ...]


@dataclass
class Comparison:
    """How graphs compare with their module.

    Attributes:
        largest_difference: of any logit before the first token that differs.
        largest_logit: of the module.
        identical: how many tokens were the same.
        tokens: how many tokens were decoded. Those after a tie do not count: where the logits of
            two tokens are closer than rounding, each side may go on with either.
        distinct: how many different tokens there were in the batch that had fewest of them, of
            those with several sequences.
    """

    largest_difference: float = 0.0
    largest_logit: float = 0.0
    identical: int = 0
    tokens: int = 0
    distinct: int = VOCABULARY

    @property
    def close(self) -> bool:
        """Whether all logits are the same, up to rounding."""
        return self.largest_difference <= float32_error(self.largest_logit, ROUNDINGS)

    @property
    def passed(self) -> bool:
        """Whether all tokens are identical and all logits close."""
        return self.identical == self.tokens > 0 and self.close


def scenarios(case: Case) -> list[Scenario]:
    """Returns one sequence alone, three side by side, unequal prompts, and the second size."""
    short, long = case.prompts[0], case.prompts[-1]
    first, last = case.sizes[0], case.sizes[-1]
    unequal = (short, long, (short + long) // 2)
    found = [
        Scenario(first, (short,)),
        Scenario(first, (long,) * 3),
        Scenario(first, unequal),
        Scenario(last, unequal),
    ]
    return list(dict.fromkeys(found))


def compare(
    case: Case,
    model: nn.Module,
    start: Start,
    chosen: Sequence[Scenario] | None = None,
    steps: int = GREEDY_TOKENS,
) -> Comparison:
    """Decodes greedily with the graphs and with the module, each feeding itself."""
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
    got_tokens, got = _decode(start, inputs, prompts.numpy(), lengths, steps)
    for row, length in enumerate(scenario.prompts):
        alone = {name: value[row : row + 1] for name, value in inputs.items()}
        tokens, logits = greedy(model, alone, prompts[row, :length].tolist(), steps)
        same = int(np.cumprod(tokens == got_tokens[row]).sum())
        compared = min(same + 1, steps)  # the logits that made the first wrong token count
        difference = np.abs(logits - got[row])[:compared].max()
        total.largest_difference = float(np.fmax(total.largest_difference, difference))
        if np.isnan(difference):
            total.largest_difference = float("inf")
        total.largest_logit = max(total.largest_logit, largest(logits))
        total.identical += same
        tie = same < steps and _is_tie(logits[same], int(got_tokens[row, same]))
        total.tokens += same if tie else steps
    if batch > 1:
        total.distinct = min(total.distinct, len(np.unique(got_tokens)))


def _is_tie(logits: NDArray[np.float32], other: int) -> bool:
    """Whether rounding decides between the likeliest token and another one."""
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
    """Decodes one sequence with the module's full re-run: tokens (steps,), logits (steps, V)."""
    memory = encoded(model, inputs)
    tokens, history = list(prompt), []
    for _ in range(steps):
        logits = rerun(model, torch.tensor([tokens]), memory)[0, -1]
        history.append(logits.numpy())
        tokens.append(int(logits.argmax()))
    return np.array(tokens[len(prompt) :]), np.stack(history)


@torch.no_grad()
def encoded(model: nn.Module, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """Returns the module's own memory."""
    memory = _hybrid(model).encode(*inputs.values())
    return memory if isinstance(memory, tuple) else (memory,)


@torch.no_grad()
def rerun(model: nn.Module, tokens: Tensor, memory: tuple[Tensor, ...]) -> Tensor:
    """Returns the module's own logits of every position, those of its first head."""
    logits = _hybrid(model).decode(tokens, *memory)
    return logits[0] if isinstance(logits, tuple) else logits


def effect_of_memory(case: Case, model: nn.Module) -> float:
    """Returns how far the logits differ between two inputs, under the same tokens."""
    memory = encoded(model, case.inputs(2, case.sizes[0]))
    tokens = random_tokens(VOCABULARY, 1, 12).expand(2, -1)
    logits = rerun(model, tokens, memory)
    return float((logits[0] - logits[1]).abs().max())


def _hybrid(model: nn.Module) -> HybridModel:
    hybrid: Any = model
    found: HybridModel = hybrid
    return found
