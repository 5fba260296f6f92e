"""The export job of a command line: a factory of the user, and the options of `export`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hybrid_deploy.cli.options.model import ModelOptions, axis_name
from hybrid_deploy.errors import InputError, UsageError
from hybrid_deploy.user_functions import import_function, one_line_failures

if TYPE_CHECKING:
    from torch import Tensor, nn

    from hybrid_deploy.bundle.input_specs import ArrayInput, ImageInput
    from hybrid_deploy.export.export_job import ExportJob

_ARRAYS = (".npy", ".npz")
_GREY = ("1", "L", "I", "F", "LA")


def load_job(name: str, options: ModelOptions, weights: Path | None = None) -> ExportJob:
    """Returns the job that a factory returns, or the job of the model that it returns.

    Args:
        name: `package.module:factory`; the factory takes no arguments and returns an ExportJob, or
            a torch.nn.Module, which is then put into eval mode. It may be the module itself.
        options: description of a torch.nn.Module; must be empty for an ExportJob.
        weights: file whose weights are loaded into the model; None loads none.

    Raises:
        UsageError: the factory does not exist, fails or returns something else, or options are
            missing or do not apply.
        InputError: the weights or the example cannot be used.
    """
    factory = load_factory(name)
    from torch import nn

    from hybrid_deploy.cli.output import log
    from hybrid_deploy.export.export_job import ExportJob
    from hybrid_deploy.export.model.weights import load_weights

    with one_line_failures(name):
        returned = factory if isinstance(factory, nn.Module) else factory()
    if not isinstance(returned, (ExportJob, nn.Module)):
        raise UsageError(
            f"{name} returned {type(returned).__name__}, "
            "an ExportJob or a torch.nn.Module was expected"
        )
    if isinstance(returned, ExportJob) and options.used_options():
        raise UsageError(
            f"{name} returned an ExportJob, which describes its model itself; leave out "
            f"{', '.join(options.used_options())}"
        )
    if weights is not None:
        model = returned.model if isinstance(returned, ExportJob) else returned
        for remark in load_weights(model, weights):
            log(remark)
    return (
        returned
        if isinstance(returned, ExportJob)
        else _job_from_options(name, returned.eval(), options)
    )


def load_factory(name: str) -> Callable[[], Any]:
    """Returns the function, or the torch.nn.Module, that `package.module:factory` names.

    Raises:
        UsageError: the module or function does not exist, or needs arguments.
    """
    module_name, colon, factory_name = name.partition(":")
    if not (module_name and colon and factory_name):
        raise UsageError(f"expected package.module:factory, got {name!r}")
    factory: Callable[[], Any] = import_function(module_name, factory_name)
    if hasattr(factory, "named_modules") and not inspect.isclass(factory):
        return factory  # a torch.nn.Module, told without importing torch
    try:
        inspect.signature(factory).bind()
    except ValueError:
        pass  # a function in C may have no signature
    except TypeError as error:
        raise UsageError(f"{name} must be called without arguments: {error}") from error
    return factory


def _job_from_options(name: str, model: nn.Module, options: ModelOptions) -> ExportJob:
    """Returns the job of a model that the options describe."""
    from hybrid_deploy.bundle.manifest import GenerationDefaults
    from hybrid_deploy.export.export_job import InputOptions
    from hybrid_deploy.export.make_job import make_job, named_inputs
    from hybrid_deploy.export.model.interface import check_model

    check_model(model)
    needed = {"--example": options.example, "--max-length": options.max_length}
    if missing := [option for option, value in needed.items() if value is None]:
        raise UsageError(
            f"{name} returned a model, {type(model).__name__}; give {' and '.join(missing)} to "
            "describe it, as in --example line.png --max-length 64"
        )
    assert options.example is not None and options.max_length is not None
    example, preprocess = _example(model, options.example, options)
    is_image = preprocess is not None
    dynamic = {
        input_name: {
            axis: (axis_name(input_name, axis, is_image=is_image), *sizes)
            for axis, sizes in axes.items()
        }
        for input_name, axes in options.axes().items()
    }
    job = make_job(
        model,
        example,
        GenerationDefaults(
            start_tokens=tuple(options.start),
            end_tokens=tuple(options.end),
            pad_token=options.pad or 0,
            max_length=options.max_length,
        ),
        InputOptions(preprocess, dynamic),
        checks=[example],
    )
    assert named_inputs(model, example).keys() == job.example.keys()
    if all(len(value) == 1 for value in job.example.values()):
        job = replace(job, golden={options.example.name: options.example.read_bytes()})
    return job


def _example(
    model: nn.Module, path: Path, options: ModelOptions
) -> tuple[dict[str, Tensor], ImageInput | None]:
    """Returns the encoder's inputs in the example file, and how its picture became them.

    The second item is None for a file of arrays.
    """
    from hybrid_deploy.bundle.input_specs import ArrayInput
    from hybrid_deploy.export.make_job import input_names
    from hybrid_deploy.runtime.preprocess.image import load_image
    from hybrid_deploy.runtime.preprocess.prepare import prepare

    first, *others = input_names(model)
    other_mode: ImageInput | None = None
    preprocess: ArrayInput | ImageInput
    if path.suffix in _ARRAYS:
        _refuse_pixel_options(options, path)
        preprocess = ArrayInput(first, tuple(others))
    elif others:
        raise UsageError(
            f"encode takes {', '.join([first, *others])}; give the example as a .npz file with "
            "these names"
        )
    else:
        picture = load_image(path)
        mode, other = ("L", "RGB") if picture.mode in _GREY else ("RGB", "L")
        preprocess = options.image_input(first, mode, picture.size)
        if options.mode is None:
            converted = replace(options, mode=other, mean=None, std=None)
            other_mode = converted.image_input(first, other, picture.size)
    arrays = prepare([path], preprocess)
    for name, array in arrays.items():
        if array.dtype == "float64":
            raise InputError(f"{path} holds float64 as {name}; save it with .astype('float32')")
    tensors = _tensors(arrays)
    _check_encodes(model, path, tensors, other_mode)
    return tensors, None if isinstance(preprocess, ArrayInput) else preprocess


def _tensors(arrays: Mapping[str, Any]) -> dict[str, Tensor]:
    import torch

    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def _check_encodes(
    model: nn.Module, path: Path, tensors: Mapping[str, Tensor], other_mode: ImageInput | None
) -> None:
    """Checks whether encode() fails for an example that it takes in another form.

    Args:
        model: module with `encode`.
        path: file of the example.
        tensors: inputs that the file became.
        other_mode: how its picture would become an input of other channels; None tries none.

    Raises:
        UsageError: it takes the picture in the other mode, or the arrays with an axis more.
    """
    from hybrid_deploy.runtime.preprocess.prepare import prepare

    if _encodes(model, tensors):
        return
    if other_mode is not None and _encodes(model, _tensors(prepare([path], other_mode))):
        raise UsageError(
            f"encode() fails for {path} with its own channels, and works in mode "
            f"{other_mode.mode}; give --mode {other_mode.mode}"
        )
    if _encodes(model, {name: value[None] for name, value in tensors.items()}):
        shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in tensors.items())
        raise UsageError(
            f"{path} holds {shapes} without an axis of the batch; save it batch first, as "
            "array[None]"
        )


def _encodes(model: nn.Module, inputs: Mapping[str, Tensor]) -> bool:
    """Returns whether encode() takes a batch of two such inputs, and returns something for it."""
    from hybrid_deploy.export.model.interface import as_batch_of_two, reference_memory

    try:
        memory = reference_memory(model, tuple(map(as_batch_of_two, inputs.values())))
    except Exception:  # whatever the user's code raises
        return False
    return len(memory) > 0


def _refuse_pixel_options(options: ModelOptions, path: Path) -> None:
    useless = {"--mode", "--height", "--width", "--mean", "--std"} & set(options.used_options())
    if useless:
        raise UsageError(f"{path} holds arrays as they are; leave out {', '.join(sorted(useless))}")
