"""Lowers a model to graphs, which come from its `decode` or from its own `step`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
from torch import Tensor, fx

from hybrid_deploy.bundle.manifest import DimRange, GenerationDefaults
from hybrid_deploy.contract import BATCH_DIM, GraphRole
from hybrid_deploy.errors import UsageError
from hybrid_deploy.export.analysis.binding_time import analyse
from hybrid_deploy.export.export_job import ExportJob
from hybrid_deploy.export.lowering.custom_step import examine_custom_step, lower_custom_step
from hybrid_deploy.export.lowering.dim_ranges import dim_ranges
from hybrid_deploy.export.lowering.variant_graphs import lower_plan
from hybrid_deploy.export.model.dynamic_axes import (
    declared_ranges,
    memory_axes,
)
from hybrid_deploy.export.model.interface import DecodePart, has_custom_step, reference_memory
from hybrid_deploy.export.model.memory_sizes import memory_sizes
from hybrid_deploy.export.parity.decode_checks import check_batch, check_causal
from hybrid_deploy.export.parity.length_checks import check_lengths
from hybrid_deploy.export.parity.special_tokens import TokenChoice, special_tokens
from hybrid_deploy.export.plan.data_movement import is_movement
from hybrid_deploy.export.stage_times import StageTimes
from hybrid_deploy.export.trace.capture import Capture, capture_decoder
from hybrid_deploy.export.trace.size_guards import CHECKED_BATCHES, DeclaredSizes, Sizes

_PICKS = ("aten.slice.Tensor", "aten.select.int")
_COMPARISONS = tuple(f"aten.{name}.Scalar" for name in ("eq", "ne", "lt", "le", "gt", "ge"))


@dataclass(frozen=True)
class LoweredModel:
    """A model as ONNX graphs, whose decoder returns logits.

    Attributes:
        graphs: encoder, step and, unless the model has its own step, prefill.
        dims: range of every symbolic dimension of the graphs, by name.
        choice: the vocabulary, and the tokens in it that the decoder tells apart.
        uncertain_sizes: sizes of the encoder's inputs at which the traces assumed something that
            does not hold, by name of the dimension; the parity gate runs them.
    """

    graphs: Mapping[GraphRole, ir.Model]
    dims: Mapping[str, DimRange]
    choice: TokenChoice
    uncertain_sizes: Sequence[Sizes] = ()


def lower_model(job: ExportJob, inputs: Mapping[str, Tensor], stages: StageTimes) -> LoweredModel:
    """Returns a job's model as graphs.

    Args:
        job: the model and the options of the export.
        inputs: example inputs of the encoder by name, a batch of two.
        stages: measures the stages `trace` (not of a model with its own step), `analyse` and
            `lower`.

    Raises:
        UnsupportedModelError: the model cannot be decoded incrementally.
        UsageError: a token lies outside the model's vocabulary, or the start tokens fill
            `max_length`.
        ExportError: an operator has no translation to ONNX.
    """
    lower = _lower_custom_step if has_custom_step(job.model) else _lower_derived
    return lower(job, inputs, stages)


def _lower_derived(
    job: ExportJob, inputs: Mapping[str, Tensor], stages: StageTimes
) -> LoweredModel:
    model, spec = job.model, job.spec
    with stages.timed("trace"):
        memory = reference_memory(model, tuple(inputs.values()))
        axes = memory_axes(model, inputs, spec.dynamic)
        capture = capture_decoder(
            DecodePart(model),
            memory,
            axes,
            spec.generation.max_length,
            lambda: memory_sizes(model, inputs, spec.dynamic),
        )
        vocabulary_size = int(capture.logits.meta["val"].shape[-1])
        _check_tokens(spec.generation, vocabulary_size, _embedding_size(capture))
    with stages.timed("analyse"):
        plan = analyse(capture)
        choice = TokenChoice(vocabulary_size, tuple(_compared_tokens(capture)))
        special = special_tokens(model, spec.generation, choice.told_apart)
        check_causal(model, inputs, capture.length, special)
        check_batch(model, inputs, capture.length, special)
        check_lengths(model, inputs, capture.length, special)
    with stages.timed("lower"):
        dims = dim_ranges(model, plan, inputs, spec.dynamic, spec.generation, spec.max_batch)
        declared = _declared_sizes(dims)
        graphs = lower_plan(model, plan, inputs, spec.dynamic, job.form.opset, declared)
    return LoweredModel(graphs, dims, choice, declared.uncertain)


def _lower_custom_step(
    job: ExportJob, inputs: Mapping[str, Tensor], stages: StageTimes
) -> LoweredModel:
    spec = job.spec
    with stages.timed("analyse"):
        custom_step = examine_custom_step(job.model, inputs, spec.dynamic)
        _check_tokens(spec.generation, custom_step.vocabulary_size)
        special = special_tokens(job.model, spec.generation)
        check_batch(job.model, inputs, spec.generation.max_length, special)
    with stages.timed("lower"):
        batch = {BATCH_DIM: DimRange(1, 1, spec.max_batch)}
        dims = batch | custom_step.dims | declared_ranges(spec.dynamic)
        declared = _declared_sizes(dims)
        graphs = lower_custom_step(custom_step, spec.dynamic, job.form.opset, declared)
    choice = TokenChoice(custom_step.vocabulary_size)
    return LoweredModel(graphs, dims, choice, declared.uncertain)


def _declared_sizes(dims: Mapping[str, DimRange]) -> DeclaredSizes:
    """Returns the sizes for which the graphs have to hold."""
    sizes = {name: dim.sizes for name, dim in dims.items()}
    return DeclaredSizes({**sizes, BATCH_DIM: CHECKED_BATCHES})


def _embedding_size(capture: Capture) -> int | None:
    """Returns the rows of the smallest table in which tokens are looked up; None without one."""
    sizes = [
        int(node.args[0].meta["val"].shape[0])  # type: ignore[union-attr]
        for node in _token_readers(capture)
        if str(node.target) == "aten.embedding.default" or _is_row_lookup(node)
    ]
    return min(sizes, default=None)


def _compared_tokens(capture: Capture) -> Iterator[int]:
    """Yields the numbers with which a decoder compares its tokens, such as a padding id."""
    for node in _token_readers(capture):
        number = node.args[1] if str(node.target) in _COMPARISONS else None
        if isinstance(number, int):
            yield number


def _token_readers(capture: Capture) -> Iterator[fx.Node]:
    """Yields the nodes that compute with the tokens themselves, at most picked or moved."""
    pending = [capture.tokens]
    while pending:
        for node in pending.pop().users:
            if is_movement(node) or str(node.target) in _PICKS:
                pending.append(node)
            else:
                yield node


def _is_row_lookup(node: fx.Node) -> bool:
    """Returns whether a node is `table[tokens]`."""
    if str(node.target) != "aten.index.Tensor":
        return False
    indices: Any = node.args[1]
    return len(indices) == 1 and node.args[0] in node.all_input_nodes


def _check_tokens(
    generation: GenerationDefaults, vocabulary_size: int, embedding_size: int | None = None
) -> None:
    """Checks the special tokens: those that are read, and those that the head has to choose.

    Args:
        generation: the special tokens and the largest length.
        vocabulary_size: width of the logits.
        embedding_size: number of tokens that can be read; None takes the width of the logits.

    Raises:
        UsageError: a token is outside, or the start tokens fill `max_length`.
    """
    readable = vocabulary_size if embedding_size is None else embedding_size
    in_embedding = f"the {readable} tokens that the decoder reads"
    in_logits = f"the {vocabulary_size} tokens that the decoder's logits hold"
    special_tokens = [
        *(("start", token, readable, in_embedding) for token in generation.start_tokens),
        *(("end", token, vocabulary_size, in_logits) for token in generation.end_tokens),
        ("pad", generation.pad_token, readable, in_embedding),
    ]
    for kind, token, size, tokens in special_tokens:
        if not 0 <= token < size:
            raise UsageError(
                f"{kind} token {token} is outside {tokens}; give one from 0 to {size - 1}"
            )
    if len(generation.start_tokens) >= generation.max_length:
        raise UsageError(
            f"{len(generation.start_tokens)} start tokens leave none to decode in max_length "
            f"{generation.max_length}"
        )
