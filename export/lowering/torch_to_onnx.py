"""From a torch module to a tidy ONNX graph with the contract's names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import onnx_ir as ir
import onnx_ir.passes.common as ir_passes
import onnxscript.optimizer
import torch
from torch import Tensor, nn

from hybrid_deploy.errors import ExportError, UnsupportedModelError
from hybrid_deploy.export.analysis.custom_rules import custom_translations
from hybrid_deploy.export.lowering.attention_masks import give_masks_all_rows
from hybrid_deploy.export.lowering.decoder_modules import NESTED
from hybrid_deploy.export.lowering.decompositions import only_needed_decompositions
from hybrid_deploy.export.lowering.translation_cache import translations_made_once
from hybrid_deploy.export.plan.cache_ops import translations
from hybrid_deploy.export.trace.capture import quiet_tracing
from hybrid_deploy.export.trace.portable_ops import PortableForms
from hybrid_deploy.export.trace.refusal import first_line
from hybrid_deploy.onnx_graphs.gemm import is_embedding, split_gemm

_FOLDED_VALUES = 1 << 31  # fold constants of any size: what is constant is a weight


def onnx_from_torch(
    module: nn.Module,
    inputs: Mapping[str, Tensor],
    outputs: Sequence[str],
    dynamic: Mapping[str, Mapping[int, str]],
    opset: int,
) -> ir.Model:
    """Lowers a module to ONNX.

    Args:
        module: in eval mode.
        inputs: example inputs by name, in the order of `forward`.
        outputs: names of what `forward` returns.
        dynamic: for each input, its symbolic dimensions by axis.
        opset: version of the ONNX operator set.

    Raises:
        ExportError: an operator has no translation to ONNX.
    """
    shapes = tuple({**dynamic.get(name, {})} or None for name in inputs)
    with quiet_tracing(), translations_made_once(), only_needed_decompositions(), PortableForms():
        try:
            program = torch.onnx.export(
                module.eval(),
                tuple(inputs.values()),
                dynamo=True,
                opset_version=opset,
                input_names=list(inputs),
                output_names=list(outputs),
                dynamic_shapes=_nested(module, shapes),
                custom_translation_table={**translations(opset), **custom_translations()},
                verbose=False,
            )
        except Exception as error:
            raise ExportError(
                f"{type(module).__name__} has no ONNX form: {_reason(error)}"
            ) from error
    assert program is not None
    _check_sizes(program.model, dynamic)
    model = _tidy(program.model)
    _part_outputs(model.graph, outputs)
    return model


def name_dims(model: ir.Model, shapes: Mapping[str, Sequence[int | str]]) -> None:
    """Returns the outputs of a graph the dimension names of the contract."""
    for value in model.graph.outputs:
        if value.name is not None and value.name in shapes:
            value.shape = ir.Shape(shapes[value.name])


def _check_sizes(model: ir.Model, dynamic: Mapping[str, Mapping[int, str]]) -> None:
    """Refuses a trace that fixed a size which must vary."""
    for value in model.graph.inputs:
        for axis, name in dynamic.get(str(value.name), {}).items():
            if value.shape is not None and isinstance(value.shape[axis], int):
                raise UnsupportedModelError(
                    f"{name} varies, but the traced model takes {value.shape[axis]} only: a "
                    "recurrent layer, or a size used as a Python number, fixes it; change that, "
                    "or declare no dynamic axis"
                )


def _nested(module: nn.Module, shapes: tuple[dict[int, str] | None, ...]) -> tuple[object, ...]:
    """Groups the shapes of `*args` as torch.export wants them."""
    code = type(module).forward.__code__
    named = code.co_argcount - 1
    return (*shapes[:named], shapes[named:]) if code.co_flags & 0x04 else shapes


def _tidy(model: ir.Model) -> ir.Model:
    onnxscript.optimizer.fold_constants(
        model, input_size_limit=_FOLDED_VALUES, output_size_limit=_FOLDED_VALUES
    )
    _split_gemms(model.graph)
    give_masks_all_rows(model)
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


def _part_outputs(graph: ir.Graph, names: Sequence[str]) -> None:
    """Returns outputs that are the same value, or an input, a name of their own."""
    taken = {value.name for value in graph.inputs}
    for index, (value, name) in enumerate(zip(list(graph.outputs), names, strict=True)):
        if value.name not in taken and value.name == name:
            taken.add(name)
            continue
        copy = ir.node("Identity", [value], name=f"{name}_copy")
        new = copy.outputs[0]
        new.name, new.shape, new.type = name, value.shape, value.type
        graph.append(copy)
        graph.outputs[index] = new


def _split_gemms(graph: ir.Graph) -> None:
    """Writes every Gemm as MatMul and Add, except where a tied weight is shared with an embedding.

    ONNX Runtime joins the two again by itself where the weight is a float.
    """
    for node in list(graph):
        if node.op_type == "Gemm" and not (node.inputs[1] and is_embedding(node.inputs[1])):
            split_gemm(graph, node)


def _restore_weight_names(model: ir.Model) -> None:
    """Returns the weights the names that they have in the user's model."""
    taken = {value.name for node in model.graph for value in node.outputs}
    for value in list(model.graph.initializers.values()):
        assert value.name is not None
        name = re.sub(r"^(encode\.)?model\.", "", value.name.replace(NESTED, "."))
        if name not in taken and name not in model.graph.initializers:
            value.name = name


def _reason(error: BaseException) -> str:
    """Returns the first line of the innermost cause."""
    seen = [error]
    while error.__cause__ is not None and error.__cause__ not in seen:
        error = error.__cause__
        seen.append(error)
    return first_line(error)
