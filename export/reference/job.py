"""The reference models as export jobs, and their lines as files."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from hybrid_deploy.accuracy import LABELS_FILE
from hybrid_deploy.bundle.manifest import DimRange, GenerationDefaults, ImageInput, Vocabulary
from hybrid_deploy.export.export_job import ExportJob, ModelSpec
from hybrid_deploy.export.model.dynamic_axes import DynamicAxis
from hybrid_deploy.export.model.interface import Inputs
from hybrid_deploy.export.reference.lines import (
    LINE_HEIGHT_PX,
    MIN_WIDTH_PX,
    READING_MARGIN_PX,
    TEST_LINES,
    TEST_SEED,
    WIDTH_MULTIPLE_PX,
    Line,
    Split,
    compose_lines,
)
from hybrid_deploy.export.reference.model import LineReader, load_reference
from hybrid_deploy.export.reference.vocabulary import END, MAX_LENGTH, PAD, START, VOCABULARY
from hybrid_deploy.runtime.preprocess.image import batch_images

_GOLDEN_LINES = 8
_CHECKED_TOGETHER = 20
_MAX_WIDTH_PX = 512

PREPROCESS = ImageInput(
    name="image",
    mode="L",
    height=LINE_HEIGHT_PX,
    width=None,
    width_multiple=WIDTH_MULTIPLE_PX,
    min_width=MIN_WIDTH_PX,
    max_width=_MAX_WIDTH_PX,
    margin=READING_MARGIN_PX,
    background=255,
    mean=(1.0,),
    std=(0.5,),
)


def feature_map() -> ExportJob:
    """Returns the model whose memory is a row of feature vectors."""
    return line_job(load_reference("feature-map"), "digits-feature-map")


def pooled() -> ExportJob:
    """Returns the model whose memory is one vector."""
    return line_job(load_reference("pooled"), "digits-pooled")


def line_job(model: LineReader, name: str) -> ExportJob:
    """Returns the job of any model that reads the lines.

    Args:
        model: In eval mode.
        name: Of the model, for its bundle.
    """
    lines = held_out_lines()
    width = DynamicAxis("width", DimRange(MIN_WIDTH_PX, 192, _MAX_WIDTH_PX))
    return ExportJob(
        model=model,
        example={"image": torch.zeros(1, 1, LINE_HEIGHT_PX, 128)},
        spec=ModelSpec(
            name=name,
            generation=GenerationDefaults(
                start_tokens=(START,), end_tokens=(END,), pad_token=PAD, max_length=MAX_LENGTH
            ),
            preprocess=PREPROCESS,
            vocabulary=Vocabulary(tokens=VOCABULARY, special=(PAD, START, END)),
            dynamic={"image": {3: width}},
        ),
        checks=_batches(lines),
        golden={f"{i:02d}.png": png(line) for i, line in enumerate(lines[:_GOLDEN_LINES])},
    )


def held_out_lines() -> list[Line]:
    """Returns the held-out lines, always the same."""
    return compose_lines("test", TEST_LINES, TEST_SEED)


def write_lines(folder: Path, split: Split, count: int, seed: int = TEST_SEED) -> list[Path]:
    """Writes lines as PNG files, with a labels.csv beside them.

    Returns:
        The files, in the order of the labels.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines = compose_lines(split, count, seed)
    paths = [folder / f"{number:04d}.png" for number in range(count)]
    for path, line in zip(paths, lines, strict=True):
        path.write_bytes(png(line))
    with (folder / LABELS_FILE).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["file", "text"])
        writer.writerows([path.name, line.text] for path, line in zip(paths, lines, strict=True))
    return paths


def png(line: Line) -> bytes:
    """Returns a line as the content of a PNG file."""
    content = io.BytesIO()
    Image.fromarray(line.image).save(content, format="PNG")
    return content.getvalue()


def _batches(lines: Sequence[Line]) -> list[Inputs]:
    images = [Image.fromarray(line.image) for line in lines]
    return [
        batch_images(images[start : start + _CHECKED_TOGETHER], PREPROCESS)
        for start in range(0, len(images), _CHECKED_TOGETHER)
    ]
