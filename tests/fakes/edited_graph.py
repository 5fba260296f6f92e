"""One graph of a bundle with another weight, while the other graphs keep theirs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from hybrid_deploy.bundle.bundle import Bundle
from hybrid_deploy.bundle.manifest import FileRecord
from hybrid_deploy.contract import GraphRole


def edit_graph(
    bundle: Bundle,
    role: GraphRole,
    edit: Callable[[NDArray[Any]], None],
    weight: str | None = None,
    variant: str = "fp32",
) -> None:
    """Changes one weight of one graph on disk, and the record of the graph in the manifest.

    Args:
        bundle: the bundle; its file of this graph and the record in its manifest are replaced.
        role: the graph.
        edit: changes the weight's array in place.
        weight: name of the weight; None takes the graph's largest float matrix.
        variant: name of the variant.
    """
    model = ir.load(bundle.graph_path(variant, role))
    matrices = {
        name: np.array(value.const_value.numpy())
        for name, value in model.graph.initializers.items()
        if value.const_value is not None and value.dtype is ir.DataType.FLOAT
    }
    name = weight or max(matrices, key=lambda key: matrices[key].size)
    edit(matrices[name])
    model.graph.initializers[name].const_value = ir.tensor(matrices[name], name=name)
    path = bundle.graph_path(variant, role)
    ir.save(model, path)
    content = path.read_bytes()
    record = FileRecord(hashlib.sha256(content).hexdigest(), len(content))
    bundle.manifest.files[bundle.graph(variant, role).file] = record
