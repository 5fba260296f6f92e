"""Makes an export job from plain arguments: tensors, token ids, (name, smallest, largest)."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hybrid_deploy.bundle.input_specs import ArrayInput
from hybrid_deploy.bundle.manifest import DimRange, GenerationDefaults, Tokenizer, Vocabulary
from hybrid_deploy.errors import UsageError
from hybrid_deploy.export.export_job import (
    Arrays,
    ExportJob,
    GraphForm,
    InputOptions,
    ModelSpec,
    SimpleAxes,
)
from hybrid_deploy.export.model.dynamic_axes import (
    DynamicAxes,
    DynamicAxis,
)
from hybrid_deploy.export.model.interface import arrays_of, check_model


def named_inputs(model: nn.Module, inputs: Arrays) -> dict[str, Tensor]:
    """Returns encoder inputs as CPU tensors, by the names of `encode`'s parameters in their order.

    Raises:
        UsageError: the names, the number of inputs or their batch sizes do not fit.
    """
    return _by_name(*_parameters(model, inputs), inputs)


def _by_name(names: list[str], required: list[str], inputs: Arrays) -> dict[str, Tensor]:
    """Returns encoder inputs as CPU tensors in the order of the names."""
    if isinstance(inputs, Mapping):
        unknown = [name for name in inputs if name not in names]
        missing = [name for name in required if name not in inputs]
        if unknown or missing:
            raise UsageError(
                f"encode takes the inputs {', '.join(names)}, got {', '.join(inputs) or 'none'}"
            )
        values = {name: _tensor(inputs[name]) for name in names if name in inputs}
    else:
        listed = [inputs] if isinstance(inputs, Tensor) else list(inputs)
        if not len(required) <= len(listed) <= len(names):
            raise UsageError(
                f"encode takes {len(required)} inputs ({', '.join(names)}), got {len(listed)}"
            )
        values = dict(zip(names, map(_tensor, listed), strict=False))
    sizes = {name: value.shape[0] if value.dim() else 0 for name, value in values.items()}
    if len(set(sizes.values())) != 1 or not min(sizes.values()):
        raise UsageError(
            "the inputs of encode must be batch first and of one batch size, got "
            + ", ".join(f"{name} {tuple(value.shape)}" for name, value in values.items())
        )
    return values


def input_names(model: nn.Module) -> list[str]:
    """Returns the names of `encode`'s parameters without a default, in their order.

    The only name is `input_0` if there is no such parameter.
    """
    return _parameters(model, {})[1] or ["input_0"]


def dynamic_axes(dynamic: SimpleAxes, example: Mapping[str, Tensor]) -> DynamicAxes:
    """Returns the varying axes with their typical size: the example's, limited to the range.

    Args:
        dynamic: varying axes as the user writes them.
        example: encoder inputs by name, batch first.

    Raises:
        UsageError: the model has no such input or axis, or a range is empty.
    """
    return {
        name: {axis: _axis(name, axis, value, example) for axis, value in axes.items()}
        for name, axes in dynamic.items()
    }


def token_ids(tokens: int | Sequence[int]) -> tuple[int, ...]:
    """Returns one token id or several as a tuple."""
    return (tokens,) if isinstance(tokens, int) else tuple(int(token) for token in tokens)


def make_job(
    model: nn.Module,
    example_inputs: Arrays | None,
    generation: GenerationDefaults,
    inputs: InputOptions = InputOptions(),
    *,
    vocabulary: Vocabulary | Tokenizer | None = None,
    form: GraphForm = GraphForm(),
    checks: Sequence[Arrays] = (),
    golden: Mapping[str, bytes] | None = None,
    name: str | None = None,
) -> ExportJob:
    """Returns the export job of a model and its example.

    Args:
        model: module that `export_model` accepts.
        example_inputs: encoder inputs that `export_model` accepts.
        generation: start tokens, end tokens and the other defaults of decoding.
        inputs: preprocessing of the encoder inputs, and the range of their sizes.
        vocabulary: text of each token, or a tokenizer; None if the tokens are no text.
        form: form of the exported graphs.
        checks: batches of encoder inputs that the parity gate decodes with model and graphs.
        golden: contents of sample files for `verify`, by name.
        name: name of the model; None takes the name of its class.

    Raises:
        UsageError: an argument does not fit the model or another argument.
        UnsupportedModelError: the model has no `encode` and `decode`.
    """
    label = name or type(model).__name__
    model, example_inputs = _adapted(model, example_inputs)
    check_model(model)
    if example_inputs is None:
        raise UsageError(f"{label} needs example_inputs: a tensor for each parameter of encode")
    if generation.max_length < 2:
        raise UsageError(
            f"max_length is {generation.max_length}; two tokens are the least to decode"
        )
    example = named_inputs(model, example_inputs)
    first_input, *more_inputs = example
    return ExportJob(
        model=model,
        example=example,
        spec=ModelSpec(
            name=label,
            generation=generation,
            preprocess=inputs.preprocess or ArrayInput(first_input, tuple(more_inputs)),
            vocabulary=vocabulary,
            dynamic=dynamic_axes(inputs.dynamic, example),
            max_batch=inputs.max_batch,
        ),
        checks=[arrays_of(named_inputs(model, batch)) for batch in checks],
        golden=dict(golden or {}),
        form=form,
    )


def _adapted(model: nn.Module, example: Arrays | None) -> tuple[nn.Module, Arrays | None]:
    """Returns a Hugging Face model with encode(), decode() and an example; others unchanged."""
    if not is_hugging_face(model):
        return model, example
    from hybrid_deploy.export.huggingface.adapter import adapt, encoder_inputs

    names = list(encoder_inputs(model))
    adapted = adapt(model, None if example is None else _by_name(names, names, example))
    adapted.train(False)
    return adapted, adapted.example if example is None else example


def is_hugging_face(module: nn.Module) -> bool:
    """Returns whether a module is a transformers model, without importing transformers."""
    bases = {f"{base.__module__}.{base.__name__}" for base in type(module).__mro__}
    return "transformers.modeling_utils.PreTrainedModel" in bases


def _parameters(model: nn.Module, inputs: Arrays) -> tuple[list[str], list[str]]:
    """Returns the names of all parameters of encode, and of those without a default."""
    encode: Any = model.encode
    parameters = list(inspect.signature(encode).parameters.values())
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        names = list(getattr(model, "input_names", ()) or (inputs if _is_mapping(inputs) else ()))
        if names:
            return names, names
        count = 1 if isinstance(inputs, Tensor) else len(inputs)
        names = [f"input_{index}" for index in range(count)]
        return names, names
    named = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return [p.name for p in named], [p.name for p in named if p.default is p.empty]


def _is_mapping(inputs: Arrays) -> bool:
    return isinstance(inputs, Mapping)


def _tensor(value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, np.ndarray):
        return torch.from_numpy(np.ascontiguousarray(value))
    raise UsageError(f"an input of encode must be a tensor or an array, got {type(value).__name__}")


def _axis(
    name: str, axis: int, value: tuple[str, int, int] | DynamicAxis, example: Mapping[str, Tensor]
) -> DynamicAxis:
    if name not in example:
        raise UsageError(f"dynamic names the input {name}, the model has {', '.join(example)}")
    shape = tuple(example[name].shape)
    if not 1 <= axis < len(shape):
        raise UsageError(
            f"dynamic names axis {axis} of {name}, which has axes 1 to {len(shape) - 1} besides "
            "the batch"
        )
    if isinstance(value, DynamicAxis):
        return value
    label, smallest, largest = value
    if not 1 <= smallest < largest:
        raise UsageError(f"{name} cannot vary from {smallest} to {largest}; the range is empty")
    return DynamicAxis(label, DimRange(smallest, min(max(shape[axis], smallest), largest), largest))
