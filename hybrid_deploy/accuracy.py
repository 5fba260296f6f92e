"""Accuracy of decoded texts: character error rate, word error rate and exact match."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybrid_deploy.errors import InputError, MissingDependencyError

LABELS_FILE = "labels.csv"
_COLUMNS = ("file", "text")


@dataclass(frozen=True)
class Accuracy:
    """Accuracy of texts against the expected ones.

    Attributes:
        lines: number of texts that were compared.
        cer_percent: errors (characters substituted, deleted or inserted) per expected character,
            in percent.
        exact_percent: share of the texts without any error, in percent.
        wer_percent: word errors per expected word, in percent; None if no expected text has several
            words, because each word error is then an inexact text.
    """

    lines: int
    cer_percent: float
    exact_percent: float
    wer_percent: float | None = None


@dataclass(frozen=True)
class LabelledFile:
    """An input file with its expected text.

    Attributes:
        file: path of the input.
        text: text that the model is expected to decode from it.
    """

    file: Path
    text: str


def measure_accuracy(expected: Sequence[str], actual: Sequence[str]) -> Accuracy:
    """Returns the accuracy of texts, each compared with the expected text at its index.

    Raises:
        InputError: all the expected texts are empty.
        MissingDependencyError: jiwer is not installed.
    """
    has_words = any(len(text.split()) > 1 for text in expected)
    return Accuracy(
        lines=len(expected),
        cer_percent=character_error_percent(expected, actual),
        exact_percent=exact_percent(expected, actual),
        wer_percent=word_error_percent(expected, actual) if has_words else None,
    )


def character_error_percent(expected: Sequence[str], actual: Sequence[str]) -> float:
    """Returns the errors per expected character, in percent.

    Whitespace at both ends of a text is ignored. Every character that is decoded where the expected
    text is empty counts as one error.

    Raises:
        InputError: all the expected texts are empty.
        MissingDependencyError: jiwer is not installed.
    """
    lines, spurious = _split(expected, actual)
    return _error_percent(_jiwer().process_characters, lines, sum(map(len, spurious)))


def word_error_percent(expected: Sequence[str], actual: Sequence[str]) -> float:
    """Returns the errors per expected word, in percent; whitespace separates words.

    Raises:
        InputError: all the expected texts are empty.
        MissingDependencyError: jiwer is not installed.
    """
    lines, spurious = _split(expected, actual)
    return _error_percent(
        _jiwer().process_words, lines, sum(len(text.split()) for text in spurious)
    )


def exact_percent(expected: Sequence[str], actual: Sequence[str]) -> float:
    """Returns the share of the texts that equal the expected ones, in percent."""
    return 100 * sum(a == b for a, b in zip(expected, actual, strict=True)) / len(expected)


def load_labels(folder: Path) -> list[LabelledFile]:
    """Reads the labels of a folder: `labels.csv` in UTF-8 with the columns `file` and `text`.

    Raises:
        InputError: the file is missing, not UTF-8, without rows or columns, has a wrong row, or
            names a missing input.
    """
    path = folder / LABELS_FILE
    if not path.is_file():
        raise InputError(
            f"{folder} has no {LABELS_FILE}; write one with the columns file and text, a row per "
            "input"
        )
    try:
        # utf-8-sig: spreadsheets write a byte order mark, which is not part of the first column
        with path.open(newline="", encoding="utf-8-sig") as file:
            labels = list(_rows(path, csv.DictReader(file)))
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text; convert it with iconv -t UTF-8") from error
    except csv.Error as error:
        raise InputError(f"{path} is not a table: {error}") from error
    if not labels:
        raise InputError(f"{path} has no rows")
    missing = [label.file for label in labels if not label.file.is_file()]
    if missing:
        raise InputError(
            f"{path} names {len(missing)} of {len(labels)} files that do not exist, "
            f"first {missing[0]}"
        )
    return labels


def _rows(path: Path, reader: csv.DictReader[str]) -> Iterator[LabelledFile]:
    header = list(reader.fieldnames or ())
    if not set(_COLUMNS) <= set(header):
        raise InputError(
            f"{path} needs the columns file and text, it has {', '.join(header) or 'none'}"
        )
    if repeated := [name for name in _COLUMNS if header.count(name) > 1]:
        raise InputError(f"{path} has the column {repeated[0]} twice")
    for row in reader:
        if not row["file"] or row["text"] is None:
            raise InputError(f"{path}, line {reader.line_num}: expected a file and its text")
        yield LabelledFile(path.parent / row["file"], row["text"])


def _split(
    expected: Sequence[str], actual: Sequence[str]
) -> tuple[list[tuple[str, str]], list[str]]:
    """Returns the pairs whose expected text is not empty, and the actual texts of the others.

    Some versions of jiwer refuse an empty expected text.
    """
    pairs = [(a.strip(), b.strip()) for a, b in zip(expected, actual, strict=True)]
    lines = [(a, b) for a, b in pairs if a]
    if not lines:
        raise InputError(
            "every expected text is empty, so there is no error rate; check the labels"
        )
    return lines, [b for a, b in pairs if not a]


def _error_percent(process: Any, lines: Sequence[tuple[str, str]], inserted: int) -> float:
    """Returns the errors of the lines plus `inserted`, per expected unit, in percent."""
    errors = process([a for a, _ in lines], [b for _, b in lines])
    wrong = errors.substitutions + errors.deletions
    return float(100 * (wrong + errors.insertions + inserted) / (errors.hits + wrong))


def _jiwer() -> Any:
    try:
        import jiwer
    except ImportError as error:
        raise MissingDependencyError("jiwer", extra="report") from error
    return jiwer
