"""Compares the logits of two variants token by token, with teacher forcing.

The teacher, usually the float variant, decodes the samples once. Every student then gets the
teacher's tokens as its input. So one different token does not change the rest of a sequence, and
differences are measured that are too small to change a token.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hybrid_deploy.bundle.bundle import Bundle
from hybrid_deploy.calibration.evaluation.recording_backend import RecordedCall, RecordingBackend
from hybrid_deploy.calibration.samples.batches import batch_size, batches
from hybrid_deploy.calibration.samples.samples import Inputs
from hybrid_deploy.errors import CalibrationError
from hybrid_deploy.runtime.backends.protocol import (
    Backend,
    FloatArray,
    IntArray,
)
from hybrid_deploy.runtime.backends.registry import (
    DEFAULT_BACKEND,
    BackendOptions,
    load_backend,
)
from hybrid_deploy.runtime.generation.options import GREEDY
from hybrid_deploy.runtime.session.session import Session

MAX_RECORDED_BYTES = 256 << 20
"""About the largest number of bytes that a teacher records: its inputs and all logits."""


@dataclass(frozen=True)
class Divergence:
    """How far the logits of a student are from those of its teacher.

    If the student has a logit that is NaN, the divergences and the difference are infinite.

    Attributes:
        sequences: number of compared sequences.
        steps: number of compared tokens over all sequences; each has one distribution.
        kl_mean_nats: mean Kullback-Leibler divergence of the student's distribution from the
            teacher's over all steps; 0 if all are equal.
        kl_max_nats: largest Kullback-Leibler divergence of a step.
        largest_difference: largest absolute difference of two logits.
        same_argmax_share: share of the steps with the same likeliest token, within 0..1.
    """

    sequences: int
    steps: int
    kl_mean_nats: float
    kl_max_nats: float
    largest_difference: float
    same_argmax_share: float


class Teacher:
    """The recorded tokens and logits of one variant, to compare any number of other variants."""

    def __init__(
        self,
        bundle: Bundle,
        variant: str,
        samples: Iterable[Inputs],
        *,
        threads: int | None = None,
        max_bytes: int = MAX_RECORDED_BYTES,
    ) -> None:
        """Decodes the samples greedily with the variant and records every call.

        Args:
            bundle: has the variant and the generation defaults.
            variant: name of the teacher's variant.
            samples: encoder inputs by name, batch first.
            threads: number of CPU threads of one operator; None leaves the choice to the backend.
            max_bytes: recording stops when it takes this many bytes; the samples that remain are
                not compared.

        Raises:
            CalibrationError: there is not one sample.
            InputError: a sample does not fit the model.
            BackendError: the variant does not run, or its logits are not finite.
        """
        backend = load_backend(DEFAULT_BACKEND, bundle, variant, BackendOptions(threads))
        recorder = RecordingBackend(backend, max_bytes)
        session = Session(bundle, variant, recorder)
        self._batches: list[_RecordedBatch] = []
        for batch in batches(samples, batch_size(bundle, variant)):
            results, _ = session.run_arrays(batch.inputs, options=GREEDY)
            lengths = [len(result.tokens) for result in results[: len(batch.sample_rows)]]
            calls = tuple(recorder.calls)
            self._batches.append(_RecordedBatch(batch.inputs, np.array(lengths), calls))
            if recorder.bytes_left <= 0:
                break
        if not self._batches:
            raise CalibrationError("there are no samples to compare logits on; give at least one")

    @property
    def sequences(self) -> int:
        """Number of recorded sequences."""
        return sum(len(batch.lengths) for batch in self._batches)

    @property
    def first_batch(self) -> Inputs:
        """Encoder inputs of the first recorded batch, by name."""
        return self._batches[0].inputs

    def divergence(self, student: Backend | Session) -> Divergence:
        """Feeds a student the teacher's tokens and compares the logits of every step.

        Args:
            student: a backend or a session that holds another variant of the bundle.

        Raises:
            InputError: the recorded inputs do not fit the student.
            BackendError: the student does not run.
        """
        backend = student.backend if isinstance(student, Session) else student
        compared = [
            _compare_step(teacher_logits, student_logits)
            for batch in self._batches
            for teacher_logits, student_logits in batch.replay(backend)
        ]
        kl = np.concatenate([step.kl_nats for step in compared])
        return Divergence(
            sequences=self.sequences,
            steps=len(kl),
            kl_mean_nats=float(kl.mean()),
            kl_max_nats=float(kl.max()),
            largest_difference=max(step.largest_difference for step in compared),
            same_argmax_share=sum(step.same_argmax for step in compared) / len(kl),
        )


def kl_divergence(teacher: FloatArray, student: FloatArray) -> NDArray[np.float64]:
    """Returns the Kullback-Leibler divergence of the student's softmax from the teacher's, in nats.

    Args:
        teacher: logits (rows, vocabulary) float32; -infinity means probability 0.
        student: logits (rows, vocabulary) float32.

    Returns:
        (rows,) float64; infinite where the student has NaN, or has probability 0 for a token that
        is possible for the teacher.
    """
    with np.errstate(invalid="ignore"):  # infinite logits make NaN, which is replaced below
        log_p, log_q = _log_softmax(teacher), _log_softmax(student)
        terms = np.where(np.isneginf(log_p), 0, np.exp(log_p) * (log_p - log_q))
    total = np.maximum(terms.sum(-1), 0)  # rounding may leave a tiny negative sum
    return np.where(np.isnan(total), np.inf, total)


@dataclass(frozen=True)
class _RecordedBatch:
    """One batch of the teacher: the encoder inputs, the sequences' lengths in tokens, all calls."""

    inputs: Inputs
    lengths: IntArray
    calls: Sequence[RecordedCall]

    def replay(self, backend: Backend) -> Iterator[tuple[FloatArray, FloatArray]]:
        """Yields per call the recorded and the new logits, (unfinished sequences, vocabulary)."""
        decoding = backend.start(self.inputs)
        for step, call in enumerate(self.calls):
            logits, unfinished = call.replay(decoding), np.flatnonzero(self.lengths > step)
            yield call.logits[unfinished], logits[unfinished]


@dataclass(frozen=True)
class _StepComparison:
    """Differences of one step: `kl_nats` (sequences,), `same_argmax` is a number of sequences."""

    kl_nats: NDArray[np.float64]
    largest_difference: float
    same_argmax: int


def _compare_step(teacher: FloatArray, student: FloatArray) -> _StepComparison:
    with np.errstate(invalid="ignore"):  # two equal infinite logits would make NaN
        differences = np.where(teacher == student, 0, np.abs(teacher - student))
    largest = float(differences.max())
    same = (teacher.argmax(-1) == student.argmax(-1)) & ~np.isnan(student.max(-1))
    return _StepComparison(
        kl_nats=kl_divergence(teacher, student),
        largest_difference=np.inf if np.isnan(largest) else largest,
        same_argmax=int(same.sum()),
    )


def _log_softmax(logits: FloatArray) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(-1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return result
