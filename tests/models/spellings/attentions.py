"""Causal self-attentions with another softmax, without one, or with mixed heads."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models.zoo.captioner import (
    HEADS,
)
from tests.models.zoo.self_attentions import SIZE, HandWritten


def _scores(q: Tensor, k: Tensor) -> Tensor:
    length = q.shape[2]
    future = torch.ones(length, length, dtype=torch.bool).triu(1)
    scores: Tensor = (q @ k.transpose(-1, -2) / SIZE**0.5).masked_fill(future, float("-inf"))
    return scores


def softmax_plus_one(attention: nn.Module, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = _scores(q, k)
    highest = scores.amax(-1, keepdim=True).clamp(min=0)
    weights = (scores - highest).exp()
    mixed: Tensor = weights / (weights.sum(-1, keepdim=True) + (-highest).exp()) @ v
    return mixed


def softmax_by_max(attention: nn.Module, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = _scores(q, k)
    weights = (scores - scores.max(-1, keepdim=True).values).exp()
    mixed: Tensor = (weights / weights.sum(-1, keepdim=True)) @ v
    return mixed


def softmax_by_logsumexp(attention: nn.Module, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = _scores(q, k)
    mixed: Tensor = (scores - scores.logsumexp(-1, keepdim=True)).exp() @ v
    return mixed


def linear_attention(attention: nn.Module, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    past = torch.ones(q.shape[2], q.shape[2]).tril()
    weights = ((F.elu(q) + 1) @ (F.elu(k) + 1).transpose(-1, -2)) * past
    mixed: Tensor = weights @ v / (weights.sum(-1, keepdim=True) + 1e-6)
    return mixed


def l1_attention(attention: nn.Module, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    past = torch.ones(q.shape[2], q.shape[2]).tril()
    return F.normalize((q @ k.transpose(-1, -2)).relu() * past, p=1.0, dim=-1) @ v


def filled_in_place(attention: nn.Module, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    steps = torch.arange(q.shape[2])
    scores = torch.einsum("bhid,bhjd->bhij", q, k)
    scores.mul_(SIZE**-0.5)
    scores.masked_fill_(steps[None, None, :, None] < steps[None, None, None, :], -1e30)
    return F.softmax(scores, dim=-1) @ v


class TalkingHeads(HandWritten):
    """Heads mixed before and after the softmax by a convolution of size one (x-transformers)."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(HEADS, HEADS, 1, bias=False)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        mixed = self.mix(q @ k.transpose(-1, -2) / SIZE**0.5)
        future = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool).triu(1)
        weights: Tensor = self.mix(mixed.masked_fill(future, float("-inf")).softmax(-1))
        return weights @ v


def mean_attention(attention: nn.Module, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = (q @ k.transpose(-1, -2)) * torch.ones(q.shape[2], q.shape[2]).tril()
    mixed: Tensor = weights @ v / (weights.abs().mean(-1, keepdim=True) + 1)
    return mixed


def weakly_masked(attention: nn.Module, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = (q @ k.transpose(-1, -2) - 20 * torch.ones(q.shape[2], q.shape[2]).triu(1)).exp()
    mixed: Tensor = weights @ v / weights.sum(-1, keepdim=True)
    return mixed
