"""Splits the tokens of a window at its timestamps into segments with times."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hybrid_deploy.bundle.speech.speech_tokens import SpeechTokens
from hybrid_deploy.runtime.session.session import Session
from hybrid_deploy.runtime.tokenizer import text_of


@dataclass(frozen=True)
class Segment:
    """A stretch of speech.

    Attributes:
        begin_s: time at which it begins in the recording, in seconds.
        end_s: time at which it ends in the recording, in seconds.
        text: what is said; the token ids if the bundle has no vocabulary.
        tokens: ids of its tokens, with the timestamps.
    """

    begin_s: float
    end_s: float
    text: str
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Span:
    """The part of a recording that a window holds.

    Attributes:
        begin_s: time of its first sample in the recording, in seconds.
        end_s: time of its end in the recording, in seconds.
    """

    begin_s: float
    end_s: float


def split_segments(
    tokens: Sequence[int],
    speech: SpeechTokens,
    span: Span,
    text: Callable[[Sequence[int]], str],
    *,
    keep_rest: bool = False,
) -> tuple[list[Segment], float]:
    """Returns the segments of a window, and the time at which the next window begins.

    Two timestamps side by side end one segment and begin the next (arXiv:2212.04356, section 4.5;
    the cases are those of `transcribe()` in openai/whisper):

    1. `<0.00> a <2.40><2.40> b <5.00>`: two segments; nobody speaks after the last timestamp, so
       the next window begins where this one ends.
    2. `<0.00> a <2.40><2.40> b`: the second segment is cut; the next window begins at 2.40.
    3. `<0.00> a <2.40>` or `<0.00> a`: one segment, in the latter case up to the window's end; the
       next window begins where this one ends. It begins at its timestamp, not at the window's begin
       as in openai/whisper.

    Args:
        tokens: ids of the window's tokens, without the prompt and the end token.
        speech: tokens of the bundle.
        span: part of the recording that the window holds.
        text: function that returns the text of tokens.
        keep_rest: whether the cut segment of case 2 is a segment up to the window's end, because no
            other window follows.
    """
    first = speech.first_timestamp
    is_time = [token >= first for token in tokens]
    ends = [i for i in range(1, len(tokens)) if is_time[i - 1] and is_time[i]]

    def seconds(token: int) -> float:
        return min(span.begin_s + (token - first) * speech.timestamp_s, span.end_s)

    def segment(part: Sequence[int], begin_s: float, end_s: float) -> Segment:
        return Segment(begin_s, max(begin_s, end_s), text(part), tuple(part))

    if not ends:
        times = [token for token in tokens if token >= first]
        begin_s = seconds(times[0]) if is_time[:1] == [True] else span.begin_s
        end_s = seconds(times[-1]) if len(times) > 1 else span.end_s
        return [segment(tokens, begin_s, end_s)] if tokens else [], span.end_s
    closed = is_time[-2:] == [False, True]
    if closed:
        ends.append(len(tokens))
    segments, begin = [], 0
    for end in ends:
        part = tokens[begin:end]
        segments.append(segment(part, seconds(part[0]), seconds(part[-1])))
        begin = end
    if keep_rest and len(rest := tokens[begin:]) > 1:
        segments.append(segment(rest, seconds(rest[0]), span.end_s))
    next_s = span.end_s if closed else seconds(tokens[ends[-1] - 1])
    return segments, next_s


def text_function(session: Session) -> Callable[[Sequence[int]], str]:
    """Returns the function from token ids to text of a session; ids without a vocabulary."""
    vocabulary = session.bundle.manifest.vocabulary
    if vocabulary is None:
        return lambda tokens: " ".join(map(str, tokens))
    return lambda tokens: text_of(tokens, vocabulary, session.tokenizers).strip()
