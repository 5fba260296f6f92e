"""Cuts speech that is too long for one input into windows, at quiet points."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from hybrid_deploy.bundle.input_specs import AudioInput, LogMel
from hybrid_deploy.errors import UsageError
from hybrid_deploy.runtime.preprocess.audio_features import Floats

_SEARCHED_SHARE = 0.25
"""Share of a window, at its end, that is searched for a quiet point."""

_QUIET_S = 0.05
"""Length of a quiet point, in seconds."""


@dataclass(frozen=True)
class Window:
    """A part of a recording.

    Attributes:
        begin_s: time of its first sample in the recording, in seconds.
        end_s: time of its end in the recording, in seconds.
        signal: samples, (samples,) float32; a view of the recording.
    """

    begin_s: float
    end_s: float
    signal: Floats


def longest_s(spec: AudioInput, requested_s: float | None = None) -> float:
    """Returns the longest window, in seconds.

    Args:
        spec: description of the model's input.
        requested_s: window that the user requests, in seconds; None takes the longest possible one.

    Raises:
        UsageError: the requested window is longer than the model's input or too short, or there
            is no request and the bundle states no limit.
    """
    features = spec.features
    limit_s = features.samples / spec.sampling_rate if isinstance(features, LogMel) else None
    limit_s = spec.max_seconds if limit_s is None else limit_s
    if requested_s is None:
        if limit_s is None:
            raise UsageError("the bundle does not say how long the model hears; give window_s")
        return limit_s
    if not 4 * _QUIET_S <= requested_s <= (limit_s or np.inf):
        raise UsageError(
            f"window_s must be {4 * _QUIET_S:g} to {limit_s or np.inf:g}, got {requested_s}"
        )
    return requested_s


def windows(signal: Floats, sampling_rate: int, window_s: float) -> Iterator[Window]:
    """Cuts a recording into windows and yields them in order; silent windows are left out.

    Args:
        signal: samples of the recording, (samples,) float32 within -1..1.
        sampling_rate: sampling rate in Hz.
        window_s: longest window, in seconds; its last quarter is searched for a quiet point.
    """
    begin, size = 0, int(window_s * sampling_rate)
    while begin < len(signal):
        end = len(signal)
        if end - begin > size:
            first = begin + int((1 - _SEARCHED_SHARE) * size)
            end = first + quietest(signal[first : begin + size], sampling_rate)
        part = signal[begin:end]
        if part.min() < part.max():
            yield Window(begin / sampling_rate, end / sampling_rate, part)
        begin = end


def quietest(signal: Floats, sampling_rate: int) -> int:
    """Returns the index of the middle of the 50 ms with the least energy.

    Args:
        signal: samples, (samples,) float32; at least 50 ms.
        sampling_rate: sampling rate in Hz.
    """
    width = int(_QUIET_S * sampling_rate)
    energy = np.concatenate([[0.0], np.cumsum(np.square(signal, dtype=np.float64))])
    sums = energy[width:] - energy[:-width]
    return int(sums.argmin()) + width // 2
