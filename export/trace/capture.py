"""Traces a decoder with torch.export at two lengths.

    decode(tokens (B, L), memory (B, S, 64))  at L = 12  and at L = 11

    node              at 12           at 11           token axes
    embedding         (B, 12, 64)     (B, 11, 64)     1
    linear of memory  (B, S, 64)      (B, S, 64)      none
    scores            (B, 4, 12, 12)  (B, 4, 11, 11)  2 and 3

An axis whose size differs between the two traces runs along the tokens. No rule per operator is
needed to find it.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sympy
import torch
import torch.nn.modules.transformer as nn_transformer
from torch import Tensor, fx, nn
from torch.export.graph_signature import OutputKind
from torch.utils._sympy.interp import sympy_interp
from torch.utils._sympy.reference import PythonReferenceAnalysis

from hybrid_deploy.errors import UnsupportedModelError
from hybrid_deploy.export.trace.causal_hint import unknown_masks_are_not_causal
from hybrid_deploy.export.trace.length_pairing import (
    merge_equal_constants,
    merge_equal_nodes,
    pair_traces,
)
from hybrid_deploy.export.trace.portable_ops import PortableOps
from hybrid_deploy.export.trace.refusal import (
    record_user_lines,
    refuse,
    trace_failure,
    user_line,
)
from hybrid_deploy.export.trace.size_guards import (
    CHECKED_BATCHES,
    DeclaredSizes,
    GuardLog,
    fixing_line,
    record_guards,
)
from hybrid_deploy.export.trace.unsolved_guards import keep_unsolved_guards

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
"""Operators that are decomposed into simpler ones before the analysis."""

MemorySizes = Mapping[tuple[int, int], Sequence[int]]
"""Sizes of each dynamic axis of the memory, by the index of the tensor and the axis."""


@dataclass(frozen=True)
class Capture:
    """A decoder `decode(tokens, *memory) -> logits` traced at length L and at length L - 1.

    An axis whose size differs between the two traces runs along the tokens.

    Attributes:
        nodes: the nodes of the trace at length L, in topological order.
        shorter_trace: the node of the trace at length L - 1 that corresponds to each node.
        constants: the value of each placeholder of a parameter, buffer or literal tensor.
        names: the name of each of those placeholders in the user's model.
        tokens: placeholder of the tokens, (batch, L) int64.
        memory: placeholders of the tensors that encode() returns.
        heads: the output heads of decode(), each (batch, L, width); the first one is the logits.
        length: L; it becomes the capacity of the caches.
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
        """The node of the logits, (batch, L, vocabulary)."""
        return self.heads[0]

    @property
    def batch(self) -> sympy.Expr:
        """The symbol of the batch dimension."""
        return as_expr(self.tokens.meta["val"].shape[0])


def capture_decoder(
    decode: nn.Module,
    memory: tuple[Tensor, ...],
    dynamic: tuple[tuple[int, ...], ...],
    length: int,
    memory_sizes: Callable[[], MemorySizes] | None = None,
) -> Capture:
    """Traces `decode` at `length` and at `length - 1`.

    Args:
        decode: a module in eval mode whose `forward(tokens, *memory)` returns a tuple of heads,
            the logits first.
        memory: example memory with a batch of two or more.
        dynamic: for each memory tensor, its dynamic axes besides axis 0, the batch.
        length: the largest number of tokens of a sequence.
        memory_sizes: returns the sizes of the memory's dynamic axes for which decode() has to hold;
            None checks no Python branch on them.

    Raises:
        UnsupportedModelError: the model cannot be traced, its graph depends on the length, or a
            Python branch on a size takes another side at another size.
    """
    with record_guards() as log:
        longer = trace_decoder(decode, memory, dynamic, length, log)
    if memory_sizes is not None:
        _check_branches(log, longer, dynamic, memory_sizes)
    _refuse_unknown_sizes(longer)
    shorter = trace_decoder(decode, memory, dynamic, length - 1, log)
    constants, names = constants_of(longer)
    shorter_trace = pair_traces(longer.graph, shorter.graph)
    merge_equal_constants(constants)
    shorter_trace = merge_equal_nodes(shorter_trace)
    signature = longer.graph_signature
    inputs = [n for n in shorter_trace if n.op == "placeholder" and n.name in signature.user_inputs]
    output: Any = next(n for n in shorter_trace if n.op == "output").args[0]
    return Capture(
        nodes=tuple(shorter_trace),
        shorter_trace=shorter_trace,
        constants=constants,
        names=names,
        tokens=inputs[0],
        memory=tuple(inputs[1:]),
        heads=tuple(output),
        length=length,
    )


def as_expr(size: int | torch.SymInt | torch.SymFloat) -> sympy.Expr:
    """Returns a dimension, or a number computed from dimensions, as a sympy expression."""
    if isinstance(size, (torch.SymInt, torch.SymFloat)):
        return size.node.expr
    return sympy.Integer(size) if isinstance(size, int) else sympy.Float(size)


def example_size(size: int | torch.SymInt) -> int:
    """Returns the size that a dimension has in the example inputs."""
    return int(size.node.hint) if isinstance(size, torch.SymInt) else int(size)


def example_number(size: int | float | torch.SymInt | torch.SymFloat) -> int | float:
    """Returns a dimension, or a number computed from dimensions, in the example inputs."""
    if isinstance(size, (torch.SymInt, torch.SymFloat)):
        number: int | float = size.node.hint
        return number
    return size


def evaluate(expr: sympy.Expr, sizes: Mapping[sympy.Symbol, Any]) -> Any:
    """Computes a dimension from the sizes of its symbols; the result is symbolic if they are."""
    return sympy_interp(_SizeArithmetic, dict(sizes), expr)


class _SizeArithmetic(PythonReferenceAnalysis):
    """Python's arithmetic; PyTorch's own class returns an expression for the quotient of ints."""

    @staticmethod
    def int_truediv(a: Any, b: Any) -> Any:
        """Returns the quotient as a float."""
        return a / b


@contextlib.contextmanager
def quiet_tracing() -> Iterator[None]:
    """Silences the logs, warnings and prints of PyTorch's exporter."""
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


def trace_decoder(
    decode: nn.Module,
    memory: tuple[Tensor, ...],
    dynamic: tuple[tuple[int, ...], ...],
    length: int,
    log: GuardLog | None = None,
) -> torch.export.ExportedProgram:
    """Traces `decode` for a number of tokens.

    Args:
        decode: a module in eval mode whose `forward(tokens, *memory)` returns a tuple of heads.
        memory: example memory with a batch of two or more.
        dynamic: for each memory tensor, its dynamic axes besides axis 0, the batch.
        length: the number of tokens.
        log: the guards of the trace, which name the line that fixed a size; None if not recorded.

    Raises:
        UnsupportedModelError: the model cannot be traced.
    """
    tokens = torch.ones(memory[0].shape[0], length, dtype=torch.int64)
    batch = torch.export.Dim("batch", min=1, max=1 << 20)
    dynamic_axis = torch.export.Dim.AUTO
    memory_shapes = tuple({0: batch} | {axis: dynamic_axis for axis in axes} for axes in dynamic)
    shapes = ({0: batch}, memory_shapes)
    with (
        quiet_tracing(),
        _static_causal_hint(),
        record_user_lines(),
        PortableOps(),
        keep_unsolved_guards(),
        unknown_masks_are_not_causal(),
    ):
        try:
            program = torch.export.export(
                decode, (tokens, *memory), dynamic_shapes=shapes, strict=False
            )
        except Exception as error:
            raise _untraceable(error, log or GuardLog([])) from error
    _refuse_writes(program)
    _refuse_generators(program)
    if not any(_needs_decomposition(node) for node in program.graph.nodes):
        return program
    table: Mapping[Any, Any] = torch.export.default_decompositions()
    decompositions = {
        operator: function
        for operator, function in table.items()
        if any(name in str(operator) for name in _DECOMPOSED)
    }
    with quiet_tracing(), _static_causal_hint():
        decomposed: torch.export.ExportedProgram = program.run_decompositions(decompositions)
        return decomposed


def _refuse_writes(program: torch.export.ExportedProgram) -> None:
    """Refuses a decode() that writes into its arguments or into buffers."""
    kinds = (OutputKind.BUFFER_MUTATION, OutputKind.USER_INPUT_MUTATION)
    for spec in program.graph_signature.output_specs:
        if spec.kind in kinds:
            name = str(spec.target).removeprefix("model.").replace("memory_", "memory ")
            raise UnsupportedModelError(
                f"decode() changes {name} in place, and graphs change nothing that they read; "
                "compute a new tensor (x + 1 in place of x.add_(1)), and keep no state in buffers"
            )


def _refuse_generators(program: torch.export.ExportedProgram) -> None:
    """Refuses random numbers of a torch.Generator, which has no place in a graph."""
    for node in program.graph.nodes:
        if node.kwargs.get("generator") is not None:
            raise refuse(
                node,
                "it draws random numbers; draw them in __init__ and keep them as a buffer",
                ways_out=False,
            )


def _refuse_unknown_sizes(program: torch.export.ExportedProgram) -> None:
    """Refuses sizes and numbers that only the values of a run tell."""
    for node in program.graph.nodes:
        value = node.meta.get("val")
        sizes = value.shape if isinstance(value, Tensor) else (value,)
        if any(isinstance(s, torch.SymInt) and s.node.hint is None for s in sizes):
            why = "a size or a Python number depends on the values of this operator's operands"
            raise refuse(node, f"{why}; use torch.where or a mask, which keep sizes")


def _check_branches(
    log: GuardLog,
    program: torch.export.ExportedProgram,
    dynamic: tuple[tuple[int, ...], ...],
    memory_sizes: Callable[[], MemorySizes],
) -> None:
    """Refuses Python branches of decode() on the batch or on a size of the memory."""
    branches = GuardLog([guard for guard in log.guards if guard.is_branch])
    inputs = set(program.graph_signature.user_inputs)
    nodes = [n for n in program.graph.nodes if n.op == "placeholder" and n.name in inputs]
    tokens, *memory = (node.meta["val"] for node in nodes)
    exprs = {"batch": as_expr(tokens.shape[0])} | {
        _memory_size(index, axis): as_expr(value.shape[axis])
        for index, (value, axes) in enumerate(zip(memory, dynamic, strict=True))
        for axis in axes
    }
    if branches.guards or any(expr.is_Integer for expr in exprs.values()):
        sizes = {_memory_size(*key): sizes for key, sizes in memory_sizes().items()}
        declared = DeclaredSizes({"batch": CHECKED_BATCHES, **sizes})
        declared.check(branches, tokens.shape[0].node.shape_env, exprs, "decode()")


def _memory_size(index: int, axis: int) -> str:
    """Returns how a message calls a size of the memory."""
    return f"memory.shape[{axis}]" if index == 0 else f"memory_{index}.shape[{axis}]"


def _untraceable(error: Exception, log: GuardLog) -> UnsupportedModelError:
    """Returns the error for a failed trace; it names the cause and the user's line."""
    line, reason = user_line(error), trace_failure(error)
    if reason.startswith("Constraints violated"):
        line = line or fixing_line(log)
        reason = (
            "it takes one batch size, or one size of the memory, only: a Python branch on a size, "
            "a size used as a Python number as in len(x), or a tensor kept from an earlier run "
            "fixes it"
        )
    return UnsupportedModelError(f"{line}decode() cannot be traced: {reason}")


def _needs_decomposition(node: fx.Node) -> bool:
    """Returns whether a node writes in place or has to be decomposed."""
    schema = getattr(node.target, "_schema", None)
    in_place = schema is not None and schema.is_mutable
    return in_place or any(name in str(node.target) for name in _DECOMPOSED)


@contextlib.contextmanager
def _static_causal_hint() -> Iterator[None]:
    """Keeps torch.nn from reading a mask's values to detect a causal mask, which fails in a trace.

    The mask itself stays in the graph, and the analysis verifies its values.
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


def constants_of(
    program: torch.export.ExportedProgram,
) -> tuple[dict[fx.Node, Tensor], dict[fx.Node, str]]:
    """Returns the value of each placeholder of a constant, and its name in the user's model."""
    signature = program.graph_signature
    names_of_placeholders = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    constants, names = {}, {}
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in names_of_placeholders:
            name = names_of_placeholders[node.name]
            value = program.state_dict.get(name, program.constants.get(name))
            constants[node], names[node] = value.detach(), name
    return constants, names
