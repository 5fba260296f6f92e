"""The same program at two lengths: which node is which, and no node twice."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from hybrid_deploy.errors import UnsupportedModelError
from hybrid_deploy.export.trace.refusal import refuse

_SLICE = torch.ops.aten.slice.Tensor
_RANDOM = torch.Tag.nondeterministic_seeded


def pair_traces(long: fx.Graph, short: fx.Graph) -> dict[fx.Node, fx.Node]:
    """Finds for every node of the long program the same node of the short one.

    A slice that takes everything is left out of a trace. It is put back here, where a table is as
    long as the long program but not as the short one.

    Raises:
        UnsupportedModelError: the programs differ in more than that.
    """
    for graph in (long, short):
        _remove_aliases(graph)
    shorter_trace: dict[fx.Node, fx.Node] = {}
    put_back: dict[fx.Node, fx.Node] = {}  # of the short program, with their sources
    longs = list(long.nodes)
    index = 0
    for node in short.nodes:
        found = longs[index] if index < len(longs) else None
        if found is not None and _match(found, node, shorter_trace, put_back):
            shorter_trace[found], index = node, index + 1
        elif node.target is _SLICE and found is not None:
            shorter_trace[_put_back(shorter_trace, node, found)] = node
            put_back[node] = put_back.get(node.args[0], node.args[0])
        else:
            raise _different(found or longs[-1])
    if index < len(longs):
        raise _different(longs[index])
    _use_slices(shorter_trace)
    return {node: shorter_trace[node] for node in long.nodes}


def share_equal_nodes(shorter_trace: dict[fx.Node, fx.Node]) -> dict[fx.Node, fx.Node]:
    """Makes nodes that compute the same, at both lengths, one node."""
    known: dict[object, fx.Node] = {}
    shared: dict[fx.Node, fx.Node] = {}
    originals: dict[fx.Node, fx.Node] = {}
    for node, twin in shorter_trace.items():
        if node.op != "call_function" or _RANDOM in getattr(node.target, "tags", ()):
            shared[node] = twin
            continue
        other = fx.map_arg((twin.args, twin.kwargs), lambda n: originals.get(n, n))
        key = _hashable((node.target, node.args, node.kwargs, other))
        first = known.setdefault(key, node)
        if first is node:
            shared[node] = twin
        else:
            originals[twin] = originals.get(shared[first], shared[first])
            node.replace_all_uses_with(first)
    return shared


def share_equal_constants(constants: Mapping[fx.Node, Tensor]) -> None:
    """Lets one placeholder stand for all that hold the same parameter, as tied weights do."""
    known: dict[object, fx.Node] = {}
    for node, value in constants.items():
        first = known.setdefault((value.data_ptr(), value.shape, value.stride(), value.dtype), node)
        if first is not node and value.numel():
            node.replace_all_uses_with(first)


def _operator(node: fx.Node) -> object:
    return node.target if node.op == "call_function" else node.op


def _remove_aliases(graph: fx.Graph) -> None:
    """Leaves out the copies that slices which take everything may leave behind."""
    for node in list(graph.nodes):
        if node.target is torch.ops.aten.alias.default:
            node.replace_all_uses_with(node.all_input_nodes[0])
            graph.erase_node(node)


def _match(
    long: fx.Node,
    short: fx.Node,
    shorter_trace: dict[fx.Node, fx.Node],
    put_back: dict[fx.Node, fx.Node],
) -> bool:
    if _operator(long) != _operator(short):
        return False
    if long.target is not _SLICE:
        return True
    source: object = short.args[0]
    assert isinstance(long.args[0], fx.Node) and isinstance(source, fx.Node)
    same_source = shorter_trace[long.args[0]] in (source, put_back.get(source))
    return same_source and long.args[1:2] == short.args[1:2]


def _put_back(shorter_trace: dict[fx.Node, fx.Node], short: fx.Node, before: fx.Node) -> fx.Node:
    """Puts into the long program a slice that only the short one has."""
    source = next(node for node, twin in shorter_trace.items() if twin is short.args[0])
    axis = short.args[1] if len(short.args) > 1 else 0
    assert isinstance(axis, int)
    size = source.meta["val"].shape[axis]
    with before.graph.inserting_before(before):
        node = before.graph.call_function(_SLICE, (source, axis, 0, size))
    node.meta = {**short.meta, "val": source.meta["val"]}
    return node


def _use_slices(shorter_trace: dict[fx.Node, fx.Node]) -> None:
    """Returns the users of a slice that was put back the slice instead of its source."""
    originals = {twin: node for node, twin in shorter_trace.items()}
    for node, twin in shorter_trace.items():
        if not any(n.target is _SLICE for n in twin.all_input_nodes):
            continue
        longs, shorts = list(_flat(node.args)), list(_flat(twin.args))
        for long, short in zip(longs, shorts, strict=False):
            wanted = originals[short]
            if wanted is not long:
                node.replace_input_with(long, wanted)


def _flat(args: Any) -> list[fx.Node]:
    """Lists the nodes among arguments, in order, one that stands twice twice."""
    found: list[fx.Node] = []

    def note(node: fx.Node) -> fx.Node:
        found.append(node)
        return node

    fx.map_arg(args, note)
    return found


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


def _different(node: fx.Node) -> UnsupportedModelError:
    return refuse(
        node,
        "decode() runs a different program for a different number of tokens: Python control flow "
        "depends on the length; make it independent of tokens.shape[1]",
        ways_out=False,
    )
