"""The expected texts of inputs: `labels.csv` beside the files, with the columns file and text."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hybrid_deploy.errors import InputError

LABELS_FILE = "labels.csv"


_COLUMNS = ("file", "text")


@dataclass(frozen=True)
class LabelledFile:
    """An input file with its expected text.

    Attributes:
        file: path of the input.
        text: text that the model is expected to decode from it.
    """

    file: Path
    text: str


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
