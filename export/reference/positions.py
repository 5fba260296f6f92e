"""Sinusoidal position vectors."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def sinusoidal_positions(length: int, d_model: int) -> Tensor:
    """Returns sinusoidal positions, (length, d_model) float32.

    They are those of section 3.5 of "Attention Is All You Need".
    """
    position = torch.arange(length, dtype=torch.float32).unsqueeze(1)
    exponent = torch.arange(0, d_model, 2, dtype=torch.float32) / d_model
    angle = position * torch.exp(-math.log(10000.0) * exponent)
    # (length, d_model / 2, 2) -> (length, d_model): sine and cosine alternate
    return torch.stack((angle.sin(), angle.cos()), dim=2).flatten(1)
