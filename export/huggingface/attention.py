"""Attention and masks for Hugging Face models, in a form that the analysis understands.

transformers selects both by a name in the config. Its own masks combine causality, cache and
padding in one (batch, query, key) table. These masks keep the constant causal part apart from the
padding, which depends on the memory, and are None where every key is visible.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import bidirectional_mask_function, causal_mask_function

NAME = "hybrid_deploy"
"""Name of this attention and its masks in a config."""

ADDED = "hybrid_deploy_added"
"""Name of the masks in the config of a model that adds them to the scores of its own attention."""


def plain_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Tensor] = causal_mask_function,
    attention_mask: Tensor | None = None,
    allow_is_bidirectional_skip: bool = False,
    device: torch.device | str = "cpu",
    **_: Any,
) -> Tensor | None:
    """Returns a boolean mask that is true for visible keys and broadcasts to the scores.

    Args:
        batch_size: number of sequences.
        q_length: number of queries.
        kv_length: number of keys.
        q_offset: position of the first query.
        kv_offset: position of the first key.
        mask_function: returns for (batch, head, query, key) indices whether the key is visible.
        attention_mask: (batch, keys), true for real data and false for padding.
        allow_is_bidirectional_skip: whether the result may be None if every key is visible.
        device: device of the mask.

    Returns:
        (1, 1, queries, keys) for causality, (batch, 1, 1, keys) for padding, both combined, or
        None.
    """
    padding = None if attention_mask is None else attention_mask.bool()[:, None, None, :]
    if mask_function is bidirectional_mask_function:
        if padding is not None or allow_is_bidirectional_skip:
            return padding
        return torch.ones(batch_size, 1, q_length, kv_length, dtype=torch.bool, device=device)
    zero = torch.zeros(1, 1, 1, 1, dtype=torch.int64, device=device)
    queries = torch.arange(q_length, device=device)[None, None, :, None] + q_offset
    keys = torch.arange(kv_length, device=device)[None, None, None, :] + kv_offset
    visible = mask_function(zero, zero, queries, keys)
    return visible if padding is None else visible & padding


def added_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> Tensor | None:
    """Returns `plain_mask` as numbers that are added to the scores.

    transformers' own mask for such a model indexes the padding by the number of a row in the batch,
    and a graph for any batch has no such constant.

    Args:
        batch_size: number of sequences.
        q_length: number of queries.
        kv_length: number of keys.
        dtype: type of the scores.
        options: other arguments of `plain_mask`.

    Returns:
        (batch, 1, queries, keys), 0 for visible keys and the least number for others; or None.
    """
    visible = plain_mask(batch_size, q_length, kv_length, **options)
    if visible is None:
        return None
    added = torch.zeros_like(visible, dtype=dtype).masked_fill(~visible, torch.finfo(dtype).min)
    return added.expand(batch_size, -1, q_length, kv_length)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    softcap: float | None = None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Returns attention by torch's fused operator, or by plain ones if its scores have a cap.

    Args:
        module: the attention module of transformers.
        query: (batch, heads, queries, width).
        key: (batch, heads or a divisor of their number, keys, width).
        value: (batch, as many heads as the keys, keys, width).
        attention_mask: true for visible keys; broadcasts to the scores.
        softcap: largest absolute score, which a hyperbolic tangent approaches; None for no limit.
        scaling: factor of the scores; None takes one over the root of the width.
        options: other arguments of transformers' attention.

    Returns:
        (batch, queries, heads, width), and None for the weights.
    """
    if softcap is None:
        mixed: Tensor = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **options
        )[0]
        return mixed, None
    groups = query.shape[1] // key.shape[1]
    key, value = (part.repeat_interleave(groups, dim=1) for part in (key, value))
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = softcap * torch.tanh(query @ key.transpose(2, 3) * scale / softcap)
    if attention_mask is not None:
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    return (scores.softmax(-1) @ value).transpose(1, 2).contiguous(), None


def use_plain_attention(model: nn.Module) -> None:
    """Makes the Hugging Face models inside a module use `plain_mask` and no cache.

    A model without transformers' attention interface uses its own attention, with `added_mask`.

    Args:
        model: changed in place.
    """
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, plain_mask)
    AttentionMaskInterface.register(ADDED, added_mask)
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            has_interface = module._can_set_attn_implementation()
            module.config._attn_implementation = NAME if has_interface else ADDED
            module.config.use_cache = False
            # no sequence is padded here, but its start token can be the padding token
            module.warn_if_padding_and_no_attention_mask = _no_warning


def _no_warning(*_: object) -> None:
    """Replaces transformers' warning about padding among the tokens."""
