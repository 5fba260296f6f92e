"""Bootstrap intervals of percentages over inputs, and of the difference of two of them.

Method: Bisani & Ney, "Bootstrap estimates for confidence intervals in ASR performance evaluation",
ICASSP 2004. The inputs are drawn again with replacement, and the 2.5th and 97.5th percentile of the
percentage over these draws bound the interval. The draws depend on the number of inputs alone, so
two variants are compared on the same draws: an input that is hard for both does not widen the
interval of their difference.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
"""Number of times that the inputs are drawn again."""

FEW_INPUTS = 10
"""Under so many inputs an interval means little: it holds the truth less often than stated."""

_LEVELS = (2.5, 97.5)
_SEED = 20040517
_DRAWS_AT_ONCE = 1 << 22


@dataclass(frozen=True)
class Interval:
    """A 95 % interval.

    It tells how far another draw of such inputs may move a number. If no input has an error, it has
    no width, although another input may have one: with n inputs, up to 3 / n of all may.

    Attributes:
        low: lower bound.
        high: upper bound.
    """

    low: float
    high: float

    def negated(self) -> Interval:
        """Returns the interval of the number with the other sign."""
        return Interval(0.0 - self.high, 0.0 - self.low)  # 0 has no sign then


@dataclass(frozen=True)
class Counts:
    """A percentage over inputs, as the counts of each input.

    Attributes:
        parts: (inputs,) float64, such as the number of errors in each text.
        wholes: (inputs,) float64, such as the number of characters of each expected text.
    """

    parts: NDArray[np.float64]
    wholes: NDArray[np.float64]

    @property
    def percent(self) -> float:
        """The sum of `parts` in percent of the sum of `wholes`, which must not be 0."""
        return float(100 * self.parts.sum() / self.wholes.sum())


def interval_of(counts: Counts) -> Interval | None:
    """Returns the interval of a percentage; None for a single input."""
    (percents,) = resampled([counts])
    return interval_of_values(percents)


def interval_of_change(counts: Counts, reference: Counts) -> Interval | None:
    """Returns the interval of a percentage minus that of a reference on the same inputs, paired.

    Args:
        counts: counts of the variant.
        reference: counts of the reference, in the same order of inputs.

    Returns:
        The interval in percentage points; None for a single input.
    """
    percents, reference_percents = resampled([counts, reference])
    return interval_of_values(percents - reference_percents)


def interval_of_values(values: NDArray[np.float64]) -> Interval | None:
    """Returns the interval that holds 95 % of the finite values; None if no two are finite."""
    finite = values[np.isfinite(values)]
    if len(finite) < 2:
        return None
    low, high = np.percentile(finite, _LEVELS)
    return Interval(float(low), float(high))


def resampled(several: Sequence[Counts]) -> NDArray[np.float64]:
    """Returns each percentage over each draw of the inputs.

    Args:
        several: percentages over the same inputs.

    Returns:
        percents: (percentages, RESAMPLES) float64; NaN or infinite where the wholes of a draw sum
        to 0. (percentages, 0) for a single input, which can only be drawn as it is.
    """
    inputs = len(several[0].parts)
    if inputs < 2:
        return np.empty((len(several), 0))
    columns = np.stack([column for counts in several for column in (counts.parts, counts.wholes)])
    blocks = []
    for drawn in draws(inputs):
        offsets = inputs * np.arange(len(drawn))[:, None]
        times = np.bincount((drawn + offsets).ravel(), minlength=drawn.size)  # of each input
        blocks.append(times.reshape(drawn.shape).astype(np.float64) @ columns.T)
    sums = np.concatenate(blocks)  # (RESAMPLES, 2 * percentages)
    with np.errstate(divide="ignore", invalid="ignore"):
        percents: NDArray[np.float64] = (100 * sums[:, 0::2] / sums[:, 1::2]).T
    return percents


def draws(inputs: int, resamples: int = RESAMPLES) -> Iterator[NDArray[np.int64]]:
    """Yields blocks (draws, inputs) int64 of indices of inputs, the same ones for equal arguments.

    A block has a few million indices at most, so that many inputs need no more RAM.
    """
    generator = np.random.default_rng(_SEED)
    at_once = max(1, _DRAWS_AT_ONCE // inputs)
    for begin in range(0, resamples, at_once):
        yield generator.integers(inputs, size=(min(at_once, resamples - begin), inputs))
