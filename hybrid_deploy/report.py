"""Reports of records as a table, JSON, Markdown or CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

Format = Literal["table", "json", "md", "csv"]
FORMATS: tuple[Format, ...] = ("table", "json", "md", "csv")
Record = Mapping[str, object]
"""One row of a report: values by the keys of its columns."""

_TABLE_COLUMNS = 240


@dataclass(frozen=True)
class Column:
    """One column of a report.

    Attributes:
        key: key of the value in a record.
        title: heading of the column, with the unit.
        digits: decimals of a number in tables; None shows the value as it is.
    """

    key: str
    title: str
    digits: int | None = None

    def text(self, record: Record) -> str:
        """Returns the text of the cell for a record; a missing value is a dash."""
        value = record.get(self.key)
        if value is None:
            return "-"
        if self.digits is not None and isinstance(value, (int, float)):
            return f"{value:.{self.digits}f}"
        return str(value)


def render(records: Sequence[Record], columns: Sequence[Column], output_format: Format) -> str:
    """Returns records as text that ends with a newline.

    JSON and CSV hold unrounded values under the columns' keys; table and Markdown are rounded.
    """
    if output_format == "json":
        rows = [{c.key: record.get(c.key) for c in columns} for record in records]
        return msgspec.json.format(msgspec.json.encode(rows), indent=1).decode() + "\n"
    if output_format == "csv":
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([column.key for column in columns])
        writer.writerows([record.get(column.key) for column in columns] for record in records)
        return text.getvalue()
    if output_format == "md":
        return _markdown(records, columns)
    return _table(records, columns)


def _markdown(records: Sequence[Record], columns: Sequence[Column]) -> str:
    lines = [
        [column.title for column in columns],
        ["---:" if column.digits is not None else "---" for column in columns],
        *([column.text(record) for column in columns] for record in records),
    ]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _table(records: Sequence[Record], columns: Sequence[Column]) -> str:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        justify: Literal["left", "right"] = "left" if column.digits is None else "right"
        table.add_column(column.title, justify=justify, no_wrap=True)
    for record in records:
        table.add_row(*(column.text(record) for column in columns))
    text = io.StringIO()
    Console(file=text, width=_TABLE_COLUMNS, color_system=None, markup=False).print(table)
    return "".join(f"{line.rstrip()}\n" for line in text.getvalue().splitlines() if line.strip())
