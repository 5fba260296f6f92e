"""How right the text is: character error rate and exact match."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hybrid_deploy.errors import InputError, MissingDependencyError

LABELS_FILE = "labels.csv"


@dataclass(frozen=True)
class Accuracy:
    """How texts compare with what they should be.

    Attributes:
        lines: how many were compared.
        cer_percent: character errors (substituted, deleted, inserted) per character, in percent.
        exact_percent: lines without any error, in percent.
    """

    lines: int
    cer_percent: float
    exact_percent: float


@dataclass(frozen=True)
class LabelledFile:
    """An input with the text it should give."""

    file: Path
    text: str


def measure_accuracy(expected: Sequence[str], given: Sequence[str]) -> Accuracy:
    """Compares texts pairwise.

    Raises:
        MissingDependencyError: jiwer is not installed.
    """
    try:
        import jiwer
    except ImportError as error:
        raise MissingDependencyError("jiwer", extra="report") from error
    exact = sum(a == b for a, b in zip(expected, given, strict=True))
    return Accuracy(
        lines=len(expected),
        cer_percent=100 * float(jiwer.cer(list(expected), list(given))),
        exact_percent=100 * exact / len(expected),
    )


def load_labels(folder: Path) -> list[LabelledFile]:
    """Reads the labels of a folder: `labels.csv` with the columns `file` and `text`.

    Raises:
        InputError: there is no such folder or file, or a row is wrong.
    """
    path = folder / LABELS_FILE
    if not path.is_file():
        raise InputError(
            f"{folder} has no {LABELS_FILE}; write one with the columns file and text, a row per "
            "input"
        )
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if not {"file", "text"} <= set(reader.fieldnames or ()):
            raise InputError(f"{path} needs the columns file and text")
        labels = [LabelledFile(folder / row["file"], row["text"]) for row in reader]
    if not labels:
        raise InputError(f"{path} has no rows")
    return labels
