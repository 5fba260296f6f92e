"""Makes batches of all inputs that Pillow reads; imported only when a picture arrives."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

from numpy.typing import NDArray

from hybrid_deploy.bundle.input_specs import (
    FramesInput,
    ImageInput,
    PatchesInput,
    PixelsInput,
    TilesInput,
)
from hybrid_deploy.runtime.preprocess.hf_image_processor import batch_pixels
from hybrid_deploy.runtime.preprocess.image import batch_images, load_image
from hybrid_deploy.runtime.preprocess.image_patches import batch_patches
from hybrid_deploy.runtime.preprocess.image_tiles import batch_tiles
from hybrid_deploy.runtime.preprocess.video_frames import batch_frames, load_frames

PictureInput: TypeAlias = ImageInput | PixelsInput | TilesInput | FramesInput | PatchesInput


def batch_pictures(paths: Sequence[Path], spec: PictureInput) -> dict[str, NDArray[Any]]:
    """Reads pictures, or frames of videos, and returns one batch of them.

    Args:
        paths: a picture or a video for each sequence.
        spec: description of the model's input.

    Returns:
        The batch by input name, and the mask by its name if the model takes one.

    Raises:
        InputError: a file is missing, damaged or too large, or the pictures form no batch.
    """
    if isinstance(spec, FramesInput):
        return batch_frames((load_frames(path, spec.frames) for path in paths), spec)
    pictures = [load_image(path) for path in paths]
    if isinstance(spec, ImageInput):
        return batch_images(pictures, spec)
    if isinstance(spec, PixelsInput):
        return {spec.name: batch_pixels(pictures, spec)}
    if isinstance(spec, TilesInput):
        return {spec.name: batch_tiles(pictures, spec)}
    return batch_patches(pictures, spec)
