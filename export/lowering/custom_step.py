"""Lowers models with their own step: recurrent decoders, and decoders that no rule can derive.

    initial_state(*memory) -> state                     before the first token
    step(token (batch,), state, *memory) -> logits (batch, vocabulary), state

The state is a tensor, or any nest of tuples, lists and dicts of tensors. Each tensor has an axis of
the batch, which is the first one in the graphs, and the same shape and dtype after every step. Two
graphs result:

    encoder   inputs -> memory = encode(inputs), state = initial_state(memory)
    step      token, memory, state -> logits, next state
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn

from hybrid_deploy.bundle.manifest import DimRange
from hybrid_deploy.contract import (
    BATCH_DIM,
    LOGITS,
    MEMORY_DIM,
    TOKEN,
    GraphRole,
    cross_name,
    head_name,
    next_cache,
    recurrent_name,
)
from hybrid_deploy.errors import UnsupportedModelError
from hybrid_deploy.export.lowering.dim_ranges import input_dims
from hybrid_deploy.export.lowering.torch_to_onnx import name_dims, onnx_from_torch
from hybrid_deploy.export.model.dynamic_axes import (
    DynamicAxes,
    resized,
)
from hybrid_deploy.export.model.interface import EncodePart, heads_of
from hybrid_deploy.export.model.step_state import StateLayout, check_same_form, layout_of
from hybrid_deploy.export.trace.refusal import first_line, user_line
from hybrid_deploy.export.trace.size_guards import DeclaredSizes

_BOUNDS = ("min", "typical", "max")

Shape = tuple["int | str", ...]
"""Sizes of a tensor's axes, with names for those that vary."""


@dataclass(frozen=True)
class _ExampleRun:
    """The results of one step of a model, for one batch of example inputs.

    Attributes:
        memory: the tensors that `encode` returns, by their names in the graphs.
        state: the tensors of the state that `initial_state` returns, batch first, by their names
            in the graphs.
        heads: the output heads of `step`, the logits first.
    """

    memory: Mapping[str, Tensor]
    state: Mapping[str, Tensor]
    heads: tuple[Tensor, ...]

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors of the memory, then those of the state, by name."""
        return {**self.memory, **self.state}


@dataclass(frozen=True)
class CustomStep:
    """A model with its own step, and its results for example inputs.

    Attributes:
        model: a module with the methods `encode`, `initial_state` and `step`.
        inputs: example inputs of the encoder, a batch of two.
        run: the results for these inputs.
        layout: the nesting of the state's tensors, and the axis of the batch of each.
        shapes: shape of each tensor of memory and state, with a name for each axis that varies.
        dims: range of each name in `shapes` except the batch.
    """

    model: nn.Module
    inputs: Mapping[str, Tensor]
    run: _ExampleRun
    layout: StateLayout
    shapes: Mapping[str, Shape]
    dims: dict[str, DimRange]

    @property
    def vocabulary_size(self) -> int:
        """Number of tokens in the vocabulary."""
        return self.run.heads[0].shape[-1]


class StartGraph(nn.Module):
    """The encoder graph: the model's inputs to the memory and the first state.

    Args:
        model: a module with the methods `encode` and `initial_state`.
        layout: layout of its state.
    """

    def __init__(self, model: nn.Module, layout: StateLayout) -> None:
        super().__init__()
        self.encode = EncodePart(model)
        self._layout = layout

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Returns the memory tensors, then those of the state."""
        memory = self.encode(*inputs)
        model: Any = self.encode.model
        return *memory, *self._layout.tensors(model.initial_state(*memory))


class CustomStepGraph(nn.Module):
    """The step graph: one token, the memory and the state to the logits and the next state.

    Args:
        model: a module with the method `step`.
        layout: layout of its state.
        memory: number of memory tensors.
    """

    def __init__(self, model: nn.Module, layout: StateLayout, memory: int) -> None:
        super().__init__()
        self.model = model
        self._layout = layout
        self._memory = memory

    def forward(self, token: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Returns the output heads, the logits first, then the tensors of the next state.

        Args:
            token: (batch,) int64.
            tensors: the tensors of the memory, then those of the state.
        """
        memory, state = tensors[: self._memory], self._layout.state(tensors[self._memory :])
        model: Any = self.model
        outputs, state = model.step(token, state, *memory)
        return *heads_of(outputs), *self._layout.tensors(state)


@torch.no_grad()
def examine_custom_step(
    model: nn.Module, inputs: Mapping[str, Tensor], dynamic: DynamicAxes
) -> CustomStep:
    """Encodes the example inputs and steps once, at the least, typical and largest size.

    Args:
        model: a module with `encode`, `initial_state` and `step`, in eval mode.
        inputs: example inputs of the encoder, a batch of two.
        dynamic: the varying axes of those inputs besides the batch.

    Raises:
        UnsupportedModelError: a method fails, or a step changes the structure, shapes or dtypes of
            its state.
    """
    runs: list[_ExampleRun] = []
    layout: StateLayout | None = None
    for bound in _BOUNDS:
        values = resized(inputs, dynamic, bound)
        try:
            layout = layout or _layout(model, values)
            runs.append(_run_once(model, values, layout))
        except UnsupportedModelError:
            raise
        except Exception as error:
            sizes = ", ".join(str(tuple(value.shape)) for value in values.values())
            raise UnsupportedModelError(
                f"{user_line(error)}encode(), initial_state() or step() fails on inputs of size "
                f"{sizes}: {first_line(error)}"
            ) from error
    assert layout is not None
    shapes, dims = _symbolic([run.tensors for run in runs])
    return CustomStep(model, resized(inputs, dynamic, "typical"), runs[1], layout, shapes, dims)


def lower_custom_step(
    custom_step: CustomStep,
    dynamic: DynamicAxes,
    opset: int,
    declared: DeclaredSizes | None = None,
) -> dict[GraphRole, ir.Model]:
    """Returns the graphs of encoder and step; a prompt is fed token by token, without a prefill.

    Args:
        custom_step: the model and its example results.
        dynamic: the varying axes of the encoder's inputs besides the batch.
        opset: version of the ONNX operator set.
        declared: the sizes for which the graphs have to hold; None checks no guard of the traces.

    Raises:
        ExportError: an operator has no translation to ONNX.
        UnsupportedModelError: the trace fixes a size that varies, or a Python branch on a size
            takes another side at a declared size.
    """
    run, tensors = custom_step.run, custom_step.run.tensors
    shapes = custom_step.shapes
    step_dynamic = {
        TOKEN: {0: BATCH_DIM},
        **{n: {a: d for a, d in enumerate(shapes[n]) if isinstance(d, str)} for n in tensors},
    }
    heads = [LOGITS, *(head_name(index) for index in range(1, len(run.heads)))]
    step = onnx_from_torch(
        CustomStepGraph(custom_step.model, custom_step.layout, len(run.memory)),
        {TOKEN: torch.tensor([1, 1]), **{name: value.clone() for name, value in tensors.items()}},
        [*heads, *map(next_cache, run.state)],
        step_dynamic,
        opset,
        declared,
        "step()",
    )
    encoder = onnx_from_torch(
        StartGraph(custom_step.model, custom_step.layout),
        custom_step.inputs,
        list(tensors),
        input_dims(custom_step.inputs, dynamic),
        opset,
        declared,
        "encode()",
    )
    name_dims(encoder, shapes)
    name_dims(step, {next_cache(name): shapes[name] for name in run.state})
    _drop_unread_memory(encoder, step, run.memory)
    return {GraphRole.ENCODER: encoder, GraphRole.STEP: step}


def _layout(model: nn.Module, inputs: Mapping[str, Tensor]) -> StateLayout:
    """Returns the layout of a model's state, found with a batch of two and one of three."""
    untyped_model: Any = model
    states = []
    for rows in ([0, 1], [0, 1, 0]):
        memory = EncodePart(model)(*(value[rows] for value in inputs.values()))
        states.append(untyped_model.initial_state(*memory))
    return layout_of(*states)


def _run_once(model: nn.Module, inputs: Mapping[str, Tensor], layout: StateLayout) -> _ExampleRun:
    untyped_model: Any = model
    memory = EncodePart(model)(*inputs.values())
    state = untyped_model.initial_state(*memory)
    before = layout.tensors(state)
    token = torch.ones(len(memory[0]), dtype=torch.int64)
    outputs, next_state = untyped_model.step(token, state, *memory)
    check_same_form(layout, state, next_state)
    batch = len(token)
    heads = heads_of(outputs)
    if heads[0].dim() != 2 or len(heads[0]) != batch:
        raise UnsupportedModelError(
            f"step() must give logits (batch, vocabulary), got {tuple(heads[0].shape)} for a batch "
            f"of {batch}"
        )
    return _ExampleRun(
        memory={cross_name("state", i): value for i, value in enumerate(memory)},
        state={recurrent_name(i): value for i, value in enumerate(before)},
        heads=heads,
    )


def _symbolic(
    runs: Sequence[Mapping[str, Tensor]],
) -> tuple[dict[str, Shape], dict[str, DimRange]]:
    """Returns the shape of each tensor, with names for axes that vary, and the names' ranges.

    Two axes that vary share a name if they have the same size in every run.
    """
    shapes: dict[str, Shape] = {}
    names: dict[tuple[int, ...], str] = {}
    for tensor in runs[0]:
        shape: list[int | str] = [BATCH_DIM]
        for sizes in list(zip(*(run[tensor].shape for run in runs), strict=True))[1:]:
            if len(set(sizes)) == 1:
                shape.append(sizes[0])
                continue
            count = len(names)
            shape.append(names.setdefault(sizes, f"{MEMORY_DIM}_{count}" if count else MEMORY_DIM))
        shapes[tensor] = tuple(shape)
    return shapes, {name: DimRange(*sizes) for sizes, name in names.items()}


def _drop_unread_memory(encoder: ir.Model, step: ir.Model, memory: Collection[str]) -> None:
    """Removes the inputs and outputs of the graphs that hold memory which `step` does not read."""
    unread = {
        str(value.name)
        for value in step.graph.inputs
        if value.name in memory and not value.uses() and not value.is_graph_output()
    }
    for values in (step.graph.inputs, encoder.graph.outputs):
        remaining = [value for value in values if value.name not in unread]
        values.clear()
        values.extend(remaining)
