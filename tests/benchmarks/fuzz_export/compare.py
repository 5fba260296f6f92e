"""Compares every graph of a bundle with the module: tokens, prefill, steps, beams."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybrid_deploy.bundle.bundle import open_bundle
from hybrid_deploy.contract import FLOAT_VARIANT, GraphRole
from hybrid_deploy.errors import HybridDeployError
from hybrid_deploy.export.parity.named_graphs import NamedGraphs
from hybrid_deploy.runtime.session.session import Session, load_session
from tests.benchmarks.fuzz_export.reference import (
    Inputs,
    Logits,
    Memory,
    jumps,
    logits_of,
    memory_of,
    row_of,
    tolerance,
)

END = 2
START = 1
_BEAMS = 2


class DifferenceError(Exception):
    """A bundle differs from its module."""


class Comparison:
    """A bundle beside the module that it was made from.

    Args:
        path: folder of the bundle.
        model: the module.
        vocabulary: number of tokens to draw prompts from.
        max_length: largest number of tokens.

    Attributes:
        compared: number of logit rows that were compared.
        jumps: number of them that differ where rounding errors alone move the module's logits.
        distinct: number of different tokens that were chosen.
    """

    def __init__(self, path: Path, model: Any, vocabulary: int, max_length: int) -> None:
        self.compared, self.jumps, self._chosen = 0, 0, set[int]()
        self._model, self._vocabulary, self._max_length = model, vocabulary, max_length
        bundle = open_bundle(path)
        self._roles = set(bundle.graphs(FLOAT_VARIANT))
        self._session: Session = load_session(path, threads=1, large_pages=False)
        self._graphs = NamedGraphs(bundle, FLOAT_VARIANT)
        self._beams = NamedGraphs(bundle, FLOAT_VARIANT, beams=True)

    @property
    def distinct(self) -> int:
        """Number of different tokens that were chosen."""
        return len(self._chosen)

    def run(self, batches: Sequence[Inputs]) -> None:
        """Compares batches of inputs in every way.

        Raises:
            DifferenceError: the bundle differs or fails, or a graph of it was not run.
        """
        for number, inputs in enumerate(batches):
            rng = np.random.default_rng(number)
            with _naming(f"inputs of {_shape_of(inputs)}"):
                memories = [
                    memory_of(self._model, row_of(inputs, row)) for row in range(_size(inputs))
                ]
                self._tokens(inputs, memories, rng.integers(0, self._vocabulary, number % 3))
                self._prefill_and_steps(inputs, memories, rng)
                if GraphRole.BEAM_STEP in self._roles:
                    self._beam_steps(inputs, memories, rng)
        runs: Counter[GraphRole] = self._graphs.runs + self._beams.runs
        unused = sorted(role.value for role in self._roles if not runs[role])
        if unused:
            raise DifferenceError(f"never run: {', '.join(unused)}")

    def _tokens(
        self, inputs: Inputs, memories: Sequence[Memory], prompt: NDArray[np.int64]
    ) -> None:
        """Compares greedy tokens of the public session, each with the module's best."""
        results, _ = self._session.run_arrays(inputs, prompt=prompt.tolist())
        for row, (memory, result) in enumerate(zip(memories, results, strict=True)):
            sequence = [START, *prompt.tolist()]
            for token in result.tokens:
                logits = self._expected(memory, np.array(sequence))
                lead = float(logits.max() - logits[token])
                if not lead <= tolerance(logits) and not self._jumps(memory, sequence):
                    raise DifferenceError(
                        f"row {row}, after {len(sequence)} tokens: token {token} instead of "
                        f"{int(logits.argmax())}, which leads by {lead:.1e}"
                    )
                sequence.append(token)
                self._chosen.add(token)
            if sequence[-1] != END and len(sequence) < self._max_length:
                raise DifferenceError(
                    f"row {row} ends after {len(sequence)} of {self._max_length} tokens"
                )

    def _prefill_and_steps(
        self, inputs: Inputs, memories: Sequence[Memory], rng: np.random.Generator
    ) -> None:
        """Compares random tokens: a prefill of unequal prompts, then steps of chosen sequences."""
        batch, longest = len(memories), max(1, self._max_length // 2)
        tokens = rng.integers(0, self._vocabulary, (batch, self._max_length))
        lengths = rng.integers(1, longest + 1, batch)
        decoding = self._graphs.start(inputs)
        zeros = np.zeros(batch, np.int64)
        logits = decoding.prefill(tokens[:, : lengths.max()], zeros, lengths - 1)
        self._same(logits, memories, tokens, lengths, "random tokens")
        rows = rng.integers(0, batch, batch + 1)  # some twice, and some dropped
        decoding, tokens, lengths = decoding.select(rows), tokens[rows], lengths[rows]
        chosen = [memories[row] for row in rows]
        while lengths.max() < self._max_length:
            logits = decoding.step(tokens[np.arange(len(rows)), lengths], lengths)
            lengths = lengths + 1
            self._same(logits, chosen, tokens, lengths, "random tokens")

    def _beam_steps(
        self, inputs: Inputs, memories: Sequence[Memory], rng: np.random.Generator
    ) -> None:
        """Compares beams that share a memory, and change places half-way."""
        decoding = self._beams.start(inputs).expand_beams(_BEAMS)
        rows = np.arange(len(memories) * _BEAMS)
        each = [memories[row // _BEAMS] for row in rows]
        tokens = rng.integers(0, self._vocabulary, (len(rows), self._max_length))
        for length in range(1, self._max_length + 1):
            position = np.full(len(rows), length - 1, np.int64)
            logits = decoding.step(tokens[:, length - 1].copy(), position)
            if length in (1, self._max_length // 2, self._max_length):
                self._same(logits, each, tokens, position + 1, "tokens of a beam")
            if length == self._max_length // 2:
                turned = rows ^ 1
                decoding.reorder(turned)
                tokens[:, :length] = tokens[turned, :length]

    def _same(
        self,
        logits: Logits,
        memories: Sequence[Memory],
        tokens: NDArray[np.int64],
        lengths: NDArray[np.int64],
        what: str,
    ) -> None:
        for row, memory in enumerate(memories):
            expected = self._expected(memory, tokens[row, : lengths[row]])
            same = expected == logits[row]  # equal infinities too
            with np.errstate(invalid="ignore"):
                difference = float(np.where(same, 0, np.abs(expected - logits[row])).max())
            read = tokens[row, : lengths[row]].tolist()
            if not difference <= tolerance(expected) and not self._jumps(memory, read):
                raise DifferenceError(
                    f"row {row}, {lengths[row]} {what}: a logit differs by {difference:.1e}"
                )

    def _jumps(self, memory: Memory, tokens: list[int]) -> bool:
        """Returns whether the module's own logits move at rounding errors; counts them."""
        moves = jumps(self._model, memory, np.array(tokens))
        self.jumps += moves
        return moves

    def _expected(self, memory: Memory, tokens: NDArray[np.int64]) -> Logits:
        self.compared += 1
        return logits_of(self._model, memory, tokens)


def _size(inputs: Inputs) -> int:
    return len(next(iter(inputs.values())))


def _shape_of(inputs: Inputs) -> str:
    return ", ".join("x".join(map(str, value.shape)) for value in inputs.values())


@contextmanager
def _naming(place: str) -> Iterator[None]:
    try:
        yield
    except HybridDeployError as error:
        raise DifferenceError(f"{place}: {type(error).__name__}: {error}") from error
    except DifferenceError as error:
        raise DifferenceError(f"{place}: {error}") from error
