"""The weights of graphs in RAM, read from the descriptor whose bytes are hashed.

A graph that maps its weights from a file in a bundle reads whatever lies there later: other numbers
if the bundle is replaced, and no numbers at all if the file is cut, which ends the process.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from contextlib import closing
from weakref import WeakValueDictionary

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from hybrid_deploy.bundle.bundle import Bundle
from hybrid_deploy.onnx_graphs.graph_checks import inner_graphs

_in_use: WeakValueDictionary[str, NDArray[np.uint8]] = WeakValueDictionary()
"""The files that tensors refer to, by their hash, so that graphs share them."""


def hold_weights(model: ir.Model, bundle: Bundle, file: str) -> None:
    """Reads the weights of a graph; its tensors no longer refer to files.

    Args:
        model: the graph, whose external tensors `check_graph` has checked.
        bundle: the bundle, whose manifest lists the files.
        file: path of the graph, relative to the bundle.

    Raises:
        BundleError: a file is missing or has changed.
        ValueError: a tensor does not fit its file, or is an attribute of a node.
    """
    home = posixpath.dirname(file)
    for graph in _graphs(model.graph):
        for value in graph.initializers.values():
            tensor = value.const_value
            if isinstance(tensor, ir.ExternalTensor):
                name = posixpath.normpath(posixpath.join(home, str(tensor.location)))
                value.const_value = _held(tensor, _content(bundle, name))


def _graphs(graph: ir.Graph) -> Iterator[ir.Graph]:
    """Yields a graph and the graphs inside of its nodes."""
    yield graph
    for node in graph:
        if any(_is_external(attribute) for attribute in node.attributes.values()):
            raise ValueError(f"{node.name} has an attribute in another file")
        for inner in inner_graphs(node):
            yield from _graphs(inner)


def _is_external(attribute: ir.Attr) -> bool:
    if attribute.type == ir.AttributeType.TENSOR:
        return isinstance(attribute.value, ir.ExternalTensor)
    is_list = attribute.type == ir.AttributeType.TENSORS
    return is_list and any(isinstance(tensor, ir.ExternalTensor) for tensor in attribute.value)


def _content(bundle: Bundle, name: str) -> NDArray[np.uint8]:
    """Returns the verified content of a file, read once for all graphs that are in use."""
    sha256 = bundle.manifest.files[name].sha256
    content = _in_use.get(sha256)
    if content is None:
        with closing(bundle.open_file(name)) as file:
            content = np.empty(file.size_bytes, np.uint8)
            file.read_into(content.data)
        content.setflags(write=False)
        _in_use[sha256] = content
    return content


def _held(tensor: ir.ExternalTensor, content: NDArray[np.uint8]) -> ir.TensorProtocol:
    start = tensor.offset or 0
    part = content[start : start + tensor.nbytes]
    if start < 0 or len(part) != tensor.nbytes:
        raise ValueError(f"{tensor.name} lies outside of its file")
    if tensor.dtype.bitwidth < 8:  # several elements in a byte
        proto = onnx.TensorProto(
            name=tensor.name,
            data_type=tensor.dtype.value,
            dims=tensor.shape.numpy(),
            raw_data=part.tobytes(),
        )
        return ir.serde.deserialize_tensor(proto)
    dtype = np.dtype(tensor.dtype.numpy()).newbyteorder("<")
    array = part.view(dtype).reshape(tensor.shape.numpy())
    return ir.Tensor(array, dtype=tensor.dtype, shape=ir.Shape(array.shape), name=tensor.name)
