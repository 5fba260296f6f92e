"""What a decoder must not do, found by its effect: look ahead, or look at other sequences."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from hybrid_deploy.errors import UnsupportedModelError
from hybrid_deploy.export.model.interface import reference_logits, reference_memory

_NOISE = 1e-4  # of float32 sums in another order


def check_causal(model: nn.Module, inputs: Mapping[str, Tensor], length: int) -> None:
    """Checks that no token changes the logits before it, on random tokens.

    Args:
        model: in eval mode.
        inputs: example inputs of the encoder, any batch.
        length: how many tokens to decode.

    Raises:
        UnsupportedModelError: the decoder is not causal.
    """
    memory = reference_memory(model, tuple(inputs.values()))
    generator, batch = torch.Generator().manual_seed(0), memory[0].shape[0]
    start = torch.ones(batch, length, dtype=torch.int64)
    vocabulary = reference_logits(model, memory, start).shape[-1]
    tokens = torch.randint(vocabulary, (batch, length), generator=generator)
    changed = tokens.clone()
    changed[:, length // 2 :] = (tokens[:, length // 2 :] + 1) % vocabulary
    first, second = (
        reference_logits(model, memory, t)[:, : length // 2] for t in (tokens, changed)
    )
    if not torch.allclose(first, second, atol=_NOISE, equal_nan=True):
        raise UnsupportedModelError(
            "decode() is not causal: tokens change the logits of the tokens before them, so they "
            "cannot be decoded one by one; give its self-attention a causal mask"
        )


def check_batch(model: nn.Module, inputs: Mapping[str, Tensor], length: int) -> None:
    """Checks that no sequence of a batch changes what is computed for another.

    Args:
        model: in eval mode.
        inputs: example inputs of the encoder, at least two.
        length: how many tokens to decode.

    Raises:
        UnsupportedModelError: encoder or decoder mixes the sequences of a batch.
    """
    generator = torch.Generator().manual_seed(1)
    pair = tuple(varied(value[:2]) for value in inputs.values())
    alone = tuple(value[:1] for value in pair)
    together, single = reference_memory(model, pair), reference_memory(model, alone)
    if not all(_same(a[:1], b) for a, b in zip(together, single, strict=True)):
        raise UnsupportedModelError(
            "encode() mixes the inputs of a batch: an input's memory changes with the inputs "
            "beside it; compute every input by itself"
        )
    tokens = torch.randint(2, (2, length), generator=generator)
    both = reference_logits(model, together, tokens)
    first = reference_logits(model, single, tokens[:1])
    if not _same(both[:1], first):
        raise UnsupportedModelError(
            "decode() mixes the sequences of a batch: a sequence's logits change with the "
            "sequences beside it; compute every sequence by itself"
        )


def varied(value: Tensor) -> Tensor:
    """Returns an input whose second row differs from the first, within the example's values."""
    pair = value.clone()
    if value.is_floating_point():
        pair[1] = value[1] / 2 if bool(value[1].any()) else 1
    else:
        pair[1] = value[1].flatten().flip(0).reshape(value[1].shape)
    return pair


def _same(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or not a.is_floating_point():
        return torch.equal(a, b)
    scale = float(b.abs().nan_to_num().max()) + 1
    return torch.allclose(a, b, atol=_NOISE * scale, rtol=0, equal_nan=True)
