"""Subtitles, byte for byte."""

from __future__ import annotations

from hybrid_deploy.runtime.speech.segments import Segment
from hybrid_deploy.runtime.speech.subtitles import srt, vtt

SEGMENTS = [
    Segment(0.0, 2.4, "one\n\ntwo", ()),
    Segment(2.4, 2.5, "  ", ()),
    Segment(3599.9996, 36_061.2345, "a < b & c --> d", ()),
]


def test_srt() -> None:
    assert srt(SEGMENTS) == (
        "1\n00:00:00,000 --> 00:00:02,400\none two\n"
        "\n"
        "2\n01:00:00,000 --> 10:01:01,234\na < b & c --> d\n"
    )
    assert srt([]) == ""


def test_vtt() -> None:
    assert vtt(SEGMENTS) == (
        "WEBVTT\n\n"
        "00:00:00.000 --> 00:00:02.400\none two\n"
        "\n"
        "01:00:00.000 --> 10:01:01.234\na &lt; b &amp; c --&gt; d\n"
    )
    assert vtt([]) == "WEBVTT\n"
