"""Streams the tokens of a batch while they are decoded."""

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
        row: index of the sequence in the batch.
        token: id of the token.
        text: text that the token appends. An incomplete character, or text that may become part
            of a stop string, comes with a later token. None if the bundle has no vocabulary.
        score: natural logarithm of the token's probability; None unless scores are requested.
        finish: why the sequence ends with this token; None if it does not end with it.
    """

    row: int
    token: int
    text: str | None
    score: float | None
    finish: FinishReason | None


OnToken: TypeAlias = Callable[[TokenEvent], None]


class Stream(Iterator[TokenEvent]):
    """Iterates over the tokens of one batch; each step is decoded when its first token is read.

    Closing the stream, or leaving its `with` block, ends the generation early; the results then
    hold the tokens so far.

    Args:
        loop: token loop of the batch, before its first step.
        empty: the detokenizer of a sequence without tokens; None without a vocabulary.
        stop: strings that end a sequence; None if there are none.
        finish: function that makes results and times of the loop's result.
    """

    def __init__(
        self,
        loop: TokenLoop,
        empty: IncrementalDetokenizer | None,
        stop: StopStrings | None,
        finish: Callable[[BatchResult], tuple[list[GenerationResult], Timings]],
    ) -> None:
        self._loop = loop
        self._texts = [None if empty is None else _StreamedText(empty, stop) for _ in loop.rows]
        self._finish = finish
        self._events = self._run()
        self._outcome: tuple[list[GenerationResult], Timings] | None = None

    def __next__(self) -> TokenEvent:
        """Returns the next token; the tokens of one step come in the order of the batch."""
        return next(self._events)

    def __enter__(self) -> Stream:
        """Returns the stream itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Ends the generation, if it has not ended."""
        self.close()

    def close(self) -> None:
        """Ends the generation, if it has not ended."""
        self._events.close()

    @property
    def results(self) -> list[GenerationResult]:
        """The result of every input; ends the generation, if it has not ended."""
        return self._end()[0]

    @property
    def timings(self) -> Timings:
        """The times of the batch; ends the generation, if it has not ended."""
        return self._end()[1]

    def _end(self) -> tuple[list[GenerationResult], Timings]:
        self.close()
        if self._outcome is None:
            self._outcome = self._finish(self._loop.batch_result())
        return self._outcome

    def _run(self) -> Generator[TokenEvent, None, None]:
        counts = [0] * len(self._loop.rows)
        for _ in self._loop.steps():
            for row in self._loop.rows:
                if len(row.tokens) > counts[row.index]:
                    counts[row.index] += 1
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


class _StreamedText:
    """The text of one sequence, and how much of it has been streamed."""

    def __init__(self, empty: IncrementalDetokenizer, stop: StopStrings | None) -> None:
        self._detokenizer, self._stop, self._streamed_length = empty, stop, 0

    def piece(self, row: Row) -> str:
        """Returns the text that the newest token appends."""
        self._detokenizer = self._detokenizer.after(row.tokens[-1])
        if row.text is not None:
            text = row.text
        elif row.finish is not None:
            text = self._detokenizer.full_text
        else:
            text = self._detokenizer.text
            text = text if self._stop is None else text[: self._stop.certain_length(text)]
        piece = text[self._streamed_length :]
        self._streamed_length += len(piece)
        return piece
