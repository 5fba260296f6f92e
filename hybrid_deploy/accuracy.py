"""How right the text is: character and word error rate, and exact match."""

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
    """How texts compare with what they should be.

    Attributes:
        lines: how many were compared.
        cer_percent: character errors (substituted, deleted, inserted) per character, in percent.
        exact_percent: lines without any error, in percent.
        wer_percent: word errors per word, in percent; None if no line has several words, since it
            then says nothing new.
    """

    lines: int
    cer_percent: float
    exact_percent: float
    wer_percent: float | None = None


@dataclass(frozen=True)
class LabelledFile:
    """An input with the text it should give."""

    file: Path
    text: str


def measure_accuracy(expected: Sequence[str], given: Sequence[str]) -> Accuracy:
    """Compares texts pairwise.

    Raises:
        InputError: all the expected texts are empty.
        MissingDependencyError: jiwer is not installed.
    """
    several = any(len(text.split()) > 1 for text in expected)
    return Accuracy(
        lines=len(expected),
        cer_percent=character_error_percent(expected, given),
        exact_percent=exact_percent(expected, given),
        wer_percent=word_error_percent(expected, given) if several else None,
    )


def character_error_percent(expected: Sequence[str], given: Sequence[str]) -> float:
    """Returns the errors per expected character; what should be empty has one error a character.

    Raises:
        InputError: all the expected texts are empty.
        MissingDependencyError: jiwer is not installed.
    """
    lines, spurious = _split(expected, given)
    return _error_percent(_jiwer().process_characters, lines, sum(map(len, spurious)))


def word_error_percent(expected: Sequence[str], given: Sequence[str]) -> float:
    """Returns the errors per expected word; words are what whitespace separates.

    Raises:
        InputError: all the expected texts are empty.
        MissingDependencyError: jiwer is not installed.
    """
    lines, spurious = _split(expected, given)
    return _error_percent(
        _jiwer().process_words, lines, sum(len(text.split()) for text in spurious)
    )


def exact_percent(expected: Sequence[str], given: Sequence[str]) -> float:
    """Returns the share of the texts that are right to the last character."""
    return 100 * sum(a == b for a, b in zip(expected, given, strict=True)) / len(expected)


def load_labels(folder: Path) -> list[LabelledFile]:
    """Reads the labels of a folder: `labels.csv` with the columns `file` and `text`, in UTF-8.

    Raises:
        InputError: there is no such folder or file, a row is wrong, or it names a missing file.
    """
    path = folder / LABELS_FILE
    if not path.is_file():
        raise InputError(
            f"{folder} has no {LABELS_FILE}; write one with the columns file and text, a row per "
            "input"
        )
    try:
        with path.open(
            newline="", encoding="utf-8-sig"
        ) as file:  # a spreadsheet's mark is not text
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
    if twice := [name for name in _COLUMNS if header.count(name) > 1]:
        raise InputError(f"{path} has the column {twice[0]} twice")
    for row in reader:
        if not row["file"] or row["text"] is None:
            raise InputError(f"{path}, line {reader.line_num}: expected a file and its text")
        yield LabelledFile(path.parent / row["file"], row["text"])


def _split(
    expected: Sequence[str], given: Sequence[str]
) -> tuple[list[tuple[str, str]], list[str]]:
    """Returns the pairs with something to find, and what was read where there is nothing.

    jiwer refuses an empty reference, or not, depending on its version.
    """
    pairs = [(a.strip(), b.strip()) for a, b in zip(expected, given, strict=True)]
    lines = [(a, b) for a, b in pairs if a]
    if not lines:
        raise InputError(
            "every expected text is empty, so there is no error rate; check the labels"
        )
    return lines, [b for a, b in pairs if not a]


def _error_percent(process: Any, lines: Sequence[tuple[str, str]], inserted: int) -> float:
    """Returns the errors of the lines and those inserted elsewhere, per expected unit."""
    found = process([a for a, _ in lines], [b for _, b in lines])
    wrong = found.substitutions + found.deletions
    return float(100 * (wrong + found.insertions + inserted) / (found.hits + wrong))


def _jiwer() -> Any:
    try:
        import jiwer
    except ImportError as error:
        raise MissingDependencyError("jiwer", extra="report") from error
    return jiwer
