"""The recordings: which calibrate, and which every row decodes."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from hybrid_deploy.errors import InputError
from hybrid_deploy.labels import LabelledFile, load_labels
from hybrid_deploy.runtime.preprocess.audio import load_audio

RATE = 16_000
"""Samples per second of every recording, as Whisper takes them."""

CALIBRATION = 64
"""Number of recordings of the first folder that calibrate, and that no row is measured on."""

T = TypeVar("T")


@dataclass(frozen=True)
class Recording:
    """A recording with its true text.

    Attributes:
        path: sound file.
        text: what is said.
        seconds: its length.
    """

    path: Path
    text: str
    seconds: float


@dataclass(frozen=True)
class Speech:
    """The recordings of a run.

    Attributes:
        calibration: recordings that quantization sees, of the first folder.
        held_out: recordings that every row decodes, by the name of their folder.
        left_over: number of recordings that a short run leaves out.
    """

    calibration: tuple[Path, ...]
    held_out: dict[str, tuple[Recording, ...]]
    left_over: int

    @property
    def recordings(self) -> tuple[Recording, ...]:
        """All recordings that a row decodes, in their order."""
        return tuple(recording for part in self.held_out.values() for recording in part)

    def digest(self) -> str:
        """Returns the first letters of a SHA-256 of all files, texts and their roles."""
        digest = hashlib.sha256()
        for path in self.calibration:
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        for recording in self.recordings:
            content = hashlib.sha256(recording.path.read_bytes()).hexdigest()
            digest.update(f"{recording.path.name} {content} {recording.text}\n".encode())
        return digest.hexdigest()[:12]


def read_speech(folders: Sequence[Path], limit: int | None) -> Speech:
    """Divides the recordings: evenly spaced ones of the first folder calibrate, the rest are read.

    Args:
        folders: folders with a labels.csv (columns file and text).
        limit: largest number of recordings that each folder gives to the rows, evenly spaced, and
            to calibration; None takes all, and `CALIBRATION` to calibrate.

    Raises:
        InputError: a folder has no labels or too few recordings, or a recording cannot be read.
    """
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        raise InputError(f"two folders of speech have one name: {', '.join(names)}; rename one")
    first, *others = (load_labels(folder) for folder in folders)
    count = min(CALIBRATION, CALIBRATION if limit is None else limit)
    if len(first) < 2 * count:
        raise InputError(
            f"{folders[0]} has {len(first)} recordings, and {count} of them only calibrate; give a "
            f"folder of {2 * count} or more first, or a smaller --limit"
        )
    calibration = spread(first, count)
    rest = [label for label in first if label not in calibration]
    parts = [part if limit is None else spread(part, limit) for part in (rest, *others)]
    left_over = sum(map(len, (rest, *others))) - sum(map(len, parts))
    held_out = {
        name: tuple(_recording(label) for label in part)
        for name, part in zip(names, parts, strict=True)
    }
    return Speech(tuple(label.file for label in calibration), held_out, left_over)


def spread(items: Sequence[T], count: int) -> list[T]:
    """Returns at most `count` of the items, evenly spaced, with the first and the last one."""
    if count >= len(items):
        return list(items)
    return [items[i] for i in np.linspace(0, len(items) - 1, count).round().astype(int)]


def copy_calibration(speech: Speech, folder: Path) -> Path:
    """Writes the recordings that calibrate into a folder of their own, and returns it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for path in speech.calibration:
        shutil.copyfile(path, folder / path.name)
    return folder


def _recording(label: LabelledFile) -> Recording:
    return Recording(label.file, label.text, len(load_audio(label.file, RATE)) / RATE)
