"""Tests that every failure of a user's model ends in one typed line."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxscript.optimizer
import pytest
import torch
from torch import Tensor, nn

from hybrid_deploy.errors import (
    ExportError,
    HybridDeployError,
    UnsupportedModelError,
    UsageError,
)
from hybrid_deploy.export import exporter
from hybrid_deploy.export.exporter import export_model
from hybrid_deploy.export.model.failures import one_line_failures
from hybrid_deploy.onnx_graphs import cost
from tests.conftest import make_tiny

WIDTH, WORDS = 8, 7


class Reader(nn.Module):
    """A model without self-attention: every token reads the mean of the memory."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.embedding = nn.Linear(3, WIDTH), nn.Embedding(WORDS, WIDTH)
        self.head = nn.Linear(WIDTH, WORDS)

    def encode(self, rows: Tensor) -> Any:
        return self.linear(rows)

    def decode(self, tokens: Tensor, memory: Tensor) -> Any:
        return self.head(torch.tanh(self.embedding(tokens) + memory.mean(1, keepdim=True)))


class EncodeFails(Reader):
    def encode(self, rows: Tensor) -> Any:
        return dict[str, Tensor]()["no such key"]  # encode fails


class DecodeFails(Reader):
    def decode(self, tokens: Tensor, memory: Tensor) -> Any:
        raise ValueError("too few rows\nsecond line")  # decode fails


class InputOfAnotherDtype(Reader):
    def encode(self, rows: Tensor) -> Any:
        return self.linear(rows.double())  # other dtype


class LongTokensFail(Reader):
    def decode(self, tokens: Tensor, memory: Tensor) -> Any:
        table = self.embedding.weight[:6].expand(len(tokens), 6, WIDTH)
        return self.head(self.embedding(tokens) + table)  # too long


class StepFails(Reader):
    decode = None  # type: ignore[assignment]

    def initial_state(self, memory: Tensor) -> Tensor:
        return memory.mean(1)

    def step(self, token: Tensor, state: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        raise RuntimeError("no step")  # step fails


def line_of(text: str) -> int:
    """Returns the number of the only line of this file that ends with a comment."""
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    (number,) = [n for n, line in enumerate(lines, 1) if line.endswith(f"# {text}")]
    return number


def export(model: Any, out: Path, **more: Any) -> None:
    arguments: dict[str, Any] = {"max_length": 9, "start_tokens": 1, **more}
    example = arguments.pop("example", torch.randn(1, 5, 3))
    export_model(model.eval() if isinstance(model, nn.Module) else model, example, out, **arguments)


@pytest.mark.parametrize(
    ("model", "comment", "words"),
    [
        (EncodeFails, "encode fails", "encode() fails: KeyError: 'no such key'"),
        (DecodeFails, "decode fails", "decode() fails: ValueError: too few rows"),
        (InputOfAnotherDtype, "other dtype", "call .float() on what is not"),
        (LongTokensFail, "too long", "decode() fails: RuntimeError: The size of tensor a (9)"),
        (StepFails, "step fails", "fails on inputs of size (2, 5, 3): no step"),
    ],
)
def test_an_exception_of_the_model_names_its_line(
    model: type[Reader], comment: str, words: str, tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        export(model(), tmp_path / "out.bundle")
    message = str(caught.value)
    assert message.startswith(f"{__file__}:{line_of(comment)}: "), message
    assert words in message
    assert "\n" not in message
    assert caught.value.__cause__ is not None
    assert list(tmp_path.iterdir()) == []


def test_an_exception_of_an_onnx_package_is_an_export_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise RuntimeError("fold failed\nmore")

    monkeypatch.setattr(onnxscript.optimizer, "fold_constants", fail)
    fail.__code__ = fail.__code__.replace(co_filename="/x/site-packages/onnxscript/fold.py")
    with pytest.raises(ExportError) as caught:
        export(Reader(), tmp_path / "out.bundle")
    assert type(caught.value) is ExportError
    assert str(caught.value) == (
        "the model cannot be exported: an internal step failed with RuntimeError: fold failed"
    )
    assert isinstance(caught.value.__cause__, RuntimeError)


@pytest.mark.parametrize(
    "error", [PermissionError(13, "denied"), ModuleNotFoundError("no onnx"), UsageError("as it is")]
)
def test_errors_of_the_system_and_typed_errors_pass(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise error

    fail.__code__ = fail.__code__.replace(co_filename="/x/site-packages/folders.py")
    monkeypatch.setattr(exporter, "staged_bundle", fail)
    with pytest.raises(type(error)) as caught:
        export(Reader(), tmp_path / "out.bundle")
    assert caught.value is error


def test_a_line_of_this_package_is_not_the_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The graphs are written by a room outside of export/, which no user owns."""
    monkeypatch.setattr(cost, "_count", None)
    with pytest.raises(ExportError) as caught:
        export(Reader(), tmp_path / "out.bundle")
    assert type(caught.value) is ExportError
    assert "an internal step failed with TypeError" in str(caught.value)


def test_a_line_of_the_standard_library_is_not_the_users(tmp_path: Path) -> None:
    with pytest.raises(ExportError) as caught, one_line_failures():
        json.loads("{")
    assert type(caught.value) is UnsupportedModelError  # this test stands for the user's code
    assert str(caught.value).startswith(__file__)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_dtype_are_refused(dtype: torch.dtype, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"linear\.weight is \w+, .*model\.float\(\)"):
        export(Reader().to(dtype), tmp_path / "out.bundle")


def test_a_model_on_another_device_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"on meta, .*call model\.cpu\(\) first"):
        export(Reader().to("meta"), tmp_path / "out.bundle")


@pytest.mark.parametrize("model", [Reader, object(), None, "model"])
def test_what_is_no_module_is_refused(model: Any, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"must be an instance of torch\.nn\.Module"):
        export(model, tmp_path / "out.bundle")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"example": 5}, "must be a tensor or an array, got int"),
        ({"example": np.array([["a"]])}, "an array of numbers, got <U1; give float32 or int64"),
        ({"example": torch.zeros(1, 5, 3, dtype=torch.bfloat16)}, "bfloat16"),
        ({"example": torch.zeros(1, 5, 3).to_sparse()}, "a dense tensor"),
        ({"example": torch.zeros(3)[:0]}, "batch first"),
        ({"start_tokens": 1.5}, "token ids must be one whole number or a sequence"),
        ({"start_tokens": "1"}, "token ids must be"),
        ({"max_length": 4.5}, "max_length must be a whole number, got 4.5"),
        ({"dynamic": {"rows": {1: ("size", 3)}}}, "dynamic must name varying axes as"),
        ({"dynamic": {"rows": 1}}, "dynamic must name varying axes as"),
        ({"dynamic": {"rows": {"1": ("size", 3, 9)}}}, "dynamic must name varying axes as"),
        ({"checks": [3]}, "must be a tensor or an array, got int"),
    ],
)
def test_arguments_of_another_type_are_refused(
    arguments: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(HybridDeployError) as caught:
        export(Reader(), tmp_path / "out.bundle", **arguments)
    assert isinstance(caught.value, UsageError), caught.value
    assert words in str(caught.value)


def test_numbers_of_numpy_and_torch_are_token_ids() -> None:
    from hybrid_deploy.export.make_job import token_ids

    assert token_ids(np.int64(3)) == (3,)
    assert token_ids(torch.tensor(3)) == (3,)  # type: ignore[arg-type]
    assert token_ids(np.array([3, 4])) == token_ids([3, 4]) == (3, 4)  # type: ignore[arg-type]


def test_every_caller_of_the_model_is_a_function_of_its_file() -> None:
    """The names in `_CALLERS` are compared with frames, so they must exist."""
    from hybrid_deploy.export.lowering import custom_step
    from hybrid_deploy.export.model import example_run, failures, interface

    modules = {
        "/export/model/interface.py": interface,
        "/export/model/example_run.py": example_run,
        "/export/lowering/custom_step.py": custom_step,
    }
    for file, name in failures._CALLERS:
        assert f"def {name}(" in inspect.getsource(modules[file])


@pytest.mark.parametrize("stage", ["trace", "lower", "check", "write"])
def test_an_exception_of_the_callers_progress_passes_as_it_is(stage: str, tmp_path: Path) -> None:
    class StoppedError(Exception):
        pass

    stopped = StoppedError("by the user")

    def progress(name: str, done: int, total: int, /) -> None:
        if name == stage:
            raise stopped

    with pytest.raises(StoppedError) as caught:
        export_model(
            make_tiny(), torch.zeros(1, 1, 8, 32), tmp_path / "out", max_length=8, start_tokens=1,
            progress=progress,
        )  # fmt: skip
    assert caught.value is stopped
    assert list(tmp_path.iterdir()) == []
