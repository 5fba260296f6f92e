"""What `compare` prints: speed beside accuracy, intervals, and the inputs that lose most."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hybrid_deploy.accuracy.bootstrap import FEW_INPUTS
from hybrid_deploy.accuracy.error_rates import RATES
from hybrid_deploy.accuracy.normalizers import AS_DECODED, Normalizer
from hybrid_deploy.cli.compare_accuracy import OK
from hybrid_deploy.contract import FLOAT_VARIANT
from hybrid_deploy.printable import one_line
from hybrid_deploy.report import Column, Format, render

Row = Mapping[str, Any]
"""The record of a variant on a backend."""

_RATE_COLUMNS = {
    "cer": Column("cer_percent", "CER %", digits=2),
    "wer": Column("wer_percent", "WER %", digits=2),
    "exact": Column("exact_percent", "exact %", digits=2),
}
_BEFORE = (
    Column("variant", "variant"),
    Column("backend", "backend"),
    Column("size_mb", "MB", digits=2),
)
_AFTER = (
    Column("encoder_ms", "encoder ms", digits=2),
    Column("token_ms", "ms/token", digits=3),
    Column("total_ms", "total ms", digits=2),
    Column("status", "status"),
)
_INTERVALS = (
    Column("variant", "variant"),
    Column("backend", "backend"),
    Column("metric", "metric"),
    Column("value", "value", digits=2),
    Column("interval", "95 % interval"),
    Column("change", "change"),
    Column("change_interval", "95 % interval"),
)
_WORST = (
    Column("variant", "variant"),
    Column("backend", "backend"),
    Column("input", "input"),
    Column("lost_characters", "characters lost", digits=0),
    Column("expected", "true text"),
    Column("reference", "float's text"),
    Column("decoded", "variant's text"),
)
_WIDTH = 80


def columns_for(rows: Sequence[Row]) -> tuple[Column, ...]:
    """Returns the columns of speed beside accuracy; with word errors if they were measured."""
    has_words = any(row.get("wer_percent") is not None for row in rows)
    rates = [column for rate, column in _RATE_COLUMNS.items() if rate != "wer" or has_words]
    return (*_BEFORE, *rates, *_AFTER)


def _telling(columns: Sequence[Column], rows: Sequence[Row]) -> tuple[Column, ...]:
    """Returns the columns without a backend that all rows share, and without a status of `ok`."""
    superfluous = set()
    if len({row["backend"] for row in rows}) == 1:
        superfluous.add("backend")
    if all(row["status"] == OK for row in rows):
        superfluous.add("status")
    return tuple(column for column in columns if column.key not in superfluous)


def report(rows: Sequence[Row], output_format: Format, inputs: int, normalizer: Normalizer) -> str:
    """Returns the report of `compare`, ending with a newline.

    JSON and CSV hold every number of a row, JSON its worst inputs too. A table and Markdown have
    three parts: speed beside accuracy, the intervals, and the worst inputs.

    Args:
        rows: the records of `compare_rows`.
        output_format: the format.
        inputs: number of inputs that each row was measured on.
        normalizer: what the texts passed before they were compared.
    """
    if output_format in ("json", "csv"):
        return render(rows, _data_columns(output_format), output_format)
    is_table = output_format == "table"
    columns = columns_for(rows)
    parts = [render(rows, _telling(columns, rows) if is_table else columns, output_format)]
    intervals = list(_interval_rows(rows, normalizer, is_table))
    if intervals:
        shown = _telling(_INTERVALS, rows) if is_table else _INTERVALS
        parts.append(_caption(rows, inputs, normalizer))
        parts.append(render(intervals, shown, output_format))
    worst = [(row, loss) for row in rows for loss in row.get("worst") or ()]
    if worst and is_table:
        parts += [_worst_text(row, normalizer) for row in rows if row.get("worst")]
    elif worst:
        parts.append("Inputs that lose most, as decoded:\n")
        records = [{**loss, "variant": r["variant"], "backend": r["backend"]} for r, loss in worst]
        parts.append(render(records, _WORST, output_format))
    return "\n".join(parts)


def _data_columns(output_format: Format) -> list[Column]:
    """Returns the columns of JSON and CSV: unrounded numbers with their bounds."""
    keys = [f"{rate}{bound}_percent" for rate in RATES for bound in ("", "_low", "_high")]
    keys += [f"{rate}_change{bound}_points" for rate in RATES for bound in ("", "_low", "_high")]
    keys += ["normalizer", "reference"]
    middle = [Column(key, key) for key in keys]
    worst = [Column("worst", "worst")] if output_format == "json" else []
    return [*_BEFORE, *middle, *_AFTER, *worst]


def _caption(rows: Sequence[Row], inputs: int, normalizer: Normalizer) -> str:
    """Returns what the numbers of the second table are, in lines that fit a terminal."""
    how = "as decoded" if normalizer.name == AS_DECODED.name else f"normalised by {normalizer.name}"
    lines = [f"Accuracy on {inputs} inputs, texts {how}; 95 % intervals by bootstrap"]
    if inputs < FEW_INPUTS:
        lines.append("of so few inputs, the intervals mean little")
    reference = next((row["reference"] for row in rows if row.get("reference")), None)
    if reference is not None:
        lines.append(f"changes are against {reference}, on the same resamples")
    elif not any(row["variant"] == FLOAT_VARIANT and "worst" in row for row in rows):
        lines.append(f"{FLOAT_VARIANT} was not measured, so there are no changes")
    return ";\n".join(lines) + ":\n"


def _interval_rows(
    rows: Sequence[Row], normalizer: Normalizer, is_table: bool
) -> Iterator[dict[str, object]]:
    """Yields a row for each rate of each variant; a table names the variant once."""
    suffix = "" if normalizer.name == AS_DECODED.name else f" ({normalizer.name})"
    for row in rows:
        named = {"variant": row["variant"], "backend": row["backend"]}
        for rate, column in _RATE_COLUMNS.items():
            if row.get(column.key) is None:
                continue
            change = row.get(f"{rate}_change_points")
            yield {
                **named,
                "metric": f"{column.title}{suffix}",
                "value": row[column.key],
                "interval": _range(row, f"{rate}_low_percent", f"{rate}_high_percent", ".2f"),
                "change": None if change is None else f"{change:+.2f}",
                "change_interval": _range(
                    row, f"{rate}_change_low_points", f"{rate}_change_high_points", "+.2f"
                ),
            }
            if is_table:
                named = {"variant": "", "backend": ""}


def _range(row: Row, low: str, high: str, form: str) -> str | None:
    if row.get(low) is None:
        return None
    return f"{row[low]:{form}} to {row[high]:{form}}"


def _worst_text(row: Row, normalizer: Normalizer) -> str:
    """Returns the worst inputs of one row, each text in the part around its first error."""
    variant, reference = row["variant"], row.get("reference")
    what = f"characters lost against {reference}" if reference else "characters wrong"
    lines = [f"{variant} on {row['backend']}, {what}:"]
    for loss in row["worst"]:
        lines.append(f"  {loss['lost_characters']:4d}  {one_line(loss['input'])}")
        texts = {"true": loss["expected"], FLOAT_VARIANT: loss["reference"]}
        texts[variant] = loss["decoded"]
        lines += _aligned({k: normalizer(t) for k, t in texts.items() if t is not None})
    return "\n".join(lines) + "\n"


def _aligned(texts: Mapping[str, str]) -> Iterator[str]:
    """Yields a line for each text; equal ones share a line."""
    names_of: dict[str, list[str]] = {}
    for name, text in texts.items():
        names_of.setdefault(one_line(text), []).append(name)
    begin = _first_difference(list(names_of))
    margin = 8 + max(len(", ".join(names)) for names in names_of.values())
    for text, names in names_of.items():
        label = ", ".join(names)
        yield f"{label:>{margin - 2}}  {_excerpt(text, begin, _WIDTH - margin)}"


def _first_difference(texts: Sequence[str]) -> int:
    """Returns the first index at which the texts are not all equal."""
    shortest = min(map(len, texts))
    return next((i for i in range(shortest) if len({text[i] for text in texts}) > 1), shortest)


def _excerpt(text: str, begin: int, width: int) -> str:
    """Returns the part of a text around an index that fits the width of a terminal."""
    from rich.cells import cell_len, set_cell_size

    cells = cell_len(text)
    if cells <= width:
        return text or "(nothing)"
    characters = width * len(text) // cells  # that fit, as some take two columns
    first = max(0, min(begin - characters // 3, len(text) - characters + 1))
    shown = ("…" if first else "") + text[first:]
    if cell_len(shown) <= width:
        return shown
    return set_cell_size(shown, width - 1) + "…"
