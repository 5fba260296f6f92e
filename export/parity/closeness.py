"""Decides whether the outputs of one step of the graphs are those of the model."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import nn

from hybrid_deploy.errors import ParityError
from hybrid_deploy.export.model.interface import Inputs
from hybrid_deploy.export.parity.float32_error import (
    LEAST_SHARE,
    Floats,
    accepted_difference,
    differences,
    own_error,
    size_of,
)
from hybrid_deploy.export.parity.parity import Parity
from hybrid_deploy.export.parity.reference_rows import Heads

_OTHER_SEQUENCES = 16


@dataclass(frozen=True)
class ComparedStep:
    """Outputs of the graphs after one more token, with a row for each sequence.

    Attributes:
        lengths: (batch,) int64, number of tokens that the sequence has.
        active: (batch,) bool, whether the sequence was still decoded.
        heads: logits, then the outputs of other heads, each (batch, width).
    """

    lengths: NDArray[np.int64]
    active: NDArray[np.bool_]
    heads: Heads


@dataclass
class Closeness:
    """Compares steps of one batch; what it accepts grows with the model's own measured error.

    Attributes:
        model: the original module, in eval mode.
        inputs: encoder inputs by name, a row for each sequence.
        name: name of the batch in messages.
        parity: receives ties, the largest difference and the accepted one.
        errors: largest own error of the model seen so far, by head; empty before the first
            measurement, which only a difference above the smallest accepted one needs.
        is_estimated: whether the model's error cannot be measured.
    """

    model: nn.Module
    inputs: Inputs
    name: str
    parity: Parity
    errors: list[float] = field(default_factory=list)
    is_estimated: bool = False

    def check(
        self, step: ComparedStep, expected: Heads, tokens: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        """Returns the sequences whose likeliest token differs at a tie, (batch,).

        Args:
            step: outputs of the graphs.
            expected: outputs of the model after the same tokens.
            tokens: (batch, capacity), the tokens that both have read.

        Raises:
            ParityError: a token differs without a tie, or an output by more than rounding.
        """
        active = step.active
        sizes = [size_of(head[active]) for head in expected]
        apart = [
            np.where(active[:, None], differences(a, b, size), 0)
            for a, b, size in zip(expected, step.heads, sizes, strict=True)
        ]
        lead = expected[0].max(-1) - expected[0][np.arange(len(active)), step.heads[0].argmax(-1)]
        gaps = np.where(active & (lead > 0), lead, 0).astype(np.float64)  # 0: the best token
        row = self._row_to_measure(apart, gaps, sizes)
        if row is not None:
            self._measure([row], tokens[row : row + 1, : int(step.lengths[row])])
            if self._row_to_measure(apart, gaps, sizes) is not None:
                self._measure_other_tokens(row, int(step.lengths[row]), expected[0].shape[-1])
        accepted = self._accepted(sizes)
        self.parity.accepted_difference = max(self.parity.accepted_difference, accepted[0])
        largest = max(float(np.max(head, initial=0)) for head in apart[:1])
        self.parity.largest_difference = float(np.maximum(self.parity.largest_difference, largest))
        self._refuse(step, expected, apart, gaps, accepted)
        differing: NDArray[np.bool_] = (expected[0].argmax(-1) != step.heads[0].argmax(-1)) & active
        self.parity.ties += int(differing.sum())
        return differing

    def _accepted(self, sizes: list[float]) -> list[float]:
        """Returns the largest accepted difference of each head."""
        if self.errors:
            return [accepted_difference(s, e) for s, e in zip(sizes, self.errors, strict=True)]
        return [
            accepted_difference(size, None) if self.is_estimated else LEAST_SHARE * size
            for size in sizes
        ]

    def _row_to_measure(self, apart: list[Floats], gaps: Floats, sizes: list[float]) -> int | None:
        """Returns the sequence whose difference needs a larger bound than the present one."""
        present = self._accepted(sizes)
        for head, most in zip((*apart, gaps[:, None]), (*present, present[0]), strict=True):
            over = np.flatnonzero(~(head.max(-1, initial=0) <= most))
            if len(over):
                return int(over[0])
        return None

    def _measure(self, rows: list[int], tokens: NDArray[np.int64]) -> None:
        """Takes the error on sequences (rows, length) into account, unless it cannot be known."""
        if self.is_estimated:
            return
        inputs = {name: value[rows] for name, value in self.inputs.items()}
        errors = own_error(self.model, inputs, tokens)
        self.is_estimated = errors is None
        before = self.errors or [0.0] * len(errors or ())
        self.errors = [
            float(np.fmax(a, b)) for a, b in zip(before, errors or (), strict=errors is not None)
        ]

    def _measure_other_tokens(self, row: int, length: int, vocabulary: int) -> None:
        """Takes the error on random tokens into account: that of one sequence is small by chance.

        A short sequence has few values, and an error of theirs that happens to be a tenth of the
        usual one would refuse a right export.
        """
        tokens = np.random.default_rng(0).integers(vocabulary, size=(_OTHER_SEQUENCES, length))
        self._measure([row] * _OTHER_SEQUENCES, tokens)

    def _refuse(
        self,
        step: ComparedStep,
        expected: Heads,
        apart: list[Floats],
        gaps: Floats,
        accepted: list[float],
    ) -> None:
        wrong = np.flatnonzero(~(gaps <= accepted[0]))
        if len(wrong):
            row = int(wrong[0])
            got, right = int(step.heads[0][row].argmax()), int(expected[0][row].argmax())
            raise self._error(row, step, f"token {got} instead of {right}")
        for number, (head, most) in enumerate(zip(apart, accepted, strict=True)):
            for row in map(int, np.flatnonzero(~(head.max(-1, initial=0) <= most))):
                index = int(np.nan_to_num(head[row], nan=np.inf).argmax())
                what = f"the logit of token {index}"
                if number:
                    what = f"value {index} of output {number + 1} of the decoder"
                difference = f"is off by {head[row, index]:.1e}, accepted {most:.1e}"
                if np.isnan(head[row, index]):
                    difference = "is not a number"
                raise self._error(row, step, f"{what} {difference}")

    def _error(self, row: int, step: ComparedStep, what: str) -> ParityError:
        return ParityError(
            f"the exported graphs differ from the model in {self.name}, sequence {row}, after "
            f"{int(step.lengths[row])} tokens: {what}; no bundle was written"
        )
