"""Videos: frames read from a folder of pictures or an animated picture, and made into batches."""

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

_FILMS = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpg", ".mpeg", ".webm"})


def load_frames(path: Path, most: int) -> list[Image.Image]:
    """Reads at most so many frames, at even distances.

    Args:
        path: a folder of pictures in the order of their names, or an animated picture (GIF, PNG,
            WebP, TIFF).
        most: how many frames are wanted.

    Raises:
        InputError: it is neither, holds no frame, or is damaged.
    """
    if path.is_dir():
        known = picture_suffixes()
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in known)
        if not files:
            raise InputError(f"{path} holds no pictures; give a folder with a picture per frame")
        return [load_image(files[place]) for place in evenly_spaced_indices(len(files), most)]
    if path.suffix.lower() in _FILMS:
        source, target = shlex.quote(str(path)), shlex.quote(path.stem)
        raise InputError(
            f"{path} is a film, which is not decoded here; make pictures of it with: "
            f"mkdir {target} && ffmpeg -i {source} {target}/%06d.png"
        )
    load_image(path)  # says what is wrong with it
    with Image.open(path) as opened:
        check_pixels(opened, path)
        places = set(evenly_spaced_indices(getattr(opened, "n_frames", 1), most))
        try:
            frames = ImageSequence.Iterator(opened)
            return [frame.convert("RGB") for number, frame in enumerate(frames) if number in places]
        except (OSError, SyntaxError, ValueError) as error:
            raise InputError(f"{path} is a damaged animation: {error}") from error


def evenly_spaced_indices(count: int, most: int) -> list[int]:
    """Returns the middle of each of `most` parts of equal length; all places if there are fewer."""
    if count <= most:
        return list(range(count))
    return [(2 * part + 1) * count // (2 * most) for part in range(most)]


def batch_frames(
    videos: Sequence[Sequence[Image.Image]], spec: FramesInput
) -> dict[str, NDArray[Any]]:
    """Returns videos as one batch.

    Returns:
        (batch, frames, channels, height, width) float32, or with the channels before the frames;
        and the mask (batch, frames) int64 if there is one.

    Raises:
        InputError: frames end up with unequal sizes.
    """
    every = batch_pixels([frame for video in videos for frame in video], spec.picture)
    batch = np.zeros((len(videos), spec.frames, *every.shape[1:]), np.float32)
    mask = np.zeros((len(videos), spec.frames), np.int64)
    begin = 0
    for row, seen, video in zip(batch, mask, videos, strict=True):
        row[: len(video)] = every[begin : begin + len(video)]
        seen[: len(video)] = 1
        begin += len(video)
    if spec.channels_first:
        batch = np.ascontiguousarray(batch.swapaxes(1, 2))
    return {spec.name: batch} if spec.mask is None else {spec.name: batch, spec.mask: mask}
