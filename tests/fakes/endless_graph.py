"""Graphs that never end: a loop of 2^62 passes before an output."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.benchmarks.reliability.tiny_bundle import manifest_of, record_of, sealed

PASSES = 2**62


def add_endless_loop(graph: onnx.GraphProto) -> None:
    """Adds what an endless loop computes to the first float output of a graph."""
    output = next(o.name for o in graph.output if o.type.tensor_type.elem_type == TensorProto.FLOAT)
    inner = f"{output}_before_the_loop"
    for node in graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name == output:
                    names[index] = inner
    graph.initializer.extend(
        [
            numpy_helper.from_array(np.array(PASSES), "passes"),
            numpy_helper.from_array(np.array(True), "goes_on"),
            numpy_helper.from_array(np.zeros(1, np.float32), "zero"),
        ]
    )
    loop = helper.make_node("Loop", ["passes", "goes_on", "zero"], ["late_zero"], body=_body())
    graph.node.extend([loop, helper.make_node("Add", [inner, "late_zero"], [output])])


def make_endless(bundle: Path, *roles: str) -> None:
    """Adds an endless loop to graphs of a bundle, and seals the bundle again."""
    manifest = manifest_of(bundle)
    for role in roles:
        name = f"fp32/{role}.onnx"
        model = onnx.load(bundle / name, load_external_data=False)
        add_endless_loop(model.graph)
        content = model.SerializeToString()
        (bundle / name).write_bytes(content)
        manifest["files"][name] = record_of(content)
    (bundle / "manifest.json").write_bytes(sealed(json.dumps(manifest).encode()))


def _body() -> onnx.GraphProto:
    """Returns the body of the loop, which doubles a zero."""
    scalar = [
        helper.make_tensor_value_info("pass", TensorProto.INT64, []),
        helper.make_tensor_value_info("condition", TensorProto.BOOL, []),
        helper.make_tensor_value_info("value", TensorProto.FLOAT, [1]),
    ]
    results = [
        helper.make_tensor_value_info("same_condition", TensorProto.BOOL, []),
        helper.make_tensor_value_info("double", TensorProto.FLOAT, [1]),
    ]
    nodes = [
        helper.make_node("Identity", ["condition"], ["same_condition"]),
        helper.make_node("Add", ["value", "value"], ["double"]),
    ]
    return helper.make_graph(nodes, "body", scalar, results)
