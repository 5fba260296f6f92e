"""The contract between this benchmark and a contender.

Each contender is a module of `contenders`, imported in an environment of its own; this file and its
imports therefore need only the standard library. A contender's module has

    PACKAGES       names of the packages whose versions are reported
    load(task)     returns a Runner
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class Task:
    """What a contender's process does: it decodes files one by one.

    Attributes:
        module: module of the contender in `contenders`.
        form: variant, or type of the computation, in the contender's own terms.
        beams: number of beams; 1 is greedy.
        model: folder of the model, or of the bundle.
        hugging_face: Hugging Face folder of the same model, for its tokenizer and settings.
        files: sound files.
    """

    module: str
    form: str
    beams: int
    model: str
    hugging_face: str
    files: tuple[str, ...]

    def write(self, path: Path) -> None:
        """Writes the task as JSON."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @staticmethod
    def read(path: Path) -> Task:
        """Returns the task that `write` wrote."""
        values = json.loads(path.read_text(encoding="utf-8"))
        return Task(**{**values, "files": tuple(values["files"])})


@dataclass(frozen=True)
class Decoded:
    """What a contender makes of one file.

    Attributes:
        tokens: ids of the new tokens, without the end token.
        text: their text.
        encoder_ms: milliseconds of the encoder.
        decode_ms: milliseconds from the encoder's end to the last token.
    """

    tokens: Sequence[int]
    text: str
    encoder_ms: float
    decode_ms: float


class Runner(Protocol):
    """A loaded model."""

    def decode(self, path: str) -> Decoded:
        """Decodes one sound file on one thread."""
        ...


class Contender(Protocol):
    """Functions and constants of a module in `contenders`."""

    PACKAGES: Sequence[str]

    def load(self, task: Task) -> Runner:
        """Loads the model of a task."""
        ...
