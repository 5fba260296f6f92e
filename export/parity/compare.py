"""Compares tokens and logits of exported graphs with those of the model that they come from."""

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
from hybrid_deploy.runtime.backends.protocol import Backend, Decoding, FloatArray, SeveralHeads

LARGEST_DIFFERENCE = 1e-4
"""Largest accepted difference of a float32 logit: the two sides add numbers in another order.

It grows in proportion to the largest logit where that is over 16.
"""

_LARGE_LOGIT = 16.0  # rounding grows with the size of the numbers

_BLOCK_STEPS = 16  # number of steps that one run of the model checks


@dataclass
class Parity:
    """The result of comparing exported graphs with their model.

    Attributes:
        sequences: number of sequences decoded.
        steps: number of tokens compared, summed over the sequences.
        largest_difference: largest absolute difference of any logit; NaN if a logit is NaN.
    """

    sequences: int = 0
    steps: int = 0
    largest_difference: float = 0.0

    def note(self, expected: NDArray[np.float32], actual: NDArray[np.float32]) -> bool:
        """Adds the difference of two arrays of logits; returns whether it is accepted.

        Args:
            expected: the model's logits, any shape.
            actual: the graphs' logits, of the same shape.
        """
        # np.maximum, unlike max(), never replaces a NaN
        difference = np.abs(expected - actual).max(initial=0)
        self.largest_difference = float(np.maximum(self.largest_difference, difference))
        scale = max(1.0, float(np.abs(expected).max(initial=0)) / _LARGE_LOGIT)
        return bool(difference <= LARGEST_DIFFERENCE * scale)

    def add(self, other: Parity) -> None:
        """Adds the counts and the largest difference of another comparison."""
        self.sequences += other.sequences
        self.steps += other.steps
        self.largest_difference = float(
            np.maximum(self.largest_difference, other.largest_difference)
        )


def compare_greedy(
    model: nn.Module,
    backend: Backend,
    generation: GenerationDefaults,
    batches: Iterable[Inputs],
) -> Parity:
    """Compares greedy decoding of every input by the model's full re-run and by the graphs.

    Args:
        model: the original module, in eval mode.
        backend: the exported graphs.
        generation: start tokens, end tokens and the largest length.
        batches: encoder inputs by name, batch first.

    Raises:
        ParityError: a token differs, or a logit by more than `Parity.note` accepts.
    """
    comparison = _Comparison(model, backend, generation, Parity())
    for number, inputs in enumerate(batches):
        size = len(next(iter(inputs.values())))
        prompts = np.tile(np.array(generation.start_tokens, np.int64), (size, 1))
        lengths = np.full(size, prompts.shape[1], np.int64)
        comparison.run(inputs, prompts, lengths, f"batch {number}")
    return comparison.parity


def compare_random_prompts(
    model: nn.Module,
    backend: Backend,
    generation: GenerationDefaults,
    inputs: Inputs,
    vocabulary_size: int,
    seed: int = 0,
) -> Parity:
    """Compares greedy decoding after random prompts, up to the largest length without an end token.

    Prompts of one token are decoded by steps alone, and the difference between prefill and step is
    noted; prompts of unequal lengths test the prefill and the positions of each sequence.

    Args:
        model: the original module, in eval mode.
        backend: the exported graphs.
        generation: largest length and pad token.
        inputs: encoder inputs by name, batch first.
        vocabulary_size: number of tokens to draw from.
        seed: seed of the prompts.

    Raises:
        ParityError: a token differs, or a logit by more than `Parity.note` accepts.
    """
    rng = np.random.default_rng(seed)
    size = len(next(iter(inputs.values())))
    longest = min(3, generation.max_length - 1)
    endless = GenerationDefaults(
        start_tokens=(),
        end_tokens=(),
        pad_token=generation.pad_token,
        max_length=generation.max_length,
    )
    comparison = _Comparison(model, backend, endless, Parity())
    for lengths in (np.ones(size, np.int64), np.arange(size) % longest + 1):
        prompts = rng.integers(0, vocabulary_size, (size, longest))[:, : lengths.max()]
        comparison.run(inputs, prompts, lengths, f"prompts of {lengths.tolist()} tokens")
    return comparison.parity


@dataclass(frozen=True)
class _Step:
    """Outputs of the graphs after one more token, with a row for each sequence.

    Attributes:
        lengths: (batch,) int64, number of tokens that the sequence has.
        active: (batch,) bool, whether the sequence was still decoded.
        heads: logits, then the outputs of other heads, each (batch, width).
    """

    lengths: NDArray[np.int64]
    active: NDArray[np.bool_]
    heads: tuple[NDArray[Any], ...]


@dataclass(frozen=True)
class _Comparison:
    """Decodes batches with the graphs, and compares each logit with the model's.

    Attributes:
        model: the original module, in eval mode.
        backend: the exported graphs.
        generation: end tokens, pad token and largest length.
        parity: sum of the batches so far.
    """

    model: nn.Module
    backend: Backend
    generation: GenerationDefaults
    parity: Parity

    def run(
        self, inputs: Inputs, prompts: NDArray[np.int64], lengths: NDArray[np.int64], name: str
    ) -> None:
        """Decodes one batch with the graphs, and compares it block by block.

        The first token that differs raises, so both sides decode the same tokens throughout. The
        model decodes a block of tokens at a time, since no logit depends on later tokens.

        Args:
            inputs: encoder inputs by name, batch first.
            prompts: (batch, longest prompt), padded on the right.
            lengths: (batch,), number of tokens of each prompt.
            name: name of the batch in messages.
        """
        tensors = tuple(torch.from_numpy(array) for array in inputs.values())
        memory, size = reference_memory(self.model, tensors), len(lengths)
        decoding, logits = self._start(inputs, prompts, lengths)
        tokens = np.full((size, self.generation.max_length), self.generation.pad_token, np.int64)
        tokens[:, : prompts.shape[1]] = prompts
        lengths, active = lengths.copy(), np.ones(size, bool)
        rows, block = np.arange(size), list[_Step]()
        while True:
            more_heads = decoding.heads.values() if isinstance(decoding, SeveralHeads) else ()
            heads = tuple(values.copy() for values in (logits, *more_heads))
            block.append(_Step(lengths.copy(), active.copy(), heads))
            best = logits.argmax(-1)
            active &= lengths < self.generation.max_length
            active &= ~np.isin(best, self.generation.end_tokens)
            if len(block) == _BLOCK_STEPS or not active.any():
                self._check(block, tokens, memory, name)
                block.clear()
            if not active.any():
                break
            tokens[rows[active], lengths[active]] = best[active]
            lengths[active] += 1
            logits = decoding.step(tokens[rows, lengths - 1], lengths - 1)
        self.parity.sequences += size

    def _start(
        self, inputs: Inputs, prompts: NDArray[np.int64], lengths: NDArray[np.int64]
    ) -> tuple[Decoding, FloatArray]:
        """Returns a decoding after its prompts, and the logits; a step reads one-token prompts."""
        decoding, first = self.backend.start(inputs), np.zeros(len(lengths), np.int64)
        logits = decoding.prefill(prompts, first, lengths - 1)
        if prompts.shape[1] != 1:
            return decoding, logits
        prefill_logits, decoding = logits.copy(), self.backend.start(inputs)
        logits = decoding.step(prompts[:, 0], first)
        self.parity.note(prefill_logits, logits)
        return decoding, logits

    def _check(
        self,
        block: Sequence[_Step],
        tokens: NDArray[np.int64],
        memory: tuple[Tensor, ...],
        name: str,
    ) -> None:
        """Compares some steps with one full run of the model over the tokens so far."""
        longest = int(block[-1].lengths.max())
        full = reference_heads(self.model, memory, torch.from_numpy(tokens[:, :longest]))
        for step in block:
            newest = np.arange(len(tokens)), step.lengths - 1
            expected = [head.numpy()[newest] for head in full]
            close = [
                self.parity.note(a[step.active], b[step.active])
                for a, b in zip(expected, step.heads, strict=True)
            ]
            self.parity.steps += int(step.active.sum())
            expected_tokens, actual_tokens = expected[0].argmax(-1), step.heads[0].argmax(-1)
            differing = np.flatnonzero((expected_tokens != actual_tokens) & step.active)
            if len(differing) or not all(close):
                row = int(differing[0]) if len(differing) else 0
                raise ParityError(
                    f"the exported graphs differ from the model in {name}, sequence {row}, after "
                    f"{int(step.lengths[row])} tokens: token {int(actual_tokens[row])} instead of "
                    f"{int(expected_tokens[row])}, largest difference of a logit "
                    f"{self.parity.largest_difference:.1e}; no bundle was written"
                )
