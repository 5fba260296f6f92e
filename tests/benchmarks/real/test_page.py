"""Tests of the page on rows made by hand: one is as good as float, one is planted wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from hybrid_deploy.accuracy.normalizers import load_normalizer
from tests.benchmarks.real.entries import (
    DYNAMIC,
    ENTRIES,
    FLOAT,
    OURS,
    STATIC,
    Entry,
    reference_of,
)
from tests.benchmarks.real.page import HOLDS, NOT_SHOWN, Section, command, page
from tests.benchmarks.real.row import DecodedFile, Row
from tests.benchmarks.real.scores import score, speed
from tests.benchmarks.real.speech import Recording, Speech
from tests.benchmarks.real.variants import Made
from tests.kept_results import Dated, Origin

WORDS = ["the", "birch", "canoe", "slid", "on", "smooth", "planks", "glue", "sheet", "to", "dark"]
TEXTS = [" ".join(WORDS[i % 5 : i % 5 + 6]) for i in range(30)]
FEW = ["four queen of clubs", "five of hearts"]
NORMALIZER = load_normalizer("whisper")


def row(texts: list[str], *, remark: str = "", bits: float | None = 32.0) -> Row:
    files = [
        DecodedFile(f"{i:03}.wav", 2.0, tokens_of(text), text, 100.0 + i, 14.0)
        for i, text in enumerate(texts)
    ]
    return Row(files, {"onnxruntime": "1.32.0"}, 400.0, 151.3, bits, remark, 60.0)


def tokens_of(text: str) -> tuple[int, ...]:
    return tuple(sum(map(ord, word)) for word in text.lower().strip(".").split())


def worse(texts: list[str]) -> list[str]:
    """Returns the texts with another word in each third of them."""
    return [t if i % 3 else f"{t} wrong" for i, t in enumerate(texts)]


def dressed(texts: list[str]) -> list[str]:
    """Returns the texts as Whisper writes them."""
    return [f"{text.capitalize()}." for text in texts]


SPEECH = Speech(
    (Path("a.wav"),),
    {
        "many": tuple(Recording(Path("a.wav"), text, 2.0) for text in TEXTS),
        "few": tuple(Recording(Path("a.wav"), text, 2.0) for text in FEW),
    },
    7,
)
ROWS = {
    FLOAT: row(dressed(TEXTS + FEW)),
    Entry(OURS, "int8-cpu"): row(dressed(TEXTS + FEW), bits=10.1),
    Entry(OURS, "int4-cpu"): row(worse(TEXTS + FEW), bits=5.3, remark="int4-cpu predicts 80 %"),
    Entry(OURS, STATIC): row(dressed(TEXTS + FEW)),
    Entry(OURS, DYNAMIC): row(worse(TEXTS + FEW)),
}


@pytest.fixture
def text() -> str:
    made = Dated(Made("30 inputs (700 tokens): all tokens identical", "", 9.0), "2026-11-28")
    rows = {entry.key: Dated(result, "2026-11-28") for entry, result in ROWS.items()}
    failures = {Entry(OURS, "fp8").key: "quantize: it broke"}
    sections = {"tiny.en": Section("a tiny model", made, rows, failures)}
    origin = Origin("abc", "2 cores, Python 3.11", "onnxruntime 1.32.0")
    arguments = ["--speech", "/data/secret/many", "--limit", "30"]
    return page(sections, SPEECH, origin, NORMALIZER, arguments)


def cells(text: str, who: str, table: int = 0) -> list[str]:
    lines = [line for line in text.splitlines() if line.startswith(f"| {who} |")]
    return [cell.strip() for cell in lines[table].strip("|").split("|")]


def test_a_wrong_row_is_marked_and_an_equal_one_holds(text: str) -> None:
    assert cells(text, "fp32")[7] == "float"
    assert cells(text, "int8-cpu")[1:8] == [
        "0.00", "0.00 to 0.00", "0.00", "+0.00 to +0.00", "100.00", "30 of 30",
        HOLDS,
    ]  # fmt: skip
    wrong = cells(text, "int4-cpu")
    assert wrong[7] == NOT_SHOWN
    assert float(wrong[1]) == pytest.approx(100 * 10 / (6 * 30), abs=0.01)
    assert wrong[3] == wrong[1] and wrong[6] == "20 of 30"
    assert wrong[-1] == "REFUSED by quantize, see below"
    assert "- `int4-cpu`: int4-cpu predicts 80 %\n" in text


def test_costs_are_of_the_row(text: str) -> None:
    assert cells(text, "int8-cpu")[8:14] == ["10.1", "151.3", "114", "2.00", "0.064", "400"]


def test_what_is_missing_is_dashes_and_its_reason(text: str) -> None:
    assert cells(text, "fp8")[1:-1] == ["-"] * 13
    assert cells(text, "fp8")[-1] == "quantize: it broke"
    assert cells(text, "CTranslate2 int8, beam 5")[-1] == "not run"
    for entry in ENTRIES:
        assert len(cells(text, entry.title)) == 15


def test_the_second_folder_has_a_table_of_its_own(text: str) -> None:
    assert "### tiny.en on 2 recordings of few" in text and "So few recordings show little" in text
    assert cells(text, "int8-cpu", table=1)[6:] == ["2 of 2", HOLDS]
    assert cells(text, "int4-cpu", table=1)[1] == "14.29"


def test_static_and_dynamic_activations_stand_in_a_sentence(text: str) -> None:
    assert (
        "static WER 0.00 % (+0.00 points, +0.00 to +0.00), encoder 114 ms; dynamic WER 5.56" in text
    )


def test_the_head_states_how_it_was_made_without_paths(text: str) -> None:
    assert "python -m tests.benchmarks.real --speech many --limit 30`, 2026-11-28" in text
    assert "onnxruntime 1.32.0, jiwer " in text and ", whisper-normalizer " in text
    assert "secret" not in text and "A short run: 7 recordings are left out." in text
    assert "1 others of `many`" in text
    assert command(["--out", "a/b.md"]).endswith("--out b.md")


def test_a_row_without_float_is_not_shown_to_hold() -> None:
    alone = score(TEXTS, ROWS[FLOAT].files[:30], None, NORMALIZER)
    assert not alone.holds and alone.wer_percent == 0
    single = score(TEXTS[:1], ROWS[FLOAT].files[:1], ROWS[FLOAT].files[:1], NORMALIZER)
    assert not single.holds


def test_a_better_row_holds() -> None:
    floats = row(worse(TEXTS)).files
    better = score(TEXTS, row(dressed(TEXTS)).files, floats, NORMALIZER)
    assert better.holds and better.change is not None and better.change.points < -5


def test_the_end_token_is_a_step() -> None:
    file = DecodedFile("", 4.0, (1, 2, 3), "", 100.0, 60.0)
    times = speed([file, replace(file, encoder_ms=300.0)])
    assert (times.encoder_ms, times.token_ms, times.real_time_factor) == (200.0, 15.0, 0.065)


def test_beams_are_compared_with_beams() -> None:
    assert reference_of(Entry("ctranslate2", "int8", 5)) == Entry(OURS, "fp32-cpu", 5)
    assert len({entry.key for entry in ENTRIES}) == len(ENTRIES)
