"""What a model is traced with, so that nothing is left that has no portable form."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from hybrid_deploy.export.trace.complex_pairs import ComplexPair, pairs_of
from hybrid_deploy.export.trace.max_pool1d import max_pool_in_two_dimensions

_PORTABLE: dict[Any, Callable[..., Any]] = {
    torch.max_pool1d: max_pool_in_two_dimensions,
    F.max_pool1d: max_pool_in_two_dimensions,
    torch.view_as_complex: pairs_of,
    torch.complex: ComplexPair,
}


class PortableForms(TorchFunctionMode):
    """Replaces functions that have no portable form by others that compute the same."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Calls the function or what stands for it."""
        return _PORTABLE.get(func, func)(*args, **(kwargs or {}))
