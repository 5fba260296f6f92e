"""Cuts pictures into patches with their positions, for Pix2Struct (arXiv:2210.03347)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hybrid_deploy.bundle.input_specs import PatchesInput
from hybrid_deploy.runtime.preprocess.image import check_new_size


def batch_patches(images: Sequence[Image.Image], spec: PatchesInput) -> dict[str, NDArray[Any]]:
    """Returns pictures as one batch of patches.

    Args:
        images: the pictures, in any mode.
        spec: description of the model's input.

    Returns:
        The batch by input name, (batch, max_patches, 2 + patch) float32: row and column of a patch,
        counted from 1, then its pixels (height, width, channel); and the mask by its name,
        (batch, max_patches) float32, if the model takes one.

    Raises:
        InputError: a picture needs too much RAM when it is resized.
    """
    width = 2 + spec.patch_height * spec.patch_width * 3
    batch = np.zeros((len(images), spec.max_patches, width), np.float32)
    mask = np.zeros((len(images), spec.max_patches), np.float32)
    for batch_row, mask_row, image in zip(batch, mask, images, strict=True):
        patches = _patches(image, spec)
        batch_row[: len(patches)] = patches
        mask_row[: len(patches)] = 1
    return {spec.name: batch} if spec.mask is None else {spec.name: batch, spec.mask: mask}


def _patches(image: Image.Image, spec: PatchesInput) -> NDArray[np.float32]:
    """Returns the patches of one picture, (patches, 2 + patch)."""
    rows, columns = _grid(image, spec)
    height, width = spec.patch_height, spec.patch_width
    check_new_size(image.size, (columns * width, rows * height))
    pixels = np.asarray(image.convert("RGB")).astype(np.float32)
    if spec.normalize:
        deviation = max(float(pixels.std()), 1 / math.sqrt(pixels.size))
        pixels -= pixels.mean()
        pixels /= np.float32(deviation)
    resized = _resize(pixels, rows * height, columns * width)
    # (rows, height, columns, width, 3) -> (rows, columns, height, width, 3)
    cut = resized.reshape(rows, height, columns, width, 3).swapaxes(1, 2)
    positions = np.indices((rows, columns)).reshape(2, -1).T + 1
    return np.concatenate([positions.astype(np.float32), cut.reshape(rows * columns, -1)], axis=1)


def _grid(image: Image.Image, spec: PatchesInput) -> tuple[int, int]:
    """Returns rows and columns of the largest grid with the picture's proportions."""
    height, width = spec.patch_height, spec.patch_width
    scale = math.sqrt(spec.max_patches * (height / image.height) * (width / image.width))
    rows = max(min(int(scale * image.height / height), spec.max_patches), 1)
    columns = max(min(int(scale * image.width / width), spec.max_patches), 1)
    return rows, columns


def _resize(pixels: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """Resizes (height, width, channels) with Pillow, whose filter equals torch's antialiasing."""
    channels = [
        np.asarray(
            Image.fromarray(np.ascontiguousarray(pixels[..., channel])).resize(
                (width, height), Image.Resampling.BILINEAR
            )
        )
        for channel in range(pixels.shape[-1])
    ]
    return np.stack(channels, axis=-1)
