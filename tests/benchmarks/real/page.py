"""The page: for each model a table of all recordings, and one for each further folder."""

from __future__ import annotations

import importlib.metadata
import os
import shlex
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hybrid_deploy.accuracy.bootstrap import FEW_INPUTS, Interval
from hybrid_deploy.accuracy.normalizers import Normalizer
from hybrid_deploy.report import Column, render
from tests.benchmarks.real.entries import DYNAMIC, ENTRIES, FLOAT, OURS, STATIC, Entry, reference_of
from tests.benchmarks.real.row import DecodedFile, Row
from tests.benchmarks.real.scores import MOST_POINTS, Score, score, speed
from tests.benchmarks.real.speech import Recording, Speech
from tests.benchmarks.real.variants import Made
from tests.kept_results import ROOT, Dated, Origin

NOT_SHOWN = "NOT SHOWN TO HOLD"
HOLDS = "holds"
_SCORERS = ("jiwer", "whisper-normalizer")

_ACCURACY = (
    Column("who", "who"),
    Column("wer", "WER %", digits=2),
    Column("interval", "95 %"),
    Column("change", "points to float", digits=2),
    Column("change_interval", "95 %, paired"),
    Column("tokens", "tokens as in float %", digits=2),
    Column("texts", "texts as in float"),
    Column("verdict", "verdict"),
)
_COST = (
    Column("bits", "decoder bits/weight", digits=1),
    Column("size", "MB", digits=1),
    Column("encoder_ms", "encoder ms", digits=0),
    Column("token_ms", "ms/token", digits=2),
    Column("real_time", "real-time factor", digits=3),
    Column("ram", "peak RAM MB", digits=0),
)
_NOTE = (Column("note", ""),)


@dataclass(frozen=True)
class Section:
    """The results of one model.

    Attributes:
        title: description of the model.
        exported: how our bundle came to be; None if it did not.
        rows: rows by the keys of their entries.
        failures: reasons why other rows are missing, by the keys of their entries.
    """

    title: str
    exported: Dated[Made] | None
    rows: Mapping[str, Dated[Row]]
    failures: Mapping[str, str]


def page(
    sections: Mapping[str, Section],
    speech: Speech,
    origin: Origin,
    normalizer: Normalizer,
    arguments: Sequence[str],
) -> str:
    """Returns the page in Markdown.

    Args:
        sections: the results by the names of the models.
        speech: the recordings that every row decoded.
        origin: what our rows depend on.
        normalizer: what texts pass before they are compared.
        arguments: arguments of the command.
    """
    days = sorted({d.day for section in sections.values() for d in section.rows.values()})
    versions = {
        f"{package} {version}"
        for section in sections.values()
        for dated in section.rows.values()
        for package, version in dated.result.versions.items()
    }
    parts = [_preface(speech, origin, arguments, days, sorted(versions))]
    for name, section in sections.items():
        parts += _section(name, section, speech, normalizer)
    return "\n".join(parts)


def command(arguments: Sequence[str]) -> str:
    """Returns the command line; paths are shortened to their last name."""
    shown = [Path(a).name if os.sep in a else a for a in arguments]
    return shlex.join(["python", "-m", "tests.benchmarks.real", *shown])


def _preface(
    speech: Speech,
    origin: Origin,
    arguments: Sequence[str],
    days: Sequence[str],
    versions: Sequence[str],
) -> str:
    first, *_ = speech.held_out
    counts = ", ".join(f"{len(part)} of `{name}`" for name, part in speech.held_out.items())
    short = f" A short run: {speech.left_over} recordings are left out." if speech.left_over else ""
    scorers = (f"{name} {importlib.metadata.version(name)}" for name in _SCORERS)
    packages = ", ".join(dict.fromkeys((*origin.packages.split(", "), *versions, *scorers)))
    return f"""# Trained weights and real speech

`{command(arguments)}`, {" to ".join(dict.fromkeys((days[0], days[-1]))) if days else "no row yet"},
commit {_commit()}, {origin.machine}, {packages}.{short}

Every row decodes the same {len(speech.recordings)} recordings one by one on one thread: {counts}.
{len(speech.calibration)} others of `{first}`, evenly spaced, calibrated the variants and were
compared before the export and before each variant was written; no row is measured on them, float's
neither. Ours and the rivals compute with the same weights, which are stored in float16.

WER is the word error rate after Whisper's normaliser for English; intervals are bootstrap intervals
over the recordings. Float is our `fp32`, for beams `fp32-cpu` with the same beams. A row holds if
the interval of its difference to float stays below {MOST_POINTS:g} points; otherwise it is marked
{NOT_SHOWN}. Tokens are compared index by index. Bits per weight are what the step graph stores,
with scales and with tables that it has in two forms, per weight of float's. Encoder and token times
are medians; features are not part of them, and the rivals' are made by transformers. The rows run
one after another, so other work on the machine changes one row's times more than another's. MB are
the encoder and the step of a variant with their weights, and a rival's file of weights. Peak RAM is
that of the whole process.
"""


def _commit() -> str:
    """Returns the commit of the repository, and whether files differ from it."""
    try:
        done = [
            subprocess.run(["git", "-C", str(ROOT), *a], capture_output=True, text=True, check=True)
            for a in (("rev-parse", "--short", "HEAD"), ("status", "--porcelain"))
        ]
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done[0].stdout.strip() + (" with changes" if done[1].stdout.strip() else "")


def _section(name: str, section: Section, speech: Speech, normalizer: Normalizer) -> Iterator[str]:
    yield f"## {name}: {section.title}\n"
    if section.exported is not None:
        yield f"`hybrid-deploy export` said: {section.exported.result.line}.\n"
    begin = 0
    for folder, recordings in speech.held_out.items():
        end = begin + len(recordings)
        scores = _scores(section, recordings, slice(begin, end), normalizer)
        yield f"### {name} on {len(recordings)} recordings of {folder}\n"
        if len(recordings) < FEW_INPUTS + 1:
            yield "So few recordings show little: read the intervals, not the numbers.\n"
        columns = _ACCURACY if begin else (*_ACCURACY, *_COST, *_NOTE)
        records = [_record(e, section, scores.get(e.key), slice(begin, end)) for e in ENTRIES]
        yield render(records, columns, "md")
        if not begin:
            yield from _activations(section, scores, slice(begin, end))
            yield from _remarks(section)
        begin = end


def _scores(
    section: Section, recordings: Sequence[Recording], part: slice, normalizer: Normalizer
) -> dict[str, Score]:
    texts = [recording.text for recording in recordings]
    scores = {}
    for entry in ENTRIES:
        if entry.key in section.rows:
            files = _files(section, entry, part)
            reference = reference_of(entry)
            floats = _files(section, reference, part) if reference.key in section.rows else None
            scores[entry.key] = score(texts, files, floats, normalizer)
    return scores


def _files(section: Section, entry: Entry, part: slice) -> Sequence[DecodedFile]:
    return section.rows[entry.key].result.files[part]


def _record(
    entry: Entry, section: Section, measured: Score | None, part: slice
) -> dict[str, object]:
    if measured is None:
        return {"who": entry.title, "note": section.failures.get(entry.key, "not run")}
    row, times = section.rows[entry.key].result, speed(_files(section, entry, part))
    record: dict[str, object] = {
        "who": entry.title,
        "wer": measured.wer_percent,
        "interval": _shown(measured.interval),
        "verdict": _verdict(entry, measured),
        "bits": row.decoder_bits,
        "size": row.size_mb,
        "encoder_ms": times.encoder_ms,
        "token_ms": times.token_ms,
        "real_time": times.real_time_factor,
        "ram": row.peak_mb,
        "note": "REFUSED by quantize, see below" if row.remark else "",
    }
    if entry != reference_of(entry) and measured.change and measured.agreement:
        record |= {
            "change": measured.change.points,
            "change_interval": _shown(measured.change.interval, "+"),
            "tokens": 100 * measured.agreement.token_share,
            "texts": f"{measured.agreement.same_sequences} of {measured.agreement.sequences}",
        }
    return record


def _verdict(entry: Entry, measured: Score) -> str | None:
    if entry == reference_of(entry):
        return "float"
    if measured.change is None:  # float was not run
        return None
    return HOLDS if measured.holds else NOT_SHOWN


def _shown(interval: Interval | None, sign: str = "") -> str | None:
    return None if interval is None else f"{interval.low:{sign}.2f} to {interval.high:{sign}.2f}"


def _activations(section: Section, scores: Mapping[str, Score], part: slice) -> Iterator[str]:
    """Compares an encoder of static with one of dynamic activations, if both rows are there."""
    cells = []
    for title, variant in (("static", STATIC), ("dynamic", DYNAMIC)):
        entry = Entry(OURS, variant)
        measured = scores.get(entry.key)
        if measured is None or measured.change is None:
            return
        encoder_ms = speed(_files(section, entry, part)).encoder_ms
        cells.append(
            f"{title} WER {measured.wer_percent:.2f} % ({measured.change.points:+.2f} points, "
            f"{_shown(measured.change.interval, '+')}), encoder {encoder_ms:.0f} ms"
        )
    float_ms = speed(_files(section, FLOAT, part)).encoder_ms
    yield (
        f"Activations of an 8-bit encoder beside a float decoder: {'; '.join(cells)}; float "
        f"{float_ms:.0f} ms. Dynamic is ONNX Runtime's `quantize_dynamic` of our encoder's "
        f"products (`{DYNAMIC}`). The product's `int8-cpu` has static ones (`{STATIC}`).\n"
    )


def _remarks(section: Section) -> Iterator[str]:
    """Lists what the accuracy gate of `quantize` said of the variants that it refused."""
    remarks = {
        entry.form: section.rows[entry.key].result.remark
        for entry in ENTRIES
        if entry.key in section.rows and section.rows[entry.key].result.remark
    }
    if remarks:
        yield "Refused by `quantize`, and written with `--max-drop 100` for this page alone:\n"
        yield "\n".join(f"- `{form}`: {remark}" for form, remark in remarks.items()) + "\n"
