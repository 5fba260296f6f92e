"""Reads speech from files and makes batches of features, as an `AudioInput` describes them."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybrid_deploy.bundle.input_specs import AudioInput, FilterBank, LogMel
from hybrid_deploy.errors import InputError
from hybrid_deploy.runtime.preprocess.audio_features import (
    Floats,
    filter_bank,
    log_mel,
    shortest_filter_bank,
)
from hybrid_deploy.runtime.preprocess.wav_files import read_wav

_UNKNOWN_FRAMES = 1 << 40  # libsndfile returns the largest whole number if a file declares none


def load_audio(path: Path, sampling_rate: int) -> Floats:
    """Reads a sound file: a WAV file, or any format of `soundfile` if that is installed.

    Args:
        path: the file.
        sampling_rate: required sampling rate in Hz.

    Returns:
        The mean of all channels, (samples,) float32 within -1..1.

    Raises:
        InputError: the file is missing, empty, silent or damaged, ends before the end that it
            declares, has another sampling rate, needs `soundfile`, or holds NaN or infinity.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist" if not path.exists() else f"{path} is no file")
    channels, rate = read_wav(path) or _read_with_soundfile(path, sampling_rate)
    if rate != sampling_rate:
        raise InputError(
            f"{path} has {rate} samples per second, the model takes {sampling_rate}; "
            f"{_conversion(path, sampling_rate)}"
        )
    if not channels.size:
        raise InputError(f"{path} holds no sound: it is empty")
    if not np.isfinite(channels).all():
        raise InputError(f"{path} is a damaged sound file: it holds NaN or infinity")
    signal: Floats = channels.mean(1, dtype=np.float64).astype(np.float32)
    if signal.min() == signal.max():
        raise InputError(
            f"{path} is silent: all its samples are the same; look at how it was recorded"
        )
    return signal


def batch_audio(signals: Sequence[Floats], spec: AudioInput) -> dict[str, NDArray[Any]]:
    """Returns utterances as one batch of features.

    Args:
        signals: samples of each utterance, (samples,) float32 within -1..1.
        spec: description of the features.

    Returns:
        Features by input name, (batch, mels, frames), (batch, frames, mels) or (batch, samples)
        float32; and the mask, (batch, frames) or (batch, samples) int64, if the model takes one.

    Raises:
        InputError: an utterance is too short or too long, or the utterances have unequal lengths
            and the model takes no mask.
    """
    rows = [_features(signal, spec) for signal in signals]
    longest = max(len(row) for row in rows)
    if spec.mask is None and any(len(row) != longest for row in rows):
        raise InputError(
            "utterances of unequal length do not form a batch, because this model takes no mask; "
            "run them one by one"
        )
    batch = np.full((len(rows), longest, *rows[0].shape[1:]), spec.padding, np.float32)
    mask = np.zeros((len(rows), longest), np.int64)
    for batch_row, mask_row, row in zip(batch, mask, rows, strict=True):
        batch_row[: len(row)] = row
        mask_row[: len(row)] = 1
    if isinstance(spec.features, LogMel):
        batch = np.ascontiguousarray(batch.swapaxes(1, 2))  # (batch, mels, frames)
        for mask_row, signal in zip(mask, signals, strict=True):
            mask_row[-(-len(signal) // spec.features.hop) :] = 0
    return {spec.name: batch} if spec.mask is None else {spec.name: batch, spec.mask: mask}


def _features(signal: Floats, spec: AudioInput) -> Floats:
    """Returns the features of one utterance; the first axis is time."""
    features, rate = spec.features, spec.sampling_rate
    longest = (
        features.samples if isinstance(features, LogMel) else (spec.max_seconds or np.inf) * rate
    )
    if len(signal) > longest:
        raise InputError(
            f"an utterance is {len(signal) / rate:.1f} s long, the model takes "
            f"{longest / rate:g} s; cut it into parts"
        )
    if isinstance(features, LogMel):
        padded = np.full(features.samples, spec.padding, np.float32)
        padded[: len(signal)] = signal
        frames: Floats = log_mel(padded, rate, features.mels, features.fft, features.hop).T
        return frames
    if isinstance(features, FilterBank):
        shortest = shortest_filter_bank(rate)
        if len(signal) < shortest:
            raise InputError(f"an utterance is {len(signal)} samples long, it needs {shortest}")
        return _normalized(filter_bank(signal, rate, features.mels), features)
    if not features.normalize:
        return signal
    normalized: Floats = (signal - signal.mean()) / np.sqrt(signal.var() + np.float32(1e-7))
    return normalized


def _normalized(frames: Floats, features: FilterBank) -> Floats:
    """Normalises the mean and variance of each filter over one utterance, as `features` asks."""
    if features.center:
        frames = frames - frames.mean(axis=0)
    if features.scale:
        deviation = frames.std(axis=0)
        frames = frames / np.where(deviation > 0, deviation, np.float32(1))
    return frames


def _read_with_soundfile(path: Path, sampling_rate: int) -> tuple[Floats, int]:
    try:
        import soundfile
    except ImportError as error:
        raise InputError(
            f"{path} is not PCM in a WAV file; {_conversion(path, sampling_rate)} "
            "(or pip install 'hybrid-deploy[audio]')"
        ) from error
    try:
        with soundfile.SoundFile(path) as file:
            declared, rate = file.frames, int(file.samplerate)
            samples: Floats = file.read(dtype="float32", always_2d=True)
    except (OSError, RuntimeError) as error:
        raise InputError(f"{path} is not a sound file that can be read: {error}") from error
    if len(samples) < declared < _UNKNOWN_FRAMES:
        raise InputError(
            f"{path} is a damaged sound file: it ends too early, after {len(samples)} of "
            f"{declared} samples; copy it again, or leave it out with --skip-bad"
        )
    return samples, rate


def _conversion(path: Path, sampling_rate: int) -> str:
    source, target = shlex.quote(str(path)), shlex.quote(f"{path.stem}-{sampling_rate}.wav")
    return f"convert it with: ffmpeg -i {source} -ar {sampling_rate} -ac 1 -c:a pcm_s16le {target}"
