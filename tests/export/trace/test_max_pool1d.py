"""max_pool1d by max_pool2d: the same values, and a length that stays dynamic."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybrid_deploy.export.trace.portable_ops import PortableOps


class Pooled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool1d(x, 4)


@pytest.mark.parametrize(
    "pool",
    [
        nn.MaxPool1d(3),
        nn.MaxPool1d(3, stride=2, padding=1, ceil_mode=True),
        nn.MaxPool1d(2, dilation=2),
        nn.MaxPool1d(2, return_indices=True),
    ],
)
@pytest.mark.parametrize("shape", [(2, 3, 11), (3, 11)])
def test_the_replacement_equals_max_pool1d(pool: nn.Module, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    expected = pool(x)
    with PortableOps():
        actual = pool(x)
    results = ((y if isinstance(y, tuple) else (y,)) for y in (expected, actual))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


def test_the_traced_length_stays_dynamic() -> None:
    shapes = ({0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC},)
    with PortableOps():
        program = torch.export.export(
            Pooled(), (torch.zeros(2, 1, 32),), dynamic_shapes=shapes, strict=False
        )
    assert program.module()(torch.ones(3, 1, 50)).shape == (3, 1, 12)
