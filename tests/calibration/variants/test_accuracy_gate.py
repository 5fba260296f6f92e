"""A variant that loses much is not written unless a budget accepts it."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from hybrid_deploy.accuracy.error_rates import Accuracy, Change
from hybrid_deploy.bundle.bundle import Bundle, open_bundle
from hybrid_deploy.calibration.evaluation.evaluate import Evaluation
from hybrid_deploy.calibration.evaluation.logit_divergence import Divergence
from hybrid_deploy.calibration.evaluation.metrics import BUILT_IN, Metric
from hybrid_deploy.calibration.evaluation.score import Score
from hybrid_deploy.calibration.evaluation.token_agreement import Agreement
from hybrid_deploy.calibration.quantize import quantize_bundle
from hybrid_deploy.calibration.samples.samples import Inputs
from hybrid_deploy.calibration.variants.accuracy_gate import check_accuracy
from hybrid_deploy.errors import CalibrationError
from tests.fakes.edited_bundle import with_sensitive_head

UNLABELLED = Evaluation(
    variant="int4-cpu",
    reference="fp32",
    samples=16,
    agreement=Agreement(sequences=16, same_sequences=9, tokens=190, same_tokens=150),
    divergence=Divergence(16, 190, 0.1, 2.0, 5.0, 0.951),
    accuracy=None,
    reference_accuracy=None,
    score=None,
    size_bytes=1,
    reference_size_bytes=2,
)


def with_share(share: float) -> Evaluation:
    return replace(UNLABELLED, divergence=replace(UNLABELLED.divergence, same_argmax_share=share))


def with_errors(before: float, after: float) -> Evaluation:
    """Returns an evaluation with character error rates in percent, whose tokens differ much."""
    after_accuracy, before_accuracy = Accuracy(16, after, 0.0), Accuracy(16, before, 0.0)
    return replace(
        with_share(0.5),
        accuracy=after_accuracy,
        reference_accuracy=before_accuracy,
        changes={"cer": Change(after - before, None)},
    )


def test_a_variant_that_agrees_passes() -> None:
    check_accuracy(UNLABELLED, "int4-cpu")


def test_without_true_texts_the_next_token_decides() -> None:
    with pytest.raises(CalibrationError) as caught:
        check_accuracy(with_share(0.912), "int4-cpu")
    assert str(caught.value) == (
        "int4-cpu predicts 91.2 % of fp32's 190 tokens on 16 inputs (95 % is the least), so it was "
        "not written; give --max-drop N to keep layers in float until it loses N points at most, "
        "or take a precision of more bits, such as int8-cpu or int8-weights"
    )


@pytest.mark.parametrize(("tokens", "differing", "passes"), [
    (18, 2, True), (18, 3, False), (60, 3, True), (60, 4, False), (1000, 50, True),
    (1000, 51, False),
])  # fmt: skip
def test_two_tokens_of_few_prove_nothing(tokens: int, differing: int, passes: bool) -> None:
    divergence = replace(
        UNLABELLED.divergence, steps=tokens, same_argmax_share=1 - differing / tokens
    )
    evaluation = replace(UNLABELLED, divergence=divergence)
    if passes:
        check_accuracy(evaluation, "int4-cpu")
    else:
        with pytest.raises(CalibrationError, match=f"of fp32's {tokens} tokens"):
            check_accuracy(evaluation, "int4-cpu")


def test_a_share_that_is_no_number_is_refused() -> None:
    with pytest.raises(CalibrationError):
        check_accuracy(with_share(math.nan), "int4-cpu")


def test_with_true_texts_their_error_rate_decides() -> None:
    check_accuracy(with_errors(20.0, 21.0), "int4-cpu")
    with pytest.raises(CalibrationError, match=r"loses 1\.5 CER points on 16 inputs, so it was"):
        check_accuracy(with_errors(20.0, 21.5), "int4-cpu")


def test_a_metric_in_percent_goes_before_the_error_rate() -> None:
    score = Score(BUILT_IN["wer"], value=32.3, reference=21.8)
    evaluation = replace(with_errors(5.0, 5.1), score=score)
    with pytest.raises(CalibrationError, match=r"loses 10\.5 wer on 16 inputs"):
        check_accuracy(evaluation, "int4-cpu")


def test_the_unit_of_a_users_own_metric_is_unknown() -> None:
    own = Metric("mine:score", lambda expected, decoded: 0.0)
    loss = Score(own, value=0.0, reference=500.0)
    check_accuracy(replace(with_errors(5, 5), score=loss, divergence=UNLABELLED.divergence), "v")
    with pytest.raises(CalibrationError, match=r"predicts 50\.0 %"):
        check_accuracy(replace(with_errors(5, 5), score=loss), "v")


def test_the_example_of_the_export_decides_nothing() -> None:
    check_accuracy(replace(with_share(0.1), stand_in="the example"), "int4-cpu")


def test_a_refused_variant_leaves_the_bundle_as_it_was(
    bundle: Bundle, images: list[Inputs]
) -> None:
    sensitive = with_sensitive_head(bundle)
    before = sorted(path.name for path in sensitive.folder.iterdir())
    with pytest.raises(CalibrationError, match=r"^int8-weights predicts .* so it was not written"):
        quantize_bundle(sensitive.folder, "int8-weights", images)
    assert sorted(path.name for path in sensitive.folder.iterdir()) == before
    assert list(open_bundle(sensitive.folder).manifest.variants) == ["fp32"]
    report = quantize_bundle(sensitive.folder, "int8-weights", images, max_drop=100)
    assert report.layers_in_float == ()
