"""The workloads: the shapes of three models, and a tiny one for the tests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

FLOAT, EIGHT_BIT, FOUR_BIT = "float", "8-bit", "4-bit"
CLASSES = (FLOAT, EIGHT_BIT, FOUR_BIT)
"""Contenders of one class are compared: float keeps the tokens, fewer bits may change them."""

WHISPER_END = 50_257
"""Whisper's end token; the other special tokens have the ids after it."""


@dataclass(frozen=True)
class Workload:
    """One model and how long its sequences get.

    Attributes:
        name: name on the command line.
        title: description in the report.
        prompt: tokens at the start of every sequence.
        tokens: number of new tokens; the models never choose the end token.
    """

    name: str
    title: str
    prompt: tuple[int, ...]
    tokens: int

    @property
    def length(self) -> int:
        """Number of tokens of a finished sequence, prompt included."""
        return len(self.prompt) + self.tokens


WHISPER = Workload(
    "whisper",
    "Whisper tiny's shape, 30 s of sound (1500 memory positions), 4 prompt and 128 new tokens of "
    "51,865",
    (50258, 50259, 50359, 50363),  # start of transcript, English, transcribe, no timestamps
    128,
)
TROCR = Workload(
    "trocr",
    "TrOCR small's shape, a picture of 384 x 384 (578 memory positions), 64 new tokens of 64,044",
    (2,),
    64,
)
RESNET = Workload(
    "resnet",
    "ResNet-18 on a text line of 64 x 512 (128 memory positions) and a plain nn.TransformerDecoder "
    "of 4 layers, width 256, 64 new tokens of 100",
    (0,),
    64,
)
TINY = Workload("tiny", "the resnet workload's form, tiny", (0,), 6)

WORKLOADS: Mapping[str, Workload] = {each.name: each for each in (WHISPER, TROCR, RESNET, TINY)}
MEASURED = (WHISPER.name, TROCR.name, RESNET.name)
