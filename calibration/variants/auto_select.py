"""Choosing the fastest variant that keeps its answers right, by measuring on this machine."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

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
    Column("drop_unit", "of"),
    Column("total_ms", "total ms", digits=2),
    Column("speedup", "x float", digits=2),
    Column("verdict", "verdict"),
)
_ROUNDS = 6  # an even number, half of them backwards
_TIMED_SAMPLES = 12
_LEAST_SPEEDUP = 1.03  # under it, a gain is within the noise of the measurement
_BYTES_PER_MB = 1e6


def cpu_candidates(block_size: int | None = None) -> list[Recipe]:
    """Returns the recipes that may be fastest with ONNX Runtime on a CPU."""
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
    """A variant that was tried.

    Attributes:
        recipe: what its numbers are.
        evaluation: how right it is; None if it does not run.
        total_ms: median time of an input from the encoder to the last token; NaN if not measured.
        speedup: median ratio of the float variant's time to its own, measured in turns.
        sure_speedup: lower quartile of that ratio.
        verdict: `chosen`, `holds the budget`, or why it is out.
    """

    recipe: Recipe
    evaluation: Evaluation | None
    total_ms: float
    speedup: float
    speedup_lower_quartile: float
    verdict: str

    def record(self) -> dict[str, object]:
        """Returns a row for the table of COLUMNS."""
        seen = self.evaluation
        return {
            "variant": self.recipe.name,
            "size_mb": None if seen is None else seen.size_bytes / _BYTES_PER_MB,
            "drop": None if seen is None else seen.drop,
            "drop_unit": None if seen is None else seen.drop_unit,
            "total_ms": self.total_ms,
            "speedup": self.speedup,
            "verdict": self.verdict,
        }


@dataclass(frozen=True)
class Speed:
    """How long an input takes.

    Attributes:
        total_ms: median over inputs and turns.
        speedup: median of the float variant's time by its own, input by input.
        sure_speedup: lower quartile of that.
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
    """Times variants in turns, sample by sample, so that a busy machine is slow for all alike.

    Every other turn goes backwards: who runs second finds caches that the first one has filled.

    Args:
        bundles: by variant, a bundle that has it.
        reference: the variant that the others are compared with; one of the names.
        samples: what is decoded; a dozen of them, evenly spread.
        threads: CPU threads within an operator; None leaves it to the backend.

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
    for turn in range(_ROUNDS + 1):
        order = list(sessions) if turn % 2 else list(reversed(sessions))
        for inputs in samples.evenly_spaced(_TIMED_SAMPLES):
            for name in order:
                _, timings = sessions[name].run_arrays(inputs, options=GREEDY)
                if turn:  # the first one warms up
                    times[name].append(timings.total_ms)
    return {name: _speed(times[reference], of) for name, of in times.items()}


def _speed(reference: Sequence[float], times: Sequence[float]) -> Speed:
    ratios = [a / b for a, b in zip(reference, times, strict=True)]
    quartile, median, _ = statistics.quantiles(ratios, n=4)
    return Speed(statistics.median(times), median, quartile)


def choose_fastest(candidates: Sequence[Candidate], max_drop: float) -> list[Candidate]:
    """Says of each candidate whether it is out, and why, and which is chosen: the fastest left."""
    judged = [_with_own_verdict(candidate, max_drop) for candidate in candidates]
    left = [c for c in judged if c.verdict == _HOLDS_BUDGET_VERDICT]
    if not left:
        return judged
    best = max(left, key=lambda candidate: candidate.speedup)
    return [_with_verdict(c, CHOSEN_VERDICT) if c is best else c for c in judged]


CHOSEN_VERDICT = "chosen"
_HOLDS_BUDGET_VERDICT = "holds the budget"


def _with_own_verdict(candidate: Candidate, max_drop: float) -> Candidate:
    seen = candidate.evaluation
    if seen is None:
        return candidate
    if seen.drop > max_drop:
        return _with_verdict(candidate, f"loses more than {max_drop:g} {seen.drop_unit}")
    if candidate.speedup < _LEAST_SPEEDUP or candidate.speedup_lower_quartile < 1:
        return _with_verdict(candidate, "not faster than float")
    return _with_verdict(candidate, _HOLDS_BUDGET_VERDICT)


def _with_verdict(candidate: Candidate, verdict: str) -> Candidate:
    return replace(candidate, verdict=verdict)
