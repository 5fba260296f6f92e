"""The parts of a recording: what was decoded of each, and its place in time."""

from __future__ import annotations

from dataclasses import dataclass

from hybrid_deploy.errors import HybridDeployError
from hybrid_deploy.runtime.session.results import GenerationResult, Timings
from hybrid_deploy.runtime.speech.segments import Segment, Span


@dataclass(frozen=True)
class Part:
    """One part of a recording that was decoded at once.

    Attributes:
        span: place of the part in the recording.
        segments: what is said, with times in the recording; () if nobody speaks, or after an error.
        result: tokens as the model made them, and the text of the segments; None after an error.
        timings: times of the part; None after an error.
        temperature: temperature that the text was decoded at; 0 for the likeliest tokens.
        error: why there is no result; None if there is one.
    """

    span: Span
    segments: tuple[Segment, ...] = ()
    result: GenerationResult | None = None
    timings: Timings | None = None
    temperature: float = 0.0
    error: HybridDeployError | None = None
