"""Tells a random model from one whose runs differ for the reason that a check suspects.

A model that skips a layer in one run of 20 returns other logits for 13 tokens than for 16 by
chance, which looks like a dependence on the length.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from hybrid_deploy.errors import HybridDeployError, ParityError, UnsupportedModelError
from hybrid_deploy.export.model.interface import reference_logits, reference_memory
from hybrid_deploy.export.trace.refusal import RunsDifferError

_TOLERANCE = 1e-4  # float32 sums in another order differ by less
_MOST_RUNS = 100  # a model that is random in one run of 20 shows it in 99 of 100 cases
_LONGEST_SECONDS = 2.0


@contextmanager
def chance_told_first(
    model: nn.Module, inputs: Mapping[str, Tensor], length: int
) -> Iterator[None]:
    """Repeats a model's run before a refusal passes that says why two of its runs differ.

    Args:
        model: module in eval mode.
        inputs: inputs of the encoder by name, batch first.
        length: number of tokens to decode.

    Raises:
        UnsupportedModelError: the model is random, or the refusal itself.
        ParityError: the refusal itself.
    """
    try:
        yield
    except (RunsDifferError, ParityError) as refusal:
        tokens = torch.ones(len(next(iter(inputs.values()))), length, dtype=torch.int64)
        try:
            check_repeatable(model, inputs, tokens, _MOST_RUNS)
        except HybridDeployError as chance:
            raise chance from refusal
        if isinstance(refusal, RunsDifferError):  # its type is of use to the exporter alone
            raise UnsupportedModelError(str(refusal)) from refusal
        raise


def check_repeatable(
    model: nn.Module, inputs: Mapping[str, Tensor], tokens: Tensor | None = None, runs: int = 2
) -> None:
    """Refuses a model of which two runs on the same values differ.

    It tells the true reason where two runs on different values differ too.

    Args:
        model: module in eval mode.
        inputs: inputs of the encoder by name, batch first.
        tokens: tokens to decode, (batch, length); None runs the encoder alone.
        runs: largest number of runs; after some seconds there are no more.

    Raises:
        UnsupportedModelError: the model is random, or remembers earlier runs.
    """
    values, end = tuple(inputs.values()), time.monotonic() + _LONGEST_SECONDS
    memory = reference_memory(model, values)
    logits = None if tokens is None else reference_logits(model, memory, tokens)
    for run in range(1, runs):
        if run > 1 and time.monotonic() > end:
            return
        if not all(map(close, memory, reference_memory(model, values))):
            raise _random("encode()")
        if tokens is None or logits is None:
            continue
        if not close(logits, reference_logits(model, memory, tokens)):
            has_decode = callable(getattr(model, "decode", None))
            raise _random("decode()" if has_decode else "step()")


def close(a: Tensor, b: Tensor) -> bool:
    """Returns whether two tensors are equal up to rounding; types without rounding are equal."""
    if a.shape != b.shape or not a.is_floating_point():
        return torch.equal(a, b)
    scale = float(b.abs().nan_to_num().max()) + 1
    return torch.allclose(a, b, atol=_TOLERANCE * scale, rtol=0, equal_nan=True)


def _random(part: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{part} returns other values in a second run on the same values: it is random, or "
        "keeps something from run to run; an export needs a model without either"
    )
