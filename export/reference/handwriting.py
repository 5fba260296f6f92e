"""Turns an 8x8 scan of a digit into ink of a random size, slant and pen."""

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
    """How one line is written: sizes in pixels, angles in degrees, gray levels 0-255.

    `spread` is how far single digits stray from the line's size, slant and rotation (0-1).
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
    """The ranges that the hand of a line is drawn from."""

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
        """Returns one hand."""
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
"""For training lines."""

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
"""For test lines."""


def draw_digit(
    scan: NDArray[np.uint8], hand: Hand, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Returns the ink (height, width) float32, 0-1, of one scan (8, 8), cropped to the ink."""
    stray = rng.normal(0, hand.spread, size=4)
    height = float(np.clip(hand.height_px * (1 + 0.05 * stray[0]), 12, 29))
    scale_y = height / scan.shape[0]
    scale_x = scale_y * hand.aspect * (1 + 0.05 * stray[1])
    slant = hand.slant + 0.05 * stray[2]
    angle = math.radians(hand.rotation_degrees + 3 * stray[3])

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
    """Scales, slants and rotates a scan about its centre onto a square of ink, bicubic, 0-1."""
    cos, sin = math.cos(angle), math.sin(angle)
    # the inverse of rotation @ shear @ scale: Pillow maps output to input,
    # x' = ax + by + c and y' = dx + ey + f
    a, b = (cos - slant * sin) / scale_x, (sin + slant * cos) / scale_x
    d, e = -sin / scale_y, cos / scale_y
    centre, middle = scan.shape[0] / 2 + _MARGIN, side / 2
    coefficients = (a, b, centre - (a + b) * middle, d, e, centre - (d + e) * middle)
    padded = np.zeros((scan.shape[0] + 2 * _MARGIN, scan.shape[1] + 2 * _MARGIN), dtype=np.uint8)
    padded[_MARGIN:-_MARGIN, _MARGIN:-_MARGIN] = scan
    image = Image.fromarray(padded).transform(
        (side, side), Image.Transform.AFFINE, coefficients, Image.Resampling.BICUBIC
    )
    return (np.asarray(image) / 255).astype(np.float32)


def _crop(ink: NDArray[np.float32]) -> NDArray[np.float32]:
    """Cuts the blank edges off, and what is too high for a line."""
    visible = ink > 0.2
    rows, columns = np.flatnonzero(visible.any(axis=1)), np.flatnonzero(visible.any(axis=0))
    cropped = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return cropped[:_MAX_HEIGHT_PX]
