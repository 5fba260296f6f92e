"""Checks that a decoder computes the same for every number of tokens.

The incremental decoder comes from traces at the largest number of tokens, L, and at L - 1, and it
does not know how many tokens will follow. So the last row of a run of n tokens has to be row n - 1
of the run of L:

    tokens           3  7  1  4  9        rows of the run of 5    r0 r1 r2 r3 r4
    the first three  3  7  1              rows of the run of 3          r2
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from hybrid_deploy.errors import UnsupportedModelError
from hybrid_deploy.export.analysis.length_dependence import length_dependence
from hybrid_deploy.export.model.interface import (
    DecodePart,
    arrays_of,
    reference_heads,
    reference_memory,
)
from hybrid_deploy.export.parity.float32_error import (
    LEAST_SHARE,
    accepted_difference,
    differences,
    own_error,
    size_of,
)
from hybrid_deploy.export.parity.reference_rows import Heads, lengths_to_run
from hybrid_deploy.export.parity.special_tokens import mixed_tokens


def check_lengths(
    model: nn.Module, inputs: Mapping[str, Tensor], capacity: int, special: Iterable[int] = ()
) -> None:
    """Checks that the logits of every token are the same, however many tokens follow it.

    Args:
        model: module in eval mode.
        inputs: example inputs of the encoder by name, a batch of two.
        capacity: largest number of tokens; `lengths_to_run` chooses smaller ones.
        special: ids that the model may treat unlike others, such as the padding.

    Raises:
        UnsupportedModelError: the decoder depends on the number of tokens; the message names the
            line.
    """
    runs = _Runs(model, {name: value[:1] for name, value in inputs.items()}, capacity, special)
    # from the longest on: of a program that changes at 13 tokens, 12 is found, not 1
    for count in reversed(lengths_to_run(model, 1, capacity)[:-1]):
        if not runs.begin_alike(count):
            memory = reference_memory(model, tuple(inputs.values()))
            raise length_dependence(DecodePart(model), memory, (count, capacity))


@dataclass
class _Runs:
    """Runs of a model over the beginnings of one sequence of random and special tokens.

    Attributes:
        model: module in eval mode.
        inputs: inputs of the encoder by name, a batch of one.
        capacity: number of tokens of the sequence.
        special: ids among the tokens.
        errors: rounding error of each head; None until a difference has to be judged.
    """

    model: nn.Module
    inputs: Mapping[str, Tensor]
    capacity: int
    special: Iterable[int]
    errors: list[float] | None = None
    _memory: tuple[Tensor, ...] = field(init=False)
    _tokens: Tensor = field(init=False)
    _whole: Heads = field(init=False)

    def __post_init__(self) -> None:
        self._memory = reference_memory(self.model, tuple(self.inputs.values()))
        one = torch.ones(1, 1, dtype=torch.int64)
        vocabulary_size = reference_heads(self.model, self._memory, one)[0].shape[-1]
        rng = np.random.default_rng(4)
        tokens = mixed_tokens(vocabulary_size, (1, self.capacity), self.special, rng)
        self._tokens = torch.from_numpy(tokens)
        self._whole = self._run(self.capacity)

    def begin_alike(self, count: int) -> bool:
        """Returns whether a run of some tokens ends with the whole run's row, up to rounding."""
        run = self._run(count)
        for index, (expected, head) in enumerate(zip(self._whole, run, strict=True)):
            row = expected[:, count - 1]
            size = size_of(row)
            apart = differences(row, head[:, -1], size).max(initial=0)
            if not apart <= LEAST_SHARE * size and not apart <= self._accepted(size, index):
                if np.isnan(row).any() or np.isnan(head[:, -1]).any():
                    raise _not_a_number(int(self._tokens[0, count - 1]), count)
                return False
        return True

    def _run(self, count: int) -> Heads:
        tokens = self._tokens[:, :count]
        return tuple(h.numpy() for h in reference_heads(self.model, self._memory, tokens))

    def _accepted(self, size: float, index: int) -> float:
        """Returns the largest difference of a head that rounding explains."""
        if self.errors is None:
            self.errors = own_error(self.model, arrays_of(self.inputs), self._tokens.numpy()) or []
        return accepted_difference(size, self.errors[index] if self.errors else None)


def _not_a_number(token: int, count: int) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"decode() returns NaN after token {token} as number {count} of a sequence, and NaN cannot "
        "be compared; return numbers for all tokens (a softmax over -inf alone, 0 / 0 and "
        "inf - inf are NaN)"
    )
