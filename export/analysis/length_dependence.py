"""Finds the line of a decoder whose result changes with the number of tokens.

The decoder is traced at both numbers of tokens. Either the programs differ, or a value that one of
them holds is not the beginning of the other's:

    arange(L) / L      at 5   0, 0.2, 0.4, 0.6, 0.8      at 4   0, 0.25, 0.5, 0.75
    x / L              at 5   div(x, 5)                  at 4   div(x, 4)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from hybrid_deploy.errors import UnsupportedModelError
from hybrid_deploy.export.analysis.rules.rule import call_operator
from hybrid_deploy.export.trace.capture import constants_of, example_size, trace_decoder
from hybrid_deploy.export.trace.length_pairing import pair_traces
from hybrid_deploy.export.trace.refusal import RunsDifferError, refuse

_REMEDY = (
    "a token cannot be decoded before the later ones are counted; let no value depend on "
    "tokens.shape[1] but by its size"
)
_TOLERANCE = 1e-5  # of the largest value: sums in another order differ by less
_PICKS_BY_LENGTH = {
    torch.ops.aten.slice.Tensor,
    torch.ops.aten.select.int,
    torch.ops.aten.narrow.default,
    torch.ops.aten.split.Tensor,
}
"""Operators whose numbers may be a number of tokens, which they only count."""


def length_dependence(
    decode: nn.Module, memory: tuple[Tensor, ...], lengths: tuple[int, int]
) -> UnsupportedModelError:
    """Returns the error for a decoder that returns other logits for another number of tokens.

    Args:
        decode: a module in eval mode whose `forward(tokens, *memory)` returns a tuple of heads.
        memory: example memory with a batch of two or more.
        lengths: two numbers of tokens, the smaller one first, at which the logits differ.
    """
    shorter, longer = (
        trace_decoder(decode, memory, ((),) * len(memory), length) for length in lengths
    )
    constants, _ = constants_of(longer)
    shorter_constants, _ = constants_of(shorter)
    try:
        pairs = pair_traces(longer.graph, shorter.graph)
    except UnsupportedModelError as error:
        return error
    values = _folded(pairs, constants, shorter_constants)
    for node, other in pairs.items():
        if node.op != "call_function" or node in values:
            continue
        for operand in node.all_input_nodes:
            if operand in values and not _begins_with(*values[operand]):
                source = _source(operand, values)
                return _changing(source, _what(*values[source]), lengths)
        if _numbers(node) != _numbers(other):
            return _changing(node, "a number of this operator", lengths)
    return RunsDifferError(
        f"decode() returns other logits for {lengths[0]} tokens than for {lengths[1]} that begin "
        f"with them: {_REMEDY}"
    )


def _changing(node: fx.Node, what: str, lengths: tuple[int, int]) -> UnsupportedModelError:
    why = f"{what} changes with the number of tokens, here {lengths[1]} and {lengths[0]}: {_REMEDY}"
    return RunsDifferError(refuse(node, why, ways_out=False))


def _folded(
    pairs: Mapping[fx.Node, fx.Node],
    constants: Mapping[fx.Node, Tensor],
    shorter_constants: Mapping[fx.Node, Tensor],
) -> dict[fx.Node, tuple[Any, Any]]:
    """Returns the values of all nodes that read neither tokens nor memory, at both lengths."""
    values: dict[fx.Node, tuple[Any, Any]] = {}
    shorter_values: dict[fx.Node, Any] = dict(shorter_constants)
    for node, other in pairs.items():
        if node in constants:
            values[node] = constants[node], shorter_values[other]
        if node.op != "call_function" or not isinstance(node.meta.get("val"), Tensor):
            continue
        known = [n for n in node.all_input_nodes if n in values or _is_size(n)]
        others = [n for n in other.all_input_nodes if n in shorter_values or _is_size(n)]
        if len(known) == len(node.all_input_nodes) and len(others) == len(other.all_input_nodes):
            longer_values = {n: pair[0] for n, pair in values.items()}
            value, shorter = _value(node, longer_values), _value(other, shorter_values)
            values[node], shorter_values[other] = (value, shorter), shorter
    return values


def _is_size(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), (int, torch.SymInt))


def _value(node: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
    def value(operand: fx.Node) -> Any:
        return values[operand] if operand in values else example_size(operand.meta["val"])

    with torch.no_grad():
        args, kwargs = fx.map_arg((node.args, node.kwargs), value)
        return call_operator(node, args, kwargs)


def _source(node: fx.Node, values: Mapping[fx.Node, tuple[Any, Any]]) -> fx.Node:
    """Returns the first node, from a differing one backwards, that makes the difference."""
    for operand in node.all_input_nodes:
        if operand in values and not _begins_with(*values[operand]):
            return _source(operand, values)
    return node


def _beginning(value: Tensor, shorter: Tensor) -> Tensor:
    """Returns the part of a value that has the shape of the shorter one."""
    for axis, size in enumerate(shorter.shape):
        value = value.narrow(axis, 0, min(size, value.shape[axis]))
    return value


def _begins_with(value: Tensor, shorter: Tensor) -> bool:
    """Returns whether a value begins with the one for fewer tokens, along every axis."""
    start = _beginning(value, shorter)
    if start.shape != shorter.shape or not start.is_floating_point():
        return torch.equal(start, shorter)
    largest = float(start[start.isfinite()].abs().max()) if start.isfinite().any() else 0.0
    return torch.allclose(start, shorter, rtol=0, atol=_TOLERANCE * largest, equal_nan=True)


def _what(value: Tensor, shorter: Tensor) -> str:
    """Returns what differs: the first row along the axis that follows the number of tokens."""
    differs = _beginning(value, shorter) != shorter
    axes = [axis for axis, size in enumerate(shorter.shape) if size != value.shape[axis]]
    return f"the value at row {int(differs.nonzero()[:, axes[0]].min())}" if axes else "this value"


def _numbers(node: fx.Node) -> list[Any]:
    """Returns the numbers that a node computes with, not those that are sizes or places."""
    if node.target in _PICKS_BY_LENGTH or not isinstance(node.meta.get("val"), Tensor):
        return []
    return [a for a in (*node.args, *node.kwargs.values()) if isinstance(a, (int, float))]
