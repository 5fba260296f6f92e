"""ONNX graphs on disk: several graphs over one shared weight file.

Sits between `runtime` and the two packages that make graphs, `export` and `calibration`.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx_ir as ir

from hybrid_deploy.bundle.bundle import Bundle
from hybrid_deploy.bundle.manifest import DimRange, GraphSpec, TensorSpec
from hybrid_deploy.contract import BATCH_DIM, BEAMS_DIM, INPUTS_DIM, GraphRole
from hybrid_deploy.onnx_graphs.cost import graph_cost

WEIGHTS_FILE = "weights.bin"
_INLINE_BYTES = 256  # smaller tensors stay in the graph, where shape inference finds them
_PAGE_BYTES = 4096  # where a large weight begins, so that it can be mapped
_LINE_BYTES = 64  # where a small one begins
_PLAIN = frozenset(
    {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.INT8, ir.DataType.UINT8}
    | {ir.DataType.INT32, ir.DataType.INT64, ir.DataType.DOUBLE, ir.DataType.BOOL}
)


def load_graphs(bundle: Bundle, variant: str) -> dict[GraphRole, ir.Model]:
    """Loads the graphs of a variant; their weights stay on disk until they are read.

    The step of beam searches is left out: it is made anew of the step.
    """
    roles = bundle.loop_graphs(variant)
    return {role: ir.load(bundle.graph_path(variant, role)) for role in roles}


def save_graphs(
    models: Mapping[GraphRole, ir.Model],
    folder: Path,
    home: str,
    dims: Mapping[str, DimRange] | None = None,
) -> dict[GraphRole, GraphSpec]:
    """Writes graphs and their weights; a weight that several graphs use is written once.

    Args:
        models: the graphs; the weights in them become references to the written file.
        folder: where to write.
        home: what `folder` will be called in the bundle.
        dims: the symbolic dimensions; where they are typical, the cost of each graph is counted.

    Returns:
        The description of each graph for the manifest.
    """
    with (folder / WEIGHTS_FILE).open("wb") as file:
        store = _WeightStore(file, folder)
        for model in models.values():
            for value in _large_weights(model):
                value.const_value = store.add(value.const_value)
    for role, model in models.items():
        ir.save(model, folder / _file_name(role))
    return {
        role: describe(model, f"{home}/{_file_name(role)}", dims) for role, model in models.items()
    }


def describe(model: ir.Model, file: str, dims: Mapping[str, DimRange] | None = None) -> GraphSpec:
    """Describes a graph for the manifest: inputs, outputs and, where `dims` are given, cost."""
    typical = None if dims is None else _typical(dims)
    return GraphSpec(
        file=file,
        inputs=tuple(_tensor_spec(value) for value in model.graph.inputs),
        outputs=tuple(_tensor_spec(value) for value in model.graph.outputs),
        cost=None if typical is None else graph_cost(model, typical),
    )


def _typical(dims: Mapping[str, DimRange]) -> dict[str, int]:
    """Returns the size of every dimension, with one beam for each input."""
    sizes = {name: dim.typical for name, dim in dims.items()}
    return {INPUTS_DIM: sizes.get(BATCH_DIM, 1), BEAMS_DIM: 1, **sizes}


def weight_bytes(models: Mapping[GraphRole, ir.Model]) -> int:
    """Sums the weights of several graphs, each different one once."""
    seen: dict[object, int] = {}
    for model in models.values():
        for value in _large_weights(model):
            tensor = value.const_value
            assert tensor is not None
            seen[_identity(tensor)] = tensor.nbytes
    return sum(seen.values())


class _WeightStore:
    """Appends tensors to a file, equal ones once."""

    def __init__(self, file: BinaryIO, folder: Path) -> None:
        self._file = file
        self._folder = folder
        self._known: dict[object, tuple[int, int]] = {}

    def add(self, tensor: ir.TensorProtocol | None) -> ir.ExternalTensor:
        assert tensor is not None
        key = _identity(tensor)
        if key not in self._known:
            alignment = _PAGE_BYTES if tensor.nbytes >= _PAGE_BYTES else _LINE_BYTES
            self._file.write(b"\0" * (-self._file.tell() % alignment))
            offset = self._file.tell()
            self._known[key] = (offset, self._file.write(_content(tensor)))
        offset, length = self._known[key]
        return ir.ExternalTensor(
            WEIGHTS_FILE,
            offset,
            length,
            tensor.dtype,
            shape=ir.Shape(tensor.shape.numpy()),
            name=tensor.name or "",
            base_dir=self._folder,
        )


def _identity(tensor: ir.TensorProtocol) -> object:
    digest = hashlib.sha256(_content(tensor)).digest()
    return tensor.dtype, tuple(tensor.shape), digest


def _content(tensor: ir.TensorProtocol) -> memoryview | bytes:
    """Returns a tensor's bytes, without a copy of them where its type allows."""
    if tensor.dtype in _PLAIN and sys.byteorder == "little":
        array = np.ascontiguousarray(tensor.numpy())
        return array.reshape(-1).view(np.uint8).data
    return tensor.tobytes()


def _large_weights(model: ir.Model) -> Iterator[ir.Value]:
    for value in model.graph.initializers.values():
        if value.const_value is not None and value.const_value.nbytes >= _INLINE_BYTES:
            yield value


def _file_name(role: GraphRole) -> str:
    return f"{role.value}.onnx"


def _tensor_spec(value: ir.Value) -> TensorSpec:
    assert value.name is not None and value.shape is not None and value.dtype is not None
    shape = (d if isinstance(d, int) else str(d.value) for d in value.shape)
    return TensorSpec(name=value.name, dtype=value.dtype.name.lower(), shape=tuple(shape))
