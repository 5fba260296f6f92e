"""Tracing a decoder: the same program seen at two lengths."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import sympy
import torch
import torch.nn.modules.transformer as nn_transformer
from torch import Tensor, fx, nn
from torch.utils._sympy.interp import sympy_interp
from torch.utils._sympy.reference import PythonReferenceAnalysis

from hybrid_deploy.errors import UnsupportedModelError
from hybrid_deploy.export.trace.length_pairing import (
    pair_traces,
    share_equal_constants,
    share_equal_nodes,
)
from hybrid_deploy.export.trace.portable_ops import PortableForms
from hybrid_deploy.export.trace.refusal import first_line, recording_the_users_lines, users_line

_DECOMPOSED = (
    "aten.baddbmm.",
    "aten.bucketize.",
    "aten.einsum.",
    "aten.group_norm.",
    "aten.instance_norm.",
    "aten.mT.",
    "aten.type_as.",
    "aten.where.Scalar",
)
"""Operators that are split into simpler ones before the analysis."""


@dataclass(frozen=True)
class Capture:
    """A decoder `decode(tokens, *memory) -> logits` traced at length L and at length L - 1.

    A dimension that differs between the two traces runs along the tokens.

    Attributes:
        nodes: the program at length L, in topological order.
        shorter_trace: for every node, the same node at length L - 1.
        constants: parameters, buffers and literal tensors, by their placeholder.
        tokens: placeholder of the tokens, (batch, L) int64.
        memory: placeholders of what encode() returned.
        heads: the results, each (batch, L, width); the first are the logits.
        length: L, which becomes the capacity of the caches.
    """

    nodes: tuple[fx.Node, ...]
    shorter_trace: Mapping[fx.Node, fx.Node]
    constants: Mapping[fx.Node, Tensor]
    names: Mapping[fx.Node, str]
    tokens: fx.Node
    memory: tuple[fx.Node, ...]
    heads: tuple[fx.Node, ...]
    length: int

    @property
    def logits(self) -> fx.Node:
        """The scores of the tokens, (batch, L, vocabulary)."""
        return self.heads[0]

    @property
    def batch(self) -> sympy.Expr:
        """The symbol of the batch dimension."""
        return as_expr(self.tokens.meta["val"].shape[0])


def capture_decoder(
    decode: nn.Module, memory: tuple[Tensor, ...], dynamic: tuple[tuple[int, ...], ...], length: int
) -> Capture:
    """Traces `decode` at `length` and at `length - 1`.

    Args:
        decode: gives a tuple of heads, the logits first, from `forward(tokens, *memory)`; in eval
            mode.
        memory: example memory, batch of two or more.
        dynamic: for each memory tensor, its dynamic axes besides the batch, which is axis 0.
        length: the largest number of tokens that will ever be decoded.

    Raises:
        UnsupportedModelError: the model cannot be traced, or its program depends on the length.
    """
    long, short = (_trace(decode, memory, dynamic, size) for size in (length, length - 1))
    constants, names = _constants(long)
    shorter_trace = pair_traces(long.graph, short.graph)
    share_equal_constants(constants)
    shorter_trace = share_equal_nodes(shorter_trace)
    signature = long.graph_signature
    users = [n for n in shorter_trace if n.op == "placeholder" and n.name in signature.user_inputs]
    output: Any = next(n for n in shorter_trace if n.op == "output").args[0]
    return Capture(
        nodes=tuple(shorter_trace),
        shorter_trace=shorter_trace,
        constants=constants,
        names=names,
        tokens=users[0],
        memory=tuple(users[1:]),
        heads=tuple(output),
        length=length,
    )


def as_expr(size: int | torch.SymInt) -> sympy.Expr:
    """Returns a dimension as a sympy expression."""
    return size.node.expr if isinstance(size, torch.SymInt) else sympy.Integer(size)


def hint(size: int | torch.SymInt) -> int:
    """Returns the size that a dimension had in the example."""
    return int(size.node.hint) if isinstance(size, torch.SymInt) else int(size)


def evaluate(expr: sympy.Expr, sizes: Mapping[sympy.Symbol, Any]) -> Any:
    """Computes a dimension from the sizes of its symbols; symbolic sizes give a symbolic result."""
    return sympy_interp(PythonReferenceAnalysis, dict(sizes), expr)


@contextlib.contextmanager
def quiet_tracing() -> Iterator[None]:
    """Silences the notes that PyTorch's exporter writes about itself."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
            torch.no_grad(),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def _trace(
    decode: nn.Module, memory: tuple[Tensor, ...], dynamic: tuple[tuple[int, ...], ...], length: int
) -> torch.export.ExportedProgram:
    tokens = torch.ones(memory[0].shape[0], length, dtype=torch.int64)
    batch = torch.export.Dim("batch", min=1, max=1 << 20)
    free = torch.export.Dim.AUTO
    memory_shapes = tuple({0: batch} | {axis: free for axis in axes} for axes in dynamic)
    shapes = ({0: batch}, memory_shapes)
    with (
        quiet_tracing(),
        _static_causal_hint(),
        recording_the_users_lines(),
        PortableForms(),
    ):
        try:
            program = torch.export.export(
                decode, (tokens, *memory), dynamic_shapes=shapes, strict=False
            )
        except Exception as error:
            raise _untraceable(error) from error
    if not any(_needs_rewriting(node) for node in program.graph.nodes):
        return program
    table: Mapping[Any, Any] = torch.export.default_decompositions()
    chosen = {op: f for op, f in table.items() if any(x in str(op) for x in _DECOMPOSED)}
    with quiet_tracing(), _static_causal_hint():
        simple: torch.export.ExportedProgram = program.run_decompositions(chosen)
        return simple


def _untraceable(error: Exception) -> UnsupportedModelError:
    """Says why a decoder cannot be traced, and at which line of its own."""
    text = str(error)
    if "data-dependent" in text or "DataDependent" in type(error).__name__:
        reason = "Python control flow depends on the values of tokens or memory; use torch.where"
    else:
        reason = first_line(error)
    return UnsupportedModelError(f"{users_line(error)}decode() cannot be traced: {reason}")


def _needs_rewriting(node: fx.Node) -> bool:
    """Returns whether a node writes in place, or is to be split into simpler operators."""
    schema = getattr(node.target, "_schema", None)
    in_place = schema is not None and schema.is_mutable
    return in_place or any(name in str(node.target) for name in _DECOMPOSED)


@contextlib.contextmanager
def _static_causal_hint() -> Iterator[None]:
    """Keeps torch.nn from asking the values of a mask whether it is causal, while tracing.

    The mask itself is applied all the same, and verified by the analysis.
    """
    original = nn_transformer._detect_is_causal_mask

    def from_hint(
        mask: Tensor | None, is_causal: bool | None = None, size: int | None = None
    ) -> bool:
        return bool(is_causal)

    nn_transformer._detect_is_causal_mask = from_hint
    try:
        yield
    finally:
        nn_transformer._detect_is_causal_mask = original


def _constants(
    program: torch.export.ExportedProgram,
) -> tuple[dict[fx.Node, Tensor], dict[fx.Node, str]]:
    signature = program.graph_signature
    sources = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    constants, names = {}, {}
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in sources:
            name = sources[node.name]
            value = program.state_dict.get(name, program.constants.get(name))
            constants[node], names[node] = value.detach(), name
    return constants, names
