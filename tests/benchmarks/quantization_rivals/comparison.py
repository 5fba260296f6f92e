"""One model quantized by us and by others, and what is measured of every result."""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from hybrid_deploy.bundle.bundle import Bundle, open_bundle
from hybrid_deploy.calibration.evaluation.logit_divergence import Teacher
from hybrid_deploy.calibration.quantize import quantize_bundle
from hybrid_deploy.calibration.samples.samples import Inputs, open_samples
from hybrid_deploy.contract import FLOAT_VARIANT
from hybrid_deploy.errors import HybridDeployError
from hybrid_deploy.labels import (
    LabelledFile,
    load_labels,
)
from hybrid_deploy.report import Column, render
from hybrid_deploy.runtime.engines.cache import EngineCache
from hybrid_deploy.runtime.session.session import Session
from tests.benchmarks.quantization_rivals.attempts import ATTEMPTS, Attempt
from tests.benchmarks.quantization_rivals.measure import (
    TARGET,
    accuracy_of,
    build,
    load,
    read_lines,
    time_interleaved,
)
from tests.benchmarks.quantization_rivals.recording import ROLES, record_calls
from tests.benchmarks.quantization_rivals.variants import add_variant, operators, size_bytes
from tests.benchmarks.quantization_rivals.workshop import Workshop

OURS = (
    "int8",
    "int8-full",
    "int8-cpu",
    "int8-weights",
    "int4-weights",
    "int8-cpu+int4-weights",
    "fp8",
)
COLUMNS = (
    Column("who", "by"),
    Column("options", "options"),
    Column("cer_percent", "CER %", digits=2),
    Column("same_tokens_percent", "same tokens %", digits=2),
    Column("kl_millinats", "KL, 0.001 nats", digits=3),
    Column("size_mb", "MB", digits=3),
    Column("encoder_ms", "encoder ms", digits=2),
    Column("encoder_ratio", "of fp32", digits=2),
    Column("step_ms", "step ms", digits=3),
    Column("step_ratio", "of fp32", digits=2),
    Column("encoder_build", f"encoder, {TARGET}"),
    Column("step_build", f"step, {TARGET}"),
    Column("status", "status"),
)
_MOST_LOGITS, _MOST_TIMED = 128, 16  # inputs whose logits are compared, and that are timed
_WIDEST = 100  # characters of a cell; the JSON has all
Row = dict[str, object]


@dataclass(frozen=True)
class Setting:
    """What is compared.

    Attributes:
        bundle: the float bundle; it is copied, not changed.
        samples: folder of typical inputs, to calibrate with.
        lines: folder of other inputs with a labels.csv; None where the truth is not known.
        python: that of an environment with modelopt; None leaves modelopt out.
        ours: precisions of ours, a mix as `encoder+decoder`.
        attempts: what the rivals are asked for.
        steps: most decoding steps that the rivals calibrate with.
        rounds: how often all variants are timed in turn.
        tensorrt: whether encoder and step are built for TARGET.
    """

    bundle: Path
    samples: Path
    lines: Path | None
    python: Path | None = None
    ours: Sequence[str] = OURS
    attempts: Sequence[Attempt] = ATTEMPTS
    steps: int = 1000
    rounds: int = 300
    tensorrt: bool = True


def compare(setting: Setting) -> list[Row]:
    """Quantizes a model in every way and gives a row for each; who fails says so in its row.

    Sizes are of encoder and step; prefill is not compared.
    """
    with tempfile.TemporaryDirectory(prefix="rivals-") as name:
        folder = Path(name).resolve()
        shutil.copytree(setting.bundle, folder / "bundle")
        copy = open_bundle(folder / "bundle")
        rows: dict[str, Row] = {FLOAT_VARIANT: {"who": "hybrid-deploy", "options": FLOAT_VARIANT}}
        rows |= _ours(copy, setting.ours, setting.samples)
        attempts = [a for a in setting.attempts if a.rival != "modelopt" or setting.python]
        if attempts:
            given = open_samples(setting.samples, copy.manifest.preprocess, copy.folder)
            calls = record_calls(copy, FLOAT_VARIANT, given, setting.steps)
            pythons = {"onnxruntime": Path(sys.executable)}
            if setting.python is not None:
                pythons["modelopt"] = setting.python
            rows |= _theirs(copy, Workshop(folder, copy, FLOAT_VARIANT, calls, pythons), attempts)
        copy = open_bundle(copy.folder)
        labels = [] if setting.lines is None else load_labels(setting.lines)
        heard = _inputs(copy, setting.lines or setting.samples, _MOST_LOGITS)
        sessions = dict(_loaded(copy, rows, labels, Teacher(copy, FLOAT_VARIANT, heard, threads=1)))
        timed = _inputs(copy, setting.samples, _MOST_TIMED)
        times = time_interleaved(sessions, timed, setting.rounds)
        for variant, median in times.items():
            rows[variant] |= _timing(median, times[FLOAT_VARIANT])
        if setting.tensorrt:
            _build_all(copy, rows, EngineCache(folder / "engines"))
    return list(rows.values())


def table(rows: Sequence[Row], columns: Sequence[Column] = COLUMNS) -> str:
    """Returns rows as a Markdown table."""
    return render([_cells(row) for row in rows], columns, "md")


def versions(python: Path | None) -> dict[str, str]:
    """Returns the versions of all that was compared."""
    ours = ("onnxruntime", "onnx", "tensorrt-rtx")
    found = {package: importlib.metadata.version(package) for package in ours}
    if python is not None:
        ask = "import importlib.metadata as m; print(*map(m.version, ['nvidia-modelopt', 'torch']))"
        told = subprocess.run([python, "-c", ask], capture_output=True, text=True, check=True)
        found |= dict(zip(("nvidia-modelopt", "torch"), told.stdout.split(), strict=True))
    return found


def _ours(bundle: Bundle, precisions: Sequence[str], samples: Path) -> dict[str, Row]:
    rows: dict[str, Row] = {}
    for precision in precisions:
        rows[precision] = {"who": "hybrid-deploy", "options": precision}
        _say(f"hybrid-deploy {precision}")
        try:
            encoder, plus, decoder = precision.partition("+")
            if plus:
                quantize_bundle(
                    bundle.folder, None, samples, encoder=encoder, decoder=decoder, force=True
                )
            else:
                quantize_bundle(bundle.folder, precision, samples, force=True)
        except HybridDeployError as error:
            rows[precision]["status"] = _line(error)
    return rows


def _theirs(bundle: Bundle, workshop: Workshop, attempts: Sequence[Attempt]) -> dict[str, Row]:
    rows: dict[str, Row] = {}
    for number, attempt in enumerate(attempts, 1):
        name = f"{attempt.rival}-{number}"
        rows[name] = {"who": attempt.rival, "options": attempt.options}
        _say(f"{attempt.rival} {attempt.options}")
        try:
            encoder, step = (workshop.quantize(attempt, role) for role in ROLES)
            add_variant(bundle, FLOAT_VARIANT, name, attempt.precision, encoder, step)
        except HybridDeployError as error:
            rows[name]["status"] = _line(error)
    return rows


def _loaded(
    bundle: Bundle, rows: dict[str, Row], labels: Sequence[LabelledFile], teacher: Teacher
) -> Iterator[tuple[str, Session]]:
    """Fills in what needs no clock; gives the variants that run. The float one comes first."""
    reference = None
    for name in (name for name in rows if name in bundle.manifest.variants):
        _say(f"reading with {name}")
        rows[name]["size_mb"] = size_bytes(bundle, name) / 1e6
        rows[name]["operators"] = {role.value: operators(bundle, name, role) for role in ROLES}
        try:
            session = load(bundle, name)
            results = read_lines(session, labels)
            rows[name]["kl_millinats"] = 1e3 * teacher.divergence(session).kl_mean_nats
        except HybridDeployError as error:
            rows[name]["status"] = _line(error)
            continue
        reference = reference or results
        if labels:
            rows[name] |= accuracy_of(labels, results, reference)
        rows[name]["status"] = "ok"
        yield name, session


def _timing(ms: Mapping[str, float], reference: Mapping[str, float]) -> Row:
    return {
        **ms,
        "encoder_ratio": ms["encoder_ms"] / reference["encoder_ms"],
        "step_ratio": ms["step_ms"] / reference["step_ms"],
    }


def _build_all(bundle: Bundle, rows: dict[str, Row], cache: EngineCache) -> None:
    for name in (name for name in rows if name in bundle.manifest.variants):
        _say(f"building {name} for {TARGET}")
        for role in ROLES:
            verdict = build(bundle, name, role, cache)
            rows[name][f"{role.value}_build"] = verdict.removeprefix(f"{name}/{role.value}: ")


def _inputs(bundle: Bundle, folder: Path, most: int) -> list[Inputs]:
    samples = open_samples(folder, bundle.manifest.preprocess, bundle.folder)
    return [samples[i] for i in range(min(len(samples), most))]


def _line(error: Exception) -> str:
    return str(error).splitlines()[0]


def _cells(row: Row) -> Row:
    """Shortens what would make a table too wide: options stay whole, errors do not."""
    long = {key: text for key, text in row.items() if isinstance(text, str) and key != "options"}
    return row | {
        key: (text if len(text) <= _WIDEST else f"{text[: _WIDEST - 3]}...").replace("|", "\\|")
        for key, text in long.items()
    }


def _say(what: str) -> None:
    click.echo(what, err=True)
