"""Lets layers of torch.nn ask whether a mask is causal, although a trace has no mask to look at.

`nn.TransformerEncoder` and `nn.TransformerDecoder` compare a mask with the causal one, and tell
their attention if it is. The mask is applied in both cases, so the answer "no" is always right; it
is given where the mask's size varies, and a trace cannot compare its values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.nn.modules import transformer

_DETECT = "_detect_is_causal_mask"


@contextmanager
def unknown_masks_are_not_causal() -> Iterator[None]:
    """While it is active, torch.nn takes a mask of unknown values as not causal."""
    detect: Callable[..., bool] | None = getattr(transformer, _DETECT, None)
    if detect is None:  # this version of PyTorch does not look at masks
        yield
        return

    def detect_if_known(
        mask: Tensor | None, is_causal: bool | None = None, size: int | None = None
    ) -> bool:
        try:
            return detect(mask, is_causal, size)
        except GuardOnDataDependentSymNode:
            return False

    setattr(transformer, _DETECT, detect_if_known)
    try:
        yield
    finally:
        setattr(transformer, _DETECT, detect)
