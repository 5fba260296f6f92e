"""Quantizes one model with our library and with others, and measures every result."""

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
_DIVERGENCE_INPUTS, _TIMED_INPUTS = 128, 16
_CELL_LETTERS = 100  # longer texts are cut in the table; the JSON has them in full
Row = dict[str, object]


@dataclass(frozen=True)
class Setting:
    """Settings of a comparison.

    Attributes:
        bundle: folder of the float bundle; the comparison works on a copy.
        samples: folder of typical inputs to calibrate with.
        lines: folder of other inputs with a labels.csv; None if there are no labels.
        python: path of the Python of an environment with modelopt; None leaves modelopt out.
        ours: our precisions; a mix is written `encoder+decoder`.
        attempts: options of the rivals.
        steps: largest number of decoding steps that the rivals calibrate with.
        rounds: number of timing rounds; each times every variant once.
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
    """Quantizes a model in every way and returns one row for each, the float variant first.

    A row's `status` is `ok` or the reason of a failure. Sizes are those of encoder and step;
    prefill is not compared.
    """
    with tempfile.TemporaryDirectory(prefix="rivals-") as name:
        folder = Path(name).resolve()
        shutil.copytree(setting.bundle, folder / "bundle")
        copy = open_bundle(folder / "bundle")
        rows: dict[str, Row] = {FLOAT_VARIANT: {"who": "hybrid-deploy", "options": FLOAT_VARIANT}}
        rows |= _quantize_ours(copy, setting.ours, setting.samples)
        attempts = [a for a in setting.attempts if a.rival != "modelopt" or setting.python]
        if attempts:
            rows |= _quantize_with_rivals(copy, _workshop(folder, copy, setting), attempts)
        copy = open_bundle(copy.folder)
        labels = [] if setting.lines is None else load_labels(setting.lines)
        inputs = _inputs(copy, setting.lines or setting.samples, _DIVERGENCE_INPUTS)
        teacher = Teacher(copy, FLOAT_VARIANT, inputs, threads=1)
        sessions = dict(_measured_sessions(copy, rows, labels, teacher))
        timed = _inputs(copy, setting.samples, _TIMED_INPUTS)
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
    """Returns the version of every compared library, and of those that they run on."""
    packages = ("onnxruntime", "onnx", "tensorrt-rtx")
    installed = {package: importlib.metadata.version(package) for package in packages}
    if python is not None:
        code = (
            "import importlib.metadata as m; print(*map(m.version, ['nvidia-modelopt', 'torch']))"
        )
        printed = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
        installed |= dict(zip(("nvidia-modelopt", "torch"), printed.stdout.split(), strict=True))
    return installed


def _workshop(folder: Path, bundle: Bundle, setting: Setting) -> Workshop:
    """Records the calibration data of the rivals and returns the place where their jobs run."""
    samples = open_samples(setting.samples, bundle.manifest.preprocess, bundle.folder)
    calls = record_calls(bundle, FLOAT_VARIANT, samples, setting.steps)
    pythons = {"onnxruntime": Path(sys.executable)}
    if setting.python is not None:
        pythons["modelopt"] = setting.python
    return Workshop(folder, bundle, FLOAT_VARIANT, calls, pythons)


def _quantize_ours(bundle: Bundle, precisions: Sequence[str], samples: Path) -> dict[str, Row]:
    rows: dict[str, Row] = {}
    for precision in precisions:
        rows[precision] = {"who": "hybrid-deploy", "options": precision}
        _report(f"hybrid-deploy {precision}")
        try:
            encoder, plus, decoder = precision.partition("+")
            if plus:
                quantize_bundle(
                    bundle.folder, None, samples, encoder=encoder, decoder=decoder, force=True
                )
            else:
                quantize_bundle(bundle.folder, precision, samples, force=True)
        except HybridDeployError as error:
            rows[precision]["status"] = _first_line(error)
    return rows


def _quantize_with_rivals(
    bundle: Bundle, workshop: Workshop, attempts: Sequence[Attempt]
) -> dict[str, Row]:
    rows: dict[str, Row] = {}
    for number, attempt in enumerate(attempts, 1):
        name = f"{attempt.rival}-{number}"
        rows[name] = {"who": attempt.rival, "options": attempt.options}
        _report(f"{attempt.rival} {attempt.options}")
        try:
            encoder, step = (workshop.quantize(attempt, role) for role in ROLES)
            add_variant(bundle, FLOAT_VARIANT, name, attempt.precision, encoder, step)
        except HybridDeployError as error:
            rows[name]["status"] = _first_line(error)
    return rows


def _measured_sessions(
    bundle: Bundle, rows: dict[str, Row], labels: Sequence[LabelledFile], teacher: Teacher
) -> Iterator[tuple[str, Session]]:
    """Measures size and accuracy into the rows; yields the sessions of variants that load."""
    reference = None
    for name in (name for name in rows if name in bundle.manifest.variants):
        _report(f"reading with {name}")
        rows[name]["size_mb"] = size_bytes(bundle, name) / 1e6
        rows[name]["operators"] = {role.value: operators(bundle, name, role) for role in ROLES}
        try:
            session = load(bundle, name)
            results = read_lines(session, labels)
            rows[name]["kl_millinats"] = 1e3 * teacher.divergence(session).kl_mean_nats
        except HybridDeployError as error:
            rows[name]["status"] = _first_line(error)
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
        _report(f"building {name} for {TARGET}")
        for role in ROLES:
            verdict = build(bundle, name, role, cache)
            rows[name][f"{role.value}_build"] = verdict.removeprefix(f"{name}/{role.value}: ")


def _inputs(bundle: Bundle, folder: Path, count: int) -> list[Inputs]:
    samples = open_samples(folder, bundle.manifest.preprocess, bundle.folder)
    return [samples[i] for i in range(min(len(samples), count))]


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]


def _cells(row: Row) -> Row:
    """Returns a row whose long texts are cut to the width of a cell; options are not cut."""
    texts = {key: text for key, text in row.items() if isinstance(text, str) and key != "options"}
    return row | {
        key: (text if len(text) <= _CELL_LETTERS else f"{text[: _CELL_LETTERS - 3]}...").replace(
            "|", "\\|"
        )
        for key, text in texts.items()
    }


def _report(text: str) -> None:
    click.echo(text, err=True)
