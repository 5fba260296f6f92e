"""one_hot with a number of classes that follows a size of the input."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybrid_deploy.export.trace.portable_ops import PortableOps


class Places(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.one_hot(torch.arange(x.shape[1]) // 2, x.shape[1] // 2)


def test_the_traced_number_of_classes_stays_dynamic() -> None:
    length = 2 * torch.export.Dim("half", min=2)
    with PortableOps():
        program = torch.export.export(
            Places(), (torch.zeros(1, 8),), dynamic_shapes=({1: length},), strict=False
        )
    assert "one_hot" not in program.graph_module.code
    for size in (4, 8, 12):
        x = torch.zeros(1, size)
        assert torch.equal(program.module()(x), Places()(x))


def test_a_constant_number_of_classes_keeps_the_operator() -> None:
    x = torch.tensor([[0, 2, 1]])
    with PortableOps():
        assert torch.equal(F.one_hot(x, 3), torch.eye(3, dtype=torch.int64)[x])
        assert torch.equal(F.one_hot(x), torch.eye(3, dtype=torch.int64)[x])
