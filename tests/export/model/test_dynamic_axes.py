"""The varying axes of the memory, and encoders whose memory has none in common."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hybrid_deploy.bundle.manifest import DimRange
from hybrid_deploy.errors import UnsupportedModelError
from hybrid_deploy.export.model.dynamic_axes import DynamicAxis, memory_axes

DYNAMIC = {"features": {1: DynamicAxis("frames", DimRange(2, 4, 8))}}
INPUTS = {"features": torch.randn(2, 4, 3)}


class Encoder(nn.Module):
    def encode(self, features: Tensor) -> tuple[Tensor, ...]:
        return features, features.mean(1)


class OneTensorMore(Encoder):
    def encode(self, features: Tensor) -> tuple[Tensor, ...]:
        memory = super().encode(features)
        return memory if features.shape[1] < 5 else (*memory, memory[1])


class OneAxisMore(Encoder):
    def encode(self, features: Tensor) -> tuple[Tensor, ...]:
        memory = super().encode(features)
        return memory if features.shape[1] < 5 else (memory[0], memory[1][:, None])


def test_the_axes_that_follow_the_inputs() -> None:
    assert memory_axes(Encoder(), INPUTS, DYNAMIC) == ((1,), ())


@pytest.mark.parametrize(
    ("model", "text"),
    [
        (OneTensorMore, r"\(2, 2, 3\), \(2, 3\) for inputs .* but \(2, 8, 3\), \(2, 3\), \(2, 3\)"),
        (OneAxisMore, r"but \(2, 8, 3\), \(2, 1, 3\) for \(2, 8, 3\): the graph has one number"),
    ],
)
def test_another_memory_at_another_size_is_refused(model: type[Encoder], text: str) -> None:
    with pytest.raises(UnsupportedModelError, match=text):
        memory_axes(model(), INPUTS, DYNAMIC)
