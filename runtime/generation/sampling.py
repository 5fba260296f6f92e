"""Samples tokens from logits: temperature, top-k, top-p and min-p, with seeds.

The filters and their order are those of `generate()` in Hugging Face transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hybrid_deploy.errors import UsageError
from hybrid_deploy.runtime.backends.protocol import FloatArray


@dataclass(frozen=True)
class Sampling:
    """How a token is sampled.

    Attributes:
        temperature: divisor of the logits; over 1, improbable tokens become more probable.
        top_k: number of most probable tokens to sample among; 0 samples among all.
        top_p: share of the probability, over 0 and at most 1; the most probable tokens that
            together hold it are sampled among. 1 samples among all.
        min_p: share, 0 to 1, of the probability of the most probable token; tokens with less are
            excluded. 0 samples among all.
        seed: seed for all sequences, or one for each; None takes a new one in every run.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | tuple[int, ...] | None = None

    def generators(self, batch: int) -> list[np.random.Generator]:
        """Returns one random generator for each sequence, so that its batch has no influence.

        Raises:
            UsageError: the number of seeds is not the number of sequences.
        """
        if isinstance(self.seed, tuple):
            if len(self.seed) != batch:
                raise UsageError(f"{len(self.seed)} seeds were given for {batch} sequences")
            seeds: Sequence[int | None] = self.seed
        else:
            seeds = [self.seed] * batch
        return [np.random.Generator(np.random.Philox(seed)) for seed in seeds]

    def draw(self, logits: FloatArray, random: np.random.Generator) -> int:
        """Returns the id of a token, sampled with the probabilities of `weights`.

        Args:
            logits: (vocabulary,) float32, at least one of them finite; not changed.
            random: generator of which one number is used.
        """
        weights = self.weights(logits)
        sums = weights.cumsum()
        threshold = random.random() * sums[-1]
        # rounding can put the threshold behind the last token with a weight
        return int(min(sums.searchsorted(threshold, side="right"), np.flatnonzero(weights)[-1]))

    def weights(self, logits: FloatArray) -> NDArray[np.float64]:
        """Returns weights proportional to the probabilities; 0 for excluded tokens.

        Args:
            logits: (vocabulary,) float32; not changed.

        Returns:
            (vocabulary,) float64, the largest one 1.
        """
        scaled = logits / np.float32(self.temperature)
        if 0 < self.top_k < len(scaled):
            smallest = np.partition(scaled, -self.top_k)[-self.top_k]
            scaled[scaled < smallest] = -np.inf
        weights: NDArray[np.float64] = np.exp((scaled - scaled.max()).astype(np.float64))
        if self.top_p < 1:
            self._exclude_below_top_p(weights)
        if self.min_p > 0:
            weights[weights < self.min_p * weights.max()] = 0
        return weights

    def _exclude_below_top_p(self, weights: NDArray[np.float64]) -> None:
        order = np.argsort(weights, kind="stable")
        shares = weights[order].cumsum() / weights.sum()
        excluded = order[shares <= 1 - self.top_p]
        weights[excluded[excluded != order[-1]]] = 0
