"""Makers of cases: what published models read, with the axes that vary."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tests.models.zoo.captioner import FEATURES, VOCABULARY
from tests.models.zoo.case import GAIN, Case, random_floats, random_tokens

RECURRENT = "published-recurrent"
SOUND_BINS = 20
PADDING = 0


def lines_of_text(
    name: str,
    make: Callable[[], nn.Module],
    *,
    channels: int = 3,
    family: str = "published-readers",
    sizes: tuple[int, ...] = (32, 48),
    gain: float = GAIN,
    seed: int = 0,
    fast: bool = False,
) -> Case:
    """Returns a case that reads images (batch, channels, 16, width); one size fixes the width."""
    return Case(
        name,
        family,
        make,
        lambda batch, size: {"image": random_floats(batch, channels, 16, size)},
        sizes,
        {"image": ((3, "width", 16, 64),)} if len(sizes) > 1 else {},
        gain=gain,
        seed=seed,
        fast=fast,
    )


def squares(
    name: str,
    make: Callable[[], nn.Module],
    *,
    family: str = "published-captioners",
    side: int = 32,
    gain: float = GAIN,
    seed: int = 0,
) -> Case:
    """Returns a case that reads images (batch, 3, side, side)."""
    return Case(
        name,
        family,
        make,
        lambda batch, size: {"image": random_floats(batch, 3, size, size)},
        (side,),
        gain=gain,
        seed=seed,
    )


def regions(
    name: str,
    make: Callable[[], nn.Module],
    *,
    family: str = "published-captioners",
    gain: float = GAIN,
    seed: int = 0,
    fast: bool = False,
) -> Case:
    """Returns a case that reads features of regions (batch, size, FEATURES)."""
    return Case(
        name,
        family,
        make,
        lambda batch, size: {"features": random_floats(batch, size, FEATURES)},
        (6, 11),
        {"features": ((1, "regions", 2, 20),)},
        gain=gain,
        seed=seed,
        fast=fast,
    )


def sound(
    name: str,
    make: Callable[[], nn.Module],
    *,
    family: str = "published-speech",
    lengths: bool = False,
    varies: bool = True,
    gain: float = GAIN,
    seed: int = 0,
    fast: bool = False,
) -> Case:
    """Returns a case that reads (batch, frames, SOUND_BINS), and the true lengths if asked for."""

    def inputs(batch: int, size: int) -> dict[str, Tensor]:
        features = {"features": random_floats(batch, size, SOUND_BINS)}
        return {**features, "lengths": _true_lengths(batch, size, 4)} if lengths else features

    return Case(
        name,
        family,
        make,
        inputs,
        (24, 36) if varies else (24,),
        {"features": ((1, "frames", 16, 64),)} if varies else {},
        gain=gain,
        seed=seed,
        fast=fast,
    )


def sentences(
    name: str,
    make: Callable[[], nn.Module],
    *,
    gain: float = GAIN,
    seed: int = 0,
    fast: bool = False,
) -> Case:
    """Returns a case that reads tokens (batch, words), with PADDING behind the shorter ones."""

    def inputs(batch: int, size: int) -> dict[str, Tensor]:
        padding = torch.arange(size)[None] >= _true_lengths(batch, size, 1)[:, None]
        return {"source": random_tokens(VOCABULARY, batch, size).masked_fill(padding, PADDING)}

    return Case(
        name,
        "published-translation",
        make,
        inputs,
        (7, 12),
        {"source": ((1, "words", 4, 24),)},
        gain=gain,
        seed=seed,
        fast=fast,
    )


def _true_lengths(batch: int, size: int, step: int) -> Tensor:
    """Returns (batch,) lengths: the last row is full, each earlier one shorter by a step."""
    return torch.tensor([size - step * (batch - 1 - row) for row in range(batch)])
