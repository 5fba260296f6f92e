"""Reads speech from files and makes batches of features, as an `AudioInput` describes them."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hybrid_deploy.bundle.input_specs import AudioInput, FilterBank, LogMel
from hybrid_deploy.errors import InputError
from hybrid_deploy.input_files import check_file, read_errors
from hybrid_deploy.runtime.preprocess.audio_features import (
    Floats,
    filter_bank,
    log_mel,
    shortest_filter_bank,
)
from hybrid_deploy.runtime.preprocess.wav_files import Sound, open_wav

if TYPE_CHECKING:
    import soundfile

LARGEST_SAMPLES = 100_000_000
"""Largest number of samples of a recording, 1.7 hours at 16 kHz."""

_DEFAULT_SECONDS = 3600.0
"""Longest input of a model whose bundle gives no limit."""

_UNKNOWN_FRAMES = 1 << 40  # libsndfile returns the largest whole number if a file declares none
_FRAMES_AT_ONCE = 1 << 16


def load_audio(path: Path, sampling_rate: int, most_samples: int = LARGEST_SAMPLES) -> Floats:
    """Reads a sound file: a WAV file, or any format of `soundfile` if that is installed.

    No more than `most_samples` are read of a file that declares none or too few.

    Args:
        path: the file.
        sampling_rate: required sampling rate in Hz.
        most_samples: largest number of samples; a file that declares more is refused unread.

    Returns:
        The mean of all channels, (samples,) float32 within -1..1.

    Raises:
        InputError: the file is missing, cannot be opened, is empty, silent, damaged or too long,
            ends before the end that it declares, has another sampling rate, needs `soundfile`, or
            holds NaN or infinity.
    """
    check_file(path)
    with (
        read_errors(path, "is not a sound file that can be read"),
        _open_sound(path, sampling_rate) as sound,
    ):
        if sound.rate != sampling_rate:
            raise InputError(
                f"{path} has {sound.rate} samples per second, the model takes {sampling_rate}; "
                f"{_conversion(path, sampling_rate)}"
            )
        signal = _mono(sound, most_samples, path)
    if not signal.size:
        raise InputError(f"{path} holds no sound: it is empty")
    if signal.min() == signal.max():
        raise InputError(
            f"{path} is silent: all its samples are the same; look at how it was recorded"
        )
    return signal


def most_samples_of(spec: AudioInput) -> int:
    """Returns the largest number of samples of one input; an hour if the bundle gives no limit."""
    if isinstance(spec.features, LogMel):
        return spec.features.samples
    seconds = _DEFAULT_SECONDS if spec.max_seconds is None else spec.max_seconds
    return int(min(seconds * spec.sampling_rate, LARGEST_SAMPLES))


def _mono(sound: Sound, most_samples: int, path: Path) -> Floats:
    """Reads the mean of all channels, (samples,) float32.

    Raises:
        InputError: there are more samples, fewer than the file declares, or some are no number.
    """
    _check_length(sound.samples or 0, most_samples, sound.rate, path)
    parts, count = [np.zeros(0, np.float32)], 0
    for block in sound.blocks:
        if not np.isfinite(block).all():
            raise InputError(f"{path} is a damaged sound file: it holds NaN or infinity")
        parts.append(block.mean(1, dtype=np.float64).astype(np.float32))
        count += len(block)
        _check_length(count, most_samples, sound.rate, path)
    if sound.samples is not None and count < sound.samples:
        raise InputError(
            f"{path} is a damaged sound file: it ends too early, after {count} of "
            f"{sound.samples} samples; copy it again, or leave it out with --skip-bad"
        )
    return np.concatenate(parts)


def _check_length(samples: int, most_samples: int, rate: int, path: Path) -> None:
    if samples > most_samples:
        raise InputError(
            f"{path} is longer than the {most_samples / rate:g} s that are taken; cut it into parts"
        )


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
    longest = most_samples_of(spec)
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


@contextmanager
def _open_sound(path: Path, sampling_rate: int) -> Iterator[Sound]:
    """Opens a sound file for the block."""
    with path.open("rb") as file:
        sound = open_wav(file, path)
        if sound is not None:
            yield sound
            return
    try:
        import soundfile
    except ImportError as error:
        raise InputError(
            f"{path} is not PCM in a WAV file; {_conversion(path, sampling_rate)} "
            "(or pip install 'hybrid-deploy[audio]')"
        ) from error
    with soundfile.SoundFile(path) as opened:
        declared = opened.frames if opened.frames < _UNKNOWN_FRAMES else None
        yield Sound(int(opened.samplerate), declared, _soundfile_blocks(opened))


def _soundfile_blocks(opened: soundfile.SoundFile) -> Iterator[Floats]:
    """Reads the samples of a file that `soundfile` opened, (samples, channels)."""
    while len(block := opened.read(_FRAMES_AT_ONCE, dtype="float32", always_2d=True)):
        yield block


def _conversion(path: Path, sampling_rate: int) -> str:
    source, target = shlex.quote(str(path)), shlex.quote(f"{path.stem}-{sampling_rate}.wav")
    return f"convert it with: ffmpeg -i {source} -ar {sampling_rate} -ac 1 -c:a pcm_s16le {target}"
