"""Complex numbers in a model: pairs of real tensors compute the same values."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from hybrid_deploy.export.trace.complex_pairs import ComplexPair
from hybrid_deploy.export.trace.portable_ops import PortableOps
from tests.closeness import assert_close_in_float32

ROTATIONS = torch.polar(torch.ones(5, 4), torch.arange(20.0).view(5, 4))


def llama_rotary(x: Tensor) -> Tensor:
    pairs = torch.view_as_complex(x.reshape(2, 5, 4, 2))
    return torch.view_as_real(pairs * ROTATIONS.view(1, 5, 4)).flatten(2).type_as(x)


def constant_first(x: Tensor) -> Tensor:
    return torch.view_as_real(ROTATIONS * torch.view_as_complex(x.view(2, 5, 4, 2)))


def from_two_halves(x: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    rotated = torch.mul(torch.complex(first, second), ROTATIONS)
    return torch.cat([rotated.real, rotated.imag], -1)


def moved(x: Tensor) -> Tensor:
    pairs = torch.view_as_complex(x.reshape(2, 5, 4, 2)).unsqueeze(1).transpose(1, 2)
    rotated = torch.transpose(pairs, 1, 2)[:, 0] + 2 * pairs[:, :, 0].conj() - ROTATIONS
    assert rotated.shape == (2, 5, 4)
    return rotated.abs()


@pytest.mark.parametrize("function", [llama_rotary, constant_first, from_two_halves, moved])
def test_pairs_compute_the_same_as_complex_numbers(function: Callable[[Tensor], Tensor]) -> None:
    x = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    expected = function(x)
    with PortableOps():
        actual = function(x)
    assert_close_in_float32(actual, expected)


@pytest.mark.parametrize("use", [lambda pair: pair.angle(), torch.angle, lambda pair: pair / 2])
def test_unsupported_complex_operators_are_named_in_the_error(use: Callable[[Any], Any]) -> None:
    pair = ComplexPair(torch.ones(2), torch.ones(2))
    with pytest.raises((AttributeError, NotImplementedError, TypeError), match=r"ComplexPair|real"):
        use(pair)
