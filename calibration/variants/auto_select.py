"""Chooses the fastest variant that holds an accuracy budget, by measuring on this machine."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from hybrid_deploy.accuracy.records import bounds_record
from hybrid_deploy.bundle.bundle import Bundle
from hybrid_deploy.calibration.evaluation.evaluate import Evaluation
from hybrid_deploy.calibration.recipes import Recipe, recipe_for
from hybrid_deploy.calibration.samples.evaluation_set import EvaluationSet
from hybrid_deploy.report import Column
from hybrid_deploy.runtime.backends.registry import (
    DEFAULT_BACKEND,
    BackendOptions,
    load_backend,
)
from hybrid_deploy.runtime.generation.options import GREEDY
from hybrid_deploy.runtime.session.session import Session

COLUMNS = (
    Column("variant", "variant"),
    Column("size_mb", "MB", digits=2),
    Column("drop", "drop", digits=2),
    Column("drop_low", "from", digits=2),  # of its 95 % interval
    Column("drop_high", "to", digits=2),
    Column("drop_unit", "of"),
    Column("total_ms", "total ms", digits=2),
    Column("speedup", "x float", digits=2),
    Column("verdict", "verdict"),
)
_ROUNDS = 6  # an even number: half of the rounds run the variants in reverse order
_TIMED_SAMPLES = 12
_MIN_SPEEDUP = 1.03  # a smaller gain is within the noise of the measurement
_BYTES_PER_MB = 1e6

CHOSEN_VERDICT = "chosen"
_HOLDS_BUDGET_VERDICT = "holds the budget"


def cpu_candidates(block_size: int | None = None) -> list[Recipe]:
    """Returns the recipes that may be the fastest with ONNX Runtime on a CPU.

    Args:
        block_size: number of decoder weights that share a scale; None leaves it to the recipe.
    """
    return [
        recipe_for("fp32-cpu"),
        *(
            recipe_for(None, encoder=encoder, decoder=decoder, block_size=block_size)
            for encoder in ("fp32-cpu", "int8-cpu")
            for decoder in ("int8-cpu", "int4-cpu")
        ),
    ]


@dataclass(frozen=True)
class Candidate:
    """A variant that was evaluated and timed.

    Attributes:
        recipe: the recipe of the variant.
        evaluation: how the variant compares with float; None if it failed.
        total_ms: median time of a sample in ms, from the encoder to the last token; NaN if the
            variant failed.
        speedup: median over samples and rounds of the float variant's time divided by this
            variant's time; NaN if the variant failed.
        speedup_lower_quartile: lower quartile of that ratio; NaN if the variant failed.
        verdict: `chosen`, `holds the budget`, or the reason why it cannot be chosen; empty before
            `choose_fastest`.
    """

    recipe: Recipe
    evaluation: Evaluation | None
    total_ms: float
    speedup: float
    speedup_lower_quartile: float
    verdict: str

    def record(self) -> dict[str, object]:
        """Returns a row for the table of COLUMNS."""
        evaluation = self.evaluation
        return {
            "variant": self.recipe.name,
            "size_mb": None if evaluation is None else evaluation.size_bytes / _BYTES_PER_MB,
            "drop": None if evaluation is None else evaluation.drop,
            **bounds_record("drop", "", None if evaluation is None else evaluation.drop_interval),
            "drop_unit": None if evaluation is None else evaluation.drop_unit,
            "total_ms": self.total_ms,
            "speedup": self.speedup,
            "verdict": self.verdict,
        }


@dataclass(frozen=True)
class Speed:
    """How fast a variant decodes samples.

    Attributes:
        total_ms: median time of a sample in ms, over samples and rounds.
        speedup: median over samples and rounds of the reference's time divided by the variant's.
        speedup_lower_quartile: lower quartile of that ratio.
    """

    total_ms: float
    speedup: float
    speedup_lower_quartile: float


def measure_speeds(
    bundles: Mapping[str, Bundle],
    reference: str,
    samples: EvaluationSet,
    threads: int | None,
) -> dict[str, Speed]:
    """Returns the speed of each variant.

    Every sample is decoded by all variants in turn before the next sample, so that a busy machine
    slows all of them. Every second round reverses their order, as a later variant profits from CPU
    caches that an earlier one has filled.

    Args:
        bundles: for each variant's name, a bundle that has it.
        reference: name of the variant that the others are compared with; a key of `bundles`.
        samples: the samples; at most a dozen of them are decoded, evenly spaced.
        threads: number of CPU threads of one operator; None leaves the choice to the backend.

    Raises:
        BackendError: a variant does not run.
    """
    sessions = {
        name: Session(
            bundle, name, load_backend(DEFAULT_BACKEND, bundle, name, BackendOptions(threads))
        )
        for name, bundle in bundles.items()
    }
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for round_ in range(_ROUNDS + 1):
        order = list(sessions) if round_ % 2 else list(reversed(sessions))
        for inputs in samples.evenly_spaced(_TIMED_SAMPLES):
            for name in order:
                _, timings = sessions[name].run_arrays(inputs, options=GREEDY)
                if round_:  # the first round warms up
                    times[name].append(timings.total_ms)
    return {name: _speed(times[reference], times_ms) for name, times_ms in times.items()}


def _speed(reference: Sequence[float], times: Sequence[float]) -> Speed:
    ratios = [a / b for a, b in zip(reference, times, strict=True)]
    quartile, median, _ = statistics.quantiles(ratios, n=4)
    return Speed(statistics.median(times), median, quartile)


def choose_fastest(candidates: Sequence[Candidate], max_drop: float) -> list[Candidate]:
    """Returns the candidates with their verdicts; the fastest that may be chosen is `chosen`.

    Args:
        candidates: the variants that were evaluated and timed.
        max_drop: the largest allowed `Evaluation.drop`, in its unit.
    """
    judged = [_with_own_verdict(candidate, max_drop) for candidate in candidates]
    eligible = [c for c in judged if c.verdict == _HOLDS_BUDGET_VERDICT]
    if not eligible:
        return judged
    fastest = max(eligible, key=lambda candidate: candidate.speedup)
    return [_with_verdict(c, CHOSEN_VERDICT) if c is fastest else c for c in judged]


def _with_own_verdict(candidate: Candidate, max_drop: float) -> Candidate:
    """Returns a candidate with the verdict that follows from its own measurements."""
    evaluation = candidate.evaluation
    if evaluation is None:
        return candidate
    if evaluation.drop > max_drop:
        return _with_verdict(candidate, f"loses more than {max_drop:g} {evaluation.drop_unit}")
    if candidate.speedup < _MIN_SPEEDUP or candidate.speedup_lower_quartile < 1:
        return _with_verdict(candidate, "not faster than float")
    return _with_verdict(candidate, _HOLDS_BUDGET_VERDICT)


def _with_verdict(candidate: Candidate, verdict: str) -> Candidate:
    return replace(candidate, verdict=verdict)
