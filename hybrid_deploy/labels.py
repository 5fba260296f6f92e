"""The expected texts of inputs: `labels.csv` beside the files, with the columns file and text."""

from __future__ import annotations

import csv
import logging
from collections.abc import Iterable, Iterator, Set
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from hybrid_deploy.errors import InputError

LABELS_FILE = "labels.csv"

_LOGGER = logging.getLogger(__name__)
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

    Files of the same kinds that have no row are reported on the log, and left out.

    Raises:
        InputError: the file is missing, not UTF-8, without rows or columns, has a wrong row or two
            for one file, or names a missing input.
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
            labels = list(_labels(path, file))
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text; convert it with iconv -t UTF-8") from error
    if not labels:
        raise InputError(f"{path} has no rows")
    missing = [label.file for label in labels if not label.file.is_file()]
    if missing:
        raise InputError(
            f"{path} names {len(missing)} of {len(labels)} files that are missing or no files, "
            f"first {missing[0]}"
        )
    _report_unlabelled(folder, {label.file for label in labels})
    return labels


def _labels(path: Path, file: Iterable[str]) -> Iterator[LabelledFile]:
    """Yields the labels of an opened table.

    Raises:
        InputError: a column is missing or a row is wrong; the message names its line.
    """
    rows = _rows(path, file)
    _, header = next(rows, (1, []))
    if not set(_COLUMNS) <= set(header):
        raise InputError(
            f"{path} needs the columns file and text, it has {', '.join(header) or 'none'}"
        )
    if repeated := [name for name in _COLUMNS if header.count(name) > 1]:
        raise InputError(f"{path} has the column {repeated[0]} twice")
    file_column, text_column = map(header.index, _COLUMNS)
    line_of: dict[Path, int] = {}
    for line, row in rows:
        if len(row) <= max(file_column, text_column) or not row[file_column]:
            raise InputError(f"{path}, line {line}: expected a file and its text")
        if any(row[len(header) :]):
            raise InputError(
                f"{path}, line {line}: {len(row)} fields in {len(header)} columns; put a text with "
                "commas into quotes"
            )
        label = LabelledFile(path.parent / row[file_column], row[text_column])
        if label.file in line_of:
            raise InputError(
                f"{path}, line {line}: {row[file_column]} has a row in line {line_of[label.file]} "
                "too; leave one out"
            )
        if swallowed := _row_within(label, file_column):
            raise InputError(
                f"{path}, line {line}: the text holds the row of {swallowed} too; a quote is not "
                "closed"
            )
        line_of[label.file] = line
        yield label


def _row_within(label: LabelledFile, file_column: int) -> str | None:
    """Returns the file whose row became a part of this text, by a stray quote in each of them."""
    for line in label.text.splitlines()[1:]:
        fields = line.split(",")
        name = fields[file_column] if len(fields) > file_column else ""
        with suppress(OSError):  # a text may be longer than the name of any file
            if name and (label.file.parent / name).is_file():
                return name
    return None


def _rows(path: Path, file: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
    """Yields the rows of a table that are not empty, each with the number of its first line.

    Raises:
        InputError: a row is not written as a table; the message names its first line.
    """
    reader, begin = csv.reader(file, strict=True), 1
    try:
        for row in reader:
            if row:
                yield begin, row
            begin = reader.line_num + 1
    except csv.Error as error:
        raise InputError(
            f"{path}, line {begin}: a row that is no row of a table begins here ({error}); a text "
            'with " needs quotes around it, and each " in it twice'
        ) from error


def _report_unlabelled(folder: Path, labelled: Set[Path]) -> None:
    """Reports the files of the kinds that have labels, and that have none."""
    suffixes = {file.suffix.lower() for file in labelled}
    others = sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in suffixes and path not in labelled and path.name != LABELS_FILE
    )
    if others:
        _LOGGER.warning(
            "%d files in %s have no row in %s and are left out, first %s",
            len(others), folder, LABELS_FILE, others[0].name,
        )  # fmt: skip
