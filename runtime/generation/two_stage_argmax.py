"""The most probable token from approximate logits.

Exact logits are computed only of the tokens whose approximate logit lies so near the largest one
that they can win.
"""

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
from hybrid_deploy.runtime.generation.logits_processors import (
    LogitsFunction,
    Processor,
    stretch_of,
)
from hybrid_deploy.runtime.generation.sequences import Row
from hybrid_deploy.runtime.generation.settings import DecodingSettings


class TwoStageArgmax:
    """Chooses from approximate logits the same tokens as from exact ones.

    Args:
        decoding: decoding that computes the approximate and the exact logits.
        processors: processors of the logits, in their order.
        stretch: largest factor by which all processors together enlarge the error of a logit.
    """

    def __init__(
        self,
        decoding: ApproximateLogits,
        processors: Sequence[Processor | LogitsFunction],
        stretch: float,
    ) -> None:
        self.decoding = decoding
        self._processors = processors
        self._stretch = stretch

    @staticmethod
    def of(decoding: Decoding, settings: DecodingSettings) -> TwoStageArgmax | None:
        """Returns the two-stage choice for a decoding; None where exact logits are needed.

        Sampling, beam search and scores need exact logits, and so does a processor whose stretch
        is unknown.
        """
        if not isinstance(decoding, ApproximateLogits) or decoding.error_bound is None:
            return None
        if settings.sampling is not None or settings.beams is not None or settings.scores:
            return None
        stretches = [stretch_of(processor) for processor in settings.processors]
        if None in stretches:
            return None
        return TwoStageArgmax(decoding, settings.processors, math.prod(filter(None, stretches)))

    def error_bounds(self) -> list[float]:
        """Returns the largest error of a logit of the newest step, for each sequence."""
        assert self.decoding.error_bound is not None
        bounds: list[float] = self.decoding.error_bound.tolist()
        return bounds

    def choose(
        self,
        approximate: FloatArray,
        processed: FloatArray,
        rows: Sequence[Row],
        error_bounds: Sequence[float],
    ) -> IntArray:
        """Returns the most probable token of each sequence, (batch,); any for those that ended.

        Args:
            approximate: (batch, vocabulary), the logits of the newest step.
            processed: (batch, vocabulary), the same after the processors.
            rows: the sequences.
            error_bounds: largest error of a logit in `approximate`, for each sequence.
        """
        tokens: IntArray = processed.argmax(-1)
        for index, (row, error_bound) in enumerate(zip(rows, error_bounds, strict=True)):
            if row.finish is None:
                values = processed[index]
                threshold = values.item(tokens.item(index)) - 2 * self._stretch * error_bound
                candidates = np.flatnonzero(values >= threshold)
                if len(candidates) > 1:
                    exact = self.decoding.exact_logits(index, candidates)
                    if self._processors:
                        exact = self._processed(approximate[index], candidates, exact, row)
                    tokens[index] = candidates[exact.argmax()]
        return tokens

    def _processed(
        self, approximate: FloatArray, tokens: IntArray, exact: FloatArray, row: Row
    ) -> FloatArray:
        """Returns the exact logits of `tokens` after the processors, (n,)."""
        logits = approximate.copy()
        logits[tokens] = exact
        for processor in self._processors:
            processor(logits, row.sequence, len(row.prompt))
        values: FloatArray = logits[tokens]
        return values
