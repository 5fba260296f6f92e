"""Pictures against the image processors of transformers that use Pillow."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hybrid_deploy.bundle.input_specs import PatchesInput, PixelsInput
from hybrid_deploy.bundle.pixel_steps import (
    AlignLongAxis,
    CenterCrop,
    CropMargin,
    Pad,
    PixelStep,
    Resize,
    ResizeShortestEdge,
    ResizeWithin,
    Thumbnail,
)
from hybrid_deploy.errors import InputError
from hybrid_deploy.runtime.preprocess.hf_image_processor import batch_pixels
from hybrid_deploy.runtime.preprocess.image_patches import batch_patches
from tests.closeness import assert_close_in_float32

HALF = (0.5, 0.5, 0.5)
SIZES = [(37, 61), (64, 48), (90, 31), (24, 24)]


def picture(width: int, height: int, *, margin: int = 0) -> Image.Image:
    """Returns a picture of smooth colours with noise and a white margin."""
    rng = np.random.default_rng(width * height)
    rows, columns = np.mgrid[:height, :width]
    waves = 110 * (np.sin(rows / 5)[..., None] * np.cos(columns / 7)[..., None] + 1)
    pixels = waves * [0.9, 0.7, 0.5] + rng.integers(0, 30, (height, width, 3))
    page = Image.new("RGB", (width + 2 * margin, height + 2 * margin), "white")
    page.paste(Image.fromarray(pixels.astype(np.uint8)), (margin, margin))
    return page


def processor(name: str, **settings: Any) -> Any:
    pytest.importorskip("transformers")
    module = importlib.import_module(f"transformers.models.{name}.image_processing_pil_{name}")
    (class_name,) = (n for n in module.__all__ if n.endswith("ImageProcessorPil"))
    return getattr(module, class_name)(**settings)


CASES: dict[str, tuple[str, dict[str, Any], tuple[PixelStep, ...], tuple[float, ...]]] = {
    "vit": ("vit", {"size": {"height": 32, "width": 24}}, (Resize(32, 24, "bilinear"),), HALF),
    "deit": (
        "deit",
        {"size": {"height": 36, "width": 36}, "crop_size": {"height": 30, "width": 30}},
        (Resize(36, 36, "bicubic"), CenterCrop(30, 30)),
        HALF,
    ),
    "crop beyond the picture": (
        "deit",
        {"size": {"height": 15, "width": 36}, "crop_size": {"height": 30, "width": 31}},
        (Resize(15, 36, "bicubic"), CenterCrop(30, 31)),
        HALF,
    ),
    "beit": ("beit", {"size": {"height": 28, "width": 28}}, (Resize(28, 28, "bicubic"),), HALF),
    "blip": (
        "blip",
        {"size": {"height": 40, "width": 40}, "image_mean": [0.4, 0.5, 0.6]},
        (Resize(40, 40, "bicubic"),),
        (0.4, 0.5, 0.6),
    ),
    "clip": (
        "clip",
        {"size": {"shortest_edge": 30}, "crop_size": {"height": 28, "width": 28}},
        (ResizeShortestEdge(30, None, "bicubic"), CenterCrop(28, 28)),
        (0.48145466, 0.4578275, 0.40821073),
    ),
    "donut": (
        "donut",
        {"size": {"height": 48, "width": 40}, "do_align_long_axis": True},
        (
            AlignLongAxis(48, 40),
            ResizeShortestEdge(40, None, "bilinear"),
            Thumbnail(48, 40, "bilinear"),
            Pad(48, 40),
        ),
        HALF,
    ),
    "nougat": (
        "nougat",
        {"size": {"height": 48, "width": 40}, "image_mean": HALF},
        (
            CropMargin(),
            ResizeShortestEdge(40, None, "bilinear"),
            Thumbnail(48, 40, "bicubic", 2.0),
            Pad(48, 40),
        ),
        HALF,
    ),
}


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_pixels_equal_the_processors(case: str, size: tuple[int, int]) -> None:
    name, settings, steps, mean = CASES[case]
    reference = processor(name, **settings)
    image = picture(*size, margin=6 if name == "nougat" else 0)
    spec = PixelsInput("pixel_values", steps, mean=mean, std=tuple(reference.image_std))
    actual = batch_pixels([image], spec)
    expected = np.stack(reference(image)["pixel_values"])
    assert actual.dtype == np.float32
    assert actual.shape == expected.shape
    assert_close_in_float32(actual, expected)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_resizing_within_bounds(size: tuple[int, int]) -> None:
    reference = processor("vit", size={"max_height": 40, "max_width": 50})
    spec = PixelsInput("x", (ResizeWithin(40, 50),), mean=HALF, std=HALF)
    expected = np.stack(reference(picture(*size))["pixel_values"])
    assert_close_in_float32(batch_pixels([picture(*size)], spec), expected)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_shortest_edge_with_a_limit_of_the_longest(size: tuple[int, int]) -> None:
    reference = processor("vit", size={"shortest_edge": 30, "longest_edge": 44})
    spec = PixelsInput("x", (ResizeShortestEdge(30, 44),), mean=HALF, std=HALF)
    expected = np.stack(reference(picture(*size))["pixel_values"])
    assert_close_in_float32(batch_pixels([picture(*size)], spec), expected)


def test_without_scale_and_mean() -> None:
    image = picture(20, 20)
    spec = PixelsInput("x", (), scale=None)
    np.testing.assert_array_equal(batch_pixels([image], spec)[0].transpose(1, 2, 0), image)
    grey = batch_pixels([image.convert("L")], PixelsInput("x", (), mode="L"))
    assert grey.shape == (1, 1, 20, 20)


def test_grey_pictures_are_converted_to_colour() -> None:
    reference = processor("vit", size={"height": 16, "width": 16}, do_convert_rgb=True)
    grey = picture(30, 20).convert("L")
    spec = PixelsInput("x", (Resize(16, 16),), mean=HALF, std=HALF)
    expected = np.stack(reference(grey)["pixel_values"])
    assert_close_in_float32(batch_pixels([grey], spec), expected)


def test_unequal_sizes_do_not_form_a_batch() -> None:
    spec = PixelsInput("x", (ResizeShortestEdge(16),))
    images = [picture(20, 20), picture(20, 40)]
    with pytest.raises(InputError, match=r"unequal sizes \(16x16 and 32x16 after resizing\)"):
        batch_pixels(images, spec)
    assert batch_pixels(images[:1] * 2, spec).shape == (2, 3, 16, 16)


def test_picture_larger_than_its_padding() -> None:
    with pytest.raises(InputError, match="20x30 pixels does not fit the 24x24"):
        batch_pixels([picture(30, 20)], PixelsInput("x", (Pad(24, 24),)))


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("normalize", [True, False])
def test_patches_equal_pix2structs(size: tuple[int, int], normalize: bool) -> None:
    reference = processor("pix2struct", max_patches=20, do_normalize=normalize)
    spec = PatchesInput("flattened_patches", "attention_mask", 20, 16, 16, normalize)
    actual = batch_patches([picture(*size)], spec)
    expected = reference(picture(*size), return_tensors="np")
    assert_close_in_float32(actual["flattened_patches"], expected["flattened_patches"])
    np.testing.assert_array_equal(actual["attention_mask"], expected["attention_mask"])
    assert actual["attention_mask"].dtype == np.float32
