"""Writes segments as subtitles: SubRip (SRT) and WebVTT.

Both are a few lines of text for each segment, so no library is asked for: those on PyPI mostly read
and edit such files, and none that is kept writes both.
"""

from __future__ import annotations

from collections.abc import Iterable

from hybrid_deploy.runtime.speech.segments import Segment

_MS_PER_S, _S_PER_MIN, _MIN_PER_H = 1000, 60, 60


def srt(segments: Iterable[Segment]) -> str:
    """Returns segments as SubRip; segments without text are left out."""
    cues = enumerate(_with_text(segments), start=1)
    return "\n".join(
        f"{number}\n{_time(s.begin_s, ',')} --> {_time(s.end_s, ',')}\n{_line(s.text)}\n"
        for number, s in cues
    )


def vtt(segments: Iterable[Segment]) -> str:
    """Returns segments as WebVTT (W3C, section 4); segments without text are left out."""
    cues = [
        f"{_time(s.begin_s, '.')} --> {_time(s.end_s, '.')}\n{_escaped(_line(s.text))}\n"
        for s in _with_text(segments)
    ]
    return "\n".join(["WEBVTT\n", *cues])


def _with_text(segments: Iterable[Segment]) -> Iterable[Segment]:
    return (segment for segment in segments if segment.text.strip())


def _line(text: str) -> str:
    """Returns a text as one line: an empty line within would end its cue."""
    return " ".join(text.split())


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _time(seconds: float, point: str) -> str:
    """Returns a time as 00:00:05,120."""
    whole_s, ms = divmod(round(seconds * _MS_PER_S), _MS_PER_S)
    minutes, s = divmod(whole_s, _S_PER_MIN)
    hours, minutes = divmod(minutes, _MIN_PER_H)
    return f"{hours:02}:{minutes:02}:{s:02}{point}{ms:03}"
