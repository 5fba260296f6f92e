"""Runs rounds and computes ratios; the speed drifts, so only times of one round are compared."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Turn:
    """One contender's measurements in one round.

    Attributes:
        total_ms: milliseconds from the encoder's input to the last token.
        first_ms: milliseconds of a separate call that generates one token.
        encoder_ms: milliseconds of the encoder; None if it cannot run alone.
        waited_ms: milliseconds in which threads were ready to run but no core was free, summed over
            the threads.
        tokens: generated tokens.
    """

    total_ms: float
    first_ms: float
    encoder_ms: float | None = None
    waited_ms: float = 0.0
    tokens: tuple[int, ...] = ()

    @property
    def next_ms(self) -> float:
        """Milliseconds of each token after the first."""
        return (self.total_ms - self.first_ms) / max(1, len(self.tokens) - 1)


@dataclass
class Race:
    """Results of all rounds.

    Attributes:
        turns: turns of each contender by name, one for each round that it finished.
        failures: reason why a contender left the race, by name.
    """

    turns: dict[str, list[Turn]]
    failures: dict[str, str] = field(default_factory=dict)

    @property
    def finished(self) -> list[str]:
        """Names of the contenders that finished every round."""
        return [name for name in self.turns if name not in self.failures]


@dataclass(frozen=True)
class Ratio:
    """One contender's time divided by another's, over all rounds.

    Attributes:
        median: median of the ratios.
        low: lower quartile of the ratios.
        high: upper quartile of the ratios.
    """

    median: float
    low: float
    high: float


def run_rounds(
    names: Sequence[str],
    turn: Callable[[str], Turn],
    *,
    seconds: float,
    min_rounds: int,
    failure: type[Exception],
    clock: Callable[[], float] = time.perf_counter,
) -> Race:
    """Runs rounds in which every contender takes one turn; the order is reversed each time.

    Args:
        names: names of the contenders.
        turn: function that runs one turn of the named contender.
        seconds: time after which no new round starts.
        min_rounds: smallest number of rounds, whatever time they take.
        failure: exception of `turn` that takes the contender out of the race.
        clock: function that returns the time in seconds.
    """
    race = Race({name: [] for name in names})
    began, round_count = clock(), 0
    while round_count < min_rounds or clock() - began < seconds:
        order = race.finished if round_count % 2 == 0 else race.finished[::-1]
        if not order:
            break
        for name in order:
            try:
                race.turns[name].append(turn(name))
            except failure as error:
                race.failures[name] = str(error)
        round_count += 1
    return race


def ratio(race: Race, ours: str, rival: str) -> Ratio:
    """Returns the time of `rival` divided by that of `ours`, computed for each round."""
    pairs = zip(race.turns[ours], race.turns[rival], strict=True)
    ratios = sorted(theirs.total_ms / own.total_ms for own, theirs in pairs)
    if len(ratios) == 1:
        return Ratio(ratios[0], ratios[0], ratios[0])
    low, median, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return Ratio(median, low, high)


def fastest(ratios: Mapping[str, Ratio]) -> str | None:
    """Returns the name of the rival with the smallest ratio; None without rivals."""
    return min(ratios, key=lambda name: ratios[name].median, default=None)


def same_tokens(tokens: Sequence[int], reference: Sequence[int]) -> int:
    """Returns the number of leading tokens that equal those of the reference."""
    count = 0
    for token, expected in zip(tokens, reference, strict=False):
        if token != expected:
            break
        count += 1
    return count
