"""Tests the export of a tiny model, and the parity gate that refuses wrong graphs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import nn

from hybrid_deploy.bundle.bundle import Bundle, open_bundle
from hybrid_deploy.bundle.input_specs import ArrayInput
from hybrid_deploy.bundle.manifest import DimRange, GenerationDefaults
from hybrid_deploy.calibration.quantize import quantize_bundle
from hybrid_deploy.contract import GraphRole, Head
from hybrid_deploy.errors import (
    InputError,
    OutputExistsError,
    ParityError,
    UnsupportedModelError,
    UsageError,
)
from hybrid_deploy.export.export_job import ExportJob
from hybrid_deploy.export.exporter import export_model, run_export
from hybrid_deploy.export.lowering.output_heads import attach_head, check_head
from hybrid_deploy.export.parity import gate
from hybrid_deploy.export.parity.compare import compare_greedy
from hybrid_deploy.onnx_graphs.files import load_graphs, weight_bytes
from hybrid_deploy.runtime.backends.onnxruntime.inference_session import make_session
from hybrid_deploy.runtime.backends.registry import (
    BackendOptions,
    load_backend,
)
from hybrid_deploy.runtime.backends.tensor_checks import check_inputs
from hybrid_deploy.runtime.session.session import load_session
from tests.closeness import assert_close_in_float32, float32_error


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
    for graph in tiny_bundle.loop_graphs("fp32").values():
        for tensor in graph.inputs:
            assert {size for size in tensor.shape if isinstance(size, str)} <= set(dims)
    assert (dims["memory"].min, dims["memory"].typical, dims["memory"].max) == (2, 6, 16)


def test_the_step_graph_has_only_the_operators_it_needs(tiny_bundle: Bundle) -> None:
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
    for node in step.graph:  # the hidden state has the axes batch and width
        if node.op_type == "MatMul":
            assert node.inputs[0] is not None
            assert node.inputs[0].shape is not None
            assert len(node.inputs[0].shape) == 2


def test_weights_are_shared_and_written_once(tiny_bundle: Bundle, tiny_model: nn.Module) -> None:
    graphs = load_graphs(tiny_bundle, "fp32")
    file = tiny_bundle.folder / "fp32" / "weights.bin"
    parameters = sum(p.numel() * 4 for p in tiny_model.parameters())
    assert weight_bytes(graphs) <= parameters
    byte_ranges = {
        role: {
            (value.const_value.offset or 0, value.const_value.length or 0)
            for value in ir.load(tiny_bundle.graph_path("fp32", role)).graph.initializers.values()
            if isinstance(value.const_value, ir.ExternalTensor)
        }
        for role in graphs
    }
    assert byte_ranges[GraphRole.STEP] == byte_ranges[GraphRole.PREFILL]
    assert (
        max(offset + length for offset, length in byte_ranges[GraphRole.STEP])
        <= file.stat().st_size
    )


def test_weights_keep_their_names(tiny_bundle: Bundle) -> None:
    names = set(load_graphs(tiny_bundle, "fp32")[GraphRole.STEP].graph.initializers)
    assert "embedding.weight" in names
    assert "decoder.layers.0.linear1.weight_transposed" in names


def test_the_graphs_hold_no_path_of_the_exporting_machine(tiny_bundle: Bundle) -> None:
    for role in tiny_bundle.graphs("fp32"):
        content = tiny_bundle.graph_path("fp32", role).read_bytes()
        assert str(Path.cwd()).encode() not in content


def test_existing_output_is_refused_before_any_work(
    tiny_path: Path, tiny_export: ExportJob
) -> None:
    reports: list[tuple[str, int, int]] = []
    with pytest.raises(OutputExistsError):
        run_export(tiny_export, tiny_path, progress=lambda *report: reports.append(report))
    assert reports == []


def test_the_gate_refuses_a_small_change_of_the_model(
    tiny_bundle: Bundle, tiny_export: ExportJob, tiny_logit: float
) -> None:
    backend = load_backend("onnxruntime", tiny_bundle, "fp32", BackendOptions())
    generation = tiny_bundle.manifest.generation
    model = tiny_export.model
    parity = compare_greedy(model, backend, generation, tiny_export.checks)
    assert parity.sequences == 4
    assert parity.steps >= 4
    assert parity.largest_difference < float32_error(tiny_logit)
    bias = model.get_parameter("head.bias")
    change = 1e-4 * tiny_logit
    with torch.no_grad():
        bias[3] += change
    try:
        with pytest.raises(ParityError, match="differ from the model in batch 0, sequence 0"):
            compare_greedy(model, backend, generation, tiny_export.checks)
    finally:
        with torch.no_grad():
            bias[3] -= change


def test_a_bundle_that_differs_is_not_written(
    tmp_path: Path, tiny_export: ExportJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise ParityError("the exported graphs differ from the model; no bundle was written")

    monkeypatch.setattr(gate, "compare_random_prompts", refuse)
    with pytest.raises(ParityError):
        run_export(tiny_export, tmp_path / "out.bundle")
    assert list(tmp_path.iterdir()) == []


def test_a_model_in_training_mode_is_refused(tmp_path: Path, tiny_export: ExportJob) -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    model.encode = model.decode = model.forward  # type: ignore[assignment]
    with pytest.raises(UnsupportedModelError, match=r"call model\.eval\(\) first"):
        run_export(replace(tiny_export, model=model), tmp_path / "out.bundle")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": ""}, "the name of the model cannot be stored: Expected `str` of length >= 1"),
        (
            {"generation": GenerationDefaults((1,), (2,), 0, 8, beams=0)},
            "the generation of the model cannot be stored: Expected `int` >= 1 - at `$.beams`",
        ),
    ],
)
def test_a_description_that_could_not_be_read_again_is_refused(
    tmp_path: Path, tiny_export: ExportJob, change: dict[str, Any], message: str
) -> None:
    job = replace(tiny_export, spec=replace(tiny_export.spec, **change))
    with pytest.raises(UsageError) as caught:
        run_export(job, tmp_path / "out")
    assert str(caught.value).startswith(message)
    assert list(tmp_path.iterdir()) == []


def test_a_model_without_encode_is_refused(tmp_path: Path, tiny_export: ExportJob) -> None:
    job = replace(tiny_export, model=nn.Linear(2, 2).eval())
    with pytest.raises(
        UnsupportedModelError, match=r"Linear has no encode\(\) and no decode\(\); wrap it"
    ):
        run_export(job, tmp_path / "out.bundle")


@pytest.fixture(scope="module")
def plain_path(
    tiny_model: nn.Module, tiny_logit: float, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A bundle exported without generation settings, with a fixed batch of two and head topk."""
    out = tmp_path_factory.mktemp("plain") / "plain.bundle"
    reports: list[tuple[str, int, int]] = []
    report = export_model(
        tiny_model,
        torch.zeros(1, 1, 8, 16),
        out,
        max_length=8,
        dynamic={"image": {3: ("width", 8, 64)}},
        batch=2,
        head="topk",
        checks=[torch.randn(3, 1, 8, 20, generator=torch.Generator().manual_seed(0))],
        progress=lambda *report: reports.append(report),
    )
    assert report.path == out
    assert report.parity.largest_difference < float32_error(tiny_logit)
    assert list(report.stage_seconds) == ["trace", "analyse", "lower", "check", "write"]
    assert reports[:4] == [("trace", 0, 1), ("trace", 1, 1), ("analyse", 0, 1), ("analyse", 1, 1)]
    assert [done for stage, done, total in reports if stage == "check"] == [0, 2, 3, 3]
    assert [stage for stage, done, _ in reports if done == 0] == list(report.stage_seconds)
    assert all(seconds > 0 for seconds in report.stage_seconds.values())
    return out


def test_an_export_without_generation_settings_has_defaults(plain_path: Path) -> None:
    manifest = open_bundle(plain_path).manifest
    assert (manifest.name, manifest.capacity) == ("TinyReader", 8)
    assert manifest.generation == GenerationDefaults((), (), 0, 8)
    assert manifest.preprocess == ArrayInput("image")
    assert manifest.dims["width"] == DimRange(8, 16, 64)
    assert [path.name for path in plain_path.parent.iterdir()] == [plain_path.name]


def test_a_fixed_batch_accepts_no_other_size(plain_path: Path) -> None:
    bundle = open_bundle(plain_path)
    assert bundle.manifest.dims["batch"] == DimRange(2, 2, 2)
    for role, graph in bundle.graphs("fp32").items():
        assert {tensor.shape[0] for tensor in (*graph.inputs, *graph.outputs)} == {2}
        shapes = [
            value.shape
            for node in load_graphs(bundle, "fp32")[role].graph
            for value in node.outputs
            if value.shape is not None
        ]
        assert "batch" not in {name for shape in shapes for name in shape.free_symbols()}
    encoder = make_session(bundle.graph_path("fp32", GraphRole.ENCODER), 1)
    assert encoder.run(None, {"image": np.zeros((2, 1, 8, 24), np.float32)})[0].shape[0] == 2
    with pytest.raises(InputError) as caught:
        check_inputs(
            bundle.graph("fp32", GraphRole.ENCODER), {"image": np.zeros((3, 1, 8, 24), np.float32)}
        )
    assert str(caught.value) == "input image must be float 2x1x8xwidth, got float32 3x1x8x24"


@pytest.mark.parametrize("role", [GraphRole.STEP, GraphRole.PREFILL])
def test_top_tokens_replace_the_logits(
    plain_path: Path, tiny_bundle: Bundle, role: GraphRole
) -> None:
    bundle = open_bundle(plain_path)
    assert bundle.variant("fp32").head is Head.TOPK
    graph = bundle.graph("fp32", role)
    assert [(t.name, t.dtype, t.shape) for t in graph.outputs[:2]] == [
        ("top_scores", "float", (2, 8)),
        ("top_tokens", "int64", (2, 8)),
    ]
    rng = np.random.default_rng(0)
    feeds = {
        tensor.name: np.zeros([2] * len(tensor.shape), np.int64)
        if tensor.dtype == "int64"
        else rng.standard_normal([s if isinstance(s, int) else 5 for s in tensor.shape]).astype(
            np.float32
        )
        for tensor in graph.inputs
    }
    scores, tokens = make_session(bundle.graph_path("fp32", role), 1).run(
        ["top_scores", "top_tokens"], feeds
    )
    (logits,) = make_session(tiny_bundle.graph_path("fp32", role), 1).run(["logits"], feeds)
    assert tokens.tolist() == np.argsort(-logits, -1)[:, :8].tolist()
    assert_close_in_float32(scores, np.take_along_axis(logits, tokens, -1))


def test_session_and_quantization_refuse_other_heads(plain_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        load_session(plain_path)
    assert str(caught.value) == (
        f"variant fp32 of {plain_path} returns topk in place of the logits, for a loop of your "
        "own; export it with --head logits to run it here"
    )
    with pytest.raises(UsageError, match="place of the logits; export it with --head logits to q"):
        quantize_bundle(plain_path, "fp16")


def test_the_argmax_head_is_compared_with_the_logits(tmp_path: Path, tiny_bundle: Bundle) -> None:
    path = tiny_bundle.graph_path("fp32", GraphRole.STEP)
    model, new = load_graphs(tiny_bundle, "fp32")[GraphRole.STEP], path.with_name("argmax.onnx")
    attach_head(model, Head.ARGMAX, top_k=0)
    assert next((v.name, str(v.dtype), str(v.shape)) for v in model.graph.outputs) == (
        "next_token",
        "INT64",
        "[batch]",
    )
    feeds = {
        tensor.name: np.ones(
            [3 if isinstance(s, str) else s for s in tensor.shape],
            np.int64 if tensor.dtype == "int64" else np.float32,
        )
        for tensor in tiny_bundle.graph("fp32", GraphRole.STEP).inputs
    }
    ir.save(model, new)
    try:
        check_head(path, new, feeds)
        node = next(node for node in model.graph if node.op_type == "ArgMax")
        node.op_type = "ArgMin"
        ir.save(model, new)
        with pytest.raises(ParityError, match=r"the head of argmax\.onnx gives other tokens"):
            check_head(path, new, feeds)
    finally:
        new.unlink()


@pytest.mark.parametrize(
    ("token", "message"),
    [
        (
            {"start_tokens": 11},
            "start token 11 is outside the 11 tokens that the decoder reads; give one from 0 to 10",
        ),
        (
            {"end_tokens": [2, 40]},
            "end token 40 is outside the 11 tokens that the decoder's logits hold; give one "
            "from 0 to 10",
        ),
        (
            {"pad_token": -1},
            "pad token -1 is outside the 11 tokens that the decoder reads; give one from 0 to 10",
        ),
        (
            {"start_tokens": [1] * 8},
            "8 start tokens leave none to decode in max_length 8",
        ),
    ],
)
def test_tokens_outside_the_vocabulary_are_refused(
    tmp_path: Path, tiny_model: nn.Module, token: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        export_model(tiny_model, torch.zeros(1, 1, 8, 16), tmp_path / "o", max_length=8, **token)
    assert str(caught.value) == message
    assert list(tmp_path.iterdir()) == []
