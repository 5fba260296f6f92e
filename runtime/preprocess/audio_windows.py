"""Speech longer than a model hears at once, cut where it is quiet."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from hybrid_deploy.bundle.input_specs import AudioInput, LogMel
from hybrid_deploy.errors import UsageError
from hybrid_deploy.runtime.preprocess.audio_features import Floats

_SEARCHED = 0.25
"""Share of a window, at its end, in which the cut is looked for."""

_QUIET_S = 0.05
"""Length of what has to be quiet, in seconds."""


@dataclass(frozen=True)
class Window:
    """A part of a recording.

    Attributes:
        begin_s: where it begins, in seconds.
        end_s: where it ends.
        signal: (samples,) float32.
    """

    begin_s: float
    end_s: float
    signal: Floats


def longest_s(spec: AudioInput, wanted_s: float | None = None) -> float:
    """Returns how many seconds a window may have.

    Raises:
        UsageError: more are wanted than the model hears, or it does not say how many that are.
    """
    features = spec.features
    most_s = features.samples / spec.sampling_rate if isinstance(features, LogMel) else None
    most_s = spec.max_seconds if most_s is None else most_s
    if wanted_s is None:
        if most_s is None:
            raise UsageError("the bundle does not say how long the model hears; give window_s")
        return most_s
    if not 4 * _QUIET_S <= wanted_s <= (most_s or np.inf):
        raise UsageError(
            f"window_s must be {4 * _QUIET_S:g} to {most_s or np.inf:g}, got {wanted_s}"
        )
    return wanted_s


def windows(signal: Floats, sampling_rate: int, window_s: float) -> Iterator[Window]:
    """Cuts a recording into windows; parts without any sound are left out.

    Args:
        signal: (samples,) within -1..1.
        sampling_rate: samples per second.
        window_s: longest window, in seconds; the last quarter of it is searched for a quiet place.
    """
    begin, size = 0, int(window_s * sampling_rate)
    while begin < len(signal):
        end = len(signal)
        if end - begin > size:
            first = begin + int((1 - _SEARCHED) * size)
            end = first + _quietest(signal[first : begin + size], int(_QUIET_S * sampling_rate))
        part = signal[begin:end]
        if part.min() < part.max():
            yield Window(begin / sampling_rate, end / sampling_rate, part)
        begin = end


def _quietest(signal: Floats, width: int) -> int:
    """Returns the middle of the `width` samples with the least energy."""
    energy = np.concatenate([[0.0], np.cumsum(np.square(signal, dtype=np.float64))])
    sums = energy[width:] - energy[:-width]
    return int(sums.argmin()) + width // 2
