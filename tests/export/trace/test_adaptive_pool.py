"""Adaptive average pooling of a varying axis: the same values, at every size."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hybrid_deploy.export.trace.portable_ops import PortableOps
from tests.closeness import assert_close_in_float32


class Pooled(nn.Module):
    def __init__(self, pool: nn.Module) -> None:
        super().__init__()
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        pooled: Tensor = self.pool(x)
        return pooled


@pytest.mark.parametrize(
    ("pool", "axes"),
    [
        (nn.AdaptiveAvgPool1d(4), [2]),
        (nn.AdaptiveAvgPool2d((2, 4)), [2, 3]),
        (nn.AdaptiveAvgPool2d((1, 4)), [3]),
        (nn.AdaptiveAvgPool2d((3, None)), [2, 3]),
        (nn.AdaptiveAvgPool2d(5), [2, 3]),
        (nn.AdaptiveAvgPool2d((None, 1)), [3]),
    ],
)
def test_the_traced_pooling_holds_at_other_sizes(pool: nn.Module, axes: list[int]) -> None:
    varying: dict[int, Any] = dict.fromkeys(axes, torch.export.Dim.DYNAMIC)
    example = torch.zeros((2, 3, 8, 12)[: max(axes) + 1])
    with PortableOps():
        program = torch.export.export(
            Pooled(pool), (example,), dynamic_shapes=(varying,), strict=False
        )
    generator = torch.Generator().manual_seed(0)
    for size in (5, 7, 12, 13, 31):
        shape = list(example.shape)
        for axis in varying:
            shape[axis] = size + axis
        x = torch.randn(shape, generator=generator)
        assert_close_in_float32(program.module()(x), pool(x))
