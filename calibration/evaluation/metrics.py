"""How good texts are, in one number: character and word errors, exact match, or a user's own."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import TypeAlias

from hybrid_deploy.accuracy import character_error_percent, exact_percent, word_error_percent
from hybrid_deploy.errors import HybridDeployError, UsageError
from hybrid_deploy.user_functions import import_function

MetricFunction: TypeAlias = Callable[[list[str], list[str]], float]
"""Takes the true texts and the given ones, gives one number."""


@dataclass(frozen=True)
class Metric:
    """A measure of texts.

    Attributes:
        name: what it is called in reports.
        function: what computes it.
        larger_is_better: false of errors.
    """

    name: str
    function: MetricFunction
    larger_is_better: bool = True

    def measure(self, expected: Sequence[str], given: Sequence[str]) -> float:
        """Computes it on true texts and what was given instead.

        Raises:
            UsageError: the function fails, or does not give a number.
        """
        try:
            value = self.function(list(expected), list(given))
        except HybridDeployError:
            raise
        except Exception as error:
            kind = type(error).__name__
            raise UsageError(f"the metric {self.name} failed: {kind}: {error}") from error
        if not isinstance(value, Real) or not math.isfinite(value):
            raise UsageError(
                f"the metric {self.name} gave {value!r}; it must give a finite number, larger if "
                "better"
            )
        return float(value)

    def drop(self, before: float, after: float) -> float:
        """Returns how much worse it became, negative if it became better."""
        return before - after if self.larger_is_better else after - before


BUILT_IN = {
    "cer": Metric("cer", character_error_percent, larger_is_better=False),
    "wer": Metric("wer", word_error_percent, larger_is_better=False),
    "exact": Metric("exact", exact_percent),
}
"""All in percent."""


def load_metric(spec: str) -> Metric:
    """Returns a built-in metric by its name, or imports `package.module:function`.

    Such a function takes the list of true texts and the list of given ones; larger is better.

    Raises:
        UsageError: there is no such metric, module or function.
    """
    if spec in BUILT_IN:
        return BUILT_IN[spec]
    module_name, colon, function_name = spec.partition(":")
    if not (module_name and colon and function_name):
        known = ", ".join(BUILT_IN)
        raise UsageError(f"unknown metric {spec!r}; choose {known} or package.module:function")
    return Metric(spec, import_function(module_name, function_name))
