"""An evaluation for people and for programs."""

from __future__ import annotations

from hybrid_deploy.accuracy import Accuracy
from hybrid_deploy.calibration.evaluation.evaluate import Evaluation
from hybrid_deploy.contract import FLOAT_VARIANT

_BYTES_PER_MB = 1e6


def describe(evaluation: Evaluation) -> str:
    """Says in two to four lines how small and how right a variant is."""
    other = _name(evaluation.reference)
    lines = [
        f"{evaluation.variant}: {evaluation.size_bytes / _BYTES_PER_MB:.2f} MB "
        f"({other} {evaluation.reference_size_bytes / _BYTES_PER_MB:.2f} MB, "
        f"{100 * evaluation.size_bytes / evaluation.reference_size_bytes:.0f} %)"
    ]
    if evaluation.accuracy is not None and evaluation.reference_accuracy is not None:
        lines.append(_accuracy_line(evaluation.accuracy, evaluation.reference_accuracy, other))
    score = evaluation.score
    if score is not None:
        lines.append(f"{score.metric.name}: {score.value:.4g} ({other} {score.reference:.4g})")
    return "\n".join([*lines, _agreement_line(evaluation, other)])


def evaluation_record(evaluation: Evaluation) -> dict[str, object]:
    """Returns the numbers by name, the unit last; those that were not measured are None."""
    agreement, divergence = evaluation.agreement, evaluation.divergence
    score = evaluation.score
    return {
        "variant": evaluation.variant,
        "reference": evaluation.reference,
        "samples": evaluation.samples,
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


def _accuracy_line(accuracy: Accuracy, reference: Accuracy, other: str) -> str:
    parts = [f"CER {accuracy.cer_percent:.2f} % ({other} {reference.cer_percent:.2f} %)"]
    if accuracy.wer_percent is not None:
        parts.append(f"WER {accuracy.wer_percent:.2f} % ({reference.wer_percent:.2f} %)")
    parts.append(f"exact {accuracy.exact_percent:.1f} % ({reference.exact_percent:.1f} %)")
    return f"{', '.join(parts)} on {accuracy.lines} labelled inputs"


def _agreement_line(evaluation: Evaluation, other: str) -> str:
    seen, logits = evaluation.agreement, evaluation.divergence
    compared = "logits"
    if logits.sequences < seen.sequences:
        compared = f"logits of {logits.sequences} sequences"
    return (
        f"{seen.same_sequences} of {seen.sequences} sequences and "
        f"{seen.same_tokens} of {seen.tokens} tokens as in {other}; "
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
