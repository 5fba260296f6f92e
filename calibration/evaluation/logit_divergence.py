"""How far the logits of a variant are from those of another, token by token.

Both are fed the same tokens, those that the first one chose (teacher forcing): so one wrong token
does not spoil what follows, and differences show that are too small to change a token yet.
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
"""A teacher keeps at most about so much: inputs, and the logits of every step."""


@dataclass(frozen=True)
class Divergence:
    """How far the logits of a student are from its teacher's.

    A logit that is not a number makes the numbers infinite, not the measurement fail.

    Attributes:
        sequences: how many were compared.
        steps: how many tokens of all sequences, one distribution each.
        kl_mean_nats: mean Kullback-Leibler divergence of the student's distribution from the
            teacher's, which is 0 where they are equal.
        kl_max_nats: the largest of a step.
        largest_difference: of a logit.
        same_argmax: share of the steps with the same likeliest token, within 0..1.
    """

    sequences: int
    steps: int
    kl_mean_nats: float
    kl_max_nats: float
    largest_difference: float
    same_argmax_share: float


class Teacher:
    """What a variant says of some samples, recorded once to compare any number of others."""

    def __init__(
        self,
        bundle: Bundle,
        variant: str,
        samples: Iterable[Inputs],
        *,
        threads: int | None = None,
        max_bytes: int = MAX_RECORDED_BYTES,
    ) -> None:
        """Decodes the samples with the variant.

        Args:
            bundle: gives the generation defaults.
            variant: name of the variant that teaches.
            samples: encoder inputs by name, batch first.
            threads: CPU threads within an operator; None leaves it to the backend.
            most_bytes: stop when so much is kept; what is left is not compared.

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
            self._batches.append(
                _RecordedBatch(batch.inputs, np.array(lengths), tuple(recorder.calls))
            )
            if recorder.bytes_left <= 0:
                break
        if not self._batches:
            raise CalibrationError("there are no samples to compare logits on; give at least one")

    @property
    def sequences(self) -> int:
        """How many sequences are kept."""
        return sum(len(lesson.lengths) for lesson in self._batches)

    @property
    def first_inputs(self) -> Inputs:
        """The first batch of encoder inputs."""
        return self._batches[0].inputs

    def divergence(self, student: Backend | Session) -> Divergence:
        """Feeds a student the teacher's tokens and compares the logits of every step.

        Args:
            student: another variant of the bundle, loaded into a backend.

        Raises:
            InputError: the student takes other inputs.
            BackendError: the student does not run.
        """
        backend = student.backend if isinstance(student, Session) else student
        compared = [
            _compare_step(rows, others)
            for lesson in self._batches
            for rows, others in lesson.replay(backend)
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
    """Returns the Kullback-Leibler divergence of softmax distributions, in nats.

    Args:
        teacher: logits (rows, vocabulary); a token of logit -infinity never comes.
        student: logits (rows, vocabulary).

    Returns:
        (rows,), infinite where the student excludes what the teacher does not, or has NaN.
    """
    with np.errstate(invalid="ignore"):  # infinities are dealt with below
        log_p, log_q = _log_softmax(teacher), _log_softmax(student)
        terms = np.where(np.isneginf(log_p), 0, np.exp(log_p) * (log_p - log_q))
    total = np.maximum(terms.sum(-1), 0)  # rounding may leave a tiny negative sum
    return np.where(np.isnan(total), np.inf, total)


@dataclass(frozen=True)
class _RecordedBatch:
    """One batch: its inputs, how many tokens each sequence has, and every call."""

    inputs: Inputs
    lengths: IntArray
    calls: Sequence[RecordedCall]

    def replay(self, backend: Backend) -> Iterator[tuple[FloatArray, FloatArray]]:
        """Yields the logits of both, (rows, vocabulary), of the sequences that go on."""
        decoding = backend.start(self.inputs)
        for step, turn in enumerate(self.calls):
            logits, going_on = turn.replay(decoding), np.flatnonzero(self.lengths > step)
            yield turn.logits[going_on], logits[going_on]


@dataclass(frozen=True)
class _StepComparison:
    """One step of a batch."""

    kl_nats: NDArray[np.float64]
    largest_difference: float
    same_argmax: int


def _compare_step(teacher: FloatArray, student: FloatArray) -> _StepComparison:
    with np.errstate(invalid="ignore"):  # where both are infinite there is no difference
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
