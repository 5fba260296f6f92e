"""Drawing tokens by chance: temperature, top-k, top-p and min-p, with seeds.

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
    """How a token is drawn.

    Attributes:
        temperature: what logits are divided by; over 1 makes unlikely tokens likelier.
        top_k: how many of the likeliest tokens may come; 0 for all.
        top_p: the likeliest tokens that hold this share of the probability may come; 1 for all.
        min_p: tokens may come that have at least this share of the likeliest one's probability;
            0 for all.
        seed: of every sequence, or one for each; None draws anew each time.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | tuple[int, ...] | None = None

    def generators(self, batch: int) -> list[np.random.Generator]:
        """Returns what each sequence draws from, whatever batch it is in.

        Raises:
            UsageError: there is not one seed for each sequence.
        """
        if isinstance(self.seed, tuple):
            if len(self.seed) != batch:
                raise UsageError(f"{len(self.seed)} seeds were given for {batch} sequences")
            seeds: Sequence[int | None] = self.seed
        else:
            seeds = [self.seed] * batch
        return [np.random.Generator(np.random.Philox(seed)) for seed in seeds]

    def draw(self, logits: FloatArray, random: np.random.Generator) -> int:
        """Draws a token.

        Args:
            logits: (vocabulary,), at least one of them finite.
            random: what to draw from; one number is taken.
        """
        weights = self.weights(logits)
        sums = weights.cumsum()
        drawn = random.random() * sums[-1]
        # behind the last token that may come there is no further sum
        return int(min(sums.searchsorted(drawn, side="right"), np.flatnonzero(weights)[-1]))

    def weights(self, logits: FloatArray) -> NDArray[np.float64]:
        """Returns what the tokens' probabilities are in proportion to, 0 for those left out."""
        scaled = logits / np.float32(self.temperature)
        if 0 < self.top_k < len(scaled):
            least = np.partition(scaled, -self.top_k)[-self.top_k]
            scaled[scaled < least] = -np.inf
        weights: NDArray[np.float64] = np.exp((scaled - scaled.max()).astype(np.float64))
        if self.top_p < 1:
            self._keep_top_p(weights)
        if self.min_p > 0:
            weights[weights < self.min_p * weights.max()] = 0
        return weights

    def _keep_top_p(self, weights: NDArray[np.float64]) -> None:
        order = np.argsort(weights, kind="stable")
        shares = weights[order].cumsum() / weights.sum()
        out = order[shares <= 1 - self.top_p]
        weights[out[out != order[-1]]] = 0
