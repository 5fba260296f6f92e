"""Rounds and ratios. The machine's speed drifts, so only what ran side by side is compared."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Turn:
    """One contender's part of a round, in milliseconds.

    Attributes:
        total_ms: from the encoder's input to the last token.
        first_ms: the same for one token, in a call of its own.
        encoder_ms: None where the encoder cannot be called alone.
        waited_ms: summed over threads, how long they were ready to run and no core was free.
        tokens: what was generated.
    """

    total_ms: float
    first_ms: float
    encoder_ms: float | None = None
    waited_ms: float = 0.0
    tokens: tuple[int, ...] = ()

    @property
    def next_ms(self) -> float:
        """Of each token after the first."""
        return (self.total_ms - self.first_ms) / max(1, len(self.tokens) - 1)


@dataclass
class Race:
    """What came of the rounds.

    Attributes:
        turns: of each contender, one for each round that it was in.
        failures: why a contender is out, by name.
    """

    turns: dict[str, list[Turn]]
    failures: dict[str, str] = field(default_factory=dict)

    @property
    def finished(self) -> list[str]:
        """Who was in every round."""
        return [name for name in self.turns if name not in self.failures]


@dataclass(frozen=True)
class Ratio:
    """How many times as long one contender takes as another.

    Attributes:
        median: of the ratios of all rounds.
        low: lower quartile.
        high: upper quartile.
    """

    median: float
    low: float
    high: float


def run_rounds(
    names: Sequence[str],
    turn: Callable[[str], Turn],
    *,
    seconds: float,
    least: int,
    failure: type[Exception],
    clock: Callable[[], float] = time.perf_counter,
) -> Race:
    """Lets everyone generate in turn, forwards and backwards, again and again.

    Args:
        names: who takes part.
        turn: lets one of them generate.
        seconds: no round begins after so many.
        least: this many rounds are run in any case.
        failure: what `turn` raises for someone who is out; the others go on.
        clock: tells the time in seconds.
    """
    race = Race({name: [] for name in names})
    began, done = clock(), 0
    while done < least or clock() - began < seconds:
        order = race.finished if done % 2 == 0 else race.finished[::-1]
        if not order:
            break
        for name in order:
            try:
                race.turns[name].append(turn(name))
            except failure as error:
                race.failures[name] = str(error)
        done += 1
    return race


def ratio(race: Race, mine: str, theirs: str) -> Ratio:
    """Returns how many times as long `theirs` takes as `mine`, round by round."""
    pairs = zip(race.turns[mine], race.turns[theirs], strict=True)
    found = sorted(other.total_ms / own.total_ms for own, other in pairs)
    if len(found) == 1:
        return Ratio(found[0], found[0], found[0])
    low, median, high = statistics.quantiles(found, n=4, method="inclusive")
    return Ratio(median, low, high)


def fastest(ratios: Mapping[str, Ratio]) -> str | None:
    """Returns the rival that is hardest to beat; None without rivals."""
    return min(ratios, key=lambda name: ratios[name].median, default=None)


def same_tokens(tokens: Sequence[int], reference: Sequence[int]) -> int:
    """Counts how many leading tokens are the reference's."""
    count = 0
    for token, expected in zip(tokens, reference, strict=False):
        if token != expected:
            break
        count += 1
    return count
