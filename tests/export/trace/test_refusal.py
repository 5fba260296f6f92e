"""Tests the words for a trace that fails, and the line that they name."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybrid_deploy.errors import HybridDeployError
from hybrid_deploy.export.lowering.torch_to_onnx import onnx_from_torch


class Encoder(nn.Module):
    """Calls a function of an image (batch, channels, width)."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, image: Tensor) -> Tensor:
        return self.function(image)


def turned_if_bright(image: Tensor) -> Tensor:
    return -image if image.mean() > 0 else image


def rounded_third(image: Tensor) -> Tensor:
    return F.adaptive_avg_pool1d(image, round(image.shape[2] / 3))


def detached_by_data(image: Tensor) -> Tensor:
    return image.data * 2


def without_an_axis(image: Tensor) -> Tensor:
    return image / image.amax()


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (
            turned_if_bright,
            r"test_refusal.py:\d+: encode\(\) cannot .* the values of its inputs; use",
        ),
        (rounded_third, r"encode\(\) cannot be traced: .* no graph can; use //"),
        (detached_by_data, r"^encode\(\) cannot be traced: it takes a value out of the trace"),
        (without_an_axis, r"encode\(\) has no ONNX form: Required parameter 'dim' is not provided"),
    ],
)
def test_a_failed_trace_names_its_cause(function: Callable[[Tensor], Tensor], words: str) -> None:
    image = {"image": torch.randn(2, 3, 12)}
    with pytest.raises(HybridDeployError, match=words):
        onnx_from_torch(
            Encoder(function), image, ["y"], {"image": {2: "width"}}, 24, part="encode()"
        )
