"""One-hot vectors whose number of classes follows a size of the input.

before    one_hot(tokens, classes)              (ONNX keeps the number of classes of the trace)
after     (tokens[..., None] == arange(classes)).long()
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def one_hot_by_comparison(tensor: Tensor, num_classes: int = -1) -> Tensor:
    """Returns `one_hot`, by a comparison if the number of classes varies.

    Args:
        tensor: int64 class numbers of any shape.
        num_classes: number of classes; -1 takes the largest class number plus one.

    Returns:
        int64, with an axis for the classes behind those of the input.
    """
    if not isinstance(num_classes, torch.SymInt):
        return F.one_hot(tensor, num_classes)
    return (tensor.unsqueeze(-1) == torch.arange(num_classes, device=tensor.device)).long()
