"""Formats an evaluation: as a text of a few lines, or as a record of named numbers."""

from __future__ import annotations

from hybrid_deploy.accuracy.bootstrap import FEW_INPUTS, Interval
from hybrid_deploy.accuracy.error_rates import Accuracy
from hybrid_deploy.accuracy.normalizers import AS_DECODED
from hybrid_deploy.accuracy.records import bounds_record, changes_record, rates_record
from hybrid_deploy.calibration.evaluation.evaluate import Evaluation
from hybrid_deploy.contract import FLOAT_VARIANT

_BYTES_PER_MB = 1e6
_TITLES = {"cer": ("CER", 2), "wer": ("WER", 2), "exact": ("exact", 1)}
"""Title and decimals of each rate."""


def describe(evaluation: Evaluation) -> str:
    """Returns a text of a few lines that states a variant's size and accuracy."""
    reference = _name(evaluation.reference)
    lines = [
        f"{evaluation.variant}: {evaluation.size_bytes / _BYTES_PER_MB:.2f} MB "
        f"({reference} {evaluation.reference_size_bytes / _BYTES_PER_MB:.2f} MB, "
        f"{100 * evaluation.size_bytes / evaluation.reference_size_bytes:.0f} %)"
    ]
    if evaluation.accuracy is not None and evaluation.reference_accuracy is not None:
        lines += _accuracy_lines(evaluation, evaluation.accuracy, evaluation.reference_accuracy)
    score = evaluation.score
    if score is not None:
        lines.append(
            f"{evaluation.drop_unit}: {score.value:.4g}{_range(score.interval, '.4g')}, "
            f"{reference} {score.reference:.4g}{_worse_by(score.drop_interval)}"
        )
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
        "normalizer": None if evaluation.accuracy is None else evaluation.normalizer,
        **_accuracy_record(evaluation.accuracy, ""),
        **_accuracy_record(evaluation.reference_accuracy, "reference_"),
        **changes_record(evaluation.changes),
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
        **bounds_record("drop", "", evaluation.drop_interval),
        "drop_unit": evaluation.drop_unit,
    }


def _accuracy_lines(evaluation: Evaluation, accuracy: Accuracy, reference: Accuracy) -> list[str]:
    """Returns a heading and a line for each rate."""
    how = "" if accuracy.normalizer == AS_DECODED.name else f", normalised by {accuracy.normalizer}"
    few = "; of so few, they mean little" if accuracy.lines < FEW_INPUTS else ""
    lines = [f"texts of {accuracy.lines} labelled inputs{how}, with 95 % intervals{few}:"]
    for rate, change in evaluation.changes.items():
        title, digits = _TITLES[rate]
        value, other = accuracy.percents[rate], reference.percents[rate]
        own = _range(accuracy.intervals.get(rate), f".{digits}f")
        lines.append(
            f"  {title} {value:.{digits}f} %{own}, {_name(evaluation.reference)} "
            f"{other:.{digits}f} %, change {change.points:+.{digits}f}"
            + _range(change.interval, f"+.{digits}f")
        )
    return lines


def _range(interval: Interval | None, form: str) -> str:
    return "" if interval is None else f" ({interval.low:{form}} to {interval.high:{form}})"


def _worse_by(interval: Interval | None) -> str:
    return "" if interval is None else f", worse by {interval.low:+.4g} to {interval.high:+.4g}"


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
    if accuracy is None:
        return rates_record({}, {}, prefix)
    return rates_record(accuracy.percents, accuracy.intervals, prefix)


def _name(variant: str) -> str:
    return "float" if variant == FLOAT_VARIANT else variant
