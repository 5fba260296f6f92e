"""The translation table is built once, and custom operators stay in the copy of their call."""

from __future__ import annotations

import torch
from torch.onnx._internal.exporter._registration import ONNXRegistry

from hybrid_deploy.export.lowering.translation_cache import reuse_translation_table

OPERATOR = torch.ops.aten.relu.default


def custom_translation(value: object) -> object:
    return value


def test_each_call_gets_an_independent_copy() -> None:
    original = ONNXRegistry.__dict__["from_torchlib"]
    fresh = ONNXRegistry.from_torchlib(opset_version=24)
    with reuse_translation_table():
        first = ONNXRegistry.from_torchlib(opset_version=24)
        first.register_op(OPERATOR, custom_translation)
        second = ONNXRegistry.from_torchlib(opset_version=24)
        older = ONNXRegistry.from_torchlib(opset_version=18)
    assert ONNXRegistry.__dict__["from_torchlib"] is original
    assert (second.opset_version, older.opset_version) == (24, 18)
    assert first.get_decomps(OPERATOR)[0].onnx_function is custom_translation
    functions = [entry.onnx_function for entry in second.get_decomps(OPERATOR)]
    assert custom_translation not in functions
    assert {name: len(entries) for name, entries in second.functions.items()} == {
        name: len(entries) for name, entries in fresh.functions.items()
    }


def test_the_table_is_built_once() -> None:
    with reuse_translation_table():
        first = ONNXRegistry.from_torchlib(opset_version=24)
    with reuse_translation_table():
        second = ONNXRegistry.from_torchlib(opset_version=24)
    (entry,), (second_entry,) = (table.functions["aten::relu"] for table in (first, second))
    assert entry is second_entry
