"""The models of the report: four trained digit readers, and one with the shape of Whisper tiny."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hybrid_deploy.export.export_job import ExportJob
from hybrid_deploy.export.exporter import run_export
from hybrid_deploy.export.reference.job import feature_map, pooled, write_lines
from tests.models.readers import whisper_shape
from tests.models.readers.jobs import deep, hybrid

_CALIBRATION_LINES, _HELD_OUT_LINES = 64, 600


@dataclass(frozen=True)
class Subject:
    """A model that is quantized.

    Attributes:
        title: description of the model in the report.
        bundle: folder of its float bundle.
        samples: folder of inputs to calibrate with.
        lines: folder of labelled inputs that training never saw; None if the weights are random.
    """

    title: str
    bundle: Path
    samples: Path
    lines: Path | None


_READERS: dict[str, tuple[str, Callable[[], ExportJob]]] = {
    "feature-map": ("CNN to a row of features, 2 decoder layers (the reference)", feature_map),
    "pooled": ("CNN pooled to one vector, 2 decoder layers (the reference)", pooled),
    "deep": ("ResNet-18-like encoder, 6 decoder layers", deep),
    "hybrid": ("CNN and 3 Transformer layers, 3 decoder layers", hybrid),
}
_SHAPE = "whisper-shape"
NAMES = (*_READERS, _SHAPE)


def make_subject(name: str, folder: Path) -> Subject:
    """Exports a model and writes its inputs into a folder, except for files already there."""
    bundle = folder / f"{name}.bundle"
    if name == _SHAPE:
        samples = folder / "noise"
        if not bundle.exists():
            whisper_shape.write(bundle, samples)
        return Subject(
            "Whisper tiny's shape, random weights: sizes and speed only", bundle, samples, None
        )
    samples, lines = folder / "calibration", folder / "lines"
    if not lines.exists():
        write_lines(samples, "train", _CALIBRATION_LINES)
        write_lines(lines, "test", _HELD_OUT_LINES)
    title, job = _READERS[name]
    if not bundle.exists():
        run_export(job(), bundle)
    return Subject(title, bundle, samples, lines)
