"""A guard that sympy cannot solve does not end a trace."""

from __future__ import annotations

import contextlib

import pytest

from hybrid_deploy.errors import HybridDeployError
from hybrid_deploy.export.lowering import torch_to_onnx
from hybrid_deploy.export.model.interface import EncodePart
from tests.models.zoo.cases import find


def export_encoder() -> None:
    case = find("espnet-conformer")  # its convolutions and its mask's slices agree at every size
    frames = {"features": {0: "batch", 1: "frames"}, "lengths": {0: "batch"}}
    outputs = ["memory", "mask"]
    torch_to_onnx.onnx_from_torch(EncodePart(case.model()), case.inputs(2, 24), outputs, frames, 24)


def test_a_guard_that_sympy_cannot_solve_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    export_encoder()
    monkeypatch.setattr(torch_to_onnx, "keep_unsolved_guards", contextlib.nullcontext)
    with pytest.raises(HybridDeployError, match="cannot be solved"):
        export_encoder()
