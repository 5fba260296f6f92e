"""What `run` prints of each input: lines of text, or a record for JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hybrid_deploy.errors import HybridDeployError
from hybrid_deploy.printable import one_line

if TYPE_CHECKING:
    from hybrid_deploy.runtime.session.results import GenerationResult, Timings
    from hybrid_deploy.runtime.speech.segments import Segment

_EARLY = ("timeout", "cancelled")  # reasons to finish before the text is complete


@dataclass(frozen=True)
class RunOutcome:
    """Result of one input, or the error that prevented it.

    Attributes:
        file: path of the input; None if there is only a text.
        result: text and tokens; None after an error.
        timings: time of each stage; None after an error.
        error: why there is no result; None if there is one.
        span_s: begin and end of the part of a recording, in seconds; None for a whole input.
        segments: stretches of speech with their times; None if no times are asked for.
    """

    file: Path | None
    result: GenerationResult | None = None
    timings: Timings | None = None
    error: HybridDeployError | None = None
    span_s: tuple[float, float] | None = None
    segments: Sequence[Segment] | None = None

    def lines(self, n_best: int) -> list[str]:
        """Returns the text, a line per segment, or the score and text of each of `n_best` beams."""
        assert self.result is not None
        if self.segments is not None:
            return [f"[{s.begin_s:.2f} -> {s.end_s:.2f}] {one_line(s.text)}" for s in self.segments]
        if n_best == 1:
            return [_text_of(self.result)]
        ranked = (self.result, *self.result.alternatives)
        return [f"{_score_of(result)}\t{_text_of(result)}" for result in ranked]

    def remarks(self) -> list[str]:
        """Returns what the user has to know about the text, as lines for stderr."""
        assert self.result is not None and self.timings is not None
        finish = self.result.finish
        cut = [f"ended early ({finish}): the text may be incomplete"] if finish in _EARLY else []
        return [f"{self.file or 'text'}: {remark}" for remark in (*cut, *self.timings.notes)]

    def record(self) -> dict[str, object]:
        """Returns the outcome as a record for JSON."""
        record: dict[str, object] = {"file": None if self.file is None else str(self.file)}
        if self.span_s is not None:
            record |= {"begin_s": self.span_s[0], "end_s": self.span_s[1]}
        if self.result is None or self.timings is None:
            return record | {"error": str(self.error)}
        record |= _result_record(self.result)
        if self.segments is not None:
            record["segments"] = [
                {"begin_s": s.begin_s, "end_s": s.end_s, "text": s.text} for s in self.segments
            ]
        record |= {
            "preprocess_ms": self.timings.preprocess_ms,
            "encoder_ms": self.timings.encoder_ms,
            "first_token_ms": self.timings.first_token_ms,
            "step_ms": self.timings.step_ms,
            "total_ms": self.timings.total_ms,
        }
        return record | ({"notes": self.timings.notes} if self.timings.notes else {})


def _text_of(result: GenerationResult) -> str:
    """Returns the text as one line; without a vocabulary, the token ids separated by spaces."""
    return " ".join(map(str, result.tokens)) if result.text is None else one_line(result.text)


def _score_of(result: GenerationResult) -> str:
    """Returns the score of a beam; a dash if the search ended before there was one."""
    return "-" if result.sequence_score is None else f"{result.sequence_score:.4f}"


def _result_record(result: GenerationResult) -> dict[str, object]:
    record: dict[str, object] = {
        "text": result.text,
        "tokens": result.tokens,
        "finish": result.finish,
    }
    if result.language is not None:
        record["language"] = result.language
    if result.scores is not None:
        record["scores"] = result.scores
    if result.sequence_score is not None:
        record["total"] = result.sequence_score
    if result.alternatives:
        record["others"] = [_result_record(beam) for beam in result.alternatives]
    return record
