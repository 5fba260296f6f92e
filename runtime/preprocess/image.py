"""Reads pictures from files and makes batches of text lines, as an `ImageInput` describes them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from hybrid_deploy.bundle.field_types import LARGEST_INPUT_PIXELS
from hybrid_deploy.bundle.input_specs import ImageInput
from hybrid_deploy.errors import InputError
from hybrid_deploy.input_files import check_file, read_errors

LARGEST_PIXELS = 100_000_000
"""Largest number of pixels of a picture, and of what a resize has between its two directions."""

LARGEST_SIDE = 200_000
"""Largest width or height of a picture: a resize holds numbers for every row and column."""

FORMATS = (
    "PNG", "JPEG", "BMP", "DIB", "GIF", "TIFF", "WEBP", "PPM", "JPEG2000",
    *(("AVIF",) if find_spec("PIL.AvifImagePlugin") else ()),  # from Pillow 11.3 on
    "ICO", "PCX", "TGA",
)  # fmt: skip
"""Pillow's names of the formats that are read, whatever the suffix of a file says.

Their readers start no program and open no other file, as that of EPS does, which runs Ghostscript.
"""

_SEVERAL_IN_ONE = {"MPO"}  # a photo of a phone, with a preview or a second view behind it
_16_BIT_FORMATS = {"PNG", "PPM"}  # Pillow may return their 16 bits in mode I
_BITS_PER_SAMPLE = 258  # TIFF tag
_CONVERTIBLE = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV"}
"""Pillow's modes of 8 bits that it converts to grey and to RGB."""


def load_image(path: Path) -> Image.Image:
    """Reads a picture and returns it decoded and upright, with 8 bits per channel.

    A camera's orientation (EXIF) is applied. Grey pictures of more than 8 bits are scaled, see
    `_eight_bits`. The file is closed.

    Args:
        path: the file.

    Raises:
        InputError: the file is missing, cannot be opened, is no picture of FORMATS, is damaged, has
            over 100 megapixels or a side of over 200,000, holds several pages or frames, or has
            values that no grey level stands for.
    """
    with open_picture(path) as image:
        _check_single(image, path)
        image.load()
        check_pixels(image, path)  # an icon may hold a larger picture than it declares
        upright = _eight_bits(ImageOps.exif_transpose(image), _declared_range(image), path)
        return upright if upright.mode in _CONVERTIBLE else upright.convert("RGB")


@contextmanager
def open_picture(path: Path) -> Iterator[Image.Image]:
    """Opens a picture of one of FORMATS, decodes nothing, and closes it at the end of the block.

    What Pillow raises in the block too, from TypeError to struct.error, is an error of this file.

    Raises:
        InputError: the file is missing, cannot be opened, is damaged, no picture or too large a
            one.
    """
    check_file(path)
    with warnings.catch_warnings(), read_errors(path, "is a damaged image"):
        warnings.simplefilter("ignore")  # of damage, which the error tells, and of size
        try:
            image = Image.open(path, formats=FORMATS)
        except UnidentifiedImageError as error:
            raise InputError(
                f"{path} is not an image of a kind that is read here; convert it to PNG or JPEG"
            ) from error
        with image:
            check_pixels(image, path)
            yield image


def _check_single(image: Image.Image, path: Path) -> None:
    """Refuses a file of several pictures at the second one; the others are not counted."""
    if getattr(image, "is_animated", False) and image.format not in _SEVERAL_IN_ONE:
        image.seek(1)  # fails if the second one is damaged, so that the message says that
        raise InputError(
            f"{path} holds several pictures (pages or frames), one was expected; split it"
        )


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
    values *= 255 / full
    return Image.fromarray(np.round(values, out=values).clip(0, 255, out=values).astype(np.uint8))


def picture_suffixes() -> frozenset[str]:
    """Returns the lower-case suffixes of the formats that are read, such as `.png`."""
    formats = Image.registered_extensions()
    return frozenset(suffix for suffix, kind in formats.items() if kind in FORMATS)


def check_pixels(image: Image.Image, path: Path) -> None:
    """Refuses a picture of over 100 megapixels, or a side of over 200,000, before it is decoded.

    Args:
        image: the opened picture.
        path: its file, for the message.

    Raises:
        InputError: the picture is larger.
    """
    size = f"{path} has {image.width}x{image.height} pixels"
    if image.width * image.height > LARGEST_PIXELS:
        raise InputError(f"{size}, over 100 million; scale it down")
    if max(image.size) > LARGEST_SIDE:
        raise InputError(f"{size}, over {LARGEST_SIDE:,} on a side; cut it into parts")


def resize_picture(
    image: Image.Image,
    size: tuple[int, int],
    resample: Image.Resampling,
    gap: float | None = None,
) -> Image.Image:
    """Returns a picture in a new size, which is checked before anything is allocated.

    Args:
        image: the picture.
        size: new width and height in pixels.
        resample: resampling filter.
        gap: argument `reducing_gap` of Pillow; None resizes in one go.

    Raises:
        InputError: the new picture has more pixels than an encoder's input may have; or the one
            between has over 100 megapixels: Pillow resizes the rows first, then the columns.
    """
    check_new_size(image.size, size)
    return image.resize(size, resample, reducing_gap=gap)


def check_new_size(size: tuple[int, int], new_size: tuple[int, int]) -> None:
    """Refuses a resize that needs too much RAM.

    Args:
        size: width and height of the picture in pixels.
        new_size: width and height that it would get.

    Raises:
        InputError: as `resize_picture`.
    """
    (_, height), (new_width, new_height) = size, new_size
    if new_width * new_height > LARGEST_INPUT_PIXELS or new_width * height > LARGEST_PIXELS:
        raise InputError(
            f"a picture of {size[0]}x{height} pixels would become {new_width}x{new_height}, which "
            "takes too much RAM; cut it into parts of other proportions"
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
    widths = [_resized_width(image, spec) for image in images]
    width = max(max(widths) + spec.margin, spec.min_width)
    width += -width % spec.width_multiple
    if width > spec.max_width:
        raise InputError(
            f"an image is {width} pixels wide at height {spec.height}, "
            f"the model takes {spec.max_width}; cut it into parts"
        )
    sizes = (len(images), spec.height, width, len(spec.mean))
    batch = np.full(sizes, spec.background, np.float32)
    mask = np.zeros((len(images), width), np.int64)
    for batch_row, mask_row, image, own_width in zip(batch, mask, images, widths, strict=True):
        batch_row[:, :own_width] = _pixels(image, own_width, spec)
        mask_row[:own_width] = 1
    batch /= np.float32(255)
    batch -= np.array(spec.mean, np.float32)
    batch /= np.array(spec.std, np.float32)
    picture = np.ascontiguousarray(batch.transpose(0, 3, 1, 2))
    return {spec.name: picture} if spec.mask is None else {spec.name: picture, spec.mask: mask}


def _resized_width(image: Image.Image, spec: ImageInput) -> int:
    """Returns the width of a picture in pixels after its resize."""
    return spec.width or max(1, round(image.width * spec.height / image.height))


def _pixels(image: Image.Image, width: int, spec: ImageInput) -> NDArray[np.uint8]:
    """Returns one picture, resized to the height and a width, (height, width, channels)."""
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        background = Image.new("RGBA", rgba.size, (spec.background,) * 3 + (255,))
        image = Image.alpha_composite(background, rgba)
    image = image.convert(spec.mode)
    if image.size != (width, spec.height):
        image = resize_picture(image, (width, spec.height), Image.Resampling.BILINEAR)
    return np.asarray(image, np.uint8).reshape(spec.height, width, len(spec.mean))
