"""Graphs of strangers with right hashes: one line that names the file, or the graph."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from hybrid_deploy.bundle.bundle import open_bundle
from hybrid_deploy.contract import GraphRole
from hybrid_deploy.errors import BundleError
from hybrid_deploy.onnx_graphs import verified_weights
from hybrid_deploy.onnx_graphs.files import load_graphs
from tests.benchmarks.reliability.tiny_bundle import manifest_of, record_of, sealed

STEP = "fp32/step.onnx"
Edit = Callable[[onnx.ModelProto], object]


def write_step(bundle: Path, content: bytes) -> None:
    """Replaces the step graph of a bundle, and seals the bundle again."""
    manifest = manifest_of(bundle)
    manifest["files"][STEP] = record_of(content)
    (bundle / STEP).write_bytes(content)
    (bundle / "manifest.json").write_bytes(sealed(json.dumps(manifest).encode()))


def first_external(model: onnx.ModelProto) -> onnx.TensorProto:
    tensor: onnx.TensorProto
    tensor = next(tensor for tensor in model.graph.initializer if tensor.external_data)
    return tensor


def external(key: str, value: str) -> Edit:
    def edit(model: onnx.ModelProto) -> None:
        for entry in first_external(model).external_data:
            if entry.key == key:
                entry.value = value

    return edit


def size(number: int) -> Edit:
    return lambda model: first_external(model).dims.__setitem__(0, number)


@pytest.mark.parametrize("content", [b"\xff" * 300, b"", b"garbage"])
def test_content_that_is_no_graph(own_path: Path, content: bytes) -> None:
    write_step(own_path, content)
    with pytest.raises(BundleError, match=r"fp32/step\.onnx is no graph that can be used: "):
        load_graphs(open_bundle(own_path), "fp32")


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (lambda model: model.ClearField("graph"), "its inputs are not those of the manifest"),
        (lambda model: model.graph.node[3].input.__setitem__(0, "nowhere"), "reads nowhere"),
        (lambda model: model.graph.node.append(model.graph.node[2]), ""),
        (
            lambda model: model.graph.node[2].input.__setitem__(0, model.graph.node[5].output[0]),
            "which nothing before it computes",
        ),
        (lambda model: model.graph.output.pop(), "its outputs are not those of the manifest"),
        (lambda model: setattr(first_external(model), "data_type", 77), ""),
        (size(1 << 40), "has another size than its shape"),
        (size(-3), ""),
        (external("offset", "999999999"), ""),
        (external("offset", "-5"), ""),
        (external("offset", "abc"), ""),
        (external("length", "3"), "has another size than its shape"),
        (external("location", "none.bin"), "which is no file of the bundle"),
        (external("location", "../../outside.bin"), "which is no file of the bundle"),
        (external("location", "/etc/hostname"), "which is no file of the bundle"),
        (external("location", "a\0b"), "which is no file of the bundle"),
    ],
)
def test_graphs_that_are_refused(own_path: Path, edit: Edit, reason: str) -> None:
    (own_path.parent / "outside.bin").write_bytes(bytes(1 << 16))
    model = onnx.load(own_path / STEP, load_external_data=False)
    edit(model)
    write_step(own_path, model.SerializeToString())
    with pytest.raises(
        BundleError, match=rf"fp32/step\.onnx is no graph that can be used: .*{reason}.*; export"
    ):
        load_graphs(open_bundle(own_path), "fp32")


def test_a_good_graph_is_loaded(own_path: Path) -> None:
    write_step(own_path, (own_path / STEP).read_bytes())
    graphs = load_graphs(open_bundle(own_path), "fp32")
    assert {role.value for role in graphs} >= {"encoder", "step"}


def test_weights_that_changed_after_the_hash_are_refused(own_path: Path) -> None:
    bundle = open_bundle(own_path)
    verified_weights._in_use.clear()
    weights = own_path / "fp32/weights.bin"
    weights.write_bytes(bytes(weights.stat().st_size))
    with pytest.raises(BundleError, match=r"is damaged: fp32/weights\.bin was changed"):
        load_graphs(bundle, "fp32")


def test_weights_of_loaded_graphs_stay_when_their_file_is_cut(own_path: Path) -> None:
    graphs = load_graphs(open_bundle(own_path), "fp32")
    expected = [value.const_value for value in graphs[GraphRole.STEP].graph.initializers.values()]
    before = [tensor.numpy().copy() for tensor in expected if tensor is not None]
    os.truncate(own_path / "fp32/weights.bin", 16)
    for tensor, array in zip(expected, before, strict=True):
        assert tensor is not None
        np.testing.assert_array_equal(tensor.numpy(), array)


def test_graphs_share_the_weights_that_they_read(own_path: Path) -> None:
    graphs = load_graphs(open_bundle(own_path), "fp32")
    again = load_graphs(open_bundle(own_path), "fp32")
    first, second = (
        loaded[role].graph.initializers["head.weight_transposed"].const_value
        for loaded, role in ((graphs, GraphRole.STEP), (again, GraphRole.PREFILL))
    )
    assert first is not None and second is not None
    assert np.shares_memory(first.numpy(), second.numpy())


def test_elements_of_half_a_byte_are_read() -> None:
    tensor = ir.ExternalTensor(
        "weights.bin", 1, 2, ir.DataType.INT4, shape=ir.Shape([3]), name="weight"
    )
    held = verified_weights._held(tensor, np.array([0, 0x21, 0x03], np.uint8))
    assert held.numpy().tolist() == [1, 2, 3]
    with pytest.raises(ValueError, match="weight lies outside of its file"):
        verified_weights._held(tensor, np.zeros(2, np.uint8))
