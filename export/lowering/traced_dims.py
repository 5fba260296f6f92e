"""The varying dimensions of a traced module: what torch.export gets, and their names afterwards.

A size that varies in multiples of 8 is traced as 8 times a symbol, and gets its name back:

    torch.export   8 * Dim("width_blocks")      a value of shape 4*s62
    the graph      width                        a value of shape 4*(width//8)
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir as ir
import torch
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from hybrid_deploy.export.trace.capture import as_expr

_BLOCKS = "_blocks"


def traced_dims(
    names: Mapping[int, str], ranges: Mapping[str, Sequence[int]]
) -> dict[int, str | torch.export.Dim]:
    """Returns the dynamic shape of an input for torch.onnx: names, or multiples of a Dim.

    Args:
        names: names of the varying dimensions, by axis.
        ranges: declared sizes of each dimension, by name.
    """
    return {axis: _traced_dim(name, ranges.get(name, ())) for axis, name in names.items()}


def input_exprs(
    program: torch.export.ExportedProgram, dynamic: Mapping[str, Mapping[int, str]]
) -> tuple[dict[str, Any], ShapeEnv | None]:
    """Returns the varying dimensions in the symbols of a trace, and what the trace knows of them.

    Args:
        program: the traced program; its inputs have the order of `dynamic`.
        dynamic: for each input, the names of its varying dimensions by axis.
    """
    user_inputs = set(program.graph_signature.user_inputs)
    nodes = [n for n in program.graph.nodes if n.op == "placeholder" and n.name in user_inputs]
    exprs: dict[str, Any] = {}
    env = None
    for node, names in zip(nodes, dynamic.values(), strict=False):
        value = node.meta["val"]
        for axis, name in names.items():
            exprs.setdefault(name, as_expr(value.shape[axis]))
            if isinstance(value.shape[axis], torch.SymInt):
                env = value.shape[axis].node.shape_env
    return exprs, env


def name_multiples(model: ir.Model, exprs: Mapping[str, Any]) -> None:
    """Writes the shapes of a graph in the names of its dimensions, in place.

    Args:
        model: a graph as torch.onnx returns it.
        exprs: size of each dimension in the symbols of the trace.
    """
    texts: dict[str, str] = {}
    for name, expr in exprs.items():
        for symbol in getattr(expr, "free_symbols", ()):
            if expr != symbol:
                multiple = int(expr.coeff(symbol))
                texts[rf"{multiple}\*{re.escape(name + _BLOCKS)}"] = name
                texts[rf"\b{symbol}\b"] = f"({name}//{multiple})"
    if not texts:
        return
    for value in [*model.graph.inputs, *(v for n in model.graph.all_nodes() for v in n.outputs)]:
        if value.shape is not None:
            value.shape = ir.Shape([_renamed(dim, texts) for dim in value.shape])


def _traced_dim(name: str, sizes: Sequence[int]) -> str | torch.export.Dim:
    multiple = sizes[1] - sizes[0] if len(sizes) > 1 else 1
    if multiple == 1:
        return name
    blocks = torch.export.Dim(name + _BLOCKS, min=sizes[0] // multiple, max=sizes[-1] // multiple)
    return multiple * blocks


def _renamed(dim: int | ir.SymbolicDim, texts: Mapping[str, str]) -> int | str | None:
    if isinstance(dim, int) or dim.value is None:
        return dim if isinstance(dim, int) else None
    text = dim.value
    for pattern, replacement in texts.items():
        text = re.sub(pattern, replacement, text)
    return text
