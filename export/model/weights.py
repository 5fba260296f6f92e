"""Loads weights from a file into a model: safetensors, or tensors saved by torch.save."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hybrid_deploy.argument_checks import shown
from hybrid_deploy.errors import InputError

SUFFIXES = (".safetensors", ".pt", ".pth")
_WRAPPERS = ("state_dict", "model_state_dict", "model")
_PARALLEL_PREFIX = "module."  # of every name under DistributedDataParallel
_NAMES_SHOWN = 3


def load_weights(model: nn.Module, path: Path) -> tuple[str, ...]:
    """Loads the weights of a file into a model; every name and shape must fit.

    Args:
        model: module whose parameters and buffers are overwritten.
        path: file that ends in `.safetensors`, `.pt` or `.pth`. A checkpoint may hold the weights
            under `state_dict`, `model_state_dict` or `model`; their names may begin with the
            `module.` of DistributedDataParallel.

    Returns:
        A sentence if the file holds other weights too.

    Raises:
        InputError: the file cannot be read without unpickling objects, or does not fit the model.
    """
    loaded = _read(path)
    state = _unwrapped(loaded, path)
    _check_fit(model, state, path)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:  # weights that are sparse, quantized or without data
        raise InputError(
            f"{path} does not fit {type(model).__name__}: {str(error).splitlines()[-1].strip()}"
        ) from error
    return _other_weights(loaded, path)


def _other_weights(loaded: Any, path: Path) -> tuple[str, ...]:
    """Returns a sentence on the weights beside those that are taken, as an average of them."""
    key = next((key for key in _WRAPPERS if isinstance(loaded.get(key), Mapping)), None)
    others = [
        shown(name)
        for name, value in loaded.items()
        if name != key
        and isinstance(value, Mapping)
        and value
        and all(isinstance(each, Tensor) for each in value.values())
    ]
    if key is None or not others:
        return ()
    return (
        f"{path}: loaded the weights under {key!r}; it also holds {', '.join(others)}: to take "
        f"those, save them alone, as torch.save(torch.load({path.name!r})[{others[0]}], 'ema.pt')",
    )


def _read(path: Path) -> Any:
    if not path.is_file():
        raise InputError(f"{path} does not exist" if not path.exists() else f"{path} is no file")
    if path.suffix not in SUFFIXES:
        raise InputError(f"{path} must end in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}")
    if path.suffix == ".safetensors":
        import safetensors.torch

        try:
            return safetensors.torch.load_file(path)
        except Exception as error:  # safetensors raises its own errors and others
            raise InputError(f"{path} is not a safetensors file: {error}") from error
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} holds Python objects, which can run code when they are read; convert it where "
            "you trust it: torch.save(torch.load(file, weights_only=False).state_dict(), "
            "'weights.pt')"
        ) from error
    except Exception as error:  # a damaged file raises errors of any type
        raise InputError(f"{path} is not a file that torch.save wrote") from error


def _unwrapped(loaded: Any, path: Path) -> dict[str, Tensor]:
    for key in _WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    if not isinstance(loaded, Mapping) or not loaded:
        raise InputError(f"{path} holds a {type(loaded).__name__}, weights by name were expected")
    for name, value in loaded.items():
        if not (isinstance(name, str) and isinstance(value, Tensor)):
            raise InputError(
                f"{path} holds {shown(name)} of type {type(value).__name__}, where only weights by "
                "name were expected; save model.state_dict() alone"
            )
    if all(name.startswith(_PARALLEL_PREFIX) for name in loaded):
        return {name.removeprefix(_PARALLEL_PREFIX): value for name, value in loaded.items()}
    return dict(loaded)


def _check_fit(model: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    expected = model.state_dict()
    problems = []
    if missing := [name for name in expected if name not in state]:
        problems.append(f"missing {_some(missing)}")
    if unexpected := [name for name in state if name not in expected]:
        problems.append(f"unexpected {_some(unexpected)}")
    shapes = [
        f"{name} of {tuple(state[name].shape)} where the model has {tuple(value.shape)}"
        for name, value in expected.items()
        if name in state and state[name].shape != value.shape
    ]
    if shapes:
        problems.append(f"wrong shape: {_some(shapes)}")
    if problems:
        raise InputError(f"{path} does not fit {type(model).__name__}: {'; '.join(problems)}")


def _some(names: Sequence[str]) -> str:
    rest = len(names) - _NAMES_SHOWN
    return ", ".join(shown(name).strip("'") for name in names[:_NAMES_SHOWN]) + (
        f" and {rest} more" if rest > 0 else ""
    )
