import numpy as np
import pytest

from hybrid_deploy.accuracy import measure_accuracy
from hybrid_deploy.bundle.bundle import Bundle
from hybrid_deploy.calibration.evaluation.decode_all import DecodedSet, decode_all
from hybrid_deploy.calibration.evaluation.evaluate import evaluate
from hybrid_deploy.calibration.evaluation.logit_divergence import Divergence, Teacher
from hybrid_deploy.calibration.evaluation.metrics import Metric, load_metric
from hybrid_deploy.calibration.evaluation.report import describe, evaluation_record
from hybrid_deploy.calibration.samples.evaluation_set import EvaluationSet, open_evaluation_set
from hybrid_deploy.calibration.samples.samples import Inputs
from hybrid_deploy.errors import BackendError, InputError, UsageError
from hybrid_deploy.runtime.backends.protocol import Backend
from hybrid_deploy.runtime.backends.registry import (
    BackendOptions,
    load_backend,
)
from tests.fakes.perturbed_variant import with_perturbed


@pytest.fixture
def noisy(bundle: Bundle) -> Bundle:
    return with_perturbed(bundle, 4)  # so much that tokens change


@pytest.fixture
def float_readings(bundle: Bundle, images: list[Inputs]) -> DecodedSet:
    return decode_all(bundle, "fp32", images, threads=1)


@pytest.fixture
def labelled(bundle: Bundle, images: list[Inputs], float_readings: DecodedSet) -> EvaluationSet:
    """The truth is what float reads, but for the last sample, whose truth nobody knows."""
    assert float_readings.texts is not None
    texts = [*float_readings.texts[:2], None]
    return open_evaluation_set(zip(images, texts, strict=True), bundle)


def test_a_variant_equals_itself(bundle: Bundle, labelled: EvaluationSet) -> None:
    found = evaluate(bundle, "fp32", "fp32", labelled, threads=1)
    assert found.divergence == Divergence(3, 18, 0.0, 0.0, 0.0, 1.0)
    assert found.agreement.same_sequences == found.samples == 3
    assert found.accuracy == found.reference_accuracy
    assert found.accuracy is not None
    assert (found.accuracy.lines, found.accuracy.cer_percent) == (2, 0)
    assert (found.drop, found.drop_unit) == (0, "CER points")
    assert found.size_bytes == found.reference_size_bytes == bundle.variant_size_bytes("fp32")


def test_a_worse_variant(
    noisy: Bundle, labelled: EvaluationSet, float_readings: DecodedSet
) -> None:
    found = evaluate(noisy, "fp32", "perturbed", labelled, threads=1)
    given = decode_all(noisy, "perturbed", labelled, threads=1)
    assert float_readings.texts is not None and given.texts is not None
    assert given.texts != float_readings.texts
    assert found.accuracy == measure_accuracy(float_readings.texts[:2], given.texts[:2])
    assert found.reference_accuracy is not None
    assert found.reference_accuracy.exact_percent == 100
    assert found.drop == found.accuracy.cer_percent > 0
    assert found.divergence.kl_mean_nats > 0
    assert found.agreement.same_tokens < found.agreement.tokens


def test_without_labels_the_tokens_count(noisy: Bundle, images: list[Inputs]) -> None:
    found = evaluate(noisy, "fp32", "perturbed", open_evaluation_set(images, noisy), threads=1)
    assert (found.accuracy, found.reference_accuracy, found.score) == (None, None, None)
    assert found.drop == pytest.approx(100 * (1 - found.agreement.token_share))
    assert found.drop_unit == "% of tokens"


def test_what_is_known_of_the_reference_is_not_computed_again(
    noisy: Bundle,
    images: list[Inputs],
    labelled: EvaluationSet,
    float_readings: DecodedSet,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    teacher = Teacher(noisy, "fp32", images[:2], threads=1)
    whole = evaluate(noisy, "fp32", "perturbed", labelled, threads=1)
    loaded: list[str] = []

    def counted(name: str, bundle: Bundle, variant: str, options: BackendOptions) -> Backend:
        loaded.append(variant)
        return load_backend(name, bundle, variant, options)

    for module in ("evaluate", "decode_all", "logit_divergence"):
        monkeypatch.setattr(f"hybrid_deploy.calibration.evaluation.{module}.load_backend", counted)
    stages: dict[str, tuple[int, int]] = {}
    found = evaluate(
        noisy, "fp32", "perturbed", labelled, threads=1, reference=float_readings, teacher=teacher,
        progress=lambda stage, done, total: stages.update({stage: (done, total)}),
    )  # fmt: skip
    assert loaded == ["perturbed"]
    assert list(stages) == ["logits", "check"]
    assert stages["check"] == (3, 3)
    assert found.divergence.sequences == 2
    assert (found.agreement, found.accuracy) == (whole.agreement, whole.accuracy)


def test_own_metric(noisy: Bundle, labelled: EvaluationSet) -> None:
    def right(expected: list[str], given: list[str]) -> float:
        return sum(a == b for a, b in zip(expected, given, strict=True)) / 2

    found = evaluate(noisy, "fp32", "perturbed", labelled, metric=Metric("right", right), threads=1)
    assert found.score is not None
    assert found.score.reference == 1.0
    assert found.drop == 1.0 - found.score.value > 0
    assert found.drop_unit == "right"
    assert f"\nright: {found.score.value:.4g} (float 1)\n" in describe(found)


def test_metric_needs_texts(bundle: Bundle, images: list[Inputs]) -> None:
    samples = open_evaluation_set(images, bundle)
    with pytest.raises(UsageError) as caught:
        evaluate(bundle, "fp32", "fp32", samples, metric=load_metric("cer"))
    assert str(caught.value) == (
        "the metric cer needs true texts, and no sample has one; name a folder with a labels.csv "
        "(columns file, text)"
    )


def test_one_text_for_several_sequences(bundle: Bundle) -> None:
    two = {"image": np.zeros((2, 1, 32, 32), np.float32)}
    with pytest.raises(InputError) as caught:
        evaluate(bundle, "fp32", "fp32", open_evaluation_set([(two, "12")], bundle), threads=1)
    assert str(caught.value) == (
        "1 true texts were given for 2 sequences; give each labelled sample as one sequence"
    )


def test_a_variant_that_overflows_fails(bundle: Bundle, images: list[Inputs]) -> None:
    broken = with_perturbed(bundle, np.nan)
    with pytest.raises(BackendError, match="not finite"):
        evaluate(broken, "fp32", "perturbed", open_evaluation_set(images, broken), threads=1)


def test_description(noisy: Bundle, labelled: EvaluationSet, images: list[Inputs]) -> None:
    found = evaluate(noisy, "fp32", "perturbed", labelled, threads=1)
    size, accuracy, tokens = describe(found).split("\n")
    assert size.startswith(f"perturbed: {found.size_bytes / 1e6:.2f} MB (float ")
    assert found.accuracy is not None
    assert accuracy == (
        f"CER {found.accuracy.cer_percent:.2f} % (float 0.00 %), "
        f"exact {found.accuracy.exact_percent:.1f} % (100.0 %) on 2 labelled inputs"
    )
    assert tokens == (
        f"{found.agreement.same_sequences} of 3 sequences and {found.agreement.same_tokens} of "
        f"{found.agreement.tokens} tokens as in float; logits: "
        f"KL mean {found.divergence.kl_mean_nats:.2g}, "
        f"largest difference {found.divergence.largest_difference:.2g}"
    )
    record = evaluation_record(found)
    assert record["cer_percent"] == record["drop"] == found.accuracy.cer_percent
    assert record["wer_percent"] is record["metric"] is None
    assert record["kl_mean_nats"] == found.divergence.kl_mean_nats
    unlabelled = evaluate(noisy, "fp32", "perturbed", open_evaluation_set(images, noisy), threads=1)
    assert describe(unlabelled).split("\n") == [size, tokens]
    assert evaluation_record(unlabelled)["cer_percent"] is None
