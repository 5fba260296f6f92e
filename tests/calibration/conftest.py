"""A fixture that builds small graphs from text, for all tests of this folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

Build = Callable[[str, Mapping[str, NDArray[Any]]], ir.Model]
_HEADER = '<ir_version: 10, opset_import: ["" : 24]>\n'


@pytest.fixture
def build() -> Build:
    """Returns a function that builds a graph from ONNX text and its constants by name."""

    def from_text(text: str, constants: Mapping[str, NDArray[Any]]) -> ir.Model:
        proto = onnx.parser.parse_model(_HEADER + text)
        for name, array in constants.items():
            proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
        return ir.from_proto(onnx.shape_inference.infer_shapes(proto, strict_mode=True))

    return from_text
