"""Sizes as torch.export writes them, against numbers computed by hand."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from hybrid_deploy.export.lowering.fixed_batch import fix_batch
from hybrid_deploy.onnx_graphs.cost import graph_cost
from hybrid_deploy.onnx_graphs.dim_expressions import evaluate_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("width", 61),
        ("encoder.input.1", 7),
        ("4*(((width + (PythonMod(-width, 8)))//8))", 32),
        ("((TruncToInt(0.75*ToFloat(width)))//8)", 5),
        ("width + Max(0, -width + 2*CeilToInt(IntTrueDiv(width, 2)) + 1)", 63),
        ("FloorToInt(IntTrueDiv(width, 2)) - Mod(width, 8)", 25),
        ("Where(Eq(Mod(width, 2), 0), 1, 3)", 3),
        ("unknown + 1", None),
        ("Unheard(width)", None),
        ("__import__('os').getpid()", None),
        ("width//0", None),
        ("width/2", None),
    ],
)
def test_a_size(text: str, size: int | None) -> None:
    assert evaluate_size(text, {"width": 61, "encoder.input.1": 7}) == size


def product(size: str) -> ir.Model:
    """Returns a graph with the product of rows (batch, size, 4) and a weight (4, 5)."""
    rows = ir.val("rows", ir.DataType.FLOAT, ["batch", size, 4])
    weight = ir.val("weight", ir.DataType.FLOAT, [4, 5])
    node = ir.node("MatMul", [rows, weight])
    node.outputs[0].shape = ir.Shape(["batch", size, 5])
    node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    node.outputs[0].name = "y"
    graph = ir.Graph([rows, weight], node.outputs, nodes=[node], opset_imports={"": 24}, name="g")
    return ir.Model(graph, ir_version=10)


def test_the_cost_of_a_graph_with_such_sizes() -> None:
    cost = graph_cost(product("TruncToInt(0.75*ToFloat(width))"), {"batch": 2, "width": 61})
    assert cost is not None and cost.flops == 2 * (2 * 45 * 5) * 4
    assert graph_cost(product("Unheard(width)"), {"batch": 2, "width": 61}) is None


def test_a_fixed_batch_of_a_graph_with_such_sizes() -> None:
    model = product("batch*CeilToInt(IntTrueDiv(width, 2))")
    fix_batch(model, 3)
    assert model.graph.outputs[0].shape is not None
    assert [str(dim) for dim in model.graph.outputs[0].shape] == [
        "3",
        "3*CeilToInt(IntTrueDiv(width, 2))",
        "5",
    ]
