"""Checks by the effect on the logits that a model neither looks ahead nor mixes sequences."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from hybrid_deploy.export.model.interface import reference_logits, reference_memory
from hybrid_deploy.export.parity.repeatable import check_repeatable, close
from hybrid_deploy.export.parity.special_tokens import mixed_tokens
from hybrid_deploy.export.trace.refusal import RunsDifferError

_TOLERANCE = 1e-4  # float32 sums in another order differ by less


def check_causal(
    model: nn.Module, inputs: Mapping[str, Tensor], length: int, special: Iterable[int] = ()
) -> None:
    """Checks on random and special tokens that no token changes the logits of an earlier one.

    Args:
        model: module in eval mode.
        inputs: example inputs of the encoder by name, any batch size.
        length: number of tokens to decode.
        special: ids that the model may treat unlike others, such as the padding.

    Raises:
        UnsupportedModelError: the decoder is not causal, or random.
    """
    memory = reference_memory(model, tuple(inputs.values()))
    tokens, vocabulary_size = _tokens(model, memory, length, special, seed=0)
    for first in sorted({1, length // 2, length - 1}):  # a mask may differ for the first ones only
        changed = tokens.clone()
        changed[:, first:] = (tokens[:, first:] + 1) % vocabulary_size
        before, after = (reference_logits(model, memory, t)[:, :first] for t in (tokens, changed))
        if torch.allclose(before, after, atol=_TOLERANCE, equal_nan=True):
            continue
        check_repeatable(model, inputs, tokens)
        raise RunsDifferError(
            "decode() is not causal: tokens change the logits of the tokens before them, so they "
            "cannot be decoded one by one; give its self-attention a causal mask"
        )


def check_batch(
    model: nn.Module, inputs: Mapping[str, Tensor], length: int, special: Iterable[int] = ()
) -> None:
    """Checks that no sequence of a batch changes the memory or the logits of another.

    Args:
        model: module in eval mode.
        inputs: example inputs of the encoder by name, a batch of at least two.
        length: number of tokens to decode.
        special: ids that the model may treat unlike others, such as the padding.

    Raises:
        UnsupportedModelError: the encoder or the decoder mixes the sequences of a batch, or is
            random.
    """
    pair = tuple(with_distinct_rows(value[:2]) for value in inputs.values())
    pair_memory = reference_memory(model, pair)
    if not all(_encodes_alone(model, pair, pair_memory, row) for row in range(2)):
        check_repeatable(model, dict(zip(inputs, pair, strict=True)))
        raise RunsDifferError(
            "encode() mixes the inputs of a batch: an input's memory changes with the inputs "
            "beside it; compute every input by itself"
        )
    tokens, vocabulary_size = _tokens(model, pair_memory, length, special, seed=1)
    # special tokens in one sequence only: their effect on the other is what is looked for
    generator = torch.Generator().manual_seed(1)
    tokens[:1] = torch.randint(vocabulary_size, (1, length), generator=generator)
    pair_logits = reference_logits(model, pair_memory, tokens)
    rows = [tuple(tensor[row : row + 1] for tensor in pair_memory) for row in range(2)]
    alone = [reference_logits(model, rows[row], tokens[row : row + 1]) for row in range(2)]
    if not all(close(pair_logits[row : row + 1], alone[row]) for row in range(2)):
        check_repeatable(model, dict(zip(inputs, pair, strict=True)), tokens)
        raise RunsDifferError(
            "decode() mixes the sequences of a batch: a sequence's logits change with the "
            "sequences beside it; compute every sequence by itself"
        )


def _tokens(
    model: nn.Module, memory: tuple[Tensor, ...], length: int, special: Iterable[int], seed: int
) -> tuple[Tensor, int]:
    """Returns tokens (batch, length) that mix random and special ones, and their vocabulary."""
    batch = memory[0].shape[0]
    one = torch.ones(batch, 1, dtype=torch.int64)
    vocabulary_size = reference_logits(model, memory, one).shape[-1]
    tokens = mixed_tokens(vocabulary_size, (batch, length), special, np.random.default_rng(seed))
    return torch.from_numpy(tokens), vocabulary_size


def _encodes_alone(
    model: nn.Module, pair: tuple[Tensor, ...], memory: tuple[Tensor, ...], row: int
) -> bool:
    """Returns whether one of two inputs has the same memory alone as beside the other.

    Both rows count: the largest value of a batch, for example, changes the memory of the other row
    only.
    """
    alone = reference_memory(model, tuple(value[row : row + 1] for value in pair))
    return all(close(a[row : row + 1], b) for a, b in zip(memory, alone, strict=True))


def with_distinct_rows(value: Tensor) -> Tensor:
    """Returns a copy of an input with a changed second row, within the range of its values.

    Args:
        value: (batch, ...), two rows or more. Floats of the second row are halved, or 1 if all
            are 0; integers and booleans are put in reverse order.
    """
    pair = value.clone()
    if value.is_floating_point():
        pair[1] = value[1] / 2 if bool(value[1].any()) else 1
    else:
        pair[1] = value[1].flatten().flip(0).reshape(value[1].shape)
    return pair
