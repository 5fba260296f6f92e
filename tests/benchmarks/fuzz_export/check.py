"""Exports one random model, and judges the result: a bundle by its numbers, a refusal by its claim.

A bundle has to give the module's numbers, in each of its graphs. A refusal has to be true:

    the refusal says                           it is false if
    the graphs differ from the model, or fail  the model is sound: the derivation is wrong
    decode() is not causal                     no later token changes a logit
    ... mixes the sequences of a batch         each row alone gives the same
    the model itself fails at a size           it runs there
    two runs differ                            they do not
    file:line                                  the line is not one of the model's
    an internal step failed                    always
"""

from __future__ import annotations

import re
import tempfile
import traceback
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path

from hybrid_deploy.errors import HybridDeployError
from hybrid_deploy.export.exporter import export_model
from tests.benchmarks.fuzz_export.compare import END, START, Comparison, DifferenceError
from tests.benchmarks.fuzz_export.models import Sample, random_sample
from tests.benchmarks.fuzz_export.reference import BLIND, Flaw, flaws_of

_LEAST_COMPARED = 40  # rows of logits: 5 batches of 12 rows in all give some 200
_MOST_JUMPS = 0.05  # share of the rows of logits: a model that always jumps proves nothing


class Verdict(str, Enum):
    """The result of one model."""

    RIGHT = "right"
    REFUSED = "refused"
    UNUSABLE = "unusable"
    WRONG = "WRONG"
    FALSE_REFUSAL = "FALSE REFUSAL"
    INTERNAL = "INTERNAL"
    TRACEBACK = "TRACEBACK"
    TIMEOUT = "TIMEOUT"


@dataclass(frozen=True)
class Outcome:
    """What happened to the model of a seed.

    Attributes:
        seed: the seed.
        verdict: the result.
        reason: the first words of an error, or where a bundle differs.
        choices: parts of the model.
        compared: number of logit rows that were compared.
        wrong: what was done to the model so that it has to be refused; "none" for most.
    """

    seed: int
    verdict: Verdict
    reason: str = ""
    choices: str = ""
    compared: int = 0
    wrong: str = "none"


def outcome_of(seed: int, fixed: dict[str, str] | None = None) -> Outcome:
    """Exports the model of a seed, and compares its bundle.

    Args:
        seed: seed of the model.
        fixed: choices that are not drawn.
    """
    sample = random_sample(seed, fixed)
    outcome = Outcome(seed, Verdict.RIGHT, "", sample.choices, wrong=sample.wrong)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        path = Path(folder, "model.bundle")
        try:
            export_sample(sample, path)
        except HybridDeployError as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            verdict, lie = judged_refusal(reason, _flaws(sample))
            return replace(outcome, verdict=verdict, reason=f"{lie}{reason}")
        except Exception as error:
            return replace(outcome, verdict=Verdict.TRACEBACK, reason=_where(error))
        return judged_bundle(outcome, sample, path)


def export_sample(sample: Sample, path: Path) -> None:
    """Exports a random model as a bundle."""
    export_model(
        sample.model,
        dict(sample.example),
        path,
        max_length=sample.max_length,
        start_tokens=START,
        end_tokens=END,
        dynamic=sample.dynamic,
    )


def _flaws(sample: Sample) -> set[Flaw]:
    return flaws_of(sample.model, sample.batches, sample.vocabulary, sample.max_length)


def judged_refusal(reason: str, flaws: set[Flaw]) -> tuple[Verdict, str]:
    """Returns whether a refusal is true of a model with these flaws, and else what is false."""
    untranslated = "has no ONNX form" in reason and "no translation for" not in reason
    if untranslated or any(words in reason for words in _OUR_WORDS):
        return Verdict.INTERNAL, ""
    sound = not flaws - BLIND
    claims = (
        ("ParityError", sound, "the model is sound"),
        ("BackendError", sound, "the model is sound"),
        ("decode() is not causal", Flaw.LOOKS_AHEAD not in flaws, "no logit looks ahead"),
        ("mixes the inputs of a batch", Flaw.MIXES_BATCH not in flaws, "rows do not mix"),
        ("lets a token see", Flaw.LOOKS_AHEAD not in flaws, "no logit looks ahead"),
        ("decode() mixes the sequences", Flaw.MIXES_BATCH not in flaws, "rows do not mix"),
        ("the model itself fails", Flaw.FAILS not in flaws, "the model runs"),
        ("code() fails: ", Flaw.FAILS not in flaws, "the model runs"),
        ("in a second run on the same values", Flaw.RANDOM not in flaws, "no run differs"),
        ("decode() returns other logits for", sound, "the model is sound"),
    )
    for words, is_false, truth in claims:
        if words in reason and is_false:
            return Verdict.FALSE_REFUSAL, f"[{truth}] "
    for file in re.findall(r"(\S+\.py):\d+", reason):
        if Path(file).name not in MODEL_FILES and "site-packages" not in file:
            return Verdict.FALSE_REFUSAL, "[the line is not the model's] "
    return Verdict.REFUSED, ""


_OUR_WORDS = ("internal step failed", "already registered", "zip()", "requires q_num_heads")
"""Words of errors that no model is to blame for."""

MODEL_FILES = (
    "attention.py", "encoders.py", "models.py", "parts.py", "recurrent.py", "rows.py", "wrong.py",
)  # fmt: skip
"""Files of the random models; a refusal that names a line names one of theirs."""


def _where(error: Exception) -> str:
    """Returns the class and first line of an exception, and its innermost line of code."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    text = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {text} at {Path(last.filename).name}:{last.lineno}"


def judged_bundle(outcome: Outcome, sample: Sample, path: Path) -> Outcome:
    """Returns the outcome of a bundle, compared with its module.

    Args:
        outcome: what is known of the model.
        sample: the model and its inputs.
        path: folder of the bundle.
    """
    flaws = _flaws(sample)
    if flaws & {Flaw.RANDOM, Flaw.MIXES_BATCH}:
        return replace(outcome, verdict=Verdict.WRONG, reason=f"exported, yet {_text(flaws)}")
    if flaws & {Flaw.FAILS, Flaw.NOT_FINITE, *BLIND}:
        return replace(outcome, verdict=Verdict.UNUSABLE, reason=f"the model {_text(flaws)}")
    try:
        comparison = Comparison(path, sample.model, sample.vocabulary, sample.max_length)
        comparison.run(sample.batches)
    except DifferenceError as error:
        return replace(outcome, verdict=Verdict.WRONG, reason=str(error))
    except HybridDeployError as error:
        reason = f"the bundle fails: {type(error).__name__}: {error}"
        return replace(outcome, verdict=Verdict.WRONG, reason=reason)
    except Exception as error:
        reason = f"after the export: {_where(error)}"
        return replace(outcome, verdict=Verdict.TRACEBACK, reason=reason)
    if comparison.compared < _LEAST_COMPARED:
        reason = f"only {comparison.compared} rows of logits compared"
        return replace(outcome, verdict=Verdict.UNUSABLE, reason=reason)
    if comparison.jumps > _MOST_JUMPS * comparison.compared:
        reason = f"rounding errors alone move {comparison.jumps} rows of logits"
        return replace(outcome, verdict=Verdict.UNUSABLE, reason=reason)
    return replace(outcome, compared=comparison.compared)


def _text(flaws: set[Flaw]) -> str:
    return ", ".join(sorted(flaw.value for flaw in flaws))


def kind_of(reason: str) -> str:
    """Returns a reason without what differs between models: paths, numbers, names."""
    text = re.sub(r"\S+\.py:\d+: ?", "", reason)
    text = re.sub(r"\([^()]*\)", "()", text)
    text = re.sub(r"\d[\d.e+-]*", "N", text)
    return text[:110]
