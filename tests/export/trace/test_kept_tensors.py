"""Caches of the user's functions after a trace: none keeps a tensor without values."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from hybrid_deploy.export.trace.kept_tensors import no_traced_tensors_kept


def mask(length: int) -> Tensor:
    return torch.ones(length, length).tril()


def masks(length: int) -> dict[str, tuple[Tensor, ...]]:
    return {"masks": (torch.zeros(1), mask(length))}


@pytest.mark.parametrize("function", [mask, masks])
@pytest.mark.parametrize("size", [None, 8])
def test_a_cache_that_kept_a_traced_tensor_is_cleared(
    function: Callable[[int], Any], size: int | None
) -> None:
    traced, untouched = (functools.lru_cache(size)(function) for _ in range(2))
    kept = untouched(3)
    with no_traced_tensors_kept(), FakeTensorMode():
        traced(3)
    assert traced.cache_info().currsize == 0
    assert untouched(3) is kept


def test_a_cache_is_cleared_after_a_failure_too() -> None:
    traced = functools.lru_cache(mask)
    with pytest.raises(ValueError, match="refused"), no_traced_tensors_kept():
        with FakeTensorMode():
            traced(3)
        raise ValueError("refused")
    assert torch.equal(traced(3), mask(3))
