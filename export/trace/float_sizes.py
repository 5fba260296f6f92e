"""Checks sizes that a model computes with floats, which a graph computes in float32.

Python and PyTorch compute them in float64, and a product that lies beside a whole number is rounded
to the other side of it:

    trunc(width * 0.7)      width 80    width 90
    Python, float64         56          62          90 * 0.7 is 62.99999999999999
    the graph, float32      56          63
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from onnxscript import opset18
from torch import fx
from torch.fx.experimental.symbolic_shapes import SYMPY_INTERP
from torch.utils._sympy.functions import IntTrueDiv, ToFloat

from hybrid_deploy.export.trace.capture import as_expr
from hybrid_deploy.export.trace.refusal import refuse
from hybrid_deploy.export.trace.size_guards import DeclaredSizes, Symbol, compiled

_INT64 = 7


def _of_float(function: Callable[[float], int]) -> Callable[[Any], int]:
    return lambda number: function(float(number))


_WHOLE = {name: _of_float(getattr(math, name)) for name in ("trunc", "floor", "ceil")}
_IN_FLOAT32 = {
    **SYMPY_INTERP,
    "math": SimpleNamespace(**{**vars(math), **_WHOLE}),
    "torch": SimpleNamespace(sym_float=np.float32),
}
"""Names of printed expressions, whose sizes are given in float32."""


def check_float_sizes(
    program: torch.export.ExportedProgram, declared: DeclaredSizes, exprs: Mapping[str, Any]
) -> None:
    """Checks that every size of a traced program is the same in float32, at the declared sizes.

    Args:
        program: the traced program.
        declared: the sizes for which it has to hold.
        exprs: size of each varying dimension in the symbols of the trace.

    Raises:
        UnsupportedModelError: a size differs; the message names the model's line.
    """
    symbols = declared.symbols_of(exprs)
    checked: set[Any] = set()
    for node in program.graph.nodes:
        for expr in set(_sizes(node)) - checked:
            checked.add(expr)
            if expr.has(IntTrueDiv, ToFloat) and symbols.keys() >= expr.free_symbols:
                _check(node, expr, symbols)


def float_size_translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Returns the ONNX translations of operators on sizes that torch.onnx lacks."""
    return {round: _round}


def _round(number: Any, digits: None = None) -> Any:
    """Both round a half to the even number."""
    return opset18.Cast(opset18.Round(number), to=_INT64)


def _sizes(node: fx.Node) -> Iterator[Any]:
    """Yields the symbolic sizes in a node's shape, or its value if a tensor is computed from it."""
    value = node.meta.get("val")
    if not any(isinstance(user.meta.get("val"), torch.Tensor) for user in node.users):
        value = value if isinstance(value, torch.Tensor) else None
    for part in value if isinstance(value, (tuple, list)) else (value,):
        sizes = part.shape if isinstance(part, torch.Tensor) else (part,)
        yield from (as_expr(size) for size in sizes if isinstance(size, torch.SymInt))


def _check(node: fx.Node, expr: Any, symbols: Mapping[Any, Symbol]) -> None:
    free = sorted(expr.free_symbols, key=str)
    compute, compute_in_graph = compiled(expr, free), compiled(expr, free, _IN_FLOAT32)
    for sizes in itertools.product(*(symbols[s].sampled(len(free)) for s in free)):
        expected, in_graph = int(compute(*sizes)), int(compute_in_graph(*map(np.float32, sizes)))
        if expected != in_graph:
            given = ", ".join(symbols[s].text(n) for s, n in zip(free, sizes, strict=True))
            raise refuse(
                node,
                f"a size is computed with floats, and the graph's float32 rounds it otherwise: at "
                f"{given} it gets {in_graph} in place of {expected}; compute it with integers, as "
                "width * 7 // 10, or give an interpolation such a size",
                ways_out=False,
            )
