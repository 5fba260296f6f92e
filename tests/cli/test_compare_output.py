"""What `compare` prints: it fits a terminal, and says how every number came about."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len

from hybrid_deploy.accuracy.normalizers import AS_DECODED, load_normalizer
from hybrid_deploy.cli.compare_accuracy import accuracy_record, float_reading, read_accuracy
from hybrid_deploy.cli.compare_output import report
from hybrid_deploy.labels import LabelledFile

BASIC = load_normalizer("basic")
TRUE = {f"{i}.wav": f"Text number {'abcdefghijkl'[i]} of all." for i in range(12)}
TIMES = {"size_mb": 1.5, "encoder_ms": 1426.21, "token_ms": 41.042, "total_ms": 2090.05}


def rows_of(
    *read: tuple[str, str, dict[str, str]], true: dict[str, str] = TRUE, worst: int = 5
) -> list[dict[str, Any]]:
    """Returns rows of variants on backends that read the true texts but for some."""
    labels = [LabelledFile(Path(name), text) for name, text in true.items()]
    readings = [
        read_accuracy(variant, backend, labels, list((true | changed).values()), BASIC)
        for variant, backend, changed in read
    ]
    reference = float_reading(readings)
    return [
        {"variant": reading.variant, "backend": reading.backend, **TIMES}
        | accuracy_record(reading, reference, labels, worst)
        for reading in readings
    ]


def table(rows: list[dict[str, Any]]) -> str:
    return report(rows, "table", len(TRUE), BASIC)


FLOAT = ("fp32", "onnxruntime", {"3.wav": "Text number of all"})
INT8 = ("int8-weights", "onnxruntime", {"3.wav": "all", "5.wav": "Text lumber f", "0.wav": "text"})


def test_a_table_fits_a_terminal_and_names_the_normaliser_of_each_metric() -> None:
    text = table(rows_of(FLOAT, INT8))
    assert max(map(len, text.splitlines())) <= 80
    metrics = [line for line in text.splitlines() if " (basic) " in line]
    assert [line.split()[0] for line in metrics] == [
        "fp32", "WER", "exact", "int8-weights", "WER", "exact"
    ]  # fmt: skip
    assert "Accuracy on 12 inputs, texts normalised by basic; 95 % intervals by bootstrap;" in text
    assert "changes are against fp32 on onnxruntime, on the same resamples:" in text
    assert text.splitlines()[0].split()[-2:] == ["total", "ms"]  # no status, as all are ok


def test_columns_that_tell_rows_apart_stay() -> None:
    rows = rows_of(FLOAT, ("fp32", "onnxruntime-cuda", {}))
    heading = table(rows).splitlines()[0].split()
    assert "backend" in heading and "status" not in heading
    rows.append({"variant": "int8", "backend": "onnxruntime", "status": "failed: no GPU"})
    assert table(rows).splitlines()[0].split()[-1] == "status"
    assert "failed: no GPU" in table(rows)


def test_the_only_row_that_failed_says_so() -> None:
    rows = [{"variant": "int8", "backend": "onnxruntime", "status": "failed: no GPU"}]
    assert "failed: no GPU" in table(rows)


def test_changes_against_float() -> None:
    _, int8 = rows_of(FLOAT, INT8)
    assert int8["reference"] == "fp32 on onnxruntime"
    assert int8["cer_change_points"] == pytest.approx(int8["cer_percent"] - 100 * 2 / 240)
    assert int8["cer_change_low_points"] < int8["cer_change_points"]
    assert int8["cer_change_points"] < int8["cer_change_high_points"]
    assert int8["exact_change_points"] == pytest.approx(-100 * 2 / 12)


def test_without_float_there_are_no_changes() -> None:
    (row,) = rows_of(INT8)
    assert "reference" not in row and "cer_change_points" not in row
    text = table([row])
    assert "fp32 was not measured, so there are no changes:" in text
    assert "int8-weights on onnxruntime, characters wrong:" in text


def test_few_inputs_are_named() -> None:
    few = dict(list(TRUE.items())[:3])
    text = report(rows_of(("fp32", "onnxruntime", {}), true=few), "table", 3, BASIC)
    assert "by bootstrap;\nof so few inputs, the intervals mean little:\n" in text
    assert max(map(len, text.splitlines())) <= 80
    single = dict(list(TRUE.items())[:1])
    (row,) = rows_of(("fp32", "onnxruntime", {}), true=single)
    assert (row["cer_percent"], row["cer_low_percent"]) == (0, None)


def test_the_worst_inputs_come_with_their_texts() -> None:
    _, int8 = rows_of(FLOAT, INT8)
    assert [loss["input"] for loss in int8["worst"]] == ["0.wav", "3.wav", "5.wav"]
    assert [loss["lost_characters"] for loss in int8["worst"]] == [16, 15, 8]
    assert int8["worst"][1] == {
        "input": "3.wav", "lost_characters": 15, "errors": 17, "expected": TRUE["3.wav"],
        "reference": "Text number of all", "decoded": "all",
    }  # fmt: skip
    lines = table(rows_of(FLOAT, INT8)).splitlines()
    begin = lines.index("int8-weights on onnxruntime, characters lost against fp32 on onnxruntime:")
    assert lines[begin + 1 : begin + 8] == [
        "    16  0.wav",
        "        true, fp32  text number a of all",
        "      int8-weights  text",
        "    15  3.wav",
        "              true  text number d of all",
        "              fp32  text number of all",
        "      int8-weights  all",
    ]


@pytest.mark.parametrize(("worst", "count"), [(0, 0), (1, 1), (5, 3)])
def test_so_many_worst_inputs(worst: int, count: int) -> None:
    _, int8 = rows_of(FLOAT, INT8, worst=worst)
    assert len(int8["worst"]) == count


def test_a_variant_that_loses_nothing_has_no_worst_inputs() -> None:
    rows = rows_of(FLOAT, ("int8", "onnxruntime", {}))
    assert rows[1]["worst"] == []
    assert "int8 on onnxruntime, characters" not in table(rows)


def test_a_long_text_is_shown_around_its_first_error() -> None:
    long = {"a.wav": "word " * 60 + "right " + "word " * 60, "b.wav": "其他 " * 60 + "语言"}
    changed = {"a.wav": "word " * 60 + "wrong " + "word " * 60, "b.wav": "其他 " * 60 + "文言"}
    text = table(rows_of(("fp32", "onnxruntime", changed), true=long))
    assert "… word word" not in text
    shown = [line for line in text.splitlines() if "word word" in line]
    assert ["right" in line for line in shown] == [True, False]
    assert ["wrong" in line for line in shown] == [False, True]
    assert all(cell_len(line) <= 80 for line in text.splitlines())  # Chinese takes two columns
    assert "语言" in text and "文言" in text


def test_texts_cannot_command_a_terminal_or_leave_their_cell() -> None:
    hostile = {
        "a.wav": "one\x1b[31m two",
        "b\n.wav": "three | <b>four</b>\n\u202efive",
        "c.wav": "x",
    }
    read = {"a.wav": "one\x9b two", "b\n.wav": "|"}
    rows = rows_of(("fp32", "onnxruntime", read), true=hostile)
    for form in ("table", "md", "json"):
        text = report(rows, form, 3, AS_DECODED)
        assert not set("\x1b\x9b\u202e") & set(text), form
    shown = report(rows, "table", 3, AS_DECODED)
    assert r"one\x1b[31m two" in shown and r"  b\n.wav" in shown
    last = report(rows, "md", 3, AS_DECODED).splitlines()[-2:]
    assert all(line.replace(r"\|", "").count("|") == 8 for line in last)
    assert r"\<b\>" in "".join(last)
    (row,) = json.loads(report(rows, "json", 3, AS_DECODED))
    assert {loss["expected"] for loss in row["worst"]} == {hostile["a.wav"], hostile["b\n.wav"]}


def test_markdown_has_three_tables() -> None:
    text = report(rows_of(FLOAT, INT8), "md", 12, BASIC)
    first, caption, second, title, third = text.split("\n\n")
    assert first.splitlines()[0].startswith("| variant | backend | MB | CER % | WER % | exact % |")
    assert caption.startswith("Accuracy on 12 inputs, texts normalised by basic;")
    assert second.splitlines()[2] == (
        "| fp32 | onnxruntime | CER % (basic) | 0.83 | 0.00 to 2.50 | - | - |"
    )
    assert second.splitlines()[6].startswith("| int8-weights | onnxruntime | WER % (basic) |")
    assert title == "Inputs that lose most, as decoded:"
    assert len(third.splitlines()) == 2 + 1 + 3


def test_csv_is_one_table_of_numbers() -> None:
    rows = rows_of(FLOAT, INT8)
    fp32, int8 = csv.DictReader(report(rows, "csv", 12, BASIC).splitlines())
    assert float(int8["cer_change_low_points"]) == rows[1]["cer_change_low_points"]
    assert (fp32["cer_change_points"], fp32["normalizer"], int8["normalizer"]) == (
        "",
        *["basic"] * 2,
    )
    assert "worst" not in fp32
