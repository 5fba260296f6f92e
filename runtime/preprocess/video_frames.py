"""Reads the frames of videos from folders of pictures or animated pictures, and batches them."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageSequence

from hybrid_deploy.bundle.input_specs import FramesInput
from hybrid_deploy.errors import InputError
from hybrid_deploy.runtime.preprocess.hf_image_processor import (
    after_steps,
    pixel_values,
    stack_pixels,
)
from hybrid_deploy.runtime.preprocess.image import load_image, open_picture, picture_suffixes

LARGEST_FRAMES = 10_000
"""Largest number of frames of an animated picture."""

_FILM_SUFFIXES = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpg", ".mpeg", ".webm"})


def load_frames(path: Path, max_frames: int) -> Iterator[Image.Image]:
    """Reads at most `max_frames` frames of a video, at even distances, each when it is needed.

    Args:
        path: a folder with one picture for each frame, in the order of their names; or an animated
            picture (GIF, PNG, WebP, TIFF).
        max_frames: largest number of frames.

    Raises:
        InputError: the path is neither, contains no frame, is damaged, or has over 10,000 frames.
    """
    if path.is_dir():
        suffixes = picture_suffixes()
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in suffixes)
        if not files:
            raise InputError(f"{path} holds no pictures; give a folder with a picture per frame")
        indices = evenly_spaced_indices(len(files), max_frames)
        yield from (load_image(files[index]) for index in indices)
        return
    if path.suffix.lower() in _FILM_SUFFIXES:
        source, target = shlex.quote(str(path)), shlex.quote(path.stem)
        raise InputError(
            f"{path} is a film, which is not decoded here; make pictures of it with: "
            f"mkdir {target} && ffmpeg -i {source} {target}/%06d.png"
        )
    with open_picture(path) as image:
        selected = set(evenly_spaced_indices(_count_frames(image, path), max_frames))
        frames = enumerate(ImageSequence.Iterator(image))
        yield from (frame.convert("RGB") for index, frame in frames if index in selected)


def _count_frames(image: Image.Image, path: Path) -> int:
    """Returns the number of frames of an opened picture; a TIFF file is read page by page.

    Pillow looks for each page of a TIFF file among all before it, so that counting them all takes
    as long as their square.

    Raises:
        InputError: there are over 10,000.
    """
    count = getattr(image, "n_frames", 1) if image.format != "TIFF" else _count_pages(image)
    if count > LARGEST_FRAMES:
        raise InputError(f"{path} holds over {LARGEST_FRAMES:,} frames; cut it into parts")
    return int(count)


def _count_pages(image: Image.Image) -> int:
    """Returns the number of pages of a TIFF file; it stops at the first one too many."""
    count = 1
    with suppress(EOFError):
        while count <= LARGEST_FRAMES:
            image.seek(count)
            count += 1
    image.seek(0)
    return count


def evenly_spaced_indices(count: int, parts: int) -> list[int]:
    """Divides `count` frames into equal parts and returns the index of the middle of each part.

    Returns all indices if there are no more frames than parts.
    """
    if count <= parts:
        return list(range(count))
    return [(2 * part + 1) * count // (2 * parts) for part in range(parts)]


def batch_frames(
    videos: Iterable[Iterable[Image.Image]], spec: FramesInput
) -> dict[str, NDArray[Any]]:
    """Returns videos as one batch.

    Args:
        videos: frames of each video, at most `spec.frames`; each becomes an array before the next
            one is taken, so that one at a time is held in its full size.
        spec: description of the model's input.

    Returns:
        The batch by input name, (batch, frames, channels, height, width) float32, or with
        `channels_first` (batch, channels, frames, height, width); and the mask by its name,
        (batch, frames) int64, if the model takes one.

    Raises:
        InputError: the frames have unequal sizes after the steps of `spec.picture`.
    """
    picture = spec.picture
    arrays = [[pixel_values(after_steps(frame, picture), picture) for frame in v] for v in videos]
    pixels = stack_pixels([array for video in arrays for array in video])
    batch = np.zeros((len(arrays), spec.frames, *pixels.shape[1:]), np.float32)
    mask = np.zeros((len(arrays), spec.frames), np.int64)
    begin = 0
    for batch_row, mask_row, video in zip(batch, mask, arrays, strict=True):
        batch_row[: len(video)] = pixels[begin : begin + len(video)]
        mask_row[: len(video)] = 1
        begin += len(video)
    if spec.channels_first:
        batch = np.ascontiguousarray(batch.swapaxes(1, 2))
    return {spec.name: batch} if spec.mask is None else {spec.name: batch, spec.mask: mask}
