"""Draws an 8x8 scan of a digit as ink of a random size, slant and pen."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_MARGIN = 2
_MAX_HEIGHT_PX = 32


@dataclass(frozen=True)
class Hand:
    """The handwriting of one line.

    Attributes:
        height_px: height of a digit in pixels.
        aspect: factor of a digit's width.
        slant: horizontal shift per pixel of height.
        rotation_degrees: rotation of a digit.
        pen_threshold: ink level, 0 to 1, below which the paper stays blank.
        pen_softness: range of ink levels, 0 to 1, from blank paper to full ink.
        gap_px: smallest and largest gap between two digits in pixels.
        jitter_px: standard deviation of a digit's vertical shift in pixels.
        spread: variation of single digits from the line's size, slant and rotation, 0 to 1.
        paper: gray level of the paper, 0 to 255.
        ink: gray level of the ink, 0 to 255.
        noise: standard deviation of the gray levels.
    """

    height_px: float
    aspect: float
    slant: float
    rotation_degrees: float
    pen_threshold: float
    pen_softness: float
    gap_px: tuple[float, float]
    jitter_px: float
    spread: float
    paper: float
    ink: float
    noise: float


@dataclass(frozen=True)
class HandRanges:
    """Ranges from which the handwriting of a line is drawn; the fields are those of Hand.

    `gap_px` is the range of the largest gap, and `spread` is the value itself. The pen has the same
    ranges for every line.
    """

    height_px: tuple[float, float]
    aspect: tuple[float, float]
    slant: tuple[float, float]
    rotation_degrees: tuple[float, float]
    gap_px: tuple[float, float]
    jitter_px: tuple[float, float]
    spread: float
    paper: tuple[float, float]
    ink: tuple[float, float]
    noise: tuple[float, float]

    def draw(self, rng: np.random.Generator) -> Hand:
        """Returns a random handwriting."""
        widest_gap = rng.uniform(*self.gap_px)
        return Hand(
            height_px=rng.uniform(*self.height_px),
            aspect=rng.uniform(*self.aspect),
            slant=rng.uniform(*self.slant),
            rotation_degrees=rng.uniform(*self.rotation_degrees),
            pen_threshold=rng.uniform(0.1, 0.35),
            pen_softness=rng.uniform(0.4, 0.8),
            gap_px=(1.0, max(1.0, widest_gap)),
            jitter_px=rng.uniform(*self.jitter_px),
            spread=self.spread,
            paper=rng.uniform(*self.paper),
            ink=rng.uniform(*self.ink),
            noise=rng.uniform(*self.noise),
        )


VARIED = HandRanges(
    height_px=(15, 28),
    aspect=(0.7, 1.25),
    slant=(-0.32, 0.32),
    rotation_degrees=(-12, 12),
    gap_px=(1, 9),
    jitter_px=(0, 2.5),
    spread=0.8,
    paper=(225, 255),
    ink=(0, 110),
    noise=(0, 8),
)
"""Ranges for training lines."""

MILD = HandRanges(
    height_px=(17, 27),
    aspect=(0.8, 1.1),
    slant=(-0.18, 0.18),
    rotation_degrees=(-6, 6),
    gap_px=(1, 8),
    jitter_px=(0, 2),
    spread=0.7,
    paper=(232, 255),
    ink=(0, 90),
    noise=(0, 6),
)
"""Ranges for test lines."""


def draw_digit(
    scan: NDArray[np.uint8], hand: Hand, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Returns the ink of one digit, (height, width) float32 from 0 to 1, without blank edges.

    Args:
        scan: (8, 8) uint8, 255 for full ink.
        hand: handwriting of the line.
        rng: source of this digit's variation.
    """
    variation = rng.normal(0, hand.spread, size=4)
    height = float(np.clip(hand.height_px * (1 + 0.05 * variation[0]), 12, 29))
    scale_y = height / scan.shape[0]
    scale_x = scale_y * hand.aspect * (1 + 0.05 * variation[1])
    slant = hand.slant + 0.05 * variation[2]
    angle = math.radians(hand.rotation_degrees + 3 * variation[3])

    side = math.ceil(1.6 * height)
    enlarged = _enlarge(scan, scale_x, scale_y, slant, angle, side)
    ink = np.clip((enlarged - hand.pen_threshold) / hand.pen_softness, 0, 1)
    return _crop(ink)


def _enlarge(
    scan: NDArray[np.uint8],
    scale_x: float,
    scale_y: float,
    slant: float,
    angle: float,
    side: int,
) -> NDArray[np.float32]:
    """Returns a scan scaled, slanted and rotated about its center: (side, side), ink 0 to 1."""
    cos, sin = math.cos(angle), math.sin(angle)
    # Pillow needs the inverse of rotation @ shear @ scale, from output to input pixels:
    # x' = ax + by + c and y' = dx + ey + f
    a, b = (cos - slant * sin) / scale_x, (sin + slant * cos) / scale_x
    d, e = -sin / scale_y, cos / scale_y
    scan_center, output_center = scan.shape[0] / 2 + _MARGIN, side / 2
    coefficients = (
        a,
        b,
        scan_center - (a + b) * output_center,
        d,
        e,
        scan_center - (d + e) * output_center,
    )
    padded = np.zeros((scan.shape[0] + 2 * _MARGIN, scan.shape[1] + 2 * _MARGIN), dtype=np.uint8)
    padded[_MARGIN:-_MARGIN, _MARGIN:-_MARGIN] = scan
    image = Image.fromarray(padded).transform(
        (side, side), Image.Transform.AFFINE, coefficients, Image.Resampling.BICUBIC
    )
    return (np.asarray(image) / 255).astype(np.float32)


def _crop(ink: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns the ink without blank edges, and without rows beyond the height of a line."""
    visible = ink > 0.2
    rows, columns = np.flatnonzero(visible.any(axis=1)), np.flatnonzero(visible.any(axis=0))
    cropped = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return cropped[:_MAX_HEIGHT_PX]
