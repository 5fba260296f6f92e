"""Compares tokens and logits of exported graphs with those of the model that they come from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hybrid_deploy.bundle.manifest import GenerationDefaults
from hybrid_deploy.export.model.interface import Inputs, has_custom_step, reference_memory
from hybrid_deploy.export.parity.closeness import Closeness, ComparedStep
from hybrid_deploy.export.parity.parity import Parity
from hybrid_deploy.export.parity.reference_rows import Heads, ReferenceRows, lengths_to_run
from hybrid_deploy.export.parity.special_tokens import TokenChoice
from hybrid_deploy.runtime.backends.protocol import (
    Backend,
    Decoding,
    FloatArray,
    ReorderableDecoding,
    SeveralHeads,
)

_FIRST_BLOCK = 8
_LARGEST_BLOCK_BYTES = 64 << 20  # of logits

_BEAMS = 2
_BEAM_SEED = 2


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
        ParityError: a token differs without a tie, or a logit by more than rounding.
    """
    parity = Parity()
    for number, inputs in enumerate(batches):
        batch = _Batch(model, backend, generation, inputs, parity)
        prompts = np.tile(np.array(generation.start_tokens, np.int64), (batch.size, 1))
        lengths = np.full(batch.size, prompts.shape[1], np.int64)
        batch.decode(prompts, lengths, f"batch {number}")
    return parity


def compare_random_prompts(
    model: nn.Module,
    backend: Backend,
    generation: GenerationDefaults,
    inputs: Inputs,
    choice: TokenChoice,
    seed: int = 0,
) -> Parity:
    """Compares greedy decoding after random prompts, up to the largest length without an end token.

    Prompts of one token are decoded by steps alone, through every length; prompts of unequal
    lengths test the prefill and the positions of each sequence, and hold special tokens.

    Args:
        model: the original module, in eval mode.
        backend: the exported graphs.
        generation: largest length and pad token.
        inputs: encoder inputs by name, batch first.
        choice: tokens to draw prompts from.
        seed: seed of the prompts.

    Raises:
        ParityError: a token differs without a tie, or a logit by more than rounding.
    """
    rng = np.random.default_rng(seed)
    batch = _Batch(model, backend, _endless(generation), inputs, Parity())
    longest = max(1, min(3, generation.max_length - 1))
    for lengths in (np.ones(batch.size, np.int64), np.arange(batch.size) % longest + 1):
        tokens = choice.draw((batch.size, longest), model, generation, rng)
        prompts = tokens[:, : lengths.max()]
        name = f"prompts of {lengths.tolist()} tokens"
        batch.decode(prompts, lengths, name, every_length=bool(lengths.max() == 1))
    return batch.parity


def compare_prefill(
    model: nn.Module,
    backend: Backend,
    generation: GenerationDefaults,
    inputs: Inputs,
    choice: TokenChoice,
    seed: int = 1,
) -> Parity:
    """Compares prefill at several lengths, and the step that reads the caches it has written.

    The lengths are 1, 2, 3, half of the largest, the largest but one, and the largest.

    Args:
        model: the original module, in eval mode.
        backend: the exported graphs; every prompt goes through its prefill.
        generation: largest length and pad token.
        inputs: encoder inputs by name, batch first.
        choice: tokens to draw prompts from.
        seed: seed of the prompts.

    Raises:
        ParityError: a token differs without a tie, or a logit by more than rounding.
    """
    most = generation.max_length
    batch = _Batch(model, backend, _endless(generation), inputs, Parity())
    tokens = choice.draw((batch.size, most), model, generation, np.random.default_rng(seed))
    for length in sorted({1, 2, 3, most // 2, most - 1, most} & set(range(1, most + 1))):
        batch.prefill_and_step(tokens, length)
    return batch.parity


def compare_beams(
    model: nn.Module,
    backend: Backend,
    generation: GenerationDefaults,
    inputs: Inputs,
    choice: TokenChoice,
    name: str = f"{_BEAMS} beams of every input",
) -> Parity:
    """Compares two beams of every input from different tokens on.

    The beams read the same memory if the backend has a beam step. If not, each has a copy.

    Args:
        model: the original module, in eval mode.
        backend: the exported graphs.
        generation: largest length and pad token.
        inputs: encoder inputs by name, batch first.
        choice: tokens to draw prompts from.
        name: the comparison in messages.

    Raises:
        ParityError: a token differs without a tie, or a logit by more than rounding.
    """
    batch = _Batch(model, backend, _endless(generation), inputs, Parity(), beams=_BEAMS)
    prompts = choice.draw((batch.size, 1), model, generation, np.random.default_rng(_BEAM_SEED))
    batch.decode(prompts, np.ones(batch.size, np.int64), name)
    return batch.parity


def compare_copies(
    model: nn.Module,
    backend: Backend,
    generation: GenerationDefaults,
    inputs: Inputs,
    choice: TokenChoice,
) -> Parity:
    """Compares two copies of every input, whose rows are chosen from every memory tensor.

    See `compare_beams`; the backend has no beam step.
    """
    name = f"{_BEAMS} copies of every input"
    return compare_beams(model, backend, generation, inputs, choice, name)


def _endless(generation: GenerationDefaults) -> GenerationDefaults:
    return GenerationDefaults(
        start_tokens=(),
        end_tokens=(),
        pad_token=generation.pad_token,
        max_length=generation.max_length,
    )


@dataclass
class _Batch:
    """One batch that graphs and model decode.

    Attributes:
        model: the original module, in eval mode.
        backend: the exported graphs.
        generation: end tokens, pad token and largest length.
        inputs: encoder inputs by name, batch first.
        parity: receives what is compared.
        beams: number of sequences of an input, side by side, that share its memory.
    """

    model: nn.Module
    backend: Backend
    generation: GenerationDefaults
    inputs: Inputs
    parity: Parity
    beams: int = 1
    _closeness: Closeness = field(init=False)
    _memory: tuple[Tensor, ...] = field(init=False)

    def __post_init__(self) -> None:
        rows = {name: np.repeat(value, self.beams, 0) for name, value in self.inputs.items()}
        self._closeness = Closeness(self.model, rows, "", self.parity)
        tensors = tuple(torch.from_numpy(np.array(value)) for value in self.inputs.values())
        memory = reference_memory(self.model, tensors)
        if self.beams > 1:
            memory = tuple(tensor.repeat_interleave(self.beams, 0) for tensor in memory)
        self._memory = memory

    @property
    def size(self) -> int:
        """Number of sequences."""
        return len(next(iter(self.inputs.values()))) * self.beams

    def decode(
        self,
        prompts: NDArray[np.int64],
        lengths: NDArray[np.int64],
        name: str,
        *,
        every_length: bool = False,
    ) -> None:
        """Decodes with the graphs, and compares block by block.

        The model runs over a block of tokens at a time, and blocks grow. After a tie both sides
        begin again with the model's token.

        Args:
            prompts: (batch, longest prompt), padded on the right.
            lengths: (batch,), number of tokens of each prompt.
            name: name of the sequences in messages.
            every_length: whether a model with a step of its own is also run with other numbers of
                tokens, as `lengths_to_run` chooses them; of a derived step `check_lengths` has done
                the same.
        """
        self._closeness.name, capacity = name, self.generation.max_length
        has_lengths = every_length and has_custom_step(self.model)
        chosen = lengths_to_run(self.model, self.size, capacity) if has_lengths else []
        reference = ReferenceRows(self.model, self._memory, chosen)
        tokens = np.full((self.size, capacity), self.generation.pad_token, np.int64)
        tokens[:, : prompts.shape[1]] = prompts
        lengths, active = lengths.copy(), np.ones(self.size, bool)
        decoding, logits = self._start(tokens, lengths)
        block, most = list[ComparedStep](), _FIRST_BLOCK
        while True:
            block.append(ComparedStep(lengths.copy(), active.copy(), _copied(decoding, logits)))
            best, tied = logits.argmax(-1), False
            going = self._going(active, lengths, best)
            if len(block) == most or not going.any():
                step, best, tied = self._check(block, tokens, reference)
                lengths, going = step.lengths.copy(), self._going(step.active, step.lengths, best)
                most = min(2 * most, max(1, _LARGEST_BLOCK_BYTES // logits.nbytes))
                block.clear()
            active = going
            if not active.any():
                break
            rows = np.flatnonzero(active)
            tokens[rows, lengths[rows]] = best[rows]
            lengths[rows] += 1
            if tied:
                decoding, logits = self._start(tokens, lengths)
            else:
                logits = decoding.step(tokens[np.arange(self.size), lengths - 1], lengths - 1)
        self.parity.sequences += self.size

    def prefill_and_step(self, tokens: NDArray[np.int64], length: int) -> None:
        """Compares a prefill of some tokens, then a step with the next one if there is one.

        Args:
            tokens: (batch, capacity), random and special tokens.
            length: number of tokens that prefill reads.
        """
        self._closeness.name = f"a prefill of {length} tokens"
        reference = ReferenceRows(self.model, self._memory)
        decoding, ones = self._decoding(), np.ones(self.size, np.int64)
        logits = decoding.prefill(tokens[:, :length], 0 * ones, (length - 1) * ones)
        steps = [ComparedStep(length * ones, ones > 0, _copied(decoding, logits))]
        if length < tokens.shape[1]:
            logits = decoding.step(tokens[:, length].copy(), length * ones)
            steps.append(ComparedStep((length + 1) * ones, ones > 0, _copied(decoding, logits)))
        for step, expected in _with_expected(reference, tokens, steps):
            self._closeness.check(step, expected, tokens)
            self._count(step)
        self.parity.sequences += self.size

    def _decoding(self) -> Decoding:
        decoding = self.backend.start(self.inputs)
        if self.beams == 1:
            return decoding
        assert isinstance(decoding, ReorderableDecoding), "only such a decoding has beams"
        return decoding.expand_beams(self.beams)

    def _start(
        self, tokens: NDArray[np.int64], lengths: NDArray[np.int64]
    ) -> tuple[Decoding, FloatArray]:
        """Returns a decoding of the first tokens, and the logits; a step reads a single one."""
        decoding, zeros = self._decoding(), np.zeros(self.size, np.int64)
        if lengths.max() == 1:
            return decoding, decoding.step(tokens[:, 0].copy(), zeros)
        return decoding, decoding.prefill(tokens[:, : lengths.max()], zeros, lengths - 1)

    def _going(
        self,
        active: NDArray[np.bool_],
        lengths: NDArray[np.int64],
        best: NDArray[np.int64],
    ) -> NDArray[np.bool_]:
        """Returns the sequences that get one more token."""
        ended = np.isin(best, self.generation.end_tokens)
        going: NDArray[np.bool_] = active & (lengths < self.generation.max_length) & ~ended
        return going

    def _check(
        self, block: Sequence[ComparedStep], tokens: NDArray[np.int64], reference: ReferenceRows
    ) -> tuple[ComparedStep, NDArray[np.int64], bool]:
        """Compares steps up to the first tie; returns the newest one, its tokens, and if it ties.

        The tokens are the model's.
        """
        for step, expected in _with_expected(reference, tokens, block):
            tied = self._closeness.check(step, expected, tokens)
            self._count(step)
            if tied.any() or step is block[-1]:
                return step, expected[0].argmax(-1), bool(tied.any())
        raise AssertionError("a block has at least one step")

    def _count(self, step: ComparedStep) -> None:
        self.parity.steps += int(step.active.sum())
        self.parity.longest = max(self.parity.longest, int(step.lengths.max()))


def _copied(decoding: Decoding, logits: FloatArray) -> Heads:
    """Returns copies of the newest outputs, which the backend overwrites."""
    more_heads = decoding.heads.values() if isinstance(decoding, SeveralHeads) else ()
    return tuple(values.copy() for values in (logits, *more_heads))


def _with_expected(
    reference: ReferenceRows, tokens: NDArray[np.int64], steps: Sequence[ComparedStep]
) -> Iterator[tuple[ComparedStep, Heads]]:
    return zip(steps, reference.after(tokens, [step.lengths for step in steps]), strict=True)
