"""Reads pictures from files and makes batches of text lines, as an `ImageInput` describes them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from hybrid_deploy.bundle.input_specs import ImageInput
from hybrid_deploy.errors import InputError

LARGEST_PIXELS = 100_000_000
"""Largest number of pixels of a picture."""


_SEVERAL_IN_ONE = {"MPO"}  # a photo of a phone, with a preview or a second view behind it
_16_BIT_FORMATS = {"PNG", "PPM"}  # Pillow may return their 16 bits in mode I
_BITS_PER_SAMPLE = 258  # TIFF tag


def load_image(path: Path, *, is_video: bool = False) -> Image.Image:
    """Reads a picture and returns it decoded and upright, with 8 bits per channel.

    A camera's orientation (EXIF) is applied. Grey pictures of more than 8 bits are scaled, see
    `_eight_bits`. The file is closed.

    Args:
        path: the file.
        is_video: whether the file may hold several pictures, of which the first is returned.

    Raises:
        InputError: the file is missing, is no picture, is damaged, has over 100 megapixels, holds
            several pages or frames, or has values that no grey level stands for.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist" if not path.exists() else f"{path} is no file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damage, which the error tells, and of size
            return _decoded(path, is_video)
    except UnidentifiedImageError as error:
        raise InputError(f"{path} is not an image that Pillow can read") from error
    except InputError:
        raise
    except Exception as error:  # Pillow's readers raise any kind, from TypeError to struct.error
        raise InputError(f"{path} is a damaged image: {error}") from error


def _decoded(path: Path, is_video: bool) -> Image.Image:
    with Image.open(path) as image:
        check_pixels(image, path)
        count = getattr(image, "n_frames", 1)
        if count > 1 and not is_video and image.format not in _SEVERAL_IN_ONE:
            raise InputError(
                f"{path} holds {count} pictures (pages or frames), one was expected; split it"
            )
        image.load()
        return _eight_bits(ImageOps.exif_transpose(image), _declared_range(image), path)


def _declared_range(image: Image.Image) -> float | None:
    """Returns the largest grey level that a file can hold; None if its form declares none."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in _16_BIT_FORMATS):
        tags = getattr(image, "tag_v2", {})
        return float((1 << tags.get(_BITS_PER_SAMPLE, (16,))[0]) - 1)
    return None


def _eight_bits(image: Image.Image, full: float | None, path: Path) -> Image.Image:
    """Returns a picture with 8 bits per channel; one that has them is returned as it is.

    Whole numbers of 32 bits and floats declare no range: the smallest one of 0..1 (floats alone),
    0..255 and 0..65535 that holds all values is taken.

    Args:
        image: the picture.
        full: largest grey level of the file; None if it declares none.
        path: its file, for the message.

    Raises:
        InputError: a value is negative, NaN or over 65535.
    """
    if not image.mode.startswith(("I", "F")):
        return image
    values = np.asarray(image).astype(np.float64)
    if full is None:
        ranges = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0)
        full = next((full for full in ranges if values.max(initial=0) <= full), None)
    if full is None or not (values >= 0).all():
        raise InputError(
            f"{path} has grey levels from {values.min():g} to {values.max():g}; "
            "0 to 1, 255 or 65535 were expected: scale it to 8 bits"
        )
    return Image.fromarray(np.round(values * (255 / full)).clip(0, 255).astype(np.uint8))


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
