"""Carries out the steps of a Hugging Face image processor with Pillow.

The results equal those of the processors that use Pillow. The processors that use torchvision
resize 8-bit pixels with another arithmetic; some of their pixels differ by one grey level.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hybrid_deploy.bundle.field_types import LARGEST_INPUT_PIXELS
from hybrid_deploy.bundle.input_specs import PixelsInput
from hybrid_deploy.bundle.pixel_steps import (
    AlignLongAxis,
    CenterCrop,
    CropMargin,
    Pad,
    PixelStep,
    Resample,
    Resize,
    ResizeLongestEdge,
    ResizeShortestEdge,
    ResizeToGrid,
    ResizeToTiles,
    ResizeWithin,
    Thumbnail,
)
from hybrid_deploy.errors import InputError
from hybrid_deploy.runtime.preprocess.image import resize_picture

_IDEFICS_LONGEST = 4096  # pixels of the longer side


def batch_pixels(images: Sequence[Image.Image], spec: PixelsInput) -> NDArray[np.float32]:
    """Returns pictures as one batch.

    Args:
        images: the pictures, in any mode.
        spec: steps of the image processor.

    Returns:
        The batch, (batch, channels, height, width) float32.

    Raises:
        InputError: the pictures have unequal sizes after the steps, or one exceeds its padding.
    """
    return stack_pixels([pixel_values(after_steps(image, spec), spec) for image in images])


def stack_pixels(arrays: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Returns pictures, (channels, height, width) each, as one batch.

    Raises:
        InputError: they have unequal sizes.
    """
    sizes = sorted({array.shape[1:] for array in arrays})
    if len(sizes) > 1:
        raise InputError(
            f"pictures of unequal sizes ({_text(sizes[0])} and {_text(sizes[-1])} after "
            "resizing) do not form a batch; run them one by one"
        )
    return np.stack(arrays)


def after_steps(image: Image.Image, spec: PixelsInput) -> Image.Image:
    """Returns a picture of 8-bit values after all steps.

    Raises:
        InputError: it exceeds its padding, or becomes another size than the model takes.
    """
    image = image.convert(spec.mode)
    for step in spec.steps:
        image = _apply(step, image)
    return image


def pixel_values(image: Image.Image, spec: PixelsInput) -> NDArray[np.float32]:
    """Returns a picture of 8-bit values scaled and normalised, (channels, height, width).

    Raises:
        InputError: it has more pixels than an encoder's input may have.
    """
    if image.width * image.height > LARGEST_INPUT_PIXELS:
        raise InputError(
            f"a picture of {_text(image.size)} pixels is larger than any that a model takes, "
            f"{LARGEST_INPUT_PIXELS} pixels; scale it down"
        )
    pixels = np.asarray(image).reshape(image.height, image.width, -1)
    # Rounds as transformers does: scales in double precision, normalises in single precision.
    levels = np.arange(256) * (1.0 if spec.scale is None else spec.scale)
    values = levels.astype(np.float32)[pixels]
    if spec.mean:
        values -= np.array(spec.mean, np.float32)
        values /= np.array(spec.std, np.float32)
    return np.ascontiguousarray(values.transpose(2, 0, 1))


def _apply(step: PixelStep, image: Image.Image) -> Image.Image:
    if isinstance(step, CropMargin):
        return _crop_margin(image, step.threshold)
    if isinstance(step, AlignLongAxis):
        return _align_long_axis(image, step)
    if isinstance(step, Resize):
        return _resize(image, (step.width, step.height), step.resample)
    if isinstance(step, ResizeShortestEdge):
        return _resize(image, _shortest_edge(image, step), step.resample)
    if isinstance(step, ResizeWithin):
        factor = min(step.height / image.height, step.width / image.width)
        return _resize(
            image, (int(image.width * factor), int(image.height * factor)), step.resample
        )
    if isinstance(step, ResizeLongestEdge):
        return _resize(image, _longest_edge(image, step.edge), step.resample)
    if isinstance(step, ResizeToTiles):
        return _resize(image, whole_tiles(image.size, step.side), step.resample)
    if isinstance(step, ResizeToGrid):
        return _resize_to_grid(image, step)
    if isinstance(step, Thumbnail):
        return _resize(image, _thumbnail(image, step), step.resample, step.reducing_gap)
    if isinstance(step, Pad):
        return _pad(image, step)
    assert isinstance(step, CenterCrop)
    left, top = (image.width - step.width) // 2, (image.height - step.height) // 2
    return image.crop((left, top, left + step.width, top + step.height))


def _align_long_axis(image: Image.Image, step: AlignLongAxis) -> Image.Image:
    wide_into_tall = image.width > image.height and step.width < step.height
    tall_into_wide = image.width < image.height and step.width > step.height
    turn = wide_into_tall or tall_into_wide
    return image.transpose(Image.Transpose.ROTATE_270) if turn else image


def _pad(image: Image.Image, step: Pad) -> Image.Image:
    left, top = (step.width - image.width) // 2, (step.height - image.height) // 2
    if left < 0 or top < 0:
        size, padded = _text((image.height, image.width)), _text((step.height, step.width))
        raise InputError(f"a picture of {size} pixels does not fit the {padded} to be filled")
    return image.crop((-left, -top, step.width - left, step.height - top))


def _resize(
    image: Image.Image, size: tuple[int, int], resample: Resample, gap: float | None = None
) -> Image.Image:
    if size == image.size:
        return image
    width, height = (max(1, edge) for edge in size)
    return resize_picture(image, (width, height), Image.Resampling[resample.upper()], gap)


def _shortest_edge(image: Image.Image, step: ResizeShortestEdge) -> tuple[int, int]:
    """Returns the new (width, height), cut to whole pixels as transformers does."""
    shorter, longer = sorted(image.size)
    edge = exact_edge = float(step.edge)
    if step.longest is not None and longer / shorter * step.edge > step.longest:
        exact_edge = step.longest * shorter / longer
        edge = round(exact_edge)
    longest = int(exact_edge * longer / shorter)
    return (int(edge), longest) if image.width <= image.height else (longest, int(edge))


def _longest_edge(image: Image.Image, edge: int) -> tuple[int, int]:
    """Returns the new (width, height), the shorter side even, as Idefics3 does."""
    ratio = image.width / image.height
    if image.width >= image.height:
        height = int(edge / ratio)
        width, height = edge, max(height + height % 2, 1)
    else:
        width = int(edge * ratio)
        width, height = max(width + width % 2, 1), edge
    longest = max(width, height)
    if longest <= _IDEFICS_LONGEST:
        return width, height
    ratio = width / height
    if width >= height:
        return _IDEFICS_LONGEST, max(int(_IDEFICS_LONGEST / ratio), 1)
    return max(int(_IDEFICS_LONGEST * ratio), 1), _IDEFICS_LONGEST


def whole_tiles(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Returns the (width, height) of whole tiles that a picture is enlarged to.

    Args:
        size: width and height of the picture in pixels.
        side: height and width of a tile in pixels.
    """
    width, height = size
    ratio = width / height
    if width >= height:
        width = _multiple_above(width, side)
        return width, _multiple_above(int(width / ratio), side)
    height = _multiple_above(height, side)
    return _multiple_above(int(height * ratio), side), height


def _multiple_above(value: int, unit: int) -> int:
    return math.ceil(value / unit) * unit


def _resize_to_grid(image: Image.Image, step: ResizeToGrid) -> Image.Image:
    size = grid_size(image.size, step.unit, step.smallest_area, step.largest_area)
    if size != (step.width, step.height):
        raise InputError(
            f"a picture of {_text(image.size)} pixels becomes {_text(size)}, the model takes "
            f"{step.width}x{step.height}; crop or pad it to these proportions, or export with the "
            "--width and --height of such a picture"
        )
    return _resize(image, size, step.resample)


def grid_size(
    size: tuple[int, int], unit: int, smallest_area: int, largest_area: int
) -> tuple[int, int]:
    """Returns the (width, height) of the grid of patches that Qwen2-VL resizes a picture to.

    Args:
        size: width and height of the picture in pixels.
        unit: number of pixels that both sides become a multiple of.
        smallest_area: smallest number of pixels of the result.
        largest_area: largest number of pixels of the result.
    """
    width, height = (round(edge / unit) * unit for edge in size)
    area = size[0] * size[1]
    if width * height > largest_area:
        shrink = math.sqrt(area / largest_area)
        width, height = (max(unit, math.floor(edge / shrink / unit) * unit) for edge in size)
    elif width * height < smallest_area:
        enlarge = math.sqrt(smallest_area / area)
        width, height = (math.ceil(edge * enlarge / unit) * unit for edge in size)
    return width, height


def _thumbnail(image: Image.Image, step: Thumbnail) -> tuple[int, int]:
    """Returns the new (width, height)."""
    height, width = min(image.height, step.height), min(image.width, step.width)
    if (width, height) == image.size:
        return image.size
    if image.height > image.width:
        width = int(image.width * height / image.height)
    elif image.width > image.height:
        height = int(image.height * width / image.width)
    return width, height


def _crop_margin(image: Image.Image, threshold: int) -> Image.Image:
    grey = np.asarray(image.convert("L"))
    darkest, brightest = float(grey.min()), float(grey.max())
    if darkest == brightest:
        return image
    is_ink = (np.arange(256) - darkest) / (brightest - darkest) * 255 < threshold
    ink = is_ink[grey]
    rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    return image.crop((int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1))


def _text(size: tuple[int, ...]) -> str:
    return "x".join(map(str, size))
