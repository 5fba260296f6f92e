"""The contenders of the page, in the order of its rows."""

from __future__ import annotations

from dataclasses import dataclass

BEAMS = 5

OURS, CTRANSLATE2, HUGGING_FACE = "ours", "ctranslate2", "huggingface"
STATIC, DYNAMIC = "int8-cpu+fp32", "dynamic+fp32"
"""Variants with an encoder of 8 bits and a float decoder: scales of samples, or of each input."""

VARIANTS: dict[str, tuple[str, ...] | None] = {
    "fp32": None,
    "fp32-cpu": ("--precision", "fp32-cpu"),
    "int8-cpu": ("--precision", "int8-cpu"),
    "int4-cpu": ("--precision", "int4-cpu"),
    "int8-weights": ("--precision", "int8-weights"),
    "int4-weights": ("--precision", "int4-weights"),
    "int8": ("--precision", "int8"),
    "int8-full": ("--precision", "int8-full"),
    "fp8": ("--precision", "fp8"),
    "fp16": ("--precision", "fp16"),
    STATIC: ("--encoder", "int8-cpu"),
    DYNAMIC: None,
}
"""Our variants with the options of `quantize`; None is not made by that command."""


@dataclass(frozen=True)
class Entry:
    """One contender in one form.

    Attributes:
        module: module of the contender in `contenders`.
        form: variant of ours, or type that a rival computes in.
        beams: number of beams; 1 is greedy.
    """

    module: str
    form: str
    beams: int = 1

    @property
    def is_ours(self) -> bool:
        """Whether it runs in this interpreter."""
        return self.module == OURS

    @property
    def title(self) -> str:
        """Name of the row."""
        names = {CTRANSLATE2: "CTranslate2 ", HUGGING_FACE: "transformers "}
        beams = f", beam {self.beams}" if self.beams > 1 else ""
        return f"{names.get(self.module, '')}{self.form}{beams}"

    @property
    def key(self) -> str:
        """Name of the row's file."""
        return f"{self.module}-{self.form}-{self.beams}"


FLOAT = Entry(OURS, "fp32")
FLOAT_BEAMS = Entry(OURS, "fp32-cpu", BEAMS)

ENTRIES = (
    *(Entry(OURS, variant) for variant in VARIANTS),
    FLOAT_BEAMS,
    Entry(OURS, "int8-cpu", BEAMS),
    *(Entry(HUGGING_FACE, "float32", beams) for beams in (1, BEAMS)),
    *(Entry(CTRANSLATE2, form, beams) for beams in (1, BEAMS) for form in ("float32", "int8")),
)


def reference_of(entry: Entry) -> Entry:
    """Returns our float row with the same search, which an entry is compared with."""
    return FLOAT if entry.beams == 1 else FLOAT_BEAMS
