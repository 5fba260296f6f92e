"""Lists the contenders of every workload and class."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.cpu.workloads import EIGHT_BIT, FLOAT, FOUR_BIT, RESNET, TINY, TROCR, WHISPER

_WITHOUT_PREPARATION = frozenset({"huggingface", "torch_rerun"})


@dataclass(frozen=True)
class Entry:
    """One contender in one form: a row of a table.

    Attributes:
        name: name of the contender.
        module: name of its module in `contenders`.
        form: precision or mode of the contender, in its own terms, such as `int8` or `compile`.
        environment: name of its virtual environment's folder and of its requirements file; None if
            it runs in the environment of the tests.
        note: remark for its row; empty for none.
    """

    name: str
    module: str
    form: str
    environment: str | None = None
    note: str = ""

    @property
    def title(self) -> str:
        """Name and form, the title of its row."""
        return f"{self.name} {self.form}"

    @property
    def is_ours(self) -> bool:
        """Whether the contender is hybrid-deploy."""
        return self.module == "ours"

    @property
    def prepares(self) -> bool:
        """Whether the contender converts the model before it loads it."""
        return self.module not in _WITHOUT_PREPARATION

    def python(self, rivals: Path | None) -> Path | None:
        """Returns the path of its Python; None if its environment is missing."""
        if self.environment is None:
            return Path(sys.executable)
        path = None if rivals is None else rivals / self.environment / "bin" / "python"
        return path if path is not None and path.exists() else None


@dataclass(frozen=True)
class _Rival:
    name: str
    module: str
    environment: str | None
    forms: Mapping[str, str]  # class -> form
    workloads: frozenset[str]
    note: str = ""


_HUGGING_FACE = frozenset({WHISPER.name, TROCR.name})
_PLAIN = frozenset({RESNET.name, TINY.name})
_SOUND = "takes sound: its reported mel time is subtracted; its tokens are those of the first call"
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
    """Returns our entries and then the rivals' entries of a class; an empty list without rivals."""
    rivals = [
        Entry(rival.name, rival.module, rival.forms[kind], rival.environment, rival.note)
        for rival in _RIVALS
        if workload in rival.workloads and kind in rival.forms
    ]
    ours = [Entry("hybrid-deploy", "ours", form) for form in _OURS[kind]]
    return ours + rivals if rivals else []
