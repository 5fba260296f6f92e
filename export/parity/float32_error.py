"""How far two right float32 computations of the same logits may lie apart.

The graphs add the same numbers as the model in another order, so both have a rounding error of
about the same size. That of the model is measured: its float32 logits against the same run in
float64. The graphs may differ by a small multiple of it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from hybrid_deploy.export.model.interface import Inputs, reference_heads, reference_memory

EPSILON = float(np.finfo(np.float32).eps)

LEAST_SHARE = 32 * EPSILON
"""Difference that is always accepted, as a share of the largest logit: 3.8e-6.

Sums of some hundred products in two orders differ by 10 epsilons, a few layers of them by 20.
"""

ESTIMATED_SHARE = 400 * EPSILON
"""Difference that is accepted where the model's error cannot be measured: 4.8e-5 of the largest.

Twice the 150 epsilons by which a right export of Whisper base, of 12 layers, was seen to differ,
and a little more for deeper models.
"""

LARGEST_SHARE = 1e-3
"""Largest accepted share, however large the error of the model is.

A model that chooses between values, as a router of experts does, can choose another one in float64.
"""

OWN_ERRORS = 8
"""Accepted difference in errors of the model: twice one, and room for rarer roundings."""

_LARGEST_MEASURED_BYTES = 400 << 20  # of float32 weights; the copy needs twice as many
_IMPOSSIBLE = 1000.0  # exp(-1000) is 0: a token so far below the best one is masked out

Floats = NDArray[np.float64]


def size_of(logits: NDArray[Any]) -> float:
    """Returns the largest magnitude of the logits that count.

    Args:
        logits: (..., vocabulary), at least one. Infinite and NaN values do not count, nor does a
            token that a mask puts 1000 or more below the best one of its row.
    """
    values = np.where(np.isfinite(logits), logits, -np.inf).astype(np.float64)
    counting = np.isfinite(values) & (values >= values.max(-1, keepdims=True) - _IMPOSSIBLE)
    return float(np.abs(values[counting]).max(initial=0))


def differences(expected: NDArray[Any], actual: NDArray[Any], size: float) -> Floats:
    """Returns by how much each value differs, (..., width); NaN where a value is NaN.

    The difference of a value larger than `size`, a masked token, is a share of the value itself:
    it is reduced in proportion. Equal infinities do not differ.
    """
    first, second = np.asarray(expected, np.float64), np.asarray(actual, np.float64)
    with np.errstate(invalid="ignore", over="ignore"):  # infinities that differ stay infinite
        apart = np.where(first == second, 0.0, np.abs(first - second))
    magnitudes = np.where(np.isfinite(first), np.abs(first), 0)
    apart[magnitudes > size] *= size / magnitudes[magnitudes > size]
    return apart


def is_measurable(model: nn.Module) -> bool:
    """Returns whether a model is small enough to be run in float64: 400 MiB of float32 weights."""
    return sum(weight.numel() * 4 for weight in model.parameters()) <= _LARGEST_MEASURED_BYTES


def own_error(model: nn.Module, inputs: Inputs, tokens: NDArray[np.int64]) -> list[float] | None:
    """Returns the largest error of the model's float32 outputs, by head, the logits first.

    Args:
        model: module in eval mode.
        inputs: encoder inputs by name, of a few sequences.
        tokens: (sequences, length), tokens that these sequences read.

    Returns:
        None where the error is not known: the model is too large, or does not run in float64.
    """
    if not is_measurable(model):
        return None
    single = _heads(model, inputs, tokens, torch.float32)
    try:
        widened = copy.deepcopy(model).double()
        with torch.no_grad(), _InFloat64():  # type: ignore[no-untyped-call]
            double = _heads(widened, inputs, tokens, torch.float64)
    except Exception:  # the user's code may insist on float32
        return None
    errors = []
    for exact, rounded in zip(double, single, strict=True):
        apart = differences(exact, rounded, size_of(rounded))
        errors.append(float(apart.max(initial=0)))
    return errors


def accepted_difference(size: float, error: float | None) -> float:
    """Returns the largest difference that rounding explains.

    Args:
        size: largest magnitude of the logits.
        error: error of the model's own float32 logits; None if it was not measured.
    """
    if error is None:
        return ESTIMATED_SHARE * size
    if not np.isfinite(error):
        return LEAST_SHARE * size
    return float(np.clip(OWN_ERRORS * error, LEAST_SHARE * size, LARGEST_SHARE * size))


class _InFloat64(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Runs every operator in float64, those on float32 constants and casts to float32 included."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Runs one operator on widened arguments, and returns widened results."""
        widened_args, widened_options = tree_map(_widened, (args, dict(kwargs or {})))
        return tree_map(_widened, func(*widened_args, **widened_options))


def _widened(value: Any) -> Any:
    if value is torch.float32:
        return torch.float64
    if isinstance(value, Tensor) and value.dtype is torch.float32:
        return value.double()
    return value


def _heads(
    model: nn.Module, inputs: Inputs, tokens: NDArray[np.int64], dtype: torch.dtype
) -> list[NDArray[Any]]:
    tensors = (torch.from_numpy(np.array(value)) for value in inputs.values())
    memory = reference_memory(
        model, tuple(x.to(dtype) if x.is_floating_point() else x for x in tensors)
    )
    return [head.numpy() for head in reference_heads(model, memory, torch.from_numpy(tokens))]
