"""A row of the reliability page: what was tried, how often, and what went wrong."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """The result of one check.

    Attributes:
        name: what was done, such as `bundles with a changed byte`.
        count: number of trials.
        result: what came of them, such as `10,000 refused, 0 accepted`.
        faults: what went wrong, a line with its seed each; empty if the check passes.
        control: the fault that was planted to see that the check notices it.
        caught: whether the check noticed the planted fault.
        seconds: time of the check in seconds.
    """

    name: str
    count: int
    result: str
    faults: tuple[str, ...]
    control: str
    caught: bool
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether nothing went wrong, and the planted fault was noticed."""
        return not self.faults and self.caught
