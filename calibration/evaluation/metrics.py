"""Metrics of texts: character and word error rate, exact match, or a function of the user."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import TypeAlias

from hybrid_deploy.accuracy.bootstrap import Counts
from hybrid_deploy.accuracy.error_counts import character_errors, exact_matches, word_errors
from hybrid_deploy.accuracy.error_rates import normalized
from hybrid_deploy.accuracy.normalizers import AS_DECODED
from hybrid_deploy.errors import HybridDeployError, UsageError
from hybrid_deploy.user_functions import import_function

MetricFunction: TypeAlias = Callable[[list[str], list[str]], float]
"""Takes the list of true texts and the list of decoded texts; returns one number."""
CountFunction: TypeAlias = Callable[[Sequence[str], Sequence[str]], Counts]
"""Takes true and decoded texts, both normalised; returns the counts of each text."""


@dataclass(frozen=True)
class Metric:
    """A metric that compares decoded texts with the true texts.

    Attributes:
        name: name of the metric in reports.
        function: computes the metric.
        larger_is_better: whether a larger value is better; False for error rates.
        counts: counts of each text, whose percentage is the metric of texts that were normalised;
            None for a function of the user, which takes texts as they are decoded.
    """

    name: str
    function: MetricFunction
    larger_is_better: bool = True
    counts: CountFunction | None = None

    def measure(self, expected: Sequence[str], decoded: Sequence[str]) -> float:
        """Returns the value of the metric for decoded texts.

        Args:
            expected: the true texts.
            decoded: the texts that a variant decodes, in the same order.

        Raises:
            UsageError: the function fails, or does not return a finite number.
        """
        try:
            value = self.function(list(expected), list(decoded))
        except HybridDeployError:
            raise
        except Exception as error:
            kind = type(error).__name__
            raise UsageError(f"the metric {self.name} failed: {kind}: {error}") from error
        if not isinstance(value, Real) or not math.isfinite(value):
            raise UsageError(
                f"the metric {self.name} returned {value!r}; it must return a finite number, "
                "larger if better"
            )
        return float(value)

    def drop(self, before: float, after: float) -> float:
        """Returns how much worse `after` is than `before`; negative if it is better."""
        return before - after if self.larger_is_better else after - before


def _built_in(name: str, counts: CountFunction, *, larger_is_better: bool = False) -> Metric:
    """Returns the metric of counts; its function compares texts as they are decoded."""

    def percent(expected: list[str], decoded: list[str]) -> float:
        return counts(normalized(expected, AS_DECODED), normalized(decoded, AS_DECODED)).percent

    return Metric(name, percent, larger_is_better, counts)


BUILT_IN = {
    "cer": _built_in("cer", character_errors),
    "wer": _built_in("wer", word_errors),
    "exact": _built_in("exact", exact_matches, larger_is_better=True),
}
"""The metrics that need no code of the user, by name; all are in percent."""


def load_metric(spec: str) -> Metric:
    """Returns a built-in metric by its name, or the metric of a function of the user.

    Args:
        spec: name of a metric in `BUILT_IN`, or `package.module:function`. Such a function takes
            the list of true texts and the list of decoded texts; a larger number is better.

    Raises:
        UsageError: there is no such metric, module or function.
    """
    if spec in BUILT_IN:
        return BUILT_IN[spec]
    module_name, colon, function_name = spec.partition(":")
    if not (module_name and colon and function_name):
        names = ", ".join(BUILT_IN)
        raise UsageError(f"unknown metric {spec!r}; choose {names} or package.module:function")
    return Metric(spec, import_function(module_name, function_name))
