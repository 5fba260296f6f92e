"""The result of one check of this machine: one row of the report."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Verdict(str, Enum):
    """What a finding means for a user who wants to run a model on this machine."""

    OK = "ok"
    WARN = "warn"
    MISSING = "missing"
    FAILED = "failed"


@dataclass(frozen=True)
class Check:
    """One row of the report.

    Attributes:
        name: the checked part of the machine.
        verdict: what the finding means for the user.
        finding: the finding in one line.
        remedy: what the user can do on this machine; None if nothing is to be done.
        run_ms: median time of a tiny inference in milliseconds; None if no inference ran here or
            its numbers were wrong.
    """

    name: str
    verdict: Verdict
    finding: str
    remedy: str | None = None
    run_ms: float | None = None
