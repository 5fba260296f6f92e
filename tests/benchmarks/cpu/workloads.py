"""What is generated: three models' shapes, and a tiny one for the tests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

FLOAT, EIGHT_BIT, FOUR_BIT = "float", "8-bit", "4-bit"
CLASSES = (FLOAT, EIGHT_BIT, FOUR_BIT)
"""What contenders are compared within: float keeps the tokens, fewer bits may change them."""

WHISPER_END = 50_257
"""The end token; the other special ones follow it."""


@dataclass(frozen=True)
class Workload:
    """One model and how long its sequences get.

    Attributes:
        name: on the command line.
        title: what it is.
        prompt: what every sequence begins with.
        tokens: how many new ones follow; no end token ever wins.
    """

    name: str
    title: str
    prompt: tuple[int, ...]
    tokens: int

    @property
    def length(self) -> int:
        """Tokens of a finished sequence."""
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
