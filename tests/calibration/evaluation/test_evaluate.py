import numpy as np
import pytest

from hybrid_deploy.accuracy.bootstrap import Interval
from hybrid_deploy.accuracy.error_rates import measure_accuracy
from hybrid_deploy.accuracy.normalizers import load_normalizer
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
    return with_perturbed(bundle, 4)  # enough noise to change tokens


@pytest.fixture
def float_outputs(bundle: Bundle, images: list[Inputs]) -> DecodedSet:
    return decode_all(bundle, "fp32", images, threads=1)


@pytest.fixture
def labelled(bundle: Bundle, images: list[Inputs], float_outputs: DecodedSet) -> EvaluationSet:
    """The texts that float decodes count as true texts; the last sample has no true text."""
    assert float_outputs.texts is not None
    texts = [*float_outputs.texts[:2], None]
    return open_evaluation_set(zip(images, texts, strict=True), bundle)


def test_a_variant_equals_itself(bundle: Bundle, labelled: EvaluationSet) -> None:
    evaluation = evaluate(bundle, "fp32", "fp32", labelled, threads=1)
    assert evaluation.divergence == Divergence(3, 18, 0.0, 0.0, 0.0, 1.0)
    assert evaluation.agreement.same_sequences == evaluation.samples == 3
    assert evaluation.accuracy == evaluation.reference_accuracy
    assert evaluation.accuracy is not None
    assert (evaluation.accuracy.lines, evaluation.accuracy.cer_percent) == (2, 0)
    assert (evaluation.drop, evaluation.drop_unit) == (0, "CER points")
    assert (
        evaluation.size_bytes
        == evaluation.reference_size_bytes
        == bundle.variant_size_bytes("fp32")
    )


def test_a_variant_with_errors(
    noisy: Bundle, labelled: EvaluationSet, float_outputs: DecodedSet
) -> None:
    evaluation = evaluate(noisy, "fp32", "perturbed", labelled, threads=1)
    outputs = decode_all(noisy, "perturbed", labelled, threads=1)
    assert float_outputs.texts is not None and outputs.texts is not None
    assert outputs.texts != float_outputs.texts
    assert evaluation.accuracy == measure_accuracy(float_outputs.texts[:2], outputs.texts[:2])
    assert evaluation.reference_accuracy is not None
    assert evaluation.reference_accuracy.exact_percent == 100
    assert evaluation.drop == evaluation.accuracy.cer_percent > 0
    assert evaluation.divergence.kl_mean_nats > 0
    assert evaluation.agreement.same_tokens < evaluation.agreement.tokens


def test_without_labels_the_drop_is_a_share_of_tokens(noisy: Bundle, images: list[Inputs]) -> None:
    evaluation = evaluate(noisy, "fp32", "perturbed", open_evaluation_set(images, noisy), threads=1)
    assert (evaluation.accuracy, evaluation.reference_accuracy, evaluation.score) == (
        None,
        None,
        None,
    )
    assert evaluation.drop == pytest.approx(100 * (1 - evaluation.agreement.token_share))
    assert evaluation.drop_unit == "% of tokens"
    assert evaluation.drop_interval is not None
    assert 0 < evaluation.drop_interval.low <= evaluation.drop <= evaluation.drop_interval.high


def test_given_results_of_the_reference_are_not_computed_again(
    noisy: Bundle,
    images: list[Inputs],
    labelled: EvaluationSet,
    float_outputs: DecodedSet,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    teacher = Teacher(noisy, "fp32", images[:2], threads=1)
    computed_here = evaluate(noisy, "fp32", "perturbed", labelled, threads=1)
    loaded: list[str] = []

    def counting_load(name: str, bundle: Bundle, variant: str, options: BackendOptions) -> Backend:
        loaded.append(variant)
        return load_backend(name, bundle, variant, options)

    for module in ("evaluate", "decode_all", "logit_divergence"):
        monkeypatch.setattr(
            f"hybrid_deploy.calibration.evaluation.{module}.load_backend", counting_load
        )
    stages: dict[str, tuple[int, int]] = {}
    evaluation = evaluate(
        noisy, "fp32", "perturbed", labelled, threads=1, reference=float_outputs, teacher=teacher,
        progress=lambda stage, done, total: stages.update({stage: (done, total)}),
    )  # fmt: skip
    assert loaded == ["perturbed"]
    assert list(stages) == ["logits", "check"]
    assert stages["check"] == (3, 3)
    assert evaluation.divergence.sequences == 2
    assert (evaluation.agreement, evaluation.accuracy) == (
        computed_here.agreement,
        computed_here.accuracy,
    )


def test_metric_of_the_user(noisy: Bundle, labelled: EvaluationSet) -> None:
    def right(expected: list[str], decoded: list[str]) -> float:
        return sum(a == b for a, b in zip(expected, decoded, strict=True)) / 2

    evaluation = evaluate(
        noisy, "fp32", "perturbed", labelled, metric=Metric("right", right), threads=1
    )
    assert evaluation.score is not None
    assert evaluation.score.reference == 1.0
    assert evaluation.drop == 1.0 - evaluation.score.value > 0
    assert evaluation.drop_unit == "right"
    line = "\nright: 0 (0 to 0), float 1, worse by +1 to +1\n"
    assert line in describe(evaluation)


def test_normalised_texts_are_compared(noisy: Bundle, images: list[Inputs]) -> None:
    labels = [" 333333.", "(333333) 333333", None]
    samples = open_evaluation_set(zip(images, labels, strict=True), noisy)
    as_decoded = evaluate(noisy, "fp32", "perturbed", samples, threads=1)
    assert as_decoded.reference_accuracy is not None
    assert as_decoded.reference_accuracy.exact_percent == 0
    assert (as_decoded.normalizer, as_decoded.drop_unit) == ("none", "CER points")
    basic = load_normalizer("basic")
    evaluation = evaluate(noisy, "fp32", "perturbed", samples, threads=1, normalizer=basic)
    assert evaluation.reference_accuracy is not None
    assert evaluation.reference_accuracy.exact_percent == 100
    assert (evaluation.normalizer, evaluation.drop_unit) == ("basic", "CER points (basic)")
    assert evaluation.drop == evaluation.changes["cer"].points > 0
    assert evaluation.drop_interval == evaluation.changes["cer"].interval
    heading = describe(evaluation).splitlines()[1]
    assert heading.startswith("texts of 2 labelled inputs, normalised by basic, with 95 % int")


@pytest.mark.parametrize(("name", "unit"), [("exact", "exact (basic)"), ("wer", "wer (basic)")])
def test_the_drop_of_a_metric_has_its_interval(
    noisy: Bundle, labelled: EvaluationSet, name: str, unit: str
) -> None:
    evaluation = evaluate(
        noisy, "fp32", "perturbed", labelled, threads=1,
        metric=load_metric(name), normalizer=load_normalizer("basic"),
    )  # fmt: skip
    assert (evaluation.drop, evaluation.drop_unit) == (100, unit)
    assert evaluation.drop_interval == Interval(100, 100)
    assert f"\n{unit}: " in describe(evaluation)


def test_metric_needs_texts(bundle: Bundle, images: list[Inputs]) -> None:
    samples = open_evaluation_set(images, bundle)
    with pytest.raises(UsageError) as caught:
        evaluate(bundle, "fp32", "fp32", samples, metric=load_metric("cer"))
    assert str(caught.value) == (
        "the metric cer needs true texts, and no sample has one; name a folder with a labels.csv "
        "(columns file, text)"
    )


def test_one_true_text_for_several_sequences_is_refused(bundle: Bundle) -> None:
    two = {"image": np.zeros((2, 1, 32, 32), np.float32)}
    with pytest.raises(InputError) as caught:
        evaluate(bundle, "fp32", "fp32", open_evaluation_set([(two, "12")], bundle), threads=1)
    assert str(caught.value) == (
        "1 true texts were given for 2 sequences; give each labelled sample as one sequence"
    )


def test_a_variant_with_nan_logits_fails(bundle: Bundle, images: list[Inputs]) -> None:
    broken = with_perturbed(bundle, np.nan)
    with pytest.raises(BackendError, match="not finite"):
        evaluate(broken, "fp32", "perturbed", open_evaluation_set(images, broken), threads=1)


def test_description(noisy: Bundle, labelled: EvaluationSet, images: list[Inputs]) -> None:
    evaluation = evaluate(noisy, "fp32", "perturbed", labelled, threads=1)
    size, *accuracy, tokens = describe(evaluation).split("\n")
    assert size.startswith(f"perturbed: {evaluation.size_bytes / 1e6:.2f} MB (float ")
    assert evaluation.accuracy is not None
    assert accuracy == [
        "texts of 2 labelled inputs, with 95 % intervals; of so few, they mean little:",
        "  CER 100.00 % (100.00 to 100.00), float 0.00 %, change +100.00 (+100.00 to +100.00)",
        "  exact 0.0 % (0.0 to 0.0), float 100.0 %, change -100.0 (-100.0 to -100.0)",
    ]
    assert tokens == (
        f"{evaluation.agreement.same_sequences} of 3 sequences and "
        f"{evaluation.agreement.same_tokens} of {evaluation.agreement.tokens} tokens as in float; "
        "logits: "
        f"KL mean {evaluation.divergence.kl_mean_nats:.2g}, "
        f"largest difference {evaluation.divergence.largest_difference:.2g}"
    )
    record = evaluation_record(evaluation)
    assert record["cer_percent"] == record["drop"] == evaluation.accuracy.cer_percent
    assert (record["cer_low_percent"], record["cer_change_high_points"]) == (100, 100)
    assert (record["normalizer"], record["drop_low"], record["drop_high"]) == ("none", 100, 100)
    assert record["wer_percent"] is record["metric"] is None
    assert record["kl_mean_nats"] == evaluation.divergence.kl_mean_nats
    unlabelled = evaluate(noisy, "fp32", "perturbed", open_evaluation_set(images, noisy), threads=1)
    assert describe(unlabelled).split("\n") == [size, tokens]
    assert evaluation_record(unlabelled)["normalizer"] is None
    assert evaluation_record(unlabelled)["cer_percent"] is None
