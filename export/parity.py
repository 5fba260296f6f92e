"""The gate: exported graphs must compute what the model computes, or no bundle is written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hybrid_deploy.errors import ParityError
from hybrid_deploy.export.model import reference_logits, reference_memory
from hybrid_deploy.manifest import GenerationDefaults
from hybrid_deploy.runtime.backend import Backend

LARGEST_DIFFERENCE = 1e-4
"""Largest accepted difference of a float32 logit: both sides round their sums in another order."""

Inputs = Mapping[str, NDArray[Any]]


@dataclass
class Parity:
    """How exported graphs compare with their model.

    Attributes:
        sequences: how many were decoded.
        steps: how many tokens were compared, summed over the sequences.
        largest_difference: of any logit.
    """

    sequences: int = 0
    steps: int = 0
    largest_difference: float = 0.0


def check_parity(
    model: nn.Module,
    backend: Backend,
    generation: GenerationDefaults,
    batches: Iterable[Inputs],
    advance: Callable[[int], None] | None = None,
) -> Parity:
    """Decodes every input with the model's full re-run and with the exported graphs.

    Args:
        model: the original, in eval mode.
        backend: the exported graphs.
        generation: how decoding starts and ends.
        batches: encoder inputs, batch first.
        advance: told the size of every batch when it is done.

    Raises:
        ParityError: a token differs, or a logit by more than LARGEST_DIFFERENCE.
    """
    parity = Parity()
    for number, inputs in enumerate(batches):
        size = len(next(iter(inputs.values())))
        prompts = np.tile(np.array(generation.start_tokens, np.int64), (size, 1))
        lengths = np.full(size, prompts.shape[1], np.int64)
        _compare(model, backend, generation, inputs, prompts, lengths, parity, f"batch {number}")
        if advance is not None:
            advance(size)
    return parity


def check_prompts(
    model: nn.Module,
    backend: Backend,
    generation: GenerationDefaults,
    inputs: Inputs,
    vocabulary_size: int,
    seed: int = 0,
) -> Parity:
    """Decodes random prompts of unequal lengths, so that prefill and positions are covered.

    Raises:
        ParityError: a token differs, or a logit by more than LARGEST_DIFFERENCE.
    """
    rng, parity = np.random.default_rng(seed), Parity()
    size = len(next(iter(inputs.values())))
    longest = min(3, generation.max_length - 1)
    for lengths in (np.ones(size, np.int64), np.arange(size) % longest + 1):
        prompts = rng.integers(0, vocabulary_size, (size, longest))[:, : lengths.max()]
        endless = GenerationDefaults(
            start_tokens=(),
            end_token=None,
            pad_token=generation.pad_token,
            max_length=generation.max_length,
        )
        name = f"prompts of {lengths.tolist()} tokens"
        _compare(model, backend, endless, inputs, prompts, lengths, parity, name)
    return parity


def _compare(
    model: nn.Module,
    backend: Backend,
    generation: GenerationDefaults,
    inputs: Inputs,
    prompts: NDArray[np.int64],
    lengths: NDArray[np.int64],
    parity: Parity,
    name: str,
) -> None:
    """Feeds both sides the model's own greedy tokens and compares every logit on the way."""
    memory = reference_memory(model, tuple(torch.from_numpy(a) for a in inputs.values()))
    decoding, size = backend.start(inputs), len(lengths)
    tokens = np.full((size, generation.max_length), generation.pad_token, np.int64)
    tokens[:, : prompts.shape[1]] = prompts
    lengths, active = lengths.copy(), np.ones(size, bool)
    logits = decoding.prefill(prompts, np.zeros(size, np.int64), lengths - 1)
    if prompts.shape[1] == 1:
        prefilled = logits.copy()
        logits = decoding.step(prompts[:, 0], np.zeros(size, np.int64))
        parity.largest_difference = max(
            parity.largest_difference, float(np.abs(prefilled - logits).max())
        )
    rows = np.arange(size)
    while True:
        full = torch.from_numpy(tokens[:, : lengths.max()])
        wanted = reference_logits(model, memory, full).numpy()[rows, lengths - 1]
        difference = float(np.abs(wanted - logits)[active].max())
        parity.largest_difference = max(parity.largest_difference, difference)
        parity.steps += int(active.sum())
        best = wanted.argmax(-1)
        differing = np.flatnonzero((best != logits.argmax(-1)) & active)
        if len(differing) or not parity.largest_difference <= LARGEST_DIFFERENCE:
            row = int(differing[0]) if len(differing) else 0
            raise ParityError(
                f"the exported graphs differ from the model in {name}, sequence {row}, after "
                f"{int(lengths[row])} tokens: token {int(logits[row].argmax())} instead of "
                f"{int(best[row])}, largest difference of a logit "
                f"{parity.largest_difference:.1e}; no bundle was written"
            )
        active &= lengths < generation.max_length
        active &= best != (-1 if generation.end_token is None else generation.end_token)
        if not active.any():
            break
        tokens[rows[active], lengths[active]] = best[active]
        lengths[active] += 1
        logits = decoding.step(tokens[rows, lengths - 1], lengths - 1)
    parity.sequences += size
