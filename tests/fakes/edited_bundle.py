"""A bundle with other weights: what its quantization costs is then known beforehand."""

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
"""Told the name of a weight, changes its numbers in place."""


def edited(bundle: Bundle, edit: Edit) -> Bundle:
    """Returns the bundle with other weights in its float variant, on disk too."""
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


def with_sore_head(bundle: Bundle) -> Bundle:
    """Returns a bundle that loses its head with 8 bits, and nothing in float.

    One row of the head's weight dwarfs the others, which are zero beside it once they share a
    scale. Its activation is zero, so that it counts for nothing.
    """

    def edit(name: str, array: NDArray[Any]) -> None:
        if name == "head.weight_transposed":
            array[0] = 1e4
        if name in ("decoder.layers.0.norm3.weight", "decoder.layers.0.norm3.bias"):
            array[0] = 0

    return edited(bundle, edit)


def lively(bundle: Bundle) -> Bundle:
    """Returns a bundle that reads various tokens: no biases, and larger matrices."""

    def edit(name: str, array: NDArray[Any]) -> None:
        if name.endswith("bias"):
            array[...] = 0
        elif array.ndim == 2 and name != "flatten":  # which is the table of positions
            array *= 2

    return edited(bundle, edit)


def with_close_logits(bundle: Bundle) -> Bundle:
    """Returns a bundle whose logits are so large that float16 cannot tell them apart."""

    def edit(name: str, array: NDArray[Any]) -> None:
        if name == "head.bias":
            array += 3e4

    return edited(bundle, edit)
