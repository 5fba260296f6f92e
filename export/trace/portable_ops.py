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


def _clamp_by_floats(tensor: Tensor, min: Any = None, max: Any = None) -> Tensor:
    """Returns `clamp`, with two floats if one bound is a whole number: torch.onnx takes no mixture.

    Args:
        tensor: tensor of any dtype.
        min: smallest value, a number or a tensor; None for no bound.
        max: largest value, a number or a tensor; None for no bound.
    """
    if {type(min), type(max)} == {int, float}:
        min, max = float(min), float(max)
    return tensor.clamp(min, max)


def _fake_quantize(
    tensor: Tensor, scale: Any, zero_point: Any, quant_min: int, quant_max: int
) -> Tensor:
    """Returns what quantizing and dequantizing leaves, in operators that ONNX has.

    PyTorch multiplies with the reciprocal of the scale, so this does too: a quotient could round to
    another integer. Ties go to the even integer.

    Args:
        tensor: float32 tensor of any shape.
        scale: size of a step, a number or a tensor that broadcasts.
        zero_point: the integer that stands for 0.
        quant_min: smallest integer.
        quant_max: largest integer.
    """
    steps = torch.as_tensor(scale, dtype=torch.float32)
    zero = torch.as_tensor(zero_point, dtype=torch.float32)
    rounded = torch.round(tensor * steps.reciprocal()) + zero
    clamped: Tensor = rounded.clamp(float(quant_min), float(quant_max))
    return (clamped - zero) * steps


def _fake_quantize_channels(
    tensor: Tensor, scale: Tensor, zero_point: Tensor, axis: int, quant_min: int, quant_max: int
) -> Tensor:
    """Returns the same with one scale (channels,) and one zero point for each entry of an axis."""
    shape = [-1 if index == axis % tensor.dim() else 1 for index in range(tensor.dim())]
    return _fake_quantize(
        tensor, scale.reshape(shape), zero_point.reshape(shape), quant_min, quant_max
    )


_REPLACEMENTS: dict[Any, Callable[..., Any]] = {
    torch.adaptive_avg_pool1d: adaptive_avg_pool1d,
    F.adaptive_avg_pool2d: adaptive_avg_pool2d,
    torch.max_pool1d: max_pool1d_by_max_pool2d,
    F.max_pool1d: max_pool1d_by_max_pool2d,
    F.one_hot: one_hot_by_comparison,
    torch.view_as_complex: view_as_complex_pair,
    torch.complex: ComplexPair,
    torch.clamp: _clamp_by_floats,
    torch.fake_quantize_per_channel_affine: _fake_quantize_channels,
    torch.fake_quantize_per_tensor_affine: _fake_quantize,
    Tensor.clamp: _clamp_by_floats,
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
