"""Reads pictures from files and makes batches of text lines, as an `ImageInput` describes them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from hybrid_deploy.bundle.input_specs import ImageInput
from hybrid_deploy.errors import InputError

LARGEST_PIXELS = 100_000_000
"""Largest number of pixels of a picture."""


def load_image(path: Path) -> Image.Image:
    """Reads a picture and returns it decoded; the file is closed.

    Raises:
        InputError: the file is missing, is no picture, is damaged, or has over 100 megapixels.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist" if not path.exists() else f"{path} is no file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            opened = Image.open(path)
        with opened as image:
            check_pixels(image, path)
            image.load()
            copy: Image.Image = image.copy()
            return copy
    except UnidentifiedImageError as error:
        raise InputError(f"{path} is not an image that Pillow can read") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{path} is a damaged image: {error}") from error


def picture_suffixes() -> frozenset[str]:
    """Returns the lower-case suffixes of the files that Pillow reads, such as `.png`."""
    formats = Image.registered_extensions()
    return frozenset(suffix for suffix, kind in formats.items() if kind in Image.OPEN)


def check_pixels(image: Image.Image, path: Path) -> None:
    """Refuses a picture of over 100 megapixels before it is decoded.

    Args:
        image: the opened picture.
        path: its file, for the message.

    Raises:
        InputError: the picture is larger.
    """
    if image.width * image.height > LARGEST_PIXELS:
        raise InputError(
            f"{path} has {image.width}x{image.height} pixels, over 100 million; scale it down"
        )


def batch_images(images: Sequence[Image.Image], spec: ImageInput) -> dict[str, NDArray[Any]]:
    """Returns pictures as one batch, padded on the right to one width.

    That is the width of the widest picture and its margin, enlarged as `spec` asks.

    Args:
        images: the pictures, in any mode.
        spec: description of the model's input.

    Returns:
        The batch by input name, (batch, channels, height, width) float32; and the mask by its name,
        (batch, width) int64, if the model takes one.

    Raises:
        InputError: a picture is wider than the model's input.
    """
    arrays = [_pixels(image, spec) for image in images]
    width = max(array.shape[1] for array in arrays) + spec.margin
    width = max(width, spec.min_width)
    width += -width % spec.width_multiple
    if width > spec.max_width:
        raise InputError(
            f"an image is {width} pixels wide at height {spec.height}, "
            f"the model takes {spec.max_width}; cut it into parts"
        )
    channels = len(spec.mean)
    batch = np.full((len(arrays), spec.height, width, channels), spec.background, np.float32)
    mask = np.zeros((len(arrays), width), np.int64)
    for batch_row, mask_row, array in zip(batch, mask, arrays, strict=True):
        batch_row[:, : array.shape[1]] = array
        mask_row[: array.shape[1]] = 1
    mean, std = (np.array(values, np.float32) for values in (spec.mean, spec.std))
    normalized = (batch / np.float32(255) - mean) / std
    picture = np.ascontiguousarray(normalized.transpose(0, 3, 1, 2))
    return {spec.name: picture} if spec.mask is None else {spec.name: picture, spec.mask: mask}


def _pixels(image: Image.Image, spec: ImageInput) -> NDArray[np.uint8]:
    """Returns one picture, resized to the height, (height, width, channels)."""
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        background = Image.new("RGBA", rgba.size, (spec.background,) * 3 + (255,))
        image = Image.alpha_composite(background, rgba)
    image = image.convert(spec.mode)
    width = spec.width or max(1, round(image.width * spec.height / image.height))
    if image.size != (width, spec.height):
        image = image.resize((width, spec.height), Image.Resampling.BILINEAR)
    return np.asarray(image, np.uint8).reshape(spec.height, width, len(spec.mean))
