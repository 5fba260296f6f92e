"""Models that bring a step of their own: recurrent decoders, and what no rule can derive.

    initial_state(*memory) -> state                     before the first token
    step(token (batch,), state, *memory) -> logits (batch, vocabulary), state

A state is a tensor or any nest of tuples, lists and dicts of tensors, each batch first and of the
same shapes after every step.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

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
from hybrid_deploy.export.trace.refusal import first_line, users_line

_BOUNDS = ("min", "typical", "max")

Shape = tuple["int | str", ...]


@dataclass(frozen=True)
class _Run:
    """What the methods of a model gave for one batch.

    Attributes:
        memory: by name, of `encode`.
        state: by name, the tensors of `initial_state`.
        structure: how these are nested.
        heads: of `step`, the logits first.
    """

    memory: Mapping[str, Tensor]
    state: Mapping[str, Tensor]
    structure: pytree.TreeSpec
    heads: tuple[Tensor, ...]

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The memory, then the state."""
        return {**self.memory, **self.state}


@dataclass(frozen=True)
class CustomStep:
    """A model with a step of its own, run once.

    Attributes:
        model: has `encode`, `initial_state` and `step`.
        inputs: example inputs of the encoder, a batch of two.
        run: what the methods gave for them.
        shapes: of each memory tensor and each tensor of the state, with names for what varies.
        dims: the ranges of those names, without the batch.
    """

    model: nn.Module
    inputs: Mapping[str, Tensor]
    run: _Run
    shapes: Mapping[str, Shape]
    dims: dict[str, DimRange]

    @property
    def vocabulary_size(self) -> int:
        """Number of tokens."""
        return self.run.heads[0].shape[-1]


class StartGraph(nn.Module):
    """The model's inputs to the memory and the first state."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.encode = EncodePart(model)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Returns the memory tensors, then those of the state."""
        memory = self.encode(*inputs)
        model: Any = self.encode.model
        return *memory, *pytree.tree_leaves(model.initial_state(*memory))


class CustomStepGraph(nn.Module):
    """One token to the logits of the next, and the next state.

    Args:
        model: has `step`.
        structure: how the tensors of the state are nested.
        memory: number of memory tensors.
    """

    def __init__(self, model: nn.Module, structure: pytree.TreeSpec, memory: int) -> None:
        super().__init__()
        self.model = model
        self._structure = structure
        self._memory = memory

    def forward(self, token: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Decodes one token: heads, then the tensors of the next state.

        Args:
            token: (batch,) int64.
            tensors: the memory, then the state.
        """
        memory, leaves = tensors[: self._memory], tensors[self._memory :]
        model: Any = self.model
        state = pytree.tree_unflatten(list(leaves), self._structure)
        outputs, state = model.step(token, state, *memory)
        return *heads_of(outputs), *pytree.tree_leaves(state)


@torch.no_grad()
def examine_custom_step(
    model: nn.Module, inputs: Mapping[str, Tensor], dynamic: DynamicAxes
) -> CustomStep:
    """Encodes an example and steps once, at all sizes that the inputs may have.

    Args:
        model: has `encode`, `initial_state` and `step`; in eval mode.
        inputs: example inputs of the encoder, a batch of two.
        dynamic: the varying axes of those inputs besides the batch.

    Raises:
        UnsupportedModelError: a method fails, or a step changes the form of its state.
    """
    runs: list[_Run] = []
    for bound in _BOUNDS:
        values = resized(inputs, dynamic, bound)
        try:
            runs.append(_run_once(model, values))
        except UnsupportedModelError:
            raise
        except Exception as error:
            sizes = ", ".join(str(tuple(value.shape)) for value in values.values())
            raise UnsupportedModelError(
                f"{users_line(error)}encode(), initial_state() or step() fails on inputs of size "
                f"{sizes}: {first_line(error)}"
            ) from error
    shapes, dims = _symbolic([run.tensors for run in runs])
    return CustomStep(model, resized(inputs, dynamic, "typical"), runs[1], shapes, dims)


def lower_custom_step(
    own: CustomStep, dynamic: DynamicAxes, opset: int
) -> dict[GraphRole, ir.Model]:
    """Lowers encoder and step; there is no prefill, a prompt is fed token by token.

    Raises:
        ExportError: an operator has no translation to ONNX.
    """
    run, fed = own.run, own.run.tensors
    step_dynamic = {
        TOKEN: {0: BATCH_DIM},
        **{n: {a: d for a, d in enumerate(own.shapes[n]) if isinstance(d, str)} for n in fed},
    }
    heads = [LOGITS, *(head_name(index) for index in range(1, len(run.heads)))]
    step = onnx_from_torch(
        CustomStepGraph(own.model, run.structure, len(run.memory)),
        {TOKEN: torch.tensor([1, 1]), **{name: value.clone() for name, value in fed.items()}},
        [*heads, *map(next_cache, run.state)],
        step_dynamic,
        opset,
    )
    encoder_dynamic = input_dims(own.inputs, dynamic)
    encoder = onnx_from_torch(StartGraph(own.model), own.inputs, list(fed), encoder_dynamic, opset)
    name_dims(encoder, own.shapes)
    name_dims(step, {next_cache(name): own.shapes[name] for name in run.state})
    _leave_out_unread(encoder, step, run.memory)
    return {GraphRole.ENCODER: encoder, GraphRole.STEP: step}


def _run_once(model: nn.Module, inputs: Mapping[str, Tensor]) -> _Run:
    any_model: Any = model
    memory = EncodePart(model)(*inputs.values())
    first = any_model.initial_state(*memory)
    leaves, structure = pytree.tree_flatten(first)
    token = torch.ones(len(memory[0]), dtype=torch.int64)
    outputs, state = any_model.step(token, first, *memory)
    others, same = pytree.tree_flatten(state)
    before, after = _forms(leaves), _forms(others)
    if structure != same or before != after:
        raise UnsupportedModelError(
            f"step() turns a state of {', '.join(before)} into one of {', '.join(after)}; a state "
            "must keep its structure, shapes and types (a growing cache: give it max_length "
            "places, and keep the position in the state)"
        )
    batch = len(token)
    apart = [form for leaf, form in zip(leaves, before, strict=True) if leaf.shape[:1] != (batch,)]
    if apart:
        raise UnsupportedModelError(
            f"initial_state() gave {apart[0]} for a batch of {batch}; every tensor of a state must "
            "be batch first, so that sequences stay apart"
        )
    heads = heads_of(outputs)
    if heads[0].dim() != 2 or len(heads[0]) != batch:
        raise UnsupportedModelError(
            f"step() must give logits (batch, vocabulary), got {tuple(heads[0].shape)} for a batch "
            f"of {batch}"
        )
    return _Run(
        memory={cross_name("state", i): value for i, value in enumerate(memory)},
        state={recurrent_name(i): value for i, value in enumerate(leaves)},
        structure=structure,
        heads=heads,
    )


def _forms(leaves: Sequence[Any]) -> list[str]:
    return [
        f"{str(leaf.dtype).removeprefix('torch.')} {tuple(leaf.shape)}"
        if isinstance(leaf, Tensor)
        else type(leaf).__name__
        for leaf in leaves
    ]


def _symbolic(
    runs: Sequence[Mapping[str, Tensor]],
) -> tuple[dict[str, Shape], dict[str, DimRange]]:
    """Names the axes that vary with the input's size; those that vary alike have one name."""
    shapes: dict[str, Shape] = {}
    names: dict[tuple[int, ...], str] = {}
    for tensor in runs[0]:
        shape: list[int | str] = [BATCH_DIM]
        for alike in list(zip(*(run[tensor].shape for run in runs), strict=True))[1:]:
            if len(set(alike)) == 1:
                shape.append(alike[0])
                continue
            count = len(names)
            shape.append(names.setdefault(alike, f"{MEMORY_DIM}_{count}" if count else MEMORY_DIM))
        shapes[tensor] = tuple(shape)
    return shapes, {name: DimRange(*alike) for alike, name in names.items()}


def _leave_out_unread(encoder: ir.Model, step: ir.Model, memory: Collection[str]) -> None:
    """Drops memory that only `initial_state` reads: no graph carries it across the border."""
    unread = {
        str(value.name)
        for value in step.graph.inputs
        if value.name in memory and not value.uses() and not value.is_graph_output()
    }
    for values in (step.graph.inputs, encoder.graph.outputs):
        kept = [value for value in values if value.name not in unread]
        values.clear()
        values.extend(kept)
