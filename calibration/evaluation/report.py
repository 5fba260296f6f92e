"""Formats an evaluation: as a text of a few lines, or as a record of named numbers."""

from __future__ import annotations

from hybrid_deploy.calibration.evaluation.evaluate import Evaluation
from hybrid_deploy.contract import FLOAT_VARIANT
from hybrid_deploy.error_rates import Accuracy

_BYTES_PER_MB = 1e6


def describe(evaluation: Evaluation) -> str:
    """Returns a text of two to five lines that states a variant's size and accuracy."""
    reference = _name(evaluation.reference)
    lines = [
        f"{evaluation.variant}: {evaluation.size_bytes / _BYTES_PER_MB:.2f} MB "
        f"({reference} {evaluation.reference_size_bytes / _BYTES_PER_MB:.2f} MB, "
        f"{100 * evaluation.size_bytes / evaluation.reference_size_bytes:.0f} %)"
    ]
    if evaluation.accuracy is not None and evaluation.reference_accuracy is not None:
        lines.append(_accuracy_line(evaluation.accuracy, evaluation.reference_accuracy, reference))
    score = evaluation.score
    if score is not None:
        lines.append(f"{score.metric.name}: {score.value:.4g} ({reference} {score.reference:.4g})")
    lines.append(_agreement_line(evaluation, reference))
    if evaluation.stand_in is not None:
        lines.append(
            f"not checked on any real input, only on {evaluation.stand_in}: give --samples FOLDER"
        )
    return "\n".join(lines)


def evaluation_record(evaluation: Evaluation) -> dict[str, object]:
    """Returns the numbers by name; a name ends in its unit, a number not measured is None."""
    agreement, divergence = evaluation.agreement, evaluation.divergence
    score = evaluation.score
    return {
        "variant": evaluation.variant,
        "reference": evaluation.reference,
        "samples": evaluation.samples,
        "stand_in": evaluation.stand_in,
        "size_bytes": evaluation.size_bytes,
        "reference_size_bytes": evaluation.reference_size_bytes,
        "sequences": agreement.sequences,
        "same_sequences": agreement.same_sequences,
        "tokens": agreement.tokens,
        "same_tokens": agreement.same_tokens,
        **_accuracy_record(evaluation.accuracy, ""),
        **_accuracy_record(evaluation.reference_accuracy, "reference_"),
        "metric": None if score is None else score.metric.name,
        "metric_value": None if score is None else score.value,
        "reference_metric_value": None if score is None else score.reference,
        "logits_sequences": divergence.sequences,
        "logits_steps": divergence.steps,
        "kl_mean_nats": divergence.kl_mean_nats,
        "kl_max_nats": divergence.kl_max_nats,
        "largest_logit_difference": divergence.largest_difference,
        "same_argmax_share": divergence.same_argmax_share,
        "drop": evaluation.drop,
        "drop_unit": evaluation.drop_unit,
    }


def _accuracy_line(accuracy: Accuracy, reference: Accuracy, reference_name: str) -> str:
    parts = [f"CER {accuracy.cer_percent:.2f} % ({reference_name} {reference.cer_percent:.2f} %)"]
    if accuracy.wer_percent is not None:
        parts.append(f"WER {accuracy.wer_percent:.2f} % ({reference.wer_percent:.2f} %)")
    parts.append(f"exact {accuracy.exact_percent:.1f} % ({reference.exact_percent:.1f} %)")
    return f"{', '.join(parts)} on {accuracy.lines} labelled inputs"


def _agreement_line(evaluation: Evaluation, reference_name: str) -> str:
    agreement, logits = evaluation.agreement, evaluation.divergence
    compared = "logits"
    if logits.sequences < agreement.sequences:
        compared = f"logits of {logits.sequences} sequences"
    return (
        f"{agreement.same_sequences} of {agreement.sequences} sequences and "
        f"{agreement.same_tokens} of {agreement.tokens} tokens as in {reference_name}; "
        f"{compared}: KL mean {logits.kl_mean_nats:.2g}, "
        f"largest difference {logits.largest_difference:.2g}"
    )


def _accuracy_record(accuracy: Accuracy | None, prefix: str) -> dict[str, object]:
    return {
        f"{prefix}{name}": getattr(accuracy, name, None)
        for name in ("cer_percent", "wer_percent", "exact_percent")
    }


def _name(variant: str) -> str:
    return "float" if variant == FLOAT_VARIANT else variant
