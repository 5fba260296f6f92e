"""How the tokens of a window become segments with times."""

from __future__ import annotations

import pytest

from hybrid_deploy.bundle.speech.speech_tokens import SpeechTokens
from hybrid_deploy.errors import UsageError
from hybrid_deploy.runtime.speech.segments import Segment, Span, split_segments

FIRST = 100
SPEECH = SpeechTokens(50, no_timestamps=FIRST - 1)
SPAN = Span(60.0, 90.0)


def at(seconds: float) -> int:
    """Returns the timestamp of a time in the window."""
    return FIRST + round(seconds / 0.02)


def split(tokens: list[int], *, keep_rest: bool = False) -> tuple[list[Segment], float]:
    words = lambda tokens: " ".join(str(t) for t in tokens if t < FIRST)  # noqa: E731
    return split_segments(tokens, SPEECH, SPAN, words, keep_rest=keep_rest)


def times(segments: list[Segment]) -> list[tuple[float, float, str]]:
    return [(round(s.begin_s, 2), round(s.end_s, 2), s.text) for s in segments]


def test_a_single_timestamp_at_the_end_means_no_speech_after_it() -> None:
    segments, next_s = split([at(0), 1, 2, at(2.4), at(2.6), 3, at(5)])
    assert times(segments) == [(60, 62.4, "1 2"), (62.6, 65, "3")]
    assert next_s == SPAN.end_s


@pytest.mark.parametrize("rest", [[], [3], [3, 4]])
def test_a_cut_segment_is_left_to_the_next_window(rest: list[int]) -> None:
    segments, next_s = split([at(0), 1, at(2.4), at(2.6), *rest])
    assert times(segments) == [(60, 62.4, "1")]
    assert next_s == pytest.approx(62.4)


def test_a_cut_segment_stays_where_no_window_follows() -> None:
    segments, _ = split([at(0), 1, at(2.4), at(2.6), 3], keep_rest=True)
    assert times(segments) == [(60, 62.4, "1"), (62.6, 90, "3")]
    segments, _ = split([at(0), 1, at(2.4), at(2.6)], keep_rest=True)
    assert times(segments) == [(60, 62.4, "1")]


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ([at(1.2), 1, 2, at(5)], (61.2, 65, "1 2")),
        ([at(1.2), 1, 2], (61.2, 90, "1 2")),
        ([1, 2], (60, 90, "1 2")),
    ],
)
def test_one_segment(tokens: list[int], expected: tuple[float, float, str]) -> None:
    segments, next_s = split(tokens)
    assert times(segments) == [expected]
    assert next_s == SPAN.end_s


def test_no_segment_ends_after_its_window_or_before_it_begins() -> None:
    segments, _ = split_segments(
        [at(0), 1, at(29), at(29), 2, at(30)], SPEECH, Span(0, 28), str, keep_rest=True
    )
    assert [(s.begin_s, s.end_s) for s in segments] == [(0, 28), (28, 28)]
    assert split([]) == ([], SPAN.end_s)


def test_a_model_without_timestamps_has_no_segments() -> None:
    with pytest.raises(UsageError, match="the model knows no timestamps"):
        split_segments([1], SpeechTokens(50), SPAN, str)
