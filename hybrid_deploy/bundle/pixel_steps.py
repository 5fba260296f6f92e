"""The steps of a Hugging Face image processor, as a manifest describes them."""

from __future__ import annotations

from typing import Literal

import msgspec

from hybrid_deploy.bundle.field_types import Level, Pixels, PositiveNumber, Size

Resample = Literal["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"]
"""Resampling filters of Pillow, in the order of their numbers in Hugging Face files."""


class CropMargin(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="crop-margin"):
    """Step that cuts the bright margins off a page.

    Attributes:
        threshold: pixels below this grey value are content; the grey values of the page are first
            stretched to 0..255.
    """

    threshold: Level = 200


class AlignLongAxis(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="align-long-axis"):
    """Step that turns a tall picture for a wide size, and a wide one for a tall size.

    It turns by 90 degrees clockwise.

    Attributes:
        height: height in pixels of the size that the picture is compared with.
        width: width in pixels of that size.
    """

    height: Pixels
    width: Pixels


class Resize(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="resize"):
    """Step that resizes a picture without keeping its proportions.

    Attributes:
        height: new height in pixels.
        width: new width in pixels.
        resample: resampling filter.
    """

    height: Pixels
    width: Pixels
    resample: Resample = "bilinear"


class ResizeShortestEdge(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="shortest"):
    """Step that resizes a picture in proportion, by its shorter side.

    Attributes:
        edge: new length of the shorter side in pixels.
        longest: largest length of the longer side in pixels, which may make `edge` smaller; None
            for no limit.
        resample: resampling filter.
    """

    edge: Pixels
    longest: Pixels | None = None
    resample: Resample = "bilinear"


class ResizeWithin(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="within"):
    """Step that resizes a picture in proportion to the largest size that fits a rectangle.

    Attributes:
        height: height of the rectangle in pixels.
        width: width of the rectangle in pixels.
        resample: resampling filter.
    """

    height: Pixels
    width: Pixels
    resample: Resample = "bilinear"


class Thumbnail(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="thumbnail"):
    """Step that shrinks a picture in proportion until it fits a rectangle; it enlarges none.

    Attributes:
        height: height of the rectangle in pixels.
        width: width of the rectangle in pixels.
        resample: resampling filter.
        reducing_gap: argument of Pillow's `resize` that first shrinks by a whole factor, which is
            faster; None resizes in one go.
    """

    height: Pixels
    width: Pixels
    resample: Resample = "bicubic"
    reducing_gap: PositiveNumber | None = None


class Pad(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="pad"):
    """Step that puts a picture into the middle of a black rectangle.

    Attributes:
        height: height of the rectangle in pixels.
        width: width of the rectangle in pixels.
    """

    height: Pixels
    width: Pixels


class CenterCrop(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="center-crop"):
    """Step that cuts the middle out of a picture; pixels outside the picture are black.

    Attributes:
        height: height of the result in pixels.
        width: width of the result in pixels.
    """

    height: Pixels
    width: Pixels


class ResizeLongestEdge(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="longest"):
    """Step that resizes a picture in proportion, by its longer side.

    The shorter side is cut to whole pixels and made even, as Idefics3 does.

    Attributes:
        edge: new length of the longer side in pixels.
        resample: resampling filter.
    """

    edge: Pixels
    resample: Resample = "lanczos"


class ResizeToTiles(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="to-tiles"):
    """Step that enlarges a picture to whole tiles: the longer side first, then the shorter one.

    Attributes:
        side: height and width of a tile in pixels.
        resample: resampling filter.
    """

    side: Pixels
    resample: Resample = "lanczos"


class ResizeToGrid(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="to-grid"):
    """Step that resizes a picture to a grid of patches with nearly its proportions, as Qwen2-VL.

    Attributes:
        unit: number of pixels that both sides become a multiple of.
        smallest_area: smallest number of pixels of the result.
        largest_area: largest number of pixels of the result.
        height: height in pixels that the model takes; a picture that becomes another is refused.
        width: width in pixels that the model takes.
        resample: resampling filter.
    """

    unit: Pixels
    smallest_area: Size
    largest_area: Size
    height: Pixels
    width: Pixels
    resample: Resample = "bicubic"


PixelStep = (
    CropMargin
    | AlignLongAxis
    | Resize
    | ResizeShortestEdge
    | ResizeWithin
    | ResizeLongestEdge
    | ResizeToTiles
    | ResizeToGrid
    | Thumbnail
    | Pad
    | CenterCrop
)
"""A step of a Hugging Face image processor; pixels enter and leave as 8-bit values."""
