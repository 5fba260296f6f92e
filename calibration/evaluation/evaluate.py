"""What a variant costs in accuracy: read everything with two variants and compare."""

from __future__ import annotations

from dataclasses import dataclass

from hybrid_deploy.accuracy import Accuracy, measure_accuracy
from hybrid_deploy.bundle.bundle import Bundle
from hybrid_deploy.calibration.evaluation.decode_all import DecodedSet, decode_all
from hybrid_deploy.calibration.evaluation.logit_divergence import Divergence, Teacher
from hybrid_deploy.calibration.evaluation.metrics import Metric
from hybrid_deploy.calibration.evaluation.token_agreement import (
    Agreement,
    check_prefill,
    compare_tokens,
)
from hybrid_deploy.calibration.samples.evaluation_set import EvaluationSet
from hybrid_deploy.contract import GraphRole
from hybrid_deploy.errors import InputError, UsageError
from hybrid_deploy.progress import Progress, silent
from hybrid_deploy.runtime.backends.registry import (
    DEFAULT_BACKEND,
    BackendOptions,
    load_backend,
)

MAX_LOGIT_SAMPLES = 128
"""The logits of at most so many samples are compared, evenly spread."""


@dataclass(frozen=True)
class Score:
    """A metric of both variants."""

    metric: Metric
    value: float
    reference: float

    @property
    def drop(self) -> float:
        """How much worse the variant is, in units of the metric."""
        return self.metric.drop(self.reference, self.value)


@dataclass(frozen=True)
class Evaluation:
    """How a variant compares with the one it was made from.

    Attributes:
        variant: its name.
        reference: name of the other one.
        samples: how many inputs both have read.
        agreement: how many tokens are the same.
        divergence: how far its logits are from the reference's, fed the same tokens.
        accuracy: against the true texts; None if none is known.
        reference_accuracy: that of the reference.
        score: a metric that was asked for.
        size_bytes: of the variant's files.
        reference_size_bytes: of the reference's files.
    """

    variant: str
    reference: str
    samples: int
    agreement: Agreement
    divergence: Divergence
    accuracy: Accuracy | None
    reference_accuracy: Accuracy | None
    score: Score | None
    size_bytes: int
    reference_size_bytes: int

    @property
    def drop(self) -> float:
        """How much worse the variant is, negative if it is better: what `drop_unit` says."""
        if self.score is not None:
            return self.score.drop
        if self.accuracy is not None and self.reference_accuracy is not None:
            return self.accuracy.cer_percent - self.reference_accuracy.cer_percent
        return 100 * (1 - self.agreement.token_share)

    @property
    def drop_unit(self) -> str:
        """The metric's name, else `CER points` if texts are known, else `% of tokens`."""
        if self.score is not None:
            return self.score.metric.name
        return "% of tokens" if self.accuracy is None else "CER points"


def evaluate(
    bundle: Bundle,
    reference_variant: str,
    variant: str,
    evaluation_set: EvaluationSet,
    *,
    metric: Metric | None = None,
    progress: Progress = silent,
    reference: DecodedSet | None = None,
    teacher: Teacher | None = None,
    threads: int | None = None,
) -> Evaluation:
    """Reads all samples with a variant and compares it with its reference.

    Args:
        bundle: has both variants.
        reference_variant: name of the one that is taken as right.
        variant: name of the one to evaluate.
        evaluation_set: what is read.
        metric: a measure of the texts besides the usual ones.
        progress: called with how far the stages `reference`, `logits` and `check` are.
        reference: the samples as the reference variant decodes them; decoded here if not given.
        teacher: a `Teacher` of the reference variant on any samples; if not given, one is made of
            at most `MOST_LOGITS` of these.
        threads: CPU threads within an operator; None leaves it to the backend.

    Raises:
        UsageError: a metric is given, and no true text is known; or it does not give a number.
        InputError: a sample cannot be read, or has one text for several sequences.
        MissingDependencyError: texts are known, and jiwer is not installed.
        BackendError: a variant does not run, or its logits are not finite.
    """
    if metric is not None:
        check_metric(metric, evaluation_set)
    total = len(evaluation_set)
    reference = reference or decode_all(
        bundle,
        reference_variant,
        evaluation_set,
        progress,
        stage="reference",
        threads=threads,
    )
    progress("logits", 0, total)
    teacher = teacher or Teacher(
        bundle, reference_variant, evaluation_set.evenly_spaced(MAX_LOGIT_SAMPLES), threads=threads
    )
    backend = load_backend(DEFAULT_BACKEND, bundle, variant, BackendOptions(threads))
    divergence = teacher.divergence(backend)
    progress("logits", total, total)
    check_prefill(bundle, backend, teacher.first_inputs)
    readings = decode_all(bundle, variant, evaluation_set, progress, stage="check", backend=backend)
    texts = _texts(evaluation_set, reference, readings)
    return Evaluation(
        variant=variant,
        reference=reference_variant,
        samples=total,
        agreement=compare_tokens(list(zip(reference.tokens, readings.tokens, strict=True))),
        divergence=divergence,
        accuracy=None if texts is None else measure_accuracy(texts.expected, texts.given),
        reference_accuracy=(
            None if texts is None else measure_accuracy(texts.expected, texts.reference)
        ),
        score=None if texts is None or metric is None else _score(metric, texts),
        size_bytes=_size_bytes(bundle, variant),
        reference_size_bytes=_size_bytes(bundle, reference_variant),
    )


def check_metric(metric: Metric, evaluation_set: EvaluationSet) -> None:
    """Checks that a metric has something to compare with.

    Raises:
        UsageError: no true text is known.
    """
    if not evaluation_set.labelled_count:
        raise UsageError(
            f"the metric {metric.name} needs true texts, and no sample has one; name a folder with "
            "a labels.csv (columns file, text)"
        )


@dataclass(frozen=True)
class _Texts:
    """The true texts, and what both variants gave instead."""

    expected: list[str]
    reference: list[str]
    given: list[str]


def _texts(
    evaluation_set: EvaluationSet, reference: DecodedSet, readings: DecodedSet
) -> _Texts | None:
    """Returns the sequences whose true text is known; None if there are none."""
    if not evaluation_set.labelled_count:
        return None
    assert reference.texts is not None and readings.texts is not None, "labels need a vocabulary"
    texts = evaluation_set.expected_texts
    expected = [texts[sample] for sample in readings.samples]
    rows = zip(expected, reference.texts, readings.texts, strict=True)
    known = [(text, a, b) for text, a, b in rows if text is not None]
    if len(known) != evaluation_set.labelled_count:
        raise InputError(
            f"{evaluation_set.labelled_count} true texts were given for {len(known)} sequences; give "
            "each labelled sample as one sequence"
        )
    return _Texts(*(list(column) for column in zip(*known, strict=True)))


def _score(metric: Metric, texts: _Texts) -> Score:
    return Score(
        metric=metric,
        value=metric.measure(texts.expected, texts.given),
        reference=metric.measure(texts.expected, texts.reference),
    )


def _size_bytes(bundle: Bundle, variant: str) -> int:
    """Sums the files beside a variant's graphs, which the manifest may not list yet."""
    home = bundle.graph_path(variant, GraphRole.ENCODER).parent
    return sum(path.stat().st_size for path in home.rglob("*") if path.is_file())
