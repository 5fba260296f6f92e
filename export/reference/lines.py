"""Lines of handwritten digits, composed from the 8x8 scans that come with scikit-learn.

The scans are split once, by scan: no scan of a test line was ever seen in training. Their source
(UCI "Optical Recognition of Handwritten Digits") does not name the writers, so one writer's scans
may be on both sides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hybrid_deploy.errors import MissingDependencyError
from hybrid_deploy.export.reference.handwriting import MILD, VARIED, draw_digit

Split = Literal["train", "test"]
SPLITS: tuple[Split, ...] = ("train", "test")
LINE_HEIGHT_PX = 32
LONGEST_LINE = 10
WIDTH_MULTIPLE_PX = 16
MIN_WIDTH_PX = 32
TEST_LINES, TEST_SEED = 600, 1
"""The held-out lines that training, export and quickstart all measure on."""

READING_MARGIN_PX = 32
"""White paper to the right of a line when it is read; training varies it."""

_SPLIT_SEED = 2024
_TEST_SCANS = 397
_PAPER = 255.0
_BLENDED_SHARE = 0.5
_UNEVEN_INK = 20.0


@dataclass(frozen=True)
class Line:
    """One line: dark ink on white paper, image (32, width) uint8, and its digits as text."""

    image: NDArray[np.uint8]
    text: str


@dataclass(frozen=True)
class Scans:
    """The scans of one split: ink (count, 8, 8) uint8 0-255, the digits, the original indices."""

    ink: NDArray[np.uint8]
    digits: NDArray[np.int64]
    indices: NDArray[np.int64]


def compose_lines(split: Split, count: int, seed: int, longest: int = LONGEST_LINE) -> list[Line]:
    """Returns lines of 1 to `longest` digits; the same arguments give the same lines.

    Training lines vary more than test lines do.

    Args:
        split: Whose scans to draw from: "train" or "test".
        count: How many lines.
        seed: Which lines.
        longest: The largest number of digits in a line.

    Raises:
        MissingDependencyError: If scikit-learn is not installed.
    """
    scans = load_scans(split)
    rng = np.random.default_rng([seed, SPLITS.index(split)])
    return [_compose_line(scans, split, rng, longest) for _ in range(count)]


@cache
def load_scans(split: Split) -> Scans:
    """Returns the scans of one split, stratified by digit: 1400 train, 397 test.

    Raises:
        MissingDependencyError: If scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise MissingDependencyError("scikit-learn", extra="reference") from error

    images, digits = load_digits().images, load_digits().target
    train, test = train_test_split(
        np.arange(len(digits)), test_size=_TEST_SCANS, stratify=digits, random_state=_SPLIT_SEED
    )
    indices = {"train": train, "test": test}[split]
    # the scans count ink from 0 to 16
    ink = np.rint(images[indices] * (255 / 16)).astype(np.uint8)
    return Scans(ink, digits[indices].astype(np.int64), indices.astype(np.int64))


def batch_images(images: Sequence[NDArray[np.uint8]], margin_px: int = 0) -> NDArray[np.float32]:
    """Returns images (batch, 1, 32, width) float32, normalised, padded with white on the right.

    The width is that of the widest image and the margin, rounded up to a multiple of 16, at least
    32. Paper becomes 0 and black ink -2.

    Args:
        images: Grayscale images, each (32, width) uint8.
        margin_px: Columns of white to the right of the widest.
    """
    widest = max(MIN_WIDTH_PX, *(image.shape[1] + margin_px for image in images))
    width = -(-widest // WIDTH_MULTIPLE_PX) * WIDTH_MULTIPLE_PX
    batch = np.zeros((len(images), 1, LINE_HEIGHT_PX, width), dtype=np.float32)
    for row, image in zip(batch, images, strict=True):
        row[0, :, : image.shape[1]] = (image.astype(np.float32) / 255 - 1) / 0.5
    return batch


def _compose_line(scans: Scans, split: Split, rng: np.random.Generator, longest: int) -> Line:
    """Draws the digits of one line in one hand, side by side on one paper."""
    training = split == "train"
    hand = (VARIED if training else MILD).draw(rng)
    chosen = rng.integers(len(scans.digits), size=rng.integers(1, longest + 1))
    inks = [_new_ink(scans, index, rng) if training else scans.ink[index] for index in chosen]
    drawn = [draw_digit(ink, hand, rng) for ink in inks]
    gaps = rng.uniform(*hand.gap_px, size=len(drawn)).round().astype(int)
    left = int(rng.integers(2, 11))
    starts = left + np.cumsum([0, *(d.shape[1] for d in drawn[:-1])]) + np.cumsum(gaps) - gaps[0]
    width = int(starts[-1]) + drawn[-1].shape[1] + int(rng.integers(2, 11))

    ink = np.zeros((LINE_HEIGHT_PX, width), dtype=np.float32)
    for start, digit in zip(starts, drawn, strict=True):
        height, digit_width = digit.shape
        slack = LINE_HEIGHT_PX - height
        top = int(np.clip(slack / 2 + rng.normal(0, hand.jitter_px), 0, slack))
        area = ink[top : top + height, start : start + digit_width]
        np.maximum(area, digit, out=area)

    gray = hand.paper - ink * (hand.paper - hand.ink)
    gray += rng.normal(0, hand.noise, size=ink.shape)
    image = np.clip(gray, 0, _PAPER).round().astype(np.uint8)
    return Line(image, "".join(str(digit) for digit in scans.digits[chosen]))


def _new_ink(scans: Scans, index: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Makes a scan that was never scanned: blended with another of its digit, with uneven ink.

    Blending fills the gaps between few examples, as SMOTE does (https://arxiv.org/abs/1106.1813).
    """
    ink = scans.ink[index].astype(np.float32)
    if rng.random() < _BLENDED_SHARE:
        alike = np.flatnonzero(scans.digits == scans.digits[index])
        share = rng.uniform(0.5, 1.0)
        ink = share * ink + (1 - share) * scans.ink[rng.choice(alike)]
    uneven = rng.normal(0, rng.uniform(0, _UNEVEN_INK), ink.shape) * (ink > 0)
    new: NDArray[np.uint8] = np.clip(ink + uneven, 0, _PAPER).astype(np.uint8)
    return new
