"""Measures what a variant loses in accuracy: decodes all samples with two variants and compares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from hybrid_deploy.accuracy.bootstrap import Interval
from hybrid_deploy.accuracy.default_normalizer import normalizer_for
from hybrid_deploy.accuracy.error_rates import (
    Accuracy,
    Change,
    accuracy_of,
    changes_of,
    compare_texts,
)
from hybrid_deploy.accuracy.normalizers import AS_DECODED, Normalizer
from hybrid_deploy.bundle.bundle import Bundle
from hybrid_deploy.calibration.evaluation.decode_all import DecodedSet, decode_all
from hybrid_deploy.calibration.evaluation.logit_divergence import Divergence, Teacher
from hybrid_deploy.calibration.evaluation.metrics import Metric
from hybrid_deploy.calibration.evaluation.score import Score, measure_score
from hybrid_deploy.calibration.evaluation.token_agreement import (
    Agreement,
    check_prefill,
    compare_tokens,
    interval_of_different,
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
"""The largest number of samples whose logits are compared; they are evenly spaced."""


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
        changes: the change of each error rate against the reference, by the rate's name; empty if
            no true text is known.
        different_tokens: 95 % interval over the sequences of the percentage of tokens that differ;
            None for a single sequence.
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
    changes: Mapping[str, Change] = field(default_factory=dict)
    different_tokens: Interval | None = None

    @property
    def normalizer(self) -> str:
        """Name of the normaliser that true and decoded texts passed."""
        return AS_DECODED.name if self.accuracy is None else self.accuracy.normalizer

    @property
    def drop(self) -> float:
        """How much worse the variant is, in `drop_unit`; negative if it is better."""
        if self.score is not None:
            return self.score.drop
        if "cer" in self.changes:
            return self.changes["cer"].points
        return 100 * (1 - self.agreement.token_share)

    @property
    def drop_interval(self) -> Interval | None:
        """95 % bootstrap interval of `drop` over the inputs, paired with the reference.

        None for a single input, and for a metric of the user that is slow.
        """
        if self.score is not None:
            return self.score.drop_interval
        return self.changes["cer"].interval if "cer" in self.changes else self.different_tokens

    @property
    def drop_unit(self) -> str:
        """Unit of `drop`: the metric's name, `CER points` if texts are known, or `% of tokens`.

        The normaliser of the texts follows in brackets, as in `CER points (whisper)`.
        """
        if self.accuracy is None:
            return "% of tokens"
        is_function = self.score is not None and self.score.metric.counts is None
        unit = "CER points" if self.score is None else self.score.metric.name
        plain = is_function or self.normalizer == AS_DECODED.name
        return unit if plain else f"{unit} ({self.normalizer})"


def evaluate(
    bundle: Bundle,
    reference_variant: str,
    variant: str,
    evaluation_set: EvaluationSet,
    *,
    metric: Metric | None = None,
    normalizer: Normalizer | None = None,
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
        normalizer: what true and decoded texts pass before their errors are counted; None takes the
            bundle's default.
        progress: called during the stages `reference`, `logits` and `check`.
        reference: the sequences of the reference variant; decoded here if None.
        teacher: a `Teacher` of the reference variant on any samples; if None, one is recorded here
            on at most `MAX_LOGIT_SAMPLES` of the samples.
        threads: number of CPU threads of one operator; None leaves the choice to the backend.

    Raises:
        UsageError: a metric is given and no true text is known, or the metric fails.
        InputError: a sample cannot be read, or a true text belongs to several sequences.
        MissingDependencyError: true texts are known, and jiwer or the normaliser's library is not
            installed.
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
    known = _TextResults() if texts is None else _measured(bundle, texts, metric, normalizer)
    pairs = list(zip(reference.tokens, outputs.tokens, strict=True))
    return Evaluation(
        variant=variant,
        reference=reference_variant,
        samples=total,
        agreement=compare_tokens(pairs),
        divergence=divergence,
        accuracy=known.accuracy,
        reference_accuracy=known.reference_accuracy,
        score=known.score,
        size_bytes=_size_bytes(bundle, variant),
        reference_size_bytes=_size_bytes(bundle, reference_variant),
        stand_in=evaluation_set.stand_in,
        changes=known.changes,
        different_tokens=interval_of_different(pairs),
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


@dataclass(frozen=True)
class _TextResults:
    """What is measured of texts; nothing if no true text is known."""

    accuracy: Accuracy | None = None
    reference_accuracy: Accuracy | None = None
    changes: Mapping[str, Change] = field(default_factory=dict)
    score: Score | None = None


def _measured(
    bundle: Bundle, texts: _LabelledTexts, metric: Metric | None, normalizer: Normalizer | None
) -> _TextResults:
    normalizer = normalizer or normalizer_for(bundle, texts.expected)
    decoded = compare_texts(texts.expected, texts.decoded, normalizer)
    reference = compare_texts(texts.expected, texts.reference, normalizer)
    return _TextResults(
        accuracy_of(decoded),
        accuracy_of(reference),
        changes_of(decoded, reference),
        None
        if metric is None
        else measure_score(metric, texts.expected, texts.decoded, texts.reference, normalizer),
    )


def _size_bytes(bundle: Bundle, variant: str) -> int:
    """Returns the size of a variant's files; read from disk, as the manifest may lack them."""
    folder = bundle.graph_path(variant, GraphRole.ENCODER).parent
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
