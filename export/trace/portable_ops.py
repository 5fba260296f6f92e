"""Replaces torch functions that ONNX cannot express, or only at fixed sizes, during a trace."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from hybrid_deploy.export.trace.adaptive_pool import adaptive_avg_pool1d, adaptive_avg_pool2d
from hybrid_deploy.export.trace.complex_pairs import ComplexPair, view_as_complex_pair
from hybrid_deploy.export.trace.max_pool1d import max_pool1d_by_max_pool2d
from hybrid_deploy.export.trace.one_hot import one_hot_by_comparison

_REPLACEMENTS: dict[Any, Callable[..., Any]] = {
    torch.adaptive_avg_pool1d: adaptive_avg_pool1d,
    F.adaptive_avg_pool2d: adaptive_avg_pool2d,
    torch.max_pool1d: max_pool1d_by_max_pool2d,
    F.max_pool1d: max_pool1d_by_max_pool2d,
    F.one_hot: one_hot_by_comparison,
    torch.view_as_complex: view_as_complex_pair,
    torch.complex: ComplexPair,
    Tensor.view_as: lambda tensor, other: tensor.view(other.shape),
    Tensor.reshape_as: lambda tensor, other: tensor.reshape(other.shape),
}


class PortableOps(TorchFunctionMode):
    """While it is active, calls the portable replacement of a torch function if there is one."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Calls the replacement of `func`, or `func` itself if it has none."""
        return _REPLACEMENTS.get(func, func)(*args, **(kwargs or {}))
