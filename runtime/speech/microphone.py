"""Reads a microphone through `sounddevice` (PortAudio).

Its tests put a stand-in in place of the library: nobody has heard a real microphone through it yet.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from hybrid_deploy.errors import InputError, MissingDependencyError
from hybrid_deploy.runtime.preprocess.audio_features import Floats

if TYPE_CHECKING:
    from types import ModuleType


def microphone_blocks(rate: int, block_s: float) -> Iterator[Floats]:
    """Yields sound of the default microphone, until the caller stops or presses Ctrl-C.

    Each block has at least `block_s`; it has all that was recorded, if the caller took longer.

    Args:
        rate: sampling rate in Hz, which the device or its driver has to give.
        block_s: seconds of a block.

    Returns:
        Blocks of samples, (samples,) float32 within -1..1.

    Raises:
        MissingDependencyError: sounddevice is not installed.
        InputError: PortAudio or a microphone is missing, or it does not record at this rate.
    """
    sounddevice = _sounddevice()
    least = max(1, int(block_s * rate))
    try:
        with sounddevice.InputStream(samplerate=rate, channels=1, dtype="float32") as stream:
            while True:
                samples, _ = stream.read(max(least, stream.read_available))
                yield np.array(samples[:, 0])
    except sounddevice.PortAudioError as error:
        raise InputError(
            f"no microphone can be read at {rate} samples per second: {error}; python -m "
            "sounddevice lists the devices, and recorded samples can be piped in with --pcm"
        ) from error
    except KeyboardInterrupt:
        return


def _sounddevice() -> ModuleType:
    try:
        import sounddevice
    except ImportError as error:
        raise MissingDependencyError("sounddevice", extra="microphone") from error
    except OSError as error:  # the package is there, the library that it loads is not
        raise InputError(
            f"sounddevice finds no PortAudio: {error}; install it (apt install libportaudio2), or "
            "pipe recorded samples in with --pcm"
        ) from error
    module: ModuleType = sounddevice
    return module
