"""A bundle of tiny encoder and decoder graphs, in the variants fp32, fp16 and int8."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
from onnx import numpy_helper

from hybrid_deploy.bundle.bundle import Bundle, open_bundle, seal_bundle, staged_bundle
from hybrid_deploy.bundle.input_specs import ArrayInput
from hybrid_deploy.bundle.manifest import (
    SCHEMA_VERSION,
    DimRange,
    GenerationDefaults,
    GraphSpec,
    Manifest,
    Precision,
    TensorSpec,
    Variant,
)
from hybrid_deploy.contract import GraphRole

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
    """Returns one graph of a variant; int8 has a Q/DQ encoder and a head with int8 weights."""
    dtype = np.float16 if variant == "fp16" else np.float32
    int8 = variant == "int8"
    if role is GraphRole.ENCODER:
        text = ENCODER.replace("PREPARE", PIXELS_INT8 if int8 else "pixels = Identity (typed)")
    else:
        text = DECODER.replace("PREPARE", HEAD_INT8 if int8 else "")
        for slot, content in (STEP if role is GraphRole.STEP else PREFILL).items():
            text = text.replace(slot, content)
    text = text.replace("REAL", "float16" if dtype is np.float16 else "float")
    graph_model = onnx.parser.parse_model(
        text.replace("DTYPE", "10" if dtype is np.float16 else "1")
    )
    graph = graph_model.graph
    read = {name for node in graph.node for name in node.input}
    computed = {name for node in graph.node for name in node.output}
    for name, value in weights(dtype).items():
        if name in read - computed:
            graph.initializer.append(numpy_helper.from_array(value, name))
    onnx.checker.check_model(graph_model, full_check=True)
    return graph_model


def weights(dtype: type[np.floating]) -> dict[str, np.ndarray]:
    """Returns the initializers of all graphs, by name."""
    rng = np.random.default_rng(0)
    floats = {
        "kernel": (16, 1, 3, 3), "project": (64, 32), "embedding": (VOCABULARY, HIDDEN),
        "attend": (HIDDEN, HIDDEN), "head": (HIDDEN, VOCABULARY),
    }  # fmt: skip
    return {
        **{name: rng.normal(size=shape).astype(dtype) for name, shape in floats.items()},
        "key_index": np.arange(CAPACITY).reshape(1, 1, 1, CAPACITY),
        "pixel_scale": np.asarray(0.05, dtype),
        "pixel_zero": np.asarray(0, np.int8),
        "kernel_int8": rng.integers(-127, 128, (16, 1, 3, 3), dtype=np.int8),
        "kernel_scale": np.full(16, 0.01, dtype),
        "head_int8": rng.integers(-127, 128, (HIDDEN, VOCABULARY), dtype=np.int8),
        "head_scale": np.full(VOCABULARY, 0.01, dtype),
    }


def tensor_spec(value: onnx.ValueInfoProto) -> TensorSpec:
    kind = value.type.tensor_type
    dtype = onnx.TensorProto.DataType.Name(kind.elem_type).lower()
    shape = tuple(dim.dim_param or dim.dim_value for dim in kind.shape.dim)
    return TensorSpec(name=value.name, dtype=dtype, shape=shape)


def write_variant(folder: Path, name: str) -> Variant:
    """Writes the three graphs of a variant, with their weights in files beside them."""
    variant_folder = folder / name
    variant_folder.mkdir()
    specs = {}
    for role in ROLES:
        graph_model = model(role, name)
        inputs = tuple(map(tensor_spec, graph_model.graph.input))
        outputs = tuple(map(tensor_spec, graph_model.graph.output))
        specs[role] = GraphSpec(f"{name}/{role.value}.onnx", inputs, outputs)
        onnx.save(
            graph_model, variant_folder / f"{role.value}.onnx", save_as_external_data=True,
            location=f"{role.value}.weights", size_threshold=256,
        )  # fmt: skip
    encoder, prefill, step = (specs[role] for role in ROLES)
    return Variant(Precision(name, name), 24, encoder=encoder, prefill=prefill, step=step)


def write_bundle(path: Path, *variants: str) -> Bundle:
    """Writes a bundle of these variants and opens it."""
    with staged_bundle(path) as folder:
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
    return open_bundle(path)
