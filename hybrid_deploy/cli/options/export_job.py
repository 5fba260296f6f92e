"""From `package.module:factory` and options to an ExportJob."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hybrid_deploy.cli.options.model import ModelOptions, axis_name
from hybrid_deploy.errors import InputError, UsageError
from hybrid_deploy.user_functions import import_function

if TYPE_CHECKING:
    from torch import Tensor, nn

    from hybrid_deploy.bundle.input_specs import ArrayInput, ImageInput
    from hybrid_deploy.export.export_job import ExportJob

_ARRAYS = (".npy", ".npz")
_GREY = ("1", "L", "I", "F", "LA")


def load_job(name: str, options: ModelOptions, weights: Path | None = None) -> ExportJob:
    """Calls a factory, and completes its model to a job.

    Args:
        name: `package.module:factory`; the factory takes nothing and gives an ExportJob or a
            torch.nn.Module, which is put into eval mode.
        options: describe a module; an ExportJob describes itself and takes none.
        weights: file that is loaded into the model.

    Raises:
        UsageError: there is no such factory, it gives something else, or options are missing.
        InputError: the weights or the example cannot be used.
    """
    factory = load_factory(name)
    from torch import nn

    from hybrid_deploy.export.export_job import ExportJob
    from hybrid_deploy.export.model.weights import load_weights

    made = factory()
    if not isinstance(made, (ExportJob, nn.Module)):
        raise UsageError(
            f"{name} gave {type(made).__name__}, an ExportJob or a torch.nn.Module was expected"
        )
    if isinstance(made, ExportJob) and options.given():
        raise UsageError(
            f"{name} gave an ExportJob, which describes its model itself; leave out "
            f"{', '.join(options.given())}"
        )
    if weights is not None:
        load_weights(made.model if isinstance(made, ExportJob) else made, weights)
    return made if isinstance(made, ExportJob) else _described(name, made.eval(), options)


def load_factory(name: str) -> Callable[[], Any]:
    """Imports `package.module:factory`.

    Raises:
        UsageError: there is no such module or function, or it takes arguments.
    """
    module_name, colon, factory_name = name.partition(":")
    if not (module_name and colon and factory_name):
        raise UsageError(f"expected package.module:factory, got {name!r}")
    factory: Callable[[], Any] = import_function(module_name, factory_name)
    try:
        inspect.signature(factory).bind()
    except ValueError:
        pass  # a function in C, which does not say what it takes
    except TypeError as error:
        raise UsageError(f"{name} must be called without arguments: {error}") from error
    return factory


def _described(name: str, model: nn.Module, options: ModelOptions) -> ExportJob:
    """Makes the job of a module from the options."""
    from hybrid_deploy.bundle.manifest import GenerationDefaults
    from hybrid_deploy.export.export_job import InputOptions
    from hybrid_deploy.export.make_job import make_job, named_inputs
    from hybrid_deploy.export.model.interface import check_model

    check_model(model)
    needed = {"--example": options.example, "--max-length": options.max_length}
    if missing := [option for option, value in needed.items() if value is None]:
        raise UsageError(
            f"{name} gave a model, {type(model).__name__}; {' and '.join(missing)} must say what "
            "it reads and how far it writes: --example line.png --max-length 64"
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
    if options.start:
        job = replace(job, golden={options.example.name: options.example.read_bytes()})
    return job


def _example(
    model: nn.Module, path: Path, options: ModelOptions
) -> tuple[dict[str, Tensor], ImageInput | None]:
    """Reads the example: arrays as they are, a picture through the options."""
    import torch

    from hybrid_deploy.bundle.input_specs import ArrayInput
    from hybrid_deploy.export.make_job import input_names
    from hybrid_deploy.runtime.preprocess.image import load_image
    from hybrid_deploy.runtime.preprocess.prepare import prepare

    first, *others = input_names(model)
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
        mode = "L" if picture.mode in _GREY else "RGB"
        preprocess = options.image_input(first, mode, picture.size)
    arrays = prepare([path], preprocess)
    for name, array in arrays.items():
        if array.dtype == "float64":
            raise InputError(f"{path} holds float64 as {name}; save it with .astype('float32')")
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return tensors, None if isinstance(preprocess, ArrayInput) else preprocess


def _refuse_pixel_options(options: ModelOptions, path: Path) -> None:
    wrong = {"--mode", "--height", "--width", "--mean", "--std"} & set(options.given())
    if wrong:
        raise UsageError(f"{path} holds arrays as they are; leave out {', '.join(sorted(wrong))}")
