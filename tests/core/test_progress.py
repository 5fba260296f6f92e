"""Progress within a stage, without output, and as lines with the time of each stage."""

from __future__ import annotations

import pytest

from hybrid_deploy.cli.progress import StageLines
from hybrid_deploy.progress import part_of, silent

Report = tuple[str, int, int]


def test_a_piece_counts_within_its_stage() -> None:
    reports: list[Report] = []
    piece = part_of(lambda *report: reports.append(report), "compare", before=10, total=30)
    piece("read", 0, 10)
    piece("read", 10, 10)
    assert reports == [("compare", 10, 30), ("compare", 20, 30)]


def test_silence_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    silent("check", 1, 2)
    assert capsys.readouterr() == ("", "")


def test_a_line_for_each_stage_and_the_bar_for_one(capsys: pytest.CaptureFixture[str]) -> None:
    bar: list[Report] = []
    show = StageLines(lambda *report: bar.append(report), "check")
    for stage, done, total in [("trace", 0, 1), ("trace", 1, 1), ("check", 0, 2), ("check", 1, 2)]:
        show(stage, done, total)
    assert capsys.readouterr().err == "trace 0.0 s\n"
    show("check", 2, 2)
    show("check", 2, 2)  # reported for the last input, then again for the end of the stage
    assert capsys.readouterr().err == "check 0.0 s\n"
    assert bar == [("check", 0, 2), ("check", 1, 2), ("check", 2, 2), ("check", 2, 2)]
