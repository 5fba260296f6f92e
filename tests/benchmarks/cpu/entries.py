"""Who takes part in what."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.cpu.workloads import EIGHT_BIT, FLOAT, FOUR_BIT, RESNET, TINY, TROCR, WHISPER

_AS_TRAINED = frozenset({"huggingface", "torch_rerun"})


@dataclass(frozen=True)
class Entry:
    """One row of a table.

    Attributes:
        name: of the contender.
        module: its module in `contenders`.
        form: what it makes of the numbers, in its own words.
        environment: folder of its virtual environment, and name of its requirements; None if it
            runs in this one.
        note: what has to be known to read its row.
    """

    name: str
    module: str
    form: str
    environment: str | None = None
    note: str = ""

    @property
    def title(self) -> str:
        """Name and form."""
        return f"{self.name} {self.form}"

    @property
    def is_ours(self) -> bool:
        """Whether it is hybrid-deploy."""
        return self.module == "ours"

    @property
    def prepares(self) -> bool:
        """Whether it makes something of the model before it loads."""
        return self.module not in _AS_TRAINED

    def python(self, rivals: Path | None) -> Path | None:
        """Returns the interpreter; None where the environment is missing."""
        if self.environment is None:
            return Path(sys.executable)
        path = None if rivals is None else rivals / self.environment / "bin" / "python"
        return path if path is not None and path.exists() else None


@dataclass(frozen=True)
class _Rival:
    name: str
    module: str
    environment: str | None
    forms: Mapping[str, str]  # by class
    workloads: frozenset[str]
    note: str = ""


_HUGGING_FACE = frozenset({WHISPER.name, TROCR.name})
_PLAIN = frozenset({RESNET.name, TINY.name})
_SOUND = "takes sound: the mel time that it reports is taken off; tokens are of the first call"
_OURS = {FLOAT: ("fp32", "fp32-cpu"), EIGHT_BIT: ("int8-cpu",), FOUR_BIT: ("int4-cpu",)}
_RIVALS = (
    _Rival("transformers", "huggingface", None, {FLOAT: "eager"}, _HUGGING_FACE),
    _Rival("transformers", "huggingface", None, {FLOAT: "compile"}, _HUGGING_FACE),
    _Rival(
        "optimum-onnx", "optimum_onnx", "optimum_onnx",
        {FLOAT: "fp32", EIGHT_BIT: "int8"}, _HUGGING_FACE,
    ),
    _Rival(
        "onnxruntime-genai", "onnxruntime_genai", "ort_genai",
        {FLOAT: "fp32", EIGHT_BIT: "int8", FOUR_BIT: "int4"}, frozenset({WHISPER.name}),
    ),
    _Rival(
        "CTranslate2", "ctranslate2", "ctranslate2",
        {FLOAT: "float32", EIGHT_BIT: "int8"}, frozenset({WHISPER.name}),
    ),
    _Rival(
        "openvino-genai", "openvino_genai", "openvino",
        {FLOAT: "fp32", EIGHT_BIT: "int8", FOUR_BIT: "int4"}, frozenset({WHISPER.name}), _SOUND,
    ),
    _Rival(
        "optimum-intel", "optimum_intel", "openvino",
        {FLOAT: "fp32", EIGHT_BIT: "int8"}, frozenset({TROCR.name}),
    ),
    _Rival(
        "torch re-run", "torch_rerun", None, {FLOAT: "eager", EIGHT_BIT: "int8"}, _PLAIN
    ),
    _Rival("torch re-run", "torch_rerun", None, {FLOAT: "compile"}, frozenset({RESNET.name})),
    _Rival(
        "ONNX Runtime re-run", "onnx_rerun", None, {FLOAT: "fp32", EIGHT_BIT: "int8"}, _PLAIN
    ),
    _Rival(
        "OpenVINO re-run", "openvino_rerun", "openvino",
        {FLOAT: "fp32", EIGHT_BIT: "int8"}, frozenset({RESNET.name}),
    ),
)  # fmt: skip


def entries_of(workload: str, kind: str) -> list[Entry]:
    """Returns ours and then the rivals of a class; nobody where ours has no rival."""
    rivals = [
        Entry(rival.name, rival.module, rival.forms[kind], rival.environment, rival.note)
        for rival in _RIVALS
        if workload in rival.workloads and kind in rival.forms
    ]
    ours = [Entry("hybrid-deploy", "ours", form) for form in _OURS[kind]]
    return ours + rivals if rivals else []
