"""Reads the frames of videos from folders of pictures or animated pictures, and batches them."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageSequence

from hybrid_deploy.bundle.input_specs import FramesInput
from hybrid_deploy.errors import InputError
from hybrid_deploy.runtime.preprocess.hf_image_processor import batch_pixels
from hybrid_deploy.runtime.preprocess.image import check_pixels, load_image, picture_suffixes

_FILM_SUFFIXES = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpg", ".mpeg", ".webm"})


def load_frames(path: Path, max_frames: int) -> list[Image.Image]:
    """Reads at most `max_frames` frames of a video, at even distances.

    Args:
        path: a folder with one picture for each frame, in the order of their names; or an animated
            picture (GIF, PNG, WebP, TIFF).
        max_frames: largest number of frames.

    Raises:
        InputError: the path is neither, contains no frame, or is damaged.
    """
    if path.is_dir():
        suffixes = picture_suffixes()
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in suffixes)
        if not files:
            raise InputError(f"{path} holds no pictures; give a folder with a picture per frame")
        indices = evenly_spaced_indices(len(files), max_frames)
        return [load_image(files[index]) for index in indices]
    if path.suffix.lower() in _FILM_SUFFIXES:
        source, target = shlex.quote(str(path)), shlex.quote(path.stem)
        raise InputError(
            f"{path} is a film, which is not decoded here; make pictures of it with: "
            f"mkdir {target} && ffmpeg -i {source} {target}/%06d.png"
        )
    load_image(path, is_video=True)  # its errors name the damage
    with Image.open(path) as opened:
        check_pixels(opened, path)
        selected = set(evenly_spaced_indices(getattr(opened, "n_frames", 1), max_frames))
        try:
            frames = ImageSequence.Iterator(opened)
            return [frame.convert("RGB") for index, frame in enumerate(frames) if index in selected]
        except Exception as error:  # Pillow's readers raise any kind
            raise InputError(f"{path} is a damaged animation: {error}") from error


def evenly_spaced_indices(count: int, parts: int) -> list[int]:
    """Divides `count` frames into equal parts and returns the index of the middle of each part.

    Returns all indices if there are no more frames than parts.
    """
    if count <= parts:
        return list(range(count))
    return [(2 * part + 1) * count // (2 * parts) for part in range(parts)]


def batch_frames(
    videos: Sequence[Sequence[Image.Image]], spec: FramesInput
) -> dict[str, NDArray[Any]]:
    """Returns videos as one batch.

    Args:
        videos: frames of each video, at most `spec.frames`.
        spec: description of the model's input.

    Returns:
        The batch by input name, (batch, frames, channels, height, width) float32, or with
        `channels_first` (batch, channels, frames, height, width); and the mask by its name,
        (batch, frames) int64, if the model takes one.

    Raises:
        InputError: the frames have unequal sizes after the steps of `spec.picture`.
    """
    pixels = batch_pixels([frame for video in videos for frame in video], spec.picture)
    batch = np.zeros((len(videos), spec.frames, *pixels.shape[1:]), np.float32)
    mask = np.zeros((len(videos), spec.frames), np.int64)
    begin = 0
    for batch_row, mask_row, video in zip(batch, mask, videos, strict=True):
        batch_row[: len(video)] = pixels[begin : begin + len(video)]
        mask_row[: len(video)] = 1
        begin += len(video)
    if spec.channels_first:
        batch = np.ascontiguousarray(batch.swapaxes(1, 2))
    return {spec.name: batch} if spec.mask is None else {spec.name: batch, spec.mask: mask}
