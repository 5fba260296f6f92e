"""Models that have no right incremental form, each made of a right one by one fault.

A fault changes how a model runs, so an exporter has to refuse it; what it says must be true.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Wrong(nn.Module):
    """A model whose rows of tokens, or memory, pass through a fault.

    Args:
        kind: the fault, one of `FAULTS`, or "none".
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("moving", torch.zeros(()))
        self.seen: list[Tensor] = []

    def rows(self, x: Tensor, tokens: Tensor) -> Tensor:
        """Returns the rows of tokens, (batch, length, width), as the fault leaves them."""
        fault = _ROWS.get(self.kind)
        return x if fault is None else fault(self, x, tokens)

    def memory(self, x: Tensor) -> Tensor:
        """Returns the memory, (batch, places, width), as the fault leaves it."""
        fault = _MEMORY.get(self.kind)
        return x if fault is None else fault(self, x)


def _added(x: Tensor, amount: Any) -> Tensor:
    """Adds an amount to the channels in unequal parts: a norm takes away what all have alike."""
    changed: Tensor = x + amount * torch.linspace(-1, 1, x.shape[-1])
    return changed


def _counted(self: Any, x: Tensor) -> Tensor:
    self.count += 1
    return _added(x, self.count)


def _moving(self: Any, x: Tensor) -> Tensor:
    self.moving.copy_(0.5 * self.moving + 0.5 * x.detach().mean() + 1)
    return _added(x, self.moving)


def _remembered(self: Any, x: Tensor) -> Tensor:
    self.seen.append(x.detach().mean())
    return _added(x, 0.3 * len(self.seen))


Rows = Callable[[Any, Tensor, Tensor], Tensor]
_ROWS: dict[str, Rows] = {
    "mean_of_tokens": lambda s, x, t: x + 3 * x.mean(1, keepdim=True),
    "max_of_tokens": lambda s, x, t: x - x.amax(1, keepdim=True),
    "next_row": lambda s, x, t: x + F.pad(x[:, 1:], (0, 0, 0, 1)),
    "last_row": lambda s, x, t: x + 2 * x[:, -1:],
    "last_token": lambda s, x, t: _added(x, t[:, -1:, None]),
    "reversed": lambda s, x, t: x + x.flip(1),
    "sum_from_end": lambda s, x, t: x + x.flip(1).cumsum(1).flip(1),
    "normed_length": lambda s, x, t: F.normalize(x, dim=1) * 4,
    "softmax_length": lambda s, x, t: x * x.softmax(1) * t.shape[1],
    "share_of_length": lambda s, x, t: x * (1 + torch.arange(t.shape[1]) / t.shape[1])[:, None],
    "times_length": lambda s, x, t: x * (t.shape[1] / 4),
    "if_long": lambda s, x, t: x * 2 if t.shape[1] > 4 else x - 1,
    "if_odd": lambda s, x, t: x * 2 if t.shape[1] % 2 else x - 1,
    "batch_mean": lambda s, x, t: x + 2 * x.mean(0, keepdim=True),
    "batch_max": lambda s, x, t: torch.where(x >= x.amax(0), x * 2, x),
    "batch_flip": lambda s, x, t: x + x.flip(0),
    "batch_first": lambda s, x, t: x + x[:1],
    "batch_size": lambda s, x, t: x * len(x),
    "noise": lambda s, x, t: x + torch.randn_like(x),
    "dropout": lambda s, x, t: F.dropout(x, 0.5),
    "counter": lambda s, x, t: _counted(s, x),
    "moving": lambda s, x, t: _moving(s, x),
    "list_in_self": lambda s, x, t: _remembered(s, x),
    "any_token": lambda s, x, t: x * 2 if bool((t == 3).any()) else x,
    "item": lambda s, x, t: x * float(x.detach().abs().max()),
    "unique": lambda s, x, t: x * torch.unique(t).numel(),
    "numpy": lambda s, x, t: x + torch.from_numpy(x.detach().numpy().max(1, keepdims=True)),
}

_MEMORY: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "encode_noise": lambda s, x: x + torch.rand_like(x),
    "encode_batch_mean": lambda s, x: x - 2 * x.mean(0),
    "encode_batch_max": lambda s, x: x * (x >= x.amax((0, 1))),
    "encode_counter": lambda s, x: _counted(s, x),
    "encode_list": lambda s, x: _remembered(s, x),
    "encode_sorted_batch": lambda s, x: x + x.sort(0).values,
}

FAULTS = (*_ROWS, *_MEMORY, "train")
"""Names of the faults; `train` leaves the model in training mode."""
