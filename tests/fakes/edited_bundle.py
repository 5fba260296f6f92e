"""Bundles with edited weights, so that the cost of their quantization is known beforehand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from hybrid_deploy.bundle.bundle import Bundle, open_bundle, staged_variant
from hybrid_deploy.onnx_graphs.beam_step import add_beam_step
from hybrid_deploy.onnx_graphs.files import load_graphs, save_graphs

Edit = Callable[[str, NDArray[Any]], None]
"""Takes the name of a weight and its array, and changes the array in place."""


def with_edited_weights(bundle: Bundle, edit: Edit) -> Bundle:
    """Edits the weights of the float variant on disk and returns the new bundle."""
    graphs = load_graphs(bundle, "fp32")
    for model in graphs.values():
        for value in model.graph.initializers.values():
            if value.dtype is ir.DataType.FLOAT and value.const_value is not None:
                array = np.array(value.const_value.numpy())
                edit(str(value.name), array)
                value.const_value = ir.tensor(array, name=value.name)
    add_beam_step(graphs)
    with staged_variant(bundle, "fp32", force=True) as staged:
        specs = save_graphs(graphs, staged.folder, staged.home, bundle.manifest.dims)
        staged.variant = msgspec.structs.replace(
            bundle.variant("fp32"), **{role.value: spec for role, spec in specs.items()}
        )
    return open_bundle(bundle.folder)


def with_sensitive_head(bundle: Bundle) -> Bundle:
    """Returns a bundle whose head fails with 8-bit weights and works in float.

    One row of the head's weight is so large that all other weights are rounded to zero when they
    share its scale. The activation of that row is zero, so the row has no effect in float.
    """

    def edit(name: str, array: NDArray[Any]) -> None:
        if name == "head.weight_transposed":
            array[0] = 1e4
        if name in ("decoder.layers.0.norm3.weight", "decoder.layers.0.norm3.bias"):
            array[0] = 0

    return with_edited_weights(bundle, edit)


def with_varied_tokens(bundle: Bundle) -> Bundle:
    """Returns a bundle that decodes various tokens: its biases are 0, its matrices are doubled."""

    def edit(name: str, array: NDArray[Any]) -> None:
        if name.endswith("bias"):
            array[...] = 0
        elif array.ndim == 2 and name != "flatten":  # `flatten` is the table of positions
            array *= 2

    return with_edited_weights(bundle, edit)


def with_close_logits(bundle: Bundle) -> Bundle:
    """Returns a bundle whose logits are so large that they are equal in float16."""

    def edit(name: str, array: NDArray[Any]) -> None:
        if name == "head.bias":
            array += 3e4

    return with_edited_weights(bundle, edit)
