"""Makes an export job from plain arguments: tensors, token ids, (name, smallest, largest)."""

from __future__ import annotations

import inspect
import math
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor, nn

from hybrid_deploy.bundle.input_specs import ArrayInput, ImageInput, Preprocess
from hybrid_deploy.bundle.manifest import DimRange, GenerationDefaults, Tokenizer, Vocabulary
from hybrid_deploy.bundle.prompt_template import PromptTemplate
from hybrid_deploy.errors import UsageError
from hybrid_deploy.export.export_job import (
    Arrays,
    ExportJob,
    GraphForm,
    InputOptions,
    ModelSpec,
    SimpleAxes,
    SimpleAxis,
)
from hybrid_deploy.export.model.dynamic_axes import (
    DynamicAxes,
    DynamicAxis,
)
from hybrid_deploy.export.model.interface import arrays_of, check_model

_LARGEST_GROWTH = 4096  # of an axis over the example's, which is repeated
_WIDTH_AXIS = 3  # of pictures, (batch, channels, height, width)
_WITHOUT_ARRAY = (torch.bfloat16, torch.complex32)


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
        listed = _listed(inputs)
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
    for name, value in values.items():
        if value.isnan().any():
            raise UsageError(f"the input {name} of encode holds NaN; give real values")
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
        UsageError: the model has no such input or axis, a range is empty, or `dynamic` is not
            written as expected.
    """
    try:
        return {
            name: {axis: _axis(name, axis, value, example) for axis, value in axes.items()}
            for name, axes in dynamic.items()
        }
    except (AttributeError, TypeError, ValueError) as error:
        raise UsageError(
            'dynamic must name varying axes as {"image": {3: ("width", 32, 512)}}: input, axis, '
            f"name, smallest and largest size; got {dynamic!r}"
        ) from error


def token_ids(tokens: int | Sequence[int]) -> tuple[int, ...]:
    """Returns one token id or several as a tuple.

    Raises:
        UsageError: the tokens are no whole numbers.
    """
    several = isinstance(tokens, Sequence) or bool(getattr(tokens, "ndim", 0))
    try:
        return tuple(map(operator.index, tokens if several else (tokens,)))  # type: ignore[arg-type]
    except TypeError as error:
        raise UsageError(
            f"token ids must be one whole number or a sequence of them, got {tokens!r}"
        ) from error


def make_job(
    model: nn.Module,
    example_inputs: Arrays | None,
    generation: GenerationDefaults,
    inputs: InputOptions = InputOptions(),
    *,
    vocabulary: Vocabulary | Tokenizer | None = None,
    files: Mapping[str, bytes] | None = None,
    prompt: PromptTemplate | None = None,
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
        files: additional files of the bundle, by name, such as the tokenizer's.
        prompt: text around the words that the decoder continues; needs a tokenizer.
        form: form of the exported graphs.
        checks: batches of encoder inputs that the parity gate decodes with model and graphs.
        golden: contents of sample files for `verify`, by name.
        name: name of the model; None takes the name of its class.

    Raises:
        UsageError: an argument does not fit the model or another argument.
        UnsupportedModelError: the model has no `encode` and `decode`.
    """
    label = name or type(model).__name__
    model, example_inputs = _adapted(model, example_inputs, inputs.dynamic)
    check_model(model)
    if example_inputs is None:
        raise UsageError(f"{label} needs example_inputs: a tensor for each parameter of encode")
    if not isinstance(generation.max_length, int):
        raise UsageError(f"max_length must be a whole number, got {generation.max_length!r}")
    if generation.max_length < 2:
        raise UsageError(
            f"max_length is {generation.max_length}; two tokens are the least to decode"
        )
    example = named_inputs(model, example_inputs)
    first_input, *more_inputs = example
    axes = dynamic_axes(inputs.dynamic, example)
    return ExportJob(
        model=model,
        example=example,
        spec=ModelSpec(
            name=label,
            generation=generation,
            preprocess=padded_to_multiples(
                inputs.preprocess or ArrayInput(first_input, tuple(more_inputs)), axes
            ),
            vocabulary=vocabulary,
            dynamic=axes,
            max_batch=inputs.max_batch,
            files=dict(files or {}),
            prompt=prompt,
        ),
        checks=[arrays_of(named_inputs(model, batch)) for batch in checks],
        golden=dict(golden or {}),
        form=form,
    )


def padded_to_multiples(preprocess: Preprocess, axes: DynamicAxes) -> Preprocess:
    """Returns the preprocessing, with pictures padded to the multiple that their width has."""
    if isinstance(preprocess, tuple):
        padded = [padded_to_multiples(part, axes) for part in preprocess]
        return tuple(part for part in padded if not isinstance(part, tuple))
    axis = axes.get(preprocess.name, {}).get(_WIDTH_AXIS)
    if not isinstance(preprocess, ImageInput) or axis is None:
        return preprocess
    multiple = math.lcm(preprocess.width_multiple, axis.sizes.multiple)
    return msgspec.structs.replace(preprocess, width_multiple=multiple)


def _adapted(
    model: nn.Module, example: Arrays | None, dynamic: SimpleAxes
) -> tuple[nn.Module, Arrays | None]:
    """Returns a Hugging Face model with encode(), decode() and an example; others unchanged."""
    if not is_hugging_face(model):
        return model, example
    from hybrid_deploy.export.huggingface.adapter import adapt, encoder_inputs, fixed_inputs

    names, fixed = list(encoder_inputs(model)), fixed_inputs(model)
    if fixed and dynamic:
        raise UsageError(
            f"{', '.join(dynamic)} cannot vary: {type(model).__name__} has a fixed number of rows "
            "before the text; leave dynamic out, and give images or sounds of one size"
        )
    inputs: dict[str, Tensor] | None = None
    if example is not None:
        beside: dict[str, Tensor] = {}
        if isinstance(example, Mapping):
            beside = {name: _tensor(value) for name, value in example.items() if name in fixed}
            example = {name: value for name, value in example.items() if name not in beside}
        inputs = {**_by_name(names, names, example), **beside}
    adapted = adapt(model, inputs)
    adapted.train(False)
    return adapted, adapted.example


def is_hugging_face(module: nn.Module) -> bool:
    """Returns whether a module is a transformers model, without importing transformers."""
    bases = {f"{base.__module__}.{base.__name__}" for base in type(module).__mro__}
    return "transformers.modeling_utils.PreTrainedModel" in bases


def _parameters(model: nn.Module, inputs: Arrays) -> tuple[list[str], list[str]]:
    """Returns the names of all parameters of encode, and of those without a default."""
    encode: Any = model.encode
    try:
        parameters = list(inspect.signature(encode).parameters.values())
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"the parameters of encode cannot be read ({error}); define it as a Python method"
        ) from error
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        names = list(getattr(model, "input_names", ()) or (inputs if _is_mapping(inputs) else ()))
        if names:
            return names, names
        count = len(_listed(inputs))
        names = [f"input_{index}" for index in range(count)]
        return names, names
    named = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    by_keyword = [p for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
    if by_keyword or not named:
        plain = [p.replace(annotation=p.empty) for p in parameters]
        raise UsageError(
            f"encode{inspect.Signature(plain)} takes no inputs by position, where an export "
            "gives them; name them before any *, as in encode(self, image)"
        )
    return [p.name for p in named], [p.name for p in named if p.default is p.empty]


def _is_mapping(inputs: Arrays) -> bool:
    return isinstance(inputs, Mapping)


def _listed(inputs: Any) -> list[Any]:
    """Returns encoder inputs without names as a list: an array alone is one input."""
    if isinstance(inputs, (list, tuple)):
        return list(inputs)
    return list(inputs.values()) if isinstance(inputs, Mapping) else [inputs]


def _tensor(value: Any) -> Tensor:
    if isinstance(value, Tensor):
        tensor = value.detach().cpu()
        if tensor.dtype in _WITHOUT_ARRAY or tensor.layout is not torch.strided:
            raise UsageError(
                f"an input of encode must be a dense tensor of a type that NumPy has, got "
                f"{str(tensor.dtype).removeprefix('torch.')} {tensor.layout}; give float32"
            )
        return tensor
    if isinstance(value, np.ndarray):
        try:
            return torch.from_numpy(np.ascontiguousarray(value))
        except TypeError as error:
            raise UsageError(
                f"an input of encode must be an array of numbers, got {value.dtype}; give float32 "
                "or int64"
            ) from error
    raise UsageError(f"an input of encode must be a tensor or an array, got {type(value).__name__}")


def _check_range(name: str, smallest: int, largest: int, size: int) -> None:
    """Checks the sizes of a varying axis, whose size in the example is given too.

    Raises:
        UsageError: the smallest is below 1 or not below the largest, or the largest is far above
            the example's, which the export would run.
    """
    if smallest < 1:
        problem = "the smallest size is 1 at least"
    elif smallest == largest:
        problem = f"it has one size; leave the axis out if the example has size {smallest}"
    elif smallest > largest:
        problem = "the smallest size stands first"
    elif largest > size * _LARGEST_GROWTH:
        problem = (
            f"the export runs the largest size, which is more than {_LARGEST_GROWTH} times the "
            f"example's {size}; give a smaller one, or a larger example"
        )
    else:
        return
    raise UsageError(f"{name} cannot vary from {smallest} to {largest}: {problem}")


def _axis(name: str, axis: int, value: SimpleAxis, example: Mapping[str, Tensor]) -> DynamicAxis:
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
    label, smallest, largest = value[:3]
    multiple = value[3] if len(value) == 4 else 1
    _check_range(name, smallest, largest, shape[axis])
    if multiple < 1 or smallest % multiple or largest % multiple:
        raise UsageError(
            f"{name} varies in multiples of {multiple}, which {smallest} and {largest} must both "
            "be; change the range or the multiple"
        )
    if shape[axis] % multiple:
        raise UsageError(
            f"axis {axis} of the example's {name} has size {shape[axis]}, which is no multiple of "
            f"{multiple}; pad it to {shape[axis] + -shape[axis] % multiple}"
        )
    typical = min(max(shape[axis], smallest), largest)
    return DynamicAxis(label, DimRange(smallest, typical, largest, multiple))
