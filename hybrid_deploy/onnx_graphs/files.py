"""The ONNX files of a variant, loaded and saved: several graphs over one shared weight file.

`export` and `calibration` save graphs with it; the runtime reads the files with ONNX Runtime or
TensorRT instead.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import onnx
import onnx_ir as ir

from hybrid_deploy.bundle.bundle import Bundle
from hybrid_deploy.bundle.field_types import ElementType
from hybrid_deploy.bundle.manifest import DimRange, GraphSpec, TensorSpec
from hybrid_deploy.contract import BATCH_DIM, BEAMS_DIM, INPUTS_DIM, GraphRole
from hybrid_deploy.errors import BundleError
from hybrid_deploy.onnx_graphs.cost import graph_cost
from hybrid_deploy.onnx_graphs.graph_checks import check_graph
from hybrid_deploy.onnx_graphs.verified_weights import hold_weights

WEIGHTS_FILE = "weights.bin"
_INLINE_BYTES = 256  # smaller tensors stay in the ONNX file, where shape inference reads them
_PAGE_BYTES = 4096  # alignment of large weights, which makes them mappable
_LINE_BYTES = 64  # alignment of small weights
_MOST_CHARACTERS = 200  # of the reason why a file holds no graph
_NUMPY_TYPES = frozenset(
    {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.INT8, ir.DataType.UINT8}
    | {ir.DataType.INT32, ir.DataType.INT64, ir.DataType.DOUBLE, ir.DataType.BOOL}
)


def load_graphs(bundle: Bundle, variant: str) -> dict[GraphRole, ir.Model]:
    """Returns the graphs of a variant, with weights that have the hashes of the manifest.

    Graphs that no manifest lists yet were written by this process, and their weights stay on disk
    until they are read. The beam step is left out, because it is made again from the step.

    Raises:
        BundleError: a file is missing, has changed, or holds no graph that can be used.
    """
    roles = bundle.loop_graphs(variant)
    return {role: _load(bundle, spec) for role, spec in roles.items()}


def _load(bundle: Bundle, spec: GraphSpec) -> ir.Model:
    """Returns a graph from the bytes whose hash was checked."""
    listed, content = bundle.manifest.files, bundle.read_file(spec.file)

    def is_own_file(name: str) -> bool:
        # an export reads its graphs before a manifest lists any file
        return name in listed if spec.file in listed else not name.startswith(("/", ".."))

    try:
        model = ir.from_proto(onnx.load_model_from_string(content))
        ir.external_data.set_base_dir(model.graph, (bundle.folder / spec.file).parent)
        check_graph(model, spec, is_own_file)
        if spec.file in listed:
            hold_weights(model, bundle, spec.file)
    except (MemoryError, BundleError):
        raise
    except Exception as error:  # onnx and onnx_ir raise whatever a wrong field leads to
        cause = error.__cause__  # the sentence; a TypeError tells of onnx_ir's own calls
        said = error if cause is None or isinstance(cause, TypeError) else cause
        reason = " ".join(str(said).split())[:_MOST_CHARACTERS]
        raise BundleError(
            f"{bundle.folder / spec.file} is no graph that can be used: "
            f"{reason or type(error).__name__}; export the bundle again"
        ) from error
    return model


def save_graphs(
    models: Mapping[GraphRole, ir.Model],
    folder: Path,
    home: str,
    dims: Mapping[str, DimRange] | None = None,
) -> dict[GraphRole, GraphSpec]:
    """Writes graphs and their weights to a folder; equal weights are written once.

    Args:
        models: graphs by role; their large weights become references to the written file.
        folder: folder to write to.
        home: name that the folder has in the bundle.
        dims: ranges of the symbolic dimensions, to count the cost at typical sizes; None counts no
            cost.

    Returns:
        Description of each graph for the manifest.
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
    """Returns the description of a graph for the manifest.

    Args:
        model: graph to describe.
        file: path of its ONNX file, relative to the bundle.
        dims: ranges of the symbolic dimensions, to count the cost at typical sizes; None counts no
            cost.
    """
    typical = None if dims is None else _typical(dims)
    return GraphSpec(
        file=file,
        inputs=tuple(_tensor_spec(value) for value in model.graph.inputs),
        outputs=tuple(_tensor_spec(value) for value in model.graph.outputs),
        cost=None if typical is None else graph_cost(model, typical),
    )


def _typical(dims: Mapping[str, DimRange]) -> dict[str, int]:
    """Returns the typical size of every dimension; a beam step has one beam for each input."""
    sizes = {name: dim.typical for name, dim in dims.items()}
    return {INPUTS_DIM: sizes.get(BATCH_DIM, 1), BEAMS_DIM: 1, **sizes}


def weight_bytes(models: Mapping[GraphRole, ir.Model]) -> int:
    """Returns the size in bytes of the large weights of several graphs; equal ones count once."""
    sizes: dict[object, int] = {}
    for model in models.values():
        for value in _large_weights(model):
            tensor = value.const_value
            assert tensor is not None
            sizes[_identity(tensor)] = tensor.nbytes
    return sum(sizes.values())


class _WeightStore:
    """A file of tensors; equal tensors are stored once."""

    def __init__(self, file: BinaryIO, folder: Path) -> None:
        self._file = file
        self._folder = folder
        self._written: dict[object, tuple[int, int]] = {}

    def add(self, tensor: ir.TensorProtocol | None) -> ir.ExternalTensor:
        """Returns the tensor as a reference into the file, after writing it if it is new."""
        assert tensor is not None
        key = _identity(tensor)
        if key not in self._written:
            alignment = _PAGE_BYTES if tensor.nbytes >= _PAGE_BYTES else _LINE_BYTES
            self._file.write(b"\0" * (-self._file.tell() % alignment))
            offset = self._file.tell()
            self._written[key] = (offset, self._file.write(_content(tensor)))
        offset, length = self._written[key]
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
    """Returns a key that is the same for tensors with the same type, shape and content."""
    digest = hashlib.sha256(_content(tensor)).digest()
    return tensor.dtype, tuple(tensor.shape), digest


def _content(tensor: ir.TensorProtocol) -> memoryview | bytes:
    """Returns the bytes of a tensor, without a copy if its element type allows."""
    if tensor.dtype in _NUMPY_TYPES and sys.byteorder == "little":
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
    dtype = cast("ElementType", value.dtype.name.lower())
    return TensorSpec(name=value.name, dtype=dtype, shape=tuple(shape))
