"""The whole export of a tiny model, and the gate that stops a wrong one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx_ir as ir
import pytest
import torch
from torch import nn

from hybrid_deploy.bundle import Bundle
from hybrid_deploy.contract import GraphRole
from hybrid_deploy.errors import OutputExistsError, ParityError, UnsupportedModelError
from hybrid_deploy.export import exporter
from hybrid_deploy.export.parity import check_parity
from hybrid_deploy.onnx_files import load_graphs, weight_bytes
from hybrid_deploy.runtime.backend import Options, load_backend


def test_names_and_shapes_follow_the_contract(tiny_bundle: Bundle) -> None:
    graph = tiny_bundle.graph("fp32", GraphRole.STEP)
    assert [(t.name, t.shape) for t in graph.inputs] == [
        ("token", ("batch",)),
        ("position", ("batch",)),
        ("cross_key_0", ("batch", 2, "memory", 8)),
        ("cross_value_0", ("batch", 2, "memory", 8)),
        ("self_key_0", ("batch", 2, 8, 8)),
        ("self_value_0", ("batch", 2, 8, 8)),
    ]
    assert [(t.name, t.shape) for t in graph.outputs] == [
        ("logits", ("batch", 11)),
        ("self_key_0_next", ("batch", 2, 8, 8)),
        ("self_value_0_next", ("batch", 2, 8, 8)),
    ]
    encoder = tiny_bundle.graph("fp32", GraphRole.ENCODER)
    assert [t.shape for t in encoder.inputs] == [("batch", 1, 8, "width")]
    assert {t.name: t.shape for t in encoder.outputs} == {
        t.name: t.shape for t in graph.inputs if t.name.startswith("cross")
    }


def test_every_symbolic_dimension_has_a_range(tiny_bundle: Bundle) -> None:
    dims = tiny_bundle.manifest.dims
    for role in GraphRole:
        for tensor in tiny_bundle.graph("fp32", role).inputs:
            assert {size for size in tensor.shape if isinstance(size, str)} <= set(dims)
    assert (dims["memory"].min, dims["memory"].typical, dims["memory"].max) == (2, 6, 16)


def test_step_graph_is_lean(tiny_bundle: Bundle) -> None:
    step = load_graphs(tiny_bundle, "fp32")[GraphRole.STEP]
    operators = [node.op_type for node in step.graph]
    assert operators.count("TensorScatter") == 2
    assert operators.count("Attention") == 2
    assert "Gemm" not in operators
    assert "If" not in operators
    attention = [node for node in step.graph if node.op_type == "Attention"]
    mask = attention[0].inputs[3]
    assert mask is not None
    assert mask.dtype is ir.DataType.BOOL
    assert not any(node.attributes.get_int("is_causal", 0) for node in attention)
    for node in step.graph:  # the hidden state has two dimensions
        if node.op_type == "MatMul":
            assert node.inputs[0] is not None
            assert node.inputs[0].shape is not None
            assert len(node.inputs[0].shape) == 2


def test_weights_are_shared_and_written_once(tiny_bundle: Bundle, tiny_model: nn.Module) -> None:
    graphs = load_graphs(tiny_bundle, "fp32")
    file = tiny_bundle.folder / "fp32" / "weights.bin"
    parameters = sum(p.numel() * 4 for p in tiny_model.parameters())
    assert weight_bytes(graphs) <= parameters
    places = {
        role: {
            (value.const_value.offset or 0, value.const_value.length or 0)
            for value in model.graph.initializers.values()
            if isinstance(value.const_value, ir.ExternalTensor)
        }
        for role, model in graphs.items()
    }
    assert places[GraphRole.STEP] == places[GraphRole.PREFILL]
    assert max(offset + length for offset, length in places[GraphRole.STEP]) <= file.stat().st_size


def test_weights_keep_their_names(tiny_bundle: Bundle) -> None:
    names = set(load_graphs(tiny_bundle, "fp32")[GraphRole.STEP].graph.initializers)
    assert "embedding.weight" in names
    assert "decoder.layers.0.linear1.weight_transposed" in names


def test_nothing_of_the_exporters_machine_is_in_the_graphs(tiny_bundle: Bundle) -> None:
    for role in GraphRole:
        content = tiny_bundle.graph_path("fp32", role).read_bytes()
        assert str(Path.cwd()).encode() not in content


def test_existing_output_is_refused_before_any_work(
    tiny_path: Path, tiny_export: exporter.ExportJob
) -> None:
    stages: list[str] = []
    with pytest.raises(OutputExistsError):
        exporter.export_model(tiny_export, tiny_path, progress=stages.append)
    assert stages == []


def test_the_gate_sees_a_small_change(tiny_bundle: Bundle, tiny_export: exporter.ExportJob) -> None:
    backend = load_backend("onnxruntime", tiny_bundle, "fp32", Options())
    generation = tiny_bundle.manifest.generation
    model = tiny_export.model
    parity = check_parity(model, backend, generation, tiny_export.checks)
    assert parity.sequences == 4
    assert parity.steps >= 4
    assert parity.largest_difference < 1e-5
    bias = model.get_parameter("head.bias")
    with torch.no_grad():
        bias[3] += 2e-4
    try:
        with pytest.raises(ParityError, match="differ from the model in batch 0, sequence 0"):
            check_parity(model, backend, generation, tiny_export.checks)
    finally:
        with torch.no_grad():
            bias[3] -= 2e-4


def test_a_bundle_that_differs_is_not_written(
    tmp_path: Path, tiny_export: exporter.ExportJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(*arguments: object) -> None:
        raise ParityError("the exported graphs differ from the model; no bundle was written")

    monkeypatch.setattr(exporter, "check_prompts", wrong)
    with pytest.raises(ParityError):
        exporter.export_model(tiny_export, tmp_path / "out.bundle")
    assert list(tmp_path.iterdir()) == []


def test_training_mode_is_refused(tmp_path: Path, tiny_export: exporter.ExportJob) -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    model.encode = model.decode = model.forward  # type: ignore[assignment]
    with pytest.raises(UnsupportedModelError, match=r"call model\.eval\(\) first"):
        exporter.export_model(replace(tiny_export, model=model), tmp_path / "out.bundle")


def test_model_without_encode_is_refused(tmp_path: Path, tiny_export: exporter.ExportJob) -> None:
    job = replace(tiny_export, model=nn.Linear(2, 2).eval())
    with pytest.raises(UnsupportedModelError, match=r"Linear has no encode\(\); give it"):
        exporter.export_model(job, tmp_path / "out.bundle")
