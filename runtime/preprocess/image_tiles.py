"""Cuts pictures into tiles behind each other, for Idefics3 and SmolVLM."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hybrid_deploy.bundle.input_specs import TilesInput
from hybrid_deploy.errors import InputError
from hybrid_deploy.runtime.preprocess.hf_image_processor import after_steps, pixel_values
from hybrid_deploy.runtime.preprocess.image import resize_picture


def batch_tiles(images: Sequence[Image.Image], spec: TilesInput) -> NDArray[np.float32]:
    """Returns pictures as one batch of tiles.

    Args:
        images: the pictures, in any mode.
        spec: description of the model's input.

    Returns:
        The batch, (batch, tiles, channels, side, side) float32: the tiles row by row, then the
        whole picture if there are several.

    Raises:
        InputError: a picture gives another number of tiles than the model takes.
    """
    return np.stack([_tiles(image, spec) for image in images])


def _tiles(image: Image.Image, spec: TilesInput) -> NDArray[np.float32]:
    """Returns the tiles of one picture, (tiles, channels, side, side)."""
    side, whole = spec.side, after_steps(image, spec.picture)
    rows, columns = whole.height // side, whole.width // side
    if (rows, columns) != (spec.rows, spec.columns):
        raise InputError(
            f"a picture of {image.width}x{image.height} pixels is cut into {rows} rows of "
            f"{columns} tiles, the model takes {spec.rows} rows of {spec.columns}; crop or pad it "
            "to these proportions, or export with the --width and --height of such a picture"
        )
    tiles = [whole]
    if rows * columns > 1:
        tiles = [
            whole.crop((left, top, left + side, top + side))
            for top in range(0, whole.height, side)
            for left in range(0, whole.width, side)
        ]
        resample = Image.Resampling[spec.resample.upper()]
        tiles.append(resize_picture(whole, (side, side), resample))
    return np.stack([pixel_values(tile, spec.picture) for tile in tiles])
