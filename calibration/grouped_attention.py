"""Attention of the decoder's own tokens as ONNX Runtime's GroupQueryAttention.

It takes the packed projection of a row as it is, writes key and value into the caches and attends
to what is filled, where the portable form needs a dozen operators between projection and result,
and compares every position of the cache with the row's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from hybrid_deploy.calibration.constants import constant, name_value
from hybrid_deploy.calibration.row_slices import as_rows, row_slice, source_of
from hybrid_deploy.contract import POSITION

DOMAIN = "com.microsoft"
_LENGTHS, _LONGEST = "key_lengths", "longest_keys"


@dataclass(frozen=True)
class _SelfAttention:
    """One attention over cached tokens.

    Attributes:
        node: the Attention.
        packed: (batch, 3 * width), query, key and value of the new token.
        writes: what writes key and value into the caches.
        rows: (batch, width), its result in rows.
    """

    node: ir.Node
    packed: ir.Value
    writes: tuple[ir.Node, ir.Node]
    rows: ir.Value


def group_self_attention(step: ir.Model) -> int:
    """Rewrites a step graph in place.

    Returns:
        How many attentions were rewritten; one whose mask, scores or projection are of another
        form is left as it is.
    """
    graph = step.graph
    position = next((value for value in graph.inputs if value.name == POSITION), None)
    nodes = [node for node in graph if is_attention(node)]
    found = [one for node in nodes if position and (one := _self_attention(node, position))]
    if position is None or not found:
        return 0
    lengths = _lengths(graph, position)
    for one in found:
        _rewrite(graph, one, lengths)
    graph.opset_imports[DOMAIN] = 1
    return len(found)


def is_attention(node: ir.Node) -> bool:
    """Tells whether a node is an Attention with nothing between scores and softmax but a mask."""
    if node.op_type != "Attention" or node.domain or len(node.outputs) != 1:
        return False
    capped = "softcap" in node.attributes and node.attributes["softcap"].as_float() != 0
    cached = any(value is not None for value in node.inputs[4:])
    return not (capped or cached or node.attributes.get_int("is_causal", False))


def attributes_of(node: ir.Node, heads: int, key_heads: int) -> dict[str, int | float | str]:
    """Gives the attributes of the GroupQueryAttention that replaces an Attention."""
    scale = node.attributes.get("scale")
    counts: dict[str, int | float | str] = {
        "num_heads": heads,
        "kv_num_heads": key_heads,
    }
    return counts if scale is None else counts | {"scale": scale.as_float()}


def grouped(
    graph: ir.Graph,
    node: ir.Node,
    rows: ir.Value,
    inputs: list[ir.Value | None],
    attributes: Mapping[str, int | float | str],
) -> tuple[ir.Value, list[ir.Value]]:
    """Puts a GroupQueryAttention before an Attention; the old one's results keep their users.

    Args:
        graph: that the Attention is in.
        node: the Attention.
        rows: (batch, width), the result in rows.
        inputs: of the new operator; its rows still (batch, width).
        attributes: of the new operator.

    Returns:
        Its result in rows, and its caches; nothing takes them yet.
    """
    axis = constant(graph, "axis_of_length", np.array([1]))
    nodes = []
    for index, value in enumerate(inputs[:3]):
        if value is not None:
            nodes.append(ir.node("Unsqueeze", [value, axis]))
            assert value.shape is not None
            shape = ir.Shape([value.shape[0], 1, value.shape[1]])
            inputs[index] = name_value(nodes[-1], f"{rows.name}_input_{index}", shape)
    name = f"{rows.name}_grouped"
    new = ir.node(
        "GroupQueryAttention", inputs, attributes, domain=DOMAIN, num_outputs=3, name=name
    )
    back = ir.node("Squeeze", [new.outputs[0], axis])
    assert rows.shape is not None
    name_value(new, name, ir.Shape([rows.shape[0], 1, rows.shape[1]]))
    name_value(back, f"{name}_rows", rows.shape)
    graph.insert_before(node, [*nodes, new, back])
    return back.outputs[0], list(new.outputs[1:])


def lengths_up_to(graph: ir.Graph, last: ir.Value, name: str) -> tuple[ir.Value, ir.Value]:
    """Gives what GroupQueryAttention calls lengths: each row's last key, and how many there are.

    Args:
        graph: the nodes are added at its beginning.
        last: (batch,) int64, index of the last key of each row.
        name: of the first of them.
    """
    one = constant(graph, "one_more_key", np.array(1, np.int32))
    cast = ir.node("Cast", [last], {"to": ir.DataType.INT32}, name=name)
    top = ir.node("ReduceMax", [cast.outputs[0]], {"keepdims": 0}, name=f"{name}_largest")
    total = ir.node("Add", [top.outputs[0], one], name=f"{name}_total")
    name_value(cast, name, last.shape, ir.DataType.INT32)
    name_value(top, f"{name}_largest", ir.Shape([]), ir.DataType.INT32)
    name_value(total, f"{name}_total", ir.Shape([]), ir.DataType.INT32)
    producer = last.producer()
    if producer is None:
        graph.insert_before(graph[0], [cast, top, total])
    else:
        graph.insert_after(producer, [cast, top, total])
    return cast.outputs[0], total.outputs[0]


def _lengths(graph: ir.Graph, position: ir.Value) -> tuple[ir.Value, ir.Value]:
    return lengths_up_to(graph, position, "last_keys")


def _self_attention(node: ir.Node, position: ir.Value) -> _SelfAttention | None:
    query, key, value, *masks = node.inputs
    mask = masks[0] if masks else None
    if query is None or mask is None or not _is_causal(mask, position):
        return None
    writes = _write(key, position), _write(value, position)
    rows = as_rows(node.outputs[0])
    if writes[0] is None or writes[1] is None or rows is None:
        return None
    packed = _packed([query, writes[0].inputs[1], writes[1].inputs[1]])
    return None if packed is None else _SelfAttention(node, packed, (writes[0], writes[1]), rows)


def _write(value: ir.Value | None, position: ir.Value) -> ir.Node | None:
    node = None if value is None else value.producer()
    if node is None or node.op_type != "TensorScatter" or node.inputs[2] is not position:
        return None
    cache = node.inputs[0]
    static = cache is not None and cache.shape is not None and cache.shape.rank() == 4
    return node if static and cache is not None and cache.is_graph_input() else None


def _packed(values: list[ir.Value | None]) -> ir.Value | None:
    """Gives the matrix whose columns are query, key and value in this order, and nothing else."""
    slices = [None if value is None else row_slice(value) for value in values]
    end, source = 0, None
    for one in slices:
        if one is None or one.begin != end or (source is not None and one.source is not source):
            return None
        end, source = one.begin + one.width, one.source
    whole = source is not None and source.shape is not None and source.shape[1] == end
    return source if whole else None


def _is_causal(mask: ir.Value, position: ir.Value) -> bool:
    """Tells whether a mask lets every row see the keys up to its own position, and no others."""
    compared = source_of(mask).producer()
    if compared is None or compared.op_type != "LessOrEqual":
        return False
    keys, rows = compared.inputs
    if keys is None or rows is None or keys.const_value is None or source_of(rows) is not position:
        return False
    indices = keys.const_value.numpy()
    shape = [1 if isinstance(size, str | ir.SymbolicDim) else size for size in mask.shape or ()]
    return np.array_equal(indices.reshape(-1), np.arange(indices.size)) and shape == [
        1, 1, 1, indices.size,
    ]  # fmt: skip


def _rewrite(graph: ir.Graph, one: _SelfAttention, lengths: tuple[ir.Value, ir.Value]) -> None:
    caches = [write.inputs[0] for write in one.writes]
    assert caches[0] is not None and caches[0].shape is not None and one.packed.shape is not None
    key_heads, head_width = caches[0].shape[1], caches[0].shape[3]
    width = one.packed.shape[1]
    assert isinstance(key_heads, int) and isinstance(head_width, int) and isinstance(width, int)
    heads = width // head_width - 2 * key_heads
    attributes = attributes_of(one.node, heads, key_heads)
    inputs = [one.packed, None, None, *caches, *lengths]
    result, written = grouped(graph, one.node, one.rows, inputs, attributes)
    one.rows.replace_all_uses_with(result)
    for write, new in zip(one.writes, written, strict=True):
        old = write.outputs[0]
        new.name, new.shape, new.type = old.name, old.shape, old.type
        old.name = f"{old.name}_scattered"
        old.replace_all_uses_with(new, replace_graph_outputs=True)
