"""Tokens as they are made."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import TypeAlias

from hybrid_deploy.runtime.generation.incremental_text import IncrementalDetokenizer, StopStrings
from hybrid_deploy.runtime.generation.sequences import BatchResult, FinishReason, Row
from hybrid_deploy.runtime.generation.token_loop import TokenLoop
from hybrid_deploy.runtime.session.results import GenerationResult, Timings


@dataclass(frozen=True)
class TokenEvent:
    """One token of one sequence.

    Attributes:
        row: which sequence of the batch.
        token: the token.
        text: what it adds to the text; characters come when they are complete, and what may become
            a stop sequence when it is none. None if the bundle has no vocabulary.
        score: natural logarithm of its probability, if scores are asked for.
        finish: why the sequence ends with it; None if it goes on, or ended without a token.
    """

    row: int
    token: int
    text: str | None
    score: float | None
    finish: FinishReason | None


OnToken: TypeAlias = Callable[[TokenEvent], None]


class Stream(Iterator[TokenEvent]):
    """The tokens of one batch, made while they are asked for.

    Closing it, or leaving a `with` block, ends the generation; the results are then what there is.

    Args:
        loop: the batch, not begun.
        begin: the reading of a sequence without tokens; None without a vocabulary.
        stop: the strings that end a sequence.
        finish: makes results of what became of the batch.
    """

    def __init__(
        self,
        loop: TokenLoop,
        begin: IncrementalDetokenizer | None,
        stop: StopStrings | None,
        finish: Callable[[BatchResult], tuple[list[GenerationResult], Timings]],
    ) -> None:
        self._loop = loop
        self._texts = [None if begin is None else _Text(begin, stop) for _ in loop.rows]
        self._finish = finish
        self._events = self._run()
        self._outcome: tuple[list[GenerationResult], Timings] | None = None

    def __next__(self) -> TokenEvent:
        """Returns the next token; those of one step come in the order of the batch."""
        return next(self._events)

    def __enter__(self) -> Stream:
        """Returns itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Ends the generation."""
        self.close()

    def close(self) -> None:
        """Ends the generation, if it has not ended."""
        self._events.close()

    @property
    def results(self) -> list[GenerationResult]:
        """What was made of every input; ends the generation, if it has not ended."""
        return self._end()[0]

    @property
    def timings(self) -> Timings:
        """How long the stages took; ends the generation, if it has not ended."""
        return self._end()[1]

    def _end(self) -> tuple[list[GenerationResult], Timings]:
        self.close()
        if self._outcome is None:
            self._outcome = self._finish(self._loop.batch_result())
        return self._outcome

    def _run(self) -> Generator[TokenEvent, None, None]:
        given = [0] * len(self._loop.rows)
        for _ in self._loop.steps():
            for row in self._loop.rows:
                if len(row.tokens) > given[row.index]:
                    given[row.index] += 1
                    yield self._event(row)

    def _event(self, row: Row) -> TokenEvent:
        text = self._texts[row.index]
        return TokenEvent(
            row=row.index,
            token=row.tokens[-1],
            text=None if text is None else text.piece(row),
            score=row.scores[-1] if row.scores else None,
            finish=row.finish,
        )


class _Text:
    """The text of one sequence, as far as it was given."""

    def __init__(self, begin: IncrementalDetokenizer, stop: StopStrings | None) -> None:
        self._reading, self._stop, self._given = begin, stop, 0

    def piece(self, row: Row) -> str:
        """Returns what the newest token adds."""
        self._reading = self._reading.advanced(row.tokens[-1])
        if row.text is not None:
            text = row.text
        elif row.finish is not None:
            text = self._reading.whole
        else:
            text = self._reading.text
            text = text if self._stop is None else text[: self._stop.certain(text)]
        piece = text[self._given :]
        self._given += len(piece)
        return piece
