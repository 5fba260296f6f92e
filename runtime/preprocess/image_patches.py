"""Pictures cut into patches with their places, as Pix2Struct takes them (arXiv:2210.03347)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hybrid_deploy.bundle.input_specs import PatchesInput


def batch_patches(images: Sequence[Image.Image], spec: PatchesInput) -> dict[str, NDArray[Any]]:
    """Returns pictures as one batch of patches.

    Returns:
        (batch, max_patches, 2 + patch) float32: row and column from 1, then the pixels of the patch
        (height, width, channel); and the mask (batch, max_patches) float32 if there is one.
    """
    width = 2 + spec.patch_height * spec.patch_width * 3
    batch = np.zeros((len(images), spec.max_patches, width), np.float32)
    mask = np.zeros((len(images), spec.max_patches), np.float32)
    for row, seen, image in zip(batch, mask, images, strict=True):
        patches = _patches(image, spec)
        row[: len(patches)] = patches
        seen[: len(patches)] = 1
    return {spec.name: batch} if spec.mask is None else {spec.name: batch, spec.mask: mask}


def _patches(image: Image.Image, spec: PatchesInput) -> NDArray[np.float32]:
    """Returns (patches, 2 + patch) of one picture."""
    pixels = np.asarray(image.convert("RGB")).astype(np.float32)
    if spec.normalize:
        deviation = max(float(pixels.std()), 1 / math.sqrt(pixels.size))
        pixels = (pixels - pixels.mean()) / np.float32(deviation)
    rows, columns = _grid(image, spec)
    height, width = spec.patch_height, spec.patch_width
    resized = _resize(pixels, rows * height, columns * width)
    # (rows, height, columns, width, 3) -> (rows, columns, height, width, 3)
    cut = resized.reshape(rows, height, columns, width, 3).swapaxes(1, 2)
    places = np.indices((rows, columns)).reshape(2, -1).T + 1
    return np.concatenate([places.astype(np.float32), cut.reshape(rows * columns, -1)], axis=1)


def _grid(image: Image.Image, spec: PatchesInput) -> tuple[int, int]:
    """Returns the rows and columns of the largest grid in proportion, at most `max_patches`."""
    height, width = spec.patch_height, spec.patch_width
    scale = math.sqrt(spec.max_patches * (height / image.height) * (width / image.width))
    rows = max(min(int(scale * image.height / height), spec.max_patches), 1)
    columns = max(min(int(scale * image.width / width), spec.max_patches), 1)
    return rows, columns


def _resize(pixels: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """Resizes floating-point channels; Pillow's filter is the one of torch's antialiasing."""
    channels = [
        np.asarray(
            Image.fromarray(np.ascontiguousarray(pixels[..., channel])).resize(
                (width, height), Image.Resampling.BILINEAR
            )
        )
        for channel in range(pixels.shape[-1])
    ]
    return np.stack(channels, axis=-1)
