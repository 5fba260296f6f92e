from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from hybrid_deploy.export.trace.complex_pairs import ComplexPair
from hybrid_deploy.export.trace.portable_ops import PortableForms
from tests.closeness import assert_close_in_float32

TURNS = torch.polar(torch.ones(5, 4), torch.arange(20.0).view(5, 4))


def llama(x: Tensor) -> Tensor:
    pairs = torch.view_as_complex(x.reshape(2, 5, 4, 2))
    return torch.view_as_real(pairs * TURNS.view(1, 5, 4)).flatten(2).type_as(x)


def constant_first(x: Tensor) -> Tensor:
    return torch.view_as_real(TURNS * torch.view_as_complex(x.view(2, 5, 4, 2)))


def by_parts(x: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    turned = torch.mul(torch.complex(first, second), TURNS)
    return torch.cat([turned.real, turned.imag], -1)


def moved(x: Tensor) -> Tensor:
    pairs = torch.view_as_complex(x.reshape(2, 5, 4, 2)).unsqueeze(1).transpose(1, 2)
    turned = torch.transpose(pairs, 1, 2)[:, 0] + 2 * pairs[:, :, 0].conj() - TURNS
    assert turned.shape == (2, 5, 4)
    return turned.abs()


@pytest.mark.parametrize("function", [llama, constant_first, by_parts, moved])
def test_pairs_give_what_complex_numbers_give(function: Callable[[Tensor], Tensor]) -> None:
    x = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    wanted = function(x)
    with PortableForms():
        given = function(x)
    assert_close_in_float32(given, wanted)


@pytest.mark.parametrize("use", [lambda pair: pair.angle(), torch.angle, lambda pair: pair / 2])
def test_what_is_not_known_is_said(use: Callable[[Any], Any]) -> None:
    pair = ComplexPair(torch.ones(2), torch.ones(2))
    with pytest.raises((AttributeError, NotImplementedError, TypeError), match=r"ComplexPair|real"):
        use(pair)
