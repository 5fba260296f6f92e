"""The gate: exported graphs must compute what the model computes, or no bundle is written."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hybrid_deploy.bundle.manifest import GenerationDefaults
from hybrid_deploy.errors import ParityError
from hybrid_deploy.export.model.interface import Inputs, reference_heads, reference_memory
from hybrid_deploy.runtime.backends.protocol import Backend, SeveralHeads

LARGEST_DIFFERENCE = 1e-4
"""Largest accepted difference of a float32 logit: both sides round their sums in another order."""

_LARGE_LOGIT = 16.0  # the accepted difference grows with logits above this one, as rounding does

_BLOCK = 16  # as many steps' logits are kept until the model has decoded them too


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

    def note(self, wanted: NDArray[np.float32], given: NDArray[np.float32]) -> bool:
        """Takes in what the model and the graphs gave; tells whether it is close enough."""
        difference = np.abs(wanted - given).max(initial=0)  # one that is no number stays for good
        self.largest_difference = float(np.maximum(self.largest_difference, difference))
        scale = max(1.0, float(np.abs(wanted).max(initial=0)) / _LARGE_LOGIT)
        return bool(difference <= LARGEST_DIFFERENCE * scale)

    def add(self, other: Parity) -> None:
        """Takes in another comparison."""
        self.sequences += other.sequences
        self.steps += other.steps
        self.largest_difference = float(
            np.maximum(self.largest_difference, other.largest_difference)
        )


@dataclass(frozen=True)
class _Step:
    """What the graphs gave for one more token, (batch, width) each: logits, then other heads."""

    lengths: NDArray[np.int64]
    active: NDArray[np.bool_]
    heads: tuple[NDArray[Any], ...]


def compare_greedy(
    model: nn.Module,
    backend: Backend,
    generation: GenerationDefaults,
    batches: Iterable[Inputs],
) -> Parity:
    """Decodes every input with the model's full re-run and with the exported graphs.

    Args:
        model: the original, in eval mode.
        backend: the exported graphs.
        generation: how decoding starts and ends.
        batches: encoder inputs, batch first.

    Raises:
        ParityError: a token differs, or a logit by more than LARGEST_DIFFERENCE.
    """
    parity = Parity()
    for number, inputs in enumerate(batches):
        size = len(next(iter(inputs.values())))
        prompts = np.tile(np.array(generation.start_tokens, np.int64), (size, 1))
        lengths = np.full(size, prompts.shape[1], np.int64)
        _compare(model, backend, generation, inputs, prompts, lengths, parity, f"batch {number}")
    return parity


def compare_random_prompts(
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
            end_tokens=(),
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
    """Lets the graphs decode, and compares every logit with the model's on the same tokens.

    The first token that differs ends it, so both sides decode the same tokens throughout. The
    model decodes a block of tokens at a time, since none of its logits depends on later tokens.
    """
    memory = reference_memory(model, tuple(torch.from_numpy(a) for a in inputs.values()))
    decoding, size = backend.start(inputs), len(lengths)
    tokens = np.full((size, generation.max_length), generation.pad_token, np.int64)
    tokens[:, : prompts.shape[1]] = prompts
    lengths, active = lengths.copy(), np.ones(size, bool)
    logits = decoding.prefill(prompts, np.zeros(size, np.int64), lengths - 1)
    if prompts.shape[1] == 1:
        prefilled, decoding = logits.copy(), backend.start(inputs)
        logits = decoding.step(prompts[:, 0], np.zeros(size, np.int64))
        parity.note(prefilled, logits)
    rows, block = np.arange(size), list[_Step]()
    while True:
        others = decoding.heads.values() if isinstance(decoding, SeveralHeads) else ()
        heads = tuple(values.copy() for values in (logits, *others))
        block.append(_Step(lengths.copy(), active.copy(), heads))
        best = logits.argmax(-1)
        active &= lengths < generation.max_length
        active &= ~np.isin(best, generation.end_tokens)
        if len(block) == _BLOCK or not active.any():
            _compare_block(model, memory, tokens, block, parity, name)
            block.clear()
        if not active.any():
            break
        tokens[rows[active], lengths[active]] = best[active]
        lengths[active] += 1
        logits = decoding.step(tokens[rows, lengths - 1], lengths - 1)
    parity.sequences += size


def _compare_block(
    model: nn.Module,
    memory: tuple[Tensor, ...],
    tokens: NDArray[np.int64],
    block: Sequence[_Step],
    parity: Parity,
    name: str,
) -> None:
    """Compares some steps with one full run of the model over the tokens so far."""
    longest = int(block[-1].lengths.max())
    full = reference_heads(model, memory, torch.from_numpy(tokens[:, :longest]))
    for step in block:
        places = np.arange(len(tokens)), step.lengths - 1
        wanted = [head.numpy()[places] for head in full]
        close = [
            parity.note(a[step.active], b[step.active])
            for a, b in zip(wanted, step.heads, strict=True)
        ]
        parity.steps += int(step.active.sum())
        best, given = wanted[0].argmax(-1), step.heads[0].argmax(-1)
        differing = np.flatnonzero((best != given) & step.active)
        if len(differing) or not all(close):
            row = int(differing[0]) if len(differing) else 0
            raise ParityError(
                f"the exported graphs differ from the model in {name}, sequence {row}, after "
                f"{int(step.lengths[row])} tokens: token {int(given[row])} instead of "
                f"{int(best[row])}, largest difference of a logit "
                f"{parity.largest_difference:.1e}; no bundle was written"
            )
