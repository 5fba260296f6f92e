"""The sizes of the memory that the declared sizes of the inputs lead to."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hybrid_deploy.errors import UnsupportedModelError
from hybrid_deploy.export.model.dynamic_axes import DynamicAxes
from hybrid_deploy.export.model.interface import EncodePart
from hybrid_deploy.export.trace.capture import MemorySizes, as_expr, evaluate, quiet_tracing
from hybrid_deploy.export.trace.portable_ops import PortableOps
from hybrid_deploy.export.trace.refusal import first_line, user_line

_MOST_SIZES = 1024
_MOST_SIZES_OF_SEVERAL = 48  # of each axis, where several vary


def memory_sizes(
    model: nn.Module, inputs: Mapping[str, Tensor], dynamic: DynamicAxes
) -> MemorySizes:
    """Returns the sizes of the memory's varying axes, computed for every size of the inputs.

    encode() is traced once, and the sizes follow from the expressions of its output's shape.

    Args:
        model: module with `encode`, in eval mode.
        inputs: example inputs of the encoder by name, batch first.
        dynamic: varying axes of the inputs.

    Returns:
        The sizes in ascending order, by the index of the memory tensor and the axis.

    Raises:
        UnsupportedModelError: encode() cannot be traced.
    """
    auto = torch.export.Dim.AUTO
    shapes = tuple({0: auto} | dict.fromkeys(dynamic.get(name, {}), auto) for name in inputs)
    with quiet_tracing(), PortableOps():
        try:
            program = torch.export.export(
                EncodePart(model), tuple(inputs.values()), dynamic_shapes=(shapes,), strict=False
            )
        except Exception as error:
            raise UnsupportedModelError(
                f"{user_line(error)}encode() cannot be traced: {first_line(error)}"
            ) from error
    names = set(program.graph_signature.user_inputs)
    nodes = [n for n in program.graph.nodes if n.op == "placeholder" and n.name in names]
    most = _MOST_SIZES if sum(map(len, dynamic.values())) < 2 else _MOST_SIZES_OF_SEVERAL
    ranges = {
        as_expr(node.meta["val"].shape[axis]): _sampled(varying.sizes.sizes, most)
        for node, axes in zip(nodes, (dynamic.get(name, {}) for name in inputs), strict=True)
        for axis, varying in axes.items()
    }
    (output,) = (n for n in program.graph.nodes if n.op == "output")
    return {
        (index, axis): _values(as_expr(size), ranges)
        for index, tensor in enumerate(output.args[0])
        for axis, size in enumerate(tensor.meta["val"].shape)
        if axis
    }


def _values(expr: Any, ranges: Mapping[Any, Sequence[int]]) -> Sequence[int]:
    """Returns the values of a size for all sizes of its symbols."""
    symbols = list(expr.free_symbols)
    combinations = itertools.product(*(ranges.get(symbol, (2,)) for symbol in symbols))
    return sorted(
        {int(evaluate(expr, dict(zip(symbols, sizes, strict=True)))) for sizes in combinations}
    )


def _sampled(sizes: Sequence[int], most: int) -> Sequence[int]:
    """Returns the sizes; of a long range, some at uneven distances and its ends."""
    if len(sizes) <= most:
        return sizes
    return sorted({sizes[i * i * (len(sizes) - 1) // most**2] for i in range(most + 1)})
