"""Makes export jobs of the reference models, and writes lines as image files."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from hybrid_deploy.bundle.input_specs import ImageInput
from hybrid_deploy.bundle.manifest import (
    DimRange,
    GenerationDefaults,
    Vocabulary,
)
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
from hybrid_deploy.labels import LABELS_FILE
from hybrid_deploy.runtime.preprocess.image import batch_images

_GOLDEN_LINES = 8
_CHECK_BATCH = 20
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
    """Returns the job of the model whose memory has one token for every 8 pixels of width."""
    return line_job(load_reference("feature-map"), "digits-feature-map")


def pooled() -> ExportJob:
    """Returns the job of the model whose memory is one pooled token."""
    return line_job(load_reference("pooled"), "digits-pooled")


def line_job(model: LineReader, name: str) -> ExportJob:
    """Returns the job of any model that reads lines of digits.

    Args:
        model: model in eval mode.
        name: name of the model in its bundle.
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
    """Returns the held-out lines, the same at every call."""
    return compose_lines("test", TEST_LINES, TEST_SEED)


def write_lines(folder: Path, split: Split, count: int, seed: int = TEST_SEED) -> list[Path]:
    """Writes lines as PNG files, and their texts as labels.csv beside them.

    Args:
        folder: folder of the files; it is created if missing.
        split: scans to draw from.
        count: number of lines.
        seed: seed of the lines.

    Returns:
        The paths of the PNG files, in the order of the labels.
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
    """Returns the image of a line as the content of a PNG file."""
    content = io.BytesIO()
    Image.fromarray(line.image).save(content, format="PNG")
    return content.getvalue()


def _batches(lines: Sequence[Line]) -> list[Inputs]:
    images = [Image.fromarray(line.image) for line in lines]
    return [
        batch_images(images[start : start + _CHECK_BATCH], PREPROCESS)
        for start in range(0, len(images), _CHECK_BATCH)
    ]
