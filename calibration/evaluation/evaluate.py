"""Measures what a variant loses in accuracy: decodes all samples with two variants and compares."""

from __future__ import annotations

from dataclasses import dataclass

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
from hybrid_deploy.error_rates import Accuracy, measure_accuracy
from hybrid_deploy.errors import InputError, UsageError
from hybrid_deploy.progress import Progress, silent
from hybrid_deploy.runtime.backends.registry import (
    DEFAULT_BACKEND,
    BackendOptions,
    load_backend,
)

MAX_LOGIT_SAMPLES = 128
"""The largest number of samples whose logits are compared; they are evenly spaced."""


@dataclass(frozen=True)
class Score:
    """The value of one metric for the variant and for its reference.

    Attributes:
        metric: the metric.
        value: its value for the texts of the variant.
        reference: its value for the texts of the reference variant.
    """

    metric: Metric
    value: float
    reference: float

    @property
    def drop(self) -> float:
        """How much worse the variant is, in units of the metric; negative if it is better."""
        return self.metric.drop(self.reference, self.value)


@dataclass(frozen=True)
class Evaluation:
    """How a variant compares with its reference, the float variant that it was made from.

    Attributes:
        variant: name of the variant.
        reference: name of the reference variant.
        samples: number of samples that both variants decoded.
        agreement: number of tokens and sequences that are equal.
        divergence: distance of the variant's logits from the reference's, for the same tokens.
        accuracy: error rates of the variant's texts; None if no true text is known.
        reference_accuracy: error rates of the reference's texts; None if no true text is known.
        score: values of the requested metric; None if no metric was requested.
        size_bytes: size of the variant's files.
        reference_size_bytes: size of the reference's files.
        stand_in: what was decoded in place of real inputs; None if the samples are real.
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
    stand_in: str | None = None

    @property
    def drop(self) -> float:
        """How much worse the variant is, in `drop_unit`; negative if it is better."""
        if self.score is not None:
            return self.score.drop
        if self.accuracy is not None and self.reference_accuracy is not None:
            return self.accuracy.cer_percent - self.reference_accuracy.cer_percent
        return 100 * (1 - self.agreement.token_share)

    @property
    def drop_unit(self) -> str:
        """Unit of `drop`: the metric's name, `CER points` if texts are known, or `% of tokens`."""
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
    """Decodes all samples with a variant and compares it with its reference.

    Args:
        bundle: has both variants.
        reference_variant: name of the variant that counts as correct.
        variant: name of the variant to evaluate.
        evaluation_set: the samples, with their true texts where they are known.
        metric: a metric of the texts, measured in addition to the error rates.
        progress: called during the stages `reference`, `logits` and `check`.
        reference: the sequences of the reference variant; decoded here if None.
        teacher: a `Teacher` of the reference variant on any samples; if None, one is recorded here
            on at most `MAX_LOGIT_SAMPLES` of the samples.
        threads: number of CPU threads of one operator; None leaves the choice to the backend.

    Raises:
        UsageError: a metric is given and no true text is known, or the metric fails.
        InputError: a sample cannot be read, or a true text belongs to several sequences.
        MissingDependencyError: true texts are known, and jiwer is not installed.
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
    check_prefill(bundle, backend, teacher.first_batch)
    outputs = decode_all(bundle, variant, evaluation_set, progress, stage="check", backend=backend)
    texts = _labelled_texts(evaluation_set, reference, outputs)
    return Evaluation(
        variant=variant,
        reference=reference_variant,
        samples=total,
        agreement=compare_tokens(list(zip(reference.tokens, outputs.tokens, strict=True))),
        divergence=divergence,
        accuracy=None if texts is None else measure_accuracy(texts.expected, texts.decoded),
        reference_accuracy=(
            None if texts is None else measure_accuracy(texts.expected, texts.reference)
        ),
        score=None if texts is None or metric is None else _score(metric, texts),
        size_bytes=_size_bytes(bundle, variant),
        reference_size_bytes=_size_bytes(bundle, reference_variant),
        stand_in=evaluation_set.stand_in,
    )


def check_metric(metric: Metric, evaluation_set: EvaluationSet) -> None:
    """Checks that at least one sample has a true text, which every metric needs.

    Raises:
        UsageError: no true text is known.
    """
    if not evaluation_set.labelled_count:
        raise UsageError(
            f"the metric {metric.name} needs true texts, and no sample has one; name a folder with "
            "a labels.csv (columns file, text)"
        )


@dataclass(frozen=True)
class _LabelledTexts:
    """The true texts, and the texts that the reference and the variant decode for them."""

    expected: list[str]
    reference: list[str]
    decoded: list[str]


def _labelled_texts(
    evaluation_set: EvaluationSet, reference: DecodedSet, outputs: DecodedSet
) -> _LabelledTexts | None:
    """Returns the texts of all sequences whose true text is known; None if there are none."""
    labels = evaluation_set.labelled_count
    if not labels:
        return None
    assert reference.texts is not None and outputs.texts is not None, "labels need a vocabulary"
    texts = evaluation_set.expected_texts
    expected = [texts[sample] for sample in outputs.samples]
    rows = zip(expected, reference.texts, outputs.texts, strict=True)
    labelled = [(text, a, b) for text, a, b in rows if text is not None]
    if len(labelled) != labels:
        raise InputError(
            f"{labels} true texts were given for {len(labelled)} sequences; give each labelled "
            "sample as one sequence"
        )
    return _LabelledTexts(*(list(column) for column in zip(*labelled, strict=True)))


def _score(metric: Metric, texts: _LabelledTexts) -> Score:
    return Score(
        metric=metric,
        value=metric.measure(texts.expected, texts.decoded),
        reference=metric.measure(texts.expected, texts.reference),
    )


def _size_bytes(bundle: Bundle, variant: str) -> int:
    """Returns the size of a variant's files; read from disk, as the manifest may lack them."""
    folder = bundle.graph_path(variant, GraphRole.ENCODER).parent
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
