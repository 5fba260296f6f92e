"""What one check of this machine found."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Verdict(str, Enum):
    """What a finding means for whoever wants to run a model here."""

    OK = "ok"
    WARN = "warn"
    MISSING = "missing"
    FAILED = "failed"


@dataclass(frozen=True)
class Check:
    """One row of the report.

    Attributes:
        name: what was looked at.
        verdict: what the finding means.
        found: the finding, one line.
        remedy: what to do about it on this machine; None where there is nothing to do.
        run_ms: typical time of a tiny inference that ran here and gave the right numbers; None
            where none ran.
    """

    name: str
    verdict: Verdict
    found: str
    remedy: str | None = None
    run_ms: float | None = None
