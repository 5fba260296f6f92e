"""The likeliest token from rough logits: those that can win are computed exactly."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from hybrid_deploy.runtime.backends.protocol import (
    ApproximateLogits,
    Decoding,
    FloatArray,
    IntArray,
)
from hybrid_deploy.runtime.generation.logits_processors import Processor
from hybrid_deploy.runtime.generation.sequences import Row
from hybrid_deploy.runtime.generation.settings import DecodingSettings


class TwoStageArgmax:
    """Chooses among rough logits as among exact ones.

    Processors may come in between: a difference of logits grows by a factor that is known of each.

    Attributes:
        decoding: gives the logits.
    """

    def __init__(
        self, decoding: ApproximateLogits, processors: Sequence[Processor], stretch: float
    ) -> None:
        self.decoding = decoding
        self._processors = processors
        self._stretch = stretch

    @staticmethod
    def of(decoding: Decoding, rules: DecodingSettings) -> TwoStageArgmax | None:
        """Returns one where only the likeliest token is wanted, and rough logits can tell it."""
        stretches = [getattr(process, "stretch", None) for process in rules.processors]
        others = rules.sampling is not None or rules.beams is not None or rules.scores
        if not isinstance(decoding, ApproximateLogits) or decoding.error_bound is None:
            return None
        if others or None in stretches:
            return None
        return TwoStageArgmax(decoding, rules.processors, math.prod(filter(None, stretches)))

    def error_bounds(self) -> list[float]:
        """Returns how far each logit of the newest step can be off, by sequence."""
        assert self.decoding.error_bound is not None
        margins: list[float] = self.decoding.error_bound.tolist()
        return margins

    def choose(
        self,
        rough: FloatArray,
        processed: FloatArray,
        rows: Sequence[Row],
        margins: Sequence[float],
    ) -> IntArray:
        """Returns the likeliest token of every sequence that grows, (batch,); of others any.

        Args:
            rough: (batch, vocabulary), as the newest step gave them.
            processed: the same after the processors.
            rows: the sequences.
            margins: of the newest step.
        """
        tokens: IntArray = processed.argmax(-1)
        for index, (row, margin) in enumerate(zip(rows, margins, strict=True)):
            if row.finish is None:
                values = processed[index]
                least = values.item(tokens.item(index)) - 2 * self._stretch * margin
                rivals = np.flatnonzero(values >= least)
                if len(rivals) > 1:
                    exact = self.decoding.exact_logits(index, rivals)
                    if self._processors:
                        exact = self._processed(rough[index], rivals, exact, row)
                    tokens[index] = rivals[exact.argmax()]
        return tokens

    def _processed(
        self, rough: FloatArray, tokens: IntArray, exact: FloatArray, row: Row
    ) -> FloatArray:
        logits = rough.copy()
        logits[tokens] = exact
        for process in self._processors:
            process(logits, row.sequence, len(row.prompt))
        values: FloatArray = logits[tokens]
        return values
