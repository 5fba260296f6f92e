"""Layers of experts that compute every expert, and weigh the chosen one's rows.

rows[expert == chosen]       (reads the values of all rows)
  becomes    sum of every expert, times its share, which is 0 unless it is chosen
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class AllSwitchExperts(nn.Module):
    """Switch's layer of experts, which computes every expert and keeps the chosen one's rows.

    The original selects rows by their values. Its experts also drop the tokens of a sequence that
    come after `expert_capacity` tokens; a decoder in `generate()` reads one token at a time and
    drops none.

    Args:
        old: Switch's sparse layer, whose router and experts are taken.
        capacity: largest number of tokens of an expert and a sequence; None sets no limit.
    """

    def __init__(self, old: Any, capacity: int | None) -> None:
        super().__init__()
        self.classifier: nn.Linear = old.router.classifier
        self.experts = nn.ModuleList(old.experts.values())
        self.capacity = capacity

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Returns each row (batch, length, width) as its expert changes it."""
        shares = self.classifier(hidden_states).softmax(-1)
        share = shares.amax(-1, keepdim=True)
        chosen = shares == share  # (batch, length, experts)
        if self.capacity is not None:
            chosen = chosen & (chosen.long().cumsum(1) <= self.capacity)
        weights = share * chosen.to(share.dtype)
        rows = torch.zeros_like(hidden_states)
        for number, expert in enumerate(self.experts):
            rows = rows + expert(hidden_states) * weights[..., number : number + 1]
        return rows


def unlimited_experts(old: Any) -> AllSwitchExperts:
    """Returns the layer for a decoder, which drops no token."""
    return AllSwitchExperts(old, capacity=None)


def limited_experts(old: Any) -> AllSwitchExperts:
    """Returns the layer for an encoder, which drops the tokens behind its capacity."""
    return AllSwitchExperts(old, int(old.router.expert_capacity))
