"""Attention and masks of Hugging Face models, in a form that the analysis reads.

Transformers picks both by a name in the config. Its own masks are made for caches and padding in
one table per batch and query; these keep apart what is constant (the past), what depends on memory
(its padding) and what need not be there at all.
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
"""What the attention is called in a config."""


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
    """Returns a boolean mask, true where a key may be seen, that broadcasts to the scores.

    Args:
        batch_size: number of sequences.
        q_length: number of queries.
        kv_length: number of keys.
        q_offset: position of the first query.
        kv_offset: position of the first key.
        mask_function: tells of (batch, head, query, key) indices whether the key may be seen.
        attention_mask: (batch, keys), true for keys that are no padding.
        allow_is_bidirectional_skip: no mask will do where everything is seen.
        device: of the mask.

    Returns:
        (1, 1, queries, keys), (batch, 1, 1, keys), both combined, or None.
    """
    padding = None if attention_mask is None else attention_mask.bool()[:, None, None, :]
    if mask_function is bidirectional_mask_function:
        if padding is not None or allow_is_bidirectional_skip:
            return padding
        return torch.ones(batch_size, 1, q_length, kv_length, dtype=torch.bool, device=device)
    one = torch.zeros(1, 1, 1, 1, dtype=torch.int64, device=device)
    queries = torch.arange(q_length, device=device)[None, None, :, None] + q_offset
    keys = torch.arange(kv_length, device=device)[None, None, None, :] + kv_offset
    seen = mask_function(one, one, queries, keys)
    return seen if padding is None else seen & padding


def with_plain_attention(model: nn.Module) -> None:
    """Makes the Hugging Face models in a module attend with plain masks and keep no cache.

    Models whose attention does not follow transformers' interface attend as they are written.
    """
    AttentionInterface.register(NAME, sdpa_attention_forward)
    AttentionMaskInterface.register(NAME, plain_mask)
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            follows = module._can_set_attn_implementation()
            module.config._attn_implementation = NAME if follows else "eager"
            module.config.use_cache = False
            # tokens are never padded here, and a padding token can be the first one
            module.warn_if_padding_and_no_attention_mask = _no_warning


def _no_warning(*_: object) -> None:
    """Stands for transformers' warning about padding among the tokens."""
