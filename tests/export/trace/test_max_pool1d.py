import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybrid_deploy.export.trace.portable_ops import PortableForms


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
def test_it_gives_what_the_original_gives(pool: nn.Module, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    wanted = pool(x)
    with PortableForms():
        given = pool(x)
    for a, b in zip(*((y if isinstance(y, tuple) else (y,)) for y in (wanted, given)), strict=True):
        assert torch.equal(a, b)


def test_the_length_stays_free() -> None:
    shapes = ({0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC},)
    with PortableForms():
        program = torch.export.export(
            Pooled(), (torch.zeros(2, 1, 32),), dynamic_shapes=shapes, strict=False
        )
    assert program.module()(torch.ones(3, 1, 50)).shape == (3, 1, 12)
