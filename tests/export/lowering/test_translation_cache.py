"""The table of translations is made once, and nobody's own operators get into another's."""

from __future__ import annotations

import torch
from torch.onnx._internal.exporter._registration import ONNXRegistry

from hybrid_deploy.export.lowering.translation_cache import translations_made_once

OPERATOR = torch.ops.aten.relu.default


def own(value: object) -> object:
    return value


def test_a_copy_is_equal_and_its_own() -> None:
    original = ONNXRegistry.__dict__["from_torchlib"]
    as_it_comes = ONNXRegistry.from_torchlib(opset_version=24)
    with translations_made_once():
        first = ONNXRegistry.from_torchlib(opset_version=24)
        first.register_op(OPERATOR, own)
        second = ONNXRegistry.from_torchlib(opset_version=24)
        older = ONNXRegistry.from_torchlib(opset_version=18)
    assert ONNXRegistry.__dict__["from_torchlib"] is original
    assert (second.opset_version, older.opset_version) == (24, 18)
    assert first.get_decomps(OPERATOR)[0].onnx_function is own
    assert own not in [known.onnx_function for known in second.get_decomps(OPERATOR)]
    assert {name: len(known) for name, known in second.functions.items()} == {
        name: len(known) for name, known in as_it_comes.functions.items()
    }


def test_it_is_made_once() -> None:
    with translations_made_once():
        first = ONNXRegistry.from_torchlib(opset_version=24)
    with translations_made_once():
        second = ONNXRegistry.from_torchlib(opset_version=24)
    (made,), (known,) = (table.functions["aten::relu"] for table in (first, second))
    assert made is known
