"""The model's own logits after each number of tokens, in few runs.

One run over many tokens returns the logits after each of them, as no logit depends on later tokens.
It holds for a smaller number of tokens only if the model computes the same at both lengths; code
such as `if length > 16` does not. So runs are compared where they meet, and the lengths between two
runs that disagree are run themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hybrid_deploy.export.model.interface import reference_heads
from hybrid_deploy.export.parity.float32_error import ESTIMATED_SHARE, differences, size_of

Heads = tuple[NDArray[Any], ...]
"""Logits, then the outputs of other heads, each (batch, width)."""

_EVERY_LENGTH_PRODUCTS = 1e11
"""Largest number of products for which every length is run: some seconds on a few cores."""

_SHORT = 16


def lengths_to_run(model: nn.Module, batch: int, capacity: int) -> list[int]:
    """Returns the numbers of tokens that a model is run with, in order; the last is the capacity.

    Every one where that takes seconds. Else the short ones, powers of two with their neighbours,
    where windows and tables end, and the largest two: where two of these runs disagree,
    `ReferenceRows` runs lengths between them too.

    Args:
        model: the module that is run.
        batch: number of sequences.
        capacity: largest number of tokens.
    """
    weights = sum(weight.numel() for weight in model.parameters())
    every = range(1, capacity + 1)
    if weights * batch * capacity * (capacity + 1) / 2 <= _EVERY_LENGTH_PRODUCTS:
        return list(every)
    edges = {2**n + step for n in range(capacity.bit_length() + 1) for step in (-1, 0, 1)}
    edges |= {*range(1, _SHORT + 1), capacity - 1, capacity}
    return sorted(edges & set(every))


class ReferenceRows:
    """The model's outputs for the newest token of each sequence, block by block.

    Args:
        model: the original module, in eval mode.
        memory: its memory, batch first.
        lengths: numbers of tokens that the model is run with at least; a block's last one is too.
    """

    def __init__(
        self, model: nn.Module, memory: tuple[Tensor, ...], lengths: Sequence[int] = ()
    ) -> None:
        self._model = model
        self._memory = memory
        self._lengths = lengths
        self._newest: tuple[int, Heads] = (0, ())  # a number of tokens, and the outputs after it
        # a model without decode is run token by token, so it has no length to depend on
        self._has_length = callable(getattr(model, "decode", None))

    def after(self, tokens: NDArray[np.int64], lengths: Sequence[NDArray[np.int64]]) -> list[Heads]:
        """Returns the outputs after some numbers of tokens.

        Args:
            tokens: (batch, capacity), tokens of every sequence.
            lengths: for each result the number of tokens that each sequence has, (batch,). The
                longest one grows by one from result to result.
        """
        longest = [int(length.max()) for length in lengths]
        stops = {longest[-1]}
        if self._has_length:
            stops |= {n for n in self._lengths if longest[0] <= n < longest[-1]}
            stops |= {longest[0]} if self._newest[0] != longest[0] - 1 else set()
        runs: dict[int, Heads] = {}
        low, last_of_low = longest[0] - 1, None
        if self._has_length and self._newest[0] == low > 0:
            last_of_low = self._newest[1]
        for stop in sorted(stops):
            last_of_low = self._fill(runs, tokens, low, last_of_low, stop)
            low = stop
        assert last_of_low is not None, "there is at least one stop"
        self._newest = (low, last_of_low)
        rows = np.arange(len(tokens))
        return [
            tuple(head[rows, length - 1] for head in runs[most])
            for most, length in zip(longest, lengths, strict=True)
        ]

    def _fill(
        self,
        runs: dict[int, Heads],
        tokens: NDArray[np.int64],
        low: int,
        last_of_low: Heads | None,
        high: int,
    ) -> Heads:
        """Sets the run that holds for each length over `low` up to `high`; returns its last row."""
        run = self._run(tokens, high)
        if last_of_low is not None and high - low > 1 and not _agree(last_of_low, run, low):
            middle = (low + high) // 2
            last_of_middle = self._fill(runs, tokens, low, last_of_low, middle)
            low, last_of_low = middle, last_of_middle
            if high - low > 1 and not _agree(last_of_low, run, low):
                return self._fill(runs, tokens, low, last_of_low, high)
        runs.update(dict.fromkeys(range(low + 1, high + 1), run))
        return tuple(head[:, high - 1] for head in run)

    def _run(self, tokens: NDArray[np.int64], length: int) -> Heads:
        """Returns all rows of one run, each (batch, length, width)."""
        block = torch.from_numpy(tokens[:, :length])
        return tuple(head.numpy() for head in reference_heads(self._model, self._memory, block))


def _agree(last: Heads, run: Heads, length: int) -> bool:
    """Returns whether a run has the given outputs after `length` tokens, up to rounding."""
    for expected, head in zip(last, run, strict=True):
        size = size_of(expected)
        if not differences(expected, head[:, length - 1], size).max(initial=0) <= (
            ESTIMATED_SHARE * size
        ):
            return False
    return True
