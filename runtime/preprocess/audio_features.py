"""Speech features in numpy: Whisper's log-mel spectrogram and Kaldi's filter bank.

Tests compare both with the feature extractors of Hugging Face transformers.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
_Doubles = NDArray[np.float64]

_WHISPER_TOP_HZ = 8000.0
_WHISPER_RANGE = 8.0  # powers of ten between the loudest and the faintest energy
_KALDI_LOWEST_HZ = 20.0
_KALDI_FRAME_S, _KALDI_HOP_S = 0.025, 0.010
_KALDI_PREEMPHASIS = 0.97
_INT16_SCALE = 1 << 15
_NUMBERS_AT_ONCE = 1 << 22  # of the frames whose spectra are computed
_FLOAT32_EPSILON = 1.192092955078125e-07


def log_mel(signal: Floats, sampling_rate: int, mels: int, fft: int, hop: int) -> Floats:
    """Returns the log-mel spectrogram of Whisper (arXiv:2212.04356, section 2.2).

    Args:
        signal: samples, (samples,) float32 within -1..1; more than half of `fft`.
        sampling_rate: sampling rate in Hz.
        mels: number of filters.
        fft: number of samples in a window.
        hop: number of samples between the beginnings of two windows.

    Returns:
        The spectrogram, (mels, samples // hop) float32.
    """
    frames = _whisper_frames(signal, fft, hop)
    filters = _slaney_filters(mels, fft // 2 + 1, sampling_rate)
    decades = np.concatenate([_decades(part, filters) for part in _parts(frames, fft)])
    return _whisper_levels(decades, decades.max())


class LongLogMel:
    """The log-mel spectrogram of a long recording, of which a part at a time is computed.

    The parts are those of `log_mel` of the whole recording: the loudest energy of the recording
    limits the faintest, so all energies are computed once before.

    Attributes:
        frames: number of frames of the recording.

    Args:
        signal: samples, (samples,) float32 within -1..1; more than half of `fft`.
        sampling_rate: sampling rate in Hz.
        mels: number of filters.
        fft: number of samples in a window.
        hop: number of samples between the beginnings of two windows.
    """

    def __init__(self, signal: Floats, sampling_rate: int, mels: int, fft: int, hop: int) -> None:
        self._windows = _whisper_frames(signal, fft, hop)
        self._filters = _slaney_filters(mels, fft // 2 + 1, sampling_rate)
        self.frames = len(self._windows)
        parts = _parts(self._windows, fft)
        self._loudest = max(float(_decades(part, self._filters).max()) for part in parts)

    def part(self, begin: int, count: int, padded_to: int) -> Floats:
        """Returns frames from `begin` on, padded on the right with zeros, (mels, padded_to)."""
        decades = _decades(self._windows[begin : begin + count], self._filters)
        levels = _whisper_levels(decades, self._loudest)
        return np.pad(levels, ((0, 0), (0, padded_to - levels.shape[1])))


def _whisper_frames(signal: Floats, fft: int, hop: int) -> Floats:
    """Returns overlapping windows of a signal, (samples // hop, fft), as a view."""
    padded = np.pad(signal, fft // 2, mode="reflect")
    return np.lib.stride_tricks.sliding_window_view(padded, fft)[::hop][: len(signal) // hop]


def _decades(frames: Floats, filters: _Doubles) -> _Doubles:
    """Returns the energy behind each filter as a power of ten, (frames, mels)."""
    fft = frames.shape[1]
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(fft) / fft)
    energy = np.abs(np.fft.rfft(frames * window, axis=-1)) ** 2 @ filters
    decades: _Doubles = np.log10(np.maximum(energy, 1e-10))
    return decades


def _whisper_levels(decades: _Doubles, loudest: float) -> Floats:
    """Returns Whisper's input, (mels, frames), of energies below the loudest of the recording."""
    decades = np.maximum(decades, loudest - _WHISPER_RANGE)
    return np.ascontiguousarray(((decades + 4) / 4).T, np.float32)


def shortest_filter_bank(sampling_rate: int) -> int:
    """Returns the number of samples in one frame, the shortest signal for `filter_bank`."""
    return round(_KALDI_FRAME_S * sampling_rate)


def filter_bank(signal: Floats, sampling_rate: int, mels: int) -> Floats:
    """Returns Kaldi's log filter bank energies (`compute-fbank-feats`, without dither).

    Args:
        signal: samples, (samples,) float32 within -1..1; at least one frame.
        sampling_rate: sampling rate in Hz.
        mels: number of filters.

    Returns:
        The log energies, (frames, mels) float32.
    """
    frame, hop = shortest_filter_bank(sampling_rate), round(_KALDI_HOP_S * sampling_rate)
    fft = 1 << (frame - 1).bit_length()
    filters = _kaldi_filters(mels, fft // 2 + 1, sampling_rate)
    frames = np.lib.stride_tricks.sliding_window_view(signal, frame)[::hop]
    return np.concatenate([_log_energies(part, fft, filters) for part in _parts(frames, fft)])


def _parts(frames: Floats, fft: int) -> Iterator[Floats]:
    """Cuts frames, which are independent, into parts whose spectra take little RAM at once."""
    at_once = max(1, _NUMBERS_AT_ONCE // fft)
    return (frames[begin : begin + at_once] for begin in range(0, len(frames), at_once))


def _log_energies(frames: Floats, fft: int, filters: _Doubles) -> Floats:
    """Returns the log energies of frames, (frames, mels)."""
    levels = frames.astype(np.float64) * _INT16_SCALE
    levels -= levels.mean(1, keepdims=True)
    previous = np.concatenate([levels[:, :1], levels[:, :-1]], axis=1)
    emphasized = (levels - _KALDI_PREEMPHASIS * previous) * np.hanning(frames.shape[1]) ** 0.85
    energy = np.abs(np.fft.rfft(emphasized, fft, axis=-1)) ** 2 @ filters
    return np.log(np.maximum(energy, _FLOAT32_EPSILON)).astype(np.float32)


@lru_cache(maxsize=4)
def _slaney_filters(mels: int, bins: int, sampling_rate: int) -> _Doubles:
    """Returns triangular filters of equal area on Slaney's mel scale, (bins, mels)."""
    edges = _hertz_of_slaney(np.linspace(0, _slaney_of_hertz(_WHISPER_TOP_HZ), mels + 2))
    filters = _triangles(np.linspace(0, sampling_rate // 2, bins), edges)
    equal_areas: _Doubles = filters * (2 / (edges[2:] - edges[:-2]))
    return equal_areas


@lru_cache(maxsize=4)
def _kaldi_filters(mels: int, bins: int, sampling_rate: int) -> _Doubles:
    """Returns triangular filters on Kaldi's mel scale, (bins, mels)."""
    hertz = sampling_rate / (2 * (bins - 1)) * np.arange(bins, dtype=np.float64)
    low, high = _kaldi_of_hertz(np.array([_KALDI_LOWEST_HZ, sampling_rate // 2], np.float64))
    return _triangles(_kaldi_of_hertz(hertz), np.linspace(low, high, mels + 2))


def _triangles(frequencies: _Doubles, edges: _Doubles) -> _Doubles:
    """Returns filters, (frequencies, edges - 2): filter i rises from edge i and ends at i + 2."""
    widths = np.diff(edges)
    rising = (frequencies[:, None] - edges[:-2]) / widths[:-1]
    falling = (edges[2:] - frequencies[:, None]) / widths[1:]
    heights: _Doubles = np.maximum(0, np.minimum(rising, falling))
    return heights


def _kaldi_of_hertz(hertz: _Doubles) -> _Doubles:
    return 1127 * np.log(1 + hertz / 700)


def _slaney_of_hertz(hertz: float) -> float:
    """Returns the mel of a frequency above 1 kHz, where Slaney's scale is logarithmic."""
    return 15 + float(np.log(hertz / 1000)) * 27 / float(np.log(6.4))


def _hertz_of_slaney(mels: _Doubles) -> _Doubles:
    """Returns frequencies; the scale is linear below 1 kHz (Slaney's Auditory Toolbox)."""
    return np.where(mels < 15, mels * 200 / 3, 1000 * np.exp(np.log(6.4) / 27 * (mels - 15)))
