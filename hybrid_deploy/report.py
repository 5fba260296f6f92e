"""Reports of records as a table, JSON, Markdown or CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

from hybrid_deploy.printable import printable, printable_json

Format = Literal["table", "json", "md", "csv"]
FORMATS: tuple[Format, ...] = ("table", "json", "md", "csv")
Record = Mapping[str, object]
"""One row of a report: values by the keys of its columns."""

_TABLE_COLUMNS = 240
_MARKUP = re.compile(r"[\\`*|<>\[\]&~]")
_FORMULA_BEGINS = ("=", "@")


@dataclass(frozen=True)
class Column:
    """One column of a report.

    Attributes:
        key: key of the value in a record.
        title: heading of the column, with the unit.
        digits: decimals of a number in tables; None shows the value as it is.
        is_markdown: whether the values are Markdown of our own, such as code in backticks.
    """

    key: str
    title: str
    digits: int | None = None
    is_markdown: bool = False

    def text(self, record: Record) -> str:
        """Returns the text of the cell for a record; a missing value is a dash."""
        value = record.get(self.key)
        if value is None:
            return "-"
        if self.digits is not None and isinstance(value, (int, float)):
            return f"{value:.{self.digits}f}"
        return printable(str(value))


def render(records: Sequence[Record], columns: Sequence[Column], output_format: Format) -> str:
    """Returns records as text that ends with a newline.

    JSON and CSV hold unrounded values under the columns' keys; table and Markdown are rounded.
    """
    if output_format == "json":
        return json_text([{c.key: record.get(c.key) for c in columns} for record in records]) + "\n"
    if output_format == "csv":
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([column.key for column in columns])
        writer.writerows([_csv_value(record.get(c.key)) for c in columns] for record in records)
        return text.getvalue()
    if output_format == "md":
        return _markdown(records, columns)
    return _table(records, columns)


def json_text(value: object) -> str:
    """Returns a value as indented JSON, in which no character commands a terminal.

    Args:
        value: lists, mappings and structs of numbers and strings. Half of a surrogate pair, as in a
            file name that is not UTF-8, becomes an escape in its string.
    """
    try:
        encoded = msgspec.json.encode(value)
    except UnicodeEncodeError:
        encoded = msgspec.json.encode(_unicode(msgspec.to_builtins(value)))
    return printable_json(msgspec.json.format(encoded, indent=1).decode())


def _unicode(value: object) -> object:
    """Returns lists and dicts with escapes in place of halves of surrogate pairs."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {_unicode(key): _unicode(item) for key, item in value.items()}
    return [_unicode(item) for item in value] if isinstance(value, (list, tuple)) else value


def _csv_value(value: object) -> object:
    """Returns the value of a cell; a text that a spreadsheet would compute gets a quote before."""
    if not isinstance(value, str):
        return value
    return printable(f"'{value}" if value.startswith(_FORMULA_BEGINS) else value)


def _markdown(records: Sequence[Record], columns: Sequence[Column]) -> str:
    lines = [
        [column.title for column in columns],
        ["---:" if column.digits is not None else "---" for column in columns],
        *([_markdown_cell(column, record) for column in columns] for record in records),
    ]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _markdown_cell(column: Column, record: Record) -> str:
    text = column.text(record)
    return text if column.is_markdown else _escaped(text)


def _escaped(text: str) -> str:
    """Returns a text as Markdown that shows it: no markup, no HTML, no other cell."""
    return _MARKUP.sub(r"\\\g<0>", text)


def _table(records: Sequence[Record], columns: Sequence[Column]) -> str:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for column in columns:
        justify: Literal["left", "right"] = "left" if column.digits is None else "right"
        table.add_column(column.title, justify=justify, no_wrap=True)
    for record in records:
        table.add_row(*(column.text(record) for column in columns))
    text = io.StringIO()
    Console(file=text, width=_TABLE_COLUMNS, color_system=None, markup=False, emoji=False).print(
        table
    )
    return "".join(f"{line.rstrip()}\n" for line in text.getvalue().splitlines() if line.strip())
