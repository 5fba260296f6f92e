"""Composes lines of handwritten digits from the 8x8 scans of scikit-learn.

Every scan belongs to one split, so no training line contains a scan of a test line. The source (UCI
"Optical Recognition of Handwritten Digits") does not name the writers, so both splits may hold
scans of one writer.
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
"""Number and seed of the held-out lines, on which training, export and quickstart measure."""

READING_MARGIN_PX = 32
"""Width in pixels of white paper added to the right of a line for reading; training varies it."""

_SPLIT_SEED = 2024
_TEST_SCANS = 397
_PAPER = 255.0
_BLENDED_SHARE = 0.5
_UNEVEN_INK = 20.0


@dataclass(frozen=True)
class Line:
    """One line of digits.

    Attributes:
        image: (32, width) uint8, dark ink on white paper.
        text: the digits.
    """

    image: NDArray[np.uint8]
    text: str


@dataclass(frozen=True)
class Scans:
    """The scans of one split.

    Attributes:
        ink: (count, 8, 8) uint8, 255 for full ink.
        digits: (count,) int64, 0 to 9.
        indices: (count,) int64, index of each scan in scikit-learn's data set.
    """

    ink: NDArray[np.uint8]
    digits: NDArray[np.int64]
    indices: NDArray[np.int64]


def compose_lines(split: Split, count: int, seed: int, longest: int = LONGEST_LINE) -> list[Line]:
    """Returns lines of 1 to `longest` digits; equal arguments return equal lines.

    Training lines vary more than test lines.

    Args:
        split: scans to draw from: "train" or "test".
        count: number of lines.
        seed: seed of the lines.
        longest: largest number of digits in a line.

    Raises:
        MissingDependencyError: scikit-learn is not installed.
    """
    scans = load_scans(split)
    rng = np.random.default_rng([seed, SPLITS.index(split)])
    return [_compose_line(scans, split, rng, longest) for _ in range(count)]


@cache
def load_scans(split: Split) -> Scans:
    """Returns the scans of one split, stratified by digit: 1400 train, 397 test.

    Raises:
        MissingDependencyError: scikit-learn is not installed.
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
    """Returns one batch (batch, 1, 32, width) float32, in which paper is 0 and black ink -2.

    All images are padded with white on the right. The width is that of the widest image plus the
    margin, at least 32, rounded up to a multiple of 16.

    Args:
        images: grayscale images, each (32, width) uint8.
        margin_px: number of white columns to the right of the widest image.
    """
    widest = max(MIN_WIDTH_PX, *(image.shape[1] + margin_px for image in images))
    width = -(-widest // WIDTH_MULTIPLE_PX) * WIDTH_MULTIPLE_PX
    batch = np.zeros((len(images), 1, LINE_HEIGHT_PX, width), dtype=np.float32)
    for row, image in zip(batch, images, strict=True):
        row[0, :, : image.shape[1]] = (image.astype(np.float32) / 255 - 1) / 0.5
    return batch


def _compose_line(scans: Scans, split: Split, rng: np.random.Generator, longest: int) -> Line:
    """Returns a line of random digits, side by side in one handwriting on one paper."""
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
    """Returns a new scan (8, 8): a blend with another scan of the same digit, with uneven ink.

    Blending makes examples between the few that exist, like SMOTE (https://arxiv.org/abs/1106.1813).
    """
    ink = scans.ink[index].astype(np.float32)
    if rng.random() < _BLENDED_SHARE:
        same_digit = np.flatnonzero(scans.digits == scans.digits[index])
        share = rng.uniform(0.5, 1.0)
        ink = share * ink + (1 - share) * scans.ink[rng.choice(same_digit)]
    uneven = rng.normal(0, rng.uniform(0, _UNEVEN_INK), ink.shape) * (ink > 0)
    new: NDArray[np.uint8] = np.clip(ink + uneven, 0, _PAPER).astype(np.uint8)
    return new
