"""Pairs the nodes of a decoder's traces at two lengths, and merges nodes that are equal in both.

torch.export leaves out a slice that keeps the whole axis. A position table with exactly L rows is
therefore sliced in the trace at L - 1 only; pairing inserts the slice into the trace at L:

    decode: rows + positions[:, :tokens.shape[1]]          positions: (1, 12, 64)

    trace at 11   slice(positions, 1, 0, 11)  (1, 11, 64) ->  add(rows, slice)
    trace at 12   before:  positions          (1, 12, 64) ->  add(rows, positions)
                  after:   slice(positions, 1, 0, 12)     ->  add(rows, slice)

Merging then leaves one node where the model computes the same value twice, as each layer's mask:

    before   m1 = eq(tril, 0); m2 = eq(tril, 0); f(m1); g(m2)
    after    m1 = eq(tril, 0); f(m1); g(m1)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from hybrid_deploy.export.trace.refusal import RunsDifferError, refuse

_SLICE = torch.ops.aten.slice.Tensor
_RANDOM = torch.Tag.nondeterministic_seeded


def pair_traces(longer: fx.Graph, shorter: fx.Graph) -> dict[fx.Node, fx.Node]:
    """Maps every node of the longer trace to the corresponding node of the shorter trace.

    Slices that only the shorter trace has are inserted into the longer one, in place.

    Args:
        longer: graph of decode() at length L.
        shorter: graph of decode() at length L - 1.

    Returns:
        The shorter trace's node for each node of the longer trace, in topological order.

    Raises:
        UnsupportedModelError: the graphs differ in anything else than such slices.
    """
    for graph in (longer, shorter):
        _remove_aliases(graph)
    shorter_trace: dict[fx.Node, fx.Node] = {}
    # For each slice that only the shorter trace has: the value before it and any such slice.
    sliced_values: dict[fx.Node, fx.Node] = {}
    longer_nodes = list(longer.nodes)
    index = 0
    for node in shorter.nodes:
        candidate = longer_nodes[index] if index < len(longer_nodes) else None
        if candidate is not None and _corresponds(candidate, node, shorter_trace, sliced_values):
            shorter_trace[candidate], index = node, index + 1
        elif node.target is _SLICE and candidate is not None:
            shorter_trace[_insert_slice(shorter_trace, node, candidate)] = node
            sliced_values[node] = sliced_values.get(node.args[0], node.args[0])
        else:
            remaining = longer_nodes[index:]
            raise _different_programs(_only_in_one(node, remaining) or longer_nodes[-1])
    if index < len(longer_nodes):
        raise _different_programs(longer_nodes[index])
    _redirect_to_slices(shorter_trace)
    return {node: shorter_trace[node] for node in longer.nodes}


def merge_equal_nodes(shorter_trace: dict[fx.Node, fx.Node]) -> dict[fx.Node, fx.Node]:
    """Redirects all uses of nodes that are equal at both lengths to the first of them.

    Nodes are equal if their operators and their operands are. Random operators are never merged.

    Args:
        shorter_trace: the pairs of `pair_traces`; the graph of its keys is changed in place.

    Returns:
        The pairs whose node is still in use.
    """
    first_nodes: dict[object, fx.Node] = {}
    remaining: dict[fx.Node, fx.Node] = {}
    merged_shorter: dict[fx.Node, fx.Node] = {}
    for node, shorter in shorter_trace.items():
        if node.op != "call_function" or _RANDOM in getattr(node.target, "tags", ()):
            remaining[node] = shorter
            continue
        shorter_operands = fx.map_arg(
            (shorter.args, shorter.kwargs), lambda n: merged_shorter.get(n, n)
        )
        key = _hashable((node.target, node.args, node.kwargs, shorter_operands))
        first = first_nodes.setdefault(key, node)
        if first is node:
            remaining[node] = shorter
        else:
            merged_shorter[shorter] = merged_shorter.get(remaining[first], remaining[first])
            node.replace_all_uses_with(first)
    return remaining


def merge_equal_constants(constants: Mapping[fx.Node, Tensor]) -> None:
    """Redirects all uses of placeholders of one tensor, as of tied weights, to the first of them.

    Args:
        constants: the tensor of each placeholder; two tensors are one if address, shape, strides
            and dtype are equal.
    """
    first_nodes: dict[object, fx.Node] = {}
    for node, value in constants.items():
        key = (value.data_ptr(), value.shape, value.stride(), value.dtype)
        first = first_nodes.setdefault(key, node)
        if first is not node and value.numel():
            node.replace_all_uses_with(first)


def _operator(node: fx.Node) -> object:
    return node.target if node.op == "call_function" else node.op


def _remove_aliases(graph: fx.Graph) -> None:
    """Removes alias nodes, which a trace may hold in place of a slice that keeps the whole axis."""
    for node in list(graph.nodes):
        if node.target is torch.ops.aten.alias.default:
            node.replace_all_uses_with(node.all_input_nodes[0])
            graph.erase_node(node)


def _corresponds(
    longer: fx.Node,
    shorter: fx.Node,
    shorter_trace: dict[fx.Node, fx.Node],
    sliced_values: dict[fx.Node, fx.Node],
) -> bool:
    if _operator(longer) != _operator(shorter):
        return False
    if longer.target is not _SLICE:
        return True
    source: object = shorter.args[0]
    assert isinstance(longer.args[0], fx.Node) and isinstance(source, fx.Node)
    same_source = shorter_trace[longer.args[0]] in (source, sliced_values.get(source))
    return same_source and longer.args[1:2] == shorter.args[1:2]


def _insert_slice(
    shorter_trace: dict[fx.Node, fx.Node], shorter: fx.Node, before: fx.Node
) -> fx.Node:
    """Inserts a slice that only the shorter trace has into the longer one, before a node."""
    source = next(node for node, paired in shorter_trace.items() if paired is shorter.args[0])
    axis = shorter.args[1] if len(shorter.args) > 1 else 0
    assert isinstance(axis, int)
    size = source.meta["val"].shape[axis]
    with before.graph.inserting_before(before):
        node = before.graph.call_function(_SLICE, (source, axis, 0, size))
    node.meta = {**shorter.meta, "val": source.meta["val"]}
    return node


def _redirect_to_slices(shorter_trace: dict[fx.Node, fx.Node]) -> None:
    """Makes nodes of the longer trace read the inserted slices where the shorter ones do."""
    longer_trace = {shorter: node for node, shorter in shorter_trace.items()}
    for node, shorter in shorter_trace.items():
        if not any(n.target is _SLICE for n in shorter.all_input_nodes):
            continue
        operands = list(_operand_nodes(node.args))
        shorter_operands = list(_operand_nodes(shorter.args))
        for operand, shorter_operand in zip(operands, shorter_operands, strict=False):
            expected = longer_trace[shorter_operand]
            if expected is not operand:
                node.replace_input_with(operand, expected)


def _operand_nodes(args: Any) -> list[fx.Node]:
    """Returns the nodes among (nested) arguments, in order and with repetitions."""
    nodes: list[fx.Node] = []

    def append(node: fx.Node) -> fx.Node:
        nodes.append(node)
        return node

    fx.map_arg(args, append)
    return nodes


def _only_in_one(shorter: fx.Node, longer: list[fx.Node]) -> fx.Node | None:
    """Returns which of the two next nodes the other trace lacks; None if the longer one has ended.

    Args:
        shorter: next node of the shorter trace.
        longer: remaining nodes of the longer trace.
    """
    if not longer:
        return None
    after, next_place = shorter.next, _place(longer[0])
    while after.op != "root":
        if _place(after) == next_place:
            return shorter
        after = after.next
    return longer[0]


def _place(node: fx.Node) -> tuple[object, object]:
    return _operator(node), node.meta.get("stack_trace")


def _hashable(value: Any) -> object:
    if isinstance(value, (tuple, list)):
        return (type(value).__name__, *(_hashable(v) for v in value))
    if isinstance(value, dict):
        return tuple((key, _hashable(v)) for key, v in value.items())
    if isinstance(value, slice):
        return ("slice", _hashable(value.start), _hashable(value.stop), _hashable(value.step))
    return (
        (type(value).__name__, str(value))
        if isinstance(value, float)
        else (type(value).__name__, value)
    )


def _different_programs(node: fx.Node) -> RunsDifferError:
    return RunsDifferError(
        refuse(
            _user_of(node),
            "decode() runs a different program for a different number of tokens: Python control "
            "flow, or a loop, depends on the length; make it independent of tokens.shape[1], as a "
            "mask made by torch.arange or torch.ones(n, n).tril() is",
            ways_out=False,
        )
    )


def _user_of(node: fx.Node) -> fx.Node:
    """Returns a node; in place of an input, the node that reads the last tensor of the program.

    Traces that hold different numbers of tensors are told apart where the inputs begin.
    """
    if node.op != "placeholder":
        return node
    readers = [next(iter(n.users), node) for n in node.graph.nodes if _is_literal(n)]
    return readers[-1] if readers else node


def _is_literal(node: fx.Node) -> bool:
    """Returns whether a node is a tensor of the code itself: no weight, buffer or input."""
    return node.op == "placeholder" and node.name.startswith("c_")
