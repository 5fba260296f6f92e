"""Speech features in numpy: Whisper's log-mel spectrogram and Kaldi's filter bank.

Both are checked against the feature extractors of Hugging Face transformers.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
_Doubles = NDArray[np.float64]

_WHISPER_TOP_HZ = 8000.0
_WHISPER_RANGE = 8.0  # in powers of ten, below the loudest
_KALDI_LOWEST_HZ = 20.0
_KALDI_FRAME_S, _KALDI_HOP_S = 0.025, 0.010
_KALDI_PREEMPHASIS = 0.97
_INT16_SCALE = 1 << 15
_FLOAT32_EPSILON = 1.192092955078125e-07


def log_mel(signal: Floats, sampling_rate: int, mels: int, fft: int, hop: int) -> Floats:
    """Returns the log-mel spectrogram of Whisper (arXiv:2212.04356, section 2.2).

    Args:
        signal: (samples,), within -1..1, longer than half of `fft`.
        sampling_rate: in Hz.
        mels: number of filters.
        fft: samples of a window.
        hop: samples between windows.

    Returns:
        (mels, samples // hop) float32.
    """
    padded = np.pad(signal, fft // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, fft)[::hop][: len(signal) // hop]
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(fft) / fft)
    power = np.abs(np.fft.rfft(frames * window, axis=-1)) ** 2
    energy = power @ _slaney_filters(mels, fft // 2 + 1, sampling_rate)
    decades = np.log10(np.maximum(energy, 1e-10))
    decades = np.maximum(decades, decades.max() - _WHISPER_RANGE)
    return np.ascontiguousarray(((decades + 4) / 4).T, np.float32)


def shortest_filter_bank(sampling_rate: int) -> int:
    """Returns the number of samples of one frame of a filter bank."""
    return round(_KALDI_FRAME_S * sampling_rate)


def filter_bank(signal: Floats, sampling_rate: int, mels: int) -> Floats:
    """Returns Kaldi's log filter bank energies (`compute-fbank-feats`, without dither).

    Args:
        signal: (samples,), within -1..1, one frame at least.
        sampling_rate: in Hz.
        mels: number of filters.

    Returns:
        (frames, mels) float32.
    """
    frame, hop = shortest_filter_bank(sampling_rate), round(_KALDI_HOP_S * sampling_rate)
    fft = 1 << (frame - 1).bit_length()
    scaled = signal.astype(np.float64) * _INT16_SCALE
    frames = np.lib.stride_tricks.sliding_window_view(scaled, frame)[::hop]
    frames = frames - frames.mean(1, keepdims=True)
    before = np.concatenate([frames[:, :1], frames[:, :-1]], axis=1)
    frames = (frames - _KALDI_PREEMPHASIS * before) * np.hanning(frame) ** 0.85
    power = np.abs(np.fft.rfft(frames, fft, axis=-1)) ** 2
    energy = power @ _kaldi_filters(mels, fft // 2 + 1, sampling_rate)
    return np.log(np.maximum(energy, _FLOAT32_EPSILON)).astype(np.float32)


@lru_cache(maxsize=4)
def _slaney_filters(mels: int, bins: int, sampling_rate: int) -> _Doubles:
    """Returns (bins, mels): triangles on Slaney's scale, each of equal area."""
    edges = _hertz_of_slaney(np.linspace(0, _slaney_of_hertz(_WHISPER_TOP_HZ), mels + 2))
    filters = _triangles(np.linspace(0, sampling_rate // 2, bins), edges)
    equal: _Doubles = filters * (2 / (edges[2:] - edges[:-2]))
    return equal


@lru_cache(maxsize=4)
def _kaldi_filters(mels: int, bins: int, sampling_rate: int) -> _Doubles:
    """Returns (bins, mels): triangles on Kaldi's mel scale."""
    hertz = sampling_rate / (2 * (bins - 1)) * np.arange(bins, dtype=np.float64)
    low, high = _kaldi_of_hertz(np.array([_KALDI_LOWEST_HZ, sampling_rate // 2], np.float64))
    return _triangles(_kaldi_of_hertz(hertz), np.linspace(low, high, mels + 2))


def _triangles(places: _Doubles, edges: _Doubles) -> _Doubles:
    """Returns (places, edges - 2): filter i rises from edge i to i + 1 and falls to i + 2."""
    widths = np.diff(edges)
    rising = (places[:, None] - edges[:-2]) / widths[:-1]
    falling = (edges[2:] - places[:, None]) / widths[1:]
    heights: _Doubles = np.maximum(0, np.minimum(rising, falling))
    return heights


def _kaldi_of_hertz(hertz: _Doubles) -> _Doubles:
    return 1127 * np.log(1 + hertz / 700)


def _slaney_of_hertz(hertz: float) -> float:
    """Linear below 1 kHz, logarithmic above (Slaney's Auditory Toolbox); `hertz` is above."""
    return 15 + float(np.log(hertz / 1000)) * 27 / float(np.log(6.4))


def _hertz_of_slaney(mels: _Doubles) -> _Doubles:
    return np.where(mels < 15, mels * 200 / 3, 1000 * np.exp(np.log(6.4) / 27 * (mels - 15)))
