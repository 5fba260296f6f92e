"""Lowers a torch module to an ONNX graph with the contract's names, through torch.onnx.

After the translation, constants are folded and equal nodes are merged. Weights get their names in
the user's model, each Gemm becomes two nodes, and no two outputs share a value:

    before   Gemm(x, weight, bias), transB=1   weight model__head__weight (outputs, inputs)
    after    MatMul(x, weight) -> Add(bias)    weight head.weight_transposed (inputs, outputs)

    before   outputs a, a (one value under two names)
    after    outputs a, b with Identity(a) -> b
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import onnx_ir as ir
import onnx_ir.passes.common as ir_passes
import onnxscript.optimizer
import torch
from torch import Tensor, nn

from hybrid_deploy.errors import UnsupportedModelError
from hybrid_deploy.export.analysis.rules.custom import custom_translations
from hybrid_deploy.export.lowering.attention_masks import expand_single_row_masks
from hybrid_deploy.export.lowering.decoder_modules import DOT_REPLACEMENT
from hybrid_deploy.export.lowering.decompositions import decompose_only_if_needed
from hybrid_deploy.export.lowering.traced_dims import input_exprs, name_multiples, traced_dims
from hybrid_deploy.export.lowering.translation_cache import reuse_translation_table
from hybrid_deploy.export.lowering.translation_failure import translation_failure
from hybrid_deploy.export.plan.cache_ops import onnx_translations
from hybrid_deploy.export.trace.capture import quiet_tracing
from hybrid_deploy.export.trace.causal_hint import unknown_masks_are_not_causal
from hybrid_deploy.export.trace.float_sizes import check_float_sizes, float_size_translations
from hybrid_deploy.export.trace.portable_ops import PortableOps
from hybrid_deploy.export.trace.refusal import record_user_lines
from hybrid_deploy.export.trace.size_guards import DeclaredSizes, fixed_size, record_guards
from hybrid_deploy.export.trace.unsolved_guards import keep_unsolved_guards
from hybrid_deploy.onnx_graphs.gemm import is_embedding, split_gemm

_FOLDED_VALUES = 1 << 31  # no constant is larger: constants of any size are folded


def onnx_from_torch(
    module: nn.Module,
    inputs: Mapping[str, Tensor],
    outputs: Sequence[str],
    dynamic: Mapping[str, Mapping[int, str]],
    opset: int,
    declared: DeclaredSizes | None = None,
    part: str = "the model",
) -> ir.Model:
    """Returns the ONNX graph of a module.

    Args:
        module: the module; it is put into eval mode.
        inputs: example inputs by name, in the order of `forward`'s parameters.
        outputs: names of the values that `forward` returns.
        dynamic: for each input, the names of its symbolic dimensions by axis.
        opset: version of the ONNX operator set.
        declared: the sizes for which the graph has to hold; None checks no guard of the trace.
        part: the user's method that the module calls, for messages.

    Raises:
        ExportError: an operator has no translation to ONNX.
        UnsupportedModelError: the trace fixes a size that has to vary, or a Python branch on a size
            takes another side at a declared size, or the module itself refuses to be traced.
    """
    ranges = {} if declared is None else declared.ranges
    shapes = tuple(traced_dims(dynamic.get(name, {}), ranges) or None for name in inputs)
    with (
        quiet_tracing(),
        record_user_lines(),
        reuse_translation_table(),
        decompose_only_if_needed(),
        PortableOps(),
        keep_unsolved_guards(),
        unknown_masks_are_not_causal(),
        record_guards() as log,
    ):
        try:
            program = torch.onnx.export(
                module.eval(),
                tuple(inputs.values()),
                dynamo=True,
                opset_version=opset,
                input_names=list(inputs),
                output_names=list(outputs),
                dynamic_shapes=_nested(module, shapes),
                custom_translation_table={
                    **onnx_translations(opset),
                    **custom_translations(),
                    **float_size_translations(),
                },
                verbose=False,
            )
        except Exception as error:
            axes = [dynamic.get(name, {}) for name in inputs]
            raise translation_failure(error, module, axes, log, part) from error
    assert program is not None and program.exported_program is not None
    varying = {name: dynamic.get(name, {}) for name in inputs}
    exprs, env = input_exprs(program.exported_program, varying)
    if declared is not None and env is not None:
        declared.check(log, env, exprs, part)
        check_float_sizes(program.exported_program, declared, exprs)
    _check_sizes(program.model, dynamic, part)
    name_multiples(program.model, exprs)
    model = _tidy(program.model)
    _separate_outputs(model.graph, outputs)
    return model


def name_dims(model: ir.Model, shapes: Mapping[str, Sequence[int | str]]) -> None:
    """Sets the shapes of a graph's outputs, in place.

    Args:
        model: the graph.
        shapes: shape of each output by name, with the contract's names of symbolic dimensions.
    """
    for value in model.graph.outputs:
        if value.name is not None and value.name in shapes:
            value.shape = ir.Shape(shapes[value.name])


def _check_sizes(model: ir.Model, dynamic: Mapping[str, Mapping[int, str]], part: str) -> None:
    """Refuses a graph in which an input has a fixed size where it has to vary."""
    for value in model.graph.inputs:
        for axis, name in dynamic.get(str(value.name), {}).items():
            if value.shape is not None and isinstance(value.shape[axis], int):
                raise UnsupportedModelError(fixed_size(part, {name}, value.shape[axis]))


def _nested(module: nn.Module, shapes: tuple[object, ...]) -> tuple[object, ...]:
    """Returns the shapes with those of `*args` grouped in a tuple, as torch.export requires."""
    code = type(module).forward.__code__
    positional = code.co_argcount - 1
    return (*shapes[:positional], shapes[positional:]) if code.co_flags & 0x04 else shapes


def _tidy(model: ir.Model) -> ir.Model:
    onnxscript.optimizer.fold_constants(
        model, input_size_limit=_FOLDED_VALUES, output_size_limit=_FOLDED_VALUES
    )
    _split_gemms(model.graph)
    expand_single_row_masks(model)
    _restore_weight_names(model)
    passes = ir.passes.Sequential(
        ir_passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        ir_passes.IdentityEliminationPass(),
        ir_passes.CommonSubexpressionEliminationPass(),
        ir_passes.RemoveUnusedNodesPass(),
        ir_passes.ClearMetadataAndDocStringPass(),
        ir_passes.TopologicalSortPass(),
        ir_passes.CheckerPass(),
    )
    return passes(model).model


def _separate_outputs(graph: ir.Graph, names: Sequence[str]) -> None:
    """Inserts an Identity for each output that is an input, or the same value as another output."""
    taken = {value.name for value in graph.inputs}
    for index, (value, name) in enumerate(zip(list(graph.outputs), names, strict=True)):
        if value.name not in taken and value.name == name:
            taken.add(name)
            continue
        copy = ir.node("Identity", [value], name=f"{name}_copy")
        output = copy.outputs[0]
        output.name, output.shape, output.type = name, value.shape, value.type
        graph.append(copy)
        graph.outputs[index] = output


def _split_gemms(graph: ir.Graph) -> None:
    """Replaces each Gemm by MatMul and Add, unless its weight is tied with an embedding.

    ONNX Runtime fuses the two again if the weight is float.
    """
    for node in list(graph):
        if node.op_type == "Gemm" and not (node.inputs[1] and is_embedding(node.inputs[1])):
            split_gemm(graph, node)


def _restore_weight_names(model: ir.Model) -> None:
    """Renames the weights to their names in the user's model, in place."""
    taken = {value.name for node in model.graph for value in node.outputs}
    for value in list(model.graph.initializers.values()):
        assert value.name is not None
        name = value.name.replace(DOT_REPLACEMENT, ".")
        name = re.sub(r"^((encode\.)?model|constant)\.", "", name)
        if name not in taken and name not in model.graph.initializers:
            value.name = name
