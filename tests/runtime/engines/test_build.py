"""Bundles of tiny graphs, built ahead of time by TensorRT-RTX; nothing here runs an engine."""

import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import cast

import msgspec
import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

from hybrid_deploy.bundle.bundle import Bundle, open_bundle, seal_bundle, staged_bundle
from hybrid_deploy.bundle.manifest import (
    SCHEMA_VERSION,
    ArrayInput,
    DimRange,
    GenerationDefaults,
    GraphSpec,
    Manifest,
    Precision,
    TensorSpec,
    Variant,
)
from hybrid_deploy.contract import GraphRole
from hybrid_deploy.errors import BuildError, InputError, MissingDependencyError
from hybrid_deploy.runtime.engines import (
    build as engine,
)
from hybrid_deploy.runtime.engines import (
    isolated_build as engine_plan,
)
from hybrid_deploy.runtime.engines.build import EngineRecord, build_engine, build_engines
from hybrid_deploy.runtime.engines.cache import BuiltPlan, EngineCache, read_plan
from hybrid_deploy.runtime.host.local_gpu import LocalGpu
from hybrid_deploy.runtime.tensorrt_builder import (
    vendor_module as tensorrt_module,
)
from hybrid_deploy.runtime.tensorrt_builder.compile import PlanRequest
from hybrid_deploy.runtime.tensorrt_builder.options import BuildOptions
from hybrid_deploy.runtime.tensorrt_builder.vendor_module import (
    MessageLog,
    TensorRT,
    load_tensorrt,
    one_line,
)
from hybrid_deploy.target import Flavour, Target, parse_target

RTX = importlib.util.find_spec("tensorrt_rtx") is not None
needs_rtx = pytest.mark.skipif(not RTX, reason="tensorrt_rtx is not installed")
SM86 = parse_target("rtx:sm_86")
HIDDEN, VOCABULARY, CAPACITY = 32, 12, 16

ENCODER = """
<ir_version: 10, opset_import: ["" : 24]>
encoder (float[batch,1,8,width] image)
  => (REAL[batch,2,memory,16] cross_key_0, REAL[batch,2,memory,16] cross_value_0)
<int64[4] heads = {0, 0, 2, 16}, int64[3] flatten = {0, 0, -1}>
{
  typed = Cast <to = DTYPE> (image)
  PREPARE
  maps = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (pixels, kernel)
  edges = Relu (maps)
  columns = Transpose <perm = [0, 3, 1, 2]> (edges)
  flat = Reshape (columns, flatten)
  projected = MatMul (flat, project)
  separate = Reshape (projected, heads)
  cross_key_0 = Transpose <perm = [0, 2, 1, 3]> (separate)
  cross_value_0 = Relu (cross_key_0)
}
"""

DECODER = """
<ir_version: 10, opset_import: ["" : 24]>
decoder (INPUTS, REAL[batch,2,16,16] self_key_0, REAL[batch,2,16,16] self_value_0,
         REAL[batch,2,memory,16] cross_key_0, REAL[batch,2,memory,16] cross_value_0)
  => (float[batch,12] logits,
      REAL[batch,2,16,16] self_key_0_next, REAL[batch,2,16,16] self_value_0_next)
<int64[4] heads = {0, -1, 2, 16}, int64[3] merge = {0, -1, 32}, int64[4] column = {-1, 1, 1, 1},
 int64[4] row = {1, 1, -1, 1}, int64 zero = {0}, int64 one = {1}, int64[1] axis = {1}>
{
  ENTER
  embedded = Gather (embedding, rows)
  together = MatMul (embedded, attend)
  separate = Reshape (together, heads)
  new = Transpose <perm = [0, 2, 1, 3]> (separate)
  self_key_0_next = TensorScatter <axis = -2, mode = "linear"> (self_key_0, new, position)
  self_value_0_next = TensorScatter <axis = -2, mode = "linear"> (self_value_0, new, position)
  first = Reshape (position, column)
  size = Shape <start = 1, end = 2> (rows)
  length = Squeeze (size)
  offsets = Range (zero, length, one)
  offset = Reshape (offsets, row)
  last_key = Add (first, offset)
  mask = LessOrEqual (key_index, last_key)
  own = Attention (new, self_key_0_next, self_value_0_next, mask)
  seen = Attention (own, cross_key_0, cross_value_0)
  back = Transpose <perm = [0, 2, 1, 3]> (seen)
  hidden = Reshape (back, merge)
  CHOOSE
  PREPARE
  scores = MatMul (chosen, head)
  logits = Cast <to = 1> (scores)
}
"""

ROLES = (GraphRole.ENCODER, GraphRole.PREFILL, GraphRole.STEP)
STEP = {
    "INPUTS": "int64[batch] token, int64[batch] position",
    "ENTER": "rows = Unsqueeze (token, axis)",
    "CHOOSE": "chosen = Squeeze (hidden, axis)",
}
PREFILL = {
    "INPUTS": "int64[batch,length] tokens, int64[batch] position, int64[batch] last",
    "ENTER": "rows = Identity (tokens)",
    "CHOOSE": "index = Unsqueeze (last, axis)\n"
    "  chosen = GatherND <batch_dims = 1> (hidden, index)",
}
PIXELS_INT8 = """levels = QuantizeLinear (typed, pixel_scale, pixel_zero)
  pixels = DequantizeLinear (levels, pixel_scale, pixel_zero)
  kernel = DequantizeLinear <axis = 0> (kernel_int8, kernel_scale)"""
HEAD_INT8 = "head = DequantizeLinear <axis = 1> (head_int8, head_scale)"


def model(role: GraphRole, variant: str) -> onnx.ModelProto:
    """Makes one graph; the variants are fp32, fp16, and int8: Q/DQ encoder, weight-only head."""
    real = np.float16 if variant == "fp16" else np.float32
    int8 = variant == "int8"
    if role is GraphRole.ENCODER:
        text = ENCODER.replace("PREPARE", PIXELS_INT8 if int8 else "pixels = Identity (typed)")
    else:
        text = DECODER.replace("PREPARE", HEAD_INT8 if int8 else "")
        for slot, content in (STEP if role is GraphRole.STEP else PREFILL).items():
            text = text.replace(slot, content)
    text = text.replace("REAL", "float16" if real is np.float16 else "float")
    graph_model = onnx.parser.parse_model(
        text.replace("DTYPE", "10" if real is np.float16 else "1")
    )
    graph = graph_model.graph
    read = {name for node in graph.node for name in node.input}
    made = {name for node in graph.node for name in node.output}
    for name, value in weights(real).items():
        if name in read - made:
            graph.initializer.append(numpy_helper.from_array(value, name))
    onnx.checker.check_model(graph_model, full_check=True)
    return graph_model


def weights(real: type[np.floating]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    floats = {
        "kernel": (16, 1, 3, 3), "project": (64, 32), "embedding": (VOCABULARY, HIDDEN),
        "attend": (HIDDEN, HIDDEN), "head": (HIDDEN, VOCABULARY),
    }  # fmt: skip
    return {
        **{name: rng.normal(size=shape).astype(real) for name, shape in floats.items()},
        "key_index": np.arange(CAPACITY).reshape(1, 1, 1, CAPACITY),
        "pixel_scale": np.asarray(0.05, real),
        "pixel_zero": np.asarray(0, np.int8),
        "kernel_int8": rng.integers(-127, 128, (16, 1, 3, 3), dtype=np.int8),
        "kernel_scale": np.full(16, 0.01, real),
        "head_int8": rng.integers(-127, 128, (HIDDEN, VOCABULARY), dtype=np.int8),
        "head_scale": np.full(VOCABULARY, 0.01, real),
    }


def tensor_spec(value: onnx.ValueInfoProto) -> TensorSpec:
    kind = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name
    shape = tuple(dim.dim_param or dim.dim_value for dim in kind.shape.dim)
    return TensorSpec(name=value.name, dtype=dtype, shape=shape)


def write_variant(folder: Path, name: str) -> Variant:
    """Writes three graphs, their weights in files beside them."""
    home = folder / name
    home.mkdir()
    specs = {}
    for role in ROLES:
        graph_model = model(role, name)
        inputs = tuple(map(tensor_spec, graph_model.graph.input))
        outputs = tuple(map(tensor_spec, graph_model.graph.output))
        specs[role] = GraphSpec(f"{name}/{role.value}.onnx", inputs, outputs)
        onnx.save(
            graph_model, home / f"{role.value}.onnx", save_as_external_data=True,
            location=f"{role.value}.weights", size_threshold=256,
        )  # fmt: skip
    encoder, prefill, step = (specs[role] for role in ROLES)
    return Variant(Precision(name, name), 24, encoder=encoder, prefill=prefill, step=step)


def write_bundle(target: Path, *variants: str) -> Bundle:
    with staged_bundle(target) as folder:
        manifest = Manifest(
            schema_version=SCHEMA_VERSION,
            name="tiny",
            producer="test",
            parameters=0,
            capacity=CAPACITY,
            dims={
                "batch": DimRange(1, 2, 4),
                "length": DimRange(1, 4, 8),
                "memory": DimRange(2, 8, 16),
                "width": DimRange(4, 16, 32),
            },
            preprocess=ArrayInput(name="image"),
            vocabulary=None,
            generation=GenerationDefaults((0,), (1,), 2, CAPACITY),
            variants={name: write_variant(folder, name) for name in variants},
            golden=(),
            files={},
        )
        seal_bundle(folder, manifest)
    return open_bundle(target)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_bundle(tmp_path_factory.mktemp("tiny") / "tiny.bundle", "fp32", "fp16", "int8")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> EngineCache:
    return EngineCache(tmp_path_factory.mktemp("engines"))


Compiled = list[PlanRequest]


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> Compiled:
    """Replaces TensorRT: every request is answered at once and noted."""
    requests: Compiled = []

    def compile_isolated(request: PlanRequest) -> BuiltPlan:
        requests.append(request)
        return BuiltPlan(b"plan", 2.5)

    vendor = TensorRT(Flavour.RTX, "1.6", module=None, log=cast(MessageLog, None))
    monkeypatch.setattr(engine, "compile_isolated", compile_isolated)
    monkeypatch.setattr(engine, "load_tensorrt", lambda flavour: vendor)
    return requests


def key(bundle: Bundle, folder: Path, target: Target = SM86) -> str:
    record = build_engine(bundle, "fp32", GraphRole.STEP, target, cache=EngineCache(folder))
    return record.key


def with_manifest(bundle: Bundle, **changes: object) -> Bundle:
    return Bundle(bundle.folder, msgspec.structs.replace(bundle.manifest, **changes))


@pytest.mark.trt
@needs_rtx
@pytest.mark.parametrize("variant", ["fp32", "fp16", "int8"])
def test_every_graph_builds_and_is_found_again(
    bundle: Bundle, cache: EngineCache, variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    records = build_engines(bundle, variant, SM86, cache=cache, progress=said.append)
    assert [record.role for record in records] == list(ROLES)
    assert said == [f"building {variant}/{role.value} for rtx:sm_86" for role in ROLES]
    for record in records:
        assert not record.from_cache
        assert len(read_plan(record.path)) == record.size_bytes > 10_000
        assert 0 < record.seconds < 60
    monkeypatch.setattr(engine, "compile_isolated", None)
    again = build_engines(bundle, variant, SM86, cache=cache)
    assert again == [from_cache(record) for record in records]


def from_cache(record: EngineRecord) -> EngineRecord:
    return EngineRecord(**(vars(record) | {"from_cache": True}))


@pytest.mark.parametrize(
    ("precision", "reason"),
    [
        (
            Precision("int8-cpu", "int8-weights"),
            "its encoder is int8-cpu: it has unsigned activations, which TensorRT refuses; take "
            "int8",
        ),
        (
            Precision("fp16", "int4-cpu"),
            "its decoder is int4-cpu: it has operators of ONNX Runtime's CPU, which TensorRT "
            "refuses; take int4-weights",
        ),
    ],
)
def test_a_form_for_a_cpu_is_refused_before_tensorrt_sees_it(
    bundle: Bundle, cache: EngineCache, precision: Precision, reason: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(engine, "load_tensorrt", None)
    form = msgspec.structs.replace(bundle.variant("fp32"), precision=precision)
    with_form = with_manifest(bundle, variants={"small": form})
    for role in ROLES:
        with pytest.raises(BuildError) as caught:
            build_engine(with_form, "small", role, SM86, cache=cache)
        assert str(caught.value) == f"variant small is not for TensorRT; {reason}"


@pytest.mark.trt
@needs_rtx
def test_refusal_has_tensorrts_words_in_one_line_and_spoils_nothing(
    bundle: Bundle, cache: EngineCache, tmp_path: Path
) -> None:
    sound = build_engine(bundle, "fp32", GraphRole.STEP, SM86, cache=cache)
    turing = parse_target("rtx:sm_75")
    with pytest.raises(BuildError) as caught:
        build_engine(bundle, "fp32", GraphRole.STEP, turing, cache=cache)
    message = str(caught.value)
    assert message.startswith("fp32/step: TensorRT did not build it for rtx:sm_75: Myelin (")
    assert message.endswith("for Turing (SM75): FP32 GEMM is not supported.)")
    # TensorRT-RTX 1.7 makes a larger plan after a refused one in the same process.
    after = build_engine(bundle, "fp32", GraphRole.STEP, SM86, cache=EngineCache(tmp_path))
    assert after.size_bytes == sound.size_bytes


@pytest.mark.trt
@needs_rtx
def test_unreadable_graph_names_the_operator(tmp_path: Path) -> None:
    broken = model(GraphRole.STEP, "fp32")
    broken.graph.node[1].op_type, broken.graph.node[1].name = "Unheard", "first"
    onnx.save(broken, tmp_path / "step.onnx")
    request = PlanRequest("fp32/step", str(tmp_path / "step.onnx"), str(SM86), {})
    with pytest.raises(BuildError) as caught:
        engine_plan.compile_isolated(request)
    assert str(caught.value).startswith(
        "fp32/step: TensorRT cannot read the graph: Unheard first: "
    )


@pytest.mark.trt
@needs_rtx
def test_mask_that_tensorrt_drops_is_refused_before_building(tmp_path: Path) -> None:
    broken = model(GraphRole.STEP, "fp32")
    own = next(node for node in broken.graph.node if node.output[0] == "own")
    del own.input[3]
    onnx.save(broken, tmp_path / "step.onnx")
    request = PlanRequest("fp32/step", str(tmp_path / "step.onnx"), str(SM86), {})
    with pytest.raises(BuildError, match="has no mask in TensorRT"):
        engine_plan.compile_isolated(request)


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("kill -SEGV $$", "fp32/step: TensorRT crashed while building (SIGSEGV)"),
        (
            "kill -KILL $$",
            "fp32/step: the build was killed, most likely for want of memory; close other programs",
        ),
        ("echo no space >&2; exit 3", "fp32/step: the build process failed: no space"),
    ],
)
def test_lost_build_process_is_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, message: str
) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(BuildError) as caught:
        engine_plan.compile_isolated(PlanRequest("fp32/step", "x.onnx", "local", {}))
    assert str(caught.value) == message


def test_request_carries_the_ranges_of_the_manifest(
    bundle: Bundle, compiled: Compiled, tmp_path: Path
) -> None:
    record = build_engine(bundle, "fp32", GraphRole.PREFILL, SM86, cache=EngineCache(tmp_path))
    assert (record.seconds, record.size_bytes, record.target) == (2.5, 4, "rtx:sm_86")
    (request,) = compiled
    assert os.path.isabs(request.path)
    assert request.profile["tokens"] == ((1, 1), (2, 4), (4, 8))
    assert request.profile["self_key_0"] == ((1, 2, 16, 16), (2, 2, 16, 16), (4, 2, 16, 16))
    assert request.profile["cross_key_0"] == ((1, 2, 2, 16), (2, 2, 8, 16), (4, 2, 16, 16))


def change_batch(bundle: Bundle) -> Bundle:
    return with_manifest(bundle, dims=bundle.manifest.dims | {"batch": DimRange(1, 2, 8)})


def change_file(name: str) -> Callable[[Bundle], Bundle]:
    def change(bundle: Bundle) -> Bundle:
        record = msgspec.structs.replace(bundle.manifest.files[name], sha256="0" * 64)
        return with_manifest(bundle, files=bundle.manifest.files | {name: record})

    return change


@pytest.mark.parametrize(
    "change",
    [change_batch, change_file("fp32/step.onnx"), change_file("fp32/step.weights")],
    ids=["range", "graph", "weights"],
)
def test_what_shapes_an_engine_is_in_its_key(
    bundle: Bundle, compiled: Compiled, tmp_path: Path, change: Callable[[Bundle], Bundle]
) -> None:
    assert key(bundle, tmp_path) == key(bundle, tmp_path)
    assert key(change(bundle), tmp_path) != key(bundle, tmp_path)
    assert len(compiled) == 2


def test_target_is_in_the_key(bundle: Bundle, compiled: Compiled, tmp_path: Path) -> None:
    assert key(bundle, tmp_path) != key(bundle, tmp_path, parse_target("rtx:any"))


def test_other_variants_and_graphs_are_not_in_the_key(
    bundle: Bundle, compiled: Compiled, tmp_path: Path
) -> None:
    for name in ("fp16/step.weights", "fp32/encoder.onnx", "int8/step.onnx"):
        assert key(change_file(name)(bundle), tmp_path) == key(bundle, tmp_path)


def test_version_of_tensorrt_is_in_the_key(
    bundle: Bundle, compiled: Compiled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = key(bundle, tmp_path)
    newer = TensorRT(Flavour.RTX, "1.7", module=None, log=cast(MessageLog, None))
    monkeypatch.setattr(engine, "load_tensorrt", lambda flavour: newer)
    assert key(bundle, tmp_path) != before


def test_workspace_is_in_the_key_and_in_the_request(
    bundle: Bundle, compiled: Compiled, tmp_path: Path
) -> None:
    record = build_engine(
        bundle,
        "fp32",
        GraphRole.STEP,
        SM86,
        cache=EngineCache(tmp_path),
        options=BuildOptions(workspace_bytes=1000),
    )
    assert record.key != key(bundle, tmp_path)
    assert [request.options.workspace_bytes for request in compiled] == [1000, None]


def test_last_build_of_the_same_graph_is_told(
    bundle: Bundle, compiled: Compiled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key(bundle, tmp_path)
    newer = TensorRT(Flavour.RTX, "1.7", module=None, log=cast(MessageLog, None))
    monkeypatch.setattr(engine, "load_tensorrt", lambda flavour: newer)
    said: list[str] = []
    cache = EngineCache(tmp_path)
    build_engine(bundle, "fp32", GraphRole.STEP, SM86, cache=cache, progress=said.append)
    assert said == [
        "building fp32/step for rtx:sm_86, last time 2 s by TensorRT 1.6, now 1.7",
    ]


def test_local_engines_belong_to_one_gpu_model(
    bundle: Bundle, compiled: Compiled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = set()
    for name in ("RTX 3090", "RTX 4090"):
        monkeypatch.setattr(engine, "local_gpu", lambda name=name: LocalGpu(name, "8.6"))
        keys.add(key(bundle, tmp_path, parse_target("local")))
    assert len(keys) == 2


def test_local_without_a_gpu_says_what_to_do(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "local_gpu", lambda: None)
    with pytest.raises(BuildError) as caught:
        key(bundle, tmp_path, parse_target("local"))
    assert str(caught.value) == (
        "target local needs an NVIDIA GPU and this machine has none at hand; build for a named "
        "one: --target rtx:sm_86"
    )


def test_missing_range_is_named(bundle: Bundle, compiled: Compiled, tmp_path: Path) -> None:
    with pytest.raises(BuildError) as caught:
        key(with_manifest(bundle, dims={"batch": DimRange(1, 1, 1)}), tmp_path)
    assert str(caught.value) == (
        "fp32/step: the manifest gives no range for memory; export it again"
    )
    assert not compiled


def test_unknown_variant(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no variant 'int4'"):
        build_engines(bundle, "int4", SM86, cache=EngineCache(tmp_path))


def test_missing_tensorrt_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tensorrt_module._MODULES, Flavour.TENSORRT, "tensorrt_that_is_not_there")
    # Not `cache_clear`: it would free the logger that TensorRT goes on using.
    monkeypatch.setattr(tensorrt_module, "_load", tensorrt_module._load.__wrapped__)
    with pytest.raises(MissingDependencyError) as caught:
        load_tensorrt(Flavour.TENSORRT)
    assert str(caught.value) == (
        "tensorrt is not installed; install it with: pip install 'hybrid-deploy[tensorrt]'"
    )


@pytest.mark.trt
@needs_rtx
def test_local_takes_the_flavour_that_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tensorrt_module._MODULES, Flavour.TENSORRT, "tensorrt_that_is_not_there")
    assert load_tensorrt(None).flavour is Flavour.RTX


@pytest.mark.trt
@needs_rtx
def test_missing_enum_member_names_the_version() -> None:
    vendor = load_tensorrt(Flavour.RTX)
    with pytest.raises(BuildError) as caught:
        vendor.member("ComputeCapability", "SM999")
    assert str(caught.value) == (
        f"tensorrt-rtx {vendor.version} has no ComputeCapability SM999; install a newer one"
    )


def test_message_loses_its_source_locations_and_length() -> None:
    words = (
        "IBuilder::buildSerializedNetwork: Error Code 3: API Usage Error (TensorScatter_0: The "
        "output must be\na network output. In validate at /_src/optimizer/layers/kv.cpp:124)"
    )
    assert one_line(words) == (
        "API Usage Error (TensorScatter_0: The output must be a network output.)"
    )
    assert len(one_line("x" * 1000)) == 320
